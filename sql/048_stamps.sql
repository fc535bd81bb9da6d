-- How exact the time of a change is, by where it was told: rows that the resolver
-- goes by, and that a DBA may change.

CREATE TABLE crm.stamp_quality (
    system     text NOT NULL,
    source     text NOT NULL,
    server     text NOT NULL DEFAULT '*',
    stamp      text NOT NULL,
    exactness  text NOT NULL,
    resolution interval NOT NULL,
    tolerance  interval,
    changed_by name NOT NULL DEFAULT session_user,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (system, source, server)
);
COMMENT ON TABLE crm.stamp_quality IS 'How exact the time of a change is, by where it was told: what the resolver goes by when time decides. The rows of server * are the defaults; a row with the name of a server goes before them. Edits count from the next event on; each has its policy version.';
COMMENT ON COLUMN crm.stamp_quality.system IS 'hubspot, salesforce, or sql.';
COMMENT ON COLUMN crm.stamp_quality.source IS 'The way it was told, as crm.event.source names it.';
COMMENT ON COLUMN crm.stamp_quality.server IS 'A server, or * for all of the system.';
COMMENT ON COLUMN crm.stamp_quality.stamp IS 'What the stamp is called there: for people.';
COMMENT ON COLUMN crm.stamp_quality.exactness IS 'edit: the time of the edit. record: of the last change of the record, whatever field it was. received: only when we were told.';
COMMENT ON COLUMN crm.stamp_quality.resolution IS 'What the stamp shows: a stamp in whole seconds stands for every moment of that second.';
COMMENT ON COLUMN crm.stamp_quality.tolerance IS 'For record and received: how much earlier the edit may have been made. Inside it the stamp never beats one of an edit. Null: any time before.';
SELECT pg_catalog.pg_extension_config_dump('crm.stamp_quality', '');

CREATE FUNCTION crm._stamp_defaults() RETURNS TABLE (system text, source text, stamp text, exactness text, resolution interval, tolerance interval)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES ('sql', 'sql', 'start of the statement', 'edit', interval '1 ms', interval '0'),
           ('hubspot', 'webhook', 'occurredAt', 'edit', '1 ms', '0'),
           ('hubspot', 'journal', 'occurredAt', 'edit', '1 ms', '0'),
           ('hubspot', 'poll', 'lastmodifieddate, hs_lastmodifieddate', 'record', '1 ms', '2 min'),
           ('hubspot', 'read', 'lastmodifieddate, hs_lastmodifieddate', 'record', '1 ms', '2 min'),
           ('hubspot', 'backfill', 'lastmodifieddate, hs_lastmodifieddate', 'record', '1 ms', NULL),
           ('salesforce', 'pubsub', 'ChangeEventHeader.commitTimestamp', 'edit', '1 ms', '0'),
           ('salesforce', 'cometd', 'ChangeEventHeader.commitTimestamp', 'edit', '1 ms', '0'),
           ('salesforce', 'poll', 'SystemModstamp', 'record', '1 s', '2 min'),
           ('salesforce', 'read', 'SystemModstamp', 'record', '1 s', '2 min'),
           ('salesforce', 'backfill', 'SystemModstamp', 'record', '1 s', NULL)
$$;
COMMENT ON FUNCTION crm._stamp_defaults() IS 'The rows with which crm.stamp_quality begins.';

-- What counts for each server, and for SQL.
-- PL/pgSQL keeps the plan; a function in SQL would be planned at every question.
CREATE FUNCTION crm._stamp_qualities() RETURNS TABLE (server text, source text, exactness text, resolution interval, tolerance interval)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT DISTINCT ON (s.server, q.source) s.server, q.source, q.exactness, q.resolution, q.tolerance
    FROM (SELECT x.server, x.server_type FROM crm._server x UNION ALL SELECT 'local', 'sql') s
    JOIN crm.stamp_quality q ON q.system = s.server_type AND q.server IN ('*', s.server)
    ORDER BY s.server, q.source, q.server = '*';
END $$;
COMMENT ON FUNCTION crm._stamp_qualities() IS 'The rows of crm.stamp_quality that count, per server; local is SQL.';

CREATE FUNCTION crm._stamp_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text[];
BEGIN
    IF crm._restoring() THEN
        RETURN CASE tg_op WHEN 'DELETE' THEN old ELSE new END;
    ELSIF tg_op = 'DELETE' OR (tg_op = 'UPDATE' AND (new.system, new.source, new.server) IS DISTINCT FROM (old.system, old.source, old.server)) THEN
        IF old.server = '*' THEN
            RAISE EXCEPTION 'the row of % % would be missing', old.system, old.source
                USING ERRCODE = '23502', DETAIL = 'There is no hidden default: the rows of server * say what counts where a server has no row of its own.', HINT = 'UPDATE its exactness, resolution or tolerance, or add a row for one server.';
        ELSIF tg_op = 'DELETE' THEN
            RETURN old;
        END IF;
    END IF;
    SELECT array_agg(d.system || ' ' || d.source) INTO known FROM crm._stamp_defaults() d;
    IF NOT EXISTS (SELECT FROM crm._stamp_defaults() d WHERE d.system = new.system AND d.source = new.source) THEN
        RAISE EXCEPTION 'nothing is told by % %', new.system, new.source
            USING ERRCODE = '22023', DETAIL = 'Known are: ' || array_to_string(known, ', ') || '.', HINT = crm._near_hint(concat_ws(' ', new.system, new.source), known, 'See crm.event.source.');
    ELSIF new.server <> '*' AND NOT EXISTS (SELECT FROM crm._server s WHERE s.server = new.server AND s.server_type = new.system) THEN
        SELECT array_agg(s.server) INTO known FROM crm._server s WHERE s.server_type = new.system;
        RAISE EXCEPTION 'there is no % server "%"', new.system, new.server
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'There is none of that system.' ELSE 'There are: ' || array_to_string(known, ', ') || '.' END, HINT = crm._near_hint(new.server, known, '* stands for all.');
    ELSIF new.exactness NOT IN ('edit', 'record', 'received') OR (new.system = 'sql' AND new.exactness <> 'edit') THEN
        RAISE EXCEPTION 'exactness cannot be "%" of %', new.exactness, new.system
            USING ERRCODE = '22023', DETAIL = CASE new.system WHEN 'sql' THEN 'The time of a statement is that of its edits.' ELSE 'Expected edit, record or received.' END,
                  HINT = 'edit: the time of the edit; record: of the record''s last change; received: when we were told.';
    ELSIF new.resolution < interval '1 ms' OR new.resolution > interval '1 day' OR new.tolerance < interval '0' OR new.tolerance > interval '10 years' THEN
        RAISE EXCEPTION 'resolution % and tolerance % cannot be', new.resolution, coalesce(new.tolerance::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'A resolution is 1 ms to 1 day, a tolerance 0 to 10 years.', HINT = 'tolerance NULL is any time before.';
    ELSIF new.exactness <> 'edit' AND new.tolerance = interval '0' THEN
        RAISE EXCEPTION 'a stamp of a % needs a tolerance', new.exactness
            USING ERRCODE = '22023', DETAIL = 'Without one it would say when the edit was made.', HINT = 'exactness = ''edit'' says that; NULL is any time before.';
    END IF;
    IF tg_op = 'UPDATE' AND crm._same_but_signed(to_jsonb(old), to_jsonb(new)) THEN
        RETURN old;
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._stamp_check() IS 'Checks a row of crm.stamp_quality; keeps the rows of server *.';
CREATE TRIGGER stamp_check BEFORE INSERT OR UPDATE OR DELETE ON crm.stamp_quality FOR EACH ROW EXECUTE FUNCTION crm._stamp_check();
COMMENT ON TRIGGER stamp_check ON crm.stamp_quality IS 'Refuses rows that say nothing, with what to do instead.';

CREATE FUNCTION crm._stamp_changed() RETURNS trigger
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
    INSERT INTO crm.policy_history (policy_version, kind, before, after) VALUES (v, 'stamp', was, is_);
    -- Its line in the ledger; what is decided stays decided.
    INSERT INTO crm.policy_task (policy_version, kind, link, field)
    VALUES (v, 'decide', 'crm.stamp_quality', concat_ws(' ', coalesce(is_, was) ->> 'system', coalesce(is_, was) ->> 'source'));
    PERFORM crm._wake();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._stamp_changed() IS 'Gives every change of crm.stamp_quality its own policy version and keeps it in crm.policy_history.';
CREATE TRIGGER stamp_changed AFTER INSERT OR UPDATE OR DELETE ON crm.stamp_quality FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION crm._stamp_changed();
COMMENT ON TRIGGER stamp_changed ON crm.stamp_quality IS 'Keeps the history.';
CREATE TRIGGER policy_truncate BEFORE TRUNCATE ON crm.stamp_quality FOR EACH STATEMENT EXECUTE FUNCTION crm._policy_truncate();
COMMENT ON TRIGGER policy_truncate ON crm.stamp_quality IS 'Keeps the history whole.';
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE ON crm.stamp_quality FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
COMMENT ON TRIGGER config_changed ON crm.stamp_quality IS 'Tells the worker to read its configuration again.';

-- With the first mirror, as the default policy: rows of an extension would be there twice after a restore.
CREATE FUNCTION crm._stamp_begin() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() AND NOT EXISTS (SELECT FROM crm.stamp_quality) THEN
        INSERT INTO crm.stamp_quality (system, source, stamp, exactness, resolution, tolerance) SELECT d.* FROM crm._stamp_defaults() d ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._stamp_begin() IS 'Fills crm.stamp_quality with the first mirror, for all to see.';
CREATE TRIGGER stamp_begin AFTER INSERT ON crm.mirror FOR EACH STATEMENT EXECUTE FUNCTION crm._stamp_begin();
COMMENT ON TRIGGER stamp_begin ON crm.mirror IS 'No hidden default.';
