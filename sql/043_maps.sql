-- Field maps: what they may say, and the standard ones that a link starts with.

CREATE FUNCTION crm._table_of(mirror integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT format('%I.%I', m.schema_name, m.table_name) FROM crm.mirror m WHERE m.id = $1);
END $$;
COMMENT ON FUNCTION crm._table_of(integer) IS 'Qualified, quoted table name of a mirror.';

CREATE FUNCTION crm._column_of(mirror integer, field text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(c.column_name) FROM crm.mirror_column c WHERE c.mirror = $1 AND c.field = $2
$$;
COMMENT ON FUNCTION crm._column_of(integer, text) IS 'Quoted column that holds a field.';

CREATE FUNCTION crm._transforms() RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['identity', 'domain_of_url', 'url_of_domain', 'date_of', 'midnight_of']
$$;
COMMENT ON FUNCTION crm._transforms() IS 'Transforms that a field map may name.';

CREATE FUNCTION crm._sql_type(field_type text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE field_type WHEN 'number' THEN 'numeric' WHEN 'boolean' THEN 'boolean' WHEN 'date' THEN 'date' WHEN 'date_time' THEN 'timestamp with time zone'
                           WHEN 'time' THEN 'time without time zone' WHEN 'multi_choice' THEN 'text[]' ELSE 'text' END
$$;
COMMENT ON FUNCTION crm._sql_type(text) IS 'Type of the columns that hold fields of a type.';

-- Why two fields cannot hold the same thing under a map; null if they can.
CREATE FUNCTION crm._map_problem(l crm.mirror_column, r crm.mirror_column, to_left text, to_right text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN to_left LIKE '%(%' OR to_right LIKE '%(%' THEN NULL
        WHEN l.field_type = 'date_time' AND r.field_type = 'date' THEN
            CASE WHEN to_right <> 'date_of' OR to_left <> 'midnight_of' THEN 'Set to_right = ''date_of'' and to_left = ''midnight_of'': an instant becomes its day and back.' END
        WHEN l.field_type = 'date' AND r.field_type = 'date_time' THEN
            CASE WHEN to_right <> 'midnight_of' OR to_left <> 'date_of' THEN 'Set to_right = ''midnight_of'' and to_left = ''date_of'': a day becomes its midnight (UTC) and back.' END
        WHEN to_left IN ('date_of', 'midnight_of') OR to_right IN ('date_of', 'midnight_of') THEN
            'date_of and midnight_of are for a date on one side and a datetime on the other.'
        WHEN (to_left IN ('domain_of_url', 'url_of_domain') OR to_right IN ('domain_of_url', 'url_of_domain'))
             AND NOT (l.field_type = 'text' AND r.field_type = 'text') THEN 'domain_of_url and url_of_domain are for text fields.'
        WHEN l.field_type <> r.field_type THEN 'Map fields of one type, or name a function for each direction in use (to_left, to_right) that takes the one type and returns the other.'
    END
$$;
COMMENT ON FUNCTION crm._map_problem(crm.mirror_column, crm.mirror_column, text, text) IS 'Advice on why two fields cannot be mapped; null when they can.';

-- A function that a map names, as schema.name(type); of several by that name the
-- one that takes the column's own type. What it may be is checked here, once.
CREATE FUNCTION crm._map_function(given text, arg_type text, result_type text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := crm._function_named(given);
    p     record;
BEGIN
    SELECT f.oid, f.prokind, f.proretset, f.provolatile, format_type(f.proargtypes[0], NULL) AS arg, format_type(f.prorettype, NULL) AS result,
           format('%I.%I(%s)', n.nspname, f.proname, format_type(f.proargtypes[0], NULL)) AS signature
    INTO p
    FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = parts[1] AND f.proname = parts[2] AND f.pronargs = 1
      AND (parts[3] IS NULL OR parts[3] IN (format_type(f.proargtypes[0], NULL), f.proargtypes[0]::regtype::text))
    ORDER BY format_type(f.proargtypes[0], NULL) = arg_type DESC, format_type(f.proargtypes[0], NULL) = 'text' DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no function % with one argument', given
            USING ERRCODE = '42883', DETAIL = format('Expected a function of yours, schema.name, that takes %s and returns %s.', arg_type, result_type),
                  HINT = format('For example: CREATE FUNCTION public.%s(v %s) RETURNS %s LANGUAGE sql IMMUTABLE AS $f$ SELECT … $f$;', 'my_map', arg_type, result_type);
    ELSIF p.prokind <> 'f' OR p.proretset THEN
        RAISE EXCEPTION 'function % cannot be a map', p.signature
            USING ERRCODE = '42809', DETAIL = 'A map makes one value of one value.', HINT = 'Name a plain function, not an aggregate, procedure or set-returning one.';
    ELSIF p.provolatile <> 'i' THEN
        RAISE EXCEPTION 'function % is not IMMUTABLE', p.signature
            USING ERRCODE = '42P17', DETAIL = 'The same value must always have the same image: it is compared with what the other side shows.',
                  HINT = format('If it reads no table, no setting and no clock: ALTER FUNCTION %s IMMUTABLE;', p.signature);
    ELSIF p.arg NOT IN (arg_type, 'text') OR p.result <> result_type THEN
        RAISE EXCEPTION 'function % returns %, which does not fit', p.signature, p.result
            USING ERRCODE = '42804', DETAIL = format('The one column is %s, the other %s.', arg_type, result_type),
                  HINT = format('It must take %s and return %s.', CASE WHEN arg_type = 'text' THEN 'text' ELSE arg_type || ' or text' END, result_type);
    END IF;
    RETURN p.signature;
END $$;
COMMENT ON FUNCTION crm._map_function(text, text, text) IS 'Resolves the function of a map to schema.name(type), or raises with what it must be like.';

CREATE FUNCTION crm._map_transform(given text, l crm.mirror_column, r crm.mirror_column) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF given = ANY (crm._transforms()) THEN
        RETURN given;
    ELSIF strpos(given, '.') > 0 THEN
        RETURN crm._map_function(given, crm._sql_type(l.field_type), crm._sql_type(r.field_type));
    END IF;
    RAISE EXCEPTION 'unknown transform "%"', given
        USING ERRCODE = '22023', DETAIL = 'Transforms are: ' || array_to_string(crm._transforms(), ', ') || '.',
              HINT = crm._near_hint(given, crm._transforms(), 'Leave it out for identity. A function of yours is named with its schema.');
END $$;
COMMENT ON FUNCTION crm._map_transform(text, crm.mirror_column, crm.mirror_column) IS 'Resolves what one direction of a map names, from the first column to the second.';

-- A value map and its reverse: every right value must lead to one left value
-- that leads back to it.
CREATE FUNCTION crm._value_map_check(m crm.field_map) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong  text;
    needed jsonb;
BEGIN
    IF jsonb_typeof(m.value_map) <> 'object' OR jsonb_typeof(m.value_map_back) <> 'object'
       OR EXISTS (SELECT FROM jsonb_each(m.value_map) e WHERE jsonb_typeof(e.value) <> 'string')
       OR EXISTS (SELECT FROM jsonb_each(m.value_map_back) e WHERE jsonb_typeof(e.value) <> 'string') THEN
        RAISE EXCEPTION 'the value map of field "%" is not an object of texts', m.left_field
            USING ERRCODE = '22023', DETAIL = format('Got %s.', left(concat_ws(', back ', m.value_map::text, m.value_map_back::text), 200)),
                  HINT = 'Write value_map = ''{"left value": "right value"}'', value_map_back = ''{"right value": "left value"}''.';
    ELSIF m.value_map_back IS NOT NULL AND m.value_map IS NULL THEN
        RAISE EXCEPTION 'value_map_back of field "%" has no value_map', m.left_field
            USING ERRCODE = '22023', DETAIL = 'It chooses where value_map leaves a choice.', HINT = 'Set value_map = ''{"left value": "right value"}''.';
    ELSIF m.value_map IS NOT NULL AND (m.to_left <> 'identity' OR m.to_right <> 'identity') THEN
        RAISE EXCEPTION 'field "%" has both a value map and a transform', m.left_field
            USING ERRCODE = '22023', DETAIL = format('to_left is %s, to_right is %s.', m.to_left, m.to_right), HINT = 'Use one of them; a function can hold the choices too.';
    END IF;
    IF m.direction <> 'to_right' THEN
        SELECT jsonb_object_agg(x.v, x.f), string_agg(format('%s (from %s)', x.v, x.fs), '; ') INTO needed, wrong
        FROM (SELECT v, min(f) AS f, string_agg(f, ', ' ORDER BY f) AS fs FROM jsonb_each_text(m.value_map) AS e (f, v) GROUP BY v HAVING count(*) > 1) x
        WHERE NOT coalesce(m.value_map_back, '{}') ? x.v;
        IF wrong IS NOT NULL THEN
            RAISE EXCEPTION 'value_map of field "%" is not one-to-one', m.left_field
                USING ERRCODE = '22023', DETAIL = 'Reached from several left values: ' || left(wrong, 300) || '.',
                      HINT = format('Choose the way back, for example value_map_back = %L, or direction = ''to_right''.', left(needed::text, 200));
        END IF;
    END IF;
    SELECT format('"%s" leads to "%s", which %s', b.r, b.l, CASE WHEN m.value_map ? b.l THEN format('leads to "%s"', m.value_map ->> b.l) ELSE 'value_map does not list' END) INTO wrong
    FROM jsonb_each_text(m.value_map_back) AS b (r, l)
    WHERE NOT m.value_map ? b.l
       OR (m.value_map ->> b.l <> b.r AND EXISTS (SELECT FROM jsonb_each_text(m.value_map) AS e (f, v) WHERE v = b.r)) LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'value_map_back of field "%" contradicts value_map', m.left_field
            USING ERRCODE = '22023', DETAIL = wrong || '.', HINT = 'A right value must go back to a left value of value_map: one that leads to it, if there is any.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._value_map_check(crm.field_map) IS 'Refuses value maps whose way back is not defined.';

-- Several columns as one value.
CREATE FUNCTION crm._structure_check(k crm.link, m crm.field_map) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lefts  CONSTANT integer := 1 + cardinality(m.left_more);
    rights CONSTANT integer := 1 + cardinality(m.right_more);
    wrong  text;
BEGIN
    IF m.structure IS NULL AND lefts + rights = 2 THEN
        RETURN;
    ELSIF m.structure IS NULL OR lefts + rights = 2 OR (m.structure = 'unit' AND lefts <> rights) OR (m.structure <> 'unit' AND least(lefts, rights) > 1) THEN
        RAISE EXCEPTION 'field "%" ties % columns to %, which structure % does not say how to do', m.left_field, lefts, rights, coalesce(quote_literal(m.structure), 'null')
            USING ERRCODE = '22023', DETAIL = 'lines and words tie several columns of one side to one of the other; unit ties as many to as many, in order.',
                  HINT = 'For example: left_field = ''address'', left_more = ''{address2}'', right_field = ''MailingStreet'', structure = ''lines''.';
    ELSIF m.to_left <> 'identity' OR m.to_right <> 'identity' OR m.value_map IS NOT NULL OR m.match_order IS NOT NULL THEN
        RAISE EXCEPTION 'a map of several columns takes no transform, value map or match order'
            USING ERRCODE = '22023', DETAIL = format('Field "%s", structure %s.', m.left_field, m.structure), HINT = 'Map such a column on its own.';
    END IF;
    SELECT string_agg(format('%s (%s)', c.field, c.field_type), ', ') INTO wrong FROM crm.mirror_column c
    WHERE c.field_type <> 'text' AND ((c.mirror = k.left_mirror AND c.field = ANY (m.left_field || m.left_more)) OR (c.mirror = k.right_mirror AND c.field = ANY (m.right_field || m.right_more)));
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a map of several columns is for text fields' USING ERRCODE = '42804', DETAIL = format('Not text: %s.', wrong), HINT = 'Map these on their own.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._structure_check(crm.link, crm.field_map) IS 'Refuses maps of several columns that cannot be put together or taken apart.';

-- A field is mapped once per link, also as one of several columns.
CREATE FUNCTION crm._map_taken(m crm.field_map) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('field "%s" of the %s side, with "%s"', t.field, t.side, t.named)
    FROM (
        SELECT 'left' AS side, f AS field, x.left_field AS named FROM crm.field_map x, unnest(x.left_field || x.left_more) f
        WHERE x.link = m.link AND x.id <> m.id AND (x.left_more <> '{}' OR m.left_more <> '{}') AND f = ANY (m.left_field || m.left_more)
        UNION ALL
        SELECT 'right', f, x.left_field FROM crm.field_map x, unnest(x.right_field || x.right_more) f
        WHERE x.link = m.link AND x.id <> m.id AND (x.right_more <> '{}' OR m.right_more <> '{}') AND f = ANY (m.right_field || m.right_more)
        UNION ALL
        SELECT 'left', f, m.left_field FROM unnest(m.left_field || m.left_more) f GROUP BY f HAVING count(*) > 1
        UNION ALL
        SELECT 'right', f, m.left_field FROM unnest(m.right_field || m.right_more) f GROUP BY f HAVING count(*) > 1
    ) t LIMIT 1
$$;
COMMENT ON FUNCTION crm._map_taken(crm.field_map) IS 'A column that another map of the link, or this one twice, names already.';

-- A default must be a value that the column and the CRM can take.
CREATE FUNCTION crm._default_check(mirror integer, c crm.mirror_column, value text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    choices text[];
BEGIN
    IF value IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        EXECUTE format('SELECT %L::%s', CASE WHEN c.field_type = 'multi_choice' THEN '{}' ELSE value END, crm._sql_type(c.field_type));
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION '"%" cannot be the default of field "%"', value, c.field
            USING ERRCODE = '22023', DETAIL = format('The field is %s: %s.', c.field_type, sqlerrm), HINT = 'Give a value of the field''s type.';
    END;
    SELECT array_agg(coalesce(o ->> 'value', o ->> 0)) INTO choices
    FROM crm.mirror m JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object AND f.field = c.field AND f.restricted, jsonb_array_elements(f.options) o
    WHERE m.id = _default_check.mirror;
    IF value = '' OR length(value) > c.max_length OR value <> ALL (choices) THEN
        RAISE EXCEPTION '"%" cannot be the default of field "%"', value, c.field
            USING ERRCODE = '22023', DETAIL = CASE WHEN length(value) > c.max_length THEN format('It holds %s characters at most.', c.max_length)
                                                  ELSE 'It takes: ' || left(array_to_string(choices, ', '), 300) || '.' END,
                  HINT = crm._near_hint(value, choices, 'Give a value that its CRM accepts.');
    END IF;
END $$;
COMMENT ON FUNCTION crm._default_check(integer, crm.mirror_column, text) IS 'Refuses defaults that the column or its CRM cannot take.';

CREATE FUNCTION crm._fuzzy_check(m crm.field_map, l crm.mirror_column, r crm.mirror_column) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF m.match_threshold IS NULL AND m.match_accept IS NULL THEN
        RETURN;
    ELSIF m.match_order IS NULL OR m.match_threshold IS NULL OR m.match_accept < m.match_threshold OR m.unique_key THEN
        RAISE EXCEPTION 'likeness of field "%" is not fully said', m.left_field
            USING ERRCODE = '22023', DETAIL = format('match_order %s, match_threshold %s, match_accept %s, unique_key %s.',
                                                     coalesce(m.match_order::text, 'null'), coalesce(m.match_threshold::text, 'null'), coalesce(m.match_accept::text, 'null'), m.unique_key),
                  HINT = 'Set match_order, a match_threshold such as 0.6, and match_accept above it or not at all. A unique key is compared for equality.';
    ELSIF l.field_type <> 'text' OR r.field_type <> 'text' THEN
        RAISE EXCEPTION 'likeness is for text fields' USING ERRCODE = '42804', DETAIL = format('"%s" is %s, "%s" is %s.', l.field, l.field_type, r.field, r.field_type), HINT = 'Compare this key for equality: leave match_threshold out.';
    ELSIF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_trgm') THEN
        RAISE EXCEPTION 'likeness needs the extension pg_trgm' USING ERRCODE = '0A000', DETAIL = 'It is part of PostgreSQL''s contrib modules.', HINT = 'CREATE EXTENSION pg_trgm;';
    END IF;
END $$;
COMMENT ON FUNCTION crm._fuzzy_check(crm.field_map, crm.mirror_column, crm.mirror_column) IS 'Refuses keys by likeness that cannot be compared.';

CREATE FUNCTION crm._unique_check(m crm.field_map, l crm.mirror_column, r crm.mirror_column) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF m.unique_key AND (m.to_left <> 'identity' OR m.to_right <> 'identity' OR l.field_type <> 'text' OR r.field_type <> 'text') THEN
        RAISE EXCEPTION 'field "%" cannot be a unique key', m.left_field
            USING ERRCODE = '22023', DETAIL = format('"%s" is %s, "%s" is %s; to_left is %s, to_right is %s.', l.field, l.field_type, r.field, r.field_type, m.to_left, m.to_right),
                  HINT = 'Its CRM is asked for the value as it stands: map two text fields, without transform.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._unique_check(crm.field_map, crm.mirror_column, crm.mirror_column) IS 'Refuses unique keys that a CRM cannot be asked for.';

CREATE FUNCTION crm._map_read_only(k crm.link, m crm.field_map) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.field FROM crm.mirror_column c
    WHERE c.read_only AND ((c.mirror = k.left_mirror AND m.direction <> 'to_right' AND c.field = ANY (m.left_field || m.left_more))
                        OR (c.mirror = k.right_mirror AND m.direction <> 'to_left' AND c.field = ANY (m.right_field || m.right_more)))
    ORDER BY c.field LIMIT 1
$$;
COMMENT ON FUNCTION crm._map_read_only(crm.link, crm.field_map) IS 'A read-only field that a map would write.';

CREATE FUNCTION crm._field_map_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link;
    l     crm.mirror_column;
    r     crm.mirror_column;
    wrong text;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    l := crm._mirror_field(k.left_mirror, new.left_field);
    r := crm._mirror_field(k.right_mirror, new.right_field);
    new.left_field := l.field;
    new.right_field := r.field;
    new.left_more := ARRAY(SELECT (crm._mirror_field(k.left_mirror, f)).field FROM unnest(new.left_more) WITH ORDINALITY AS x (f, n) ORDER BY n);
    new.right_more := ARRAY(SELECT (crm._mirror_field(k.right_mirror, f)).field FROM unnest(new.right_more) WITH ORDINALITY AS x (f, n) ORDER BY n);
    new.to_right := crm._map_transform(new.to_right, l, r);
    new.to_left := crm._map_transform(new.to_left, r, l);
    IF new.unique_key AND new.match_order IS NULL THEN
        new.match_order := 0;
    END IF;
    wrong := crm._map_problem(l, r, new.to_left, new.to_right);
    IF wrong IS NULL AND l.field_type <> r.field_type AND (new.to_left LIKE '%(%' OR new.to_right LIKE '%(%')
       AND ((new.direction <> 'to_right' AND new.to_left NOT LIKE '%(%') OR (new.direction <> 'to_left' AND new.to_right NOT LIKE '%(%')) THEN
        wrong := 'Types differ: name a function for the other direction too, or set direction.';
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'fields "%" (%) and "%" (%) cannot be mapped like this', l.field, l.field_type, r.field, r.field_type
            USING ERRCODE = '42804', DETAIL = format('Link "%s", to_left %s, to_right %s.', k.name, new.to_left, new.to_right), HINT = wrong;
    END IF;
    wrong := crm._map_read_only(k, new);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'field "%" is read-only in its CRM', wrong
            USING ERRCODE = '22023', DETAIL = format('direction is %s.', new.direction),
                  HINT = 'Set direction = ''to_right'' when the left field is read-only, ''to_left'' when the right one is.';
    END IF;
    wrong := crm._map_taken(new);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a column can be mapped once per link' USING ERRCODE = '23505', DETAIL = 'Mapped already: ' || wrong || '.', HINT = 'DELETE the other row of crm.field_map first.';
    ELSIF new.match_order IS NOT NULL AND (new.to_left LIKE '%(%' OR new.to_right LIKE '%(%') THEN
        RAISE EXCEPTION 'a key that identifies records takes no function'
            USING ERRCODE = '22023', DETAIL = format('Field "%s", match_order %s.', l.field, new.match_order), HINT = 'Keys are compared without regard to case and blanks; match by another field.';
    END IF;
    PERFORM crm._value_map_check(new), crm._structure_check(k, new), crm._fuzzy_check(new, l, r), crm._unique_check(new, l, r),
            crm._default_check(k.left_mirror, l, new.default_left), crm._default_check(k.right_mirror, r, new.default_right);
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._field_map_check() IS 'Checks a field map against the mirrors: fields, types, transforms, direction.';
CREATE TRIGGER field_map_check BEFORE INSERT OR UPDATE ON crm.field_map FOR EACH ROW EXECUTE FUNCTION crm._field_map_check();
COMMENT ON TRIGGER field_map_check ON crm.field_map IS 'Refuses maps that cannot work, with what to do instead.';

-- The schema of a function may be open to its owner only, and the lookup of a name
-- asks for rights on it.
CREATE FUNCTION crm._function_found(signature text) RETURNS oid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ SELECT to_regprocedure(signature)::oid $$;
COMMENT ON FUNCTION crm._function_found(text) IS 'The function of a signature, whoever may use its schema; null if there is none.';

-- The worker runs a map's function as the function's owner, so only those who could
-- run things as the owner may name it, as with policies.
CREATE FUNCTION crm._map_function_allowed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     text;
    owner oid;
BEGIN
    FOREACH f IN ARRAY ARRAY[new.to_left, new.to_right] LOOP
        SELECT p.proowner INTO owner FROM pg_proc p WHERE f LIKE '%(%' AND p.oid = to_regprocedure(f);
        IF f LIKE '%(%' AND to_regprocedure(f) IS NOT NULL AND NOT has_function_privilege(f, 'EXECUTE') THEN
            RAISE EXCEPTION 'permission denied for function %', f
                USING ERRCODE = '42501', DETAIL = format('Role %s may not call it.', current_user), HINT = format('Its owner can: GRANT EXECUTE ON FUNCTION %s TO %I;', f, current_user);
        ELSIF NOT pg_has_role(owner, 'MEMBER') OR (SELECT o.rolsuper AND NOT c.rolsuper FROM pg_roles o, pg_roles c WHERE o.oid = owner AND c.rolname = current_user) THEN
            RAISE EXCEPTION 'function % belongs to %', f, owner::regrole
                USING ERRCODE = '42501', DETAIL = format('It will run with the rights of its owner, and %s could not act as that role.', current_user),
                      HINT = 'Name a function of your own, or let its owner add the row.';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._map_function_allowed() IS 'Refuses functions that the author of a map may not call, or whose owner the author could not act as.';
CREATE TRIGGER map_function_allowed AFTER INSERT OR UPDATE OF to_left, to_right ON crm.field_map FOR EACH ROW EXECUTE FUNCTION crm._map_function_allowed();
COMMENT ON TRIGGER map_function_allowed ON crm.field_map IS 'Refuses functions that the author of the map may not call.';

CREATE FUNCTION crm._field_default_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link;
    c crm.mirror_column;
    m integer;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    m := CASE new.side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    c := crm._mirror_field(m, new.field);
    new.field := c.field;
    IF c.read_only THEN
        RAISE EXCEPTION 'field "%" is read-only in its CRM', c.field USING ERRCODE = '22023', DETAIL = 'A new record cannot be given a value in it.', HINT = 'Leave it to the CRM.';
    ELSIF EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND c.field = ANY (CASE new.side WHEN 'left' THEN f.left_field || f.left_more ELSE f.right_field || f.right_more END)) THEN
        RAISE EXCEPTION 'field "%" is mapped', c.field
            USING ERRCODE = '22023', DETAIL = 'A mapped field has its default in the map.', HINT = format('UPDATE crm.field_map SET default_%s = %L WHERE link = %L AND …', new.side, new.value, k.name);
    END IF;
    PERFORM crm._default_check(m, c, new.value);
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._field_default_check() IS 'Checks a default against the mirror: field, type, choices.';
CREATE TRIGGER field_default_check BEFORE INSERT OR UPDATE ON crm.field_default FOR EACH ROW EXECUTE FUNCTION crm._field_default_check();
COMMENT ON TRIGGER field_default_check ON crm.field_default IS 'Refuses defaults that no record could be made with.';
