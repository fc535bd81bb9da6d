-- CREATE SERVER as the way to name a CRM account. The validator checks syntax
-- only: it sees neither TYPE nor settings, and a dump must restore through it.

CREATE FUNCTION crm._near(word text, candidates text[], at_most integer DEFAULT 3) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH given AS (
        SELECT DISTINCT substr('^' || lower(left(word, 200)) || '$', i, 2) AS pair
        FROM generate_series(1, least(length(word), 200) + 1) AS i
    ), scored AS (
        SELECT c, (SELECT 2.0 * count(g.pair) / ((SELECT count(*) FROM given) + count(*))
                   FROM (SELECT DISTINCT substr('^' || lower(left(c, 200)) || '$', i, 2) AS pair
                         FROM generate_series(1, least(length(c), 200) + 1) AS i) p
                   LEFT JOIN given g USING (pair)) AS score
        FROM (SELECT DISTINCT unnest(candidates) AS c) d
        WHERE c IS NOT NULL
    )
    SELECT coalesce(array_agg(c ORDER BY score DESC, c), '{}')
    FROM (SELECT c, score FROM scored WHERE score >= 0.4 ORDER BY score DESC, c LIMIT at_most) best
$$;
COMMENT ON FUNCTION crm._near(text, text[], integer) IS 'The candidates that look like the word (share of common letter pairs), best first: for "did you mean" hints.';

CREATE FUNCTION crm._near_hint(word text, candidates text[], otherwise text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN cardinality(near) > 0
                THEN format('Did you mean %s?', array_to_string(near, ', ')) || ' ' || otherwise
                ELSE otherwise END
    FROM crm._near(word, candidates) AS near
$$;
COMMENT ON FUNCTION crm._near_hint(text, text[], text) IS 'A hint that names near matches, if there are any, before the general advice.';

CREATE FUNCTION crm._server_option_names() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['credentials', 'webhook_secret', 'base_url', 'login_url', 'pubsub_endpoint', 'stream', 'api_version', 'ca_file',
                 'webhook_url', 'events', 'calls_per_window', 'allowed_hosts']
$$;
COMMENT ON FUNCTION crm._server_option_names() IS 'The options that CREATE SERVER accepts.';

-- A reference to a secret: null, or problem, expectation and advice.
CREATE FUNCTION crm._reference_problem(opt text, val text, OUT problem text, OUT expected text, OUT advice text)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF val ~ '^file:' THEN
        IF val !~ '^file:[A-Za-z0-9_][A-Za-z0-9._-]*$' OR val ~ '\.\.' THEN
            problem := format('option "%s" names an impossible file', opt);
            expected := 'A file reference is file:NAME, where NAME has letters, digits, dot, dash and underscore, no slash and no "..".';
            advice := 'Put the file into the directory of pg_crm_sync.secrets_dir and give its bare name.';
        END IF;
    ELSIF val ~ '^env:' THEN
        IF val !~ '^env:PG_CRM_SYNC_[A-Z0-9_]+$' THEN
            problem := format('option "%s" names an environment variable that servers may not read', opt);
            expected := 'An environment reference is env:PG_CRM_SYNC_NAME, so that no other variable of the server process can be sent out.';
            advice := 'Rename the variable so that it begins with PG_CRM_SYNC_.';
        END IF;
    ELSE
        problem := format('option "%s" must be a reference, never the secret itself', opt);
        expected := 'Options of a server are readable in the catalogs and in every dump. Accepted are file:NAME and env:PG_CRM_SYNC_NAME.';
        advice := 'Put the secret into a file under pg_crm_sync.secrets_dir and refer to it. If what you typed was a real secret, replace it at the CRM.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._reference_problem(text, text) IS 'Checks the syntax of an option that refers to a secret: what is wrong, what was expected, what to do; null when nothing is.';

-- What is wrong with one option: null, or problem, expectation and advice.
CREATE FUNCTION crm._server_option_problem(opt text, val text, OUT problem text, OUT expected text, OUT advice text)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    url text[] := regexp_match(val, '^(https?)://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[^?#\s]*)?$');
BEGIN
    CASE
    WHEN opt IN ('credentials', 'webhook_secret') THEN
        SELECT r.* INTO problem, expected, advice FROM crm._reference_problem(opt, val) r;
    WHEN opt IN ('base_url', 'login_url', 'webhook_url') THEN
        IF url IS NULL THEN
            problem := format('option "%s" is not a URL: "%s"', opt, left(val, 200));
            expected := 'Expected https://host, with port and path if need be, without user, query and fragment.';
            advice := 'Write it like https://acme.my.salesforce.com.';
        ELSIF opt <> 'webhook_url' AND url[1] = 'http' AND url[2] !~ '^(localhost|127\.[0-9.]+|\[::1\])$' THEN
            problem := format('option "%s" is plain http to "%s"', opt, url[2]);
            expected := 'Plain http is accepted for loopback only (localhost, 127.0.0.1, [::1]): tokens travel in these calls.';
            advice := 'Use https.';
        ELSIF url[3] IS NOT NULL AND substr(url[3], 2)::integer NOT BETWEEN 1 AND 65535 THEN
            problem := format('option "%s" has port %s', opt, substr(url[3], 2));
            expected := 'Ports are 1 to 65535.';
            advice := 'Correct the port.';
        END IF;
    WHEN opt = 'pubsub_endpoint' THEN
        IF val !~ '^(https?://)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$' THEN
            problem := format('option "pubsub_endpoint" is not host:port: "%s"', left(val, 200));
            expected := 'Expected host:port, or http://host:port for plain gRPC on loopback.';
            advice := 'Salesforce''s own is api.pubsub.salesforce.com:7443.';
        ELSIF val ~ '^http://' AND val !~ '^http://(localhost|127\.[0-9.]+|\[::1\]):' THEN
            problem := 'option "pubsub_endpoint" is plain gRPC to another machine';
            expected := 'Plain gRPC is accepted for loopback only: tokens travel in these calls.';
            advice := 'Leave out http:// to use TLS.';
        END IF;
    WHEN opt = 'stream' THEN
        IF val NOT IN ('pubsub', 'cometd') THEN
            problem := format('option "stream" is neither pubsub nor cometd: "%s"', left(val, 50));
            expected := 'pubsub is gRPC on port 7443 or 443, cometd HTTPS as for everything else.'; advice := 'Leave the option out unless gRPC cannot pass.';
        END IF;
    WHEN opt = 'api_version' THEN
        IF val !~ '^(v?[0-9]{1,3}(\.[0-9])?|20[0-9]{2}-[0-9]{2})$' THEN
            problem := format('option "api_version" is not a version: "%s"', left(val, 50));
            expected := 'Expected v3 or 2026-03 for HubSpot, 62.0 for Salesforce.';
            advice := 'Leave the option out to use the version this release was tested with.';
        END IF;
    WHEN opt = 'ca_file' THEN
        IF val !~ '^/' OR val ~ '\.\.' THEN
            problem := format('option "ca_file" is not an absolute path: "%s"', left(val, 200));
            expected := 'Expected the absolute path of a PEM file on the database host, without "..".';
            advice := 'Leave the option out to use the system''s certificates.';
        END IF;
    WHEN opt = 'events' THEN
        IF val NOT IN ('webhooks', 'journal', 'poll') THEN
            problem := format('option "events" is not a way in which changes come: "%s"', left(val, 50));
            expected := 'Expected webhooks, journal (HubSpot''s webhooks journal, which is read; webhooks are taken too) or poll (no webhooks are taken).';
            advice := 'Leave the option out to take webhooks; polls find what they miss in any case.';
        END IF;
    WHEN opt = 'calls_per_window' THEN
        IF val !~ '^[0-9]{1,9}$' OR val::integer = 0 THEN
            problem := format('option "%s" is not a count: "%s"', opt, left(val, 50));
            expected := 'Expected a whole number from 1 to 999999999: the share of the CRM''s limit that this database may use.';
            advice := 'Leave the option out to use what the CRM itself tells.';
        END IF;
    WHEN opt = 'allowed_hosts' THEN
        IF val !~ '^\s*[A-Za-z0-9.*:\[\]_-]+(\s*,\s*[A-Za-z0-9.*:\[\]_-]+)*\s*$' THEN
            problem := format('option "allowed_hosts" is not a list of hosts: "%s"', left(val, 200));
            expected := 'Expected host names separated by commas; a leading dot means all hosts below.';
            advice := 'It narrows pg_crm_sync.allowed_hosts for this server, it cannot widen it.';
        END IF;
    ELSE
        NULL;
    END CASE;
END $$;
COMMENT ON FUNCTION crm._server_option_problem(text, text) IS 'Checks the syntax of one server option: what is wrong, what was expected, what to do; null when nothing is.';

-- SECURITY DEFINER only for log_min_error_statement: a refused statement may
-- hold a secret, and the server log would keep it.
CREATE FUNCTION crm._fdw_validator(options text[], catalog oid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o    text;
    opt  text;
    bad  record;
BEGIN
    IF catalog = 'pg_user_mapping'::regclass THEN
        RAISE EXCEPTION 'user mappings are not used by pg_crm_sync'
            USING ERRCODE = '0A000', DETAIL = 'The credential of a CRM account belongs to the server, not to a database user.',
                  HINT = 'Use ALTER SERVER … OPTIONS (SET credentials ''file:NAME'').';
    ELSIF catalog = 'pg_foreign_table'::regclass THEN
        RAISE EXCEPTION 'foreign tables are not used by pg_crm_sync'
            USING ERRCODE = '0A000', DETAIL = 'CRM objects become ordinary tables that the worker keeps up to date.',
                  HINT = 'Use SELECT crm.import(''server'', ARRAY[''object''], into_schema => ''schema'').';
    END IF;
    FOREACH o IN ARRAY options LOOP
        opt := split_part(o, '=', 1);
        IF catalog <> 'pg_foreign_server'::regclass OR opt <> ALL (crm._server_option_names()) THEN
            PERFORM set_config('log_min_error_statement', 'panic', true);
            RAISE EXCEPTION 'unknown option "%"', opt
                USING ERRCODE = 'HV00D', DETAIL = 'Options of a server are: ' || array_to_string(crm._server_option_names(), ', ') || '.',
                      HINT = crm._near_hint(opt, crm._server_option_names(), 'Options belong to CREATE SERVER or ALTER SERVER.');
        END IF;
        SELECT * INTO bad FROM crm._server_option_problem(opt, substr(o, length(opt) + 2));
        IF bad.problem IS NOT NULL THEN
            PERFORM set_config('log_min_error_statement', 'panic', true);
            RAISE EXCEPTION '%', bad.problem USING ERRCODE = 'HV024', DETAIL = bad.expected, HINT = bad.advice;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._fdw_validator(text[], oid) IS 'Checks the syntax of CREATE SERVER options; refuses literal secrets, user mappings and foreign tables.';

CREATE FOREIGN DATA WRAPPER pg_crm_sync VALIDATOR crm._fdw_validator;
COMMENT ON FOREIGN DATA WRAPPER pg_crm_sync IS 'CRM accounts: CREATE SERVER name TYPE ''hubspot'' | ''salesforce'' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials ''file:NAME'').';

CREATE VIEW crm._server AS
SELECT s.oid AS server_oid, s.srvname::text AS server, s.srvtype AS server_type, s.srvowner AS owner_oid,
       pg_get_userbyid(s.srvowner)::text AS owner, s.srvoptions AS options
FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
WHERE w.fdwname = 'pg_crm_sync';
COMMENT ON VIEW crm._server IS 'The servers of our wrapper with their options (references, never secrets).';

-- The server of that name, checked: it exists, is ours, has a TYPE we speak, and the caller may use it.
CREATE FUNCTION crm._server_checked(server text, OUT server_oid oid, OUT server_type text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text[] := (SELECT array_agg(s.server ORDER BY s.server) FROM crm._server s);
BEGIN
    SELECT s.server_oid, s.server_type INTO server_oid, server_type FROM crm._server s WHERE s.server = _server_checked.server;
    IF server_oid IS NULL THEN
        RAISE EXCEPTION 'server "%" does not exist', server
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'No server of pg_crm_sync exists yet.'
                           ELSE 'Servers are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(server, known, 'CREATE SERVER name TYPE ''hubspot'' | ''salesforce'' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (…) makes one.');
    ELSIF server_type IS NULL OR server_type NOT IN ('hubspot', 'salesforce') THEN
        RAISE EXCEPTION 'server "%" has TYPE %', server, coalesce(quote_literal(server_type), 'none')
            USING ERRCODE = '42809', DETAIL = 'The TYPE of a server must be ''hubspot'' or ''salesforce''.',
                  HINT = format('The TYPE cannot be altered: DROP SERVER %I, then CREATE SERVER %I TYPE ''hubspot'' | ''salesforce'' ….', server, server);
    ELSIF NOT has_server_privilege(server_oid, 'USAGE') THEN
        RAISE EXCEPTION 'permission denied for server "%"', server
            USING ERRCODE = '42501', DETAIL = format('Role %s lacks USAGE on it.', current_user),
                  HINT = format('GRANT USAGE ON FOREIGN SERVER %I TO %I;', server, current_user);
    END IF;
END $$;
COMMENT ON FUNCTION crm._server_checked(text) IS 'Resolves a server name or raises: unknown (naming near matches), wrong TYPE, no USAGE.';

CREATE FUNCTION crm._server_state_ensure(server text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.server_state (server, server_type)
    SELECT s.server, s.server_type FROM crm._server s WHERE s.server = $1 AND s.server_type IN ('hubspot', 'salesforce')
    ON CONFLICT DO NOTHING;
    INSERT INTO crm.installation DEFAULT VALUES ON CONFLICT DO NOTHING;
$$;
COMMENT ON FUNCTION crm._server_state_ensure(text) IS 'Makes the state row of a server and our own identity, if missing. Not at CREATE: a dump restores those rows itself.';

CREATE FUNCTION crm._mirror_named(mirror text) RETURNS crm.mirror
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m     crm.mirror;
    known text[];
BEGIN
    SELECT x.* INTO m FROM crm.mirror x
    WHERE format('%I.%I', x.schema_name, x.table_name) = mirror OR x.schema_name || '.' || x.table_name = mirror;
    IF NOT FOUND THEN
        SELECT array_agg(format('%I.%I', x.schema_name, x.table_name) ORDER BY x.id) INTO known FROM crm.mirror x;
        RAISE EXCEPTION 'there is no mirror %', coalesce(quote_literal(mirror), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'Nothing has been imported yet.' ELSE 'Mirrors are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(mirror, ''), known, 'Mirrors are named schema.table; crm.import makes them.');
    END IF;
    RETURN m;
END $$;
COMMENT ON FUNCTION crm._mirror_named(text) IS 'Resolves schema.table to its mirror or raises, naming near matches.';

CREATE FUNCTION crm._server_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made  record;
    stray text[];
BEGIN
    FOR made IN SELECT s.* FROM pg_event_trigger_ddl_commands() c JOIN crm._server s ON c.classid = 'pg_foreign_server'::regclass AND s.server_oid = c.objid
    LOOP
        IF made.server_type IS NULL OR made.server_type NOT IN ('hubspot', 'salesforce') THEN
            RAISE WARNING 'server "%" has TYPE % and cannot be used', made.server, coalesce(quote_literal(made.server_type), 'none')
                USING HINT = 'Drop it and create it again with TYPE ''hubspot'' or TYPE ''salesforce''.';
        END IF;
        -- Tables name servers by text: after ALTER SERVER … RENAME one name is left without a server.
        SELECT array_agg(DISTINCT x.server) INTO stray
        FROM (SELECT m.server FROM crm.mirror m UNION SELECT t.server FROM crm.server_state t) x
        WHERE NOT EXISTS (SELECT FROM crm._server s WHERE s.server = x.server);
        IF tg_tag = 'ALTER SERVER' AND cardinality(stray) = 1
           AND NOT EXISTS (SELECT FROM crm.server_state t WHERE t.server = made.server) THEN
            PERFORM crm._server_renamed(stray[1], made.server);
        END IF;
        -- Fires the trigger that tells the worker to read its configuration again.
        UPDATE crm.server_state t SET paused = t.paused WHERE t.server = made.server;
        PERFORM crm._wake();
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._server_ddl() IS 'After CREATE or ALTER SERVER: follows a rename and wakes the worker, which reads the catalog of a server it has not seen.';

CREATE FUNCTION crm._server_renamed(old_name text, new_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['server_state', 'remote_object', 'remote_field', 'mirror', 'stream', 'poison', 'webhook_queue', 'api_budget', 'off_peak', 'api_limit', 'api_count'] LOOP
        EXECUTE format('UPDATE crm.%I SET server = $1 WHERE server = $2', t) USING new_name, old_name;
    END LOOP;
    UPDATE crm.conflict_policy p
    SET winner = (SELECT string_agg(CASE WHEN btrim(w) = old_name THEN new_name ELSE btrim(w) END, ',' ORDER BY n)
                  FROM unnest(string_to_array(p.winner, ',')) WITH ORDINALITY AS x(w, n))
    WHERE EXISTS (SELECT FROM unnest(string_to_array(p.winner, ',')) w WHERE btrim(w) = old_name);
    UPDATE crm.field_lock f SET origin = new_name WHERE f.origin = old_name;
    UPDATE crm.stamp_quality q SET server = new_name WHERE q.server = old_name;
END $$;
COMMENT ON FUNCTION crm._server_renamed(text, text) IS 'Carries a server''s new name into the tables that know it by name.';

-- A refusal here holds for DROP SERVER … CASCADE too, and after a restore,
-- where a recorded dependency of a plain table on a server would be lost.
CREATE FUNCTION crm._dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone  record;
    held  text;
BEGIN
    FOR gone IN SELECT o.object_type, o.schema_name, o.object_name
                FROM pg_event_trigger_dropped_objects() o
                WHERE o.object_type = 'server' OR (o.object_type = 'table' AND NOT o.is_temporary)
    LOOP
        IF gone.object_type = 'table' THEN
            PERFORM crm._mirror_gone(gone.schema_name, gone.object_name);
        ELSIF EXISTS (SELECT FROM crm.server_state t WHERE t.server = gone.object_name)
              OR EXISTS (SELECT FROM crm.mirror m WHERE m.server = gone.object_name) THEN
            SELECT string_agg(format('%I.%I', m.schema_name, m.table_name), ', ' ORDER BY m.id) INTO held
            FROM crm.mirror m WHERE m.server = gone.object_name;
            IF held IS NOT NULL THEN
                RAISE EXCEPTION 'cannot drop server "%" because mirrors use it', gone.object_name
                    USING ERRCODE = '2BP01', DETAIL = 'Mirrors: ' || held || '.',
                          HINT = 'Drop them first: SELECT crm.mirror_drop(''schema.table''). Unsent changes are lost with them: see crm.outbox.';
            END IF;
            PERFORM crm._server_forget(gone.object_name);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._dropped() IS 'After a DROP: refuses to lose a server that mirrors use, and forgets dropped servers and mirror tables.';

CREATE FUNCTION crm._server_forget(gone text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM crm.remote_field WHERE server = gone;
    DELETE FROM crm.remote_object WHERE server = gone;
    DELETE FROM crm.stream WHERE server = gone;
    DELETE FROM crm.api_budget WHERE server = gone;
    DELETE FROM crm.off_peak WHERE server = gone;
    DELETE FROM crm.api_limit WHERE server = gone;
    DELETE FROM crm.webhook_queue WHERE server = gone;
    DELETE FROM crm.server_state WHERE server = gone;
$$;
COMMENT ON FUNCTION crm._server_forget(text) IS 'Removes what is known of a server that was dropped.';

CREATE FUNCTION crm._mirror_gone(gone_schema text, gone_table text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    crm.mirror;
    used text;
BEGIN
    SELECT * INTO m FROM crm.mirror x WHERE x.schema_name = gone_schema AND x.table_name = gone_table;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT string_agg(l.name, ', ' ORDER BY l.name) INTO used FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror);
    IF used IS NOT NULL THEN
        RAISE EXCEPTION 'cannot drop mirror %.% because links use it', quote_ident(gone_schema), quote_ident(gone_table)
            USING ERRCODE = '2BP01', DETAIL = 'Links: ' || used || '.', HINT = 'Remove them first: SELECT crm.unlink(''name'').';
    END IF;
    DELETE FROM crm.mirror x WHERE x.id = m.id;
    DELETE FROM crm.stream s WHERE s.server = m.server AND s.object = m.object
        AND NOT EXISTS (SELECT FROM crm.mirror x WHERE x.server = m.server AND x.object = m.object);
    DELETE FROM crm.review_item r WHERE r.mirror = m.id;
END $$;
COMMENT ON FUNCTION crm._mirror_gone(text, text) IS 'Forgets a mirror whose table was dropped; refuses while a link uses it.';

-- A mirror is known by its capture trigger, which carries its number; another
-- table that carries it too does not take its place: what was renamed just now does.
CREATE FUNCTION crm._mirror_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    seen    record;
    missing name[];
    renamed name;
BEGIN
    FOR seen IN
        WITH captured AS (
            SELECT m.id, m.schema_name, m.table_name, c.oid, n.nspname, c.relname, (m.schema_name, m.table_name) = (n.nspname, c.relname) AS known,
                   EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d WHERE (d.classid, d.objid) IN (('pg_class'::regclass, c.oid), ('pg_namespace'::regclass, n.oid))) AS altered
            FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN crm.mirror m ON m.id::text = split_part(encode(g.tgargs, 'escape'), '\000', 1)
            WHERE g.tgname = 'zz_crm_capture' AND g.tgfoid = to_regprocedure('crm._capture()') AND n.nspname <> 'pg_temp'
        )
        SELECT * FROM captured c WHERE c.known OR c.altered AND NOT EXISTS (SELECT FROM captured o WHERE o.id = c.id AND o.known)
    LOOP
        IF (seen.schema_name, seen.table_name) <> (seen.nspname, seen.relname) THEN
            UPDATE crm.mirror m SET schema_name = seen.nspname, table_name = seen.relname WHERE m.id = seen.id;
        END IF;
        SELECT array_agg(k.column_name) INTO missing FROM crm.mirror_column k
        WHERE k.mirror = seen.id AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = seen.oid AND a.attname = k.column_name AND NOT a.attisdropped);
        CONTINUE WHEN missing IS NULL;
        SELECT a.attname INTO renamed FROM pg_event_trigger_ddl_commands() d JOIN pg_attribute a ON a.attrelid = d.objid AND a.attnum = d.objsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = seen.oid AND d.object_type = 'table column';
        IF renamed IS NOT NULL AND cardinality(missing) = 1 THEN
            UPDATE crm.mirror_column k SET column_name = renamed WHERE k.mirror = seen.id AND k.column_name = missing[1];
        ELSE
            DELETE FROM crm.field_map f USING crm.link l, crm.mirror_column k
            WHERE l.name = f.link AND k.mirror = seen.id AND k.column_name = ANY (missing)
              AND ((l.left_mirror = seen.id AND f.left_field = k.field) OR (l.right_mirror = seen.id AND f.right_field = k.field));
            DELETE FROM crm.mirror_column k WHERE k.mirror = seen.id AND k.column_name = ANY (missing);
            RAISE NOTICE 'columns % of mirror %.% are no longer synced', array_to_string(missing, ', '), quote_ident(seen.nspname), quote_ident(seen.relname)
                USING HINT = 'crm.import with columns => … brings a field back.';
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._mirror_ddl() IS 'After ALTER TABLE or ALTER SCHEMA: follows renamed mirrors and columns, and lets go of dropped columns.';

CREATE EVENT TRIGGER pg_crm_sync_server ON ddl_command_end WHEN TAG IN ('CREATE SERVER', 'ALTER SERVER') EXECUTE FUNCTION crm._server_ddl();
COMMENT ON EVENT TRIGGER pg_crm_sync_server IS 'Lets the worker of pg_crm_sync learn of new and altered servers.';
CREATE EVENT TRIGGER pg_crm_sync_drop ON sql_drop
    WHEN TAG IN ('DROP SERVER', 'DROP TABLE', 'DROP SCHEMA', 'DROP OWNED', 'DROP FOREIGN DATA WRAPPER')
    EXECUTE FUNCTION crm._dropped();
COMMENT ON EVENT TRIGGER pg_crm_sync_drop IS 'Refuses to drop servers that mirrors use; forgets mirrors whose table is dropped.';

CREATE FUNCTION crm._worker_alive() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_stat_clear_snapshot();
    RETURN EXISTS (SELECT FROM pg_stat_activity a
                   WHERE a.datname = current_database() AND a.backend_type LIKE 'pg\_crm\_sync%');
END $$;
COMMENT ON FUNCTION crm._worker_alive() IS 'Whether the session worker of this database is connected.';

-- After CREATE EXTENSION or a crash the worker is back within seconds, so a
-- missing one is an error only when it stays away.
CREATE FUNCTION crm._ask(what text, kinds text[], server_oid oid, until timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    patience timestamptz := least(until, clock_timestamp() + interval '10 seconds');
    ticket   bigint;
    kind     text;
BEGIN
    LOOP
        BEGIN
            FOREACH kind IN ARRAY kinds LOOP
                ticket := crm._request(kind, server_oid);
            END LOOP;
            RETURN ticket;
        EXCEPTION
            WHEN object_not_in_prerequisite_state THEN
                IF clock_timestamp() >= patience THEN
                    RAISE EXCEPTION '% needs the worker of pg_crm_sync, which is not running in database "%"', what, current_database()
                        USING ERRCODE = '55000', DETAIL = 'Calls to a CRM are made by a background worker only.',
                              HINT = 'Check that pg_crm_sync is in shared_preload_libraries, that max_worker_processes leaves room, and the server log.';
                END IF;
            WHEN configuration_limit_exceeded THEN
                IF clock_timestamp() >= patience THEN
                    RAISE;
                END IF;
        END;
        PERFORM pg_sleep(0.05);
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._ask(text, text[], oid, timestamptz) IS 'Leaves requests for the worker, waiting a little for one that is starting; returns the last ticket.';

-- Snapshots must be fresh to see what the worker commits meanwhile.
CREATE FUNCTION crm._wait_possible(what text, how_long interval) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF how_long IS NULL OR how_long < '0' OR how_long > '1 hour' THEN
        RAISE EXCEPTION '% cannot wait %', what, coalesce(how_long::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected an interval from 0 to 1 hour.', HINT = 'Leave the argument out for the default.';
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION '% waits for the worker and cannot see its results under isolation level %', what, current_setting('transaction_isolation')
            USING ERRCODE = '25001', HINT = 'Call it in READ COMMITTED, the default.';
    END IF;
    RETURN clock_timestamp() + how_long;
END $$;
COMMENT ON FUNCTION crm._wait_possible(text, interval) IS 'The end of a wait, or an error where waiting makes no sense.';

CREATE FUNCTION crm._server_committed(server_oid oid, what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mine text := (pg_current_xact_id_if_assigned()::text::bigint & 4294967295)::text;
BEGIN
    IF EXISTS (SELECT FROM pg_foreign_server s WHERE s.oid = server_oid AND s.xmin::text = mine) THEN
        RAISE EXCEPTION '% cannot reach a server that this transaction made or altered', what
            USING ERRCODE = '55000', DETAIL = 'The worker sees it after COMMIT only.', HINT = 'COMMIT first, then call it again.';
    END IF;
END $$;
COMMENT ON FUNCTION crm._server_committed(oid, text) IS 'Raises when the worker cannot see the server yet.';

CREATE FUNCTION crm._host_allowed(host text, allowed text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM regexp_split_to_table(lower(coalesce(allowed, '')), '\s*,\s*') AS a
        WHERE btrim(a) <> '' AND (btrim(a) IN (lower(host), regexp_replace(lower(host), ':[0-9]+$', ''))
              OR (btrim(a) ~ '^\*?\.' AND right(regexp_replace(lower(host), ':[0-9]+$', ''), length(ltrim(btrim(a), '*'))) = ltrim(btrim(a), '*'))))
$$;
COMMENT ON FUNCTION crm._host_allowed(text, text) IS 'Whether host[:port] is in a comma-separated list of hosts; *.domain stands for all below it.';

CREATE FUNCTION crm._hosts_checked(server text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed text := coalesce(current_setting('pg_crm_sync.allowed_hosts', true), '');
    bad     record;
BEGIN
    SELECT split_part(o, '=', 1) AS opt, h.host INTO bad
    FROM crm._server s, unnest(s.options) AS o,
         LATERAL (SELECT (regexp_match(substr(o, strpos(o, '=') + 1), '^(?:https?://)?(\[[^]]+\](?::\d+)?|[^/:]+(?::\d+)?)'))[1] AS host) h
    WHERE s.server = _hosts_checked.server AND split_part(o, '=', 1) IN ('base_url', 'login_url', 'pubsub_endpoint')
      AND NOT crm._host_allowed(h.host, allowed)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'host "%" (option % of server "%") is not an allowed host', bad.host, bad.opt, server
            USING ERRCODE = '42501', DETAIL = 'pg_crm_sync.allowed_hosts is ' || quote_literal(allowed) || '.',
                  HINT = 'A superuser can allow it: ALTER SYSTEM SET pg_crm_sync.allowed_hosts = …, then SELECT pg_reload_conf().';
    END IF;
END $$;
COMMENT ON FUNCTION crm._hosts_checked(text) IS 'Raises when an option of the server names a host outside pg_crm_sync.allowed_hosts.';
CREATE EVENT TRIGGER pg_crm_sync_alter ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA') EXECUTE FUNCTION crm._mirror_ddl();
COMMENT ON EVENT TRIGGER pg_crm_sync_alter IS 'Follows renamed mirrors and columns.';
