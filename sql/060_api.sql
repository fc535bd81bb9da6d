-- What users call: import, drop, pause, check, go live. Public functions run
-- with the caller's rights; what the caller may not touch is behind functions
-- that begin with an underscore.

-- A request names an object by a hash: its place in shared memory is small.
CREATE FUNCTION crm._catalog_wait(server text, server_oid oid, objects text[], how_long interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until  timestamptz;
    asked  text[];
    ticket bigint;
    state  crm.server_state;
    away   boolean := false;
BEGIN
    SELECT array_agg(DISTINCT 'fields:' || left(encode(sha256(convert_to(lower(o), 'UTF8')), 'hex'), 16)) INTO asked FROM unnest(objects) o
    WHERE NOT EXISTS (SELECT FROM crm.remote_field f JOIN crm.remote_object r USING (server, object)
                      WHERE f.server = _catalog_wait.server AND lower(o) IN (lower(f.object), lower(r.type_id), replace(lower(f.object), '/', '_')));
    IF asked IS NULL THEN
        RETURN;
    END IF;
    until := crm._wait_possible('crm.import', how_long);
    PERFORM crm._server_committed(server_oid, 'crm.import');
    ticket := crm._ask('crm.import', asked, server_oid, until);
    LOOP
        SELECT * INTO state FROM crm.server_state t WHERE t.server = _catalog_wait.server;
        EXIT WHEN state.catalog_ticket >= ticket;
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'the catalog of server "%" did not arrive within %', server, how_long
                USING ERRCODE = '57014', DETAIL = coalesce('Last error: ' || state.last_error || '.', 'The worker has reported no error yet.'),
                      HINT = coalesce(state.advice, format('See SELECT * FROM crm.server_check(%L); or call again with a longer wait.', server));
        ELSIF NOT crm._worker_alive() THEN
            away := true;
        ELSIF away THEN
            away := false;
            ticket := crm._ask('crm.import', asked, server_oid, until);
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    IF state.catalog_at IS NULL OR state.last_error_at >= state.catalog_at THEN
        RAISE EXCEPTION 'the catalog of server "%" could not be read: %', server, coalesce(state.last_error, 'no reason given')
            USING ERRCODE = '58000', DETAIL = 'Nothing was imported.',
                  HINT = coalesce(state.advice, format('See SELECT * FROM crm.server_check(%L);', server));
    END IF;
END $$;
COMMENT ON FUNCTION crm._catalog_wait(text, oid, text[], interval) IS 'Waits, bounded, until the worker has fetched the fields of these objects.';

CREATE FUNCTION crm._object_checked(server text, object text) RETURNS crm.remote_object
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_one crm.remote_object;
    known     text[];
BEGIN
    SELECT * INTO found_one FROM crm.remote_object o
    WHERE o.server = _object_checked.server AND lower(_object_checked.object) IN (lower(o.object), lower(o.type_id), replace(lower(o.object), '/', '_'))
    ORDER BY o.object = _object_checked.object DESC, lower(o.object) = lower(_object_checked.object) DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT array_agg(o.object ORDER BY o.object) INTO known FROM crm.remote_object o WHERE o.server = _object_checked.server;
        RAISE EXCEPTION 'server "%" has no object "%"', server, object
            USING ERRCODE = '42704', DETAIL = format('It offers %s objects; names are those of the CRM''s API, not labels.', coalesce(cardinality(known), 0)),
                  HINT = crm._near_hint(object, known, format('See SELECT object, label FROM crm.remote_object WHERE server = %L;', server));
    END IF;
    IF NOT EXISTS (SELECT FROM crm.remote_field f WHERE f.server = found_one.server AND f.object = found_one.object) THEN
        RAISE EXCEPTION 'the fields of object "%" of server "%" are not readable', found_one.object, server
            USING ERRCODE = '42501', DETAIL = 'The CRM lists the object but described no fields.',
                  HINT = 'Give the integration user read access to the object, then call again.';
    END IF;
    RETURN found_one;
END $$;
COMMENT ON FUNCTION crm._object_checked(text, text) IS 'Resolves an object of the catalog by name or type id or raises, naming near matches.';

-- The allow-list of one object: null means every field.
CREATE FUNCTION crm._per_object(given jsonb, object text, objects text[], argument text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stranger text;
BEGIN
    IF given IS NULL OR jsonb_typeof(given) <> 'object' THEN
        RETURN given;
    END IF;
    SELECT k INTO stranger FROM jsonb_object_keys(given) k WHERE k <> ALL (objects) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'argument "%" names object "%", which is not being imported', argument, stranger
            USING ERRCODE = '22023', DETAIL = 'Objects in this call: ' || array_to_string(objects, ', ') || '.',
                  HINT = crm._near_hint(stranger, objects, 'Keys must be names given in "objects".');
    END IF;
    RETURN given -> object;
END $$;
COMMENT ON FUNCTION crm._per_object(jsonb, text, text[], text) IS 'The part of a per-object argument that is meant for one object.';

CREATE FUNCTION crm._wanted_fields(server text, object text, columns jsonb) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known  text[] := (SELECT array_agg(f.field) FROM crm.remote_field f WHERE f.server = _wanted_fields.server AND f.object = _wanted_fields.object);
    given  text;
    hit    text;
    result text[] := '{}';
BEGIN
    IF columns IS NULL OR columns = 'null' THEN
        RETURN NULL;
    ELSIF jsonb_typeof(columns) <> 'array' OR EXISTS (SELECT FROM jsonb_array_elements(columns) e WHERE jsonb_typeof(e) <> 'string')
          OR jsonb_array_length(columns) = 0 THEN
        RAISE EXCEPTION 'the columns of object "%" must be a list of names', object
            USING ERRCODE = '22023', DETAIL = format('Got %s.', left(columns::text, 100)),
                  HINT = 'Write columns => ''["email", "phone"]'' for every object, or ''{"contacts": ["email"]}'' by object; leave it out for all fields.';
    END IF;
    FOR given IN SELECT jsonb_array_elements_text(columns) LOOP
        SELECT k INTO hit FROM unnest(known) k WHERE lower(k) = lower(given) ORDER BY k = given DESC LIMIT 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'object "%" of server "%" has no field "%"', object, server, given
                USING ERRCODE = '42703', DETAIL = format('It has %s fields.', cardinality(known)),
                      HINT = crm._near_hint(given, known, format('See SELECT field, label FROM crm.remote_field WHERE server = %L AND object = %L;', server, object));
        END IF;
        result := result || hit;
    END LOOP;
    RETURN result;
END $$;
COMMENT ON FUNCTION crm._wanted_fields(text, text, jsonb) IS 'Checks an allow-list of fields against the catalog; null stands for all.';

-- Fields that system columns of a mirror hold already, or that are ours.
CREATE FUNCTION crm._system_field(field text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT lower(field) IN ('id', 'hs_object_id', 'lastmodifieddate', 'hs_lastmodifieddate', 'systemmodstamp', 'isdeleted',
                            'pg_crm_sync_id', 'pg_crm_sync_id__c', 'sync_source', 'sync_source__c')
           AND NOT field = 'LastModifiedDate'
$$;
COMMENT ON FUNCTION crm._system_field(text) IS 'Whether a field is held by id, _remote_modified_at, _deleted_at or belongs to pg_crm_sync, so that it gets no column of its own.';

CREATE FUNCTION crm._new_columns(m crm.mirror, wanted text[])
RETURNS TABLE (column_name name, field text, column_type text, field_type text, max_length integer, read_only boolean, required boolean, note text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH taken AS (
        SELECT a.attname::text AS column_name FROM pg_attribute a
        WHERE a.attrelid = (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = m.schema_name AND c.relname = m.table_name)
          AND NOT a.attisdropped
    ), named AS (
        SELECT f.*, left(lower(f.field), 58) || CASE WHEN left(f.field, 1) = '_' OR lower(f.field) IN ('tableoid', 'ctid', 'xmin', 'xmax', 'cmin', 'cmax', 'id')
                                                     THEN '_' ELSE '' END AS base
        FROM crm.remote_field f
        WHERE f.server = m.server AND f.object = m.object AND NOT crm._system_field(f.field)
          AND (f.field = ANY (wanted) OR (wanted IS NULL AND f.remote_type NOT IN ('address', 'location', 'base64', 'complexvalue')))
          AND NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id AND c.field = f.field)
    ), numbered AS (
        SELECT n.*, row_number() OVER (PARTITION BY base ORDER BY n.field COLLATE "C") AS copy,
               EXISTS (SELECT FROM taken t WHERE t.column_name = base) AS is_taken
        FROM named n
    )
    SELECT (base || CASE WHEN copy = 1 AND NOT is_taken THEN '' ELSE '_' || (copy + is_taken::int + (SELECT count(*) FROM taken t WHERE t.column_name LIKE base || '\__')) END)::name,
           field, column_type, field_type, max_length, read_only OR calculated, required,
           left(label || CASE WHEN description <> '' AND description <> label THEN ': ' || description ELSE '' END
                || CASE WHEN read_only OR calculated THEN ' (read-only)' ELSE '' END, 1000)
    FROM numbered ORDER BY ordinal, field COLLATE "C"
$$;
COMMENT ON FUNCTION crm._new_columns(crm.mirror, text[]) IS 'Columns that a mirror lacks, with names that collide with nothing.';

CREATE FUNCTION crm._mirror_table(t text, note text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($f$CREATE TABLE %s (
        _id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id text COLLATE "C" UNIQUE,
        _sync_source text,
        _sync_state text CHECK (_sync_state IN ('held', 'error', 'deleted', 'soft_deleted', 'erased')),
        _sync_error text,
        _remote_modified_at timestamptz,
        _deleted_at timestamptz
    ) WITH (fillfactor = 90)$f$, t);
    EXECUTE format('COMMENT ON TABLE %s IS %L', t, note);
    EXECUTE format('COMMENT ON COLUMN %s._id IS %L', t, 'Our own key: stable, also before the CRM knows the record.');
    EXECUTE format('COMMENT ON COLUMN %s.id IS %L', t, 'The CRM''s record id; null until the record is made there.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_source IS %L', t, 'Who made the last change: a server, local, or a named application.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_state IS %L', t, 'Exceptions only: held, error, deleted, soft_deleted (its linked record is), erased; see crm.sync_state for pending.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_error IS %L', t, 'Why, in the CRM''s words.');
    EXECUTE format('COMMENT ON COLUMN %s._remote_modified_at IS %L', t, 'Last change in the CRM, by the CRM''s clock.');
    EXECUTE format('COMMENT ON COLUMN %s._deleted_at IS %L', t, 'When the record was deleted in the CRM; the row stays.');
END $$;
COMMENT ON FUNCTION crm._mirror_table(text, text) IS 'Creates the table of a mirror with its system columns; runs as the caller, who becomes its owner.';

CREATE FUNCTION crm._mirror_columns_add(m crm.mirror, wanted text[]) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t     text := format('%I.%I', m.schema_name, m.table_name);
    c     record;
    added integer := 0;
    adds  text[] := '{}';
    notes text[] := '{}';
BEGIN
    FOR c IN SELECT * FROM crm._new_columns(m, wanted) LOOP
        adds := adds || format('ADD COLUMN %I %s', c.column_name, c.column_type);
        notes := notes || format('COMMENT ON COLUMN %s.%I IS %L', t, c.column_name, c.note);
        INSERT INTO crm.mirror_column (mirror, column_name, field, field_type, max_length, read_only, required)
        VALUES (m.id, c.column_name, c.field, c.field_type, c.max_length, c.read_only, c.required);
        added := added + 1;
    END LOOP;
    IF added = 0 THEN
        RETURN 0;
    ELSIF added + (SELECT count(*) FROM crm.mirror_column x WHERE x.mirror = m.id) > 3000 OR added > 1500 THEN
        RAISE EXCEPTION 'object "%" has too many fields for one table (%)', m.object, added
            USING ERRCODE = '54011', DETAIL = 'A table of PostgreSQL holds at most 1600 columns.', HINT = 'Choose some: columns => ''["email", "phone"]''.';
    END IF;
    EXECUTE format('ALTER TABLE %s %s', t, array_to_string(adds, ', '));
    FOREACH t IN ARRAY notes LOOP
        EXECUTE t;
    END LOOP;
    RETURN added;
END $$;
COMMENT ON FUNCTION crm._mirror_columns_add(crm.mirror, text[]) IS 'Adds the columns that a mirror lacks; returns how many.';

-- The worker writes to the table of a mirror with its owner's rights, so only
-- who has these may say which table that is.
CREATE FUNCTION crm._mirror_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t regclass := crm._relation_of(new.schema_name, new.table_name);
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    ELSIF (tg_op = 'INSERT' OR (new.schema_name, new.table_name) IS DISTINCT FROM (old.schema_name, old.table_name))
          AND NOT coalesce(pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = t AND c.relkind = 'r'), 'USAGE'), false) THEN
        RAISE EXCEPTION 'table %.% is not yours', quote_ident(new.schema_name), quote_ident(new.table_name)
            USING ERRCODE = '42501', DETAIL = 'The worker writes to it with the rights of its owner.', HINT = 'Let crm.import make the table; to move it, use ALTER TABLE.';
    ELSIF tg_op = 'INSERT' OR new.row_filter IS DISTINCT FROM old.row_filter THEN
        new.row_filter := crm._condition_checked(t, new.row_filter, 'row filter');
    END IF;
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._mirror_check() IS 'Checks whose table a mirror names, and its row filter.';
CREATE TRIGGER mirror_check BEFORE INSERT OR UPDATE OF schema_name, table_name, row_filter ON crm.mirror FOR EACH ROW EXECUTE FUNCTION crm._mirror_check();
COMMENT ON TRIGGER mirror_check ON crm.mirror IS 'Refuses tables of others, and filters that cannot be evaluated.';

CREATE FUNCTION crm._mirror_upsert(server text, remote crm.remote_object, into_schema name, poll_interval interval) RETURNS crm.mirror
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m  crm.mirror;
    t  name := left(replace(lower(remote.object), '/', '_'), 63);
    fields text[] := (SELECT array_agg(f.field) FROM crm.remote_field f WHERE f.server = remote.server AND f.object = remote.object);
BEGIN
    SELECT * INTO m FROM crm.mirror x WHERE x.server = remote.server AND x.object = remote.object AND x.schema_name = into_schema FOR UPDATE;
    IF FOUND THEN
        RETURN m;
    ELSIF EXISTS (SELECT FROM crm.mirror x WHERE x.server = remote.server AND x.object = remote.object) THEN
        RAISE EXCEPTION 'object "%" of server "%" is mirrored already', remote.object, remote.server
            USING ERRCODE = '42710', DETAIL = (SELECT format('Its mirror is %I.%I.', x.schema_name, x.table_name) FROM crm.mirror x
                                               WHERE x.server = remote.server AND x.object = remote.object LIMIT 1),
                  HINT = 'One mirror per object and server, so that one table is the truth. Use that one, or crm.mirror_drop it first.';
    ELSIF to_regclass(format('%I.%I', into_schema, t)) IS NOT NULL THEN
        RAISE EXCEPTION 'relation %.% exists and is not a mirror of "%"', quote_ident(into_schema), quote_ident(t), remote.object
            USING ERRCODE = '42P07', DETAIL = 'Import makes the table itself and never takes over another.', HINT = 'Choose another into_schema, or rename that relation.';
    END IF;
    PERFORM crm._mirror_table(format('%I.%I', into_schema, t), format('%s of server %s, kept in step with the CRM by pg_crm_sync.', remote.label_plural, remote.server));
    INSERT INTO crm.mirror (server, object, schema_name, table_name, poll_interval, unique_field, source_field)
    VALUES (remote.server, remote.object, into_schema, t, poll_interval,
            (SELECT f FROM unnest(fields) f WHERE lower(f) IN ('pg_crm_sync_id', 'pg_crm_sync_id__c') LIMIT 1),
            (SELECT f FROM unnest(fields) f WHERE lower(f) IN ('sync_source', 'sync_source__c') LIMIT 1))
    RETURNING * INTO m;
    RETURN m;
END $$;
COMMENT ON FUNCTION crm._mirror_upsert(text, crm.remote_object, name, interval) IS 'Finds or makes the mirror of an object.';

CREATE FUNCTION crm._import_one(server text, object text, into_schema name, columns jsonb, row_filter text, poll_interval interval) RETURNS crm.mirror
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    remote crm.remote_object := crm._object_checked(server, object);
    wanted text[] := crm._wanted_fields(server, remote.object, columns);
    m      crm.mirror;
    t      regclass;
    added  integer;
    -- What is listed whole, and changes seldom or tells of it, is polled seldom.
    seldom boolean := NOT remote.streamable AND EXISTS (SELECT FROM crm._server s WHERE s.server = remote.server AND s.server_type = 'hubspot');
    fields text[];
BEGIN
    PERFORM crm._pairs_checked(remote, columns, row_filter);
    m := crm._mirror_upsert(server, remote, into_schema, coalesce(poll_interval, CASE WHEN seldom THEN interval '1 hour' ELSE interval '60 seconds' END));
    t := format('%I.%I', m.schema_name, m.table_name)::regclass;
    fields := ARRAY(SELECT c.field FROM crm.mirror_column c WHERE c.mirror = m.id);
    added := crm._mirror_columns_add(m, CASE WHEN wanted IS NULL AND EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id)
                                             THEN '{}' ELSE wanted END);
    UPDATE crm.mirror x SET row_filter = coalesce(_import_one.row_filter, m.row_filter), poll_interval = coalesce(_import_one.poll_interval, m.poll_interval) WHERE x.id = m.id RETURNING * INTO m;
    IF added > 0 THEN
        fields := ARRAY(SELECT c.field FROM crm.mirror_column c WHERE c.mirror = m.id AND c.field <> ALL (fields) ORDER BY c.field);
        PERFORM crm._mirror_detach(t) WHERE EXISTS (SELECT FROM crm.backfill b WHERE b.mirror = m.id);
        PERFORM crm._mirror_attach(m.id, t, (SELECT coalesce(array_agg(c.column_name::text), '{}') FROM crm.mirror_column c WHERE c.mirror = m.id AND c.read_only)
            || CASE WHEN remote.createable THEN '{}' ELSE '{!insert}' END::text[]
            || CASE WHEN remote.deletable THEN '{}' ELSE '{!delete}' END::text[]);
        PERFORM crm._pairs_prepared(m, t) WHERE remote.type_id LIKE '%/%';
        INSERT INTO crm.backfill AS b (mirror) VALUES (m.id) ON CONFLICT (mirror) DO NOTHING;
        -- What is there already need not be copied again for the sake of new columns.
        INSERT INTO crm.column_fill (mirror, fields, total)
        SELECT m.id, fields, b.total FROM crm.backfill b WHERE b.mirror = m.id AND (b.state <> 'waiting' OR b.started_at IS NOT NULL);
    END IF;
    RETURN m;
END $$;
COMMENT ON FUNCTION crm._import_one(text, text, name, jsonb, text, interval) IS 'Imports one object: table, columns, capture, backfill order.';

CREATE FUNCTION crm._import_arguments(objects text[], into_schema name, row_filter jsonb, poll_interval interval) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF objects IS NULL OR cardinality(objects) = 0 OR array_position(objects, NULL) IS NOT NULL OR '' = ANY (objects) THEN
        RAISE EXCEPTION 'no objects to import'
            USING ERRCODE = '22023', DETAIL = 'Expected a list of object names without nulls.', HINT = 'Write ARRAY[''contacts'', ''companies''].';
    ELSIF into_schema IS NULL OR into_schema = '' OR into_schema ~ '^pg_' OR into_schema IN ('crm', 'information_schema') THEN
        RAISE EXCEPTION 'mirrors cannot live in schema %', coalesce(quote_literal(into_schema), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected a schema of your own; it is made if missing.', HINT = 'Write into_schema => ''hubspot''.';
    ELSIF poll_interval NOT BETWEEN interval '1 second' AND interval '1 day' THEN
        RAISE EXCEPTION 'poll_interval cannot be %', poll_interval
            USING ERRCODE = '22023', DETAIL = 'Expected an interval from 1 second to 1 day.', HINT = 'Each poll costs at least one API call.';
    ELSIF row_filter IS NOT NULL AND jsonb_typeof(row_filter) NOT IN ('string', 'object', 'null') THEN
        RAISE EXCEPTION 'row_filter must be a condition, or one per object'
            USING ERRCODE = '22023', DETAIL = format('Got a JSON %s.', jsonb_typeof(row_filter)),
                  HINT = 'Write row_filter => ''{"contacts": "lifecyclestage = ''''customer''''"}''.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._import_arguments(text[], name, jsonb, interval) IS 'Raises on arguments of crm.import that cannot be meant.';

CREATE FUNCTION crm.import(server text, objects text[], into_schema name, columns jsonb DEFAULT NULL, row_filter jsonb DEFAULT NULL,
                           poll_interval interval DEFAULT NULL, wait interval DEFAULT '60 seconds')
RETURNS TABLE (object text, mirror text, column_count integer, state text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
    m crm.mirror;
    o text;
BEGIN
    PERFORM crm._import_arguments(objects, into_schema, row_filter, poll_interval);
    SELECT * INTO s FROM crm._server_checked(server);
    PERFORM crm._hosts_checked(server);
    PERFORM crm._per_object(columns, '', objects, 'columns'), crm._per_object(row_filter, '', objects, 'row_filter');
    PERFORM crm._catalog_wait(server, s.server_oid, objects, wait);
    -- Not before: while we wait, the worker writes this very row.
    PERFORM crm._server_state_ensure(server);
    FOREACH o IN ARRAY objects LOOP
        PERFORM crm._wanted_fields(server, (crm._object_checked(server, o)).object, crm._per_object(columns, o, objects, 'columns'));
    END LOOP;
    -- Not before the wait: the worker writes these rows too.
    PERFORM crm._server_state_ensure(server), crm._fence_open();
    IF to_regnamespace(quote_ident(into_schema)) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', into_schema);
        EXECUTE format('COMMENT ON SCHEMA %I IS %L', into_schema, format('Mirrors of server %s.', server));
    END IF;
    FOREACH o IN ARRAY objects LOOP
        m := crm._import_one(server, o, into_schema, crm._per_object(columns, o, objects, 'columns'),
                             crm._per_object(row_filter, o, objects, 'row_filter') #>> '{}', poll_interval);
        RETURN QUERY SELECT m.object, format('%I.%I', m.schema_name, m.table_name),
                            (SELECT count(*)::integer FROM crm.mirror_column c WHERE c.mirror = m.id),
                            (SELECT 'backfill ' || b.state FROM crm.backfill b WHERE b.mirror = m.id);
    END LOOP;
    PERFORM crm._wake();
END $$;
COMMENT ON FUNCTION crm.import(text, text[], name, jsonb, jsonb, interval, interval) IS 'Makes mirrors of CRM objects in a schema and orders their first copy. Importing again is harmless and adds the columns newly asked for.';

CREATE FUNCTION crm.refresh(mirror text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m crm.mirror := crm._mirror_named(mirror);
BEGIN
    PERFORM crm._ask('crm.refresh', ARRAY['poll:' || m.id], s.server_oid, clock_timestamp() + interval '10 seconds') FROM crm._server s WHERE s.server = m.server;
    RETURN format('%I.%I is polled now; crm.stream shows when that is done', m.schema_name, m.table_name);
END $$;
COMMENT ON FUNCTION crm.refresh(text) IS 'Asks the CRM for changes of a mirror now instead of at its next poll, and for a stream of them if it had refused one. What polls list whole (owners, pipelines, stages, associations) is compared whole.';

CREATE FUNCTION crm.mirror_drop(mirror text, drop_table boolean DEFAULT true) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    crm.mirror := crm._mirror_named(mirror);
    t    text := format('%I.%I', m.schema_name, m.table_name);
    used text := (SELECT string_agg(l.name, ', ' ORDER BY l.name) FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror));
    kept bigint := (SELECT count(*) FROM crm.write w WHERE w.mirror = m.id AND w.state IN ('in_flight', 'unknown'));
BEGIN
    IF used IS NOT NULL THEN
        RAISE EXCEPTION 'mirror % is linked', t
            USING ERRCODE = '2BP01', DETAIL = 'Links: ' || used || '.', HINT = 'Remove them first: SELECT crm.unlink(''name'').';
    ELSIF kept > 0 THEN
        RAISE EXCEPTION 'mirror % has % writes whose outcome is open', t, kept
            USING ERRCODE = '55006', DETAIL = 'They were sent, and no answer was recorded yet.',
                  HINT = format('SELECT crm.pause(''mirror'', %L), wait until crm.outbox shows none in flight, then drop it.', t);
    END IF;
    IF to_regclass(t) IS NOT NULL THEN
        IF NOT pg_has_role((SELECT relowner FROM pg_class WHERE oid = to_regclass(t)), 'USAGE') THEN
            RAISE EXCEPTION 'must be owner of mirror %', t USING ERRCODE = '42501', HINT = 'Ask its owner, or a superuser.';
        END IF;
        PERFORM crm._mirror_detach(to_regclass(t)), crm._pairs_released(to_regclass(t));
        IF drop_table THEN
            EXECUTE format('DROP TABLE %s', t);
        END IF;
    END IF;
    PERFORM crm._mirror_gone(m.schema_name, m.table_name);
    PERFORM crm._wake();
    RETURN format('%s is no longer a mirror%s', t, CASE WHEN drop_table THEN ' and its table is gone' ELSE '; its table stays as an ordinary one' END);
END $$;
COMMENT ON FUNCTION crm.mirror_drop(text, boolean) IS 'Undoes crm.import for one mirror: stops the sync, forgets unsent changes, and drops the table unless told to keep it. Nothing changes in the CRM.';

-- What the app of a server whose journal is read must be subscribed to. No call is known that lists what it is.
CREATE FUNCTION crm._journal_subscriptions(server text) RETURNS TABLE (item text, ok boolean, detail text, advice text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'journal subscription of ' || w.object, NULL::boolean, 'whether the app has it cannot be asked; without it nothing of ' || w.object || ' comes by the journal',
           format('With a token of the app (client_credentials, scope developer.webhooks_journal.subscriptions.write): POST %s/webhooks-journal/subscriptions/2026-03 %s',
                  coalesce((SELECT substr(o, 10) FROM unnest(v.options) o WHERE o LIKE 'base_url=%'), 'https://api.hubapi.com'),
                  jsonb_strip_nulls(jsonb_build_object('subscriptionType', w.kind, 'portalId', CASE WHEN t.tenant ~ '^[0-9]{1,18}$' THEN t.tenant::bigint END, 'objectTypeId', w.type_id, 'actions', w.actions, 'properties', w.fields)))
    FROM crm._server v
    LEFT JOIN crm.server_state t ON t.server = v.server
    CROSS JOIN LATERAL (
        SELECT m.object, CASE WHEN position('/' IN o.type_id) > 0 THEN 'ASSOCIATION' ELSE 'OBJECT' END AS kind, split_part(o.type_id, '/', 1) AS type_id,
               CASE WHEN position('/' IN o.type_id) > 0 THEN '["ASSOCIATION_ADDED", "ASSOCIATION_REMOVED"]'::jsonb ELSE '["CREATE", "UPDATE", "DELETE", "MERGE", "RESTORE"]' END AS actions,
               CASE WHEN position('/' IN o.type_id) = 0 THEN (SELECT jsonb_agg(c.field ORDER BY c.field) FROM crm.mirror_column c WHERE c.mirror = m.id) END AS fields
        FROM crm.mirror m JOIN crm.remote_object o ON o.server = m.server AND o.object = m.object AND (o.streamable OR position('/' IN o.type_id) > 0)
        WHERE m.server = v.server
        UNION ALL
        SELECT 'privacy deletions', 'GDPR_PRIVACY_DELETION', '0-1', NULL, NULL
        FROM crm.mirror m WHERE m.server = v.server AND m.object = 'contacts') w
    WHERE v.server = _journal_subscriptions.server AND v.server_type = 'hubspot' AND 'events=journal' = ANY (v.options)
    ORDER BY w.object
$$;
COMMENT ON FUNCTION crm._journal_subscriptions(text) IS 'Rows of crm.server_check: the subscriptions that a journal needs for what is mirrored, as the calls that make them.';

CREATE FUNCTION crm.server_check(server text, wait interval DEFAULT '30 seconds')
RETURNS TABLE (item text, ok boolean, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s     record;
    until timestamptz := crm._wait_possible('crm.server_check', wait);
    asked bigint;
BEGIN
    SELECT * INTO s FROM crm._server_checked(server);
    PERFORM crm._server_committed(s.server_oid, 'crm.server_check');
    asked := crm._ask('crm.server_check', ARRAY['check'], s.server_oid, until);
    LOOP
        EXIT WHEN EXISTS (SELECT FROM crm.check_result r WHERE r.ticket = asked AND r.item = 'end');
        IF clock_timestamp() >= until THEN
            RETURN QUERY SELECT r.item, r.ok, r.detail, r.advice FROM crm.check_result r WHERE r.ticket = asked ORDER BY r.ordinal;
            RETURN QUERY SELECT 'answer', false, format('no complete answer within %s', wait), 'Call again with a longer wait; see crm.status.';
            RETURN;
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    RETURN QUERY SELECT r.item, r.ok, r.detail, r.advice FROM crm.check_result r
                 WHERE r.ticket = asked AND r.item <> 'end' ORDER BY r.ordinal;
    RETURN QUERY SELECT * FROM crm._journal_subscriptions(server_check.server);
    RETURN QUERY SELECT 'changes of ' || c.object, CASE WHEN c.advice IS NULL OR NOT c.can_stream THEN true WHEN c.refused IS NULL THEN false END,
                        concat_ws(', ', 'by ' || c.changes_by, 'no stream: ' || c.refused, 'last event ' || date_trunc('seconds', c.last_event_at),
                                  format('%s of at most %s objects selected for events are wanted here', c.entities_wanted, c.entities_allowed)), c.advice
                 FROM crm.change_source c WHERE c.server = server_check.server AND c.mirror IS NOT NULL ORDER BY c.object;
END $$;
COMMENT ON FUNCTION crm.server_check(text, interval) IS 'Tries the server as the worker sees it: host, TLS, credentials, scopes, limits, streams; one row each with what to do where it fails.';

CREATE FUNCTION crm.fence_status() RETURNS TABLE (state text, reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT f.state, f.reason FROM crm._fence() f;
END $$;
COMMENT ON FUNCTION crm.fence_status() IS 'Whether this very cluster may write to the CRMs: active; never (not activated yet); inert (a copy, a restored backup or a promoted standby of one that may), and why.';

CREATE FUNCTION crm.activate() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text;
    why    text;
    token  text;
    m      crm.mirror;
BEGIN
    INSERT INTO crm.installation DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT i.activation INTO token FROM crm.installation i FOR UPDATE;
    SELECT f.state, f.reason INTO before, why FROM crm.fence_status() f;
    IF before = 'active' THEN
        RETURN 'active already';
    END IF;
    token := coalesce(token, replace(gen_random_uuid()::text, '-', ''));
    PERFORM crm._fence_write(token);
    UPDATE crm.installation SET activation = token, activated_at = clock_timestamp();
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    -- What happened in the CRMs since the copy was taken is unknown: nothing that was sent or about to be is trusted.
    IF before = 'inert' THEN
        -- A bulk job can be asked what became of its writes.
        UPDATE crm.write w SET state = 'unknown' WHERE w.state = 'in_flight' AND w.job IS NULL OR (w.state = 'queued' AND w.kind = 'create');
        -- Rows that are lost here may have been sent: their numbers, of which unique values are made, are not given again.
        FOR m IN SELECT * FROM crm.mirror LOOP
            PERFORM setval(s, nextval(s) + 1000000) FROM pg_get_serial_sequence(format('%I.%I', m.schema_name, m.table_name), '_id') AS s WHERE s IS NOT NULL;
        END LOOP;
        RETURN 'active; it was inert: ' || why;
    END IF;
    RETURN 'active';
END $$;
COMMENT ON FUNCTION crm.activate() IS 'Lets this very cluster write to the CRMs, and no copy of it. crm.import does it the first time; it is needed again after a restore, a failover or a move: make sure that the original is gone, or both will write.';
