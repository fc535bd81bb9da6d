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
            SELECT p.*, coalesce(p.le, p.re, nextval('crm.entity_seq')) AS entity FROM pair p WHERE p.clear
        ), linked AS (
            INSERT INTO crm.xref (mirror, row_id, entity, record_id)
            SELECT $2, left_ids[1], entity, left_record FROM thing WHERE le IS NULL
            UNION ALL SELECT $3, right_ids[1], entity, right_record FROM thing WHERE re IS NULL
        ), asked AS (
            INSERT INTO crm.review_item AS i (link, mirror, row_id, reason, candidates)
            SELECT $4, $2, p.left_ids[1], 'ambiguous match',
                   jsonb_build_object('field', p.field, 'key', p.match_key, 'left', to_jsonb(p.left_ids[1:20]), 'right', to_jsonb(p.right_ids[1:20]))
            FROM pair p WHERE NOT p.clear
            ON CONFLICT (link, mirror, row_id, field) DO UPDATE SET candidates = excluded.candidates WHERE i.candidates <> excluded.candidates
        )
        SELECT count(*) FILTER (WHERE clear), count(*) FILTER (WHERE NOT clear) FROM pair$f$,
        crm._table_of(k.left_mirror), crm._table_of(k.right_mirror))
    INTO matched, ambiguous USING k, k.left_mirror, k.right_mirror, k.name;
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
