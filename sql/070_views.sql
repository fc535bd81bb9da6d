-- What a DBA looks at. Every view says what to do about what it shows.

-- Not to_regclass: it fails on schemas that the reader may not use.
CREATE FUNCTION crm._relation_of(schema_name name, table_name name) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2);
END $$;
COMMENT ON FUNCTION crm._relation_of(name, name) IS 'OID of a table, null if it is missing.';

CREATE VIEW crm.progress AS
SELECT format('%I.%I', m.schema_name, m.table_name) AS mirror, b.state, b.done, b.total,
       CASE WHEN b.total > 0 THEN round(100.0 * least(b.done, b.total) / b.total, 1) END AS percent,
       CASE WHEN b.started_at IS NOT NULL
            THEN round(b.done / greatest(extract(epoch FROM coalesce(b.finished_at, clock_timestamp()) - b.started_at), 0.001), 1) END AS rows_per_second,
       CASE WHEN b.state = 'running' AND b.done > 0 AND b.total > b.done
            THEN date_trunc('seconds', (clock_timestamp() - b.started_at) * ((b.total - b.done)::float8 / b.done)) END AS eta,
       b.started_at, b.finished_at, b.error, b.fields
FROM (SELECT mirror, state, done, total, started_at, finished_at, error, NULL::text[] AS fields FROM crm.backfill
      UNION ALL SELECT mirror, state, done, total, started_at, finished_at, error, fields FROM crm.column_fill) b JOIN crm.mirror m ON m.id = b.mirror;
COMMENT ON VIEW crm.progress IS 'First copy of each mirror, and copies of columns that were added later (fields): rows done and in all, rows per second, time left (eta).';

CREATE VIEW crm.outbox AS
SELECT w.id, format('%I.%I', m.schema_name, m.table_name) AS mirror, w.row_id, w.record_id, w.kind,
       w.state, w.vals AS send, w.old_vals AS instead_of, w.origin, w.attempts, w.queued_at, crm._span(w.queued_at) AS waiting, w.not_before,
       w.error, CASE w.state WHEN 'held' THEN CASE w.error_code WHEN 'unknown_create' THEN w.advice ELSE 'SELECT crm.approve(tx) or crm.reject(tx): see crm.held.' END
                             WHEN 'would_send' THEN 'Shadow mode: nothing is sent until crm.go_live.'
                             WHEN 'unknown' THEN 'The answer was lost; the worker reads the record back before it does anything.'
                             WHEN 'dead' THEN coalesce(w.advice, 'See crm.dead_letter.')
                             ELSE w.advice END AS advice
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror;
COMMENT ON VIEW crm.outbox IS 'Changes on their way to a CRM, in order per record: queued, in_flight, unknown, held, would_send (shadow), dead. Sent ones have left; see crm.event.';

CREATE VIEW crm.held AS
SELECT tx, array_agg(DISTINCT format('%I.%I', m.schema_name, m.table_name)) AS mirrors, count(*) AS writes,
       count(*) FILTER (WHERE w.kind = 'delete') AS deletes, array_agg(DISTINCT w.origin) AS origins, min(w.queued_at) AS since,
       format('SELECT crm.approve(%s); sends them, SELECT crm.reject(%s); puts the old values back.', tx, tx) AS advice
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror, unnest(w.txs) AS tx
WHERE w.state = 'held' AND w.error_code IS DISTINCT FROM 'unknown_create'
GROUP BY tx
UNION ALL
SELECT NULL, ARRAY[format('%I.%I', m.schema_name, m.table_name)], 1, 0, ARRAY[w.origin], w.queued_at,
       CASE w.error_class WHEN 'match' THEN format('%s: %s', w.error, w.advice) ELSE
       format('A create whose answer was lost. Look for %s in the CRM; SELECT crm.resolve_create(%s, ''made'', ''its id''); if it is there, else SELECT crm.resolve_create(%2$s, ''not made'');', left(w.vals::text, 200), w.id) END
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror
WHERE w.state = 'held' AND w.error_code = 'unknown_create';
COMMENT ON VIEW crm.held IS 'Transactions whose outgoing writes the guard holds, which change more than guard_soft_rows or came in a loop that went over guard_window_rows (SELECT crm.approve(tx) FROM crm.held approves all); and, with tx null, creates of which nobody knows whether they happened, or whose unique key a record of the CRM has.';

CREATE VIEW crm.conflict AS
SELECT e.seq, e.received_at AS decided_at, format('%I.%I', m.schema_name, m.table_name) AS mirror, e.row_id, e.record_id, e.entity,
       d ->> 'field' AS field, d ->> 'strategy' AS strategy, d ->> 'rule' AS rule, d ->> 'winner' AS winner,
       d -> 'value' AS value, d -> 'losers' AS lost, d -> 'merged' AS merged, coalesce((d ->> 'conflict')::boolean, false) AS both_changed, d ->> 'held' AS held, e.origin, e.policy_version
FROM crm.event e JOIN crm.mirror m ON m.id = e.mirror,
     LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(e.decision) = 'array' THEN e.decision ELSE '[]' END) AS d
WHERE e.decision IS NOT NULL AND (coalesce(d -> 'losers', 'null') NOT IN ('null', '[]') OR d ? 'merged' OR d ->> 'held' IS NOT NULL);
COMMENT ON VIEW crm.conflict IS 'Decisions that made a value lose or stay behind: field, strategy and rule (crm.conflict_policy.id) that decided, who won with which value, each loser with its value, and the values that both went into the one that stands (merged). both_changed tells a conflict from an owner who rejects a change; held says why a value did not reach another side (no counterpart in the value map, too long, refused).';

CREATE VIEW crm.dead_letter AS
SELECT w.id, 'out' AS direction, format('%I.%I', m.schema_name, m.table_name) AS mirror, w.row_id, w.record_id, w.kind AS what, w.vals AS change,
       w.status, w.error_code AS code, w.error_class AS class, w.error, coalesce(w.advice, 'Correct the row or the CRM''s settings, then SELECT crm.dead_letter_retry(ARRAY[id]).') AS advice, w.attempts, w.queued_at AS since
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror WHERE w.state = 'dead'
UNION ALL
SELECT p.id, 'in', coalesce(format('%I.%I', m.schema_name, m.table_name), p.server), CASE WHEN s.by_sql THEN (p.change ->> 'row')::bigint END,
       CASE WHEN NOT s.by_sql THEN p.record_id END, p.source, p.change,
       NULL, p.sqlstate, NULL, p.error, p.advice, 1, p.received_at
FROM crm.poison p LEFT JOIN crm.mirror m ON m.id = p.mirror CROSS JOIN LATERAL (SELECT crm._of_sql(p.source, p.change) AS by_sql) s;
COMMENT ON VIEW crm.dead_letter IS 'What could not be done and waits for a person: writes that a CRM refused for good (out), events and changes by SQL that the database refused (in), each with the reason and what to do.';

CREATE VIEW crm.dead_letter_cause AS
SELECT d.direction, d.mirror, d.status, d.code, d.class, count(*) AS letters, min(d.since) AS since, max(d.since) AS newest,
       (array_agg(d.error ORDER BY d.since DESC))[1] AS error, (array_agg(d.advice ORDER BY d.since DESC))[1] AS advice,
       CASE WHEN d.direction = 'in' AND crm._of_sql(d.what, d.change)
            THEN format('Change these rows again, then SELECT crm.dead_letter_discard(ARRAY[%s], ''in'');', array_to_string((array_agg(d.id ORDER BY d.id))[1:100], ', '))
            ELSE format('SELECT crm.dead_letter_retry_where(%L, %s);',
              format('direction = %L AND mirror = %L', d.direction, d.mirror) || coalesce(' AND status = ' || d.status, ' AND status IS NULL')
              || coalesce(' AND code = ' || quote_literal(d.code), ' AND code IS NULL'), count(*)) END AS retry
FROM crm.dead_letter d GROUP BY d.direction, d.mirror, d.status, d.code, d.class, d.direction = 'in' AND crm._of_sql(d.what, d.change);
COMMENT ON VIEW crm.dead_letter_cause IS 'Dead letters by what stopped them: how many, since when, the newest one''s words and advice, and the statement that tries them again together once the cause is gone; of changes by SQL, what to do instead.';

CREATE VIEW crm.error_class AS
SELECT r.ordinality::integer AS line, r.crm, r.status, r.code, r.class, r.meaning, make_interval(secs => r.wait) AS wait, r.maybe_applied, r.advice
FROM crm._error_rules() WITH ORDINALITY AS r;
COMMENT ON VIEW crm.error_class IS 'The table of errors that the worker goes by: for a status and a code of a CRM (null fits any; crm any is the way there) the class with what is done, the least wait where the CRM names none, whether a write may have landed all the same, and what to do. Of a CRM''s lines the first that fits decides.';

CREATE VIEW crm.change_source AS
SELECT s.server, o.object, crm._table_of(m.id) AS mirror, o.streamable AS can_stream,
       CASE WHEN m.id IS NOT NULL THEN CASE WHEN o.streamable AND x.state = 'running' AND x.last_event_at IS NOT NULL THEN 'stream' ELSE 'poll' END END AS changes_by,
       x.kind AS stream, x.refused, x.last_event_at, m.poll_interval,
       a.entities_allowed, CASE WHEN a.entities_allowed IS NOT NULL THEN n.wanted END AS entities_wanted,
       l.calls_left AS deliveries_left, l.calls_max AS deliveries_allowed,
       CASE WHEN m.id IS NULL THEN NULL
            WHEN NOT o.streamable THEN format('There is no stream of its changes: polled every %s.', m.poll_interval)
            WHEN x.refused IS NOT NULL THEN format('The CRM refuses a stream of its changes: polled every %s. Once that is granted: SELECT crm.refresh(%L);', m.poll_interval, crm._table_of(m.id))
            WHEN x.last_error_at > coalesce(x.last_ok_at, '-infinity') THEN format('The stream is down (%s); polled meanwhile. SELECT * FROM crm.server_check(%L);', x.last_error, s.server)
            WHEN x.last_event_at IS NULL AND s.server_type = 'salesforce' THEN
                format('No event yet, and polled. Select %s in Setup, Change Data Capture: %s objects may be selected over all channels without the add-on.', o.object, a.entities_allowed)
                || CASE WHEN n.wanted > a.entities_allowed THEN format(' %s mirrors want it: raise poll_interval of those that can wait.', n.wanted) ELSE '' END
            WHEN x.last_event_at IS NULL THEN 'No event yet, and polled. See docs/hubspot.md for its webhooks.'
            WHEN l.calls_left * 10 < l.calls_max THEN 'Less than a tenth of the events of 24 hours is left to be delivered; then the stream ends and everything is polled.'
       END AS advice
FROM crm._server s
JOIN crm.remote_object o ON o.server = s.server
LEFT JOIN crm.mirror m ON m.server = o.server AND m.object = o.object
LEFT JOIN LATERAL (
    SELECT t.kind, t.state, t.refused, t.last_event_at, t.last_ok_at, t.last_error, t.last_error_at FROM crm.stream t
    WHERE t.server = o.server AND (t.kind IN ('webhook', 'journal') OR t.kind <> 'poll' AND t.object = o.object)
    ORDER BY greatest(t.last_ok_at, t.last_error_at, t.refused_at) DESC NULLS LAST LIMIT 1) x ON o.streamable
CROSS JOIN LATERAL (SELECT CASE s.server_type WHEN 'salesforce' THEN 5 END AS entities_allowed) a
CROSS JOIN LATERAL (
    SELECT count(*) AS wanted FROM crm.mirror y JOIN crm.remote_object z ON z.server = y.server AND z.object = y.object AND z.streamable
    WHERE y.server = s.server) n
LEFT JOIN crm.api_limit l ON l.server = s.server AND l.name = 'DailyDeliveredPlatformEvents';
COMMENT ON VIEW crm.change_source IS 'How changes of each object come: whether its CRM streams them, whether a stream brings them now or only polling does, how many objects Salesforce lets an org select for change events (without the add-on) and how many mirrors want that, how many events it still delivers in 24 hours, and what to do.';
COMMENT ON COLUMN crm.change_source.refused IS 'Why the CRM refused a stream of its changes, in its own words; polled instead, and asked again when there is a reason.';
COMMENT ON COLUMN crm.change_source.can_stream IS 'The CRM has change events of the object, where its administrator selects it; no call tells whether he did, only events do.';

CREATE VIEW crm._status_parts AS
-- How the installation as a whole stands.
SELECT 1 AS rank, 'fence'::text AS kind, current_database()::text AS name, f.state, f.reason AS detail, NULL::bigint AS waiting, NULL::interval AS lag,
       NULL::text AS last_error, NULL::timestamptz AS last_error_at,
       CASE f.state WHEN 'inert' THEN 'Nothing is read or sent. If this cluster is meant to write to the CRMs: SELECT crm.activate();'
                    WHEN 'never' THEN 'Nothing is imported yet. The first crm.import activates this cluster.' END AS advice
FROM crm.fence_status() f
UNION ALL
SELECT 2, 'worker', current_database()::text, CASE WHEN a.alive THEN 'running' ELSE 'absent' END, NULL, (SELECT count(*) FROM crm.webhook_queue),
       (SELECT crm._span(min(q.received_at)) FROM crm.webhook_queue q), NULL, NULL,
       CASE WHEN NOT a.alive THEN 'Nothing is read or sent. See the server log for "pg_crm_sync"; shared_preload_libraries must name it and max_worker_processes leave room.' END
FROM crm._worker_alive() AS a (alive)
UNION ALL
SELECT 3, 'server', s.server, CASE WHEN t.paused THEN 'paused' WHEN t.server IS NULL THEN 'unused'
                                   WHEN t.last_error_at > coalesce(t.catalog_at, '-infinity') THEN 'error'
                                   WHEN t.catalog_at IS NULL THEN 'new' ELSE 'ok' END,
       concat_ws(', ', s.server_type, 'account ' || t.tenant, 'catalog read ' || date_trunc('seconds', t.catalog_at),
                 (SELECT sum(u.calls) || ' calls this hour' FROM crm.api_usage u WHERE u.server = s.server AND u.per = 'hour' AND u.since = date_trunc('hour', now()))),
       n.waiting, crm._span(n.oldest),
       t.last_error, t.last_error_at,
       CASE WHEN t.paused THEN format('SELECT crm.resume(''server'', %L);', s.server)
            WHEN t.last_error_at > coalesce(t.catalog_at, '-infinity') THEN coalesce(t.advice, format('SELECT * FROM crm.server_check(%L);', s.server))
            WHEN t.server IS NULL THEN format('SELECT crm.import(%L, ARRAY[…], into_schema => …);', s.server) END
FROM crm._server s LEFT JOIN crm.server_state t ON t.server = s.server
LEFT JOIN LATERAL (
    SELECT count(*) AS waiting, min(w.queued_at) AS oldest FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror
    WHERE m.server = s.server AND w.state IN ('queued', 'in_flight', 'unknown')) n ON true
UNION ALL
SELECT 4, 'mirror', format('%I.%I', m.schema_name, m.table_name),
       CASE WHEN crm._relation_of(m.schema_name, m.table_name) IS NULL THEN 'table missing'
            WHEN c.uncaptured THEN 'not captured' WHEN c.unseen THEN 'partly captured'
            WHEN m.paused THEN 'paused' WHEN b.state IN ('waiting', 'running', 'failed') THEN 'backfill ' || b.state ELSE m.mode END,
       concat_ws(', ', m.server || '.' || m.object, format('%s of %s rows copied', b.done, coalesce(b.total::text, '?')),
                 nullif(n.held, 0) || ' held', nullif(n.shadow, 0) || ' would be sent', nullif(n.dead, 0) || ' dead',
                 'gone in the CRM: ' || d.gone, 'being filled: ' || d.filling, nullif(d.asked, 0) || ' changes of fields to answer', nullif(d.failed, 0) || ' failed'),
       n.waiting, crm._span(n.oldest), coalesce(b.error, d.error), b.finished_at,
       CASE WHEN crm._relation_of(m.schema_name, m.table_name) IS NULL THEN format('SELECT crm.mirror_drop(%L);', format('%I.%I', m.schema_name, m.table_name))
            WHEN c.uncaptured THEN format('ALTER TABLE %I.%I ENABLE TRIGGER zz_crm_capture; what was written meanwhile was not seen and goes nowhere.', m.schema_name, m.table_name)
            WHEN c.unseen THEN format('A subscription writes this table unseen. To send its changes too: ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER zz_crm_capture;', m.schema_name, m.table_name)
            WHEN d.asked + d.failed > 0 THEN 'See SELECT * FROM crm.schema_change WHERE state IN (''asked'', ''failed'');'
            WHEN m.paused THEN format('SELECT crm.resume(''mirror'', %L);', format('%I.%I', m.schema_name, m.table_name))
            WHEN n.dead > 0 THEN 'See crm.dead_letter.' WHEN n.held > 0 THEN 'See crm.held.'
            WHEN m.mode = 'shadow' THEN 'Shadow: changes are shown in crm.outbox and not sent. crm.preview, then crm.go_live.' END
FROM crm.mirror m LEFT JOIN crm.backfill b ON b.mirror = m.id
-- O fires for sessions only, A also for replication and session_replication_role = replica.
CROSS JOIN LATERAL (
    SELECT NOT coalesce(bool_or(g.tgenabled IN ('O', 'A')), false) AS uncaptured,
           NOT coalesce(bool_or(g.tgenabled = 'A'), false)
           AND EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = crm._relation_of(m.schema_name, m.table_name)) AS unseen
    FROM pg_trigger g
    WHERE g.tgrelid = crm._relation_of(m.schema_name, m.table_name) AND g.tgname = 'zz_crm_capture') c
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.state IN ('queued', 'in_flight', 'unknown')) AS waiting, count(*) FILTER (WHERE w.state = 'held') AS held,
           count(*) FILTER (WHERE w.state = 'would_send') AS shadow, count(*) FILTER (WHERE w.state = 'dead') AS dead,
           min(w.queued_at) FILTER (WHERE w.state IN ('queued', 'in_flight', 'unknown')) AS oldest
    FROM crm.write w WHERE w.mirror = m.id) n ON true
CROSS JOIN LATERAL (
    SELECT (SELECT string_agg(k.field, ', ' ORDER BY k.field) FROM crm.mirror_column k WHERE k.mirror = m.id AND k.gone_at IS NOT NULL) AS gone,
           (SELECT string_agg(array_to_string(f.fields, ', '), ', ' ORDER BY f.id) FROM crm.column_fill f WHERE f.mirror = m.id AND f.state <> 'done') AS filling,
           count(*) FILTER (WHERE c.state = 'asked') AS asked, count(*) FILTER (WHERE c.state = 'failed') AS failed, max(c.error) AS error
    FROM crm.schema_change c WHERE c.mirror = m.id AND c.state IN ('asked', 'applying', 'failed')) d
UNION ALL
SELECT 5, 'link', l.name, CASE WHEN l.paused THEN 'paused' ELSE l.mode END,
       concat_ws(', ', crm._table_of(l.left_mirror) || ' <-> ' || crm._table_of(l.right_mirror),
                 (SELECT count(*) FROM crm.field_map f WHERE f.link = l.name) || ' fields', coalesce('matched ' || date_trunc('seconds', l.matched_at), 'not matched yet'),
                 (SELECT string_agg(format('new %s_scope: %s rows looked at, %s left, %s entered', s.side, s.looked_at, s.left_out, s.let_in), ', ' ORDER BY s.id) FROM crm.scope_sweep s WHERE s.link = l.name)),
       (SELECT count(*) FROM crm.review_item r WHERE r.link = l.name), NULL, NULL, NULL,
       CASE WHEN l.paused THEN format('SELECT crm.resume(''link'', %L);', l.name)
            WHEN l.mode = 'shadow' THEN format('SELECT * FROM crm.preview(%L); then SELECT crm.go_live(%L);', l.name, l.name)
            WHEN EXISTS (SELECT FROM crm.review_item r WHERE r.link = l.name) THEN 'Questions wait in crm.review.' END
FROM crm.link l
UNION ALL
SELECT 6, 'stream', concat_ws(' ', x.server, x.kind, nullif(x.object, '')), x.state,
       concat_ws(', ', x.events || ' events', nullif(x.duplicates, 0) || ' duplicates', nullif(x.rejected, 0) || ' rejected', 'last event ' || date_trunc('seconds', x.last_event_at),
                 'polled instead: ' || x.refused),
       NULL, crm._span(x.last_ok_at), x.last_error, x.last_error_at,
       CASE WHEN x.last_error_at > coalesce(x.last_ok_at, '-infinity') THEN format('SELECT * FROM crm.server_check(%L); polling goes on meanwhile.', x.server) END
FROM crm.stream x
UNION ALL
SELECT * FROM crm._budget_status
UNION ALL
SELECT * FROM crm._ledger_status
UNION ALL
SELECT * FROM crm._reconcile_status;
COMMENT ON VIEW crm._status_parts IS 'The rows of crm.status with their rank.';

CREATE VIEW crm.status AS
SELECT kind, name, state, detail, waiting, lag, last_error, last_error_at, advice
FROM crm._status_parts ORDER BY rank, name;
COMMENT ON VIEW crm.status IS 'How everything stands: fence, worker, servers, mirrors, links, streams; what waits, how far behind, the last error, and what to do.';

CREATE FUNCTION crm.sync_state(mirror regclass, _id bigint) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m     crm.mirror;
    state text;
BEGIN
    SELECT x.* INTO m FROM crm.mirror x JOIN pg_class c ON c.relname = x.table_name JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = x.schema_name
    WHERE c.oid = sync_state.mirror;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is not a mirror', coalesce(mirror::text, 'null')
            USING ERRCODE = '42809', DETAIL = 'Expected a table that crm.import made.', HINT = 'See SELECT name FROM crm.status WHERE kind = ''mirror'';';
    END IF;
    SELECT CASE WHEN bool_or(w.state = 'dead') OR EXISTS (SELECT FROM crm.poison p WHERE p.mirror = m.id AND p.record_id = sync_state._id::text AND crm._of_sql(p.source, p.change)) THEN 'error' WHEN bool_or(w.state = 'held') THEN 'held'
                WHEN bool_or(w.state IN ('queued', 'in_flight', 'unknown')) THEN 'pending' WHEN bool_or(w.state = 'would_send') THEN 'would_send' END
    INTO state FROM crm.write w WHERE w.mirror = m.id AND w.row_id = sync_state._id;
    IF state IS NULL THEN
        EXECUTE format('SELECT coalesce(t._sync_state, CASE WHEN t._deleted_at IS NOT NULL THEN ''deleted'' WHEN t.id IS NULL THEN ''local'' ELSE ''synced'' END) FROM %s t WHERE t._id = $1',
                       sync_state.mirror) INTO state USING sync_state._id;
    END IF;
    RETURN state;
END $$;
COMMENT ON FUNCTION crm.sync_state(regclass, bigint) IS 'How one row of a mirror stands: synced, pending, would_send (shadow), held, error, deleted, soft_deleted (its linked record is), erased, local (never sent); null if there is no such row.';
