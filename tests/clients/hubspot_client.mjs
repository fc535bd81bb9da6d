// @hubspot/api-client, HubSpot's own Node SDK, against the emulator.

import assert from 'node:assert/strict'
import http from 'node:http'
import hubspot from '@hubspot/api-client'

const { Client, Signature } = hubspot
const URL_BASE = process.env.EMULATOR_HTTP
const SECRET = 'emulator-secret'
const CONTACTS = 250

const client = (options = {}) =>
  new Client({ accessToken: 'pat-na1-emulator', basePath: URL_BASE, numberOfApiCallRetries: 0, ...options })

async function admin(path, body) {
  const options = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) }
  const answer = await fetch(`${URL_BASE}/_admin/${path}`, options)
  assert.equal(answer.status, 200, await answer.clone().text())
  return answer.json()
}

async function refused(promise, code) {
  try {
    await promise
  } catch (error) {
    assert.equal(error.code, code, String(error))
    return error.body
  }
  assert.fail(`expected ${code}`)
}

const ok = (name) => console.log('ok @hubspot/api-client', name)

const api = client()
const { contacts } = api.crm
await admin('rate-limits', { crm: 'hubspot', enforce: false })

const page = await contacts.basicApi.getPage(2, undefined, ['email', 'fax', 'nope'])
assert.deepEqual(page.results.map((r) => r.id), ['1', '2'])
assert.equal(page.results[0].properties.fax, null)
assert.ok(!('nope' in page.results[0].properties))
assert.equal(page.paging.next.after, '3')
const next = await (await fetch(page.paging.next.link, { headers: { authorization: 'Bearer pat-na1-emulator' } })).json()
assert.equal(next.results[0].id, '3')
ok('getPage, and the link as it is')

const everyone = await contacts.getAll(undefined, undefined, ['email'])
assert.equal(new Set(everyone.map((r) => r.properties.email)).size, CONTACTS)
ok('getAll pages to the end')

const ids = Array.from({ length: 100 }, (_, i) => ({ id: String(i + 1) }))
const read = await contacts.batchApi.read({ inputs: ids, properties: ['email'], propertiesWithHistory: [] }, false)
assert.equal(read.results.length, 100)
assert.notDeepEqual(read.results.map((r) => r.id), ids.map((i) => i.id), 'batches have an order of their own')
const tooMany = [...ids, { id: '101' }]
await refused(contacts.batchApi.read({ inputs: tooMany, properties: [], propertiesWithHistory: [] }, false), 400)
ok('batch read of up to 100')

const seen = []
let after = undefined
do {
  const found = await contacts.searchApi.doSearch({
    filterGroups: [], sorts: ['-lastmodifieddate'], properties: ['email'], limit: 200, after,
  })
  assert.equal(found.total, CONTACTS)
  seen.push(...found.results.map((r) => r.id))
  after = found.paging?.next?.after
} while (after)
assert.deepEqual(seen, everyone.map((r) => r.id).reverse())
await refused(contacts.searchApi.doSearch({ filterGroups: [], limit: 201 }), 400)
const filter = { propertyName: 'email', operator: 'HAS_PROPERTY' }
await refused(contacts.searchApi.doSearch({ filterGroups: Array(6).fill({ filters: [filter] }) }), 400)
await refused(contacts.searchApi.doSearch({ filterGroups: [{ filters: Array(7).fill(filter) }] }), 400)
ok('search pages backwards and has its walls')

const made = await contacts.basicApi.create({ properties: { email: 'node@example.net', lastname: 'Node' } })
const company = await api.crm.companies.basicApi.create({
  properties: { name: 'Node & Sons "Ltd"', domain: 'node.example.net' },
  associations: [{ to: { id: made.id }, types: [{ associationCategory: 'HUBSPOT_DEFINED', associationTypeId: 280 }] }],
})
assert.equal(company.properties.name, 'Node & Sons "Ltd"')
assert.equal(company.properties.website, 'node.example.net', 'a domain fills the website')
const links = await api.crm.associations.v4.batchApi.getPage('contacts', 'companies', { inputs: [{ id: made.id }] })
assert.equal(String(links.results[0].to[0].toObjectId), company.id)
const changed = await contacts.basicApi.update('node@example.net', { properties: { jobtitle: 'Runtime' } }, 'email')
assert.equal(changed.properties.jobtitle, 'Runtime')
await refused(contacts.basicApi.update(made.id, { properties: { hs_object_id: '5' } }), 400)
await refused(api.crm.deals.basicApi.update('1', { properties: { dealstage: 'nosuchstage' } }), 400)
await contacts.basicApi.archive(made.id)
await refused(contacts.basicApi.getById(made.id), 404)
ok('create with association, update by e-mail, archive')

const upserts = [1, 2].map((n) => ({ id: `key-${n}`, idProperty: 'pg_crm_sync_id', properties: { dealname: `Deal ${n}` } }))
const first = await api.crm.deals.batchApi.upsert({ inputs: upserts })
const second = await api.crm.deals.batchApi.upsert({ inputs: upserts })
assert.ok(first.results.every((r) => r._new ?? r.new), JSON.stringify(first.results[0]))
assert.ok(second.results.every((r) => !(r._new ?? r.new)))
await refused(
  contacts.batchApi.update({ inputs: [{ id: 'x', idProperty: 'hs_object_id', properties: { city: 'X' } }] }), 400)
await refused(
  contacts.batchApi.create({ inputs: [{ properties: { email: 'one@example.net' } }, { properties: everyone[0].properties }] }
  ), 400)
const conflict = await refused(
  contacts.batchApi.create({
    inputs: [{ properties: { email: 'one@example.net' } }, { properties: { email: everyone[0].properties.email } }],
  }), 409)
assert.match(conflict.message, /Existing ID: 1$/)
const none = await contacts.searchApi.doSearch({
  filterGroups: [{ filters: [{ propertyName: 'email', operator: 'EQ', value: 'one@example.net' }] }],
})
assert.equal(none.total, 0, 'a conflict fails the whole batch')
ok('upsert by our unique property, 409 for a whole batch')

const properties = (await api.crm.properties.coreApi.getAll('contacts')).results
assert.ok(properties.find((p) => p.name === 'sync_source' && !p.modificationMetadata.readOnlyValue))
assert.equal((await api.crm.schemas.coreApi.getAll()).results[0].name, 'subscriptions')
const owners = (await api.crm.owners.ownersApi.getPage()).results
assert.equal(owners.length, 3)
const dated = await (await api.apiRequest({ path: '/crm/associations/2026-03/contacts/companies/batch/read', method: 'POST',
  body: { inputs: [{ id: '11' }] } })).json()
assert.equal(dated.results[0].to[0].toObjectId, '2', 'the dated API has ids as text')
const account = await (await api.apiRequest({ path: '/account-info/v3/details' })).json()
assert.equal(account.portalId, 62515)
ok('properties, schemas, owners, dated paths, account')

const patient = client({ numberOfApiCallRetries: 3 })
await admin('faults', { rules: [
  { crm: 'hubspot', path_prefix: '/crm/v3/objects/contacts', action: { reject: { status: 429, body: {
    status: 'error', message: 'You have reached your secondly limit.', errorType: 'RATE_LIMIT', policyName: 'SECONDLY' } } } },
  { crm: 'hubspot', path_prefix: '/crm/v3/objects/contacts', action: { reject: { status: 502, body: {} } } },
] })
await admin('counts/reset', {})
assert.equal((await patient.crm.contacts.basicApi.getPage(1)).results.length, 1)
const statuses = (await admin('requests')).requests.map((r) => r.status)
assert.deepEqual(statuses, [429, 502, 200])
ok('429 and 502 with retries')

const arrived = []
const server = http.createServer((request, response) => {
  const chunks = []
  request.on('data', (chunk) => chunks.push(chunk))
  request.on('end', () => {
    arrived.push({ headers: request.headers, body: Buffer.concat(chunks).toString() })
    response.writeHead(arrived.length === 1 ? 500 : 200).end()
  })
})
await new Promise((done) => server.listen(0, '127.0.0.1', done))
const hook = `http://127.0.0.1:${server.address().port}/hook`
await admin('webhooks', { url: hook, retry_ms: 20, shape: 'legacy' })
await admin('hubspot/edit', { object: 'contacts', id: '9', fields: { firstname: 'Zoë', city: 'Zürich' } })
const deadline = Date.now() + 10_000
const attempts = () => arrived.flatMap((a) => JSON.parse(a.body).map((event) => event.attemptNumber))
while (!attempts().includes(1) && Date.now() < deadline) await new Promise((done) => setTimeout(done, 5))
assert.ok(attempts().includes(0) && attempts().includes(1), 'what is refused comes again')
for (const { headers, body } of arrived) {
  const common = { clientSecret: SECRET, requestBody: body }
  assert.ok(Signature.isValid({ ...common, signature: headers['x-hubspot-signature-v3'], signatureVersion: 'v3',
    method: 'POST', url: hook, timestamp: Number(headers['x-hubspot-request-timestamp']) }))
  assert.ok(Signature.isValid({ ...common, signature: headers['x-hubspot-signature'], signatureVersion: 'v1' }))
}
const events = arrived.flatMap((a) => JSON.parse(a.body))
assert.ok(events.every((e) => e.subscriptionType === 'contact.propertyChange' && e.objectId === 9))
assert.deepEqual([...new Set(events.map((e) => e.propertyName))].sort(), ['city', 'firstname'])
await admin('webhooks', { url: null })
server.close()
server.closeAllConnections()
ok('webhooks with valid signatures, retried')
