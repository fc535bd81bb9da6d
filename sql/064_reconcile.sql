-- Reconciliation: mirrors compared with their CRMs, by schedule and on demand.

CREATE TABLE crm.reconcile_run (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    depth       text NOT NULL CHECK (depth IN ('stamps', 'values')),
    cause       text NOT NULL CHECK (cause IN ('schedule', 'request')),
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'listing', 'reading', 'held', 'done', 'cancelled')),
    cursor      text,
    max_row     bigint,
    since       bigint,
    not_before  timestamptz,
    estimate    bigint NOT NULL,
    calls       bigint NOT NULL DEFAULT 0,
    listed      bigint NOT NULL DEFAULT 0,
    "rows"      bigint,
    found       bigint NOT NULL DEFAULT 0,
    held        bigint NOT NULL DEFAULT 0,
    error       text,
    from_seq    bigint NOT NULL,
    to_seq      bigint,
    asked_by    name NOT NULL DEFAULT session_user,
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at  timestamptz,
    finished_at timestamptz
);
CREATE UNIQUE INDEX reconcile_run_open ON crm.reconcile_run (mirror) WHERE state IN ('waiting', 'listing', 'reading', 'held');
COMMENT ON TABLE crm.reconcile_run IS 'Reconciliations: how far each has come and what it cost. The place in the CRM''s list is committed with what was compared, so a crash goes on where it was. See the view crm.reconcile_progress.';
COMMENT ON COLUMN crm.reconcile_run.since IS 'Milliseconds since 1970: where a mirror takes only some records (row_filter), records without row that did not change since the run before are none of its.';
COMMENT ON COLUMN crm.reconcile_run.max_row IS 'Last _id when it began: rows made later were not there to be listed.';
COMMENT ON COLUMN crm.reconcile_run.from_seq IS 'Changes from here on in crm.event are those since the run before.';

CREATE TABLE crm.reconcile_found (
    run       bigint NOT NULL REFERENCES crm.reconcile_run ON DELETE CASCADE,
    record_id text COLLATE "C" NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('create', 'update', 'restore', 'delete', 'value')),
    listed_at timestamptz,
    state     text NOT NULL DEFAULT 'found' CHECK (state IN ('found', 'held', 'kept', 'late', 'missed', 'damaged', 'newer', 'same', 'put_off')),
    PRIMARY KEY (run, record_id)
);
CREATE INDEX reconcile_found_open ON crm.reconcile_found (run, record_id) WHERE state = 'found';
COMMENT ON TABLE crm.reconcile_found IS 'Records that a reconciliation found to differ, and what came of each; kept for 30 days.';
COMMENT ON COLUMN crm.reconcile_found.kind IS 'create: no row; update: the CRM''s stamp is later than the row''s; restore: listed, but marked as deleted here; delete: not listed; value: the stamps agree, the values do not (depth values).';
COMMENT ON COLUMN crm.reconcile_found.listed_at IS 'The modified stamp that the CRM listed.';
COMMENT ON COLUMN crm.reconcile_found.state IS 'found (to be read), held (a person is asked, see crm.review), kept (a person said so), late (a stream brought it before it was read), missed (no stream brought it; repaired), damaged (values were not those of the CRM; repaired), newer (it changed again after it was listed), same (nothing differed when it was read), put_off (a user held the row; read again in the ordinary way).';

CREATE TABLE crm._reconcile_seen (
    run   bigint NOT NULL REFERENCES crm.reconcile_run ON DELETE CASCADE,
    chunk bigint NOT NULL,
    bits  bytea NOT NULL,
    PRIMARY KEY (run, chunk)
);
COMMENT ON TABLE crm._reconcile_seen IS 'Which rows a reconciliation has seen listed, a bit per row, so that what is missing is known without keeping the list.';

CREATE TABLE crm.reconcile_missed (
    run     bigint NOT NULL REFERENCES crm.reconcile_run ON DELETE CASCADE,
    stream  text NOT NULL,
    creates bigint NOT NULL,
    updates bigint NOT NULL,
    deletes bigint NOT NULL,
    PRIMARY KEY (run, stream)
);
COMMENT ON TABLE crm.reconcile_missed IS 'How many changes each stream of a mirror had missed since the reconciliation before, named as in crm.status: those that the run had to repair, and for webhooks and change streams also those that a poll brought in their place.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['reconcile_run', 'reconcile_found', '_reconcile_seen', 'reconcile_missed', 'reconcile_run_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE VIEW crm.reconcile_progress AS
SELECT r.id, format('%I.%I', m.schema_name, m.table_name) AS mirror, r.depth, r.cause, r.state, r.estimate, r.calls, r.listed, r."rows", r.found,
       f.missed_creates, f.missed_updates, f.missed_deletes, f.damaged, f.late, f.newer, f.same, f.put_off, f.held, f.waiting,
       r.error, r.asked_by, r.asked_at, r.started_at, r.finished_at,
       CASE WHEN r.state = 'held' THEN format('%s records are missing in the CRM and none was removed here: see SELECT * FROM crm.review WHERE kind = ''missing''.', f.held) END AS advice
FROM crm.reconcile_run r JOIN crm.mirror m ON m.id = r.mirror
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE x.state = 'missed' AND x.kind IN ('create', 'restore')) AS missed_creates,
           count(*) FILTER (WHERE x.state = 'missed' AND x.kind = 'update') AS missed_updates,
           count(*) FILTER (WHERE x.state = 'missed' AND x.kind = 'delete') AS missed_deletes,
           count(*) FILTER (WHERE x.state = 'damaged') AS damaged, count(*) FILTER (WHERE x.state = 'late') AS late,
           count(*) FILTER (WHERE x.state = 'newer') AS newer, count(*) FILTER (WHERE x.state = 'same') AS same,
           count(*) FILTER (WHERE x.state = 'put_off') AS put_off, count(*) FILTER (WHERE x.state = 'held') AS held,
           count(*) FILTER (WHERE x.state = 'found') AS waiting
    FROM crm.reconcile_found x WHERE x.run = r.id) f;
COMMENT ON VIEW crm.reconcile_progress IS 'Reconciliations, running and past: what the CRM listed, what differed, what no stream had brought (missed), and the API calls, estimated before and made.';
COMMENT ON COLUMN crm.reconcile_progress.estimate IS 'API calls that the list takes, as stated when the run was asked for; every 100 (HubSpot) or 200 (Salesforce) records that differ take one more.';
COMMENT ON COLUMN crm.reconcile_progress.calls IS 'API calls made.';
COMMENT ON COLUMN crm.reconcile_progress.missed_creates IS 'Records made, or brought back, that no stream had told; repaired.';
COMMENT ON COLUMN crm.reconcile_progress.late IS 'Differences that a stream brought between the list and the look: slow, not missed.';

CREATE VIEW crm._reconcile_status AS
SELECT 10 AS rank, 'reconcile'::text AS kind, r.mirror AS name, r.state,
       format('run %s, %s of about %s API calls, %s listed, %s found', r.id, r.calls, r.estimate, r.listed, r.found) AS detail,
       r.waiting, crm._span(r.started_at) AS lag, r.error AS last_error, NULL::timestamptz AS last_error_at, r.advice
FROM crm.reconcile_progress r WHERE r.state IN ('waiting', 'listing', 'reading', 'held');
COMMENT ON VIEW crm._reconcile_status IS 'The rows of crm.status about reconciliations that are not finished.';

CREATE FUNCTION crm._reconcile_page(server text) RETURNS integer
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE s.server_type WHEN 'hubspot' THEN 100 ELSE 2000 END FROM crm._server s WHERE s.server = $1
$$;
COMMENT ON FUNCTION crm._reconcile_page(text) IS 'Records of a page of a CRM''s list.';

CREATE FUNCTION crm._reconcile_calls(m crm.mirror) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %I.%I WHERE id IS NOT NULL AND _deleted_at IS NULL', m.schema_name, m.table_name) INTO n;
    RETURN greatest(ceil(n / crm._reconcile_page(m.server)::numeric), 1);
END $$;
COMMENT ON FUNCTION crm._reconcile_calls(crm.mirror) IS 'API calls that listing as many records as a mirror has rows takes.';

CREATE FUNCTION crm.reconcile_estimate(mirror text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT crm._reconcile_calls(crm._mirror_named(mirror))
$$;
COMMENT ON FUNCTION crm.reconcile_estimate(text) IS 'API calls that a reconciliation of a mirror takes if nothing differs; every 100 (HubSpot) or 200 (Salesforce) records that differ take one more.';

CREATE FUNCTION crm._reconcile_begin(m crm.mirror, depth text, cause text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.reconcile_run (mirror, depth, cause, estimate, from_seq, since)
    SELECT m.id, depth, cause, crm._reconcile_calls(m), coalesce(l.to_seq, crm._event_seq_at(b.finished_at)), (extract(epoch FROM coalesce(l.started_at, b.started_at)) * 1000)::bigint
    FROM crm.backfill b
    LEFT JOIN LATERAL (SELECT r.to_seq, r.started_at FROM crm.reconcile_run r WHERE r.mirror = m.id AND r.to_seq IS NOT NULL ORDER BY r.id DESC LIMIT 1) l ON true
    WHERE b.mirror = m.id
    ON CONFLICT DO NOTHING RETURNING id
$$;
COMMENT ON FUNCTION crm._reconcile_begin(crm.mirror, text, text) IS 'Leaves a reconciliation for the worker; none if one is open.';

CREATE FUNCTION crm.reconcile(mirror text, depth text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    crm.mirror := crm._mirror_named(mirror);
    deep text := coalesce(depth, m.reconcile_depth);
    busy crm.reconcile_run;
    run  bigint;
BEGIN
    IF deep NOT IN ('stamps', 'values') THEN
        RAISE EXCEPTION 'a reconciliation cannot have depth "%"', deep
            USING ERRCODE = '22023', DETAIL = 'stamps compares ids and modified stamps; values also the values of all columns.',
                  HINT = crm._near_hint(deep, ARRAY['stamps', 'values'], 'Leave it out for what crm.mirror.reconcile_depth says.');
    ELSIF NOT EXISTS (SELECT FROM crm.backfill b WHERE b.mirror = m.id AND b.state = 'done') THEN
        RAISE EXCEPTION 'mirror % has not been copied yet', crm._table_of(m.id)
            USING ERRCODE = '55000', DETAIL = 'The first copy brings every record; until it is done all of them would be missing.', HINT = 'Wait for it: SELECT * FROM crm.progress;';
    END IF;
    SELECT r.* INTO busy FROM crm.reconcile_run r WHERE r.mirror = m.id AND r.state IN ('waiting', 'listing', 'reading', 'held');
    IF FOUND THEN
        RAISE EXCEPTION 'mirror % is being reconciled already', crm._table_of(m.id)
            USING ERRCODE = '55006', DETAIL = format('Run %s is in state %s.', busy.id, busy.state),
                  HINT = CASE busy.state WHEN 'held' THEN format('Answer its question (SELECT * FROM crm.review WHERE kind = ''missing'';) or give it up: SELECT crm.reconcile_cancel(%s);', busy.id)
                              ELSE format('SELECT * FROM crm.reconcile_progress WHERE id = %s;', busy.id) END;
    END IF;
    run := crm._reconcile_begin(m, deep, 'request');
    IF run IS NULL THEN
        RAISE EXCEPTION 'mirror % is being reconciled already', crm._table_of(m.id)
            USING ERRCODE = '55006', DETAIL = 'Somebody else began it just now.', HINT = 'SELECT * FROM crm.reconcile_progress;';
    END IF;
    RAISE NOTICE 'reconciliation % takes about % API calls of server "%", and one more per % records that differ', run,
        (SELECT r.estimate FROM crm.reconcile_run r WHERE r.id = run), m.server, CASE crm._reconcile_page(m.server) WHEN 100 THEN 100 ELSE 200 END;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN run;
END $$;
COMMENT ON FUNCTION crm.reconcile(text, text) IS 'Compares a mirror with its CRM now: ids and modified stamps, with depth => ''values'' also the values of all columns. What differs is read again and decided like any change; records that are missing are removed here, unless they are so many that a person is asked (crm.review). Returns the number of the run, see crm.reconcile_progress; says what it costs in API calls.';

CREATE FUNCTION crm.reconcile_cancel(run bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r crm.reconcile_run;
BEGIN
    UPDATE crm.reconcile_run x SET state = 'cancelled', finished_at = clock_timestamp()
    WHERE x.id = reconcile_cancel.run AND x.state IN ('waiting', 'listing', 'reading', 'held') RETURNING x.* INTO r;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no reconciliation % is open', coalesce(run::text, 'null')
            USING ERRCODE = '42704', DETAIL = coalesce((SELECT format('It is %s.', x.state) FROM crm.reconcile_run x WHERE x.id = reconcile_cancel.run), 'There was none of this number.'),
                  HINT = 'SELECT id, mirror, state FROM crm.reconcile_progress WHERE finished_at IS NULL;';
    END IF;
    DELETE FROM crm._reconcile_seen s WHERE s.run = r.id;
    DELETE FROM crm.review_item q WHERE q.kind = 'missing' AND q.mirror = r.mirror;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN format('reconciliation %s of %s given up; what it had repaired stays', r.id, crm._table_of(r.mirror));
END $$;
COMMENT ON FUNCTION crm.reconcile_cancel(bigint) IS 'Gives a reconciliation up, and takes back its question if it asks one.';

-- The last time before now that the clock of the account showed the hour.
CREATE FUNCTION crm._reconcile_last(at time, zone text) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT max(t) FROM (SELECT ((now() AT TIME ZONE zone)::date - d + at) AT TIME ZONE zone AS t FROM generate_series(0, 1) d) x WHERE t <= now()
$$;
COMMENT ON FUNCTION crm._reconcile_last(time, text) IS 'The last time that the clock of a time zone showed this hour.';

CREATE FUNCTION crm._reconcile_zone_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_timezone_names z WHERE lower(z.name) = lower(new.reconcile_zone)) THEN
        RAISE EXCEPTION 'there is no time zone "%"', new.reconcile_zone
            USING ERRCODE = '22023', DETAIL = 'reconcile_zone is a name, so that it knows of summer time.',
                  HINT = 'SELECT name FROM pg_timezone_names; null stands for the account''s own.';
    END IF;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._reconcile_zone_check() IS 'Refuses a time zone that does not exist.';
CREATE TRIGGER reconcile_zone_check BEFORE INSERT OR UPDATE OF reconcile_zone ON crm.mirror
    FOR EACH ROW WHEN (new.reconcile_zone IS NOT NULL) EXECUTE FUNCTION crm._reconcile_zone_check();
COMMENT ON TRIGGER reconcile_zone_check ON crm.mirror IS 'Refuses a time zone that does not exist.';

-- Runs that are due begin; the answer is when the next one will be, in milliseconds since 1970.
CREATE FUNCTION crm._reconcile_schedule() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    record;
    last timestamptz;
    next timestamptz;
BEGIN
    FOR m IN
        SELECT x AS mirror, x.reconcile_at AS at, coalesce(x.reconcile_zone, s.time_zone, 'UTC') AS zone, x.reconcile_depth AS depth,
               greatest(b.finished_at, (SELECT max(r.asked_at) FROM crm.reconcile_run r WHERE r.mirror = x.id AND r.cause = 'schedule')) AS before,
               EXISTS (SELECT FROM crm.reconcile_run r WHERE r.mirror = x.id AND r.state IN ('waiting', 'listing', 'reading', 'held')) AS open
        FROM crm.mirror x JOIN crm.backfill b ON b.mirror = x.id AND b.state = 'done' LEFT JOIN crm.server_state s ON s.server = x.server
        WHERE x.reconcile_at IS NOT NULL AND NOT x.paused AND crm._relation_of(x.schema_name, x.table_name) IS NOT NULL
    LOOP
        last := crm._reconcile_last(m.at, m.zone);
        IF last > m.before AND NOT m.open THEN
            PERFORM crm._reconcile_begin(m.mirror, m.depth, 'schedule');
        END IF;
        next := least(next, (((last AT TIME ZONE m.zone)::date + 1) + m.at) AT TIME ZONE m.zone);
    END LOOP;
    DELETE FROM crm.reconcile_found f USING crm.reconcile_run r WHERE r.id = f.run AND r.finished_at < now() - interval '30 days';
    RETURN (extract(epoch FROM next) * 1000)::bigint;
END $$;
COMMENT ON FUNCTION crm._reconcile_schedule() IS 'Begins the reconciliations that are due by crm.mirror.reconcile_at; tells when the next one will be. Forgets findings after 30 days.';

-- Per stream of the mirror. What a poll brought and the stream did not bring
-- afterwards either, the stream missed.
CREATE FUNCTION crm._reconcile_finish(run bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM crm._reconcile_seen s WHERE s.run = $1;
    UPDATE crm.reconcile_run r SET held = (SELECT count(*) FROM crm.reconcile_found f WHERE f.run = r.id AND f.state = 'held'),
           to_seq = coalesce(r.to_seq, crm._ledger_end() + 1), error = NULL WHERE r.id = $1;
    UPDATE crm.reconcile_run r SET state = CASE WHEN r.held > 0 THEN 'held' ELSE 'done' END,
           finished_at = CASE WHEN r.held = 0 THEN clock_timestamp() END WHERE r.id = $1;
    INSERT INTO crm.reconcile_missed (run, stream, creates, updates, deletes)
    SELECT r.id, concat_ws(' ', s.server, s.kind, nullif(s.object, '')), f.creates + coalesce(p.creates, 0), f.updates + coalesce(p.updates, 0), f.deletes + coalesce(p.deletes, 0)
    FROM crm.reconcile_run r JOIN crm.mirror m ON m.id = r.mirror JOIN crm.stream s ON s.server = m.server AND (s.kind IN ('webhook', 'journal') OR s.object = m.object)
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE x.kind IN ('create', 'restore')) AS creates, count(*) FILTER (WHERE x.kind = 'update') AS updates, count(*) FILTER (WHERE x.kind = 'delete') AS deletes
        FROM crm.reconcile_found x WHERE x.run = r.id AND x.state = 'missed') f
    LEFT JOIN LATERAL (
        SELECT count(*) FILTER (WHERE e.kind IN ('create', 'restore')) AS creates, count(*) FILTER (WHERE e.kind = 'update') AS updates, count(*) FILTER (WHERE e.kind = 'delete') AS deletes
        FROM crm.event e WHERE s.kind <> 'poll' AND e.seq >= r.from_seq AND e.seq < r.to_seq AND e.mirror = m.id AND e.source = 'poll'
        AND NOT EXISTS (SELECT FROM crm.event n WHERE n.mirror = e.mirror AND n.row_id = e.row_id AND n.stream = s.id AND n.seq > e.seq)) p ON true
    WHERE r.id = $1
    ON CONFLICT ON CONSTRAINT reconcile_missed_pkey DO UPDATE SET creates = excluded.creates, updates = excluded.updates, deletes = excluded.deletes;
$$;
COMMENT ON FUNCTION crm._reconcile_finish(bigint) IS 'Ends a reconciliation and counts what each stream had missed; one that asks a person stays open.';
