-- Scope: which rows of a mirror take part in a link, as a condition of the row.

-- The engine evaluates a condition, and so do functions that others call, each
-- with rights of its own. So it may compute from the row and nothing else: as
-- the predicate of an index may, and without anything that a user defined.
-- Tried on an empty copy of the table, so that nobody waits for a lock on the
-- mirror; PostgreSQL itself gives the canonical text that is used from then on.
CREATE FUNCTION crm._condition_checked(mirror regclass, condition text, what text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    canonical text;
    stranger  text;
BEGIN
    IF condition IS NULL THEN
        RETURN NULL;
    ELSIF NOT coalesce(pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = mirror), 'USAGE'), false) THEN
        RAISE EXCEPTION 'the % of % can only be set by its owner', what, mirror
            USING ERRCODE = '42501', DETAIL = 'The worker evaluates it with the rights of the table''s owner.', HINT = 'Become a member of the owning role, or ask its members.';
    END IF;
    BEGIN
        -- By itself: parentheses that only pair with those put around it make something else of it.
        IF NOT crm._is_expression(condition) THEN
            RAISE EXCEPTION 'it is more than one expression' USING ERRCODE = '42601';
        END IF;
        EXECUTE format('CREATE TEMPORARY TABLE _crm_condition (LIKE %s) ON COMMIT DROP', mirror);
        EXECUTE format('CREATE INDEX _crm_condition_index ON pg_temp._crm_condition ((1)) WHERE (%s)', condition);
        SELECT pg_get_expr(i.indpred, i.indrelid) INTO STRICT canonical FROM pg_index i WHERE i.indexrelid = 'pg_temp._crm_condition_index'::regclass;
        SELECT string_agg(pg_describe_object(d.refclassid, d.refobjid, 0), ', ') INTO stranger
        FROM pg_depend d LEFT JOIN pg_type y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = 'pg_temp._crm_condition_index'::regclass
          AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass) AND y.typtype IS DISTINCT FROM 'e'
          AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.refclassid AND e.objid = d.refobjid AND e.deptype = 'e');
        DROP TABLE pg_temp._crm_condition;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR feature_not_supported OR no_data_found OR too_many_rows OR data_exception THEN
        RAISE EXCEPTION '% of % is not usable: %', what, mirror, sqlerrm
            USING ERRCODE = '22023', DETAIL = format('Got: %s', left(condition, 200)),
                  HINT = 'Expected one condition over the mirror''s own columns, without subqueries and comments and with immutable functions only, such as: lifecyclestage = ''customer''.';
    END;
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION '% of % uses %', what, mirror, stranger
            USING ERRCODE = '22023', DETAIL = 'It would run with the rights of whoever evaluates the condition.',
                  HINT = 'Use functions, operators and types of PostgreSQL itself or of an extension.';
    END IF;
    RETURN canonical;
END $$;
COMMENT ON FUNCTION crm._condition_checked(regclass, text, text) IS 'Checks a condition against a mirror''s columns and returns its canonical text.';

CREATE FUNCTION crm._scope_checked(mirror integer, scope text) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT crm._condition_checked(crm._relation_of(m.schema_name, m.table_name), scope, 'scope') FROM crm.mirror m WHERE m.id = mirror
$$;
COMMENT ON FUNCTION crm._scope_checked(integer, text) IS 'Checks a scope against the mirror''s columns and returns its canonical text.';

CREATE TABLE crm.scope_sweep (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link      text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    side      text NOT NULL CHECK (side IN ('left', 'right')),
    before    text,
    after     text,
    leaving   bigint NOT NULL,
    entering  bigint NOT NULL,
    tx        bigint,
    cursor    bigint NOT NULL DEFAULT 0,
    looked_at bigint NOT NULL DEFAULT 0,
    left_out  bigint NOT NULL DEFAULT 0,
    let_in    bigint NOT NULL DEFAULT 0,
    asked_by  name NOT NULL DEFAULT session_user,
    asked_at  timestamptz NOT NULL DEFAULT now(),
    reason    text DEFAULT nullif(current_setting('pg_crm_sync.reason', true), '')
);
COMMENT ON TABLE crm.scope_sweep IS 'Changes of the scope of live links that the worker carries out over the rows that there are: those that leave follow on_leave, those that enter are matched or made. A finished one leaves and stands in crm.event, kind policy.';
COMMENT ON COLUMN crm.scope_sweep.before IS 'The scope before and after; null for all rows.';
COMMENT ON COLUMN crm.scope_sweep.leaving IS 'Tied rows that leave, and rows without counterpart that enter, when the scope was set.';
COMMENT ON COLUMN crm.scope_sweep.tx IS 'Where the guard wants approval: the number for crm.approve and crm.reject. Rejected, the sweep ends where it is.';
COMMENT ON COLUMN crm.scope_sweep.cursor IS 'Rows up to this _id are done: a crash resumes here.';
COMMENT ON COLUMN crm.scope_sweep.looked_at IS 'Rows looked at so far; left_out and let_in are those that left and entered.';
SELECT pg_catalog.pg_extension_config_dump('crm.scope_sweep', '');
SELECT pg_catalog.pg_extension_config_dump('crm.scope_sweep_id_seq', '');

-- What cannot be computed of one row must not stop the others. Halves are only looked
-- at where the whole raises: a condition that never does costs one pass.
CREATE FUNCTION crm._raising(t text, condition text, first bigint, last bigint) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    middle CONSTANT bigint := first + (last - first) / 2;
BEGIN
    BEGIN
        EXECUTE format('SELECT count(*) FILTER (WHERE %s) FROM %s AS t WHERE t._id BETWEEN $1 AND $2', condition, t) USING first, last;
        RETURN '{}';
    -- Of values only: a column that is gone is not a fault of each row. Some types report what they cannot read as syntax.
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR syntax_error THEN
        NULL;
    END;
    IF first = last THEN
        RETURN ARRAY[first];
    END IF;
    RETURN crm._raising(t, condition, first, middle) || crm._raising(t, condition, middle + 1, last);
END $$;
COMMENT ON FUNCTION crm._raising(text, text, bigint, bigint) IS 'The rows of a stretch of a table for which a condition raises an error.';

CREATE FUNCTION crm._raising(mirror integer, condition text) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t     text := crm._table_of(mirror);
    first bigint;
    last  bigint;
BEGIN
    IF condition IS NOT NULL THEN
        EXECUTE format('SELECT min(_id), max(_id) FROM %s', t) INTO first, last;
    END IF;
    RETURN CASE WHEN first IS NULL THEN '{}' ELSE crm._raising(t, condition, first, last) END;
END $$;
COMMENT ON FUNCTION crm._raising(integer, text) IS 'The rows of a mirror for which a condition raises an error.';

CREATE FUNCTION crm._scope_sql(scope text, raising bigint[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN scope IS NULL THEN 'true' WHEN raising = '{}' THEN format('((%s) IS TRUE)', scope)
                ELSE format('(CASE WHEN _id = ANY (%L::bigint[]) THEN NULL ELSE (%s) IS TRUE END)', raising, scope) END
$$;
COMMENT ON FUNCTION crm._scope_sql(text, bigint[]) IS 'SQL text: whether a row is in a scope; null for the rows for which that raises an error, which nobody can tell.';

-- What a change of scope would cause, counted with the rights of who sets it;
-- the guard's limits hold as for a statement on the mirror itself.
CREATE FUNCTION crm._scope_guarded(k crm.link, side text, before text, after text, OUT leaving bigint, OUT entering bigint, OUT held boolean)
-- Whatever the planner believes of a link that has just gone live: every row is looked at once.
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_nestloop = off AS $$
DECLARE
    own     integer := CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    other   integer := CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END;
    raising bigint[] := crm._raising(own, after);
    makes   boolean := CASE side WHEN 'left' THEN k.create_right ELSE k.create_left END;
    deletes bigint;
    creates bigint;
    setting text;
BEGIN
    IF raising <> '{}' THEN
        RAISE WARNING 'the scope of % raises an error for % rows', crm._table_of(own), cardinality(raising)
            USING DETAIL = format('They take no part, and do not leave by on_leave. The first is row %s.', raising[1]),
                  HINT = format('SELECT * FROM crm.why(%L, %s); tells the error.', crm._table_of(own), raising[1]);
    END IF;
    -- That nobody can tell is no leaving.
    EXECUTE format('SELECT count(*) FILTER (WHERE s.was AND NOT s.becomes AND x.row_id IS NOT NULL), count(*) FILTER (WHERE s.becomes AND x.row_id IS NULL)
                    FROM (SELECT t._id, %s AS was, %s AS becomes FROM %s AS t WHERE t._deleted_at IS NULL) s
                    LEFT JOIN (SELECT a.row_id FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror = $2 AND b.merged_into IS NULL
                               WHERE a.mirror = $1 AND a.merged_into IS NULL) x ON x.row_id = s._id WHERE s.was IS DISTINCT FROM s.becomes',
                   crm._scope_sql(before, crm._raising(own, before)), crm._scope_sql(after, raising), crm._table_of(own)) INTO leaving, entering USING own, other;
    deletes := CASE WHEN k.on_leave = 'delete' THEN leaving ELSE 0 END;
    creates := CASE WHEN makes THEN entering ELSE 0 END;
    setting := CASE WHEN deletes > nullif(current_setting('pg_crm_sync.guard_hard_deletes')::bigint, 0) THEN 'guard_hard_deletes'
                    WHEN deletes + creates > nullif(current_setting('pg_crm_sync.guard_hard_rows')::bigint, 0) THEN 'guard_hard_rows' END;
    IF setting IS NOT NULL THEN
        RAISE EXCEPTION 'this scope would delete % records of %, and make up to % there', deletes, crm._table_of(other), creates
            USING ERRCODE = '54000', DETAIL = format('%s tied rows of %s leave the link, %s without counterpart enter it.', leaving, crm._table_of(own), entering),
                  HINT = format('Set on_leave to keep or unlink first, or %s to false. If it is meant, a superuser can raise pg_crm_sync.%s for the session.',
                                CASE side WHEN 'left' THEN 'create_right' ELSE 'create_left' END, setting);
    END IF;
    held := coalesce(deletes + creates > nullif(current_setting('pg_crm_sync.guard_soft_rows')::bigint, 0), false);
END $$;
COMMENT ON FUNCTION crm._scope_guarded(crm.link, text, text, text) IS 'How many rows a change of scope lets in and leaves out, and whether the guard wants it approved; raises above its hard limits.';

-- Runs with the rights of whoever sets the scope.
CREATE FUNCTION crm._link_scope_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    counts jsonb := '{}';
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    IF tg_op = 'INSERT' OR (new.left_mirror, new.left_scope) IS DISTINCT FROM (old.left_mirror, old.left_scope) THEN
        new.left_scope := crm._scope_checked(new.left_mirror, new.left_scope);
    END IF;
    IF tg_op = 'INSERT' OR (new.right_mirror, new.right_scope) IS DISTINCT FROM (old.right_mirror, old.right_scope) THEN
        new.right_scope := crm._scope_checked(new.right_mirror, new.right_scope);
    END IF;
    IF tg_op = 'UPDATE' AND new.mode = 'live' THEN
        SELECT coalesce(jsonb_object_agg(v.side, to_jsonb(g)), '{}') INTO counts
        FROM (VALUES ('left', old.left_scope, new.left_scope), ('right', old.right_scope, new.right_scope)) AS v (side, before, after),
             LATERAL crm._scope_guarded(new, v.side, v.before, v.after) g WHERE v.before IS DISTINCT FROM v.after;
    END IF;
    -- For the trigger that begins the sweep, which must not evaluate anything itself.
    PERFORM set_config('crm.scope_counts', counts::text, true);
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._link_scope_check() IS 'Checks the scopes of a link, and by the guard''s limits what a new one would cause.';
CREATE TRIGGER link_scope_check BEFORE INSERT OR UPDATE OF left_mirror, right_mirror, left_scope, right_scope ON crm.link FOR EACH ROW EXECUTE FUNCTION crm._link_scope_check();
COMMENT ON TRIGGER link_scope_check ON crm.link IS 'Refuses scopes that cannot be evaluated, and those that would cause more than the guard allows.';

CREATE FUNCTION crm._link_scope_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s      record;
    g      record;
    number bigint;
BEGIN
    FOR s IN SELECT * FROM (VALUES ('left', old.left_scope, new.left_scope), ('right', old.right_scope, new.right_scope)) AS v (side, before, after) WHERE v.before IS DISTINCT FROM v.after LOOP
        SELECT coalesce(c.leaving, 0) AS leaving, coalesce(c.entering, 0) AS entering, coalesce(c.held, true) AS held INTO g
        FROM jsonb_to_record(current_setting('crm.scope_counts', true)::jsonb -> s.side) AS c (leaving bigint, entering bigint, held boolean);
        number := CASE WHEN g.held THEN nextval('crm.change_flush_seq') END;
        IF number IS NOT NULL THEN
            INSERT INTO crm.change_tx (tx, at, rows, held, "session_user", application_name, reason)
            VALUES (number, statement_timestamp(), least(g.leaving + g.entering, 2147483647)::integer, true, session_user, coalesce(current_setting('application_name', true), ''),
                    nullif(current_setting('pg_crm_sync.reason', true), ''));
        END IF;
        INSERT INTO crm.scope_sweep (link, side, before, after, leaving, entering, tx) VALUES (new.name, s.side, s.before, s.after, g.leaving, g.entering, number);
        RAISE NOTICE 'link "%": % tied rows leave (%), % without counterpart enter', new.name, g.leaving, new.on_leave, g.entering
            USING HINT = CASE WHEN number IS NOT NULL THEN format('The guard holds what follows: SELECT crm.approve(%s); or crm.reject(%s). Progress: crm.scope_sweep.', number, number) ELSE 'Progress: crm.scope_sweep.' END;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._link_scope_changed() IS 'Has the worker treat the rows that a new scope of a live link lets in or leaves out.';
CREATE TRIGGER link_scope_changed AFTER UPDATE OF left_scope, right_scope ON crm.link
    FOR EACH ROW WHEN (new.mode = 'live') EXECUTE FUNCTION crm._link_scope_changed();
COMMENT ON TRIGGER link_scope_changed ON crm.link IS 'Treats the rows that a new scope lets in or leaves out.';

-- PostgreSQL writes each condition of an AND in parentheses of its own.
CREATE FUNCTION crm._and_clauses(condition text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    inner_text text := btrim(condition);
    found      text[] := '{}';
    first      integer := 1;
    depth      integer := 0;
    quote      text;
    c          text;
BEGIN
    IF left(inner_text, 1) = '(' AND right(inner_text, 1) = ')' THEN
        inner_text := substr(inner_text, 2, length(inner_text) - 2);
    END IF;
    FOR i IN 1 .. length(inner_text) LOOP
        c := substr(inner_text, i, 1);
        IF quote IS NOT NULL THEN
            quote := CASE WHEN c = quote THEN NULL ELSE quote END;
        ELSIF c IN ('''', '"') THEN
            quote := c;
        ELSIF c IN ('(', '[') THEN
            depth := depth + 1;
        ELSIF c IN (')', ']') THEN
            depth := depth - 1;
        END IF;
        IF depth < 0 THEN
            -- The outer parentheses were not a pair.
            RETURN ARRAY[condition];
        ELSIF depth = 0 AND quote IS NULL AND substr(inner_text, i, 5) = ' AND ' THEN
            found := found || substr(inner_text, first, i - first);
            first := i + 5;
        ELSIF depth = 0 AND quote IS NULL AND substr(inner_text, i, 4) = ' OR ' THEN
            RETURN ARRAY[condition];
        END IF;
    END LOOP;
    RETURN found || substr(inner_text, first);
END $$;
COMMENT ON FUNCTION crm._and_clauses(text) IS 'The conditions that a scope, as PostgreSQL writes it, is made of: all of them must hold.';

CREATE FUNCTION crm._scope_clauses(link text, mirror regclass, _id bigint) RETURNS TABLE (clause text, holds boolean, problem text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k      crm.link := crm._link_named(link);
    scope  text := CASE WHEN mirror = crm._table_of(k.left_mirror)::regclass THEN k.left_scope WHEN mirror = crm._table_of(k.right_mirror)::regclass THEN k.right_scope END;
    raises CONSTANT boolean := scope IS NOT NULL AND crm._raising(mirror::text, scope, _id, _id) <> '{}';
BEGIN
    FOREACH clause IN ARRAY CASE WHEN scope IS NULL THEN '{}' ELSE crm._and_clauses(scope) END LOOP
        problem := NULL;
        BEGIN
            EXECUTE format('SELECT (%s) FROM %s AS t WHERE t._id = $1', clause, mirror) INTO holds USING _id;
        EXCEPTION WHEN data_exception OR program_limit_exceeded OR syntax_error THEN
            -- The condition before it is there to prevent that.
            CONTINUE WHEN NOT raises;
            holds := false;
            problem := sqlerrm;
        END;
        holds := coalesce(holds, false);
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._scope_clauses(text, regclass, bigint) IS 'Each condition of a link''s scope with whether a row fulfils it, and the error that it raises instead; no rows where the link takes all rows of the mirror.';

CREATE FUNCTION crm._why_scope(k crm.link, mirror integer, row_id bigint, alone boolean)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t    text;
    side text := CASE mirror WHEN k.left_mirror THEN 'left_scope' ELSE 'right_scope' END;
BEGIN
    IF (CASE mirror WHEN k.left_mirror THEN k.left_scope ELSE k.right_scope END) IS NULL THEN
        RETURN;
    END IF;
    t := crm._table_of(mirror);
    -- A counterpart that the caller may not read is not told about.
    IF to_regclass(t) IS NOT NULL AND has_table_privilege(t, 'SELECT') THEN
        RETURN QUERY SELECT 'scope', 'stops', format('link "%s" leaves %s row %s out%s: %s', k.name, t, row_id, CASE WHEN NOT alone THEN ', its tie rests' END,
                                                     string_agg(c.clause || coalesce(' raises an error: ' || c.problem, ''), ' and ' ORDER BY c.n)),
                            CASE WHEN count(c.problem) > 0 THEN format('Whether the row takes part cannot be told, so nothing of it is sent: change the row, or make %s of crm.link a condition that any value allows, with CASE for example.', side)
                                 ELSE format('The row takes part when this holds: change the row, or %s of crm.link.', side) END
                     FROM crm._scope_clauses(k.name, t::regclass, _why_scope.row_id) WITH ORDINALITY AS c (clause, holds, problem, n) WHERE NOT c.holds HAVING count(*) > 0;
    END IF;
END $$;
COMMENT ON FUNCTION crm._why_scope(crm.link, integer, bigint, boolean) IS 'Part of crm.why: the conditions of a link''s scope that a row fails.';

CREATE FUNCTION crm._converted(mirror integer, row_id bigint, other integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Not a function of SQL: that would be planned at each call, which costs more than a question about one record.
    RETURN (SELECT l.merged_into FROM crm.xref a JOIN crm.xref l ON l.entity = a.entity AND l.mirror = $3 AND l.merged_into IS NOT NULL
            JOIN crm.xref c ON c.entity = a.entity AND c.mirror <> l.mirror AND c.merged_into IS NULL
            JOIN crm.mirror m ON m.id = l.mirror JOIN crm.mirror n ON n.id = c.mirror AND n.server = m.server
            WHERE a.mirror = $1 AND a.row_id = $2 AND a.merged_into IS NULL LIMIT 1);
END $$;
COMMENT ON FUNCTION crm._converted(integer, bigint, integer) IS 'The record of another object that a row''s counterpart in a mirror was converted into, and that the row is one with now.';

CREATE FUNCTION crm._record_of(mirror integer, row_id bigint) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t  text := crm._table_of(mirror);
    id text;
BEGIN
    IF has_table_privilege(t, 'SELECT') THEN
        EXECUTE format('SELECT t.id FROM %s t WHERE t._id = $1', t) INTO id USING row_id;
    END IF;
    RETURN id;
END $$;
COMMENT ON FUNCTION crm._record_of(integer, bigint) IS 'Record id of a row of a mirror, if the caller may read it.';

-- A mirror's rows that take part in a link, as SQL text for FROM.
CREATE FUNCTION crm._scoped(mirror integer, scope text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN scope IS NULL THEN crm._table_of(mirror) ELSE format('(SELECT * FROM %s WHERE %s)', crm._table_of(mirror), crm._scope_sql(scope, crm._raising(mirror, scope))) END
$$;
COMMENT ON FUNCTION crm._scoped(integer, text) IS 'SQL text: the rows of a mirror for which a scope holds, without those for which it raises an error.';
-- Which of several records with one key stands for them.

CREATE FUNCTION crm._survivor_rule_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link;
BEGIN
    IF NOT crm._restoring() THEN
        k := crm._link_named(new.link);
        new.prefer := crm._scope_checked(CASE new.side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END, new.prefer);
    END IF;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._survivor_rule_check() IS 'Checks the condition of a rule against the mirror.';
CREATE TRIGGER survivor_rule_check BEFORE INSERT OR UPDATE ON crm.survivor_rule FOR EACH ROW EXECUTE FUNCTION crm._survivor_rule_check();
COMMENT ON TRIGGER survivor_rule_check ON crm.survivor_rule IS 'Refuses rules that cannot be evaluated.';

CREATE FUNCTION crm._survivor_expr(r crm.survivor_rule, mirror integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE r.rule
        WHEN 'has_partner' THEN format('EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror WHERE a.mirror = %s AND a.row_id = t._id) DESC', mirror)
        WHEN 'most_complete' THEN format('num_nonnulls(%s) DESC', coalesce((SELECT string_agg('t.' || quote_ident(c.column_name), ', ') FROM crm.mirror_column c WHERE c.mirror = $2), 'NULL::text'))
        WHEN 'newest' THEN 't._remote_modified_at DESC NULLS LAST'
        WHEN 'oldest' THEN 't._remote_modified_at ASC NULLS LAST'
        WHEN 'lowest_id' THEN 'length(t.id), t.id COLLATE "C"'
        ELSE format('((%s) IS TRUE) DESC', r.prefer) END
$$;
COMMENT ON FUNCTION crm._survivor_expr(crm.survivor_rule, integer) IS 'SQL text: how a rule orders rows, the survivor first.';

CREATE FUNCTION crm._survivor(k crm.link, side text, ids bigint[], OUT survivor bigint, OUT decided_by text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    integer := CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    r    crm.survivor_rule;
    left_over bigint[] := ids;
BEGIN
    FOR r IN SELECT * FROM crm.survivor_rule s WHERE s.link = k.name AND s.side = _survivor.side ORDER BY s.ordinal LOOP
        EXECUTE format('SELECT array_agg(o._id) FROM (SELECT t._id, rank() OVER (ORDER BY %s) AS place FROM %s t WHERE t._id = ANY ($1)) o WHERE o.place = 1',
                       crm._survivor_expr(r, m), crm._table_of(m)) INTO left_over USING left_over;
        IF cardinality(left_over) = 1 THEN
            survivor := left_over[1];
            decided_by := r.rule;
            RETURN;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._survivor(crm.link, text, bigint[]) IS 'Which of these rows of a side stands for them by crm.survivor_rule, and the rule that told; null where the rules do not tell.';

CREATE FUNCTION crm.duplicates(link text)
RETURNS TABLE (mirror text, field text, match_key text, rows bigint[], records text[], survivor bigint, decided_by text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link := crm._link_named(link);
    f crm.field_map;
    s record;
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL AND m.match_threshold IS NULL ORDER BY m.match_order, m.id LOOP
        FOR s IN SELECT * FROM (VALUES ('left', k.left_mirror, f.left_field, k.left_scope), ('right', k.right_mirror, f.right_field, k.right_scope)) AS v (side, mirror, field, scope) LOOP
            RETURN QUERY EXECUTE format('SELECT %1$L, %2$L, d.key, d.ids, d.records, v.survivor, v.decided_by
                FROM (SELECT k.key, array_agg(t._id ORDER BY t._id) AS ids, array_agg(t.id ORDER BY t._id) AS records
                      FROM (SELECT %3$s AS key FROM %4$s t WHERE t._deleted_at IS NULL GROUP BY 1 HAVING count(*) > 1) k JOIN %4$s t ON %3$s = k.key AND t._deleted_at IS NULL GROUP BY 1) d,
                     LATERAL crm._survivor($1, %5$L, d.ids) v
                WHERE d.key IS NOT NULL ORDER BY 3',
                crm._table_of(s.mirror), s.field, crm._match_expr('t.' || crm._column_of(s.mirror, s.field), f.to_left, f.to_right), crm._scoped(s.mirror, s.scope), s.side) USING k;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm.duplicates(text) IS 'Rows of one side of a link that share a match key, with the one that stands for them by crm.survivor_rule; null where a person is asked.';

