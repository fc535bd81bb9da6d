-- Rows that break a CHECK or leave out what must be there are refused by
-- PostgreSQL without a word on what to do. A trigger says it, one for all tables:
-- what it asks for, and the choices that it names, are read from the constraints
-- themselves, which stay as they are.

-- The choices of a constraint of the form column IN (…), null for another one.
CREATE FUNCTION crm._constraint_choices(expression text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(replace(m[1], '''''', ''''))
    FROM regexp_matches(CASE WHEN expression ~ '^\(\w+ = ANY \(ARRAY\[' THEN expression END, '''((?:[^'']|'''')*)''', 'g') AS m
$$;
COMMENT ON FUNCTION crm._constraint_choices(text) IS 'What a CHECK constraint lists, as PostgreSQL writes it; null if it is no list.';

-- What a column would be if the statement left it out, as advice.
CREATE FUNCTION crm._default_hint(table_id oid, attribute smallint, otherwise text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT format('Leave it out for the default, %s.', regexp_replace(pg_get_expr(d.adbin, d.adrelid), '::[a-z ]+(\[\])?$', ''))
                     FROM pg_attrdef d WHERE (d.adrelid, d.adnum) = (table_id, attribute)), otherwise)
$$;
COMMENT ON FUNCTION crm._default_hint(oid, smallint, text) IS 'Names the default of a column, or gives the other advice where it has none.';

-- Called for rows only that some constraint refuses: see crm._refusals_attach.
CREATE FUNCTION crm._row_refused() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given   jsonb := to_jsonb(new);
    c       record;
    broken  boolean;
    choices text[];
    asks    text;
BEGIN
    FOR c IN SELECT a.attname, a.attnum, col_description(tg_relid, a.attnum) AS about FROM pg_attribute a
             WHERE a.attrelid = tg_relid AND a.attnum > 0 AND a.attnotnull AND given -> a.attname = 'null' AND a.attname = ANY (string_to_array(tg_argv[0], ',')) ORDER BY a.attnum LOOP
        RAISE EXCEPTION 'column % of crm.% must have a value', c.attname, tg_table_name
            USING ERRCODE = '23502', DETAIL = coalesce(c.about, 'Null says nothing here.'), HINT = crm._default_hint(tg_relid, c.attnum, 'Give it one.'),
                  SCHEMA = tg_table_schema, TABLE = tg_table_name, COLUMN = c.attname;
    END LOOP;
    FOR c IN SELECT k.conname, k.conkey, pg_get_expr(k.conbin, k.conrelid) AS expression, obj_description(k.oid, 'pg_constraint') AS advice,
                    ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = tg_relid AND a.attnum = ANY (k.conkey) ORDER BY a.attnum)::text[] AS names
             FROM pg_constraint k WHERE k.conrelid = tg_relid AND k.contype = 'c' ORDER BY k.conname LOOP
        EXECUTE format('SELECT (%s) IS FALSE FROM (SELECT ($1).*) AS t', c.expression) INTO broken USING new;
        CONTINUE WHEN NOT broken;
        choices := crm._constraint_choices(c.expression);
        -- (share > (0)::double precision) reads better without casts and outer parentheses.
        asks := CASE WHEN choices IS NOT NULL THEN 'Expected one of: ' || array_to_string(choices, ', ') || '.'
                     ELSE format('It must be that %s.', regexp_replace(regexp_replace(substr(c.expression, 2, length(c.expression) - 2), '::[a-z]+( precision| without time zone)?(\[\])?', '', 'g'), '\((-?[\d.]+)\)', '\1', 'g')) END;
        RAISE EXCEPTION '%', CASE WHEN cardinality(c.names) = 1 THEN format('column %s of crm.%s cannot be %s', c.names[1], tg_table_name, quote_literal(left(given ->> c.names[1], 100)))
                                  ELSE format('columns %s of crm.%s cannot be %s', array_to_string(c.names, ' and '), tg_table_name,
                                              (SELECT string_agg(coalesce(quote_literal(left(given ->> n, 100)), 'null'), ' and ' ORDER BY at) FROM unnest(c.names) WITH ORDINALITY AS x (n, at))) END
            USING ERRCODE = '23514', DETAIL = asks,
                  HINT = crm._near_hint(coalesce(given ->> c.names[1], ''), choices, coalesce(c.advice, crm._default_hint(tg_relid, c.conkey[1], 'Leave it out, or null, if nothing is to be said.'))),
                  SCHEMA = tg_table_schema, TABLE = tg_table_name, CONSTRAINT = c.conname;
    END LOOP;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._row_refused() IS 'Refuses a row that breaks a constraint, with what it may hold and what to do.';

-- The condition of the trigger is that of the constraints: a row that they let
-- pass costs no call. It goes first, before the checks that look at other tables.
CREATE FUNCTION crm._refusals_attach(tables text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t      record;
    broken text;
    needed text;
    asked  text;
BEGIN
    FOR t IN SELECT c.oid, c.relname FROM pg_class c WHERE c.relnamespace = 'crm'::regnamespace AND c.relname = ANY (tables) ORDER BY c.relname LOOP
        -- What other triggers of the table fill in is not asked of the user.
        SELECT string_agg(a.attname, ',' ORDER BY a.attname), string_agg(format('new.%I IS NULL', a.attname), ' OR ' ORDER BY a.attname) INTO asked, needed
        FROM pg_attribute a
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND a.attnotnull AND a.attidentity = '' AND a.attname NOT IN ('changed_by', 'changed_at', 'own', 'theirs', 'own_parent', 'their_parent');
        SELECT string_agg(format('(%s) IS FALSE', (
                   SELECT regexp_replace(pg_get_expr(k.conbin, k.conrelid), '(?<![\w''.:])(' || string_agg(a.attname, '|') || ')(?![\w''(])', 'new.\1', 'g')
                   FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum = ANY (k.conkey))), ' OR ' ORDER BY k.conname) INTO broken
        FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'c';
        EXECUTE format('CREATE OR REPLACE TRIGGER allowed BEFORE INSERT OR UPDATE ON crm.%I FOR EACH ROW WHEN (%s) EXECUTE FUNCTION crm._row_refused(%L)',
                       t.relname, concat_ws(' OR ', needed, broken), asked);
        EXECUTE format('COMMENT ON TRIGGER allowed ON crm.%I IS %L', t.relname, 'Says what is wrong with a row that a constraint refuses, and what to do.');
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._refusals_attach(text[]) IS 'Makes the triggers that explain refused rows, by the constraints that there are.';

COMMENT ON CONSTRAINT link_check ON crm.link IS 'A link ties two mirrors: let crm.link(''hubspot.contacts'', ''salesforce.contact'') make it.';
COMMENT ON CONSTRAINT survivor_rule_check ON crm.survivor_rule IS 'Rule prefer takes a condition in column prefer, such as lifecyclestage = ''customer''; the other rules take none.';
COMMENT ON CONSTRAINT reference_map_check ON crm.reference_map IS 'Either association (a mirror of associations) and type_id, or own_field alone: SELECT crm.link_references(link) makes the usual ones.';
COMMENT ON CONSTRAINT off_peak_check ON crm.off_peak IS 'A window from 00:00 to 24:00 is the whole day; without a row heavy work always runs.';
COMMENT ON CONSTRAINT off_peak_days_check ON crm.off_peak IS 'Days are 1 (Monday) to 7 (Sunday): leave days out for every day.';
COMMENT ON CONSTRAINT api_budget_check ON crm.api_budget IS 'pause_at is the last part of reserve: set it lower, or reserve higher.';

COMMENT ON CONSTRAINT mirror_poll_interval_check ON crm.mirror IS 'Between 1 second and 1 day; crm.pause(''mirror'', …) stops it.';
COMMENT ON CONSTRAINT consumer_offset_name_check ON crm.consumer_offset IS 'A name has 1 to 63 characters and begins with no blank: SELECT crm.consumer_create(''name'');';

-- What users write, and what functions write with their rights. Not crm.write: it has
-- a row per outgoing change, and nobody but the engine fills it.
SELECT crm._refusals_attach('{api_budget,backfill,column_fill,conflict_policy,consumer_offset,field_default,field_lock,field_map,given_up,link,mirror,off_peak,policy_task,reference_map,review_item,schema_change,server_state,stamp_quality,stream,survivor_rule}');
