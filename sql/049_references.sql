-- References between records: HubSpot ties records by associations, Salesforce by
-- a field that holds the other record's id. A reference map says which
-- associations of a linked object are which field of its counterpart, and over which
-- link the records at the other end are one thing.

CREATE TABLE crm.reference_map (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link        text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    association integer REFERENCES crm.mirror ON DELETE CASCADE,
    field       text NOT NULL,
    parent      text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    type_id     numeric,
    category    text NOT NULL DEFAULT 'HUBSPOT_DEFINED',
    main        boolean NOT NULL DEFAULT false,
    own          integer NOT NULL DEFAULT 0,
    theirs       integer NOT NULL DEFAULT 0,
    own_parent   integer NOT NULL DEFAULT 0,
    their_parent integer NOT NULL DEFAULT 0,
    own_field    text,
    at_creation  boolean NOT NULL DEFAULT false,
    UNIQUE NULLS NOT DISTINCT (link, association, own_field, field, parent),
    CHECK ((association IS NULL) <> (own_field IS NULL) AND (association IS NULL) = (type_id IS NULL))
);
COMMENT ON TABLE crm.reference_map IS 'Which associations of a link''s records, or which field that holds an id, are which reference field of their counterparts. Made by crm.link_references, or row by row: link, field, parent, and association with type_id, or own_field.';
COMMENT ON COLUMN crm.reference_map.association IS 'The mirror of associations, crm.mirror.id; null where own_field says it.';
COMMENT ON COLUMN crm.reference_map.own_field IS 'A field of the records that holds the id of the one at the other end, as hs_product_id of a line item.';
COMMENT ON COLUMN crm.reference_map.at_creation IS 'The counterpart is made with this reference and keeps it: its create waits until the reference is known (of an association up to a day), and what changes later is not carried to that side.';
COMMENT ON COLUMN crm.reference_map.parent IS 'The link over which the records at the other end are one thing.';
COMMENT ON COLUMN crm.reference_map.type_id IS 'Type and category of the associations that are meant.';
COMMENT ON COLUMN crm.reference_map.main IS 'There is one association of this type at a time (the primary company): a new one replaces the field''s value. Otherwise there may be several, and a new one only fills an empty field.';
COMMENT ON COLUMN crm.reference_map.own IS 'Set by itself: the mirrors of the records and of those at the other end, on both sides.';

CREATE TABLE crm.reference_due (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    map     integer NOT NULL REFERENCES crm.reference_map ON DELETE CASCADE,
    kind    text NOT NULL CHECK (kind IN ('tied', 'untied', 'moved', 'filled', 'given')),
    record  text,
    row_id  bigint,
    was     text,
    becomes text,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    tries   integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    waits   text
);
CREATE INDEX reference_due_next ON crm.reference_due (next_at);
CREATE INDEX reference_due_row ON crm.reference_due (map, row_id) WHERE row_id IS NOT NULL;
COMMENT ON TABLE crm.reference_due IS 'Changed associations and references that the worker has not carried over. One whose other end has no counterpart yet is tried again: at intervals up to a minute for a day, then every hour.';
COMMENT ON COLUMN crm.reference_due.record IS 'For an association (tied, untied): the record that it starts from.';
COMMENT ON COLUMN crm.reference_due.row_id IS 'For a reference field (moved, filled) and for a field that holds an id (given): the row that holds it.';
COMMENT ON COLUMN crm.reference_due.waits IS 'What is missing.';
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['reference_map', 'reference_map_id_seq', 'reference_due', 'reference_due_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE TABLE crm.standard_reference (
    left_object text NOT NULL,
    to_object   text NOT NULL,
    right_object text NOT NULL,
    field       text NOT NULL,
    type_id     numeric,
    main        boolean NOT NULL,
    own_field   text,
    at_creation boolean NOT NULL DEFAULT false,
    PRIMARY KEY (left_object, to_object, right_object)
);
COMMENT ON TABLE crm.standard_reference IS 'Reference maps that crm.link_references starts from. Part of the extension; edit crm.reference_map instead.';
INSERT INTO crm.standard_reference (left_object, to_object, right_object, field, type_id, main) VALUES
    ('contacts', 'companies', 'Contact', 'AccountId', 1, true),
    ('deals', 'companies', 'Opportunity', 'AccountId', 5, true),
    ('tickets', 'companies', 'Case', 'AccountId', 26, true), ('tickets', 'contacts', 'Case', 'ContactId', 16, false),
    ('tasks', 'contacts', 'Task', 'WhoId', 204, false), ('tasks', 'companies', 'Task', 'WhatId', 192, false),
    ('tasks', 'deals', 'Task', 'WhatId', 216, false), ('tasks', 'tickets', 'Task', 'WhatId', 230, false),
    ('calls', 'contacts', 'Task', 'WhoId', 194, false), ('calls', 'companies', 'Task', 'WhatId', 182, false),
    ('calls', 'deals', 'Task', 'WhatId', 206, false), ('calls', 'tickets', 'Task', 'WhatId', 220, false),
    ('emails', 'contacts', 'Task', 'WhoId', 198, false), ('emails', 'companies', 'Task', 'WhatId', 186, false),
    ('emails', 'deals', 'Task', 'WhatId', 210, false), ('emails', 'tickets', 'Task', 'WhatId', 224, false),
    ('notes', 'contacts', 'Task', 'WhoId', 202, false), ('notes', 'companies', 'Task', 'WhatId', 190, false),
    ('notes', 'deals', 'Task', 'WhatId', 214, false), ('notes', 'tickets', 'Task', 'WhatId', 228, false),
    ('meetings', 'contacts', 'Event', 'WhoId', 200, false), ('meetings', 'companies', 'Event', 'WhatId', 188, false),
    ('meetings', 'deals', 'Event', 'WhatId', 212, false), ('meetings', 'tickets', 'Event', 'WhatId', 226, false);
INSERT INTO crm.standard_reference (left_object, to_object, right_object, field, type_id, main, own_field, at_creation) VALUES
    ('line_items', 'deals', 'OpportunityLineItem', 'OpportunityId', 20, false, NULL, true),
    ('line_items', 'products', 'OpportunityLineItem', 'Product2Id', NULL, false, 'hs_product_id', true);

-- What a change of an association or a reference leaves for the worker; runs in
-- the transaction of whoever made it, and does nothing else.
CREATE FUNCTION crm._reference_noted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r    crm.reference_map;
    was  jsonb := CASE WHEN tg_op <> 'INSERT' THEN to_jsonb(old) END;
    now_ jsonb := CASE WHEN tg_op <> 'DELETE' THEN to_jsonb(new) END;
    had  boolean;
    has  boolean;
    name text;
BEGIN
    SELECT m.* INTO r FROM crm.reference_map m JOIN crm.link k ON k.name = m.link WHERE m.id = tg_argv[0]::integer AND k.mode = 'live';
    IF NOT FOUND THEN
        RETURN NULL;
    ELSIF crm._by_reference(tg_relid) = r.id THEN
        -- What this map carried over, carried back, would undo what the other side changed since.
        RETURN NULL;
    ELSIF tg_argv[1] <> 'association' THEN
        -- By what the column is called now.
        SELECT c.column_name INTO name FROM crm.mirror_column c
        WHERE (c.mirror, c.field) = CASE tg_argv[1] WHEN 'given' THEN (r.own, r.own_field) ELSE (r.theirs, r.field) END;
        INSERT INTO crm.reference_due (map, kind, row_id, was, becomes)
        VALUES (r.id, CASE WHEN tg_argv[1] = 'given' THEN 'given' WHEN tg_op = 'INSERT' THEN 'filled' ELSE 'moved' END, (now_ ->> '_id')::bigint, was ->> name, now_ ->> name);
    ELSE
        had := was ->> '_deleted_at' IS NULL AND ((was ->> 'type_id')::numeric, was ->> 'category') = (r.type_id, r.category);
        has := now_ ->> '_deleted_at' IS NULL AND ((now_ ->> 'type_id')::numeric, now_ ->> 'category') = (r.type_id, r.category);
        IF has IS TRUE AND had IS NOT TRUE THEN
            INSERT INTO crm.reference_due (map, kind, record, becomes) VALUES (r.id, 'tied', now_ ->> 'from_id', now_ ->> 'to_id');
        ELSIF had IS TRUE AND has IS NOT TRUE THEN
            INSERT INTO crm.reference_due (map, kind, record, was) VALUES (r.id, 'untied', was ->> 'from_id', was ->> 'to_id');
        ELSE
            RETURN NULL;
        END IF;
    END IF;
    PERFORM crm._wake();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._reference_noted() IS 'Notes that an association or a reference changed, for the worker to carry over.';

CREATE FUNCTION crm._reference_map_checked() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link;
    p crm.link;
    a crm.mirror;
    o crm.mirror;
    x crm.mirror;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    p := crm._link_named(new.parent);
    SELECT * INTO a FROM crm.mirror m WHERE m.id = new.association;
    IF new.own_field IS NULL THEN
        SELECT * INTO o FROM crm.mirror m WHERE m.id IN (k.left_mirror, k.right_mirror) AND m.server = a.server AND m.object = split_part(a.object, '/', 1);
        SELECT * INTO x FROM crm.mirror m WHERE m.id IN (p.left_mirror, p.right_mirror) AND m.server = a.server AND m.object = split_part(a.object, '/', 2);
    ELSE
        -- The side that has the one field and whose counterpart has the other.
        SELECT m.* INTO o FROM crm.mirror m WHERE m.id IN (k.left_mirror, k.right_mirror)
            AND EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id AND c.field = new.own_field)
            AND EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = k.left_mirror + k.right_mirror - m.id AND lower(c.field) = lower(new.field)) LIMIT 1;
        SELECT * INTO x FROM crm.mirror m WHERE m.id IN (p.left_mirror, p.right_mirror) AND m.server = o.server;
        IF o.id IS NULL OR x.id IS NULL THEN
            RAISE EXCEPTION 'fields "%" and "%" tie no records of links "%" and "%"', new.own_field, new.field, k.name, p.name
                USING ERRCODE = '22023', DETAIL = 'One mirror of the link must have the one field and the other mirror the other.', HINT = 'own_field holds the id of a record of the parent link in the same CRM; field holds the id of its counterpart.';
        END IF;
    END IF;
    IF o.id IS NULL OR x.id IS NULL THEN
        RAISE EXCEPTION 'associations of % do not tie records of links "%" and "%"', coalesce(crm._table_of(a.id), new.association::text), k.name, p.name
            USING ERRCODE = '22023', DETAIL = format('They are %s.', coalesce(a.object, 'not a mirror')), HINT = 'Name the mirror of associations that start from the link''s records and lead to those of the parent''s.';
    END IF;
    new.own := o.id;
    new.theirs := CASE o.id WHEN k.left_mirror THEN k.right_mirror ELSE k.left_mirror END;
    new.own_parent := x.id;
    new.their_parent := CASE x.id WHEN p.left_mirror THEN p.right_mirror ELSE p.left_mirror END;
    new.field := (crm._mirror_field(new.theirs, new.field)).field;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._reference_map_checked() IS 'Finds the four mirrors of a reference map, or refuses it.';
CREATE TRIGGER reference_map_checked BEFORE INSERT OR UPDATE ON crm.reference_map FOR EACH ROW EXECUTE FUNCTION crm._reference_map_checked();
COMMENT ON TRIGGER reference_map_checked ON crm.reference_map IS 'Finds the four mirrors of a reference map, or refuses it.';

-- Triggers on the two tables whose changes are carried over.
CREATE FUNCTION crm._reference_attach(r crm.reference_map, attach boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name   text := 'crm_reference_' || r.id;
    tied   text := crm._table_of(r.association);
    theirs text := crm._table_of(r.theirs);
    t      text;
    f      record;
BEGIN
    FOREACH t IN ARRAY ARRAY[tied, theirs, crm._table_of(r.own)] LOOP
        CONTINUE WHEN to_regclass(t) IS NULL;
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', name, t);
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', name || '_new', t);
    END LOOP;
    IF attach AND tied IS NOT NULL THEN
        EXECUTE format('CREATE TRIGGER %I AFTER INSERT OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION crm._reference_noted(%L, ''association'')', name || '_new', tied, r.id);
        -- Not by UPDATE OF: a trigger before it sets the type that a label means.
        EXECUTE format('CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW WHEN ((old.type_id, old.category, old._deleted_at IS NULL) IS DISTINCT FROM (new.type_id, new.category, new._deleted_at IS NULL)) EXECUTE FUNCTION crm._reference_noted(%L, ''association'')', name, tied, r.id);
    END IF;
    FOR f IN SELECT r.theirs AS mirror, r.field, 'reference' AS what UNION ALL SELECT r.own, r.own_field, 'given' WHERE r.own_field IS NOT NULL LOOP
        CONTINUE WHEN NOT attach;
        EXECUTE format('CREATE TRIGGER %1$I AFTER UPDATE ON %2$s FOR EACH ROW WHEN (old.%3$s IS DISTINCT FROM new.%3$s) EXECUTE FUNCTION crm._reference_noted(%4$L, %5$L)',
                       name, crm._table_of(f.mirror), crm._column_of(f.mirror, f.field), r.id, f.what);
        EXECUTE format('CREATE TRIGGER %1$I AFTER INSERT ON %2$s FOR EACH ROW WHEN (new.%3$s IS NOT NULL) EXECUTE FUNCTION crm._reference_noted(%4$L, %5$L)',
                       name || '_new', crm._table_of(f.mirror), crm._column_of(f.mirror, f.field), r.id, f.what);
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._reference_attach(crm.reference_map, boolean) IS 'Makes or drops the triggers of a reference map.';

CREATE FUNCTION crm._reference_map_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF crm._restoring() THEN
        RETURN NULL;
    END IF;
    IF tg_op <> 'INSERT' THEN
        PERFORM crm._reference_attach(old, false);
    END IF;
    IF tg_op <> 'DELETE' THEN
        PERFORM crm._reference_attach(new, true);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._reference_map_changed() IS 'Keeps the triggers of a reference map in step with it.';
CREATE TRIGGER reference_map_changed AFTER INSERT OR UPDATE OR DELETE ON crm.reference_map FOR EACH ROW EXECUTE FUNCTION crm._reference_map_changed();
COMMENT ON TRIGGER reference_map_changed ON crm.reference_map IS 'Keeps the triggers on the mirrors in step.';

CREATE FUNCTION crm.link_references(link text) RETURNS TABLE (association text, field text, parent text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    k crm.link := crm._link_named(link_references.link);
    n integer;
BEGIN
    RETURN QUERY
    WITH sides AS (
        SELECT o.id AS own, o.server, o.object, t.id AS theirs, t.server AS their_server, t.object AS their_object
        FROM crm.mirror o, crm.mirror t WHERE (o.id, t.id) IN ((k.left_mirror, k.right_mirror), (k.right_mirror, k.left_mirror))
    ), found AS (
        SELECT a.id AS association, s.field, p.name AS parent, s.type_id, s.main, s.own_field, s.at_creation
        FROM sides d JOIN crm.standard_reference s ON s.left_object = d.object AND s.right_object = d.their_object
        LEFT JOIN crm.mirror a ON a.server = d.server AND a.object = s.left_object || '/' || s.to_object AND s.own_field IS NULL
        LEFT JOIN crm.mirror_column w ON w.mirror = d.own AND w.field = s.own_field AND NOT w.read_only
        JOIN crm.mirror po ON po.server = d.server AND po.object = s.to_object
        JOIN crm.link p ON po.id IN (p.left_mirror, p.right_mirror)
        JOIN crm.mirror pt ON pt.id IN (p.left_mirror, p.right_mirror) AND pt.id <> po.id AND pt.server = d.their_server
        JOIN crm.mirror_column c ON c.mirror = d.theirs AND c.field = s.field AND NOT c.read_only
        JOIN crm.remote_field f ON f.server = d.their_server AND f.object = d.their_object AND f.field = s.field AND pt.object = ANY (f."references")
        WHERE a.id IS NOT NULL OR w.mirror IS NOT NULL
    ), made AS (
        INSERT INTO crm.reference_map (link, association, field, parent, type_id, main, own_field, at_creation)
        SELECT k.name, f.association, f.field, f.parent, f.type_id, f.main, f.own_field, f.at_creation FROM found f ON CONFLICT DO NOTHING RETURNING *
    )
    SELECT coalesce(crm._table_of(m.association), m.own_field), m.field, m.parent FROM made m ORDER BY 1, 2;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n = 0 THEN
        RAISE NOTICE 'link "%" has no reference to add', k.name
            USING HINT = 'Import the associations (for example contacts_companies) and link the objects at the other end first.';
    END IF;
END $$;
COMMENT ON FUNCTION crm.link_references(text) IS 'Carries references of a link''s records over from now on: associations of HubSpot, and the product of a line item, to the reference fields of Salesforce and back, where the associations are imported and the records at the other end are linked. Says what it added.';

-- Mirrors are read with the rights of their owners; $1 of a query is a list.
CREATE FUNCTION crm._reference_read(mirror integer, query text, given jsonb) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN crm._as_engine_found(crm._relation_of(m.schema_name, m.table_name), format(query, format('%I.%I', m.schema_name, m.table_name)), given) FROM crm.mirror m WHERE m.id = mirror;
END $$;
COMMENT ON FUNCTION crm._reference_read(integer, text, jsonb) IS 'Reads a mirror (%s in the query) as its owner may.';

-- The counterpart of a record: row and id; nothing where it has none.
CREATE FUNCTION crm._reference_partner(source integer, record text, row_id bigint, target integer, OUT partner_row bigint, OUT partner text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found jsonb;
BEGIN
    IF row_id IS NULL THEN
        row_id := crm._reference_read(source, 'SELECT jsonb_agg(t._id) FROM %s t WHERE t.id = $1 ->> 0', jsonb_build_array(record)) ->> 0;
    END IF;
    SELECT b.row_id INTO partner_row FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror = target AND b.merged_into IS NULL
    WHERE a.mirror = source AND a.row_id = _reference_partner.row_id AND a.merged_into IS NULL LIMIT 1;
    IF partner_row IS NOT NULL THEN
        found := crm._reference_read(target, 'SELECT jsonb_agg(t.id) FROM %s t WHERE t._id = ($1 ->> 0)::bigint AND t._deleted_at IS NULL', jsonb_build_array(partner_row));
        partner := found ->> 0;
        partner_row := CASE WHEN found IS NOT NULL THEN partner_row END;
    END IF;
END $$;
COMMENT ON FUNCTION crm._reference_partner(integer, text, bigint, integer) IS 'The counterpart of a record in another mirror: its row and its id.';

-- Records that one is tied to by associations of the map's type.
CREATE FUNCTION crm._reference_tied(r crm.reference_map, record text) RETURNS SETOF text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_array_elements_text(crm._reference_read(r.association,
        'SELECT jsonb_agg(t.to_id ORDER BY t._id) FROM %s t WHERE t.from_id = $1 ->> 0 AND t.type_id = ($1 ->> 1)::numeric AND t.category = $1 ->> 2 AND t._deleted_at IS NULL',
        jsonb_build_array(record, r.type_id, r.category)))
$$;
COMMENT ON FUNCTION crm._reference_tied(crm.reference_map, text) IS 'Records that a record is tied to by associations of a map''s type.';

-- What a field of a row holds: the reference, or the one that holds an id.
CREATE FUNCTION crm._reference_held(mirror integer, field text, row_id bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT crm._reference_read(mirror, 'SELECT jsonb_agg(t.' || replace(crm._column_of(mirror, field), '%', '%%') || ') FROM %s t WHERE t._id = ($1 ->> 0)::bigint AND t._deleted_at IS NULL', jsonb_build_array(row_id)) ->> 0
$$;
COMMENT ON FUNCTION crm._reference_held(integer, text, bigint) IS 'The value of a field of a row that tells of another record.';

-- The same for two fields that hold ids: a change of either asks for one of the other.
CREATE FUNCTION crm._reference_plan_ids(r crm.reference_map, d crm.reference_due, OUT relation oid, OUT statements text[], OUT args jsonb, OUT waits text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given    CONSTANT boolean := d.kind = 'given';
    here     CONSTANT integer := CASE WHEN given THEN r.own ELSE r.theirs END;
    there    CONSTANT integer := CASE WHEN given THEN r.theirs ELSE r.own END;
    field_name CONSTANT text := CASE WHEN given THEN r.field ELSE r.own_field END;
    child    record;
    other    record;
BEGIN
    statements := '{}';
    args := '[]';
    IF crm._reference_held(here, CASE WHEN given THEN r.own_field ELSE r.field END, d.row_id) IS DISTINCT FROM d.becomes THEN
        RETURN;
    END IF;
    child := crm._reference_partner(here, NULL, d.row_id, there);
    other := crm._reference_partner(CASE WHEN given THEN r.own_parent ELSE r.their_parent END, d.becomes, NULL, CASE WHEN given THEN r.their_parent ELSE r.own_parent END);
    IF given AND r.at_creation AND child.partner IS NOT NULL THEN
        RETURN;
    ELSIF NOT given AND EXISTS (SELECT FROM crm.reference_due x WHERE x.map = r.id AND x.kind = 'given' AND x.row_id = child.partner_row) THEN
        -- What a new row starts with here gives way to what its counterpart says.
        RETURN;
    ELSIF child.partner_row IS NULL OR (d.becomes IS NOT NULL AND other.partner IS NULL) THEN
        waits := format('%s has no record in %s yet', CASE WHEN child.partner_row IS NULL THEN 'it' ELSE d.becomes END,
                        crm._table_of(CASE WHEN child.partner_row IS NULL THEN there WHEN given THEN r.their_parent ELSE r.own_parent END));
    ELSIF crm._reference_held(there, field_name, child.partner_row) IS DISTINCT FROM other.partner THEN
        relation := (SELECT crm._relation_of(m.schema_name, m.table_name) FROM crm.mirror m WHERE m.id = there);
        statements := ARRAY[format('UPDATE %s SET %s = ($1)[1]::%s WHERE _id = ($1)[2]::bigint', crm._table_of(there), crm._column_of(there, field_name),
            (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN crm.mirror_column c ON c.column_name = a.attname WHERE a.attrelid = relation AND c.mirror = there AND c.field = field_name))];
        args := jsonb_build_array(jsonb_build_array(other.partner, child.partner_row));
    END IF;
END $$;
COMMENT ON FUNCTION crm._reference_plan_ids(crm.reference_map, crm.reference_due) IS 'What a changed id of a record at the other end asks for on the other side.';

-- What ties a record to another one, if it is not tied already.
CREATE FUNCTION crm._reference_ties(r crm.reference_map, kind text, record text, partner text) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tied   CONSTANT text[] := (SELECT array_agg(DISTINCT t) FROM crm._reference_tied(r, record) t);
    tie    CONSTANT text := format('INSERT INTO %s (from_id, to_id, type_id, category) VALUES (($1)[1], ($1)[2], ($1)[3]::numeric, ($1)[4])', crm._table_of(r.association));
    alone  CONSTANT text := format('DELETE FROM %s WHERE from_id = ($1)[1] AND to_id <> ($1)[2] AND type_id = ($1)[3]::numeric AND category = ($1)[4] AND id IS NULL AND _deleted_at IS NULL', crm._table_of(r.association));
BEGIN
    -- Where several seem to be the main one, the CRM has not told yet which of them lost the mark: it may be this one.
    IF (CASE WHEN kind = 'filled' THEN tied IS NOT NULL WHEN r.main THEN tied = ARRAY[partner] ELSE partner = ANY (tied) END) THEN
        RETURN '{}';
    END IF;
    -- What the CRM has not taken yet could come after this one and take the mark from it.
    RETURN CASE WHEN r.main AND tied IS NOT NULL THEN ARRAY[alone] ELSE '{}' END || tie;
END $$;
COMMENT ON FUNCTION crm._reference_ties(crm.reference_map, text, text, text) IS 'Statements that tie a record to another one, if it is not tied already.';

-- What a change asks for: statements on one relation with their arguments, nothing,
-- or what it waits for.
CREATE FUNCTION crm._reference_plan(r crm.reference_map, d crm.reference_due, OUT relation oid, OUT statements text[], OUT args jsonb, OUT waits text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    child  record;
    other  record;
    before record;
    held   text;
    named  text := crm._column_of(r.theirs, r.field);
    -- Of the main ones all that the CRM knows: one whose successor it never took is still the main one.
    untie  CONSTANT text := format('DELETE FROM %s WHERE from_id = ($1)[1] AND (to_id = ($1)[2] OR %s) AND type_id = ($1)[3]::numeric AND category = ($1)[4] AND _deleted_at IS NULL', crm._table_of(r.association), CASE WHEN r.main THEN 'id IS NOT NULL' ELSE 'false' END);
    prefix text;
BEGIN
    statements := '{}';
    args := '[]';
    IF d.kind IN ('tied', 'untied') THEN
        relation := (SELECT crm._relation_of(m.schema_name, m.table_name) FROM crm.mirror m WHERE m.id = r.theirs);
        IF (d.kind = 'tied') <> EXISTS (SELECT FROM crm._reference_tied(r, d.record) t WHERE t = coalesce(d.becomes, d.was)) THEN
            RETURN;
        END IF;
        child := crm._reference_partner(r.own, d.record, NULL, r.theirs);
        other := crm._reference_partner(r.own_parent, coalesce(d.becomes, d.was), NULL, r.their_parent);
        IF d.kind = 'tied' AND (child.partner_row IS NULL OR other.partner IS NULL) THEN
            waits := format('%s %s has no record in %s yet', split_part((SELECT m.object FROM crm.mirror m WHERE m.id = r.association), '/', CASE WHEN child.partner_row IS NULL THEN 1 ELSE 2 END),
                            CASE WHEN child.partner_row IS NULL THEN d.record ELSE d.becomes END, crm._table_of(CASE WHEN child.partner_row IS NULL THEN r.theirs ELSE r.their_parent END));
            RETURN;
        ELSIF child.partner_row IS NULL OR other.partner IS NULL OR (r.at_creation AND child.partner IS NOT NULL) THEN
            RETURN;
        END IF;
        held := crm._reference_held(r.theirs, r.field, child.partner_row);
        IF EXISTS (SELECT FROM crm.reference_due x WHERE x.map = r.id AND x.row_id = child.partner_row AND x.id > d.id AND x.kind IN ('moved', 'filled') AND x.becomes = held) THEN
            RETURN; -- Somebody set the field since: that is carried over next.
        ELSIF d.kind = 'tied' AND held IS DISTINCT FROM other.partner AND (held IS NULL OR r.main) THEN
            held := other.partner;
        ELSIF d.kind = 'untied' AND held = other.partner THEN
            SELECT x.partner INTO held FROM crm._reference_tied(r, d.record) t, LATERAL crm._reference_partner(r.own_parent, t, NULL, r.their_parent) x WHERE x.partner IS NOT NULL LIMIT 1;
        ELSE
            RETURN;
        END IF;
        statements := ARRAY[format('UPDATE %s SET %s = ($1)[1] WHERE _id = ($1)[2]::bigint', crm._table_of(r.theirs), named)];
        args := jsonb_build_array(jsonb_build_array(held, child.partner_row));
        RETURN;
    END IF;
    relation := (SELECT crm._relation_of(m.schema_name, m.table_name) FROM crm.mirror m WHERE m.id = r.association);
    held := crm._reference_held(r.theirs, r.field, d.row_id);
    -- A field for several kinds of record: this one is of another.
    SELECT o.type_id INTO prefix FROM crm.mirror m JOIN crm.remote_object o ON o.server = m.server AND o.object = m.object WHERE m.id = r.their_parent;
    IF held IS DISTINCT FROM d.becomes OR (d.becomes IS NOT NULL AND d.was IS NULL AND length(prefix) = 3 AND left(d.becomes, 3) <> prefix) THEN
        RETURN;
    END IF;
    child := crm._reference_partner(r.theirs, NULL, d.row_id, r.own);
    other := crm._reference_partner(r.their_parent, d.becomes, NULL, r.own_parent);
    IF d.becomes IS NOT NULL AND (length(prefix) <> 3 OR left(d.becomes, 3) = prefix) THEN
        IF child.partner IS NULL OR other.partner IS NULL THEN
            waits := format('%s has no record in %s yet', CASE WHEN child.partner IS NULL THEN 'it' ELSE d.becomes END, crm._table_of(CASE WHEN child.partner IS NULL THEN r.own ELSE r.own_parent END));
            RETURN;
        END IF;
        statements := crm._reference_ties(r, d.kind, child.partner, other.partner);
        args := (SELECT coalesce(jsonb_agg(jsonb_build_array(child.partner, other.partner, r.type_id, r.category)), '[]') FROM unnest(statements));
    END IF;
    before := crm._reference_partner(r.their_parent, d.was, NULL, r.own_parent);
    -- The CRM itself takes the mark of the main one from the one before.
    IF child.partner IS NOT NULL AND before.partner IS NOT NULL AND (NOT r.main OR d.becomes IS NULL)
       AND EXISTS (SELECT FROM crm._reference_tied(r, child.partner) t WHERE t = before.partner) THEN
        statements := statements || untie;
        args := args || jsonb_build_array(jsonb_build_array(child.partner, before.partner, r.type_id, r.category));
    END IF;
END $$;
COMMENT ON FUNCTION crm._reference_plan(crm.reference_map, crm.reference_due) IS 'What a changed association or reference asks for on the other side.';

-- What a change is about: one reference field of one thing.
CREATE FUNCTION crm._reference_of(r crm.reference_map, d crm.reference_due) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT concat_ws(' ', r.theirs, r.field, (
        SELECT x.entity FROM crm.xref x WHERE x.mirror = CASE WHEN d.kind IN ('moved', 'filled') THEN r.theirs ELSE r.own END AND x.merged_into IS NULL
        AND x.row_id = coalesce(d.row_id, (crm._reference_read(r.own, 'SELECT jsonb_agg(t._id) FROM %s t WHERE t.id = $1 ->> 0', jsonb_build_array(d.record)) ->> 0)::bigint)))
$$;
COMMENT ON FUNCTION crm._reference_of(crm.reference_map, crm.reference_due) IS 'Which reference of which thing a change is about.';

-- The next changes and what to do about each, for the worker. Those that ask for
-- nothing leave; those that wait stay for later. Of several about one reference the
-- first comes alone: what the others ask for depends on what it did. Planned
-- together, a change of each side would for ever undo that of the other.
CREATE FUNCTION crm._reference_step(most integer) RETURNS TABLE (due bigint, map integer, relation oid, statement text, args text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    d    crm.reference_due;
    r    crm.reference_map;
    plan record;
    this text;
    met  text[] := '{}';
BEGIN
    FOR d IN SELECT x.* FROM crm.reference_due x WHERE x.next_at <= clock_timestamp() ORDER BY x.id LIMIT most LOOP
        SELECT m.* INTO r FROM crm.reference_map m JOIN crm.link k ON k.name = m.link WHERE m.id = d.map AND k.mode = 'live' AND NOT k.paused;
        IF NOT FOUND THEN
            UPDATE crm.reference_due SET next_at = clock_timestamp() + interval '1 minute' WHERE id = d.id;
            CONTINUE;
        END IF;
        this := crm._reference_of(r, d);
        CONTINUE WHEN this = ANY (met);
        IF r.own_field IS NULL THEN
            plan := crm._reference_plan(r, d);
        ELSE
            plan := crm._reference_plan_ids(r, d);
        END IF;
        IF plan.waits IS NULL AND cardinality(plan.statements) > 0 THEN
            met := met || this;
            RETURN QUERY SELECT d.id, d.map, plan.relation, s.statement, ARRAY(SELECT jsonb_array_elements_text(plan.args -> (s.n - 1)::integer)) FROM unnest(plan.statements) WITH ORDINALITY AS s (statement, n);
        ELSIF plan.waits IS NOT NULL THEN
            PERFORM crm._reference_later(d.id, plan.waits);
        ELSE
            DELETE FROM crm.reference_due WHERE id = d.id;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._reference_step(integer) IS 'The next references to carry over, as statements for the worker.';

CREATE FUNCTION crm._reference_later(due bigint, why text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE crm.reference_due SET tries = tries + 1, waits = left(why, 500), next_at = clock_timestamp() + CASE WHEN at < now() - interval '1 day' THEN interval '1 hour' ELSE least(interval '1 minute', interval '250 milliseconds' * power(2, least(tries, 8))) END WHERE id = due
$$;
COMMENT ON FUNCTION crm._reference_later(bigint, text) IS 'Puts a reference off.';

-- Creates that must be made with a reference wait for it: of a field as long as its id
-- waits to be carried over, or is in the row and not yet in the create, of an association
-- for a day.
CREATE FUNCTION crm._references_awaited(mirror integer, most bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE put_off bigint;
BEGIN
    -- Only of what is claimed next: a look at each create that waits would cost more with each that does.
    WITH next AS MATERIALIZED (
        SELECT q.id FROM crm.write q WHERE q.mirror = $1 AND q.state = 'queued' AND (q.not_before IS NULL OR q.not_before <= now())
          AND q.id = (SELECT min(e.id) FROM crm.write e WHERE e.mirror = q.mirror AND e.row_id = q.row_id
                      AND (e.state IN ('in_flight', 'unknown', 'queued') OR e.state = 'held' AND e.kind = 'create')) ORDER BY q.id LIMIT $2)
    UPDATE crm.write w SET not_before = clock_timestamp() + least(interval '1 minute', greatest(interval '250 milliseconds', (clock_timestamp() - w.queued_at) / 8))
    FROM crm.reference_map r JOIN crm.link k ON k.name = r.link AND k.mode = 'live'
    WHERE w.id IN (SELECT n.id FROM next n) AND r.theirs = $1 AND r.at_creation AND w.mirror = $1 AND w.kind = 'create' AND w.state = 'queued'
      AND EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror = r.own WHERE a.mirror = $1 AND a.row_id = w.row_id
                  AND CASE WHEN r.own_field IS NULL THEN w.vals ->> r.field IS NULL AND w.queued_at > now() - interval '1 day'
                           ELSE EXISTS (SELECT FROM crm.reference_due d WHERE d.map = r.id AND d.kind = 'given' AND d.row_id = b.row_id)
                                OR (w.queued_at > now() - interval '1 day' AND crm._reference_held(r.theirs, r.field, w.row_id) <> coalesce(w.vals ->> r.field, '')) END);
    GET DIAGNOSTICS put_off = ROW_COUNT;
    RETURN put_off;
END $$;
COMMENT ON FUNCTION crm._references_awaited(integer, bigint) IS 'Of the writes of a mirror that are claimed next, puts off the creates that lack a reference which they are made with; how many.';
