// The npm client salesforce-pubsub-api-client, unmodified, against the emulator: subscribe, decode events of a human's edits,
// resume from a stored replay id, and fail as the real service makes it fail.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const { default: PubSubApiClient } = await import('salesforce-pubsub-api-client');
assert.ok(createRequire(import.meta.url)('underscore'), 'avro-js needs underscore');

const http = process.env.EMULATOR_HTTP;
const quiet = { debug() {}, info() {}, warn() {}, error() {} };

async function json(url, options) {
  const answer = await fetch(url, options);
  const body = await answer.json();
  assert.ok(answer.ok, `${url}: ${JSON.stringify(body)}`);
  return body;
}

const admin = (path, body) =>
  json(`${http}/_admin/salesforce/${path}`, { method: 'POST', body: JSON.stringify(body ?? {}) });

async function connect(accessToken) {
  const client = new PubSubApiClient(
    {
      authType: 'user-supplied',
      accessToken,
      instanceUrl: process.env.EMULATOR_HTTPS,
      organizationId: '00Dxx0000000001EAA',
      pubSubEndpoint: process.env.EMULATOR_PUBSUB,
      rejectUnauthorizedSsl: false,
    },
    quiet,
  );
  await client.connect();
  return client;
}

// Collects what a subscription yields; `next` waits for the first item that fits.
function collector() {
  const items = [];
  let changed = () => {};
  return {
    items,
    callback(_, type, data) {
      items.push({ type, data });
      changed();
    },
    async next(what, fits) {
      const end = Date.now() + 10_000;
      for (;;) {
        const found = items.find(fits);
        if (found) return found.data;
        assert.ok(Date.now() < end, `no ${what} within 10 s; got ${JSON.stringify(items.map((i) => i.type))}`);
        await new Promise((resolve) => {
          changed = resolve;
          setTimeout(resolve, 200);
        });
      }
    },
  };
}

const event = (id, type) => (item) =>
  item.type === 'event' &&
  item.data.payload.ChangeEventHeader.recordIds.includes(id) &&
  (!type || item.data.payload.ChangeEventHeader.changeType === type);

const { access_token: token } = await json(`${http}/services/oauth2/token`, {
  method: 'POST',
  body: new URLSearchParams({
    grant_type: 'client_credentials',
    client_id: 'emulator-app',
    client_secret: 'emulator-secret',
  }),
});

// --- events of a human's work -------------------------------------------------------------------
const client = await connect(token);
const live = collector();
await client.subscribe('/data/ContactChangeEvent', live.callback.bind(live), 20);
await new Promise((resolve) => setTimeout(resolve, 300)); // LATEST: the subscription must stand before the change

const made = await admin('create', {
  object: 'Contact',
  fields: { FirstName: 'Ada', LastName: 'Lovelace', Department: 'Engines', MailingCity: 'London', Birthdate: '1815-12-10', Score__c: 4.5 },
});
const created = await live.next('CREATE', event(made.Id, 'CREATE'));
assert.equal(created.payload.ChangeEventHeader.entityName, 'Contact');
assert.match(created.payload.ChangeEventHeader.changeOrigin, /SfdcInternalAPI/);
assert.equal(created.payload.Name.FirstName, 'Ada');
assert.equal(created.payload.Name.LastName, 'Lovelace');
assert.equal(created.payload.MailingAddress.City, 'London');
assert.equal(created.payload.Score__c, 4.5);
assert.equal(Number(created.payload.Birthdate), Date.UTC(1815, 11, 10));
assert.equal(created.payload.Phone, null);

await admin('edit', { object: 'Contact', id: made.Id, fields: { Phone: '+44 1', FirstName: null, Department: null, MailingCity: 'Ockham' } });
const updated = await live.next('UPDATE', event(made.Id, 'UPDATE'));
const header = updated.payload.ChangeEventHeader;
const changed = ['Department', 'LastModifiedDate', 'MailingAddress.City', 'Name.FirstName', 'Phone'];
assert.deepEqual([...header.changedFields].sort(), changed);
// Two fields are nulled because this client ignores a list that has only a nested bitmap.
assert.deepEqual(header.nulledFields, ['Department', 'Name.FirstName']);
assert.equal(updated.payload.Phone, '+44 1');
assert.equal(updated.payload.Name.FirstName, null);
assert.equal(updated.payload.MailingAddress.City, 'Ockham');
assert.equal(updated.payload.Title, null, 'unchanged fields are null and not named');

await admin('delete', { object: 'Contact', id: made.Id });
await live.next('DELETE', event(made.Id, 'DELETE'));
await admin('restore', { object: 'Contact', id: made.Id });
await live.next('UNDELETE', event(made.Id, 'UNDELETE'));
const ids = live.items.filter((item) => item.type === 'event').map((item) => Number(item.data.replayId));
assert.ok(ids.every((id, i) => i === 0 || id > ids[i - 1]), `replay ids rise: ${ids}`);
console.log("ok events of a human's work");

// --- the mark of an API write --------------------------------------------------------------------
await fetch(`${http}/services/data/v62.0/sobjects/Contact/${made.Id}`, {
  method: 'PATCH',
  headers: { authorization: `Bearer ${token}`, 'sforce-call-options': 'client=pg_crm_sync_test' },
  body: JSON.stringify({ Title: 'Analyst' }),
});
const marked = await live.next('marked UPDATE', (item) => event(made.Id, 'UPDATE')(item) && item.data.payload.Title === 'Analyst');
assert.equal(marked.payload.ChangeEventHeader.changeOrigin, 'com/salesforce/api/rest/62.0;client=pg_crm_sync_test');
console.log("ok the mark of an API write");

// --- resume from a stored id, on the channel of everything ----------------------------------------
const second = await connect(token);
const replayed = collector();
await second.subscribeFromReplayId('/data/ChangeEvents', replayed.callback.bind(replayed), 5, Number(created.replayId));
const again = await replayed.next('replayed UPDATE', event(made.Id, 'UPDATE'));
assert.equal(again.payload.Phone, '+44 1');
assert.ok(!replayed.items.some(event(made.Id, 'CREATE')), 'events up to the stored id do not come again');
console.log("ok resumption");

// --- a quiet stream is kept alive ------------------------------------------------------------------
await admin('settings', { keepalive_ms: 100 });
const quietly = await connect(token);
const idle = collector();
await quietly.subscribe('/data/Subscription__ChangeEvent', idle.callback.bind(idle), 1);
await idle.next('keepalive', (item) => item.type === 'grpcKeepAlive');
quietly.close();
console.log("ok keepalive");

// --- an expired id and a bad token ----------------------------------------------------------------
await admin('expire-replay-ids');
const third = await connect(token);
const refused = collector();
await third.subscribeFromReplayId('/data/ContactChangeEvent', refused.callback.bind(refused), 5, Number(created.replayId));
const error = await refused.next('error', (item) => item.type === 'error');
assert.equal(error.code, 3, 'INVALID_ARGUMENT');
const code = error.metadata.get('error-code');
assert.deepEqual(code, ['sfdc.platform.eventbus.grpc.subscription.fetch.replayid.validation.failed']);

const stranger = await connect('00Dxx0000000001!nobody');
const denied = collector();
await stranger.subscribe('/data/ContactChangeEvent', denied.callback.bind(denied), 1);
const denial = await denied.next('error', (item) => item.type === 'error');
assert.equal(denial.code, 16, 'UNAUTHENTICATED');

for (const open of [client, second, third, stranger]) open.close();
console.log('ok refusals');
process.exit(0);
