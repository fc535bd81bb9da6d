-- Questions: why a record is not in sync. They read, and change nothing; each
-- answer says what stands in the way and what to do about it. verdict is ok,
-- note (worth knowing), waits (goes on by itself), stops (somebody must act), differs.

CREATE INDEX poison_record ON crm.poison (mirror, record_id);
CREATE INDEX review_item_row ON crm.review_item (mirror, row_id);

-- Where the outermost ANDs of a condition stand, as PostgreSQL prints it; 0 first
-- if one pair of parentheses encloses the whole.
CREATE FUNCTION crm._clause_ends(condition text) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found  integer[] := '{}';
    depth  integer := 0;
    quoted text := '';
    closed integer := 0;
    c      text;
BEGIN
    FOR i IN 1 .. length(condition) LOOP
        c := substr(condition, i, 1);
        IF quoted <> '' THEN
            quoted := CASE WHEN c = quoted THEN '' ELSE quoted END;
        ELSIF c IN ('''', '"') THEN
            quoted := c;
        ELSIF c IN ('(', '[') THEN
            depth := depth + 1;
        ELSIF c IN (')', ']') THEN
            depth := depth - 1;
            closed := CASE WHEN depth = 0 AND closed = 0 THEN i ELSE closed END;
        ELSIF depth = 0 AND substr(condition, i, 5) = ' AND ' THEN
            found := found || i;
        END IF;
    END LOOP;
    RETURN CASE WHEN condition LIKE '(%' AND closed = length(condition) THEN 0 || found ELSE found END;
END $$;
COMMENT ON FUNCTION crm._clause_ends(text) IS 'Positions of the outermost ANDs of a condition, after a 0 if parentheses enclose the whole.';

CREATE FUNCTION crm._clauses(condition text) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ends  integer[] := crm._clause_ends(condition);
    start integer := 1;
    e     integer;
BEGIN
    IF ends[1] = 0 THEN
        RETURN QUERY SELECT crm._clauses(substr(condition, 2, length(condition) - 2));
        RETURN;
    END IF;
    FOREACH e IN ARRAY ends LOOP
        RETURN NEXT substr(condition, start, e - start);
        start := e + 5;
    END LOOP;
    RETURN NEXT substr(condition, start);
END $$;
COMMENT ON FUNCTION crm._clauses(text) IS 'The clauses that the outermost ANDs of a condition join.';

CREATE FUNCTION crm._why_engine(servers text[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'fence', CASE f.state WHEN 'active' THEN 'ok' ELSE 'stops' END,
        CASE f.state WHEN 'active' THEN 'this cluster may write to the CRMs' WHEN 'never' THEN 'this cluster was never activated' ELSE 'this cluster is inert: ' || f.reason END,
        CASE WHEN f.state <> 'active' THEN 'If it is meant to write to the CRMs, and no other cluster does: SELECT crm.activate();' END
    FROM crm.fence_status() f;
    RETURN QUERY SELECT 'worker', CASE WHEN a.alive THEN 'ok' ELSE 'stops' END, CASE WHEN a.alive THEN 'running' ELSE 'not running: nothing is read or sent' END,
        CASE WHEN NOT a.alive THEN 'See the server log for "pg_crm_sync"; shared_preload_libraries must name it and max_worker_processes leave room.' END
    FROM crm._worker_alive() AS a (alive);
    RETURN QUERY SELECT 'server', CASE WHEN s.server IS NULL OR t.paused OR e.failing THEN 'stops' ELSE 'ok' END,
        concat_ws(' ', g.name, CASE WHEN s.server IS NULL THEN 'does not exist any more' WHEN t.paused THEN 'is paused'
                                    WHEN e.failing THEN 'cannot be used: ' || t.last_error ELSE 'is in use' END),
        CASE WHEN s.server IS NULL THEN 'CREATE SERVER of that name, or crm.mirror_drop the mirror.' WHEN t.paused THEN format('SELECT crm.resume(''server'', %L);', g.name)
             WHEN e.failing THEN coalesce(t.advice, format('SELECT * FROM crm.server_check(%L);', g.name)) END
    FROM unnest(servers) AS g (name) LEFT JOIN crm._server s ON s.server = g.name LEFT JOIN crm.server_state t ON t.server = g.name,
         LATERAL (SELECT t.last_error_at > coalesce(t.catalog_at, '-infinity')) AS e (failing);
    RETURN QUERY SELECT 'quota', 'note', format('%s answered 429 (too many calls) to %s of %s calls this hour', u.server, sum(u.limited), sum(u.calls)),
        'Writes wait for the CRM''s allowance and go on by themselves; see crm.api_budget.' FROM crm.api_usage u WHERE u.server = ANY (servers) AND u.per = 'hour' AND u.since = date_trunc('hour', now()) GROUP BY u.server HAVING sum(u.limited) > 0;
    RETURN QUERY SELECT 'quota', 'note', b.name || ': ' || b.detail, b.advice FROM crm._budget_status b WHERE b.name = ANY (servers) AND b.state IN ('refused', 'used up', 'nearly used up');
    RETURN QUERY SELECT 'stream', 'note', format('%s %s: %s', x.server, concat_ws(' ', x.kind, nullif(x.object, '')), x.last_error),
        'What changes in the CRM is noticed by polling meanwhile.'
    FROM crm.stream x WHERE x.server = ANY (servers) AND x.last_error_at > coalesce(x.last_ok_at, '-infinity');
END $$;
COMMENT ON FUNCTION crm._why_engine(text[]) IS 'Part of crm.why: fence, worker, servers, limits, streams.';

-- Whether a row satisfies the filter of its mirror: the clauses that it fails.
CREATE FUNCTION crm._why_filter(m crm.mirror, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failed text;
BEGIN
    EXECUTE (SELECT format('SELECT concat_ws('' and '', %s) FROM %I.%I WHERE _id = $1',
                           string_agg(format('CASE WHEN (%s) IS NOT TRUE THEN %L END', c, c), ', '), m.schema_name, m.table_name)
             FROM crm._clauses(m.row_filter) c) INTO failed USING row_id;
    RETURN nullif(failed, '');
END $$;
COMMENT ON FUNCTION crm._why_filter(crm.mirror, bigint) IS 'Part of crm.why: the clauses of the mirror''s row filter that a row fails.';

CREATE FUNCTION crm._why_mirror(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t      text := format('%I.%I', m.schema_name, m.table_name);
    rel    oid := crm._relation_of(m.schema_name, m.table_name);
    b      crm.backfill;
    failed text;
BEGIN
    SELECT x.* INTO b FROM crm.backfill x WHERE x.mirror = m.id;
    IF rel IS NULL THEN
        RETURN QUERY VALUES ('mirror', 'stops', t || ' is missing', format('SELECT crm.mirror_drop(%L);', t));
        RETURN;
    END IF;
    RETURN QUERY SELECT 'mirror', CASE WHEN m.paused OR m.mode <> 'live' THEN 'stops' ELSE 'ok' END,
        t || CASE WHEN m.paused THEN ' is paused' WHEN m.mode = 'shadow' THEN ' is in shadow: its changes are shown in crm.outbox and not sent'
                  ELSE ' is live' END,
        CASE WHEN m.paused THEN format('SELECT crm.resume(''mirror'', %L);', t) WHEN m.mode = 'shadow' THEN format('SELECT * FROM crm.go_live(%L); or of its link.', t) END;
    IF NOT EXISTS (SELECT FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
                   WHERE g.tgrelid = rel AND g.tgname = 'zz_crm_capture' AND p.pronamespace = 'crm'::regnamespace AND g.tgenabled IN ('O', 'A')) THEN
        RETURN QUERY VALUES ('capture', 'stops', t || ': changes by SQL are not seen, its trigger is gone or disabled', format('ALTER TABLE %s ENABLE TRIGGER USER;', t));
    END IF;
    RETURN QUERY SELECT 'backfill', CASE b.state WHEN 'done' THEN 'ok' WHEN 'failed' THEN 'stops' ELSE 'waits' END,
        format('first copy of %s: %s, %s of %s rows%s', t, b.state, b.done, coalesce(b.total::text, '?'), ': ' || b.error),
        CASE WHEN b.state <> 'done' THEN 'See crm.progress.' END
    WHERE b.mirror IS NOT NULL;
    IF m.row_filter IS NOT NULL AND row_id IS NOT NULL AND has_table_privilege(rel, 'SELECT') THEN
        failed := crm._why_filter(m, row_id);
        RETURN QUERY SELECT 'filter', CASE WHEN failed IS NULL THEN 'ok' ELSE 'note' END,
            t || CASE WHEN failed IS NULL THEN ': the row is among those that the mirror takes' ELSE ': the row does not satisfy ' || failed END,
            CASE WHEN failed IS NOT NULL THEN 'The mirror took it when it did, and keeps it up to date.' END;
    ELSIF m.row_filter IS NOT NULL AND row_id IS NULL THEN
        RETURN QUERY VALUES ('filter', 'note', t || ' takes only records that satisfy ' || m.row_filter, 'See row_filter of crm.import.');
    END IF;
END $$;
COMMENT ON FUNCTION crm._why_mirror(crm.mirror, bigint) IS 'Part of crm.why: table, mode, capture, first copy, row filter of a mirror.';

-- The match keys of a link that a row leaves blank; null if one is given.
CREATE FUNCTION crm._why_blank(m crm.mirror, k crm.link, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    blank text;
BEGIN
    EXECUTE (SELECT format('SELECT CASE WHEN coalesce(%s) IS NULL THEN %L END FROM %I.%I WHERE _id = $1',
                           string_agg(format('nullif(btrim(%I::text), '''')', c.column_name), ', '),
                           coalesce(string_agg(c.column_name, ', ' ORDER BY f.match_order), 'none'), m.schema_name, m.table_name)
             FROM crm.field_map f JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = CASE k.left_mirror WHEN m.id THEN f.left_field ELSE f.right_field END
             WHERE f.link = k.name AND f.match_order IS NOT NULL HAVING count(*) > 0) INTO blank USING row_id;
    RETURN blank;
END $$;
COMMENT ON FUNCTION crm._why_blank(crm.mirror, crm.link, bigint) IS 'Part of crm.why: the match keys of a link, if a row leaves all of them blank.';

CREATE FUNCTION crm._why_links(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k      crm.link;
    other  integer;
    makes  boolean;
    tied   bigint;
    asked  bigint;
    blank  text;
    became text;
BEGIN
    FOR k IN SELECT l.* FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror) ORDER BY l.id LOOP
        other := CASE k.left_mirror WHEN m.id THEN k.right_mirror ELSE k.left_mirror END;
        makes := CASE k.left_mirror WHEN m.id THEN k.create_right ELSE k.create_left END;
        RETURN QUERY SELECT 'link', CASE WHEN k.paused OR k.mode <> 'live' THEN 'stops' ELSE 'ok' END,
            format('link "%s" is %s', k.name, CASE WHEN k.paused THEN 'paused' WHEN k.mode = 'shadow' THEN 'in shadow: it shows what it would send in crm.outbox and sends nothing' ELSE k.mode END),
            CASE WHEN k.paused THEN format('SELECT crm.resume(''link'', %L);', k.name) WHEN k.mode = 'shadow' THEN format('SELECT * FROM crm.preview(%L); then crm.go_live(%L).', k.name, k.name) END;
        SELECT y.row_id INTO tied FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity AND y.mirror = other AND y.merged_into IS NULL
        WHERE x.mirror = m.id AND x.row_id = _why_links.row_id AND x.merged_into IS NULL;
        CONTINUE WHEN row_id IS NULL;
        became := crm._converted(m.id, row_id, other);
        IF tied IS NULL AND became IS NOT NULL THEN
            RETURN QUERY VALUES ('counterpart', 'ok', format('link "%s": its record there was converted and goes on as %s', k.name, became), NULL::text);
            CONTINUE;
        END IF;
        -- What its CRM has converted is what it is, whatever the scope says.
        IF tied IS NULL OR NOT EXISTS (SELECT FROM crm.link o WHERE o.id <> k.id AND m.id IN (o.left_mirror, o.right_mirror)
                AND crm._converted(m.id, row_id, CASE m.id WHEN o.left_mirror THEN o.right_mirror ELSE o.left_mirror END) = crm._record_of(other, tied)) THEN
            RETURN QUERY SELECT * FROM crm._why_scope(k, m.id, row_id, tied IS NULL);
        END IF;
        -- Out of scope and alone is as it should be: there is no more to say.
        CONTINUE WHEN tied IS NULL AND FOUND;
        IF tied IS NOT NULL THEN
            RETURN QUERY VALUES ('counterpart', 'ok', format('%s row %s', crm._table_of(other), tied), NULL);
            RETURN QUERY SELECT * FROM crm._why_scope(k, other, tied, false);
            CONTINUE;
        END IF;
        SELECT min(r.id) INTO asked FROM crm.review_item r WHERE r.mirror = m.id AND r.row_id = _why_links.row_id AND r.kind IN ('match', 'create');
        blank := CASE WHEN asked IS NULL THEN crm._why_blank(m, k, row_id) END;
        RETURN QUERY SELECT 'counterpart', CASE WHEN asked IS NOT NULL OR NOT makes THEN 'stops' ELSE 'differs' END,
            format('link "%s": %s has no counterpart of it', k.name, crm._table_of(other))
            || CASE WHEN asked IS NOT NULL THEN format(': question %s of crm.review is open', asked) WHEN blank IS NOT NULL THEN format(': nothing to find it by, %s is blank', blank) ELSE '' END
            || CASE WHEN makes THEN '' ELSE '; the link makes none' END,
            CASE WHEN asked IS NOT NULL THEN format('SELECT * FROM crm.review WHERE id = %s; then answer it.', asked)
                 WHEN NOT makes THEN format('Create it there, or set %s of crm.link.', CASE k.left_mirror WHEN m.id THEN 'create_right' ELSE 'create_left' END)
                 ELSE 'One is made for a row that is new while the link is live; for an older one create it there, and the keys of the link tie them.' END;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._why_links(crm.mirror, bigint) IS 'Part of crm.why: mode of the links of a mirror, and the row''s counterparts or why there are none.';

-- The change log has no index: a large one is not searched for one row.
CREATE FUNCTION crm._why_captured(mirror integer, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bytes bigint := pg_relation_size('crm.change_0') + pg_relation_size('crm.change_1');
    n     bigint;
BEGIN
    IF bytes > 4194304 THEN
        RETURN QUERY VALUES ('change log', 'waits', format('about %s of SQL changes wait for the worker; whether one is of this record is not looked up', pg_size_pretty(bytes)),
                             'The worker takes them in order; see crm.status.');
        RETURN;
    END IF;
    SELECT count(*) INTO n FROM (SELECT FROM crm.change_0 c WHERE c.mirror_id = $1 AND c.row_id = $2
                                 UNION ALL SELECT FROM crm.change_1 c WHERE c.mirror_id = $1 AND c.row_id = $2) x;
    IF n > 0 THEN
        RETURN QUERY VALUES ('change log', 'waits', format('%s changes by SQL wait to be decided', n), 'The worker takes them within milliseconds while it runs.');
    END IF;
END $$;
COMMENT ON FUNCTION crm._why_captured(integer, bigint) IS 'Part of crm.why: changes by SQL that the worker has not taken up.';

CREATE FUNCTION crm._why_writes(mirrors integer[], rows bigint[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT CASE w.state WHEN 'dead' THEN 'dead letter' ELSE 'outbox' END, CASE WHEN w.state IN ('queued', 'in_flight', 'unknown') THEN 'waits' ELSE 'stops' END,
        concat_ws(', ', format('write %s: %s of %s%s is %s', w.id, w.kind, crm._table_of(w.mirror),
                               (SELECT ' (' || left(string_agg(f, ', ' ORDER BY f), 200) || ')' FROM jsonb_object_keys(w.vals) f), w.state),
            CASE WHEN w.state = 'queued' THEN (SELECT format('%s%s writes before it', count(*), CASE WHEN count(*) > 10000 THEN ' or more' END)
                                               FROM (SELECT FROM crm.write q WHERE q.mirror = w.mirror AND q.state = 'queued' AND q.id < w.id LIMIT 10001) b) END,
            'for ' || crm._span(w.queued_at), nullif(w.attempts, 0) || ' attempts',
            CASE WHEN w.state = 'queued' AND w.not_before > now() THEN 'not before ' || date_trunc('seconds', w.not_before) END, 'last error: ' || w.error),
        CASE w.state WHEN 'held' THEN coalesce(CASE WHEN w.error_code = 'unknown_create' THEN w.advice END, format('The guard holds it: SELECT crm.approve(%1$s); or crm.reject(%1$s).', w.txs[1])) WHEN 'would_send' THEN 'Shadow: nothing is sent until crm.go_live.'
                     WHEN 'unknown' THEN 'The answer was lost; the worker reads the record back before it does anything.'
                     WHEN 'dead' THEN coalesce(w.advice || ' ', '') || format('Then SELECT crm.dead_letter_retry(ARRAY[%s]);', w.id) ELSE coalesce(w.advice, 'It goes on by itself.') END
    FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.write w ON w.mirror = v.mirror AND w.row_id = v.row_id ORDER BY w.id LIMIT 100;
END $$;
COMMENT ON FUNCTION crm._why_writes(integer[], bigint[]) IS 'Part of crm.why: writes of these rows that are not finished, with their place in the queue and what refused them.';

CREATE FUNCTION crm._why_events(mirrors integer[], rows bigint[], records text[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'deferred', 'waits', format('%s events of %s wait: %s', count(*), crm._table_of(d.mirror),
            CASE d.reason WHEN 'locked' THEN 'a transaction holds the row' ELSE 'the record is read from the CRM first' END),
            CASE d.reason WHEN 'locked' THEN 'They are decided when that transaction ends: see pg_stat_activity for long ones.' ELSE 'It needs an API call; see the server in crm.status.' END
        FROM unnest(mirrors, records) AS v (mirror, record) JOIN crm.deferred d ON d.mirror = v.mirror AND d.record_id = v.record GROUP BY d.mirror, d.reason;
    RETURN QUERY SELECT 'dead letter', 'stops',
            format(CASE WHEN s.by_sql THEN 'a change of %2$s by SQL could not be taken up (letter %1$s): %3$s' ELSE 'event %s from %s could not be applied: %s' END, p.id, crm._table_of(p.mirror), p.error),
            p.advice || format(' Then SELECT crm.dead_letter_%s(ARRAY[%s], ''in'');', CASE WHEN s.by_sql THEN 'discard' ELSE 'retry' END, p.id)
        FROM unnest(mirrors, rows, records) AS v (mirror, row_id, record) JOIN crm.poison p ON p.mirror = v.mirror AND p.record_id IN (v.record, v.row_id::text)
        CROSS JOIN LATERAL (SELECT crm._of_sql(p.source, p.change) AS by_sql) s
        WHERE p.record_id = CASE WHEN s.by_sql THEN v.row_id::text ELSE v.record END ORDER BY p.id LIMIT 20;
    RETURN QUERY SELECT 'review', 'stops', format('question %s (%s): %s', r.id, r.kind, r.reason), 'Answer it in crm.review.'
        FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.review_item r ON r.mirror = v.mirror AND r.row_id = v.row_id AND r.kind <> 'field' ORDER BY r.id LIMIT 20;
    RETURN QUERY SELECT 'merged', 'note', format('%s row %s lives on as %s', crm._table_of(x.mirror), x.row_id, x.merged_into), 'Look at that record instead.'
        FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.xref x ON x.mirror = v.mirror AND x.row_id = v.row_id WHERE x.merged_into IS NOT NULL;
END $$;
COMMENT ON FUNCTION crm._why_events(integer[], bigint[], text[]) IS 'Part of crm.why: events that wait or could not be applied, open questions, merges.';

-- Fields that keep flapping, or wait for a person, and what lost lately.
CREATE FUNCTION crm._why_decisions(entity bigint, mirrors integer[], rows bigint[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT CASE WHEN s.state #>> '{hold,reason}' LIKE '%keep overwriting each other%' THEN 'breaker' ELSE 'review' END, 'stops',
            format('%s waits for a person: %s', s.field, s.state #>> '{hold,reason}'),
            format('SELECT * FROM crm.review WHERE entity = %s; then answer it. The other fields go on.', s.entity)
        FROM crm.field_state s WHERE s.entity = _why_decisions.entity AND s.state -> 'hold' IS NOT NULL;
    -- A plan for the first rows only would look through the whole ledger from its end.
    RETURN QUERY WITH own AS MATERIALIZED (SELECT x.seq, x.received_at, x.decision FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.event x
                              ON x.mirror = v.mirror AND x.row_id = v.row_id AND jsonb_typeof(x.decision) = 'array')
        SELECT 'decision', 'note', format('%s: %s of %s lost to %s of %s at %s (%s, rule %s)', d ->> 'field', coalesce(quote_literal(left(o ->> 'value', 120)), 'empty'), o ->> 'origin',
                                                 coalesce(quote_literal(left(d ->> 'value', 120)), 'empty'), coalesce(nullif(d ->> 'winner', ''), 'what was there'),
                                                 date_trunc('seconds', e.received_at), coalesce(d ->> 'strategy', d ->> 'step'), coalesce(d ->> 'rule', 'none')),
            'See crm.conflict, and crm.conflict_policy for the rule.'
        FROM (SELECT * FROM own ORDER BY own.seq DESC LIMIT 20) e,
             jsonb_array_elements(e.decision) d, jsonb_array_elements(d -> 'losers') o
        ORDER BY e.seq DESC LIMIT 3;
END $$;
COMMENT ON FUNCTION crm._why_decisions(bigint, integer[], bigint[]) IS 'Part of crm.why: fields that a person or the breaker holds, and values that lost last.';

CREATE FUNCTION crm._why_record(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text := format('%I.%I', m.schema_name, m.table_name);
    r record;
BEGIN
    EXECUTE format('SELECT x.id, x._deleted_at, x._sync_state, x._sync_error FROM %s x WHERE x._id = $1', t) INTO r USING row_id;
    IF r._deleted_at IS NOT NULL THEN
        RETURN QUERY SELECT 'record', 'note', format(c.said, m.server, date_trunc('seconds', r._deleted_at)), c.advice
        FROM (VALUES ('soft_deleted', 'hidden since %2$s, because its counterpart was deleted; its record in %1$s is left alone', 'It comes back with its counterpart. What is written into it meanwhile is not sent.'),
                     ('erased', 'erased at %2$s', 'Nothing brings it back, and nothing that is written into it is sent.'),
                     ('', 'deleted in %s at %s', 'It comes back if it is restored there.')) c (state, said, advice)
        WHERE c.state = CASE WHEN r._sync_state IN ('soft_deleted', 'erased') THEN r._sync_state ELSE '' END;
    ELSIF r.id IS NULL THEN
        RETURN QUERY VALUES ('record', 'differs', format('the row has no record in %s yet', m.server), 'See crm.outbox for its create.');
    END IF;
    IF r._sync_error IS NOT NULL THEN
        RETURN QUERY VALUES ('record', 'stops', format('%s refused the row: %s', m.server, r._sync_error), 'See crm.dead_letter.');
    END IF;
END $$;
COMMENT ON FUNCTION crm._why_record(crm.mirror, bigint) IS 'Part of crm.why: what the row itself says.';

CREATE FUNCTION crm._why_record_id(mirror integer, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t  crm.mirror;
    id text;
BEGIN
    SELECT x.* INTO t FROM crm.mirror x WHERE x.id = $1;
    IF has_table_privilege(crm._relation_of(t.schema_name, t.table_name), 'SELECT') THEN
        EXECUTE format('SELECT x.id FROM %I.%I x WHERE x._id = $1', t.schema_name, t.table_name) INTO id USING row_id;
    END IF;
    RETURN id;
END $$;
COMMENT ON FUNCTION crm._why_record_id(integer, bigint) IS 'Part of crm.why: the CRM''s id of a row, if the caller may see it.';

CREATE FUNCTION crm._why_references(mirrors integer[], rows bigint[], records text[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Nearly all mirrors have none: nothing to plan.
    IF NOT EXISTS (SELECT FROM crm.reference_map r WHERE r.own = ANY (mirrors) OR r.theirs = ANY (mirrors)) THEN RETURN; END IF;
    RETURN QUERY
    SELECT 'reference', 'waits', format('%s of link "%s" waits: %s', r.field, r.link, coalesce(d.waits, 'the worker has not looked at it yet')),
           format('It is carried over when both records are there; looked at again at %s. The other end belongs to link "%s".', date_trunc('seconds', d.next_at), r.parent)
    FROM unnest(mirrors, rows, records) AS v (mirror, row_id, record)
    JOIN crm.reference_map r ON v.mirror IN (r.own, r.theirs)
    JOIN crm.reference_due d ON d.map = r.id AND ((v.mirror = r.own AND d.record = v.record) OR (v.mirror = CASE d.kind WHEN 'given' THEN r.own ELSE r.theirs END AND d.row_id = v.row_id))
    UNION ALL
    SELECT 'reference', 'waits', format('it is made with its %s, and %s names no record of link "%s" that is on both sides', r.field, coalesce(crm._table_of(r.association), r.own_field), r.parent),
           format('It is made as soon as that does. At %s it is sent without, and becomes a dead letter if the CRM refuses it.', date_trunc('seconds', w.queued_at + interval '1 day'))
    FROM unnest(mirrors, rows) AS v (mirror, row_id)
    JOIN crm.reference_map r ON v.mirror = r.theirs AND r.at_creation
    JOIN crm.write w ON w.mirror = v.mirror AND w.row_id = v.row_id AND w.kind = 'create' AND w.state = 'queued' AND w.vals ->> r.field IS NULL
    LIMIT 20;
END $$;
COMMENT ON FUNCTION crm._why_references(integer[], bigint[], text[]) IS 'Part of crm.why: references that wait for a record at the other end.';

CREATE FUNCTION crm._why(m crm.mirror, row_id bigint, asked text)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    thing   bigint := (SELECT x.entity FROM crm.xref x WHERE x.mirror = m.id AND x.row_id = _why.row_id);
    mirrors integer[] := ARRAY[m.id];
    rows    bigint[] := ARRAY[row_id];
    records text[] := ARRAY[asked];
    x       record;
    o       crm.mirror;
BEGIN
    IF row_id IS NOT NULL THEN
        EXECUTE format('SELECT ARRAY[x.id] FROM %I.%I x WHERE x._id = $1', m.schema_name, m.table_name) INTO records USING row_id;
    END IF;
    FOR x IN SELECT y.mirror, y.row_id, crm._why_record_id(y.mirror, y.row_id) AS record_id FROM crm.xref y WHERE y.entity = thing AND y.mirror <> m.id AND y.merged_into IS NULL LOOP
        mirrors := mirrors || x.mirror;
        rows := rows || x.row_id;
        records := records || x.record_id;
    END LOOP;
    IF row_id IS NULL THEN
        RETURN QUERY VALUES ('record', 'differs', format('%I.%I has no row of %s', m.schema_name, m.table_name, asked), 'It is not in the CRM, was not copied yet, or the mirror does not take it.');
    ELSE
        RETURN QUERY SELECT * FROM crm._why_record(m, row_id);
        RETURN QUERY SELECT 'values', v.* FROM crm._why_values(m.id, row_id) v;
        RETURN QUERY SELECT * FROM crm._why_captured(m.id, row_id);
        RETURN QUERY SELECT * FROM crm._why_writes(mirrors, rows);
        RETURN QUERY SELECT * FROM crm._why_decisions(thing, mirrors, rows);
    END IF;
    RETURN QUERY SELECT * FROM crm._why_events(mirrors, rows, records);
    RETURN QUERY SELECT * FROM crm._why_references(mirrors, rows, records);
    RETURN QUERY SELECT * FROM crm._why_links(m, row_id);
    FOR o IN SELECT y.* FROM crm.mirror y WHERE y.id = ANY (mirrors) ORDER BY y.id <> m.id, y.id LOOP
        RETURN QUERY SELECT * FROM crm._why_mirror(o, rows[array_position(mirrors, o.id)]);
    END LOOP;
    RETURN QUERY SELECT * FROM crm._why_engine(ARRAY(SELECT DISTINCT y.server FROM crm.mirror y WHERE y.id = ANY (mirrors)));
END $$;
COMMENT ON FUNCTION crm._why(crm.mirror, bigint, text) IS 'All that is known of one row of a mirror, in the way or not.';

-- One record at a time: plans are the same for every one, and cost more than they find.
CREATE FUNCTION crm._why_told(m crm.mirror, row_id bigint, asked text, all_checks boolean)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN QUERY
    WITH c AS MATERIALIZED (SELECT w.*, row_number() OVER () AS n, array_position(ARRAY['stops', 'differs', 'waits', 'note', 'ok'], w.verdict) AS rank FROM crm._why(m, row_id, asked) w),
    s AS (SELECT min(c.rank) AS worst, coalesce(bool_or(c.verdict = 'differs' OR (c.verdict = 'stops' AND c.item IN ('values', 'outbox', 'dead letter', 'review', 'breaker', 'record', 'counterpart'))), false) AS apart,
                 coalesce(bool_or(c.rank = 3), false) AS waits,
                 count(*) FILTER (WHERE c.rank <= 3) AS reasons FROM c)
    SELECT x.item, x.verdict, x.detail, x.advice FROM (
        SELECT 'summary', CASE WHEN s.apart THEN 'not in sync' WHEN s.worst = 1 THEN 'stopped' WHEN s.worst = 3 THEN 'on its way' ELSE 'in sync' END,
               format('%I.%I %s: %s', m.schema_name, m.table_name, coalesce('row ' || row_id, asked),
                      CASE WHEN s.reasons = 0 THEN 'all values agree and nothing stands in the way'
                           WHEN s.worst = 1 AND NOT s.apart AND NOT s.waits THEN 'all values agree, but a change would not go through'
                           ELSE s.reasons || CASE s.reasons WHEN 1 THEN ' reason' ELSE ' reasons' END END),
               NULL::text, 0 AS rank, 0::bigint AS n FROM s
        UNION ALL SELECT c.item, c.verdict, c.detail, c.advice, c.rank, c.n FROM c WHERE all_checks OR c.rank <= 4) AS x (item, verdict, detail, advice, rank, n)
    ORDER BY x.rank, x.n;
END $$;
COMMENT ON FUNCTION crm._why_told(crm.mirror, bigint, text, boolean) IS 'The answer of crm.why: a summary, then the reasons, worst first.';

CREATE FUNCTION crm._why_mirror_named(mirror text) RETURNS crm.mirror
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._mirror_named(mirror);
    rel oid := crm._relation_of(m.schema_name, m.table_name);
BEGIN
    IF rel IS NULL THEN
        RAISE EXCEPTION 'the table of mirror % is missing', mirror USING ERRCODE = '42P01', DETAIL = 'It was dropped or renamed outside of pg_crm_sync.', HINT = format('SELECT crm.mirror_drop(%L); forgets the mirror.', mirror);
    ELSIF NOT has_table_privilege(rel, 'SELECT') THEN
        RAISE EXCEPTION 'permission denied for mirror %', mirror
            USING ERRCODE = '42501', DETAIL = 'The answer shows values of the record.', HINT = format('GRANT SELECT ON %I.%I TO %I;', m.schema_name, m.table_name, current_user);
    END IF;
    RETURN m;
END $$;
COMMENT ON FUNCTION crm._why_mirror_named(text) IS 'The mirror of that name, if the caller may read it; else raises.';

CREATE FUNCTION crm.why(mirror text, id text, all_checks boolean DEFAULT false)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._why_mirror_named(mirror);
    row bigint;
BEGIN
    IF coalesce(id, '') = '' OR length(id) > 1000 THEN
        RAISE EXCEPTION 'no record is named' USING ERRCODE = '22023', DETAIL = 'Expected the record''s id in the CRM, or the _id of its row.', HINT = format('For example SELECT * FROM crm.why(%L, ''101'');', mirror);
    END IF;
    EXECUTE format('SELECT t._id FROM %I.%I t WHERE t.id = $1', m.schema_name, m.table_name) INTO row USING id;
    IF row IS NULL AND id ~ '^#?[0-9]{1,18}$' THEN
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO row USING ltrim(id, '#')::bigint;
    END IF;
    RETURN QUERY SELECT * FROM crm._why_told(m, row, 'record ' || id, all_checks);
END $$;
COMMENT ON FUNCTION crm.why(text, text, boolean) IS 'Why is this record not in sync? A summary, then each reason with what to do; all_checks => true shows what was found in order too. id is the record''s id in the CRM, or else the _id of its row.';

CREATE FUNCTION crm.why(mirror text, _id bigint, all_checks boolean DEFAULT false)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._why_mirror_named(mirror);
    row bigint;
BEGIN
    EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO row USING _id;
    RETURN QUERY SELECT * FROM crm._why_told(m, row, coalesce('row ' || _id, 'a row without a number'), all_checks);
END $$;
COMMENT ON FUNCTION crm.why(text, bigint, boolean) IS 'The same for a row by its _id, for example one that has no record in the CRM yet.';
