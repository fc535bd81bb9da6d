-- The ledger: its partitions and how long they are kept, and what it tells of a
-- record: who set each value (crm.lineage), what it was then (crm.record_as_of).

CREATE TABLE crm.ledger_state (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    dropped_to    bigint NOT NULL,
    dropped_until timestamptz NOT NULL
);
COMMENT ON TABLE crm.ledger_state IS 'One row as soon as retention has dropped something: how far crm.event was dropped.';
COMMENT ON COLUMN crm.ledger_state.dropped_to IS 'Events up to this number were dropped.';
COMMENT ON COLUMN crm.ledger_state.dropped_until IS 'When the last of them had been decided.';

CREATE FUNCTION crm._span(since timestamptz) RETURNS interval
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT date_trunc('milliseconds', clock_timestamp() - since) $$;
COMMENT ON FUNCTION crm._span(timestamptz) IS 'How long ago.';

CREATE FUNCTION crm._keep(setting text) RETURNS interval
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Shown with six digits, as 1.5e+06s: no interval is read from that.
    SELECT nullif(m[1]::float8 * ('1 ' || coalesce(m[2], 'min'))::interval, interval '0')
    FROM regexp_match(current_setting('pg_crm_sync.' || setting), '^(.*\d)(us|ms|s|min|h|d)?$') AS m
$$;
COMMENT ON FUNCTION crm._keep(text) IS 'A setting of time as an interval; null where 0 stands for no limit.';

-- Partitions in the order of their numbers. Only the bounds say where they are:
-- somebody may have renamed one.
CREATE FUNCTION crm._event_partitions() RETURNS TABLE (relid oid, low bigint, high bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid, b[1]::bigint, b[2]::bigint
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
         regexp_match(pg_get_expr(c.relpartbound, c.oid), $r$FROM \('?(\d+)'?\) TO \('?(\d+)'?\)$r$) AS b
    WHERE i.inhparent = 'crm.event'::regclass AND NOT i.inhdetachpending
    ORDER BY 2
$$;
COMMENT ON FUNCTION crm._event_partitions() IS 'The partitions of crm.event with the numbers that they hold, low to below high.';

-- The parent restores as a member of the extension and has no primary key;
-- partitions are ordinary tables, so a dump carries them with their rows.
--
-- A partition that began longer ago than an eighth of what is kept is closed by
-- letting the sequence jump to the next one: where little happens, a million
-- events would otherwise take years, and nothing could be dropped meanwhile.
CREATE FUNCTION crm._event_partition_ensure(span bigint DEFAULT 1000000) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next_seq bigint := (SELECT last_value FROM crm.event_seq) + 1;
    keep     interval := crm._keep('retention');
    part     bigint;
    began    timestamptz;
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    IF keep IS NOT NULL THEN
        SELECT e.received_at INTO began FROM crm.event e WHERE e.seq >= next_seq / span * span ORDER BY e.seq LIMIT 1;
        IF began < now() - keep / 8 THEN
            next_seq := (next_seq / span + 1) * span;
            PERFORM setval('crm.event_seq', next_seq - 1);
        END IF;
    END IF;
    FOREACH part IN ARRAY ARRAY[next_seq / span, next_seq / span + 1] LOOP
        IF to_regclass(format('crm.event_%s', part)) IS NULL THEN
            EXECUTE format('CREATE TABLE crm.event_%s PARTITION OF crm.event FOR VALUES FROM (%s) TO (%s)',
                           part, part * span, (part + 1) * span);
            EXECUTE format('CREATE INDEX event_%s_row ON crm.event_%s (mirror, row_id)', part, part);
            EXECUTE format('CREATE INDEX event_%s_seq ON crm.event_%s (seq)', part, part);
            EXECUTE format('COMMENT ON TABLE crm.event_%s IS %L', part, 'Part of crm.event.');
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._event_partition_ensure(bigint) IS 'Makes the current and the next partition of crm.event; called by the worker.';

-- At most one partition a call: dropping one locks crm.event for a moment.
CREATE FUNCTION crm._event_retain(keep interval DEFAULT crm._keep('retention'), at_most interval DEFAULT crm._keep('retention_max')) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    current_seq bigint := (SELECT last_value FROM crm.event_seq);
    wanted      bigint := (SELECT min(o.committed) FROM crm.consumer_offset o);
    p           record;
    last        record;
BEGIN
    IF keep IS NULL AND at_most IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO p FROM crm._event_partitions() x ORDER BY x.low LIMIT 1;
    IF NOT FOUND OR p.high > current_seq THEN
        RETURN NULL;
    END IF;
    SELECT e.seq, e.received_at INTO last FROM crm.event e WHERE e.seq >= p.low AND e.seq < p.high ORDER BY e.seq DESC LIMIT 1;
    IF last.seq IS NOT NULL AND NOT coalesce(last.received_at < now() - at_most, false)
       AND (coalesce(last.received_at >= now() - keep, true) OR wanted < last.seq) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', '500ms', true);
    EXECUTE format('DROP TABLE %s', p.relid::regclass);
    INSERT INTO crm.ledger_state AS s (dropped_to, dropped_until) SELECT last.seq, last.received_at WHERE last.seq IS NOT NULL
    ON CONFLICT (only_one) DO UPDATE SET dropped_to = greatest(s.dropped_to, excluded.dropped_to), dropped_until = greatest(s.dropped_until, excluded.dropped_until);
    RETURN format('%s to %s', p.low, p.high - 1);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._event_retain(interval, interval) IS 'Drops the oldest partition of crm.event if all in it is older than keep and committed by every consumer, or older than at_most; called by the worker. Says what it dropped.';

-- A CRM delivers an event again within three days. One slice a minute, so that
-- millions of identities cost no long transaction.
CREATE FUNCTION crm._event_seen_forget(slice integer DEFAULT extract(minute FROM now())::integer, slices integer DEFAULT 60) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low  CONSTANT uuid := rpad(lpad(to_hex(slice * 256 / slices), 2, '0'), 32, '0');
    high CONSTANT uuid := rpad(lpad(to_hex((slice + 1) * 256 / slices - 1), 2, '0'), 32, 'f');
    n    bigint;
BEGIN
    DELETE FROM crm.event_seen s WHERE s.identity >= low AND s.identity <= high AND s.seen_on < current_date - 4;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION crm._event_seen_forget(integer, integer) IS 'Forgets identities of events that can come no more, one slice of them; called by the worker.';

CREATE FUNCTION crm._event_seq_at(at timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low   bigint := coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq LIMIT 1), 1);
    high  bigint := coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq DESC LIMIT 1), 0) + 1;
    mid   bigint;
    probe record;
BEGIN
    -- Numbers and times rise together: one session gives both.
    WHILE low < high LOOP
        mid := low + (high - low) / 2;
        SELECT e.seq, e.received_at INTO probe FROM crm.event e WHERE e.seq >= mid ORDER BY e.seq LIMIT 1;
        IF NOT FOUND OR probe.received_at >= at THEN
            high := mid;
        ELSE
            low := probe.seq + 1;
        END IF;
    END LOOP;
    RETURN low;
END $$;
COMMENT ON FUNCTION crm._event_seq_at(timestamptz) IS 'A number such that all events from it on were decided at or after a time, and none before it was.';

CREATE FUNCTION crm._record_row(m crm.mirror, id text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r     bigint;
    known text[];
BEGIN
    IF id ~ '^#\d{1,18}$' THEN
        r := substr(id, 2)::bigint;
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO r USING r;
        IF r IS NULL AND EXISTS (SELECT FROM crm.event e WHERE e.mirror = m.id AND e.row_id = substr(_record_row.id, 2)::bigint) THEN
            RETURN substr(id, 2)::bigint;
        END IF;
    ELSE
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t.id = $1', m.schema_name, m.table_name) INTO r USING id;
        IF r IS NULL AND id IS NOT NULL THEN
            -- The row is gone; the ledger may remember it.
            SELECT e.row_id INTO r FROM crm.event e WHERE e.mirror = m.id AND e.record_id = _record_row.id AND e.row_id IS NOT NULL ORDER BY e.seq DESC LIMIT 1;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM crm.event e WHERE e.mirror = m.id AND e.row_id = r AND e.kind = 'tombstone') THEN
        RETURN coalesce((SELECT e.row_id FROM crm.event e WHERE e.mirror = m.id AND e.record_id = _record_row.id AND e.kind <> 'tombstone' AND e.row_id <> r
                         ORDER BY e.seq DESC LIMIT 1), r);
    ELSIF r IS NULL THEN
        EXECUTE format('SELECT array_agg(x.id) FROM (SELECT t.id FROM %I.%I t WHERE t.id LIKE left($1, 15) || ''%%'' OR left($1, 200) LIKE t.id || ''%%'' OR t.id = btrim($1) ORDER BY 1 LIMIT 3) x',
                       m.schema_name, m.table_name) INTO known USING replace(replace(coalesce(id, ''), '%', ''), '_', '');
        RAISE EXCEPTION 'mirror %.% has no record %', quote_ident(m.schema_name), quote_ident(m.table_name), coalesce(quote_literal(left(id, 100)), 'null')
            USING ERRCODE = '42704', DETAIL = 'Neither the table nor the ledger knows it.',
                  HINT = CASE WHEN known IS NOT NULL AND id <> '' THEN format('Did you mean %s? ', array_to_string(known, ', ')) ELSE '' END
                         || 'Name it by the CRM''s id, or a row that has none by #_id, such as ''#17''.';
    END IF;
    RETURN r;
END $$;
COMMENT ON FUNCTION crm._record_row(crm.mirror, text) IS 'The _id of a record named by the CRM''s id or by #_id, also of one that is gone; raises if nobody knows it.';

CREATE FUNCTION crm._field_checked(m crm.mirror, given text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hit   text;
    known text[];
BEGIN
    SELECT c.field INTO hit FROM crm.mirror_column c WHERE c.mirror = m.id AND given IN (c.field, c.column_name::text) ORDER BY c.field = given DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT array_agg(c.field ORDER BY c.field) INTO known FROM crm.mirror_column c WHERE c.mirror = m.id;
        RAISE EXCEPTION 'mirror %.% has no field "%"', quote_ident(m.schema_name), quote_ident(m.table_name), given
            USING ERRCODE = '42703', DETAIL = format('It holds %s fields.', coalesce(cardinality(known), 0)),
                  HINT = crm._near_hint(given, known, 'See crm.mirror_column for fields and their columns.');
    END IF;
    RETURN hit;
END $$;
COMMENT ON FUNCTION crm._field_checked(crm.mirror, text) IS 'Resolves a field or column of a mirror or raises, naming near matches.';

-- Over all links of the group: a field may reach a third mirror by way of a second.
CREATE FUNCTION crm._mapped_fields(mirror integer, field text) RETURNS TABLE (own text, at_mirror integer, as_field text)
LANGUAGE sql STABLE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE pair AS (
        SELECT l.left_mirror AS a, f.left_field AS fa, l.right_mirror AS b, f.right_field AS fb FROM crm.link l JOIN crm.field_map f ON f.link = l.name
        UNION ALL
        SELECT l.right_mirror, f.right_field, l.left_mirror, f.left_field FROM crm.link l JOIN crm.field_map f ON f.link = l.name
    ), reach AS (
        SELECT c.field AS own, c.mirror, c.field FROM crm.mirror_column c
        WHERE c.mirror = _mapped_fields.mirror AND (_mapped_fields.field IS NULL OR c.field = _mapped_fields.field)
        UNION
        SELECT r.own, p.b, p.fb FROM reach r JOIN pair p ON p.a = r.mirror AND p.fa = r.field
    )
    SELECT own, mirror, field FROM reach
$$;
COMMENT ON FUNCTION crm._mapped_fields(integer, text) IS 'A mirror''s fields (or one) and what they are called on it and on every mirror that a map leads to.';

CREATE FUNCTION crm._record_rows(mirror integer, row_id bigint) RETURNS TABLE (at_mirror integer, at_row bigint)
LANGUAGE sql STABLE ROWS 4 SET search_path = pg_catalog, pg_temp AS $$
    SELECT $1, $2
    UNION
    SELECT y.mirror, y.row_id FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity WHERE x.mirror = $1 AND x.row_id = $2
$$;
COMMENT ON FUNCTION crm._record_rows(integer, bigint) IS 'A row and the rows of other mirrors that are the same thing.';

CREATE FUNCTION crm._decided(decision jsonb, name text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT j.d FROM jsonb_array_elements(CASE jsonb_typeof(decision) WHEN 'array' THEN decision ELSE '[]' END) AS j (d)
    WHERE coalesce(j.d ->> 'as', j.d ->> 'field') = name LIMIT 1
$$;
COMMENT ON FUNCTION crm._decided(jsonb, text) IS 'What was decided about a field, by its name on the event''s mirror; null if its value simply applied.';

-- Whether the value that an event brought stands, in a word.
CREATE FUNCTION crm._outcome(source text, decided jsonb, origin text, new_value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN source = 'result' THEN 'sent'
        WHEN decided IS NULL THEN 'applied'
        WHEN decided ? 'losers' AND EXISTS (SELECT FROM jsonb_array_elements(decided -> 'losers') l
             WHERE l ->> 'origin' = origin AND l ->> 'value' IS NOT DISTINCT FROM new_value AND decided ->> 'value' IS DISTINCT FROM new_value)
            THEN CASE WHEN decided ->> 'step' IN ('stale', 'tombstone', 'too_late') THEN decided ->> 'step'
                      WHEN decided ? 'held' THEN 'review' ELSE 'lost' END
        WHEN decided ->> 'step' IN ('one_side', 'owner', 'fill_blank', 'conflict', 'resolved', 'one_way', 'score', 'merge') THEN 'applied'
        ELSE decided ->> 'step' END
$$;
COMMENT ON FUNCTION crm._outcome(text, jsonb, text, text) IS 'What became of a value: applied, lost, review, sent (by us, confirmed), or the step that found it to be no news (echo, equal, stale, …).';

CREATE FUNCTION crm.lineage(mirror text, id text, field text DEFAULT NULL)
RETURNS TABLE (seq bigint, at timestamptz, "table" text, record_id text, name text, old_value text, new_value text, stands boolean, outcome text,
               origin text, actor text, application text, reason text, source text, rule bigint, strategy text, policy_version integer, lost jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    m     crm.mirror := crm._mirror_named(lineage.mirror);
    r     bigint := crm._record_row(m, lineage.id);
    f     text := CASE WHEN lineage.field IS NOT NULL THEN crm._field_checked(m, lineage.field) END;
    value text;
BEGIN
    RETURN QUERY
    WITH line AS (
        SELECT e.*, u.name, u.old, u.new, w.own, d.d,
               CASE WHEN u.name IS NULL THEN e.kind ELSE crm._outcome(e.source, d.d, e.origin, u.new) END AS outcome
        FROM crm._record_rows(m.id, r) x
        JOIN crm.event e ON e.mirror = x.at_mirror AND e.row_id = x.at_row
        LEFT JOIN LATERAL unnest(e.fields, e.old_values, e.new_values) AS u (name, old, new) ON true
        LEFT JOIN crm._mapped_fields(m.id, f) w ON w.at_mirror = e.mirror AND w.as_field = u.name
        CROSS JOIN LATERAL crm._decided(e.decision, u.name) AS d (d)
        WHERE w.own IS NOT NULL OR (u.name IS NULL AND f IS NULL)
    ), marked AS (
        SELECT l.*, l.own IS NOT NULL AND l.seq = max(l.seq) FILTER (WHERE l.outcome IN ('applied', 'normal_form', 'rejected') AND l.kind IN ('create', 'update', 'resolved')) OVER (PARTITION BY l.own) AS stands
        FROM line l
    )
    SELECT k.seq, CASE WHEN k.source IN ('sql', 'reject') THEN k.occurred_at ELSE k.received_at END, crm._table_of(k.mirror), k.record_id, k.name, k.old, k.new, coalesce(k.stands, false), k.outcome,
           k.origin, k.actor, k.application, k.reason, k.source, (k.d ->> 'rule')::bigint, k.d ->> 'strategy', k.policy_version, k.d -> 'losers'
    FROM marked k ORDER BY k.seq, k.name;
    IF NOT FOUND AND f IS NOT NULL THEN
        EXECUTE format('SELECT t.%s::text FROM %I.%I t WHERE t._id = $1', crm._column_of(m.id, f), m.schema_name, m.table_name) INTO value USING r;
        -- Where events were dropped, one of them may have set the value.
        RETURN QUERY SELECT NULL::bigint, coalesce(s.dropped_until, b.finished_at), crm._table_of(m.id), lineage.id, f, NULL::text, value, true,
            CASE WHEN s.dropped_until IS NULL THEN 'first copy' ELSE 'older than the ledger' END, CASE WHEN s.dropped_until IS NULL THEN m.server END,
            NULL::text, NULL::text, NULL::text, CASE WHEN s.dropped_until IS NULL THEN 'backfill' END, NULL::bigint, NULL::text, NULL::integer, NULL::jsonb
        FROM crm.backfill b LEFT JOIN crm.ledger_state s ON true WHERE b.mirror = m.id;
    END IF;
END $$;
COMMENT ON FUNCTION crm.lineage(text, text, text) IS 'Who set each value of a record (or of one field), on every linked mirror, when, with which program and reason, by which rule, and what lost; stands marks the line whose value is there now.';

CREATE FUNCTION crm._undrained(mirror integer, row_id bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT crm._tx_has_changes() OR EXISTS (SELECT FROM crm.change_0 c WHERE c.mirror_id = $1 AND c.row_id = $2) OR EXISTS (SELECT FROM crm.change_1 c WHERE c.mirror_id = $1 AND c.row_id = $2)
$$;
COMMENT ON FUNCTION crm._undrained(integer, bigint) IS 'Whether SQL has changed a row and the worker has not taken that up yet; this transaction''s own changes are not even logged.';

-- What happened to a row after a time, newest first: its own events, and what
-- events of the rows it is linked with changed on it. SQL changes a row before
-- it is decided about, so times are the order, not numbers. Of a link that is gone,
-- the events are found by the entity that the row had.
CREATE FUNCTION crm._undo(mirror integer, row_id bigint, at timestamptz)
RETURNS TABLE (seq bigint, since timestamptz, kind text, source text, own boolean, fields text[], old_values text[], unknown text[], carried jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    former bigint[];
BEGIN
    SELECT array_agg(DISTINCT e.entity) INTO former FROM crm.event e
    WHERE e.mirror = _undo.mirror AND e.row_id = _undo.row_id AND e.entity IS NOT NULL
      AND NOT EXISTS (SELECT FROM crm.xref x WHERE x.mirror = e.mirror AND x.row_id = e.row_id AND x.entity = e.entity);
    RETURN QUERY
    SELECT e.seq, CASE WHEN e.source IN ('sql', 'reject') THEN e.occurred_at ELSE e.received_at END, e.kind, e.source, true, e.fields, e.old_values, e.unknown, NULL::jsonb
    FROM crm.event e
    WHERE e.mirror = _undo.mirror AND e.row_id = _undo.row_id AND NOT (e.source = 'result' AND e.kind = 'update') AND e.kind <> 'discard'
      -- Who removed a record, or brought it back, may be told when that was seen before: then it changed nothing.
      AND NOT (e.kind IN ('restore', 'delete') AND e.source NOT IN ('sql', 'reject', 'result')
               AND EXISTS (SELECT FROM (SELECT p.kind, p.source FROM crm.event p WHERE p.mirror = e.mirror AND p.row_id = e.row_id AND p.seq < e.seq
                                        AND p.kind IN ('create', 'restore', 'delete', 'privacy_delete', 'tombstone') ORDER BY p.seq DESC LIMIT 1) p
                           WHERE CASE e.kind WHEN 'restore' THEN p.kind IN ('create', 'restore')
                                             ELSE p.kind NOT IN ('create', 'restore') AND p.source NOT IN ('sql', 'reject') END))
      AND CASE WHEN e.source IN ('sql', 'reject') THEN e.occurred_at ELSE e.received_at END > _undo.at
    UNION ALL
    SELECT e.seq, e.received_at, e.kind, e.source, false, NULL, NULL, NULL, e.carried -> _undo.mirror::text
    FROM crm._record_rows(_undo.mirror, _undo.row_id) x JOIN crm.event e ON e.mirror = x.at_mirror AND e.row_id = x.at_row
    WHERE e.carried ? _undo.mirror::text AND e.received_at > _undo.at
    UNION ALL
    SELECT e.seq, e.received_at, e.kind, e.source, false, NULL, NULL, NULL, e.carried -> _undo.mirror::text
    FROM crm.event e
    WHERE former IS NOT NULL AND e.entity = ANY (former) AND e.carried ? _undo.mirror::text AND e.received_at > _undo.at
      AND NOT EXISTS (SELECT FROM crm._record_rows(_undo.mirror, _undo.row_id) x WHERE x.at_mirror = e.mirror AND x.at_row = e.row_id)
    -- Not by time: a statement may have begun before what it found was there.
    ORDER BY 1 DESC;
END $$;
COMMENT ON FUNCTION crm._undo(integer, bigint, timestamptz) IS 'What changed a row after a time, newest first, with the values before.';

CREATE FUNCTION crm._as_of_checked(m crm.mirror, at timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    since timestamptz := greatest((SELECT s.dropped_until FROM crm.ledger_state s), m.created_at);
BEGIN
    IF at IS NULL OR at > clock_timestamp() THEN
        RAISE EXCEPTION 'no record can be shown as of %', coalesce(at::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'The time must be given and lie in the past.', HINT = 'For the record as it is now, read the table.';
    ELSIF at < since THEN
        RAISE EXCEPTION 'the ledger does not reach back to %', at
            USING ERRCODE = '22023', DETAIL = format('What is known of %I.%I begins at %s.', m.schema_name, m.table_name, since),
                  HINT = CASE WHEN since > m.created_at THEN 'Older events were dropped: pg_crm_sync.retention says how long they are kept.'
                              ELSE 'The mirror was made then; its first copy holds what the CRM held, not what was before.' END;
    END IF;
END $$;
COMMENT ON FUNCTION crm._as_of_checked(crm.mirror, timestamptz) IS 'Raises if the ledger does not reach back to a time.';

CREATE FUNCTION crm._note_dropped(since timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s crm.ledger_state;
BEGIN
    SELECT * INTO s FROM crm.ledger_state x WHERE x.dropped_until >= since;
    IF FOUND THEN
        RAISE NOTICE 'the ledger does not reach back to %', since
            USING DETAIL = format('Events up to %s, of %s, were dropped; the replay begins behind them.', s.dropped_to, s.dropped_until),
                  HINT = 'pg_crm_sync.retention says how long events are kept.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._note_dropped(timestamptz) IS 'Says in a NOTICE if events since a time were dropped.';

CREATE FUNCTION crm._as_of_row(m crm.mirror, now_shown jsonb, field_values jsonb, extra jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result jsonb;
BEGIN
    -- Canonical text to the column's type: PostgreSQL reads all but lists as they are.
    SELECT coalesce(jsonb_object_agg(c.column_name, CASE WHEN c.field_type = 'multi_choice' THEN to_jsonb(string_to_array(v.value, ';')) ELSE to_jsonb(v.value) END), '{}')
    INTO result
    FROM jsonb_each_text(field_values) v JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = v.key;
    EXECUTE format('SELECT to_jsonb(jsonb_populate_record(NULL::%I.%I, $1))', m.schema_name, m.table_name) INTO result USING now_shown || result || extra;
    RETURN (SELECT jsonb_object_agg(e.key, e.value) FROM jsonb_each(result) e
            WHERE e.key IN ('_id', 'id', '_deleted_at') OR EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id AND c.column_name = e.key));
END $$;
COMMENT ON FUNCTION crm._as_of_row(crm.mirror, jsonb, jsonb, jsonb) IS 'A row of a mirror as JSON: as it is, with some fields as the ledger spells them.';

CREATE FUNCTION crm.record_as_of(mirror text, id text, at timestamptz) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m        crm.mirror := crm._mirror_named(record_as_of.mirror);
    r        bigint := crm._record_row(m, record_as_of.id);
    until    timestamptz := clock_timestamp() + interval '2 seconds';
    shown    jsonb;
    waits    boolean;
    history  jsonb;
    e        record;
    exists_  boolean;
    was      jsonb := '{}';
    extra    jsonb := '{}';
    unknown  text[] := '{}';
BEGIN
    PERFORM crm._as_of_checked(m, record_as_of.at);
    LOOP
        -- One statement, one snapshot: row and ledger fit together.
        EXECUTE format('SELECT (SELECT to_jsonb(t) FROM %I.%I t WHERE t._id = $1), crm._undrained($2, $1), (SELECT jsonb_agg(u ORDER BY u.seq DESC) FROM crm._undo($2, $1, $3) u)',
                       m.schema_name, m.table_name) INTO shown, waits, history USING r, m.id, record_as_of.at;
        EXIT WHEN NOT waits;
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'the worker has not taken up the last change of this record yet'
                USING ERRCODE = '55006', DETAIL = 'SQL has changed the row, and the ledger does not say so yet.',
                      HINT = 'Commit first if this transaction did; else call again in a moment, and see the worker in crm.status.';
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    exists_ := shown IS NOT NULL;
    FOR e IN SELECT u.* FROM jsonb_to_recordset(history) AS u (seq bigint, kind text, source text, own boolean, fields text[], old_values text[], unknown text[], carried jsonb) LOOP
        IF NOT e.own THEN
            was := was || e.carried;
            unknown := ARRAY(SELECT x FROM unnest(unknown) x WHERE NOT e.carried ? x);
            CONTINUE;
        END IF;
        CASE
            WHEN e.kind = 'create' AND e.source = 'result' THEN extra := extra || '{"id": null}';
            WHEN e.kind IN ('create', 'tombstone') THEN exists_ := false;
            WHEN e.kind = 'restore' THEN unknown := unknown || '_deleted_at'::text;
            WHEN e.kind IN ('delete', 'privacy_delete') AND e.source NOT IN ('sql', 'reject') THEN
                extra := extra || '{"_deleted_at": null}';
                unknown := array_remove(unknown, '_deleted_at');
            ELSE
                exists_ := exists_ OR e.kind = 'delete';
                was := was || coalesce((SELECT jsonb_object_agg(u.f, u.v) FROM unnest(e.fields, e.old_values) u (f, v)), '{}');
                unknown := ARRAY(SELECT x FROM unnest(unknown) x WHERE x <> ALL (coalesce(e.fields, '{}')))
                           || CASE WHEN e.old_values IS NULL THEN coalesce(e.fields, '{}') ELSE coalesce(e.unknown, '{}') END;
        END CASE;
    END LOOP;
    IF NOT exists_ THEN
        RETURN NULL;
    END IF;
    IF shown IS NULL THEN
        extra := jsonb_build_object('_id', r, 'id', CASE WHEN record_as_of.id NOT LIKE '#%' THEN record_as_of.id END) || extra;
    END IF;
    shown := crm._as_of_row(m, coalesce(shown, '{}'), was, extra);
    -- Better no value than a wrong one.
    SELECT shown - coalesce(array_agg(coalesce(c.column_name::text, x)), '{}') || CASE WHEN count(*) > 0 THEN jsonb_build_object('_unknown', jsonb_agg(coalesce(c.column_name::text, x))) ELSE '{}' END
    INTO shown FROM (SELECT DISTINCT unnest(unknown) AS x) u LEFT JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = u.x;
    RETURN shown;
END $$;
COMMENT ON FUNCTION crm.record_as_of(text, text, timestamptz) IS 'A record as its mirror showed it at a time in the past, from the row as it is and the ledger backwards; null if there was none. Columns whose value then nobody knows are left out and named in _unknown.';

DO $$
BEGIN
    PERFORM pg_catalog.pg_extension_config_dump('crm.ledger_state', '');
END $$;
