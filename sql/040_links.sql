-- Links: which mirrors describe the same things, field by field.

CREATE TABLE crm.standard_map (
    pair        text NOT NULL,
    left_object text NOT NULL,
    right_object text NOT NULL,
    left_field  text NOT NULL,
    right_field text NOT NULL,
    to_left     text NOT NULL DEFAULT 'identity',
    to_right    text NOT NULL DEFAULT 'identity',
    value_map   jsonb,
    match_order smallint,
    value_map_back jsonb,
    direction   text NOT NULL DEFAULT 'both' CHECK (direction IN ('both', 'to_left', 'to_right')),
    PRIMARY KEY (pair, left_field)
);
COMMENT ON TABLE crm.standard_map IS 'Field maps that crm.link starts from: left is HubSpot, right is Salesforce. Part of the extension; edit crm.field_map instead.';

-- Scripts of pg_dump switch this off; rows that they bring were checked when
-- they were made, and the tables they refer to may come later. Anybody can
-- switch it off, so it counts for those only who may restore the extension.
CREATE FUNCTION crm._restoring() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('check_function_bodies') = 'off'
           AND EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_crm_sync' AND pg_has_role(session_user, e.extowner, 'MEMBER'))
$$;
COMMENT ON FUNCTION crm._restoring() IS 'Whether a dump is being restored by this session.';

CREATE FUNCTION crm._link_named(name text) RETURNS crm.link
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l     crm.link;
    known text[];
BEGIN
    SELECT x.* INTO l FROM crm.link x WHERE x.name = _link_named.name;
    IF NOT FOUND THEN
        SELECT array_agg(x.name ORDER BY x.name) INTO known FROM crm.link x;
        RAISE EXCEPTION 'there is no link %', coalesce(quote_literal(name), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'No mirrors are linked yet.' ELSE 'Links are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(name, ''), known, 'crm.link(''hubspot.contacts'', ''salesforce.contact'') makes one.');
    END IF;
    RETURN l;
END $$;
COMMENT ON FUNCTION crm._link_named(text) IS 'Resolves the name of a link or raises, naming near matches.';

CREATE FUNCTION crm._mirror_field(mirror integer, given text) RETURNS crm.mirror_column
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c     crm.mirror_column;
    known text[];
    label text;
BEGIN
    SELECT x.* INTO c FROM crm.mirror_column x
    WHERE x.mirror = _mirror_field.mirror AND (lower(x.field) = lower(given) OR x.column_name = lower(given))
    ORDER BY x.field = given DESC, lower(x.field) = lower(given) DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT array_agg(x.field ORDER BY x.field) INTO known FROM crm.mirror_column x WHERE x.mirror = _mirror_field.mirror;
        SELECT format('%I.%I', m.schema_name, m.table_name) INTO label FROM crm.mirror m WHERE m.id = _mirror_field.mirror;
        RAISE EXCEPTION 'mirror % has no field %', label, coalesce(quote_literal(given), 'null')
            USING ERRCODE = '42703', DETAIL = format('It holds %s fields; a field of the CRM that was not imported has no column.', coalesce(cardinality(known), 0)),
                  HINT = crm._near_hint(coalesce(given, ''), known, 'See crm.mirror_column, or import the field: crm.import(…, columns => …).');
    END IF;
    RETURN c;
END $$;
COMMENT ON FUNCTION crm._mirror_field(integer, text) IS 'Resolves a field of a mirror by API name or column name, or raises, naming near matches.';

CREATE FUNCTION crm.link("left" text, "right" text, name text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l crm.mirror := crm._mirror_named("left");
    r crm.mirror := crm._mirror_named("right");
    k crm.link;
    n integer;
BEGIN
    IF l.id = r.id THEN
        RAISE EXCEPTION 'mirror % cannot be linked to itself', "left" USING ERRCODE = '22023', HINT = 'Name two different mirrors.';
    ELSIF name = '' OR length(name) > 63 THEN
        RAISE EXCEPTION 'a link cannot be named "%"', name USING ERRCODE = '22023', DETAIL = 'Expected 1 to 63 characters.', HINT = 'Leave the name out to call it like the left table.';
    END IF;
    SELECT x.* INTO k FROM crm.link x WHERE (x.left_mirror, x.right_mirror) IN ((l.id, r.id), (r.id, l.id));
    IF FOUND THEN
        RAISE EXCEPTION '% and % are linked already', "left", "right"
            USING ERRCODE = '42710', DETAIL = format('Their link is "%s".', k.name), HINT = 'Edit crm.field_map to change what it maps.';
    END IF;
    name := coalesce(name, CASE WHEN EXISTS (SELECT FROM crm.link x WHERE x.name = l.table_name) THEN l.schema_name || '_' || l.table_name ELSE l.table_name END);
    IF EXISTS (SELECT FROM crm.link x WHERE x.name = link.name) THEN
        RAISE EXCEPTION 'link "%" exists', name USING ERRCODE = '42710', DETAIL = 'Names of links are unique in a database.', HINT = 'Give another one: crm.link(left, right, name => …).';
    END IF;
    INSERT INTO crm.link (name, left_mirror, right_mirror) VALUES (link.name, l.id, r.id) RETURNING * INTO k;
    INSERT INTO crm.field_map (link, left_field, right_field, direction, to_left, to_right, value_map, value_map_back, match_order)
    SELECT k.name, s.* FROM crm._standard_maps(k) s;
    GET DIAGNOSTICS n = ROW_COUNT;
    PERFORM crm._standard_link_apply(k);
    INSERT INTO crm.conflict_policy (link, field, strategy) VALUES (k.name, '*', 'last_write_wins');
    IF n = 0 THEN
        RAISE NOTICE 'link "%" maps no field yet', k.name USING HINT = 'There is no standard map for these objects: INSERT INTO crm.field_map (link, left_field, right_field, match_order) VALUES (…).';
    END IF;
    PERFORM crm._wake();
    RETURN k.name;
END $$;
COMMENT ON FUNCTION crm.link(text, text, text) IS 'Links two mirrors (schema.table) with the standard field maps, scopes and defaults for the columns both have. Starts in shadow: shows what it would send, sends nothing until crm.go_live.';

CREATE FUNCTION crm._pause_set(kind text, name text, value boolean) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m crm.mirror;
    l crm.link;
    s record;
BEGIN
    IF kind IS NULL OR kind NOT IN ('server', 'mirror', 'link') THEN
        RAISE EXCEPTION 'cannot pause or resume a %', coalesce(quote_literal(kind), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected server, mirror or link.',
                  HINT = crm._near_hint(coalesce(kind, ''), ARRAY['server', 'mirror', 'link'], 'For example crm.pause(''server'', ''hubspot'').');
    ELSIF kind = 'server' THEN
        SELECT * INTO s FROM crm._server_checked(name);
        PERFORM crm._server_state_ensure(name);
        UPDATE crm.server_state t SET paused = value WHERE t.server = name;
    ELSIF kind = 'mirror' THEN
        m := crm._mirror_named(name);
        UPDATE crm.mirror t SET paused = value WHERE t.id = m.id;
    ELSE
        l := crm._link_named(name);
        UPDATE crm.link t SET paused = value WHERE t.id = l.id;
    END IF;
    PERFORM crm._wake();
    RETURN format('%s %s is %s', kind, name, CASE WHEN value THEN 'paused' ELSE 'running' END);
END $$;
COMMENT ON FUNCTION crm._pause_set(text, text, boolean) IS 'Sets the pause switch of a server, mirror or link.';

CREATE FUNCTION crm.pause(kind text, name text) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$ SELECT crm._pause_set(kind, name, true) $$;
COMMENT ON FUNCTION crm.pause(text, text) IS 'Stops calls for a server, mirror or link (kind, name). Changes are still captured and wait; inbound events are taken up again by crm.resume.';

CREATE FUNCTION crm.resume(kind text, name text) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$ SELECT crm._pause_set(kind, name, false) $$;
COMMENT ON FUNCTION crm.resume(text, text) IS 'Lets a paused server, mirror or link (kind, name) go on where it stopped.';
