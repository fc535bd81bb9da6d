"""hubspot-api-client, HubSpot's own Python SDK, against the emulator."""

import http.server
import json
import os
import queue
import threading
import time
import urllib.request

from hubspot import HubSpot
from hubspot.crm.contacts import (
    BatchInputSimplePublicObjectBatchInput,
    BatchInputSimplePublicObjectBatchInputForCreate,
    BatchInputSimplePublicObjectBatchInputUpsert,
    BatchReadInputSimplePublicObjectId,
    PublicObjectSearchRequest,
    SimplePublicObjectInput,
    SimplePublicObjectInputForCreate,
)
from hubspot.crm.contacts.exceptions import ApiException
from hubspot.utils.signature import Signature
from urllib3.util.retry import Retry

URL = os.environ["EMULATOR_HTTP"]
SECRET = "emulator-secret"
CONTACTS = 250


def client(**options):
    found = HubSpot(access_token="pat-na1-emulator", **options)
    found.config["host"] = URL
    return found


def admin(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL + "/_admin/" + path, data=data), timeout=10) as answer:
        return json.load(answer)


def ok(name):
    print("ok hubspot-api-client", name, flush=True)


api = client()
admin("rate-limits", {"crm": "hubspot", "enforce": False})

page = api.crm.contacts.basic_api.get_page(limit=2, properties=["email", "firstname", "fax", "nope"], archived=False)
assert [r.id for r in page.results] == ["1", "2"], page
assert page.results[0].properties["email"].endswith("@example.com")
assert page.results[0].properties["fax"] is None, "empty is null"
assert "nope" not in page.results[0].properties, "undefined is dropped"
assert page.paging.next.after == "3" and page.paging.next.link.startswith(URL)
ok("get_page")

everyone = api.crm.contacts.get_all(properties=["email"])
assert len(everyone) == CONTACTS == len({r.properties["email"] for r in everyone}), len(everyone)
ok("get_all pages to the end")

read = api.crm.contacts.batch_api.read(
    BatchReadInputSimplePublicObjectId(
        properties=["email"], properties_with_history=[], inputs=[{"id": str(n)} for n in range(1, 51)]
    )
)
assert read.status == "COMPLETE" and {r.id for r in read.results} == {str(n) for n in range(1, 51)}
some_email = everyone[41].properties["email"]
read = api.crm.contacts.batch_api.read(
    BatchReadInputSimplePublicObjectId(
        id_property="email", properties=["email"], properties_with_history=[],
        inputs=[{"id": some_email.upper()}, {"id": "nobody@example.net"}],
    )
)
assert [r.id for r in read.results] == [everyone[41].id] and read.num_errors == 1, read
ok("batch read by id and e-mail")

seen, after = [], "0"
while after is not None:
    found = api.crm.contacts.search_api.do_search(
        PublicObjectSearchRequest(
            filter_groups=[{"filters": [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": "0"}]}],
            sorts=["lastmodifieddate"], properties=["email"], limit=100, after=after,
        )
    )
    assert found.total == CONTACTS
    seen += [(r.updated_at, int(r.id)) for r in found.results]
    after = found.paging.next.after if found.paging else None
assert len(seen) == CONTACTS and seen == sorted(seen)
found = api.crm.contacts.search_api.do_search(
    PublicObjectSearchRequest(filter_groups=[{"filters": [{"propertyName": "email", "operator": "EQ", "value": some_email}]}])
)
assert [r.id for r in found.results] == [everyone[41].id]
try:
    api.crm.contacts.search_api.do_search(PublicObjectSearchRequest(after="10000", limit=10))
    raise AssertionError("the 10,000 wall is missing")
except ApiException as refused:
    assert refused.status == 400
ok("search pages in order and ends at 10,000")

made = api.crm.contacts.basic_api.create(
    SimplePublicObjectInputForCreate(
        properties={"email": "py@example.net", "firstname": "Py", "loyalty_points": "5000.00", "last_visit": "2026-12-31"},
        associations=[{"to": {"id": "1"}, "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 279}]}],
    )
)
assert made.properties["loyalty_points"] == "5000.00" and made.properties["last_visit"] == "2026-12-31T00:00:00Z"
assert made.properties["hs_object_id"] == made.id and int(made.id) > 2**31
changed = api.crm.contacts.basic_api.update(made.id, SimplePublicObjectInput(properties={"firstname": "Pyra"}))
assert changed.properties["firstname"] == "Pyra" and changed.updated_at >= made.updated_at
same = api.crm.contacts.basic_api.update(made.id, SimplePublicObjectInput(properties={"firstname": "Pyra"}))
assert same.updated_at == changed.updated_at, "a write that changes nothing keeps the stamp"
got = api.crm.contacts.basic_api.get_by_id("py@example.net", id_property="email", properties=["firstname"], associations=["companies"])
assert got.id == made.id and got.associations["companies"].results[0].id == "1"
try:
    api.crm.contacts.basic_api.create(SimplePublicObjectInputForCreate(properties={"email": "PY@example.net"}))
    raise AssertionError("two contacts with one address")
except ApiException as refused:
    assert refused.status == 409 and made.id in json.loads(refused.body)["message"]
try:
    api.crm.contacts.basic_api.update(made.id, SimplePublicObjectInput(properties={"missing": "x"}))
    raise AssertionError("an undefined property was written")
except ApiException as refused:
    assert refused.status == 400 and "PROPERTY_DOESNT_EXIST" in refused.body
api.crm.contacts.basic_api.archive(made.id)
api.crm.contacts.basic_api.archive("999999999")
try:
    api.crm.contacts.basic_api.get_by_id(made.id)
    raise AssertionError("archived, but still there")
except ApiException as refused:
    assert refused.status == 404
assert api.crm.contacts.basic_api.get_by_id(made.id, archived=True).archived
ok("create, update, no-op, get by e-mail, archive")

batch = api.crm.contacts.batch_api.create(
    BatchInputSimplePublicObjectBatchInputForCreate(
        inputs=[
            {"properties": {"email": "traced@example.net"}, "objectWriteTraceId": "a"},
            {"properties": {"email": some_email}, "objectWriteTraceId": "b"},
        ]
    )
)
assert len(batch.results) == 1 and batch.results[0].object_write_trace_id == "a"
assert batch.errors[0].context["objectWriteTraceId"] == ["b"] and batch.errors[0].category == "CONFLICT"
inputs = [{"id": f"up{n}@example.net", "idProperty": "email", "properties": {"firstname": "Up"}} for n in range(3)]
first = api.crm.contacts.batch_api.upsert(BatchInputSimplePublicObjectBatchInputUpsert(inputs=inputs))
again = api.crm.contacts.batch_api.upsert(BatchInputSimplePublicObjectBatchInputUpsert(inputs=inputs))
assert all(r.new for r in first.results) and not any(r.new for r in again.results)
assert {r.id for r in first.results} == {r.id for r in again.results}
ids = [r.id for r in first.results]
api.crm.contacts.batch_api.update(
    BatchInputSimplePublicObjectBatchInput(inputs=[{"id": i, "properties": {"lastname": "Date"}} for i in ids])
)
assert api.crm.contacts.basic_api.get_by_id(ids[0], properties=["lastname"]).properties["lastname"] == "Date"
api.crm.contacts.batch_api.archive({"inputs": [{"id": i} for i in ids]})
ok("batch create with trace ids, upsert, update, archive")

properties = {p.name: p for p in api.crm.properties.core_api.get_all("contacts").results}
assert properties["pg_crm_sync_id"].has_unique_value and properties["hs_object_id"].modification_metadata.read_only_value
assert properties["preferred_channels"].type == "enumeration" and properties["preferred_channels"].options
api.crm.properties.core_api.create(
    "contacts",
    {"name": "shoe_size", "label": "Shoe size", "type": "number", "fieldType": "number", "groupName": "contactinformation"},
)
api.crm.contacts.basic_api.update("2", SimplePublicObjectInput(properties={"shoe_size": 43}))
assert api.crm.contacts.basic_api.get_by_id("2", properties=["shoe_size"]).properties["shoe_size"] == "43"
api.crm.properties.core_api.archive("contacts", "shoe_size")
schemas = api.crm.schemas.core_api.get_all().results
assert [s.object_type_id for s in schemas] == ["2-1001"] and schemas[0].fully_qualified_name == "p62515_subscriptions"
custom = api.crm.objects.basic_api.get_page("p62515_subscriptions", limit=100, properties=["plan", "seats"])
assert len(custom.results) == CONTACTS // 10 and custom.results[0].properties["plan"]
ok("properties, schemas, custom object")

owners = api.crm.owners.owners_api.get_page().results
assert owners and owners[0].email and owners[0].user_id
assert api.crm.owners.owners_api.get_by_id(int(owners[0].id)).email == owners[0].email
stages = api.crm.pipelines.pipelines_api.get_all("deals").results[0].stages
assert [s.id for s in stages][-2:] == ["closedwon", "closedlost"] and stages[0].metadata["probability"] == "0.2"
ok("owners, pipelines")

linked = api.crm.associations.v4.batch_api.get_page(
    "contacts", "companies", {"inputs": [{"id": "11"}, {"id": "21"}]}
)
assert {(r._from.id, str(r.to[0].to_object_id)) for r in linked.results} == {("11", "2"), ("21", "3")}, linked
api.crm.associations.v4.basic_api.create("contacts", "11", "companies", "5", [
    {"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 279}])
both = api.crm.associations.v4.basic_api.get_page("companies", "5", "contacts", limit=500).results
assert "11" in {str(r.to_object_id) for r in both}, "a link has two ends"
ok("associations v4")

token = api.oauth.tokens_api.create(
    grant_type="refresh_token", client_id="emulator-app", client_secret=SECRET, refresh_token="emulator-refresh"
)
assert token.expires_in == 1800
renewed = HubSpot(access_token=token.access_token)
renewed.config["host"] = URL
assert renewed.crm.contacts.basic_api.get_page(limit=1).results
admin("hubspot/expire-tokens", {})
try:
    renewed.crm.contacts.basic_api.get_page(limit=1)
    raise AssertionError("an expired token was taken")
except ApiException as refused:
    assert refused.status == 401 and "EXPIRED_AUTHENTICATION" in refused.body
ok("OAuth refresh and expiry")

patient = client(retry=Retry(total=3, status_forcelist=(429,), allowed_methods=None, backoff_factor=0.3))
admin("faults", {"crm": "hubspot", "path_prefix": "/crm/v3/objects/contacts", "remaining": 2,
                 "action": {"reject": {"status": 429, "body": {"status": "error", "policyName": "TEN_SECONDLY_ROLLING"}}}})
assert patient.crm.contacts.basic_api.get_page(limit=1).results
counts = [c for c in admin("counts")["counts"] if c["status"] == 429]
assert sum(c["count"] for c in counts) == 2, counts
admin("rate-limits", {"crm": "hubspot", "enforce": True, "burst": 5})
refusals = 0
for _ in range(8):
    try:
        answer = api.crm.contacts.basic_api.get_page_with_http_info(limit=1)
        assert int(answer[2]["X-HubSpot-RateLimit-Remaining"]) >= 0
    except ApiException as refused:
        body = json.loads(refused.body)
        assert refused.status == 429 and body["policyName"] == "TEN_SECONDLY_ROLLING" and "category" not in body
        refusals += 1
assert refusals == 3, refusals
admin("rate-limits", {"crm": "hubspot", "enforce": False, "burst": 190})
ok("429 with retries and headers")


class Receiver(http.server.BaseHTTPRequestHandler):
    arrived = queue.Queue()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Receiver.arrived.put((self.path, dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
hook = f"http://127.0.0.1:{server.server_port}/hook?tenant=a%2Fb"
admin("webhooks", {"url": hook})
admin("hubspot/edit", {"object": "contacts", "id": "7", "fields": {"firstname": "Hooked"}})
path, headers, body = Receiver.arrived.get(timeout=10)
header = {k.lower(): v for k, v in headers.items()}
event = json.loads(body)[0]
assert event["propertyName"] == "firstname" and event["propertyValue"] == "Hooked" and event["objectId"] == 7
assert event["changeSource"] == "CRM_UI" and abs(event["occurredAt"] - time.time() * 1000) < 60_000
common = dict(client_secret=SECRET, request_body=body.decode())
assert Signature.is_valid(
    signature=header["x-hubspot-signature-v3"], signature_version="v3", http_method="POST",
    # HubSpot signs the decoded form; the SDK takes the URL as it is given.
    http_uri=hook.replace("%2F", "/"), timestamp=header["x-hubspot-request-timestamp"], **common)
assert header["x-hubspot-signature-version"] == "v1"
assert Signature.is_valid(signature=header["x-hubspot-signature"], signature_version="v1", **common)
assert not Signature.is_valid(signature=header["x-hubspot-signature"], signature_version="v1",
                              client_secret="wrong", request_body=body.decode())
api.crm.contacts.basic_api.update("7", SimplePublicObjectInput(properties={"firstname": "Own"}))
event = json.loads(Receiver.arrived.get(timeout=10)[2])[0]
assert (event["changeSource"], event["sourceId"]) == ("INTEGRATION", "54321"), event
api.crm.contacts.basic_api.update("7", SimplePublicObjectInput(properties={"firstname": "Own"}))
api.crm.contacts.basic_api.update("7", SimplePublicObjectInput(properties={"firstname": "Next"}))
event = json.loads(Receiver.arrived.get(timeout=10)[2])[0]
assert event["propertyValue"] == "Next", "a write that changes nothing sends nothing"
admin("webhooks", {"url": None})
server.shutdown()
ok("webhooks with valid signatures")
