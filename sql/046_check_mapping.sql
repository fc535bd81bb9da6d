-- What a link's maps would lose, found in the rows as they are, before anything
-- is sent.

CREATE FUNCTION crm._canonical_sql(mirror integer, field text, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(CASE crm._sql_type(c.field_type) WHEN 'timestamp with time zone' THEN 'to_char(%1$s.%2$I AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'')'
                       WHEN 'text[]' THEN 'array_to_string(%1$s.%2$I, '';'')' WHEN 'text' THEN 'nullif(%1$s.%2$I, '''')' ELSE '%1$s.%2$I::text' END, alias, c.column_name)
    FROM crm.mirror_column c WHERE c.mirror = $1 AND c.field = $2
$$;
COMMENT ON FUNCTION crm._canonical_sql(integer, text, text) IS 'SQL text: a column as the one spelling in which the worker compares values.';

CREATE FUNCTION crm._map_fields(m crm.field_map, side text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE side WHEN 'left' THEN m.left_field || m.left_more ELSE m.right_field || m.right_more END
$$;
COMMENT ON FUNCTION crm._map_fields(crm.field_map, text) IS 'The fields of one side of a map, in order.';

CREATE FUNCTION crm._cells_sql(mirror integer, fields text[], alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('ARRAY[%s]::text[]', string_agg(crm._canonical_sql($1, f, alias), ', ' ORDER BY n)) FROM unnest(fields) WITH ORDINALITY AS x (f, n)
$$;
COMMENT ON FUNCTION crm._cells_sql(integer, text[], text) IS 'SQL text: the columns of a map''s side as an array of text.';

CREATE FUNCTION crm._map_call_sql(f text, expr text, result_type text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(CASE result_type WHEN 'timestamp with time zone' THEN 'nullif(to_char(%s(%s) AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"''), '''')'
                                   WHEN 'text[]' THEN 'nullif(array_to_string(%s(%s), '';''), '''')' ELSE 'nullif((%s(%s))::text, '''')' END,
                  left(f, strpos(f, '(') - 1), CASE a.arg WHEN 'text' THEN expr WHEN 'text[]' THEN format('string_to_array(%s, '';'')', expr) ELSE format('(%s)::%s', expr, a.arg) END)
    FROM (SELECT substr(f, strpos(f, '(') + 1, length(f) - strpos(f, '(') - 1) AS arg) a
$$;
COMMENT ON FUNCTION crm._map_call_sql(text, text, text) IS 'SQL text: the image of a value under a function of a map, in canonical text.';

-- A function is called as who asks; one value that it refuses does not end the check.
CREATE FUNCTION crm._map_call(f text, value text, result_type text, OUT image text, OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE 'SELECT ' || crm._map_call_sql(f, '$1', result_type) INTO image USING value;
EXCEPTION WHEN OTHERS THEN
    problem := format('%s (%s)', sqlerrm, sqlstate);
END $$;
COMMENT ON FUNCTION crm._map_call(text, text, text) IS 'The image of a value under a function of a map, or why there is none.';

-- All at once; where one is refused, one by one.
CREATE FUNCTION crm._map_calls(f text, vals text[], result_type text) RETURNS TABLE (value text, image text, problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    images text[];
BEGIN
    BEGIN
        EXECUTE format('SELECT array_agg(%s ORDER BY x.n) FROM unnest($1) WITH ORDINALITY AS x (v, n)', crm._map_call_sql(f, 'x.v', result_type)) INTO images USING vals;
    EXCEPTION WHEN OTHERS THEN
        RETURN QUERY SELECT v, c.image, c.problem FROM unnest(vals) v, LATERAL crm._map_call(f, v, result_type) c;
        RETURN;
    END;
    RETURN QUERY SELECT u.v, u.i, NULL::text FROM unnest(vals, images) AS u (v, i);
END $$;
COMMENT ON FUNCTION crm._map_calls(text, text[], text) IS 'The images of values under a function of a map, or why there are none.';

CREATE FUNCTION crm._map_image(k crm.link, m crm.field_map, side text, cells text[], OUT image text[], OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    transform text := CASE side WHEN 'left' THEN m.to_right ELSE m.to_left END;
    words     jsonb;
    one       text;
BEGIN
    IF m.structure IS NOT NULL THEN
        image := crm._map_cells(m.structure, cells, cardinality(crm._map_fields(m, CASE side WHEN 'left' THEN 'right' ELSE 'left' END)));
        RETURN;
    ELSIF cells[1] IS NULL THEN
        image := ARRAY[NULL::text];
        RETURN;
    ELSIF transform LIKE '%(%' THEN
        SELECT c.image, c.problem INTO one, problem
        FROM crm._map_call(transform, cells[1], (SELECT crm._sql_type(c.field_type) FROM crm.mirror_column c WHERE (c.mirror, c.field) =
             (CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END, CASE side WHEN 'left' THEN m.right_field ELSE m.left_field END))) c;
    ELSE
        IF m.value_map IS NOT NULL THEN
            words := CASE side WHEN 'left' THEN m.value_map
                     ELSE coalesce((SELECT jsonb_object_agg(v, f) FROM jsonb_each_text(m.value_map) AS e (f, v)), '{}') || coalesce(m.value_map_back, '{}') END;
        END IF;
        SELECT v.image, v.problem INTO one, problem FROM crm._map_value(transform, words, cells[1]) v;
    END IF;
    image := ARRAY[one];
END $$;
COMMENT ON FUNCTION crm._map_image(crm.link, crm.field_map, text, text[]) IS 'What the cells of one side (left or right) become on the other, or why nothing does.';

CREATE FUNCTION crm._map_trivial(m crm.field_map) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.to_left = 'identity' AND m.to_right = 'identity' AND m.value_map IS NULL AND m.structure IS NULL
$$;
COMMENT ON FUNCTION crm._map_trivial(crm.field_map) IS 'Whether a map takes values over as they are.';

-- What the other side takes: per cell its longest text, choices and whether it must be filled.
CREATE FUNCTION crm._map_target(mirror integer, fields text[], "default" text, OUT longest integer[], OUT choices jsonb, OUT needed boolean[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(CASE WHEN c.field_type = 'text' THEN c.max_length END ORDER BY n),
           jsonb_agg(CASE WHEN r.restricted AND jsonb_array_length(r.options) > 0 THEN (SELECT jsonb_agg(o ->> 'value') FROM jsonb_array_elements(r.options) o) END ORDER BY n),
           array_agg(c.required AND "default" IS NULL ORDER BY n)
    FROM unnest(fields) WITH ORDINALITY AS x (f, n)
    JOIN crm.mirror_column c ON c.mirror = $1 AND c.field = f
    JOIN crm.mirror m ON m.id = c.mirror
    LEFT JOIN crm.remote_field r ON r.server = m.server AND r.object = m.object AND r.field = f
$$;
COMMENT ON FUNCTION crm._map_target(integer, text[], text) IS 'What the fields of one side take, per field.';

CREATE FUNCTION crm._choice_missing(choices jsonb, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_typeof(choices) = 'array' AND value IS NOT NULL AND NOT choices ? value AND EXISTS (SELECT FROM unnest(string_to_array(value, ';')) c WHERE NOT choices ? c)
$$;
COMMENT ON FUNCTION crm._choice_missing(jsonb, text) IS 'Whether a value, or one of several, is none of a field''s choices.';

-- Joins to a relation's cells their image f(image, problem); $1 and $2 are link and map.
CREATE FUNCTION crm._images_sql(k crm.link, m crm.field_map, side text, source text, cells text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN crm._map_trivial(m) THEN format('CROSS JOIN LATERAL (SELECT %I.%I AS image, NULL::text AS problem) f', source, cells)
        WHEN x.transform LIKE '%(%' THEN
            format('LEFT JOIN crm._map_calls(%1$L, (SELECT array_agg(DISTINCT w.%3$I[1]) FROM %2$I w WHERE w.%3$I[1] IS NOT NULL), %4$L) c ON c.value = %2$I.%3$I[1]
                    CROSS JOIN LATERAL (SELECT ARRAY[c.image] AS image, c.problem) f', x.transform, source, cells, x.result_type)
        ELSE format('CROSS JOIN LATERAL crm._map_image($1, $2, %L, %I.%I) f', side, source, cells) END
    FROM (SELECT CASE side WHEN 'left' THEN m.to_right ELSE m.to_left END AS transform,
                 (SELECT crm._sql_type(c.field_type) FROM crm.mirror_column c
                  WHERE (c.mirror, c.field) = (CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END, CASE side WHEN 'left' THEN m.right_field ELSE m.left_field END)) AS result_type) x
$$;
COMMENT ON FUNCTION crm._images_sql(crm.link, crm.field_map, text, text, text) IS 'SQL text: what the cells of one side become on the other, joined to a relation of them.';

-- A map that takes values over as they are can only lose what the other side
-- does not take: the rows are filtered for that before they are counted.
CREATE FUNCTION crm._check_suspect(own integer, there integer, m crm.field_map, side text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cell   text := crm._canonical_sql(own, CASE side WHEN 'left' THEN m.left_field ELSE m.right_field END, 't');
    target record;
BEGIN
    IF NOT crm._map_trivial(m) THEN
        RETURN 'true';
    END IF;
    SELECT * INTO target FROM crm._map_target(there, ARRAY[CASE side WHEN 'left' THEN m.right_field ELSE m.left_field END], CASE side WHEN 'left' THEN m.default_right ELSE m.default_left END);
    RETURN coalesce(nullif(concat_ws(' OR ', format('length(%s) > %s', cell, target.longest[1]),
        CASE WHEN jsonb_typeof(target.choices -> 0) = 'array' THEN format('%s <> ALL (%L::text[])', cell, ARRAY(SELECT jsonb_array_elements_text(target.choices -> 0))) END,
        CASE WHEN target.needed[1] THEN format('%s IS NULL', cell) END), ''), 'false');
END $$;
COMMENT ON FUNCTION crm._check_suspect(integer, integer, crm.field_map, text) IS 'SQL text: which rows of one side a map could lose something of.';

-- One direction of one map: every different value once, the commonest first, at
-- most 100,000 of them.
CREATE FUNCTION crm._check_map(k crm.link, m crm.field_map, side text)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own    integer := CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    there  integer := CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END;
    other  text := CASE side WHEN 'left' THEN 'right' ELSE 'left' END;
    fields text[] := crm._map_fields(m, side);
    target record;
    back   boolean := m.direction = 'both' AND NOT crm._map_trivial(m);
BEGIN
    SELECT * INTO target FROM crm._map_target(there, crm._map_fields(m, other), CASE other WHEN 'left' THEN m.default_left ELSE m.default_right END);
    IF crm._map_trivial(m) AND NOT true = ANY (target.needed) AND array_remove(target.longest, NULL) = '{}' AND NOT target.choices @? '$[*] ? (@ != null)' THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($f$
        WITH v AS MATERIALIZED (
            SELECT s.cells, count(*) AS n FROM (SELECT %1$s AS cells FROM %2$s t WHERE t._deleted_at IS NULL AND (%5$s)) s GROUP BY 1 ORDER BY 2 DESC LIMIT 100000
        ), i AS MATERIALIZED (
            SELECT v.cells, v.n, f.image, f.problem, array_to_string(v.cells, ' | ') AS shown, array_to_string(f.image, ' | ') AS becomes FROM v %3$s
        ), b AS MATERIALIZED (
            SELECT i.*, %4$s AS back FROM i %6$s
        ), found AS (
            SELECT 'no counterpart' AS problem, b.n, b.shown || ': ' || b.problem AS example FROM b WHERE b.problem IS NOT NULL
            UNION ALL
            SELECT 'lossy', b.n, format('%%s -> %%s -> %%s', b.shown, b.becomes, array_to_string(b.back, ' | ')) FROM b
            WHERE b.problem IS NULL AND b.back IS NOT NULL AND array_to_string(b.cells, E'\x1f', '') <> array_to_string(b.back, E'\x1f', '')
            UNION ALL
            SELECT 'too long', b.n, left(c.cell, 60) FROM b, unnest(b.image, $4::integer[]) AS c (cell, longest) WHERE length(c.cell) > c.longest
            UNION ALL
            SELECT 'not a choice', b.n, concat_ws(' -> ', b.shown, nullif(b.becomes, b.shown)) FROM b, unnest(b.image) WITH ORDINALITY AS c (cell, place) WHERE crm._choice_missing($5 -> (c.place - 1)::integer, c.cell)
            UNION ALL
            SELECT 'required', b.n, coalesce(nullif(b.shown, ''), '(empty)') FROM b, unnest(b.image, $6::boolean[]) AS c (cell, needed) WHERE c.needed AND c.cell IS NULL AND b.problem IS NULL
        )
        SELECT f.problem, $7, $8, sum(f.n)::bigint, (array_agg(f.example ORDER BY f.n DESC, f.example))[1:5], crm._check_advice(f.problem, $9) FROM found f GROUP BY f.problem ORDER BY 1$f$,
        crm._cells_sql(own, fields, 't'), crm._scoped(own, CASE side WHEN 'left' THEN k.left_scope ELSE k.right_scope END), crm._images_sql(k, m, side, 'v', 'cells'),
        CASE WHEN back THEN 'CASE WHEN i.problem IS NULL THEN f.image END' ELSE 'NULL::text[]' END, crm._check_suspect(own, there, m, side),
        CASE WHEN back THEN crm._images_sql(k, m, other, 'i', 'image') END)
    USING k, m, side, target.longest, target.choices, target.needed, crm._table_of(own), array_to_string(fields, ', '), other;
END $$;
COMMENT ON FUNCTION crm._check_map(crm.link, crm.field_map, text) IS 'What one direction of a map would lose, from the rows of the side it starts from.';

CREATE FUNCTION crm._check_advice(problem text, other text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE problem
        WHEN 'no counterpart' THEN 'Such values do not travel: add them to value_map, or mend the function.'
        WHEN 'lossy' THEN 'Comes back as another value. What stands there is kept while the other side is not changed; map it one way if that is wrong.'
        WHEN 'too long' THEN 'Would be cut there: shorten it, or map the field one way.'
        WHEN 'not a choice' THEN 'The other CRM would refuse it: add the choice there, or name another in value_map.'
        WHEN 'required' THEN format('The other CRM refuses records without it: set default_%s.', other) END
$$;
COMMENT ON FUNCTION crm._check_advice(text, text) IS 'What to do about a problem of crm.check_mapping.';

-- What concerns the link as a whole.
CREATE FUNCTION crm._check_link(k crm.link)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'no key', NULL::text, NULL::text, NULL::bigint, NULL::text[], 'No field identifies records: nothing is matched, everything is made twice. Set match_order in crm.field_map.'
    WHERE NOT EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND f.match_order IS NOT NULL)
    UNION ALL
    SELECT 'required', crm._table_of(c.mirror), c.field, NULL, NULL,
           format('New records need it and nothing is mapped to it: INSERT INTO crm.field_default VALUES (%L, %L, %L, …); or map it.', k.name, s.side, c.field)
    FROM (VALUES ('left', k.left_mirror, k.create_left), ('right', k.right_mirror, k.create_right)) AS s (side, mirror, makes)
    JOIN crm.mirror_column c ON c.mirror = s.mirror AND c.required AND NOT c.read_only
    WHERE s.makes
      AND NOT EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND f.direction <> CASE s.side WHEN 'left' THEN 'to_right' ELSE 'to_left' END AND c.field = ANY (crm._map_fields(f, s.side)))
      AND NOT EXISTS (SELECT FROM crm.field_default d WHERE d.link = k.name AND d.side = s.side AND d.field = c.field)
    UNION ALL
    SELECT 'type', crm._table_of(k.left_mirror), f.left_field, NULL, ARRAY[format('%s (%s), %s (%s)', l.field, l.field_type, r.field, r.field_type)], crm._map_problem(l, r, f.to_left, f.to_right)
    FROM crm.field_map f JOIN crm.mirror_column l ON l.mirror = k.left_mirror AND l.field = f.left_field JOIN crm.mirror_column r ON r.mirror = k.right_mirror AND r.field = f.right_field
    WHERE f.link = k.name AND crm._map_problem(l, r, f.to_left, f.to_right) IS NOT NULL
    UNION ALL
    SELECT 'missing', crm._table_of(s.mirror), x.field, NULL, NULL, 'The mirror has no such column any more: DELETE the row of crm.field_map, or import the field again.'
    FROM crm.field_map f, (VALUES ('left', k.left_mirror), ('right', k.right_mirror)) AS s (side, mirror), unnest(crm._map_fields(f, s.side)) AS x (field)
    WHERE f.link = k.name AND NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = s.mirror AND c.field = x.field)
    UNION ALL
    SELECT 'function', NULL, f.left_field, NULL, ARRAY[t.name], 'The function is not there any more, or not IMMUTABLE: values of this field do not travel.'
    FROM crm.field_map f, unnest(ARRAY[f.to_left, f.to_right]) AS t (name)
    WHERE f.link = k.name AND t.name LIKE '%(%' AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure(t.name) AND p.provolatile = 'i')
    UNION ALL
    SELECT 'two targets', crm._table_of(k.left_mirror), NULL, NULL, ARRAY[o.name],
           format('New rows of %s are made over link "%s" too: give each link a left_scope, so that every row belongs to one.', crm._table_of(k.left_mirror), o.name)
    FROM crm.link o JOIN crm.mirror a ON a.id = o.right_mirror JOIN crm.mirror b ON b.id = k.right_mirror
    WHERE o.id <> k.id AND o.left_mirror = k.left_mirror AND a.server = b.server AND o.create_right AND k.create_right AND (o.left_scope IS NULL OR k.left_scope IS NULL)
    UNION ALL
    SELECT 'two targets', crm._table_of(k.right_mirror), NULL, NULL, ARRAY[o.name],
           format('New rows of %s are made over link "%s" too: give each link a right_scope, so that every row belongs to one.', crm._table_of(k.right_mirror), o.name)
    FROM crm.link o JOIN crm.mirror a ON a.id = o.left_mirror JOIN crm.mirror b ON b.id = k.left_mirror
    WHERE o.id <> k.id AND o.right_mirror = k.right_mirror AND a.server = b.server AND o.create_left AND k.create_left AND (o.right_scope IS NULL OR k.right_scope IS NULL)
$$;
COMMENT ON FUNCTION crm._check_link(crm.link) IS 'What is wrong with a link whatever its rows hold.';

CREATE FUNCTION crm.check_mapping(link text)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k    crm.link := crm._link_named(link);
    m    crm.field_map;
    side text;
BEGIN
    RETURN QUERY SELECT * FROM crm._check_link(k);
    FOR m IN SELECT * FROM crm.field_map f WHERE f.link = k.name ORDER BY f.id LOOP
        CONTINUE WHEN EXISTS (SELECT FROM unnest(crm._map_fields(m, 'left')) x WHERE NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = k.left_mirror AND c.field = x))
                   OR EXISTS (SELECT FROM unnest(crm._map_fields(m, 'right')) x WHERE NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = k.right_mirror AND c.field = x));
        FOREACH side IN ARRAY ARRAY['left', 'right'] LOOP
            IF m.direction IN ('both', CASE side WHEN 'left' THEN 'to_right' ELSE 'to_left' END) THEN
                RETURN QUERY SELECT * FROM crm._check_map(k, m, side);
            END IF;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm.check_mapping(text) IS 'What the maps of a link would lose or could not carry, counted over the rows as they are: values that come back as others, values without counterpart, texts that are too long, choices that the other CRM does not have, missing required fields. Changes nothing.';

-- Whether both sides of a map hold the same, as SQL text over aliases l and r.
CREATE FUNCTION crm._map_equal(k crm.link, f crm.field_map) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l text := 'l.' || crm._column_of(k.left_mirror, f.left_field);
    r text := 'r.' || crm._column_of(k.right_mirror, f.right_field);
BEGIN
    RETURN CASE
        WHEN 'domain_of_url' IN (f.to_left, f.to_right) THEN format('%s IS NOT DISTINCT FROM %s', crm._match_expr(l, f.to_left, f.to_right), crm._match_expr(r, f.to_left, f.to_right))
        WHEN NOT crm._map_trivial(f) AND f.direction = 'to_left' THEN
            format('(crm._map_image($3, $4, ''right'', %2$s)).image IS NOT DISTINCT FROM %1$s', crm._cells_sql(k.left_mirror, crm._map_fields(f, 'left'), 'l'), crm._cells_sql(k.right_mirror, crm._map_fields(f, 'right'), 'r'))
        WHEN NOT crm._map_trivial(f) THEN
            format('(crm._map_image($3, $4, ''left'', %1$s)).image IS NOT DISTINCT FROM %2$s', crm._cells_sql(k.left_mirror, crm._map_fields(f, 'left'), 'l'), crm._cells_sql(k.right_mirror, crm._map_fields(f, 'right'), 'r'))
        WHEN (SELECT c.field_type FROM crm.mirror_column c WHERE c.mirror = k.left_mirror AND c.field = f.left_field) NOT IN ('text', 'reference')
        THEN format('%s IS NOT DISTINCT FROM %s', l, r)
        ELSE format('nullif(%s::text, '''') IS NOT DISTINCT FROM nullif(%s::text, '''')', l, r) END;
END $$;
COMMENT ON FUNCTION crm._map_equal(crm.link, crm.field_map) IS 'SQL text: do both sides of a field map hold the same value?';

CREATE FUNCTION crm._preview_fields(k crm.link, left_ids bigint[], right_ids bigint[])
RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    pairs text := format('unnest($1, $2) AS p (li, ri) JOIN %s l ON l._id = p.li JOIN %s r ON r._id = p.ri', crm._table_of(k.left_mirror), crm._table_of(k.right_mirror));
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name ORDER BY m.id LOOP
        RETURN QUERY EXECUTE format(
            'SELECT ''differs'', %L, count(*), min(left(concat_ws('' <> '', coalesce(l.%s::text, ''(empty)''), coalesce(r.%s::text, ''(empty)'')), 120)), %L FROM %s WHERE NOT (%s) HAVING count(*) > 0',
            f.left_field, crm._column_of(k.left_mirror, f.left_field), crm._column_of(k.right_mirror, f.right_field),
            'Stays as it is until one side changes, or somebody asks: crm.differences, crm.go_live(…, settle => true), crm.policy_apply.', pairs, crm._map_equal(k, f)) USING left_ids, right_ids, k, f;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._preview_fields(crm.link, bigint[], bigint[]) IS 'Fields that differ between matched rows.';

-- What crm.policy_apply would find: which value would stand, by the rule of each field.
CREATE FUNCTION crm.differences(link text)
RETURNS TABLE (field text, count bigint, left_blank bigint, right_blank bigint, both_filled bigint, strategy text, winner text, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    k     crm.link := crm._link_named(differences.link);
    f     crm.field_map;
    p     crm.conflict_policy;
    l_ids bigint[];
    r_ids bigint[];
    l     text;
    r     text;
BEGIN
    -- Of a link in shadow also what crm.go_live would tie.
    SELECT array_agg(a.row_id), array_agg(b.row_id) INTO l_ids, r_ids
    FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = k.left_mirror AND b.mirror = k.right_mirror AND a.merged_into IS NULL AND b.merged_into IS NULL;
    IF k.mode <> 'live' THEN
        SELECT coalesce(l_ids, '{}') || coalesce(array_agg(g.left_ids[1]), '{}'), coalesce(r_ids, '{}') || coalesce(array_agg(g.right_ids[1]), '{}') INTO l_ids, r_ids
        FROM crm._match_groups(k) g WHERE g.certain AND cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1;
    END IF;
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name ORDER BY m.id LOOP
        SELECT * INTO p FROM crm.conflict_policy x WHERE x.link = k.name AND x.field IN (f.left_field, '*') ORDER BY x.field = '*' LIMIT 1;
        l := format('l.%s::text', crm._column_of(k.left_mirror, f.left_field));
        r := format('r.%s::text', crm._column_of(k.right_mirror, f.right_field));
        RETURN QUERY EXECUTE format(
            'SELECT %L::text, count(*), count(*) FILTER (WHERE coalesce(%3$s, '''') = '''' AND coalesce(%4$s, '''') <> ''''), count(*) FILTER (WHERE coalesce(%3$s, '''') <> '''' AND coalesce(%4$s, '''') = ''''),
                    count(*) FILTER (WHERE coalesce(%3$s, '''') <> '''' AND coalesce(%4$s, '''') <> ''''), $5, $6,
                    min(left(concat_ws('' <> '', coalesce(%3$s, ''(empty)''), coalesce(%4$s, ''(empty)'')), 120)), %2$L::text
             FROM unnest($1, $2) AS p (li, ri) JOIN %5$s l ON l._id = p.li JOIN %6$s r ON r._id = p.ri
             WHERE l._deleted_at IS NULL AND r._deleted_at IS NULL AND NOT (%7$s) HAVING count(*) > 0',
            f.left_field,
            CASE WHEN p.strategy IN ('review', 'append', 'delta', 'union', 'function') THEN 'A blank takes the value; two values are a question in crm.review each.'
                 WHEN p.strategy = 'last_write_wins' THEN 'A blank takes the value; of two, that of the record changed later.'
                 ELSE format('A blank takes the value; of two, that of %s.', coalesce(p.winner, 'the record changed later')) END,
            l, r, crm._table_of(k.left_mirror), crm._table_of(k.right_mirror), crm._map_equal(k, f))
            USING l_ids, r_ids, k, f, p.strategy, p.winner;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm.differences(text) IS 'Fields in which rows that are one thing differ, and what the policy would make of it: what crm.go_live(…, settle => true) or crm.policy_apply settles. Changes nothing.';
