-- Roles, grants, and comments of functions that the library defines.

COMMENT ON FUNCTION crm._map_value(text, jsonb, text) IS 'The image of a value under a transform or a value map, as the worker makes it; where there is none, why.';
COMMENT ON FUNCTION crm._map_cells(text, text[], integer) IS 'The columns of one side for those of the other, where a map makes one value of several, as the worker makes them.';
COMMENT ON FUNCTION crm._is_expression(text) IS 'Whether a text is one SQL expression by itself; raises where it cannot be parsed. Nothing runs.';
COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the worker of this database, also before this transaction ends; the answer is a row under the returned ticket.';
COMMENT ON FUNCTION crm._wake() IS 'Wakes the worker of this database when this transaction commits.';
COMMENT ON FUNCTION crm._error_rules() IS 'The tables of errors as the library has them: see crm.error_class.';
COMMENT ON FUNCTION crm._fence() IS 'State of the fence as the library reads it: see crm.fence_status().';
COMMENT ON FUNCTION crm._fence_write(text) IS 'Writes the activation file of this cluster; only through crm.activate().';
COMMENT ON FUNCTION crm._last_tx() IS 'Number of this session''s last transaction that changed mirrors: see crm.wait_synced().';
COMMENT ON FUNCTION crm._tx_has_changes() IS 'Whether the running transaction has changed mirrors.';
COMMENT ON FUNCTION crm.explain(text, integer) IS 'What would follow from an INSERT, UPDATE, DELETE or MERGE on a mirror, without effect: per field the values that compete, the rule and the winner; the writes to the CRMs; the API calls they cost; what the guard says. The statement runs with the caller''s rights and is undone.';
COMMENT ON FUNCTION crm._explain_pending(bigint, bigint) IS 'What would follow from an event that waits, or what a write would send.';
COMMENT ON FUNCTION crm._what_if(jsonb, timestamptz, integer) IS 'Replays the ledger under a draft of the policy: see crm.what_if.';
COMMENT ON FUNCTION crm._explain_policy(jsonb, integer) IS 'What is open and would be decided otherwise under a draft of the policy.';
COMMENT ON FUNCTION crm._why_values(integer, bigint) IS 'Part of crm.why: fields that the row''s counterparts show differently, and what keeps it so.';
COMMENT ON FUNCTION crm._as_engine(oid, text, jsonb) IS 'Runs a statement on a mirror as the engine does, uncaptured and with its owner''s rights; only through crm.reject().';
COMMENT ON FUNCTION crm._by_engine(oid) IS 'Whether the row trigger that runs now belongs to a statement of the engine on this mirror.';
COMMENT ON FUNCTION crm._by_reference(oid) IS 'The reference map that the row trigger that runs now belongs to a statement of: the worker carries one of its references over to this mirror.';
COMMENT ON FUNCTION crm._as_engine_found(oid, text, jsonb) IS 'The JSON that a query on a mirror answers, with its owner''s rights; only through crm.reject().';
COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the worker at once, outside the transaction; returns the ticket of its answer.';
COMMENT ON FUNCTION crm._wake() IS 'Wakes the worker when this transaction commits.';

-- Roles belong to the cluster and outlive the extension. Ours carry a mark in
-- their comment; another role of the same name is not given rights by accident.
CREATE FUNCTION crm._role_ensure(role name, login boolean, purpose text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    marked boolean := (SELECT shobj_description(r.oid, 'pg_authid') LIKE 'pg_crm_sync: %' FROM pg_roles r WHERE r.rolname = role);
BEGIN
    IF marked IS NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role) THEN
        EXECUTE format('CREATE ROLE %I %s NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', role, CASE WHEN login THEN 'LOGIN' ELSE 'NOLOGIN' END);
    ELSIF marked IS NOT TRUE AND role <> ALL (string_to_array(replace(coalesce(current_setting('crm.adopt_roles', true), ''), ' ', ''), ',')) THEN
        RAISE EXCEPTION 'role "%" exists and was not made by pg_crm_sync', role
            USING ERRCODE = '42710', DETAIL = 'It would get rights on CRM data together with everyone who is a member of it.',
                  HINT = format('Rename it, or adopt it on purpose: SET crm.adopt_roles = %L; then CREATE EXTENSION again.', role);
    END IF;
    EXECUTE format('COMMENT ON ROLE %I IS %L', role, 'pg_crm_sync: ' || purpose);
END $$;
COMMENT ON FUNCTION crm._role_ensure(name, boolean, text) IS 'Makes a role of ours, or refuses one of the same name that we did not make.';

SELECT crm._role_ensure('crm_reader', false, 'sees status, progress, ledger and conflicts');
SELECT crm._role_ensure('crm_steward', false, 'answers questions of crm.review');
SELECT crm._role_ensure('crm_operator', false, 'pauses, resumes, approves, retries');
SELECT crm._role_ensure('crm_admin', false, 'imports, links, sets policy, goes live');
SELECT crm._role_ensure('crm_worker', false, 'the background worker');

DO $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT * FROM (VALUES ('crm_reader', 'crm_steward'), ('crm_reader', 'crm_operator'), ('crm_steward', 'crm_admin'), ('crm_operator', 'crm_admin')) AS v (given, member) LOOP
        IF NOT pg_has_role(r.member, r.given, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO %I', r.given, r.member);
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA crm FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA crm FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA crm FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crm FROM PUBLIC;

GRANT USAGE ON SCHEMA crm TO crm_reader, crm_worker;

-- Reading: everything but raw webhooks and the activation token.
GRANT SELECT ON ALL TABLES IN SCHEMA crm TO crm_reader;
REVOKE SELECT ON crm.installation, crm.webhook_queue, crm.change_0, crm.change_1 FROM crm_reader;
GRANT SELECT (only_one, id, activated_at, policy_version) ON crm.installation TO crm_reader;

-- Functions that only read, or that act behind checks of their own.
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS signature, p.proname AS name, p.prosecdef AS definer FROM pg_proc p WHERE p.pronamespace = 'crm'::regnamespace LOOP
        -- Helpers run with the caller's rights; these do not and trust their arguments.
        IF f.name NOT IN ('_as_engine', '_as_engine_found', '_fence_write', '_role_ensure', '_event_partition_ensure', '_event_retain', '_event_seen_forget') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_admin', f.signature);
        END IF;
        IF f.name IN ('pause', 'resume', 'refresh', 'server_check', 'approve', 'reject', 'resolve_create', 'dead_letter_retry', 'dead_letter_retry_where', 'dead_letter_discard', '_pause_set', '_ask', '_request',
                      '_wait_possible', '_journal_subscriptions', '_server_committed', '_server_state_ensure', '_wake', '_link_named', '_mirror_named', '_tx_known', '_dead_ids', '_is_expression') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_operator', f.signature);
        END IF;
        IF f.name IN ('review_match', 'review_resolve') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_steward', f.signature);
        END IF;
        IF f.name IN ('replay', 'reconcile', 'reconcile_cancel', 'consumer_create', 'consumer_drop', '_ledger_start', '_stream_named') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_operator', f.signature);
        END IF;
        IF f.name IN ('lineage', 'record_as_of', 'consumer_read', 'consumer_commit', '_consumer_named', '_ledger_end', '_keep', '_event_partitions', '_event_seq_at',
                      '_record_row', '_field_checked', '_mapped_fields', '_record_rows', '_outcome', '_decided', '_undrained', '_undo', '_as_of_checked', '_as_of_row') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_reader', f.signature);
        END IF;
        IF f.name IN ('wait_synced', 'sync_state', 'reconcile_estimate', 'fence_status', '_fence', '_span', '_relation_of', '_table_of', '_column_of', '_of_sql', '_of_sql_left', '_review_answers', '_worker_alive', '_server_checked', '_near', '_near_hint', '_link_named',
                      '_mirror_named', '_host_allowed', '_stamp_qualities', '_time_zone', '_off_peak_spans', '_api_spent', '_raising') OR f.name ~ '^(why|_why.*|_scope_clauses|_and_clauses|_converted|_record_of|_clauses|_clause_ends|_function_found|explain|_explain.*)$' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_reader', f.signature);
        END IF;
    END LOOP;
END $$;

GRANT INSERT, UPDATE, DELETE ON crm.mirror, crm.mirror_column, crm.backfill, crm.link, crm.field_map, crm.field_default, crm.reference_map, crm.survivor_rule, crm.conflict_policy, crm.field_lock, crm.stamp_quality, crm.api_budget, crm.off_peak, crm.policy_task, crm.xref, crm.field_state TO crm_admin;
GRANT INSERT, UPDATE, DELETE ON crm.server_state, crm.stream, crm.review_item, crm.write TO crm_admin;
GRANT INSERT ON crm.installation, crm.config_change, crm.given_up TO crm_admin;
GRANT INSERT ON crm.column_fill TO crm_admin;
GRANT UPDATE ON crm.schema_change TO crm_admin;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA crm TO crm_admin;
GRANT UPDATE (paused) ON crm.mirror, crm.link, crm.server_state TO crm_operator;
GRANT INSERT ON crm.server_state, crm.installation TO crm_operator;
GRANT UPDATE (resolution, value) ON crm.review TO crm_steward;
GRANT INSERT, DELETE ON crm.consumer_offset TO crm_operator;
GRANT UPDATE (committed, committed_at) ON crm.consumer_offset TO crm_reader;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_crm_sync TO crm_admin;

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA crm TO crm_worker;
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA crm TO crm_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crm TO crm_worker;
-- Whoever took over the worker would have the rights of every table's owner.
REVOKE EXECUTE ON FUNCTION crm._as_engine(oid, text, jsonb), crm._fence_write(text), crm._role_ensure(name, boolean, text) FROM crm_worker;
