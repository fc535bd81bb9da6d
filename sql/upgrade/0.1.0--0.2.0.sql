-- Nothing ever made a mirror read-only.
-- done: CREATE TABLE crm.mirror (
ALTER TABLE crm.mirror ADD COLUMN api_share real CHECK (api_share > 0 AND api_share <= 1);
ALTER TABLE crm.mirror DROP CONSTRAINT mirror_mode_check, ADD CONSTRAINT mirror_mode_check CHECK (mode IN ('shadow', 'live'));
ALTER TABLE crm.mirror
    ADD COLUMN reconcile_at time DEFAULT '06:00',
    ADD COLUMN reconcile_zone text,
    ADD COLUMN reconcile_depth text NOT NULL DEFAULT 'stamps' CHECK (reconcile_depth IN ('stamps', 'values')),
    ADD COLUMN reconcile_patience interval NOT NULL DEFAULT '1 minute' CHECK (reconcile_patience >= '0' AND reconcile_patience <= '1 day'),
    ADD COLUMN missing_limit bigint NOT NULL DEFAULT 1000 CHECK (missing_limit >= 0),
    ADD COLUMN missing_share numeric NOT NULL DEFAULT 0.1 CHECK (missing_share >= 0 AND missing_share <= 1);
UPDATE crm.mirror SET poll_interval = least(greatest(poll_interval, '1 second'), '1 day');
ALTER TABLE crm.mirror ADD CONSTRAINT mirror_poll_interval_check CHECK (poll_interval >= '1 second' AND poll_interval <= '1 day');
ALTER TABLE crm.mirror ADD COLUMN on_schema_change text NOT NULL DEFAULT 'ask' CHECK (on_schema_change IN ('ignore', 'add', 'ask', 'pause'));
-- done: CREATE TABLE crm.mirror_column (
ALTER TABLE crm.mirror_column ADD COLUMN gone_at timestamptz;
-- done: CREATE TABLE crm.server_state (
ALTER TABLE crm.server_state ADD COLUMN time_zone text;
ALTER TABLE crm.stream ADD COLUMN refused text, ADD COLUMN refused_at timestamptz;
-- done: CREATE TABLE crm.link (
ALTER TABLE crm.link
    ADD COLUMN on_left_delete text NOT NULL DEFAULT 'unlink' CHECK (on_left_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    ADD COLUMN on_right_delete text NOT NULL DEFAULT 'unlink' CHECK (on_right_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    ADD COLUMN on_delete_conflict text NOT NULL DEFAULT 'review' CHECK (on_delete_conflict IN ('review', 'delete', 'keep')),
    ADD COLUMN left_scope text, ADD COLUMN right_scope text,
    ADD COLUMN latency text NOT NULL DEFAULT 'interactive' CHECK (latency IN ('interactive', 'relaxed', 'off_peak')),
    ADD COLUMN on_leave text NOT NULL DEFAULT 'keep' CHECK (on_leave IN ('keep', 'unlink', 'delete'));
-- done: CREATE TABLE crm.field_map (
ALTER TABLE crm.field_map
    ADD COLUMN value_map_back jsonb, ADD COLUMN default_left text, ADD COLUMN default_right text,
    ADD COLUMN structure text CHECK (structure IN ('lines', 'words', 'unit')),
    ADD COLUMN left_more text[] NOT NULL DEFAULT '{}', ADD COLUMN right_more text[] NOT NULL DEFAULT '{}',
    ADD COLUMN match_threshold real CHECK (match_threshold > 0 AND match_threshold <= 1),
    ADD COLUMN match_accept real CHECK (match_accept > 0 AND match_accept <= 1),
    ADD COLUMN unique_key boolean NOT NULL DEFAULT false;
UPDATE crm.link SET on_left_delete = on_delete, on_right_delete = on_delete;
ALTER TABLE crm.link DROP COLUMN on_delete;
-- done: CREATE TABLE crm.standard_map (
ALTER TABLE crm.standard_map ADD COLUMN value_map_back jsonb, ADD COLUMN direction text NOT NULL DEFAULT 'both' CHECK (direction IN ('both', 'to_left', 'to_right'));
-- done: CREATE TABLE crm.conflict_policy (
ALTER TABLE crm.conflict_policy ADD COLUMN function text, ADD COLUMN min_score numeric CHECK (min_score >= 0 AND min_score <= 1),
    ADD COLUMN strict boolean NOT NULL DEFAULT false;
-- done: CREATE TABLE crm.policy_history (
ALTER TABLE crm.policy_history ADD COLUMN reason text, ADD COLUMN kind text NOT NULL DEFAULT 'policy' CHECK (kind IN ('policy', 'lock', 'stamp'));
ALTER TABLE crm.policy_history ALTER COLUMN kind DROP DEFAULT,
    ALTER COLUMN reason SET DEFAULT nullif(current_setting('pg_crm_sync.reason', true), '');
-- done: CREATE TABLE crm.change_tx (
ALTER TABLE crm.change_tx ADD COLUMN score real;
-- What a linked record is called follows from its mirror.
-- done: CREATE TABLE crm.xref (
ALTER TABLE crm.xref DROP COLUMN record_id;
-- done: CREATE TABLE crm.event (
ALTER TABLE crm.event
    ADD COLUMN tx bigint, ADD COLUMN stream integer, ADD COLUMN identity uuid, ADD COLUMN application text, ADD COLUMN reason text,
    ADD COLUMN unknown text[], ADD COLUMN carried jsonb, ADD COLUMN score real, ALTER COLUMN mirror DROP NOT NULL, ALTER COLUMN policy_version TYPE integer;
-- Questions of before are asked again with all their values when the next event comes; those about matches stay.
-- done: CREATE TABLE crm.review_item (
ALTER TABLE crm.review_item DROP CONSTRAINT review_item_link_mirror_row_id_field_key;
ALTER TABLE crm.review_item
    ADD COLUMN kind text CHECK (kind IN ('field', 'match', 'create', 'delete', 'merge', 'erase', 'missing')),
    ADD COLUMN own_field text, ADD COLUMN rule bigint, ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN resolution text, ADD COLUMN value text, ADD COLUMN answer_mirror integer, ADD COLUMN resolved_by text,
    ADD COLUMN resolved_with text, ADD COLUMN resolved_why text, ADD COLUMN resolved_at timestamptz;
UPDATE crm.review_item SET kind = CASE WHEN field IS NULL THEN 'match' ELSE 'field' END, changed_at = opened_at;
ALTER TABLE crm.review_item ALTER COLUMN kind SET NOT NULL;
-- What was counted before had neither endpoint nor mirror, and was a table of the name that a view has now.
ALTER TABLE crm.api_usage RENAME TO api_usage_before;
-- after:
INSERT INTO crm.api_count (server, per, since, purpose, endpoint, mirror, calls, limited) SELECT server, 'hour', hour, purpose, '', 0, calls, limited FROM crm.api_usage_before;
ALTER EXTENSION pg_crm_sync DROP TABLE crm.api_usage_before;
DROP TABLE crm.api_usage_before;
-- done: DO $$ DECLARE t text; BEGIN FOREACH t IN ARRAY ARRAY['mirror', 'mirror_column', 'link', 'field_map', 'field_default', 'conflict_policy', 'field_lock'] LOOP
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.field_lock
    FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.field_default
    FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
-- done: DO $$ DECLARE t text; BEGIN FOREACH t IN ARRAY ARRAY['conflict_policy', 'field_lock'] LOOP
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
-- Mirrors without a link had a hidden default.
INSERT INTO crm.conflict_policy (link, field, strategy)
    SELECT '*', '*', 'last_write_wins' WHERE EXISTS (SELECT FROM crm.mirror) ON CONFLICT DO NOTHING;
-- The worker alone writes the catalog: names and types in it become SQL.
REVOKE INSERT, UPDATE, DELETE ON crm.remote_object, crm.remote_field FROM crm_admin;
INSERT INTO crm.stamp_quality (system, source, stamp, exactness, resolution, tolerance)
    SELECT d.* FROM crm._stamp_defaults() d WHERE EXISTS (SELECT FROM crm.mirror) ON CONFLICT DO NOTHING;
-- Stewards answer through crm.review.
REVOKE UPDATE, DELETE ON crm.review_item FROM crm_steward;
-- The partitions of before, as those to come.
DO $$
DECLARE p text;
BEGIN
    FOR p IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'crm.event'::regclass LOOP
        EXECUTE format('CREATE INDEX %I ON crm.%I (seq)', p || '_seq', p);
    END LOOP;
END $$;
-- done: CREATE TABLE crm.write (
ALTER TABLE crm.write ADD COLUMN job text;
-- done: CREATE TABLE crm.stream (
ALTER TABLE crm.stream DROP CONSTRAINT stream_kind_check, ADD CONSTRAINT stream_kind_check CHECK (kind IN ('webhook', 'journal', 'pubsub', 'cometd', 'poll'));
-- done: SELECT crm._refusals_attach('{api_budget,backfill,column_fill,conflict_policy,consumer_offset,field_default,field_lock,field_map,given_up,link,mirror,off_peak,policy_task,reference_map,review_item,schema_change,server_state,stamp_quality,stream,survivor_rule}');
SELECT crm._refusals_attach('{api_budget,backfill,column_fill,conflict_policy,consumer_offset,field_default,field_lock,field_map,given_up,link,mirror,off_peak,policy_task,reference_map,review_item,schema_change,server_state,stamp_quality,stream,survivor_rule}');
