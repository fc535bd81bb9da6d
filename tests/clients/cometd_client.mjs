// The reference Bayeux client (cometd with cometd-nodejs-client), unmodified: handshake, replay, events, refusals, a session that ends.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
require('cometd-nodejs-client').adapt();
const lib = require('cometd');
const base = process.env.EMULATOR_HTTP;
const CHANNEL = '/data/ContactChangeEvent';

const post = async (path, body) => {
  const answer = await fetch(base + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
  assert.equal(answer.status, 200, path);
  return answer.json();
};
const token = async () => {
  const form = new URLSearchParams({ grant_type: 'client_credentials', client_id: 'emulator-app', client_secret: 'emulator-secret' });
  const answer = await fetch(`${base}/services/oauth2/token`, { method: 'POST', body: form });
  return (await answer.json()).access_token;
};

function client(access, replay) {
  const c = new lib.CometD();
  c.configure({ url: `${base}/cometd/62.0/`, requestHeaders: { Authorization: `Bearer ${access}` }});
  c.unregisterTransport('websocket');
  c.registerExtension('replay', {
    outgoing: (m) => {
      if (m.channel === '/meta/subscribe') m.ext = { replay: { [m.subscription]: replay } };
      return m;
    },
    incoming: (m) => m,
  });
  return c;
}
const handshake = (c) => new Promise((done) => c.handshake(done));
const subscribe = (c, channel, heard) => new Promise((done) => c.subscribe(channel, heard, done));
const until = async (what, condition) => {
  for (let i = 0; i < 200; i++) {
    if (condition()) return;
    await new Promise((r) => setTimeout(r, 50));
  }
  assert.fail(`never: ${what}`);
};

// --- events as documented ---------------------------------------------------------------------------
const query = await fetch(`${base}/services/data/v62.0/query?q=${encodeURIComponent('SELECT Id FROM Contact LIMIT 1')}`, { headers: { Authorization: `Bearer ${await token()}` } });
const id = (await query.json()).records[0].Id;
const patch = async (fields) => {
  const answer = await fetch(`${base}/services/data/v62.0/sobjects/Contact/${id}`, {
    method: 'PATCH',
    headers: { Authorization: `Bearer ${await token()}`, 'content-type': 'application/json', 'sforce-call-options': 'client=pg_crm_sync_x' },
    body: JSON.stringify(fields),
  });
  assert.equal(answer.status, 204);
};

const events = [];
const one = client(await token(), -1);
assert.equal((await handshake(one)).successful, true);
assert.equal((await subscribe(one, CHANNEL, (m) => events.push(m.data))).successful, true);
await patch({ Phone: '+44 1', MailingCity: 'Leeds' });
await until('an event', () => events.length === 1);
const header = events[0].payload.ChangeEventHeader;
assert.equal(header.entityName, 'Contact');
assert.equal(header.changeType, 'UPDATE');
assert.deepEqual(header.recordIds, [id]);
assert.match(header.changeOrigin, /client=pg_crm_sync_x/);
assert.ok(header.changedFields.includes('Phone') && header.changedFields.includes('MailingAddress.City'), header.changedFields);
assert.ok(!('nulledFields' in header) && !('diffFields' in header));
assert.equal(events[0].payload.Phone, '+44 1');
assert.equal(events[0].payload.MailingAddress.City, 'Leeds');
assert.ok(!('Title' in events[0].payload), 'what did not change is not there');
assert.match(events[0].payload.LastModifiedDate, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
assert.equal(typeof events[0].event.replayId, 'number');
console.log('ok events');

// --- replay -----------------------------------------------------------------------------------------
await patch({ Phone: null });
await until('a second event', () => events.length === 2);
assert.equal(events[1].payload.Phone, null);
const again = [];
const two = client(await token(), events[0].event.replayId);
await handshake(two);
await subscribe(two, CHANNEL, (m) => again.push(m.data.event.replayId));
await until('what follows the id', () => again.length === 1);
assert.deepEqual(again, [events[1].event.replayId]);
const wrong = client(await token(), 99_999_999_999);
await handshake(wrong);
const refused = await subscribe(wrong, CHANNEL, () => {});
assert.match(refused.error, /^400::The replayId \{99999999999\} you provided was invalid/);
const nowhere = await subscribe(wrong, '/data/NopeChangeEvent', () => {});
assert.equal(nowhere.successful, false);
assert.match(nowhere.error, /^400::/);
console.log('ok replay');

// --- a client that the server has forgotten greets again by itself ---------------------------------------
let greeted = 0;
one.addListener('/meta/handshake', (m) => {
  if (m.successful) one.subscribe(CHANNEL, (e) => events.push(e.data), () => (greeted += 1));
});
await post('/_admin/salesforce/forget-clients', {});
await patch({ Phone: '+44 2' });
await until('a new handshake', () => greeted >= 1);
await patch({ Phone: '+44 3' });
await until('events go on', () => events.some((e) => e.payload.Phone === '+44 3'));
console.log('ok unknown client');

// --- a session that is none ----------------------------------------------------------------------------
const stranger = client('not-a-token', -1);
const denied = await handshake(stranger);
assert.equal(denied.successful, false);
assert.match(denied.error ?? JSON.stringify(denied.failure), /401/);
for (const c of [one, two, wrong]) await new Promise((done) => c.disconnect(done));
console.log('ok session');
process.exit(0);
