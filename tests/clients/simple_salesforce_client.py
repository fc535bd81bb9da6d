"""simple-salesforce, unmodified, against the emulator over https: describe, queries and their pages, rows, upserts,
collections, replication calls, errors."""

import datetime
import json
import os
import urllib.parse
import urllib.request

from simple_salesforce import Salesforce
from simple_salesforce.exceptions import (
    SalesforceExpiredSession,
    SalesforceMalformedRequest,
    SalesforceMoreThanOneRecord,
    SalesforceResourceNotFound,
)

HTTP = os.environ["EMULATOR_HTTP"]
HTTPS = os.environ["EMULATOR_HTTPS"]
assert os.environ.get("REQUESTS_CA_BUNDLE"), "the emulator's CA must be trusted by name"


def call(path, body=None, form=None):
    """An admin or OAuth call over plain HTTP."""
    data = json.dumps(body).encode() if body is not None else None
    if form:
        data = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(urllib.request.Request(HTTP + path, data=data)) as answer:
        return json.load(answer)


def token():
    form = {"grant_type": "client_credentials", "client_id": "emulator-app", "client_secret": "emulator-secret"}
    answer = call("/services/oauth2/token", form=form)
    assert "expires_in" not in answer and answer["issued_at"].isdigit(), answer
    return answer["access_token"]


def refused(kind, work):
    """Runs `work`, which must fail with `kind`; the error's content."""
    try:
        work()
    except kind as error:
        return error.content
    raise AssertionError(f"expected {kind.__name__}")


sf = Salesforce(instance_url=HTTPS, session_id=token(), version="62.0")

# Describe.
described = sf.describe()
names = [entry["name"] for entry in described["sobjects"]]
assert "Subscription__c" in names and "ContactChangeEvent" in names and described["maxBatchSize"] == 200
fields = {field["name"]: field for field in sf.Contact.describe()["fields"]}
assert len(fields["Email"]) == 57 and fields["Email"]["type"] == "email" and fields["Email"]["idLookup"]
assert fields["LastName"]["nillable"] is False and fields["MailingCity"]["compoundFieldName"] == "MailingAddress"
assert fields["pg_crm_sync_id__c"]["externalId"] and fields["pg_crm_sync_id__c"]["unique"]
assert sf.Account.metadata()["objectDescribe"]["keyPrefix"] == "001"
print("ok describe")

# Queries and their pages.
count = sf.query("SELECT COUNT() FROM Contact")["totalSize"]
everyone = sf.query_all("SELECT Id, Email, SystemModstamp FROM Contact ORDER BY SystemModstamp, Id")
assert everyone["totalSize"] == count == len(everyone["records"]), (everyone["totalSize"], count)
stamps = [(row["SystemModstamp"], row["Id"]) for row in everyone["records"]]
assert stamps == sorted(stamps) and stamps[0][0].endswith("+0000")
long = sf.query("SELECT Id, Description FROM Contact")
assert long["totalSize"] == count
middle = stamps[count // 2]
when = middle[0].replace("+0000", "Z")
keyset = (
    f"SELECT Id FROM Contact WHERE SystemModstamp > {when} OR (SystemModstamp = {when} AND Id > '{middle[1]}') "
    "ORDER BY SystemModstamp, Id"
)
rest = [row["Id"] for row in sf.query_all(keyset)["records"]]
assert rest == [record for _, record in stamps[count // 2 + 1 :]], "keyset paging loses and repeats nothing"
quoted = "O'Neill \\ Söhne"
made = sf.Account.create({"Name": quoted})
escaped = quoted.replace("\\", "\\\\").replace("'", "\\'")
assert sf.query(f"SELECT Id FROM Account WHERE Name = '{escaped}'")["records"][0]["Id"] == made["id"]
print("ok queries")

# Rows.
sf.Account.update(made["id"], {"Phone": "+1 555 0100", "AnnualRevenue": 1234.4})
row = sf.Account.get(made["id"][:15])
assert row["Id"] == made["id"] and row["Phone"] == "+1 555 0100" and row["AnnualRevenue"] == 1234.0
assert sf.api_usage["api-usage"].used > 0
assert sf.Account.upsert("pg_crm_sync_id__c/k-1", {"Name": "By key"}) == 201
assert sf.Account.upsert("pg_crm_sync_id__c/k-1", {"Name": "By key again"}) == 200
assert sf.Account.get_by_custom_id("pg_crm_sync_id__c", "K-1")["Name"] == "By key again", "keys ignore case"
contact = everyone["records"][0]
assert sf.Contact.upsert(f"Email/{contact['Email']}", {"Title": "Found by address"}) == 200
sf.Contact.create({"LastName": "Twin", "Email": contact["Email"]})
refused(SalesforceMoreThanOneRecord, lambda: sf.Contact.get_by_custom_id("Email", contact["Email"]))
print("ok rows")

# Errors.
error = refused(SalesforceMalformedRequest, lambda: sf.Contact.create({"FirstName": "Nobody"}))
assert error[0]["errorCode"] == "REQUIRED_FIELD_MISSING" and error[0]["fields"] == ["LastName"], error
error = refused(SalesforceMalformedRequest, lambda: sf.Contact.create({"LastName": "x" * 81}))
assert error[0]["errorCode"] == "STRING_TOO_LONG", error
error = refused(SalesforceMalformedRequest, lambda: sf.Contact.create({"LastName": "x", "Level__c": "Top"}))
assert error[0]["errorCode"] == "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", error
error = refused(SalesforceMalformedRequest, lambda: sf.Account.create({"Name": "x", "pg_crm_sync_id__c": "k-1"}))
assert error[0]["errorCode"] == "DUPLICATE_VALUE", error
error = refused(SalesforceMalformedRequest, lambda: sf.query("SELECT Nope FROM Contact"))
assert "No such column 'Nope'" in error[0]["message"], error
print("ok errors")

# Collections.
people = [{"attributes": {"type": "Contact"}, "LastName": f"Batch {n}"} for n in range(3)]
people.append({"attributes": {"type": "Contact"}, "FirstName": "No last name"})
results = sf.restful("composite/sobjects", method="POST", json={"allOrNone": False, "records": people})
assert [result["success"] for result in results] == [True, True, True, False]
assert "id" not in results[3] and results[3]["errors"][0]["statusCode"] == "REQUIRED_FIELD_MISSING", results[3]
results = sf.restful("composite/sobjects", method="POST", json={"allOrNone": True, "records": people})
assert results[0]["errors"][0]["statusCode"] == "ALL_OR_NONE_OPERATION_ROLLED_BACK", results
assert sf.query("SELECT COUNT() FROM Contact WHERE LastName LIKE 'Batch%'")["totalSize"] == 3
print("ok collections")

# Bulk API 2.0.
pages = list(sf.bulk2.Contact.query("SELECT Id, Name FROM Contact", max_records=100))
assert len(pages) == 3 and all(page.startswith('"Id","Name"') for page in pages), [page[:40] for page in pages]
rows = [line for page in pages for line in page.splitlines()[1:]]
assert len(rows) == len(set(rows)) == sf.query("SELECT COUNT() FROM Contact")["totalSize"]
people = [{"LastName": f"Bulk {n}", "Email": f"bulk{n}@example.net"} for n in range(5)] + [{"LastName": "", "Email": "x@example.net"}]
(done,) = sf.bulk2.Contact.insert(records=people, wait=0.05)
assert (done["numberRecordsProcessed"], done["numberRecordsFailed"]) == (6, 1), done
good = sf.bulk2.Contact.get_successful_records(done["job_id"])
assert good.splitlines()[0].startswith('"sf__Id","sf__Created",') and len(good.splitlines()) == 6, good
assert "REQUIRED_FIELD_MISSING" in sf.bulk2.Contact.get_failed_records(done["job_id"])
assert len(sf.bulk2.Contact.get_unprocessed_records(done["job_id"]).splitlines()) == 1
bulk_ids = [row["Id"] for row in sf.query("SELECT Id FROM Contact WHERE LastName LIKE 'Bulk %'")["records"]]
changes = [{"Id": row, "Title": "Bulk"} for row in bulk_ids]
(done,) = sf.bulk2.Contact.update(records=changes, column_delimiter="PIPE", line_ending="CRLF", wait=0.05)
assert (done["numberRecordsProcessed"], done["numberRecordsFailed"]) == (5, 0), done
keyed = [{"pg_crm_sync_id__c": "b-1", "LastName": "By bulk key"}]
for _ in range(2):
    (done,) = sf.bulk2.Contact.upsert(records=keyed, external_id_field="pg_crm_sync_id__c", wait=0.05)
    assert done["numberRecordsFailed"] == 0, done
(done,) = sf.bulk2.Contact.delete(records=[{"Id": row} for row in bulk_ids], wait=0.05)
assert done["numberRecordsFailed"] == 0, done
assert sf.query("SELECT COUNT() FROM Contact WHERE LastName LIKE 'Bulk %'")["totalSize"] == 0
print("ok bulk2")

# What changed, what is gone.
sf.Account.delete(made["id"])
error = refused(SalesforceResourceNotFound, lambda: sf.Account.get(made["id"]))
assert error[0]["errorCode"] == "ENTITY_IS_DELETED", error
assert not sf.query(f"SELECT Id FROM Account WHERE Id = '{made['id']}'")["records"]
assert sf.query_all(f"SELECT Id, IsDeleted FROM Account WHERE Id = '{made['id']}'", include_deleted=True)["records"][0]["IsDeleted"]
now = datetime.datetime.now(datetime.timezone.utc)
span = (now - datetime.timedelta(hours=1), now + datetime.timedelta(minutes=2))
assert made["id"] in [entry["id"] for entry in sf.Account.deleted(*span)["deletedRecords"]]
assert contact["Id"] in sf.Contact.updated(*span)["ids"]
assert sf.limits()["DailyApiRequests"]["Remaining"] < sf.limits()["DailyApiRequests"]["Max"]
print("ok replication and limits")

# A session that ended.
call("/_admin/salesforce/expire-tokens", body={})
error = refused(SalesforceExpiredSession, lambda: sf.query("SELECT Id FROM User"))
assert error[0]["errorCode"] == "INVALID_SESSION_ID", error
print("ok expired session")
