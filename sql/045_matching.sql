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

CREATE FUNCTION crm._table_of(mirror integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', m.schema_name, m.table_name) FROM crm.mirror m WHERE m.id = $1
$$;
COMMENT ON FUNCTION crm._table_of(integer) IS 'Qualified, quoted table name of a mirror.';

CREATE FUNCTION crm._column_of(mirror integer, field text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(c.column_name) FROM crm.mirror_column c WHERE c.mirror = $1 AND c.field = $2
$$;
COMMENT ON FUNCTION crm._column_of(integer, text) IS 'Quoted column that holds a field.';

-- One statement whatever the number of keys: each key sees what the keys before
-- it left over. No temporary table: the worker calls this too.
CREATE FUNCTION crm._match_sql(k crm.link) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    side  CONSTANT text := $f$SELECT %1$s AS key, array_agg(t._id ORDER BY t._id) AS ids FROM %2$s t %5$s
        WHERE t._deleted_at IS NULL AND %1$s IS NOT NULL %6$s
          AND NOT EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = %3$s AND a.row_id = t._id AND b.mirror = %4$s)
        GROUP BY 1$f$;
    f     record;
    n     integer := 0;
    parts text[] := '{}';
    names text[] := '{}';
    seen  text[];
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL ORDER BY m.match_order, m.id LOOP
        SELECT array_agg(format('LEFT JOIN (SELECT unnest(%s) AS id FROM (%s) p) seen ON seen.id = t._id', c, 'SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ')))
        INTO seen FROM unnest(ARRAY['left_ids', 'right_ids']) AS c;
        parts := parts || format('k%s AS MATERIALIZED (SELECT %s::smallint AS key_order, %L::text AS field, l.key AS match_key, l.ids AS left_ids, r.ids AS right_ids FROM (%s) l JOIN (%s) r USING (key))',
            n, f.match_order, f.left_field,
            format(side, crm._match_expr('t.' || crm._column_of(k.left_mirror, f.left_field), f.to_left, f.to_right), crm._table_of(k.left_mirror),
                   k.left_mirror, k.right_mirror, CASE WHEN n > 0 THEN seen[1] END, CASE WHEN n > 0 THEN 'AND seen.id IS NULL' END),
            format(side, crm._match_expr('t.' || crm._column_of(k.right_mirror, f.right_field), f.to_left, f.to_right), crm._table_of(k.right_mirror),
                   k.right_mirror, k.left_mirror, CASE WHEN n > 0 THEN seen[2] END, CASE WHEN n > 0 THEN 'AND seen.id IS NULL' END));
        names := names || format('k%s', n);
        n := n + 1;
    END LOOP;
    IF n = 0 THEN
        RETURN 'SELECT NULL::smallint, NULL::text, NULL::text, NULL::bigint[], NULL::bigint[] WHERE false';
    END IF;
    RETURN 'WITH ' || array_to_string(parts, ', ') || ' SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ');
END $$;
COMMENT ON FUNCTION crm._match_sql(crm.link) IS 'The statement that groups rows of both mirrors by equal match keys, in the order of match_order.';

CREATE FUNCTION crm._match_groups(k crm.link)
RETURNS TABLE (key_order smallint, field text, match_key text, left_ids bigint[], right_ids bigint[])
LANGUAGE plpgsql ROWS 100000 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE crm._match_sql(k);
END $$;
COMMENT ON FUNCTION crm._match_groups(crm.link) IS 'Rows of both mirrors with equal match keys. One id on each side is a match; more are a question for a person.';

CREATE FUNCTION crm._match(link text, OUT matched bigint, OUT ambiguous bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link := crm._link_named(link);
BEGIN
    EXECUTE format($f$
        WITH g AS MATERIALIZED (SELECT * FROM crm._match_groups($1)),
        pair AS MATERIALIZED (
            SELECT g.field, g.match_key, g.left_ids, g.right_ids, l.id AS left_record, r.id AS right_record, xl.entity AS le, xr.entity AS re,
                   cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AND (xl.entity IS NULL OR xr.entity IS NULL) AS clear
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
            SELECT 'match', $4, $2, p.left_ids[1], 'ambiguous match',
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
        RETURNING 1
    )
    SELECT count(*) INTO cancelled FROM dropped;
    PERFORM crm._wake();
    RETURN format('link "%s" is gone: %s things untied, %s unsent writes cancelled; no value changed', k.name, freed, cancelled);
END $$;
COMMENT ON FUNCTION crm.unlink(text) IS 'Removes a link with its maps and policies. Values stay as they are on every side; unsent writes to the other side are cancelled, those in flight are finished.';

-- Whether both sides of a map hold the same, as SQL text over aliases l and r.
CREATE FUNCTION crm._map_equal(k crm.link, f crm.field_map) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l text := 'l.' || crm._column_of(k.left_mirror, f.left_field);
    r text := 'r.' || crm._column_of(k.right_mirror, f.right_field);
BEGIN
    RETURN CASE
        WHEN 'domain_of_url' IN (f.to_left, f.to_right) THEN format('%s IS NOT DISTINCT FROM %s', crm._match_expr(l, f.to_left, f.to_right), crm._match_expr(r, f.to_left, f.to_right))
        WHEN 'date_of' IN (f.to_left, f.to_right) THEN
            format('%s IS NOT DISTINCT FROM %s',
                   CASE WHEN f.to_right = 'date_of' THEN format('(%s AT TIME ZONE ''UTC'')::date', l) ELSE l END,
                   CASE WHEN f.to_left = 'date_of' THEN format('(%s AT TIME ZONE ''UTC'')::date', r) ELSE r END)
        WHEN f.value_map IS NOT NULL THEN format('coalesce(%L::jsonb ->> %s::text, %s::text) IS NOT DISTINCT FROM %s::text', f.value_map, l, l, r)
        WHEN (SELECT c.field_type FROM crm.mirror_column c WHERE c.mirror = k.left_mirror AND c.field = f.left_field) NOT IN ('text', 'reference')
        THEN format('%s IS NOT DISTINCT FROM %s', l, r)
        ELSE format('nullif(%s::text, '''') IS NOT DISTINCT FROM nullif(%s::text, '''')', l, r) END;
END $$;
COMMENT ON FUNCTION crm._map_equal(crm.link, crm.field_map) IS 'SQL text: do both sides of a field map hold the same value?';

-- What one side holds that the other cannot take: too long, or no counterpart.
CREATE FUNCTION crm._map_lossy(k crm.link, f crm.field_map, side text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    col   text := CASE side WHEN 'left' THEN 'l.' || crm._column_of(k.left_mirror, f.left_field) ELSE 'r.' || crm._column_of(k.right_mirror, f.right_field) END;
    most  integer := (SELECT c.max_length FROM crm.mirror_column c
                      WHERE (c.mirror, c.field) = (CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END, CASE side WHEN 'left' THEN f.right_field ELSE f.left_field END)
                        AND c.field_type = 'text');
    tests text[] := '{}';
BEGIN
    IF f.direction = (CASE side WHEN 'left' THEN 'to_left' ELSE 'to_right' END) THEN
        RETURN NULL;
    END IF;
    IF most IS NOT NULL AND f.value_map IS NULL THEN
        tests := tests || format('length(%s::text) > %s', col, most);
    END IF;
    IF f.value_map IS NOT NULL THEN
        tests := tests || CASE side WHEN 'left' THEN format('NOT %L::jsonb ? %s::text', f.value_map, col)
            ELSE format('%s::text <> ALL (%L::text[])', col, ARRAY(SELECT v FROM jsonb_each_text(f.value_map) AS e (x, v))) END;
    END IF;
    RETURN nullif(array_to_string(tests, ' OR '), '');
END $$;
COMMENT ON FUNCTION crm._map_lossy(crm.link, crm.field_map, text) IS 'SQL text: would a value of this side be cut or have no counterpart on the other? Null if it cannot happen.';

CREATE FUNCTION crm._preview_fields(k crm.link, left_ids bigint[], right_ids bigint[])
RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    lossy text;
    side  text;
    pairs text := format('unnest($1, $2) AS p (li, ri) JOIN %s l ON l._id = p.li JOIN %s r ON r._id = p.ri', crm._table_of(k.left_mirror), crm._table_of(k.right_mirror));
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name ORDER BY m.id LOOP
        RETURN QUERY EXECUTE format(
            'SELECT ''differs'', %L, count(*), min(left(concat_ws('' <> '', coalesce(l.%s::text, ''(empty)''), coalesce(r.%s::text, ''(empty)'')), 120)), %L FROM %s WHERE NOT (%s) HAVING count(*) > 0',
            f.left_field, crm._column_of(k.left_mirror, f.left_field), crm._column_of(k.right_mirror, f.right_field),
            'Stays as it is until one side changes.', pairs, crm._map_equal(k, f)) USING left_ids, right_ids;
        FOREACH side IN ARRAY ARRAY['left', 'right'] LOOP
            lossy := crm._map_lossy(k, f, side);
            IF lossy IS NOT NULL THEN
                RETURN QUERY EXECUTE format('SELECT ''lossy'', %L, count(*), min(left(%s::text, 120)), %L FROM %s %s WHERE %s._deleted_at IS NULL AND (%s) HAVING count(*) > 0',
                    CASE side WHEN 'left' THEN f.left_field ELSE f.right_field END,
                    CASE side WHEN 'left' THEN 'l.' || crm._column_of(k.left_mirror, f.left_field) ELSE 'r.' || crm._column_of(k.right_mirror, f.right_field) END,
                    CASE WHEN f.value_map IS NULL THEN 'Too long for the other side: shorten it, or map the field one way.' ELSE 'Has no counterpart in value_map: add it to crm.field_map.' END,
                    crm._table_of(CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END), left(side, 1), left(side, 1), lossy);
            END IF;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._preview_fields(crm.link, bigint[], bigint[]) IS 'Fields that differ between matched rows, and values that would be lost on the way.';

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
    l_fuzzy  bigint;
    r_fuzzy  bigint;
    samples  text[];
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
    FROM crm._match_groups(k) g, LATERAL (SELECT cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AS clear) c;
    RETURN QUERY VALUES
        ('rows', left_t, l_all, NULL, NULL),
        ('rows', right_t, r_all, NULL, NULL),
        ('matches', (SELECT string_agg(f.left_field, ', ' ORDER BY f.match_order) FROM crm.field_map f WHERE f.link = k.name AND f.match_order IS NOT NULL),
         cardinality(l_ids)::bigint, format('%s tied already', tied), 'Treated as one thing each.'),
        ('only ' || left_t, NULL, l_all - cardinality(l_ids) - l_fuzzy, NULL, CASE WHEN k.create_right THEN 'A counterpart is made in the other CRM when such a row changes or is new.' ELSE 'No counterpart is made.' END),
        ('only ' || right_t, NULL, r_all - cardinality(r_ids) - r_fuzzy, NULL, CASE WHEN k.create_left THEN 'A counterpart is made in the other CRM when such a row changes or is new.' ELSE 'No counterpart is made.' END),
        ('ambiguous', NULL, coalesce(cardinality(samples), 0)::bigint, array_to_string(samples[1:3], ', '), CASE WHEN samples IS NOT NULL THEN 'Several rows share a key: never tied by itself. Merge them in the CRM, or decide in crm.review.' END);
    RETURN QUERY SELECT d.* FROM crm._preview_duplicates(k) d;
    RETURN QUERY SELECT p.* FROM crm._preview_fields(k, l_ids, r_ids) p;
    RETURN QUERY SELECT 'would send', crm._table_of(w.mirror), count(*), min(left(w.vals::text, 120)), format('About %s API calls.', ceil(count(*) / 100.0))
                 FROM crm.write w WHERE w.mirror IN (k.left_mirror, k.right_mirror) AND w.state = 'would_send' GROUP BY w.mirror;
END $$;
COMMENT ON FUNCTION crm.preview(text) IS 'What going live would mean, before any write: matches, rows of one side only, ambiguities, duplicates, fields that differ, values that would be lost, writes that wait and their API calls.';

CREATE FUNCTION crm._preview_duplicates(k crm.link) RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
    s record;
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL ORDER BY m.match_order, m.id LOOP
        FOR s IN SELECT * FROM (VALUES (k.left_mirror, f.left_field), (k.right_mirror, f.right_field)) AS v (mirror, field) LOOP
            RETURN QUERY EXECUTE format('SELECT ''duplicates'', %L, sum(n)::bigint, min(key), ''Rows of one side with the same key: merge them in that CRM before going live.''
                FROM (SELECT %s AS key, count(*) AS n FROM %s t WHERE t._deleted_at IS NULL GROUP BY 1 HAVING count(*) > 1) d WHERE key IS NOT NULL HAVING count(*) > 0',
                crm._table_of(s.mirror) || '.' || s.field, crm._match_expr('t.' || crm._column_of(s.mirror, s.field), f.to_left, f.to_right), crm._table_of(s.mirror));
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._preview_duplicates(crm.link) IS 'Rows of one side that share a match key.';

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

CREATE FUNCTION crm.go_live(name text) RETURNS TABLE (what text, count bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k       crm.link;
    m       crm.mirror;
    mirrors integer[];
    undone  text;
    sent    bigint;
    tied    record;
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
    IF undone IS NOT NULL THEN
        RAISE EXCEPTION '"%" cannot go live before its first copy is done', name
            USING ERRCODE = '55000', DETAIL = 'Not done: ' || undone || '.', HINT = 'See crm.progress. Matching half a table would make duplicates of the other half.';
    END IF;
    PERFORM crm._fence_open();
    IF k.id IS NOT NULL THEN
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
    PERFORM crm._wake();
END $$;
COMMENT ON FUNCTION crm.go_live(text) IS 'Ends shadow mode of a link (and its mirrors) or of one mirror: ties matching rows, queues what would have been sent, and sends from now on. Activates this cluster if it never was.';
