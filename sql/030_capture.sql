-- What users change on mirrors. The tables are written by the trigger function
-- in the library, below SQL: do not add indexes, columns or triggers to them.

CREATE SEQUENCE crm.change_flush_seq AS bigint NO CYCLE CACHE 1;
COMMENT ON SEQUENCE crm.change_flush_seq IS 'One number per write to the change log. Not a cursor: numbers commit out of order.';

CREATE TABLE crm.change_0 (
    flush     bigint  NOT NULL,
    tx        bigint  NOT NULL,
    row_id    bigint  NOT NULL,
    ord       integer NOT NULL,
    mirror_id integer NOT NULL,
    op        "char"  NOT NULL,
    old       bytea   NOT NULL
) USING heap WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000
);
ALTER TABLE crm.change_0 ALTER COLUMN old SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE crm.change_1 (LIKE crm.change_0 INCLUDING STORAGE) USING heap WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000
);
ALTER TABLE crm.change_1 REPLICA IDENTITY FULL;
COMMENT ON TABLE crm.change_0 IS 'Changes of mirrors by users, waiting for the worker: one of two segments that are written and drained in turn.';
COMMENT ON TABLE crm.change_1 IS 'Changes of mirrors by users, waiting for the worker: one of two segments that are written and drained in turn.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['change_0', 'change_1'] LOOP
        EXECUTE format('COMMENT ON COLUMN crm.%I.flush IS %L', t, 'Number of the write; (flush, ord) is the order of the changes of a row.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.tx IS %L', t, 'Number of the transaction: that of its first write; see crm.change_tx.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.row_id IS %L', t, '_id of the changed row.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.ord IS %L', t, 'Counts the changes of the transaction from 0.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.mirror_id IS %L', t, 'crm.mirror.id of the mirror.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.op IS %L', t, 'I, U or D.');
        EXECUTE format('COMMENT ON COLUMN crm.%I.old IS %L', t, 'Old values, packed: of the changed columns (U), of the whole row (D), none (I).');
    END LOOP;
END $$;

CREATE TABLE crm.change_tx (
    tx               bigint      NOT NULL PRIMARY KEY,
    at               timestamptz NOT NULL,
    rows             integer     NOT NULL,
    held             boolean     NOT NULL,
    "session_user"   text        NOT NULL,
    application_name text        NOT NULL,
    reason           text,
    origin           text,
    score            real
) USING heap WITH (autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE crm.change_tx IS 'One row per transaction that changed mirrors: who, why, and whether its writes wait for approval.';
COMMENT ON COLUMN crm.change_tx.at IS 'Start of the statement that made the first change.';
COMMENT ON COLUMN crm.change_tx.rows IS 'Changes that it logged, in all mirrors.';
COMMENT ON COLUMN crm.change_tx.held IS 'It changed more rows of a mirror than pg_crm_sync.guard_soft_rows, or its user and application more than guard_window_rows within guard_window: its writes wait for crm.approve.';
COMMENT ON COLUMN crm.change_tx.reason IS 'pg_crm_sync.reason of the session.';
COMMENT ON COLUMN crm.change_tx.score IS 'pg_crm_sync.score of the session: how sure it is of what it wrote; see crm.conflict_policy.min_score.';
COMMENT ON COLUMN crm.change_tx.origin IS 'pg_crm_sync.application of the session; null means local.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['change_0', 'change_1', 'change_tx', 'change_flush_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

-- No fixed search_path: setting it costs more than the whole function, which
-- runs no SQL.
CREATE FUNCTION crm._capture() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'crm_capture';
COMMENT ON FUNCTION crm._capture() IS 'Logs what users change on a mirror. Attached by crm._mirror_attach with the number of the mirror and its read-only columns.';
REVOKE ALL ON FUNCTION crm._capture() FROM PUBLIC;

CREATE FUNCTION crm._mirror_attach(mirror_id integer, "table" regclass, readonly text[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    arguments text;
BEGIN
    SELECT string_agg(quote_literal(a), ', ' ORDER BY n) INTO arguments
    FROM unnest(ARRAY[mirror_id::text] || coalesce(readonly, '{}')) WITH ORDINALITY AS u (a, n);
    PERFORM crm._mirror_detach("table");
    -- The name sorts last, so that it sees what other triggers of the row did.
    EXECUTE format('CREATE TRIGGER zz_crm_capture AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION crm._capture(%s)', "table", arguments);
    EXECUTE format('CREATE TRIGGER zz_crm_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION crm._capture(%s)', "table", arguments);
END $$;
COMMENT ON FUNCTION crm._mirror_attach(integer, regclass, text[]) IS 'Starts capturing what users change on a mirror; again with other read-only columns.';

CREATE FUNCTION crm._mirror_detach("table" regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t name;
BEGIN
    FOR t IN SELECT tgname FROM pg_trigger g WHERE g.tgrelid = "table" AND g.tgname IN ('zz_crm_capture', 'zz_crm_truncate') LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t, "table");
    END LOOP;
END $$;
COMMENT ON FUNCTION crm._mirror_detach(regclass) IS 'Stops capturing what users change on a mirror.';
REVOKE ALL ON FUNCTION crm._mirror_attach(integer, regclass, text[]), crm._mirror_detach(regclass) FROM PUBLIC;
