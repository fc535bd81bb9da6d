-- Mirrors of associations: a row is one type of association of two records, and
-- another type is another record of the CRM.

-- Pairs are read by the records that they start from.
CREATE FUNCTION crm._pairs_checked(remote crm.remote_object, columns jsonb, row_filter text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF strpos(remote.type_id, '/') = 0 THEN
        RETURN;
    ELSIF columns IS NOT NULL OR row_filter IS NOT NULL THEN
        RAISE EXCEPTION 'associations come whole' USING ERRCODE = '22023', DETAIL = format('Columns or a filter were given for "%s".', remote.object),
              HINT = 'Name the objects that columns and row_filter are meant for.';
    ELSIF NOT EXISTS (SELECT FROM crm.mirror m JOIN crm.remote_object o USING (server, object)
                      WHERE m.server = remote.server AND o.type_id = split_part(remote.type_id, '/', 1)) THEN
        RAISE EXCEPTION 'associations "%" need a mirror of "%"', remote.object, split_part(remote.object, '/', 1)
            USING ERRCODE = '55000', DETAIL = 'They are read by the records that they start from.',
                  HINT = format('Name both: ARRAY[%L, %L].', split_part(remote.object, '/', 1), replace(remote.object, '/', '_'));
    END IF;
END $$;
COMMENT ON FUNCTION crm._pairs_checked(crm.remote_object, jsonb, text) IS 'Raises where a mirror of associations lacks the mirror of the records that they start from.';


-- The types that two objects' associations may have. The first is the plain one:
-- every pair has it, whatever else it has.
CREATE FUNCTION crm._pair_types(mirror integer) RETURNS TABLE (n bigint, type_id text, category text, label text, main boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT o.n, o.option ->> 'value', c.options -> (o.n - 1)::integer ->> 'value', nullif(o.option ->> 'label', ''),
           EXISTS (SELECT FROM jsonb_array_elements(p.options) x WHERE x ->> 'value' = o.option ->> 'value' AND c.options -> (o.n - 1)::integer ->> 'value' = x ->> 'label')
    FROM crm.mirror m
    JOIN crm.remote_field t ON t.server = m.server AND t.object = m.object AND t.field = 'type_id'
    JOIN crm.remote_field c ON c.server = m.server AND c.object = m.object AND c.field = 'category'
    JOIN crm.remote_field p ON p.server = m.server AND p.object = m.object AND p.field = 'is_primary'
    CROSS JOIN LATERAL jsonb_array_elements(t.options) WITH ORDINALITY AS o (option, n)
    WHERE m.id = _pair_types.mirror
$$;
COMMENT ON FUNCTION crm._pair_types(integer) IS 'The types that the rows of a mirror of associations may have; the plain one is the first.';

-- Says which type a row is to have, by type_id and category, or by label, or by
-- is_primary, whichever the statement gave. A label takes the place of a label, and
-- the plain type that of any; all else is one type more for the pair, for which the
-- row stays: _sync_state says so to the next trigger.
CREATE FUNCTION crm._pair_named() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was    record;
    wanted record;
    plain  record;
    typed  boolean;
    named  boolean;
    marked boolean;
BEGIN
    IF crm._by_engine(tg_relid) THEN
        RETURN new;
    ELSIF tg_op = 'UPDATE' AND (new.from_id, new.to_id) IS DISTINCT FROM (old.from_id, old.to_id) THEN
        RAISE EXCEPTION 'mirror "%.%" cannot move an association to other records', tg_table_schema, tg_table_name
            USING ERRCODE = '0A000', DETAIL = 'Its records say which association it is.', HINT = 'INSERT the other one and DELETE this one, in one transaction if you like.';
    END IF;
    SELECT * INTO plain FROM crm._pair_types(tg_argv[0]::integer) t WHERE t.n = 1;
    SELECT t.* INTO was FROM (SELECT) one LEFT JOIN crm._pair_types(tg_argv[0]::integer) t
        ON tg_op = 'UPDATE' AND t.type_id = old.type_id::text AND t.category = old.category;
    typed := (new.type_id::text, new.category) IS DISTINCT FROM CASE tg_op WHEN 'UPDATE' THEN (old.type_id::text, old.category) ELSE (plain.type_id, plain.category) END;
    named := new.label IS DISTINCT FROM CASE tg_op WHEN 'UPDATE' THEN old.label END;
    marked := coalesce(new.is_primary, false) <> CASE tg_op WHEN 'UPDATE' THEN coalesce(old.is_primary, false) ELSE false END;
    IF typed THEN
        SELECT new.type_id::text AS type_id, new.category AS category, t.label, coalesce(t.main, false) AS main, coalesce(t.n, 0) AS n INTO wanted
        FROM (SELECT) one LEFT JOIN crm._pair_types(tg_argv[0]::integer) t ON t.type_id = new.type_id::text AND t.category = new.category;
    ELSIF named AND new.label IS NOT NULL THEN
        SELECT t.type_id, t.category, t.label, t.main, t.n, count(*) OVER () AS found INTO wanted FROM crm._pair_types(tg_argv[0]::integer) t WHERE t.label = new.label;
        IF wanted.n IS NULL OR wanted.found > 1 THEN
            RAISE EXCEPTION 'label "%" is % of the associations of %.%', new.label, CASE WHEN wanted.n IS NULL THEN 'none' ELSE 'several' END, tg_table_schema, tg_table_name
                USING ERRCODE = '22023', DETAIL = coalesce('Labels: ' || (SELECT string_agg(format('%s (%s %s)', t.label, t.category, t.type_id), ', ' ORDER BY t.n) FROM crm._pair_types(tg_argv[0]::integer) t WHERE t.label IS NOT NULL), 'There are no labels.'),
                      HINT = 'Make a label in the CRM, then read the catalog again with crm.schema_refresh(…); or set type_id and category.';
        END IF;
    ELSIF marked AND new.is_primary THEN
        SELECT t.type_id, t.category, t.label, t.main, t.n INTO wanted FROM crm._pair_types(tg_argv[0]::integer) t WHERE t.main LIMIT 1;
        IF wanted.n IS NULL THEN
            RAISE EXCEPTION 'associations of %.% have no primary one', tg_table_schema, tg_table_name
                USING ERRCODE = '0A000', DETAIL = 'The CRM knows a primary record only where one of the two is a company.', HINT = 'Use a label.';
        END IF;
    ELSIF named OR marked THEN
        SELECT t.type_id, t.category, t.label, t.main, t.n INTO wanted FROM crm._pair_types(tg_argv[0]::integer) t WHERE t.n = 1;
    ELSE
        RETURN new;
    END IF;
    IF wanted.n > 0 AND (named AND new.label IS DISTINCT FROM wanted.label OR marked AND coalesce(new.is_primary, false) <> wanted.main) THEN
        RAISE EXCEPTION 'an association has one type: % % is not what label and is_primary say', wanted.category, wanted.type_id
            USING ERRCODE = '22023', DETAIL = format('Its label is %s, is_primary %s.', coalesce(quote_literal(wanted.label), 'null'), wanted.main), HINT = 'Set one of label, is_primary, or type_id with category; a pair with several types has several rows.';
    END IF;
    new.type_id := wanted.type_id;
    new.category := wanted.category;
    new.label := wanted.label;
    new.is_primary := wanted.main;
    IF tg_op = 'UPDATE' AND (was.n = 1 OR (wanted.n <> 1 AND (coalesce(was.main, false) OR wanted.main))) THEN
        new._sync_state := 'one more';
    END IF;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._pair_named() IS 'Says which type an association is to have, by type, label or primary flag.';

-- One type more for a pair: a row more, with the rights of who asked for it.
CREATE FUNCTION crm._pair_added() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    there boolean;
    args  CONSTANT text[] := ARRAY[new.from_id, new.to_id, new.type_id::text, new.category];
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE from_id = ($1)[1] AND to_id = ($1)[2] AND type_id = ($1)[3]::numeric AND category = ($1)[4] AND _deleted_at IS NULL)', tg_relid::regclass)
        INTO there USING args;
    IF NOT there THEN
        EXECUTE format('INSERT INTO %s (from_id, to_id, type_id, category) VALUES (($1)[1], ($1)[2], ($1)[3]::numeric, ($1)[4])', tg_relid::regclass) USING args;
    END IF;
    RETURN old;
END $$;
COMMENT ON FUNCTION crm._pair_added() IS 'Makes the row of a further type of a pair.';

CREATE FUNCTION crm._pairs_prepared(m crm.mirror, t regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
BEGIN
    -- What a new association is if nobody says: the first type, the one without a label.
    FOR f IN SELECT v.field, v.first FROM crm._pair_types(m.id) y, LATERAL (VALUES ('type_id', y.type_id), ('category', y.category)) AS v (field, first) WHERE y.n = 1 LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %L', t, crm._column_of(m.id, f.field), f.first);
    END LOOP;
    EXECUTE format('CREATE INDEX ON %s (from_id)', t);
    EXECUTE format('CREATE INDEX ON %s (to_id)', t);
    -- In this order, by name. What the worker writes passes by the conditions.
    EXECUTE format('CREATE OR REPLACE TRIGGER crm_pair_1 BEFORE INSERT ON %s FOR EACH ROW WHEN (new.id IS NULL) EXECUTE FUNCTION crm._pair_named(%L)', t, m.id);
    EXECUTE format('CREATE OR REPLACE TRIGGER crm_pair_2 BEFORE UPDATE ON %s FOR EACH ROW WHEN ((old.from_id, old.to_id, old.type_id, old.category, old.label, old.is_primary) IS DISTINCT FROM (new.from_id, new.to_id, new.type_id, new.category, new.label, new.is_primary)) EXECUTE FUNCTION crm._pair_named(%L)', t, m.id);
    EXECUTE format('CREATE OR REPLACE TRIGGER crm_pair_3 BEFORE UPDATE ON %s FOR EACH ROW WHEN (new._sync_state = ''one more'') EXECUTE FUNCTION crm._pair_added()', t);
END $$;
COMMENT ON FUNCTION crm._pairs_prepared(crm.mirror, regclass) IS 'Defaults, indexes and triggers of a mirror of associations.';

CREATE FUNCTION crm._pairs_released(t regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g name;
BEGIN
    FOR g IN SELECT x.tgname FROM pg_trigger x WHERE x.tgrelid = t AND x.tgname IN ('crm_pair_1', 'crm_pair_2', 'crm_pair_3') LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', g, t);
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._pairs_released(regclass) IS 'Takes the triggers of a mirror of associations from a table that is none any more.';
