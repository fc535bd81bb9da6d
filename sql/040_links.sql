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
    PRIMARY KEY (pair, left_field)
);
COMMENT ON TABLE crm.standard_map IS 'Field maps that crm.link starts from: left is HubSpot, right is Salesforce. Part of the extension; edit crm.field_map instead.';
INSERT INTO crm.standard_map (pair, left_object, right_object, left_field, right_field, to_left, to_right, value_map, match_order)
SELECT pair, left_object, right_object, left_field, right_field, coalesce(to_left, 'identity'), coalesce(to_right, 'identity'), value_map::jsonb, match_order
FROM (VALUES
    ('contact', 'contacts', 'Contact', 'email', 'Email', NULL, NULL, NULL, 1::smallint),
    ('contact', 'contacts', 'Contact', 'firstname', 'FirstName', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'lastname', 'LastName', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'phone', 'Phone', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'mobilephone', 'MobilePhone', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'jobtitle', 'Title', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'address', 'MailingStreet', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'city', 'MailingCity', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'state', 'MailingState', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'zip', 'MailingPostalCode', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'country', 'MailingCountry', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'domain', 'Website', 'domain_of_url', 'url_of_domain', NULL, 1),
    ('company', 'companies', 'Account', 'name', 'Name', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'phone', 'Phone', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'annualrevenue', 'AnnualRevenue', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'numberofemployees', 'NumberOfEmployees', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'description', 'Description', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'address', 'BillingStreet', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'city', 'BillingCity', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'state', 'BillingState', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'zip', 'BillingPostalCode', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'country', 'BillingCountry', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'dealname', 'Name', NULL, NULL, NULL, 1),
    ('deal', 'deals', 'Opportunity', 'amount', 'Amount', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'closedate', 'CloseDate', 'midnight_of', 'date_of', NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'description', 'Description', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'dealstage', 'StageName', NULL, NULL,
     '{"appointmentscheduled": "Prospecting", "qualifiedtobuy": "Qualification", "presentationscheduled": "Value Proposition",
       "decisionmakerboughtin": "Id. Decision Makers", "contractsent": "Negotiation/Review", "closedwon": "Closed Won", "closedlost": "Closed Lost"}', NULL)
) AS v (pair, left_object, right_object, left_field, right_field, to_left, to_right, value_map, match_order);

-- Scripts of pg_dump switch this off; rows that they bring were checked when
-- they were made, and the tables they refer to may come later.
CREATE FUNCTION crm._restoring() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT current_setting('check_function_bodies') = 'off' $$;
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

-- Why two fields cannot hold the same thing under a map; null if they can.
CREATE FUNCTION crm._map_problem(l crm.mirror_column, r crm.mirror_column, to_left text, to_right text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN l.field_type = 'date_time' AND r.field_type = 'date' THEN
            CASE WHEN to_right <> 'date_of' OR to_left <> 'midnight_of' THEN 'Set to_right = ''date_of'' and to_left = ''midnight_of'': an instant becomes its day and back.' END
        WHEN l.field_type = 'date' AND r.field_type = 'date_time' THEN
            CASE WHEN to_right <> 'midnight_of' OR to_left <> 'date_of' THEN 'Set to_right = ''midnight_of'' and to_left = ''date_of'': a day becomes its midnight (UTC) and back.' END
        WHEN to_left IN ('date_of', 'midnight_of') OR to_right IN ('date_of', 'midnight_of') THEN
            'date_of and midnight_of are for a date on one side and a datetime on the other.'
        WHEN (to_left IN ('domain_of_url', 'url_of_domain') OR to_right IN ('domain_of_url', 'url_of_domain'))
             AND NOT (l.field_type = 'text' AND r.field_type = 'text') THEN 'domain_of_url and url_of_domain are for text fields.'
        WHEN l.field_type <> r.field_type THEN 'Map fields of one type; a text field can take no other type without loss.'
    END
$$;
COMMENT ON FUNCTION crm._map_problem(crm.mirror_column, crm.mirror_column, text, text) IS 'Advice on why two fields cannot be mapped; null when they can.';

CREATE FUNCTION crm._transforms() RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['identity', 'domain_of_url', 'url_of_domain', 'date_of', 'midnight_of']
$$;
COMMENT ON FUNCTION crm._transforms() IS 'Transforms that a field map may name.';

CREATE FUNCTION crm._field_map_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link;
    l     crm.mirror_column;
    r     crm.mirror_column;
    t     text;
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
    FOREACH t IN ARRAY ARRAY[new.to_left, new.to_right] LOOP
        IF t <> ALL (crm._transforms()) THEN
            RAISE EXCEPTION 'unknown transform "%"', t
                USING ERRCODE = '22023', DETAIL = 'Transforms are: ' || array_to_string(crm._transforms(), ', ') || '.',
                      HINT = crm._near_hint(t, crm._transforms(), 'Leave it out for identity.');
        END IF;
    END LOOP;
    wrong := crm._map_problem(l, r, new.to_left, new.to_right);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'fields "%" (%) and "%" (%) cannot be mapped like this', l.field, l.field_type, r.field, r.field_type
            USING ERRCODE = '42804', DETAIL = format('Link "%s", to_left %s, to_right %s.', k.name, new.to_left, new.to_right), HINT = wrong;
    ELSIF (l.read_only AND new.direction IN ('both', 'to_left')) OR (r.read_only AND new.direction IN ('both', 'to_right')) THEN
        RAISE EXCEPTION 'field "%" is read-only in its CRM', CASE WHEN l.read_only AND new.direction <> 'to_right' THEN l.field ELSE r.field END
            USING ERRCODE = '22023', DETAIL = format('direction is %s.', new.direction),
                  HINT = 'Set direction = ''to_right'' when the left field is read-only, ''to_left'' when the right one is.';
    ELSIF new.value_map IS NOT NULL AND (jsonb_typeof(new.value_map) <> 'object'
          OR (SELECT count(*) <> count(DISTINCT v) FROM jsonb_each_text(new.value_map) AS e (f, v))) THEN
        RAISE EXCEPTION 'value_map of field "%" is not one-to-one', l.field
            USING ERRCODE = '22023', DETAIL = 'Expected an object {"left value": "right value"} in which no right value stands twice.',
                  HINT = 'A value that is not listed has no counterpart and does not go across: list every choice in use.';
    END IF;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._field_map_check() IS 'Checks a field map against the mirrors: fields, types, transforms, direction.';
CREATE TRIGGER field_map_check BEFORE INSERT OR UPDATE ON crm.field_map FOR EACH ROW EXECUTE FUNCTION crm._field_map_check();
COMMENT ON TRIGGER field_map_check ON crm.field_map IS 'Refuses maps that cannot work, with what to do instead.';

CREATE FUNCTION crm._standard_maps(k crm.link)
RETURNS TABLE (left_field text, right_field text, direction text, to_left text, to_right text, value_map jsonb, match_order smallint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH sides AS (
        SELECT lm.object AS lo, rm.object AS ro, ls.server_type AS lt, rs.server_type AS rt
        FROM crm.mirror lm JOIN crm._server ls ON ls.server = lm.server, crm.mirror rm JOIN crm._server rs ON rs.server = rm.server
        WHERE lm.id = k.left_mirror AND rm.id = k.right_mirror
    ), maps AS (
        SELECT s.left_field AS lf, s.right_field AS rf, s.to_left, s.to_right, s.value_map, s.match_order
        FROM crm.standard_map s, sides d
        WHERE d.lt = 'hubspot' AND d.rt = 'salesforce' AND s.left_object = d.lo AND s.right_object = d.ro
        UNION ALL
        SELECT s.right_field, s.left_field, s.to_right, s.to_left,
               (SELECT jsonb_object_agg(e.v, e.f) FROM jsonb_each_text(s.value_map) AS e (f, v)), s.match_order
        FROM crm.standard_map s, sides d
        WHERE d.rt = 'hubspot' AND d.lt = 'salesforce' AND s.left_object = d.ro AND s.right_object = d.lo
    )
    SELECT m.lf, m.rf, CASE WHEN l.read_only THEN 'to_right' WHEN r.read_only THEN 'to_left' ELSE 'both' END,
           m.to_left, m.to_right, m.value_map, m.match_order
    FROM maps m
    JOIN crm.mirror_column l ON l.mirror = k.left_mirror AND l.field = m.lf
    JOIN crm.mirror_column r ON r.mirror = k.right_mirror AND r.field = m.rf
    WHERE NOT (l.read_only AND r.read_only) AND crm._map_problem(l, r, m.to_left, m.to_right) IS NULL
$$;
COMMENT ON FUNCTION crm._standard_maps(crm.link) IS 'Standard maps of a link for the columns that both mirrors have, whichever side is left.';

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
    INSERT INTO crm.field_map (link, left_field, right_field, direction, to_left, to_right, value_map, match_order)
    SELECT k.name, s.* FROM crm._standard_maps(k) s;
    GET DIAGNOSTICS n = ROW_COUNT;
    INSERT INTO crm.conflict_policy (link, field, strategy) VALUES (k.name, '*', 'last_write_wins');
    IF n = 0 THEN
        RAISE NOTICE 'link "%" maps no field yet', k.name USING HINT = 'There is no standard map for these objects: INSERT INTO crm.field_map (link, left_field, right_field, match_order) VALUES (…).';
    END IF;
    PERFORM crm._wake();
    RETURN k.name;
END $$;
COMMENT ON FUNCTION crm.link(text, text, text) IS 'Links two mirrors (schema.table) with the standard field maps for the columns both have. Starts in shadow: shows what it would send, sends nothing until crm.go_live.';

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
