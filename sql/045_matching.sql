-- Which rows of two mirrors are the same thing: matching, preview, going live.

-- The spelling under which a key field is compared, as SQL text, so that one
-- set-based statement matches any number of rows.
CREATE FUNCTION crm._match_expr(col text, to_left text, to_right text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN 'domain_of_url' IN (to_left, to_right)
        THEN format($f$nullif(regexp_replace(lower(btrim(%s::text)), '^([a-z]+://)?(www\.)?([^/:?#]*).*$', '\3'), '')$f$, col)
        ELSE format('nullif(lower(btrim(%s::text)), '''')', col) END
$$;
COMMENT ON FUNCTION crm._match_expr(text, text, text) IS 'SQL text of the normal form in which match keys are compared: case, blanks, and for domains scheme and www.';

CREATE FUNCTION crm._trgm(name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE name WHEN '%' THEN format('OPERATOR(%I.%%)', n.nspname) ELSE format('%I.%I', n.nspname, name) END
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'
$$;
COMMENT ON FUNCTION crm._trgm(text) IS 'SQL text of an operator or function of pg_trgm, wherever it is installed; null where it is not.';

-- Rows without partner under a key, for the join of one key.
CREATE FUNCTION crm._match_side(k crm.link, f crm.field_map, side text, seen text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %1$s AS key, t._id FROM %2$s t %5$s WHERE t._deleted_at IS NULL AND %1$s IS NOT NULL %6$s
        AND NOT EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = %3$s AND a.row_id = t._id AND b.mirror = %4$s)',
        crm._match_expr('t.' || crm._column_of(x.own, x.field), f.to_left, f.to_right), crm._scoped(x.own, x.scope), x.own, x.other,
        CASE WHEN seen IS NOT NULL THEN format('LEFT JOIN (SELECT unnest(%s_ids) AS id FROM (%s) p) seen ON seen.id = t._id', side, seen) END,
        CASE WHEN seen IS NOT NULL THEN 'AND seen.id IS NULL' END)
    FROM (SELECT CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END, CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END,
                 CASE side WHEN 'left' THEN f.left_field ELSE f.right_field END, CASE side WHEN 'left' THEN k.left_scope ELSE k.right_scope END) AS x (own, other, field, scope)
$$;
COMMENT ON FUNCTION crm._match_side(crm.link, crm.field_map, text, text) IS 'SQL text: rows of one side that take part in the link, have a key and no partner yet.';

-- By likeness each row of the left side is asked about by itself; it is certain
-- only where nobody else is alike.
CREATE FUNCTION crm._match_fuzzy_sql(f crm.field_map, l text, r text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %s::smallint AS key_order, %L::text AS field, c.key AS match_key, ARRAY[c.l] AS left_ids, array_agg(c.r ORDER BY c.alike DESC, c.r) AS right_ids,
            count(*) = 1 AND max(c.rivals) = 1 AND max(c.alike) >= %s AS certain
        FROM (SELECT l.key, l._id AS l, r._id AS r, %s(l.key, r.key) AS alike, count(*) OVER (PARTITION BY r._id) AS rivals
              FROM (%s) l JOIN (%s) r ON l.key %s r.key AND %s(l.key, r.key) >= %s) c
        GROUP BY c.l, c.key', f.match_order, f.left_field, coalesce(f.match_accept, 2), crm._trgm('similarity'), l, r, crm._trgm('%'), crm._trgm('similarity'), f.match_threshold)
$$;
COMMENT ON FUNCTION crm._match_fuzzy_sql(crm.field_map, text, text) IS 'SQL text of one key that is compared by likeness.';

-- One statement whatever the number of keys: each key sees what the keys before
-- it left over. No temporary table: the worker calls this too.
CREATE FUNCTION crm._match_sql(k crm.link) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    n     integer := 0;
    parts text[] := '{}';
    names text[] := '{}';
    seen  text;
    l     text;
    r     text;
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL ORDER BY m.match_threshold IS NOT NULL, NOT m.unique_key, m.match_order, m.id LOOP
        seen := 'SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ');
        l := crm._match_side(k, f, 'left', CASE WHEN n > 0 THEN seen END);
        r := crm._match_side(k, f, 'right', CASE WHEN n > 0 THEN seen END);
        IF f.match_threshold IS NULL THEN
            parts := parts || format('k%s AS MATERIALIZED (SELECT %s::smallint AS key_order, %L::text AS field, l.key AS match_key, l.ids AS left_ids, r.ids AS right_ids, true AS certain
                FROM (SELECT key, array_agg(_id ORDER BY _id) AS ids FROM (%s) x GROUP BY 1) l JOIN (SELECT key, array_agg(_id ORDER BY _id) AS ids FROM (%s) x GROUP BY 1) r USING (key))',
                n, f.match_order, f.left_field, l, r);
        ELSE
            parts := parts || format('k%s AS MATERIALIZED (%s)', n, crm._match_fuzzy_sql(f, l, r));
        END IF;
        names := names || format('k%s', n);
        n := n + 1;
    END LOOP;
    IF n = 0 THEN
        RETURN 'SELECT NULL::smallint, NULL::text, NULL::text, NULL::bigint[], NULL::bigint[], false WHERE false';
    END IF;
    RETURN 'WITH ' || array_to_string(parts, ', ') || ' SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ');
END $$;
COMMENT ON FUNCTION crm._match_sql(crm.link) IS 'The statement that groups rows of both mirrors by equal, then by alike match keys, in the order of match_order.';

-- Comparing everything with everything needs an index once it is much.
CREATE FUNCTION crm._fuzzy_bounds(k crm.link) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    pairs numeric;
    least real := (SELECT min(m.match_threshold) FROM crm.field_map m WHERE m.link = k.name);
BEGIN
    IF least IS NULL THEN
        RETURN;
    ELSIF crm._trgm('%') IS NULL THEN
        RAISE EXCEPTION 'likeness needs the extension pg_trgm'
            USING ERRCODE = '0A000', DETAIL = format('Link "%s" compares keys with match_threshold.', k.name), HINT = 'CREATE EXTENSION pg_trgm; or set match_threshold to null.';
    END IF;
    PERFORM set_config('pg_trgm.similarity_threshold', least::text, true);
    SELECT greatest(l.reltuples, 0)::numeric * greatest(r.reltuples, 0)::numeric INTO pairs
    FROM pg_class l, pg_class r WHERE l.oid = crm._table_of(k.left_mirror)::regclass AND r.oid = crm._table_of(k.right_mirror)::regclass;
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_threshold IS NOT NULL LOOP
        IF pairs > 100000000 AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0]
               WHERE i.indrelid = crm._table_of(k.right_mirror)::regclass AND i.indexprs IS NOT NULL AND o.opcname IN ('gin_trgm_ops', 'gist_trgm_ops')) THEN
            RAISE EXCEPTION 'comparing "%" by likeness would take % comparisons', f.left_field, pairs
                USING ERRCODE = '54000', DETAIL = 'Without an index every row is compared with every row of the other side.',
                      HINT = format('CREATE INDEX ON %s USING gin ((%s) %s);', crm._table_of(k.right_mirror),
                                    crm._match_expr(crm._column_of(k.right_mirror, f.right_field), f.to_left, f.to_right), crm._trgm('gin_trgm_ops'));
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._fuzzy_bounds(crm.link) IS 'Prepares comparing by likeness; refuses what would take too long, with the index that helps.';

CREATE FUNCTION crm._match_groups(k crm.link)
RETURNS TABLE (key_order smallint, field text, match_key text, left_ids bigint[], right_ids bigint[], certain boolean)
LANGUAGE plpgsql ROWS 100000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rules CONSTANT boolean[] := ARRAY(SELECT EXISTS (SELECT FROM crm.survivor_rule s WHERE s.link = k.name AND s.side = v) FROM unnest(ARRAY['left', 'right']) WITH ORDINALITY AS u (v, n) ORDER BY n);
BEGIN
    PERFORM crm._fuzzy_bounds(k);
    RETURN QUERY EXECUTE format('SELECT g.key_order, g.field, g.match_key, %s, %s, g.certain FROM (%s) AS g (key_order, field, match_key, left_ids, right_ids, certain)',
        CASE WHEN rules[1] THEN 'CASE WHEN g.certain AND cardinality(g.left_ids) > 1 THEN coalesce((SELECT ARRAY[s.survivor] FROM crm._survivor($1, ''left'', g.left_ids) s WHERE s.survivor IS NOT NULL), g.left_ids) ELSE g.left_ids END' ELSE 'g.left_ids' END,
        CASE WHEN rules[2] THEN 'CASE WHEN g.certain AND cardinality(g.right_ids) > 1 THEN coalesce((SELECT ARRAY[s.survivor] FROM crm._survivor($1, ''right'', g.right_ids) s WHERE s.survivor IS NOT NULL), g.right_ids) ELSE g.right_ids END' ELSE 'g.right_ids' END,
        crm._match_sql(k)) USING k;
END $$;
COMMENT ON FUNCTION crm._match_groups(crm.link) IS 'Rows of both mirrors with equal or alike match keys. One id on each side, and certain, is a match; others are a question for a person.';

CREATE FUNCTION crm._match(link text, OUT matched bigint, OUT ambiguous bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link := crm._link_named(link);
BEGIN
    EXECUTE format($f$
        WITH g AS MATERIALIZED (SELECT * FROM crm._match_groups($1)),
        pair AS MATERIALIZED (
            SELECT g.field, g.match_key, g.left_ids, g.right_ids, l.id AS left_record, r.id AS right_record, xl.entity AS le, xr.entity AS re, g.certain,
                   g.certain AND cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AND (xl.entity IS NULL OR xr.entity IS NULL) AS clear
            FROM g
            JOIN %1$s l ON l._id = g.left_ids[1] JOIN %2$s r ON r._id = g.right_ids[1]
            LEFT JOIN crm.xref xl ON xl.mirror = $2 AND xl.row_id = g.left_ids[1]
            LEFT JOIN crm.xref xr ON xr.mirror = $3 AND xr.row_id = g.right_ids[1]
        ), thing AS MATERIALIZED (
            -- In the order of rows, so that the indexes of crm.xref fill their pages.
            SELECT p.*, coalesce(p.le, p.re, nextval('crm.entity_seq')) AS entity FROM (SELECT * FROM pair WHERE clear ORDER BY left_ids[1]) p
        ), linked AS (
            INSERT INTO crm.xref (mirror, row_id, entity)
            SELECT * FROM (SELECT $2 AS mirror, left_ids[1], entity FROM thing WHERE le IS NULL
                           UNION ALL SELECT $3, right_ids[1], entity FROM thing WHERE re IS NULL) r ORDER BY entity, mirror
        ), asked AS (
            INSERT INTO crm.review_item AS i (kind, link, mirror, row_id, reason, candidates)
            SELECT 'match', $4, $2, p.left_ids[1], CASE WHEN p.certain THEN 'ambiguous match' ELSE 'match by likeness' END,
                   jsonb_build_object('field', p.field, 'key', p.match_key, 'left', to_jsonb(p.left_ids[1:20]), 'right', to_jsonb(p.right_ids[1:20]))
            FROM pair p WHERE NOT p.clear
            ON CONFLICT (kind, link, mirror, row_id) WHERE kind <> 'field' DO UPDATE SET candidates = excluded.candidates, changed_at = now(), resolution = NULL
            WHERE i.candidates <> excluded.candidates
        )
        SELECT count(*) FILTER (WHERE clear), count(*) FILTER (WHERE NOT clear) FROM pair$f$,
        crm._table_of(k.left_mirror), crm._table_of(k.right_mirror))
    INTO matched, ambiguous USING k, k.left_mirror, k.right_mirror, k.name;
    -- Questions that a merge in the CRM has answered meanwhile.
    DELETE FROM crm.review_item r WHERE r.link = k.name AND r.kind = 'match' AND r.resolution IS NULL
        AND EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror WHERE a.mirror = r.mirror AND a.row_id = r.row_id);
    UPDATE crm.link x SET matched_at = clock_timestamp() WHERE x.id = k.id;
END $$;
COMMENT ON FUNCTION crm._match(text) IS 'Ties rows of both mirrors with equal, unambiguous keys (crm.xref); the others become questions in crm.review.';

CREATE FUNCTION crm.unlink(name text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k         crm.link := crm._link_named(name);
    cancelled bigint;
    freed     bigint;
BEGIN
    DELETE FROM crm.conflict_policy p WHERE p.link = k.name;
    PERFORM crm._review_noted(r, 'ended', 'ended', NULL, format('link "%s" was removed', k.name)) FROM crm.review_item r WHERE r.link = k.name;
    DELETE FROM crm.review_item r WHERE r.link = k.name;
    DELETE FROM crm.link x WHERE x.id = k.id;
    -- Things keep their tie while another link of the group needs it.
    WITH loose AS (
        SELECT m AS mirror FROM unnest(ARRAY[k.left_mirror, k.right_mirror]) AS m
        WHERE NOT EXISTS (SELECT FROM crm.link x WHERE m IN (x.left_mirror, x.right_mirror))
    ), gone AS (
        DELETE FROM crm.xref x USING loose l WHERE x.mirror = l.mirror RETURNING x.entity
    ), state AS (
        DELETE FROM crm.field_state s USING gone g WHERE s.entity = g.entity
    )
    SELECT count(DISTINCT entity) INTO freed FROM gone;
    -- What an entity without a partner still had to send on behalf of the other side.
    WITH dropped AS (
        DELETE FROM crm.write w
        WHERE w.mirror IN (k.left_mirror, k.right_mirror) AND w.state IN ('queued', 'would_send', 'held') AND w.origin <> 'local'
          AND w.entity IS NOT NULL AND NOT EXISTS (SELECT FROM crm.xref x WHERE x.entity = w.entity AND x.mirror <> w.mirror)
        RETURNING w.*
    ), noted AS (
        INSERT INTO crm.given_up (kind, mirror, row_id, record_id, entity, tx, fields, new_values, decision)
        SELECT 'discard', d.mirror, d.row_id, d.record_id, d.entity, d.txs[1], f.names, f.vals, coalesce(crm._lost('unlinked', ROW(d.*)::crm.write), '[{"step": "unlinked"}]')
        FROM dropped d LEFT JOIN LATERAL (SELECT array_agg(v.key ORDER BY v.key) AS names, array_agg(v.value ORDER BY v.key) AS vals FROM jsonb_each_text(d.vals) v) f ON true
    )
    SELECT count(*) INTO cancelled FROM dropped;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN format('link "%s" is gone: %s things untied, %s unsent writes cancelled; no value changed', k.name, freed, cancelled);
END $$;
COMMENT ON FUNCTION crm.unlink(text) IS 'Removes a link with its maps and policies. Values stay as they are on every side; unsent writes to the other side are cancelled, those in flight are finished. Open questions of the link end: each has a line in crm.review_history.';

CREATE FUNCTION crm.preview(link text) RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k        crm.link := crm._link_named(link);
    left_t   text := crm._table_of(k.left_mirror);
    right_t  text := crm._table_of(k.right_mirror);
    l_ids    bigint[];
    r_ids    bigint[];
    tied     bigint;
    l_all    bigint;
    r_all    bigint;
    l_in     bigint;
    r_in     bigint;
    l_only   bigint;
    r_only   bigint;
    l_fuzzy  bigint;
    r_fuzzy  bigint;
    samples  text[];
    counting CONSTANT text := 'SELECT count(*), count(*) FILTER (WHERE m.i IS NULL) FROM %s t LEFT JOIN (SELECT DISTINCT unnest($1)) m (i) ON m.i = t._id WHERE t._deleted_at IS NULL';
    open     text := (SELECT string_agg(crm._table_of(b.mirror) || ' ' || b.state, ', ') FROM crm.backfill b WHERE b.mirror IN (k.left_mirror, k.right_mirror) AND b.state <> 'done');
BEGIN
    IF open IS NOT NULL THEN
        RETURN QUERY SELECT 'incomplete', NULL, NULL::bigint, open, 'The first copy is not finished: figures below will change. See crm.progress.';
    END IF;
    EXECUTE format('SELECT (SELECT count(*) FROM %s WHERE _deleted_at IS NULL), (SELECT count(*) FROM %s WHERE _deleted_at IS NULL)', left_t, right_t) INTO l_all, r_all;
    SELECT array_agg(a.row_id), array_agg(b.row_id), count(*) INTO l_ids, r_ids, tied
    FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = k.left_mirror AND b.mirror = k.right_mirror;
    SELECT coalesce(l_ids, '{}') || coalesce(array_agg(g.left_ids[1]) FILTER (WHERE c.clear), '{}'), coalesce(r_ids, '{}') || coalesce(array_agg(g.right_ids[1]) FILTER (WHERE c.clear), '{}'),
           coalesce(sum(cardinality(g.left_ids)) FILTER (WHERE NOT c.clear), 0), coalesce(sum(cardinality(g.right_ids)) FILTER (WHERE NOT c.clear), 0),
           array_agg(g.match_key) FILTER (WHERE NOT c.clear)
    INTO l_ids, r_ids, l_fuzzy, r_fuzzy, samples
    FROM crm._match_groups(k) g, LATERAL (SELECT g.certain AND cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AS clear) c;
    EXECUTE format(counting, crm._scoped(k.left_mirror, k.left_scope)) INTO l_in, l_only USING l_ids;
    EXECUTE format(counting, crm._scoped(k.right_mirror, k.right_scope)) INTO r_in, r_only USING r_ids;
    RETURN QUERY VALUES
        ('rows', left_t, l_all, NULL, NULL),
        ('rows', right_t, r_all, NULL, NULL),
        ('matches', (SELECT string_agg(f.left_field, ', ' ORDER BY f.match_order) FROM crm.field_map f WHERE f.link = k.name AND f.match_order IS NOT NULL),
         cardinality(l_ids)::bigint, format('%s tied already', tied), 'Treated as one thing each.'),
        ('only ' || left_t, NULL, l_only - l_fuzzy, NULL, CASE WHEN k.create_right THEN 'Of rows that are new a counterpart is made in the other CRM; these have none.' ELSE 'No counterpart is made.' END),
        ('only ' || right_t, NULL, r_only - r_fuzzy, NULL, CASE WHEN k.create_left THEN 'Of rows that are new a counterpart is made in the other CRM; these have none.' ELSE 'No counterpart is made.' END),
        ('ambiguous', NULL, coalesce(cardinality(samples), 0)::bigint, array_to_string(samples[1:3], ', '), CASE WHEN samples IS NOT NULL THEN 'Several rows share a key, or are only alike: never tied by itself. Merge them in the CRM, add crm.survivor_rule, or decide in crm.review.' END);
    RETURN QUERY SELECT 'out of scope', o.mirror, o.rows, o.scope, 'Such rows are not there for the other side: not matched, nothing is made of them.'
                 FROM (VALUES (left_t, l_all - l_in, k.left_scope), (right_t, r_all - r_in, k.right_scope)) AS o (mirror, rows, scope) WHERE o.rows > 0;
    RETURN QUERY SELECT d.* FROM crm._preview_duplicates(k) d;
    RETURN QUERY SELECT p.* FROM crm._preview_fields(k, l_ids, r_ids) p;
    RETURN QUERY SELECT c.problem, c.mirror || '.' || c.field, c.count, left(c.examples[1], 120), c.advice FROM crm.check_mapping(k.name) c;
    RETURN QUERY SELECT 'would send', crm._table_of(w.mirror), count(*), min(left(w.vals::text, 120)), format('About %s API calls.', ceil(count(*) / 100.0))
                 FROM crm.write w WHERE w.mirror IN (k.left_mirror, k.right_mirror) AND w.state = 'would_send' GROUP BY w.mirror;
END $$;
COMMENT ON FUNCTION crm.preview(text) IS 'What going live would mean, before any write: matches, rows of one side only, ambiguities, duplicates, fields that differ, values that would be lost, writes that wait and their API calls.';

CREATE FUNCTION crm._preview_duplicates(k crm.link) RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'duplicates', d.mirror || '.' || d.field, sum(cardinality(d.rows))::bigint, min(d.match_key),
           format('Rows of one side with the same key: SELECT * FROM crm.duplicates(%L); %s of %s stand by crm.survivor_rule, merge the others in that CRM before going live.',
                  k.name, count(d.survivor), count(*))
    FROM crm.duplicates(k.name) d GROUP BY d.mirror, d.field ORDER BY 2
$$;
COMMENT ON FUNCTION crm._preview_duplicates(crm.link) IS 'Rows of one side that share a match key, counted.';

CREATE FUNCTION crm._fence_open() RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
BEGIN
    SELECT * INTO f FROM crm.fence_status();
    IF f.state = 'never' THEN
        RETURN crm.activate();
    ELSIF f.state = 'inert' THEN
        RAISE EXCEPTION 'this cluster may not write to CRMs: %', f.reason
            USING ERRCODE = '55000', DETAIL = 'Two clusters that both write to one account undo each other''s work.',
                  HINT = 'If the original is gone for good: SELECT crm.activate(); then call again.';
    END IF;
    RETURN 'active already';
END $$;
COMMENT ON FUNCTION crm._fence_open() IS 'Activates a cluster that never was; raises on a copy.';

CREATE FUNCTION crm.go_live(name text, settle boolean DEFAULT false) RETURNS TABLE (what text, count bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k       crm.link;
    m       crm.mirror;
    mirrors integer[];
    undone  text;
    sent    bigint;
    tied    record;
    differ  bigint;
BEGIN
    SELECT * INTO k FROM crm.link x WHERE x.name = go_live.name;
    IF FOUND THEN
        mirrors := ARRAY[k.left_mirror, k.right_mirror];
    ELSE
        IF name IS NULL OR strpos(name, '.') = 0 THEN
            k := crm._link_named(name);
        END IF;
        m := crm._mirror_named(name);
        mirrors := ARRAY[m.id];
    END IF;
    SELECT string_agg(crm._table_of(x.id) || ' (backfill ' || coalesce(b.state, 'missing') || coalesce(': ' || b.error, '') || ')', ', ') INTO undone
    FROM crm.mirror x LEFT JOIN crm.backfill b ON b.mirror = x.id WHERE x.id = ANY (mirrors) AND b.state IS DISTINCT FROM 'done';
    IF settle AND k.id IS NULL THEN
        RAISE EXCEPTION 'one mirror has nothing to settle' USING ERRCODE = '22023', DETAIL = format('%s is a mirror; records differ between the two of a link.', name), HINT = 'SELECT name FROM crm.link;';
    ELSIF undone IS NOT NULL THEN
        RAISE EXCEPTION '"%" cannot go live before its first copy is done', name
            USING ERRCODE = '55000', DETAIL = 'Not done: ' || undone || '.', HINT = 'See crm.progress. Matching half a table would make duplicates of the other half.';
    END IF;
    PERFORM crm._fence_open();
    IF k.id IS NOT NULL THEN
        RAISE NOTICE 'link "%" goes live as mapped', k.name USING HINT = format('What would be lost on the way: SELECT * FROM crm.check_mapping(%L);', k.name);
        SELECT * INTO tied FROM crm._match(k.name);
        RETURN QUERY VALUES ('matched', tied.matched), ('ambiguous', tied.ambiguous);
        UPDATE crm.link x SET mode = 'live' WHERE x.id = k.id;
    END IF;
    UPDATE crm.mirror x SET mode = 'live' WHERE x.id = ANY (mirrors) AND x.mode = 'shadow';
    -- The worker lets them go, and notes on the rows and in crm.field_state what it then waits for.
    SELECT count(*) INTO sent FROM crm.write w JOIN crm.mirror x ON x.id = w.mirror
    WHERE x.id = ANY (mirrors) AND x.mode = 'live' AND w.state = 'would_send';
    INSERT INTO crm.config_change DEFAULT VALUES;
    RETURN QUERY VALUES ('writes queued', sent);
    IF settle THEN
        SELECT coalesce(sum(d.count), 0) INTO differ FROM crm.differences(k.name) d;
        PERFORM crm.policy_apply(k.name);
        RETURN QUERY VALUES ('differences to settle', differ);
    END IF;
    PERFORM crm._wake();
END $$;
COMMENT ON FUNCTION crm.go_live(text, boolean) IS 'Ends shadow mode of a link (and its mirrors) or of one mirror: ties matching rows, queues what would have been sent, and sends from now on. With settle => true the worker also decides by policy what differed before (crm.differences counts it beforehand). Activates this cluster if it never was.';
