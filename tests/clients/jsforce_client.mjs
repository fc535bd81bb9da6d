// jsforce, unmodified, against the emulator: authorize, describe, query with pages, rows, collections, upsert, updated, limits.
import assert from 'node:assert/strict';
import jsforce from 'jsforce';

const base = process.env.EMULATOR_HTTP;

async function refused(work, code) {
  await assert.rejects(work, (error) => {
    assert.equal(error.errorCode ?? error.name, code, error.message);
    return true;
  });
}

// --- a session by client credentials ---------------------------------------------------------------
const conn = new jsforce.Connection({
  loginUrl: base,
  instanceUrl: base,
  version: '62.0',
  callOptions: { client: 'pg_crm_sync_jsforce' },
  oauth2: { clientId: 'emulator-app', clientSecret: 'emulator-secret', loginUrl: base },
});
const user = await conn.authorize({ grant_type: 'client_credentials' });
assert.equal(user.organizationId, '00Dxx0000000001EAA');
assert.match(user.id, /^005/);
const identity = await conn.identity();
assert.equal(identity.organization_id, user.organizationId);

const wrong = new jsforce.Connection({
  loginUrl: base,
  instanceUrl: base,
  oauth2: { clientId: 'emulator-app', clientSecret: 'wrong', loginUrl: base },
});
await assert.rejects(wrong.authorize({ grant_type: 'client_credentials' }), /invalid client credentials/);
console.log('ok session');

// --- describe and query ----------------------------------------------------------------------------
const global = await conn.describeGlobal();
assert.ok(global.sobjects.some((s) => s.name === 'Opportunity'));
const described = await conn.sobject('Opportunity').describe();
assert.ok(described.fields.find((f) => f.name === 'StageName').picklistValues.length > 5);

const { totalSize } = await conn.query('SELECT COUNT() FROM Contact');
const seen = new Set();
let page = await conn.query('SELECT Id, Name, Account.Name FROM Contact ORDER BY Id', { headers: { 'Sforce-Query-Options': 'batchSize=200' } });
for (;;) {
  assert.equal(page.totalSize, totalSize, 'every page says the same total');
  page.records.forEach((r) => seen.add(r.Id));
  if (page.done) break;
  assert.equal(page.records.length, 200);
  page = await conn.queryMore(page.nextRecordsUrl);
}
assert.equal(seen.size, totalSize);
assert.ok(page.records[0].Account.Name);
console.log('ok describe and query');

// --- rows and collections --------------------------------------------------------------------------
const one = await conn.sobject('Account').create({ Name: 'jsforce' });
assert.ok(one.success);
await conn.sobject('Account').update({ Id: one.id, Industry: 'Energy' });
assert.equal((await conn.sobject('Account').retrieve(one.id)).Industry, 'Energy');

const many = await conn.sobject('Contact').create(
  [{ LastName: 'One' }, { LastName: 'Two', Email: 'no address' }, { LastName: 'Three' }],
  { allOrNone: false },
);
assert.deepEqual(many.map((r) => r.success), [true, false, true]);
assert.equal(many[1].errors[0].statusCode, 'INVALID_EMAIL_ADDRESS');
const ids = [many[0].id, many[2].id];
const changed = await conn.sobject('Contact').update(ids.map((Id) => ({ Id, Title: 'Changed' })));
assert.ok(changed.every((r) => r.success));
const read = await conn.sobject('Contact').retrieve(ids);
assert.deepEqual(read.map((r) => r.Title), ['Changed', 'Changed']);

const upserts = [
  { LastName: 'Key A', pg_crm_sync_id__c: 'js-a' },
  { LastName: 'Key B', pg_crm_sync_id__c: 'js-b' },
];
const first = await conn.sobject('Contact').upsert(upserts, 'pg_crm_sync_id__c');
assert.deepEqual(first.map((r) => r.created), [true, true]);
const second = await conn.sobject('Contact').upsert(upserts, 'pg_crm_sync_id__c');
assert.deepEqual(second.map((r) => [r.id, r.created]), first.map((r) => [r.id, false]));
const single = await conn.sobject('Subscription__c').upsert({ Ext__c: 'js-sub', Plan__c: 'Plus' }, 'Ext__c');
assert.ok(single.success);

const gone = await conn.sobject('Contact').destroy(ids);
assert.ok(gone.every((r) => r.success));
assert.equal((await conn.query(`SELECT Id FROM Contact WHERE Id IN ('${ids.join("','")}')`)).totalSize, 0);
const all = await conn.query(`SELECT Id FROM Contact WHERE Id IN ('${ids.join("','")}')`, { scanAll: true });
assert.equal(all.totalSize, 2);
console.log('ok rows and collections');

// --- replication, limits, errors -------------------------------------------------------------------
const start = new Date(Date.now() - 3_600_000).toISOString();
const end = new Date(Date.now() + 120_000).toISOString();
const updated = await conn.sobject('Contact').updated(start, end);
assert.ok(updated.ids.includes(first[0].id));
const deleted = await conn.sobject('Contact').deleted(start, end);
assert.equal(deleted.deletedRecords.length, 2);
const limits = await conn.limits();
assert.ok(limits.DailyApiRequests.Remaining < limits.DailyApiRequests.Max);
assert.ok(conn.limitInfo.apiUsage.used > 0);
await refused(conn.sobject('Account').retrieve(`001xx0${'z'.repeat(9)}`), 'NOT_FOUND');
await refused(conn.query('SELECT Id FROM Contact WHERE'), 'MALFORMED_QUERY');
console.log('ok replication, limits, errors');

// --- Bulk API 2.0 --------------------------------------------------------------------------------------
conn.bulk2.pollInterval = 50;
const stream = await conn.bulk2.query('SELECT Id, LastName FROM Contact');
const found = await stream.toArray();
assert.equal(found.length, (await conn.query('SELECT Id FROM Contact')).totalSize);
assert.ok(found.every((r) => r.Id.length === 18 && r.LastName));
const loaded = await conn.bulk2.loadAndWaitForResults({
  object: 'Contact', operation: 'insert',
  input: [{ LastName: 'Bulk js', Title: null }, { FirstName: 'No last name' }],
});
assert.equal(loaded.successfulResults.length, 1);
assert.equal(loaded.successfulResults[0].sf__Created, 'true');
assert.match(loaded.failedResults[0].sf__Error, /^REQUIRED_FIELD_MISSING:/);
const bulkId = loaded.successfulResults[0].sf__Id;
const cleared = await conn.bulk2.loadAndWaitForResults({
  object: 'Contact', operation: 'update', input: [{ Id: bulkId, Title: 'Set', Department: null }],
});
assert.equal(cleared.failedResults.length, 0);
assert.equal((await conn.sobject('Contact').retrieve(bulkId)).Title, 'Set');
const open = conn.bulk2.createJob({ object: 'Contact', operation: 'delete' });
await open.open();
await open.abort();
assert.equal((await open.check()).state, 'Aborted');
console.log('ok bulk2');

// --- the mark reached the request log ----------------------------------------------------------------
const log = await (await fetch(`${base}/_admin/requests?since=0`)).json();
assert.ok(JSON.stringify(log).includes('client=pg_crm_sync_jsforce'));
console.log('ok mark');
