-- Reading the ledger again: named consumers with an offset of their own, and
-- replaying what a stream brought.

CREATE TABLE crm.consumer_offset (
    name         text PRIMARY KEY CHECK (name ~ '^[^\s].{0,62}$'),
    owner        name NOT NULL DEFAULT current_user,
    committed    bigint NOT NULL CHECK (committed >= 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    committed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crm.consumer_offset IS 'Named readers of crm.event and how far each has come. See the view crm.consumer.';
COMMENT ON COLUMN crm.consumer_offset.owner IS 'The role that made it: its members and crm_operator may read and commit.';
COMMENT ON COLUMN crm.consumer_offset.committed IS 'Events up to this number are done with.';
ALTER TABLE crm.consumer_offset ENABLE ROW LEVEL SECURITY;
CREATE POLICY see ON crm.consumer_offset FOR SELECT USING (true);
CREATE POLICY make ON crm.consumer_offset FOR INSERT WITH CHECK (pg_has_role(current_user, owner, 'MEMBER'));
CREATE POLICY move ON crm.consumer_offset FOR UPDATE USING (pg_has_role(current_user, owner, 'MEMBER') OR pg_has_role(current_user, 'crm_operator', 'MEMBER'));
CREATE POLICY end_it ON crm.consumer_offset FOR DELETE USING (pg_has_role(current_user, owner, 'MEMBER') OR pg_has_role(current_user, 'crm_operator', 'MEMBER'));

CREATE FUNCTION crm._ledger_end() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq DESC LIMIT 1), (SELECT s.dropped_to FROM crm.ledger_state s), 0)
$$;
COMMENT ON FUNCTION crm._ledger_end() IS 'Number of the newest event.';

CREATE VIEW crm.consumer AS
SELECT o.name, o.owner, o.committed, d.dropped_to IS NOT NULL AS missed, n.waiting, n.waiting >= 100000 AS more, crm._span(f.received_at) AS lag, o.committed_at, o.created_at,
       CASE WHEN d.dropped_to IS NOT NULL THEN format('Events up to %s were dropped unread. SELECT crm.consumer_commit(%L, %s); goes on behind them.', d.dropped_to, o.name, d.dropped_to) END AS advice
FROM crm.consumer_offset o
LEFT JOIN crm.ledger_state d ON d.dropped_to > o.committed
LEFT JOIN LATERAL (SELECT count(*) AS waiting FROM (SELECT FROM crm.event e WHERE e.seq > o.committed LIMIT 100000) e) n ON true
LEFT JOIN LATERAL (SELECT e.received_at FROM crm.event e WHERE e.seq > o.committed ORDER BY e.seq LIMIT 1) f ON true;
COMMENT ON VIEW crm.consumer IS 'Named consumers of the ledger: how far each has committed, how many events wait for it and since when.';
COMMENT ON COLUMN crm.consumer.missed IS 'Retention (pg_crm_sync.retention_max) has dropped events that it had not committed.';
COMMENT ON COLUMN crm.consumer.waiting IS 'Events behind its offset, counted up to 100,000.';
COMMENT ON COLUMN crm.consumer.more IS 'There are more than waiting counts.';
COMMENT ON COLUMN crm.consumer.lag IS 'How long ago the oldest of them was decided.';

CREATE FUNCTION crm._consumer_named(name text) RETURNS crm.consumer_offset
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o     crm.consumer_offset;
    known text[];
BEGIN
    SELECT x.* INTO o FROM crm.consumer_offset x WHERE x.name = _consumer_named.name;
    IF NOT FOUND THEN
        SELECT array_agg(x.name ORDER BY x.name) INTO known FROM crm.consumer_offset x;
        RAISE EXCEPTION 'there is no consumer %', coalesce(quote_literal(name), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'There are none.' ELSE 'Consumers are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(name, ''), known, 'crm.consumer_create(name) makes one.');
    END IF;
    RETURN o;
END $$;
COMMENT ON FUNCTION crm._consumer_named(text) IS 'Resolves a consumer or raises, naming near matches.';

-- Where to begin reading: the number before the first event that is wanted.
CREATE FUNCTION crm._ledger_start(from_seq bigint, from_time timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s     crm.ledger_state;
    start bigint;
BEGIN
    SELECT * INTO s FROM crm.ledger_state;
    IF from_seq IS NOT NULL AND from_time IS NOT NULL THEN
        RAISE EXCEPTION 'either from_seq or from_time says where to begin'
            USING ERRCODE = '22023', DETAIL = format('Got %s and %s.', from_seq, from_time), HINT = 'Leave one of them out.';
    END IF;
    start := coalesce(from_seq, crm._event_seq_at(from_time)) - 1;
    IF from_seq < 0 OR from_seq > crm._ledger_end() + 1 THEN
        RAISE EXCEPTION 'there is no event %', from_seq
            USING ERRCODE = '22023', DETAIL = format('The ledger ends at %s.', crm._ledger_end()), HINT = '0 stands for all that is kept; leave it out for what comes from now on.';
    ELSIF (from_seq > 0 AND start < s.dropped_to) OR from_time <= s.dropped_until THEN
        RAISE EXCEPTION 'the ledger does not reach back to %', coalesce(from_seq::text, from_time::text)
            USING ERRCODE = '22023', DETAIL = format('Events up to %s, of %s, were dropped.', s.dropped_to, s.dropped_until),
                  HINT = 'from_seq => 0 begins with the oldest that is kept; pg_crm_sync.retention says how long that is.';
    END IF;
    RETURN greatest(start, s.dropped_to, 0);
END $$;
COMMENT ON FUNCTION crm._ledger_start(bigint, timestamptz) IS 'The number before the first event from a number or a time on; raises if it was dropped.';

CREATE FUNCTION crm.consumer_create(name text, from_seq bigint DEFAULT NULL, from_time timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    start bigint := crm._ledger_start(from_seq, from_time);
BEGIN
    IF name IS NULL OR name !~ '^[^\s].{0,62}$' THEN
        RAISE EXCEPTION 'a consumer cannot be named %', coalesce(quote_literal(left(name, 80)), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected 1 to 63 characters, the first of them visible.', HINT = 'Name it after the program that reads, such as ''billing''.';
    ELSIF EXISTS (SELECT FROM crm.consumer_offset o WHERE o.name = consumer_create.name) THEN
        RAISE EXCEPTION 'consumer "%" exists', name
            USING ERRCODE = '42710', DETAIL = format('It has committed up to %s.', (crm._consumer_named(name)).committed),
                  HINT = format('Go on with it, or SELECT crm.consumer_drop(%L); first to begin elsewhere.', name);
    END IF;
    IF from_seq IS NULL AND from_time IS NULL THEN
        start := crm._ledger_end();
    END IF;
    INSERT INTO crm.consumer_offset (name, committed) VALUES (name, start);
    RETURN start;
END $$;
COMMENT ON FUNCTION crm.consumer_create(text, bigint, timestamptz) IS 'Makes a named consumer of the ledger, which begins with what comes next, or with an event (0: all that is kept) or a time. Returns its offset. What it has not committed is kept.';

CREATE FUNCTION crm.consumer_read(name text, max_events integer DEFAULT 1000) RETURNS SETOF crm.event
LANGUAGE plpgsql STABLE ROWS 1000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o       crm.consumer_offset := crm._consumer_named(name);
    dropped bigint := (SELECT s.dropped_to FROM crm.ledger_state s);
BEGIN
    IF max_events IS NULL OR max_events NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'cannot read % events at once', coalesce(max_events::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected 1 to 100000.', HINT = 'Read and commit in a loop.';
    ELSIF o.committed < dropped THEN
        RAISE EXCEPTION 'consumer "%" has missed events', name
            USING ERRCODE = '55000', DETAIL = format('It committed up to %s; events up to %s were dropped by pg_crm_sync.retention_max.', o.committed, dropped),
                  HINT = format('Bring its copy up to date by other means, then SELECT crm.consumer_commit(%L, %s);', name, dropped);
    END IF;
    RETURN QUERY SELECT e.* FROM crm.event e WHERE e.seq > o.committed ORDER BY e.seq LIMIT max_events;
END $$;
COMMENT ON FUNCTION crm.consumer_read(text, integer) IS 'The next events of a consumer in the order of decisions, the same ones until crm.consumer_commit. An event never appears behind one that was read.';

CREATE FUNCTION crm.consumer_commit(name text, seq bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o    crm.consumer_offset := crm._consumer_named(name);
    last bigint := greatest(crm._ledger_end(), o.committed);
BEGIN
    IF seq IS NULL OR seq < o.committed OR seq > last THEN
        RAISE EXCEPTION 'consumer "%" cannot commit %', name, coalesce(seq::text, 'null')
            USING ERRCODE = '22023', DETAIL = format('It has committed up to %s; the ledger ends at %s.', o.committed, last),
                  HINT = CASE WHEN seq < o.committed THEN format('An offset moves forward only. To read again: crm.consumer_drop(%L), then crm.consumer_create(%L, from_seq => %s).', name, name, seq + 1)
                              ELSE 'Commit the seq of the last event that was read and done with.' END;
    END IF;
    UPDATE crm.consumer_offset x SET committed = greatest(x.committed, consumer_commit.seq), committed_at = clock_timestamp() WHERE x.name = consumer_commit.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'consumer "%" belongs to role %', name, o.owner
            USING ERRCODE = '42501', DETAIL = format('%s is not a member of it.', current_user), HINT = format('GRANT %I TO %I, or make a consumer of your own.', o.owner, current_user);
    END IF;
    RETURN seq;
END $$;
COMMENT ON FUNCTION crm.consumer_commit(text, bigint) IS 'Says that a consumer is done with all events up to this number, in the transaction that did their work.';

CREATE FUNCTION crm.consumer_drop(name text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o crm.consumer_offset := crm._consumer_named(name);
BEGIN
    DELETE FROM crm.consumer_offset x WHERE x.name = consumer_drop.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'consumer "%" belongs to role %', name, o.owner
            USING ERRCODE = '42501', DETAIL = format('%s is not a member of it.', current_user), HINT = 'Its owner or a crm_operator can drop it.';
    END IF;
    RETURN o.committed;
END $$;
COMMENT ON FUNCTION crm.consumer_drop(text) IS 'Forgets a consumer; returns its offset. Events are kept for it no longer.';

CREATE TABLE crm.replay_run (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream      integer NOT NULL,
    from_seq    bigint NOT NULL,
    to_seq      bigint NOT NULL,
    next_seq    bigint NOT NULL,
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done')),
    events      bigint NOT NULL DEFAULT 0,
    changed     bigint NOT NULL DEFAULT 0,
    unchanged   bigint NOT NULL DEFAULT 0,
    put_off     bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    asked_by    name NOT NULL DEFAULT session_user,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
COMMENT ON TABLE crm.replay_run IS 'Replays of crm.replay and how far each has come: the position is committed with what the events did.';
COMMENT ON COLUMN crm.replay_run.next_seq IS 'The event to go on with.';
COMMENT ON COLUMN crm.replay_run.events IS 'Events of the stream that were gone through.';
COMMENT ON COLUMN crm.replay_run.changed IS 'Of them, those that were decided to change something; each has a line with source replay in crm.event.';
COMMENT ON COLUMN crm.replay_run.unchanged IS 'Of them, those whose values are there already, were no news (echoes), or were overtaken by a later change on any side.';
COMMENT ON COLUMN crm.replay_run.put_off IS 'Of them, those that wait in crm.deferred, because a user holds the row or the record must be read from the CRM.';
COMMENT ON COLUMN crm.replay_run.failed IS 'Of them, those that the database refused: see crm.dead_letter.';

CREATE VIEW crm.replay_progress AS
SELECT r.id, concat_ws(' ', s.server, s.kind, nullif(s.object, '')) AS stream, r.state, r.from_seq, r.to_seq,
       round(100.0 * least(r.next_seq - r.from_seq, r.to_seq - r.from_seq + 1) / greatest(r.to_seq - r.from_seq + 1, 1), 1) AS percent,
       r.events, r.changed, r.unchanged, r.put_off, r.failed, r.asked_by, r.started_at, r.finished_at
FROM crm.replay_run r LEFT JOIN crm.stream s ON s.id = r.stream;
COMMENT ON VIEW crm.replay_progress IS 'Replays: how far each has come and what its events did.';

CREATE FUNCTION crm._stream_named(stream text) RETURNS crm.stream
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    x     crm.stream;
    known text[];
BEGIN
    SELECT s.* INTO x FROM crm.stream s WHERE _stream_named.stream IN (concat_ws(' ', s.server, s.kind, nullif(s.object, '')), s.id::text);
    IF NOT FOUND THEN
        SELECT array_agg(concat_ws(' ', s.server, s.kind, nullif(s.object, '')) ORDER BY s.id) INTO known FROM crm.stream s;
        RAISE EXCEPTION 'there is no stream %', coalesce(quote_literal(stream), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'Nothing has arrived from any CRM yet.' ELSE 'Streams are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(stream, ''), known, 'Name it as crm.status does: SELECT name FROM crm.status WHERE kind = ''stream''; changes by SQL are not replayed.');
    END IF;
    RETURN x;
END $$;
COMMENT ON FUNCTION crm._stream_named(text) IS 'Resolves a stream as crm.status names it, or by its id, or raises, naming near matches.';

CREATE FUNCTION crm.replay(stream text, from_seq bigint DEFAULT NULL, from_time timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s     crm.stream := crm._stream_named(stream);
    start bigint := crm._ledger_start(from_seq, from_time) + 1;
    busy  bigint := (SELECT r.id FROM crm.replay_run r WHERE r.stream = s.id AND r.state = 'running' LIMIT 1);
    run   bigint;
BEGIN
    IF from_seq IS NULL AND from_time IS NULL THEN
        RAISE EXCEPTION 'a replay needs a beginning'
            USING ERRCODE = '22023', DETAIL = 'Neither from_seq nor from_time was given.', HINT = 'crm.replay(''hubspot webhook'', from_time => now() - interval ''1 hour''), or from_seq => 0 for all that is kept.';
    ELSIF busy IS NOT NULL THEN
        RAISE EXCEPTION 'stream "%" is being replayed already', stream
            USING ERRCODE = '55006', DETAIL = format('Replay %s is under way.', busy), HINT = format('SELECT * FROM crm.replay_progress WHERE id = %s;', busy);
    END IF;
    INSERT INTO crm.replay_run (stream, from_seq, to_seq, next_seq) VALUES (s.id, start, crm._ledger_end(), start) RETURNING id INTO run;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN run;
END $$;
COMMENT ON FUNCTION crm.replay(text, bigint, timestamptz) IS 'Lets the worker decide the events of a stream again, in their order and by the present policy, from a number or a time on. What is there already or was overtaken stays, so it may be run again. Returns the number of the replay, see crm.replay_progress.';

-- Whether an event's value was news when it came: not our own write, nor what
-- was known or older than what its CRM had shown.
CREATE FUNCTION crm._was_news(outcome text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT outcome NOT IN ('echo', 'normal_form', 'equal', 'known', 'stale', 'unsettled', 'not_landed', 'tombstone', 'too_late', 'sent')
$$;
COMMENT ON FUNCTION crm._was_news(text) IS 'Whether an outcome, as in crm.lineage, is that of a change.';

-- A value is overtaken by a later one of the same record, and by a later one of
-- any linked record that was applied.
CREATE FUNCTION crm._overtaken(e crm.event, name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM crm._record_rows(e.mirror, e.row_id) x
        JOIN crm._mapped_fields(e.mirror, name) w ON w.at_mirror = x.at_mirror
        JOIN crm.event n ON n.mirror = x.at_mirror AND n.row_id = x.at_row
        CROSS JOIN LATERAL unnest(n.fields, n.new_values) AS u (f, v)
        WHERE n.seq > e.seq AND n.source NOT IN ('result', 'replay') AND u.f = w.as_field
          AND CASE WHEN n.mirror = e.mirror THEN crm._was_news(crm._outcome(n.source, crm._decided(n.decision, u.f), n.origin, u.v))
                   ELSE crm._outcome(n.source, crm._decided(n.decision, u.f), n.origin, u.v) = 'applied' END)
$$;
COMMENT ON FUNCTION crm._overtaken(crm.event, text) IS 'Whether something later was decided about a field of an event.';

CREATE FUNCTION crm._replay_batch(stream integer, next_seq bigint, to_seq bigint, max_events integer)
RETURNS TABLE (seq bigint, mirror integer, record_id text, kind text, occurred_at bigint, actor text, application text, carried integer, fields text[], new_values text[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.seq, e.mirror, e.record_id, e.kind, (extract(epoch FROM e.occurred_at) * 1000)::bigint, e.actor, e.application, coalesce(cardinality(e.new_values), 0), v.names, v.news
    FROM (SELECT x AS line FROM crm.event x
          WHERE x.seq >= $2 AND x.seq <= $3 AND x.stream = $1 AND x.source <> 'replay' ORDER BY x.seq LIMIT $4) q, LATERAL (SELECT (q.line).*) e
    LEFT JOIN LATERAL (
        SELECT array_agg(u.f) AS names, array_agg(u.v) AS news FROM unnest(e.fields, e.new_values) AS u (f, v)
        WHERE e.new_values IS NOT NULL AND crm._was_news(crm._outcome(e.source, crm._decided(e.decision, u.f), e.origin, u.v)) AND NOT crm._overtaken(q.line, u.f)
    ) v ON true
    ORDER BY e.seq
$$;
COMMENT ON FUNCTION crm._replay_batch(integer, bigint, bigint, integer) IS 'The next events of a replay, with the fields that were news and were not overtaken.';

-- What crm.status says of the ledger, its consumers and replays.
CREATE VIEW crm._ledger_status AS
SELECT 7 AS rank, 'ledger'::text AS kind, current_database()::text AS name,
       CASE WHEN k.held IS NOT NULL THEN 'kept for consumers' ELSE 'ok' END AS state,
       concat_ws(', ', 'since ' || date_trunc('seconds', f.received_at), pg_size_pretty(z.bytes) || ' in ' || z.parts || ' parts',
                 'kept ' || coalesce(crm._keep('retention')::text, 'for ever'), 'dropped up to ' || s.dropped_to) AS detail,
       NULL::bigint AS waiting, NULL::interval AS lag, NULL::text AS last_error, NULL::timestamptz AS last_error_at,
       CASE WHEN k.held IS NOT NULL THEN format('Consumer %s has not committed what pg_crm_sync.retention would drop. Let it read on, SELECT crm.consumer_drop(%L); or set pg_crm_sync.retention_max.', k.held, k.held) END AS advice
FROM (SELECT count(*) AS parts, coalesce(sum(pg_total_relation_size(p.relid)), 0) AS bytes FROM crm._event_partitions() p) z
LEFT JOIN crm.ledger_state s ON true
LEFT JOIN LATERAL (SELECT e.received_at FROM crm.event e ORDER BY e.seq LIMIT 1) f ON true
LEFT JOIN LATERAL (SELECT o.name AS held FROM crm.consumer_offset o
                   WHERE EXISTS (SELECT FROM crm._event_partitions() p
                                 WHERE o.committed < p.high - 1 AND p.high <= (SELECT q.last_value FROM crm.event_seq q)
                                   AND (SELECT e.received_at FROM crm.event e WHERE e.seq >= p.low AND e.seq < p.high ORDER BY e.seq DESC LIMIT 1) < now() - crm._keep('retention'))
                   ORDER BY o.committed, o.name LIMIT 1) k ON true
UNION ALL
SELECT 8, 'consumer', c.name, CASE WHEN c.missed THEN 'events missed' WHEN c.waiting > 0 THEN 'behind' ELSE 'ok' END,
       format('committed up to %s', c.committed), c.waiting, c.lag, NULL, NULL, c.advice
FROM crm.consumer c
UNION ALL
SELECT 9, 'replay', r.stream, r.state, format('%s %%, %s events, %s changed, %s unchanged, %s put off, %s failed', r.percent, r.events, r.changed, r.unchanged, r.put_off, r.failed),
       NULL, crm._span(r.started_at), NULL, NULL, NULL
FROM crm.replay_progress r WHERE r.state = 'running';
COMMENT ON VIEW crm._ledger_status IS 'The rows of crm.status about the ledger, its consumers and replays.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['consumer_offset', 'replay_run', 'replay_run_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;
