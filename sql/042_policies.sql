-- Policies: which rule decides, per link and field; who may write; their history.

CREATE TABLE crm.policy_history (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy_version bigint NOT NULL,
    changed_at     timestamptz NOT NULL DEFAULT now(),
    changed_by     name NOT NULL DEFAULT session_user,
    reason         text DEFAULT nullif(current_setting('pg_crm_sync.reason', true), ''),
    kind           text NOT NULL CHECK (kind IN ('policy', 'lock', 'stamp')),
    before         jsonb,
    after          jsonb
);
COMMENT ON TABLE crm.policy_history IS 'Every change of crm.conflict_policy (kind policy), crm.field_lock (lock) and crm.stamp_quality (stamp): who, when, why (pg_crm_sync.reason), the row before and after, and the policy version it began.';

CREATE TABLE crm.policy_task (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy_version bigint NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('decide', 'apply')),
    link           text NOT NULL,
    field          text NOT NULL,
    asked_by       name NOT NULL DEFAULT session_user,
    asked_at       timestamptz NOT NULL DEFAULT now(),
    cursor         bigint NOT NULL DEFAULT 0,
    looked_at      bigint NOT NULL DEFAULT 0,
    changed        bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE crm.policy_task IS 'Changes of policy that the worker has not carried out yet: unsent writes and open questions to decide again (decide), or differences to settle because somebody asked (apply, see crm.policy_apply). A finished one leaves and stands in crm.event, kind policy.';
COMMENT ON COLUMN crm.policy_task.cursor IS 'The entities up to this one are done: a crash resumes here.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['policy_history', 'policy_history_id_seq', 'policy_task', 'policy_task_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

-- As the table of the resolver: field_types null is all.
CREATE FUNCTION crm._strategies() RETURNS TABLE (strategy text, decides text, needs_winner boolean, takes_winner boolean, field_types text[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES ('owner', 'every change', true, true, NULL::text[]),
           ('fill_blank', 'every change', true, true, NULL),
           ('last_write_wins', 'conflicts', false, true, NULL),
           ('priority', 'conflicts', true, true, NULL),
           ('append', 'every change', false, false, ARRAY['text']),
           ('delta', 'every change', false, false, ARRAY['number']),
           ('union', 'every change', false, false, ARRAY['multi_choice']),
           ('function', 'conflicts', false, false, NULL),
           ('review', 'conflicts', false, true, NULL)
$$;
COMMENT ON FUNCTION crm._strategies() IS 'The strategies of crm.conflict_policy: what they decide, whether they need a winner, and for which types of field they are.';

CREATE FUNCTION crm._policy_winners(winner text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(btrim(w) ORDER BY n), '{}')
    FROM unnest(string_to_array(winner, ',')) WITH ORDINALITY AS x (w, n) WHERE btrim(w) <> ''
$$;
COMMENT ON FUNCTION crm._policy_winners(text) IS 'The comma-separated winners of a policy, in order.';

CREATE FUNCTION crm._origins(k crm.link) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(SELECT m.server FROM crm.mirror m WHERE k.id IS NULL OR m.id IN (k.left_mirror, k.right_mirror)
                 GROUP BY m.server ORDER BY bool_or(m.id = k.right_mirror), min(m.id))
        || ARRAY['local']
        || ARRAY(SELECT DISTINCT substr(c, 25) FROM pg_db_role_setting s, unnest(s.setconfig) c
                 WHERE c LIKE 'pg\_crm\_sync.application=%' AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) ORDER BY 1)
$$;
COMMENT ON FUNCTION crm._origins(crm.link) IS 'Who may be named by a policy of this link: its servers, local, and applications that a role or database is set to (pg_crm_sync.application). Null: any server.';

CREATE FUNCTION crm._policy_field(k crm.link, given text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mapped text[] := (SELECT array_agg(f.left_field ORDER BY f.left_field) FROM crm.field_map f WHERE f.link = k.name);
    hit    text;
BEGIN
    SELECT f.left_field INTO hit FROM crm.field_map f WHERE f.link = k.name AND lower(given) = lower(f.left_field);
    IF given = '*' THEN
        RETURN given;
    ELSIF hit IS NULL THEN
        RAISE EXCEPTION 'link "%" maps no field "%"', k.name, given
            USING ERRCODE = '42703', DETAIL = 'Policies name fields as the left side does; mapped are: ' || coalesce(array_to_string(mapped, ', '), 'none') || '.',
                  HINT = coalesce((SELECT format('On the left side it is called %s.', f.left_field) FROM crm.field_map f WHERE f.link = k.name AND lower(f.right_field) = lower(given)),
                                  crm._near_hint(given, mapped, '* stands for all fields without a row of their own; crm.field_map adds fields.'));
    END IF;
    RETURN hit;
END $$;
COMMENT ON FUNCTION crm._policy_field(crm.link, text) IS 'Resolves the field of a policy row or raises, naming near matches.';

-- The same field of the group under another link, where both mirrors of a map
-- are not the same but one is shared.
CREATE FUNCTION crm._policy_clash(p crm.conflict_policy) RETURNS crm.conflict_policy
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT other
    FROM crm.link mine
    JOIN crm.field_map fm ON fm.link = mine.name AND fm.left_field = p.field
    JOIN crm.link theirs ON theirs.id <> mine.id
    JOIN crm.field_map tm ON tm.link = theirs.name
         AND ((mine.left_mirror = theirs.left_mirror AND fm.left_field = tm.left_field)
           OR (mine.right_mirror = theirs.right_mirror AND fm.right_field = tm.right_field)
           OR (mine.left_mirror = theirs.right_mirror AND fm.left_field = tm.right_field)
           OR (mine.right_mirror = theirs.left_mirror AND fm.right_field = tm.left_field))
    JOIN crm.conflict_policy other ON other.link = theirs.name AND other.field = tm.left_field
    WHERE mine.name = p.link
      AND (other.strategy, coalesce(other.winner, ''), coalesce(other.function, ''), coalesce(other.min_score, 0), other.strict)
          IS DISTINCT FROM (p.strategy, coalesce(p.winner, ''), coalesce(p.function, ''), coalesce(p.min_score, 0), p.strict)
    LIMIT 1
$$;
COMMENT ON FUNCTION crm._policy_clash(crm.conflict_policy) IS 'The row of another link of the group that decides the same field otherwise.';

CREATE FUNCTION crm._policy_type_check(k crm.link, p crm.conflict_policy) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    types text[] := (SELECT s.field_types FROM crm._strategies() s WHERE s.strategy = p.strategy);
    f     crm.field_map;
    c     crm.mirror_column;
    m     crm.mirror;
BEGIN
    IF types IS NULL THEN
        RETURN;
    ELSIF p.field = '*' THEN
        RAISE EXCEPTION 'strategy "%" cannot be the default', p.strategy
            USING ERRCODE = '42804', DETAIL = format('It is for fields of type %s; field * stands for fields of every type.', array_to_string(types, ' or ')),
                  HINT = 'Name the fields: one row each.';
    END IF;
    SELECT x.* INTO f FROM crm.field_map x WHERE x.link = k.name AND x.left_field = p.field;
    FOR m IN SELECT x.* FROM crm.mirror x WHERE x.id IN (k.left_mirror, k.right_mirror) ORDER BY x.id = k.right_mirror LOOP
        c := crm._mirror_field(m.id, CASE WHEN m.id = k.left_mirror THEN f.left_field ELSE f.right_field END);
        IF c.field_type <> ALL (types) THEN
            RAISE EXCEPTION 'strategy "%" cannot decide field "%"', p.strategy, p.field
                USING ERRCODE = '42804', DETAIL = format('%s.%s is of type %s; the strategy is for %s.', m.server, c.field, c.field_type, array_to_string(types, ' or ')),
                      HINT = CASE p.strategy WHEN 'delta' THEN 'append is for text, union for multi-select fields.' WHEN 'union' THEN 'append is for text, delta for numbers.' ELSE 'delta is for numbers, union for multi-select fields.' END;
        ELSIF p.strategy = 'append' AND EXISTS (SELECT FROM crm.remote_field r WHERE r.server = m.server AND r.object = m.object AND r.field = c.field AND r.options <> '[]') THEN
            RAISE EXCEPTION 'strategy "append" cannot decide field "%"', p.field
                USING ERRCODE = '42804', DETAIL = format('%s.%s is a choice from a list; nothing can be added to one.', m.server, c.field),
                      HINT = 'Use owner, priority or last_write_wins for a single choice, union for a multi-select field.';
        END IF;
    END LOOP;
    IF f.to_left <> 'identity' OR f.to_right <> 'identity' OR (f.value_map IS NOT NULL AND p.strategy <> 'union') THEN
        RAISE EXCEPTION 'strategy "%" cannot decide field "%"', p.strategy, p.field
            USING ERRCODE = '42804', DETAIL = 'Its map changes values on the way, so what one side added is not what the other would add.',
                  HINT = format('UPDATE crm.field_map SET to_left = ''identity'', to_right = ''identity'', value_map = NULL WHERE link = %L AND left_field = %L; or use another strategy.', k.name, p.field);
    END IF;
END $$;
COMMENT ON FUNCTION crm._policy_type_check(crm.link, crm.conflict_policy) IS 'Refuses append, delta and union on fields that they cannot decide.';

-- Schema, name and arguments (null if none are named) of what is to be schema.name or
-- schema.name(arguments), and nothing else: it is looked up, never run as it stands.
CREATE FUNCTION crm._function_named(given text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := regexp_match(given, '^\s*([^()]+?)\s*(?:\(([^()]*)\))?\s*$');
    names text[];
BEGIN
    BEGIN
        names := parse_ident(parts[1]);
    EXCEPTION WHEN invalid_parameter_value THEN
        names := NULL;
    END;
    IF names IS NULL OR cardinality(names) <> 2 THEN
        RAISE EXCEPTION '% names no function', quote_literal(left(given, 100))
            USING ERRCODE = CASE WHEN cardinality(names) = 1 THEN '42883' ELSE '42602' END, DETAIL = 'Expected schema.name, or schema.name(types of its arguments), and nothing before or behind it.',
                  HINT = CASE WHEN cardinality(names) = 1 THEN format('Name it with its schema, for example public.%I.', names[1]) ELSE 'For example public.my_map.' END;
    END IF;
    RETURN ARRAY[names[1], names[2], btrim(parts[2])];
END $$;
COMMENT ON FUNCTION crm._function_named(text) IS 'Schema, name and arguments of a function as a policy or map names it, or raises.';

-- The function of a row, as schema.name; raises where it cannot be used. It runs
-- as its owner, so only those who could run things as the owner may name it.
CREATE FUNCTION crm._policy_function(given text, asker name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := crm._function_named(given);
    name  text := format('%I.%I', parts[1], parts[2]);
    f     pg_proc;
    super boolean := (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = asker);
BEGIN
    SELECT p.* INTO f FROM pg_proc p WHERE p.oid = to_regprocedure(name || '(text, text, jsonb)') AND p.pronamespace <> 'pg_catalog'::regnamespace;
    IF NOT FOUND OR regexp_replace(parts[3], '\s', '', 'g') <> 'text,text,jsonb' THEN
        RAISE EXCEPTION 'there is no function %(text, text, jsonb)', name
            USING ERRCODE = '42883', DETAIL = 'Arguments are: the value held, the value that came, and who wrote them when.',
                  HINT = format('CREATE FUNCTION %s(held text, came text, context jsonb) RETURNS text STABLE …', name);
    ELSIF f.prorettype <> 'text'::regtype OR f.proretset OR f.prokind <> 'f' THEN
        RAISE EXCEPTION 'function % does not return one text', name
            USING ERRCODE = '42P13', DETAIL = format('It returns %s%s.', CASE WHEN f.proretset THEN 'SETOF ' ELSE '' END, f.prorettype::regtype),
                  HINT = 'The result is the value that is to stand, as text; null is blank.';
    ELSIF f.provolatile = 'v' THEN
        RAISE EXCEPTION 'function % is volatile', name
            USING ERRCODE = '42P17', DETAIL = 'A decision must come out the same when it is replayed.',
                  HINT = format('If it only reads: ALTER FUNCTION %s(text, text, jsonb) STABLE;', name);
    ELSIF NOT pg_has_role(asker, f.proowner, 'MEMBER') OR (NOT super AND (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = f.proowner)) THEN
        RAISE EXCEPTION 'function % belongs to %', name, f.proowner::regrole
            USING ERRCODE = '42501', DETAIL = format('It will run with the rights of its owner, and %s could not act as that role.', asker),
                  HINT = 'Name a function of your own, or let its owner add the row.';
    ELSIF NOT has_function_privilege(f.proowner, f.oid, 'EXECUTE') OR NOT has_schema_privilege(f.proowner, f.pronamespace, 'USAGE') THEN
        RAISE EXCEPTION 'role % may not execute function %', f.proowner::regrole, name
            USING ERRCODE = '42501', DETAIL = 'It runs with the rights of its owner.',
                  HINT = format('GRANT EXECUTE ON FUNCTION %s(text, text, jsonb) TO %s; GRANT USAGE ON SCHEMA %s TO %2$s;', name, f.proowner::regrole, f.pronamespace::regnamespace);
    END IF;
    RETURN format('%I.%I', (SELECT n.nspname FROM pg_namespace n WHERE n.oid = f.pronamespace), f.proname);
END $$;
COMMENT ON FUNCTION crm._policy_function(text, name) IS 'Resolves the function of a policy row or raises: signature, volatility, owner, EXECUTE.';

CREATE FUNCTION crm._policy_winner_check(k crm.link, p crm.conflict_policy) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known   text[] := (SELECT array_agg(s.strategy) FROM crm._strategies() s);
    winners text[] := crm._policy_winners(p.winner);
    origins text[] := crm._origins(k);
    s       record;
    w       text;
BEGIN
    SELECT * INTO s FROM crm._strategies() x WHERE x.strategy = p.strategy;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown strategy "%"', p.strategy
            USING ERRCODE = '22023', DETAIL = 'Strategies are: ' || array_to_string(known, ', ') || '.',
                  HINT = crm._near_hint(p.strategy, known, 'owner and fill_blank decide every change; the others decide conflicts.');
    ELSIF s.needs_winner AND cardinality(winners) = 0 THEN
        RAISE EXCEPTION 'strategy "%" needs a winner', p.strategy
            USING ERRCODE = '22023', DETAIL = format('Origins of link "%s" are: %s.', p.link, array_to_string(origins, ', ')),
                  HINT = format('For example winner = %L.', origins[1]);
    ELSIF NOT s.takes_winner AND cardinality(winners) > 0 THEN
        RAISE EXCEPTION 'strategy "%" has no winner', p.strategy
            USING ERRCODE = '22023', DETAIL = format('Got %s.', p.winner), HINT = 'Leave winner out, or set it to NULL.';
    ELSIF cardinality(winners) > (SELECT count(DISTINCT n) FROM unnest(winners) n) THEN
        RAISE EXCEPTION 'winner names "%" twice', (SELECT n FROM unnest(winners) n GROUP BY n HAVING count(*) > 1 LIMIT 1)
            USING ERRCODE = '22023', DETAIL = format('Got %s: an order has a place for each once.', p.winner),
                  HINT = format('Write winner = %L.', (SELECT string_agg(d.n, ',' ORDER BY d.at) FROM (SELECT n, min(at) AS at FROM unnest(winners) WITH ORDINALITY AS w (n, at) GROUP BY n) d));
    ELSIF p.strategy = 'owner' AND cardinality(winners) > 1 THEN
        RAISE EXCEPTION 'strategy "owner" has one winner, not %', cardinality(winners)
            USING ERRCODE = '22023', DETAIL = format('Got %s.', p.winner), HINT = 'Use strategy priority for an order of several.';
    ELSIF (p.strategy = 'function') <> (p.function IS NOT NULL) THEN
        RAISE EXCEPTION '%', CASE WHEN p.function IS NULL THEN 'strategy "function" needs a function' ELSE format('strategy "%s" calls no function', p.strategy) END
            USING ERRCODE = '22023', DETAIL = 'The column function names what strategy "function" calls.', HINT = 'For example strategy = ''function'', function = ''public.longer''.';
    END IF;
    FOREACH w IN ARRAY winners LOOP
        IF w <> ALL (origins) THEN
            RAISE EXCEPTION 'winner "%" is not a side of link "%"', w, p.link
                USING ERRCODE = '22023', DETAIL = 'Its sides are: ' || array_to_string(origins, ', ') || ' (local is SQL).',
                      HINT = crm._near_hint(w, origins, 'Name servers, not objects or tables; an application is known once ALTER ROLE … SET pg_crm_sync.application names it.');
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._policy_winner_check(crm.link, crm.conflict_policy) IS 'Refuses unknown strategies, and winners that are missing, superfluous or nobody.';

-- An UPDATE that changes nothing is no change of the policy: it gets no version.
CREATE FUNCTION crm._same_but_signed(was jsonb, is_ jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT was - '{changed_by,changed_at}'::text[] = is_ - '{changed_by,changed_at}'::text[]
$$;
COMMENT ON FUNCTION crm._same_but_signed(jsonb, jsonb) IS 'Whether two versions of a row differ in nothing but who wrote it and when.';

CREATE FUNCTION crm._policy_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link;
    clash crm.conflict_policy;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    ELSIF new.link <> '*' THEN
        k := crm._link_named(new.link);
        new.field := crm._policy_field(k, new.field);
    ELSIF new.field <> '*' THEN
        RAISE EXCEPTION 'link * has the one field *' USING ERRCODE = '22023', DETAIL = 'It stands for mirrors that no link names.', HINT = 'Name the link.';
    END IF;
    new.winner := nullif(array_to_string(crm._policy_winners(new.winner), ','), '');
    PERFORM crm._policy_winner_check(k, new);
    IF new.field <> '*' AND new.skew <> interval '2 seconds' AND (tg_op = 'INSERT' OR new.skew <> old.skew) THEN
        RAISE EXCEPTION 'field "%" has no skew of its own', new.field
            USING ERRCODE = '22023', DETAIL = 'How far clocks may be apart is one time for a link, that of its row of field *.',
                  HINT = format('UPDATE crm.conflict_policy SET skew = %L WHERE link = %L AND field = ''*'';', new.skew, new.link);
    END IF;
    IF new.function IS NOT NULL THEN
        new.function := crm._policy_function(new.function, session_user);
    END IF;
    IF k.id IS NOT NULL THEN
        PERFORM crm._policy_type_check(k, new);
        clash := crm._policy_clash(new);
        IF clash.id IS NOT NULL THEN
            RAISE EXCEPTION 'field "%" would be decided in two ways%', new.field, CASE WHEN 'owner' = ALL (ARRAY[new.strategy, clash.strategy]) THEN ': it would have two owners' ELSE '' END
                USING ERRCODE = '23505', DETAIL = format('Links that share a mirror are decided together; the other row is: link "%s", field "%s", %s %s.', clash.link, clash.field, clash.strategy, clash.winner),
                      HINT = 'One row is enough for all of them: change that one, or write the same here.';
        END IF;
    END IF;
    IF tg_op = 'UPDATE' AND crm._same_but_signed(to_jsonb(old), to_jsonb(new)) THEN
        RETURN old;
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._policy_check() IS 'Checks a policy row: link, field, strategy, winner, types, function, one rule per field of a group.';
CREATE TRIGGER policy_check BEFORE INSERT OR UPDATE ON crm.conflict_policy FOR EACH ROW EXECUTE FUNCTION crm._policy_check();
COMMENT ON TRIGGER policy_check ON crm.conflict_policy IS 'Refuses policies that cannot decide anything, with what to do instead.';

CREATE FUNCTION crm._field_lock_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k       crm.link;
    origins text[];
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    new.field := crm._policy_field(k, new.field);
    origins := crm._origins(k);
    IF new.field = '*' THEN
        RAISE EXCEPTION 'a lock names one field' USING ERRCODE = '22023', DETAIL = 'Field * would lock the whole link.', HINT = 'Set direction in crm.field_map to let values flow one way only.';
    ELSIF new.origin <> ALL (origins) THEN
        RAISE EXCEPTION 'origin "%" is not a side of link "%"', new.origin, k.name
            USING ERRCODE = '22023', DETAIL = 'Its sides are: ' || array_to_string(origins, ', ') || ' (local is SQL).',
                  HINT = crm._near_hint(new.origin, origins, 'An application is known once ALTER ROLE … SET pg_crm_sync.application names it.');
    END IF;
    IF tg_op = 'UPDATE' AND crm._same_but_signed(to_jsonb(old), to_jsonb(new)) THEN
        RETURN old;
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._field_lock_check() IS 'Checks a lock: link, field, origin.';
CREATE TRIGGER field_lock_check BEFORE INSERT OR UPDATE ON crm.field_lock FOR EACH ROW EXECUTE FUNCTION crm._field_lock_check();
COMMENT ON TRIGGER field_lock_check ON crm.field_lock IS 'Refuses locks that nobody could open, with what to do instead.';

CREATE FUNCTION crm._policy_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v   bigint;
    was jsonb := CASE WHEN tg_op <> 'INSERT' THEN to_jsonb(old) END;
    is_ jsonb := CASE WHEN tg_op <> 'DELETE' THEN to_jsonb(new) END;
BEGIN
    IF crm._restoring() OR was = is_ THEN
        RETURN NULL;
    END IF;
    INSERT INTO crm.installation DEFAULT VALUES ON CONFLICT DO NOTHING;
    UPDATE crm.installation SET policy_version = policy_version + 1 RETURNING policy_version INTO v;
    INSERT INTO crm.policy_history (policy_version, kind, before, after)
    VALUES (v, CASE tg_table_name WHEN 'field_lock' THEN 'lock' ELSE 'policy' END, was, is_);
    INSERT INTO crm.policy_task (policy_version, kind, link, field)
    SELECT DISTINCT v, 'decide', r ->> 'link', r ->> 'field' FROM unnest(ARRAY[was, is_]) r WHERE r IS NOT NULL;
    PERFORM crm._wake();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._policy_changed() IS 'Gives every policy change its own version, keeps it in crm.policy_history, and has the worker decide again what is not sent yet.';

CREATE FUNCTION crm._policy_truncate() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'table crm.% cannot be truncated', tg_table_name
        USING ERRCODE = '0A000', DETAIL = 'Every change of it is kept with the row before and after.', HINT = format('DELETE FROM crm.%I WHERE …', tg_table_name);
END $$;
COMMENT ON FUNCTION crm._policy_truncate() IS 'Refuses TRUNCATE where a history is kept.';

-- Looked at when the transaction ends: a row may be replaced by another.
CREATE FUNCTION crm._policy_default_kept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() AND NOT EXISTS (SELECT FROM crm.conflict_policy p WHERE p.link = old.link AND p.field = '*')
       AND (EXISTS (SELECT FROM crm.link l WHERE l.name = old.link) OR (old.link = '*' AND EXISTS (SELECT FROM crm.mirror))) THEN
        RAISE EXCEPTION 'link "%" would have no default policy', old.link
            USING ERRCODE = '23502', DETAIL = 'There is no hidden default: the row of field * decides all fields without a row of their own.',
                  HINT = format('UPDATE crm.conflict_policy SET strategy = …, winner = … WHERE link = %L AND field = ''*''; changes it.', old.link);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._policy_default_kept() IS 'Refuses to leave a link without its default row.';
CREATE CONSTRAINT TRIGGER policy_default_kept AFTER UPDATE OF link, field OR DELETE ON crm.conflict_policy
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (old.field = '*') EXECUTE FUNCTION crm._policy_default_kept();
COMMENT ON TRIGGER policy_default_kept ON crm.conflict_policy IS 'Keeps one default row per link.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['conflict_policy', 'field_lock'] LOOP
        EXECUTE format('CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE ON crm.%I FOR EACH ROW EXECUTE FUNCTION crm._policy_changed()', t);
        EXECUTE format('COMMENT ON TRIGGER policy_changed ON crm.%I IS %L', t, 'Keeps the history of policies.');
        EXECUTE format('CREATE TRIGGER policy_truncate BEFORE TRUNCATE ON crm.%I FOR EACH STATEMENT EXECUTE FUNCTION crm._policy_truncate()', t);
        EXECUTE format('COMMENT ON TRIGGER policy_truncate ON crm.%I IS %L', t, 'Keeps the history whole.');
    END LOOP;
END $$;

CREATE FUNCTION crm._link_policies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tg_op = 'DELETE' THEN
        DELETE FROM crm.conflict_policy p WHERE p.link = old.name;
    ELSIF new.name <> old.name THEN
        UPDATE crm.conflict_policy p SET link = new.name WHERE p.link = old.name;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._link_policies() IS 'Lets policies follow their link when it is renamed or removed.';
CREATE TRIGGER link_policies AFTER UPDATE OF name OR DELETE ON crm.link FOR EACH ROW EXECUTE FUNCTION crm._link_policies();
COMMENT ON TRIGGER link_policies ON crm.link IS 'Policies follow their link.';

-- A mirror without a link has two writers, its CRM and SQL.
CREATE FUNCTION crm._mirror_default() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() AND NOT EXISTS (SELECT FROM crm.conflict_policy p WHERE p.link = '*') THEN
        INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('*', '*', 'last_write_wins') ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._mirror_default() IS 'Writes the default policy of mirrors without a link with the first mirror, for all to see.';
CREATE TRIGGER mirror_default AFTER INSERT ON crm.mirror FOR EACH STATEMENT EXECUTE FUNCTION crm._mirror_default();
COMMENT ON TRIGGER mirror_default ON crm.mirror IS 'No hidden default.';

CREATE FUNCTION crm.policy_apply(link text, field text DEFAULT '*') RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k    crm.link := crm._link_named(link);
    f    text := crm._policy_field(k, coalesce(field, '*'));
    task bigint;
BEGIN
    IF k.mode <> 'live' THEN
        RAISE EXCEPTION 'link "%" is in shadow', k.name
            USING ERRCODE = '55000', DETAIL = 'Differences are settled by writing to a CRM.', HINT = format('SELECT crm.preview(%L); then SELECT crm.go_live(%L);', k.name, k.name);
    END IF;
    INSERT INTO crm.policy_task (policy_version, kind, link, field)
    SELECT i.policy_version, 'apply', k.name, f FROM crm.installation i RETURNING id INTO task;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN task;
END $$;
COMMENT ON FUNCTION crm.policy_apply(text, text) IS 'Has the worker decide, by the policy as it is now, every difference that stands between tied records of a link (one field, or * for all). Returns the number of the task in crm.policy_task, which leaves when it is done.';
