-- Written by scripts/upgrade-sql; tables by sql/upgrade/0.1.0--0.2.0.sql.
\echo Use "ALTER EXTENSION pg_crm_sync UPDATE" to load this file. \quit

DROP VIEW crm.status;
DROP VIEW crm._status_parts;
DROP VIEW crm.review;
DROP VIEW crm.conflict;
DROP VIEW crm.held;
DROP VIEW crm.outbox;
DROP TRIGGER policy_changed ON crm.conflict_policy;

ALTER TABLE crm.link
    ADD COLUMN on_left_delete text NOT NULL DEFAULT 'unlink' CHECK (on_left_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    ADD COLUMN on_right_delete text NOT NULL DEFAULT 'unlink' CHECK (on_right_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    ADD COLUMN on_delete_conflict text NOT NULL DEFAULT 'review' CHECK (on_delete_conflict IN ('review', 'delete', 'keep')),
    ADD COLUMN left_scope text, ADD COLUMN right_scope text,
    ADD COLUMN on_leave text NOT NULL DEFAULT 'keep' CHECK (on_leave IN ('keep', 'unlink', 'delete'));
ALTER TABLE crm.field_map
    ADD COLUMN value_map_back jsonb, ADD COLUMN default_left text, ADD COLUMN default_right text,
    ADD COLUMN structure text CHECK (structure IN ('lines', 'words', 'unit')),
    ADD COLUMN left_more text[] NOT NULL DEFAULT '{}', ADD COLUMN right_more text[] NOT NULL DEFAULT '{}',
    ADD COLUMN match_threshold real CHECK (match_threshold > 0 AND match_threshold <= 1),
    ADD COLUMN match_accept real CHECK (match_accept > 0 AND match_accept <= 1),
    ADD COLUMN unique_key boolean NOT NULL DEFAULT false;
UPDATE crm.link SET on_left_delete = on_delete, on_right_delete = on_delete;
ALTER TABLE crm.link DROP COLUMN on_delete;
ALTER TABLE crm.conflict_policy ADD COLUMN function text, ADD COLUMN min_score numeric CHECK (min_score >= 0 AND min_score <= 1);
ALTER TABLE crm.policy_history ADD COLUMN reason text, ADD COLUMN kind text NOT NULL DEFAULT 'policy' CHECK (kind IN ('policy', 'lock'));
ALTER TABLE crm.policy_history ALTER COLUMN kind DROP DEFAULT,
    ALTER COLUMN reason SET DEFAULT nullif(current_setting('pg_crm_sync.reason', true), '');
ALTER TABLE crm.change_tx ADD COLUMN score real;
-- What a linked record is called follows from its mirror.
ALTER TABLE crm.xref DROP COLUMN record_id;
ALTER TABLE crm.event
    ADD COLUMN tx bigint, ADD COLUMN stream integer, ADD COLUMN identity uuid, ADD COLUMN application text, ADD COLUMN reason text,
    ADD COLUMN unknown text[], ADD COLUMN carried jsonb, ALTER COLUMN mirror DROP NOT NULL, ALTER COLUMN policy_version TYPE integer;
-- Questions of before are asked again with all their values when the next event comes; those about matches stay.
ALTER TABLE crm.review_item DROP CONSTRAINT review_item_link_mirror_row_id_field_key;
ALTER TABLE crm.review_item
    ADD COLUMN kind text CHECK (kind IN ('field', 'match', 'create', 'delete', 'merge', 'erase')),
    ADD COLUMN own_field text, ADD COLUMN rule bigint, ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN resolution text, ADD COLUMN value text, ADD COLUMN answer_mirror integer, ADD COLUMN resolved_by text,
    ADD COLUMN resolved_with text, ADD COLUMN resolved_why text, ADD COLUMN resolved_at timestamptz;
UPDATE crm.review_item SET kind = CASE WHEN field IS NULL THEN 'match' ELSE 'field' END, changed_at = opened_at;
ALTER TABLE crm.review_item ALTER COLUMN kind SET NOT NULL;

DROP FUNCTION crm._policy_owner_clash(crm.conflict_policy);
DROP FUNCTION crm._match_groups(crm.link);
DROP FUNCTION crm._map_lossy(crm.link, crm.field_map, text);

COMMENT ON TABLE crm.installation IS 'One row: who we are to the CRMs (client mark pg_crm_sync_<id>), and the activation that lets this very cluster write to them.';

COMMENT ON TABLE crm.server_state IS 'What the worker knows of each CRM account: pause switch, last catalog refresh, last error and what to do about it.';

COMMENT ON TABLE crm.remote_object IS 'Catalog: the object types that each CRM account offers, as the CRM describes them.';

COMMENT ON TABLE crm.remote_field IS 'Catalog: the fields of each object type with type, length, choices and what may be written.';

COMMENT ON TABLE crm.mirror IS 'One row per mirror: which object type of which server a table holds, and whether its changes go out (mode live), are only shown (shadow), or are refused (read_only).';

COMMENT ON COLUMN crm.mirror.unique_field IS 'Our own unique property or External ID in that CRM, if the account has it: creates become upserts on it, so a lost answer makes no duplicate.';

COMMENT ON COLUMN crm.mirror.source_field IS 'The property in that CRM that says who wrote last (sync_source), if the account has it.';

COMMENT ON TABLE crm.mirror_column IS 'Which field of the CRM each column of a mirror holds.';

COMMENT ON TABLE crm.backfill IS 'First copy of each mirror: the cursor is committed with the rows of its page, so a crash resumes where it was.';

COMMENT ON TABLE crm.stream IS 'Inbound sources and how far each was applied: the offset is committed with the data it brought.';

COMMENT ON COLUMN crm.stream.modified_at IS 'Poll keyset: modified stamp in milliseconds since 1970 of the last row seen.';

COMMENT ON TABLE crm.link IS 'Pairs of mirrors whose rows describe the same things. A new link is in shadow: it shows what it would send, and sends nothing until crm.go_live.';

COMMENT ON COLUMN crm.link.on_left_delete IS 'When a record of the left side is removed, the right one: propagate is removed in its CRM too; soft_delete is shown as deleted here, stays in its CRM and comes back with the first; unlink stays and is a thing of its own; ignore stays and stays tied.';

COMMENT ON COLUMN crm.link.on_right_delete IS 'The same for the left record when the right one is removed.';

COMMENT ON COLUMN crm.link.on_delete_conflict IS 'When a record is removed while a change was on its way there: review asks in crm.review, delete lets the removal stand, keep brings the record back.';

COMMENT ON COLUMN crm.link.left_scope IS 'Which rows of the left mirror take part: a condition over its columns, such as lifecyclestage = ''customer''; null for all.';

COMMENT ON COLUMN crm.link.right_scope IS 'The same for the right mirror.';

COMMENT ON COLUMN crm.link.on_leave IS 'What happens to a tied pair when one of its rows leaves the scope: keep (the tie rests, nothing travels), unlink (the tie ends), or delete (the other record is deleted).';

COMMENT ON TABLE crm.field_map IS 'Which fields of a link hold the same thing, in which direction values flow, how they are spelled on each side, and which identify a record (match_order).';

COMMENT ON COLUMN crm.field_map.to_left IS 'How a value of the right side becomes one of the left: a transform of crm._transforms(), or a function of yours, schema.name, that is IMMUTABLE and takes and returns the columns'' types.';

COMMENT ON COLUMN crm.field_map.to_right IS 'The same from left to right.';

COMMENT ON COLUMN crm.field_map.value_map IS 'Choices that are called differently: {"left value": "right value"}. A value that is not listed has no counterpart and does not travel.';

COMMENT ON COLUMN crm.field_map.value_map_back IS 'Which left value a right one becomes, {"right value": "left value"}, where value_map does not say: several left values share it, or none leads to it.';

COMMENT ON COLUMN crm.field_map.default_left IS 'What the left side gets where there is no value, for fields that are required there.';

COMMENT ON COLUMN crm.field_map.default_right IS 'The same for the right side.';

COMMENT ON COLUMN crm.field_map.structure IS 'How several columns are one value: lines (of one text), words (first and last name), unit (column by column). Such a value is compared and decided as one.';

COMMENT ON COLUMN crm.field_map.left_more IS 'Further columns of the left side that are one value with left_field, in order.';

COMMENT ON COLUMN crm.field_map.right_more IS 'The same for the right side.';

COMMENT ON COLUMN crm.field_map.match_order IS 'Place among the keys that identify a record; null for none. The first key that finds something decides.';

COMMENT ON COLUMN crm.field_map.match_threshold IS 'For a key that is compared by likeness (pg_trgm): from which similarity on two values may be the same, 0 to 1. Such matches are asked about in crm.review. Null for equality.';

COMMENT ON COLUMN crm.field_map.match_accept IS 'From which similarity on the only candidate is taken without asking; null asks always.';

COMMENT ON COLUMN crm.field_map.unique_key IS 'The value exists once on each side (an invoice number): compared before all other keys, for equality; a record of the other mirror that has it is taken instead of being made. What its CRM has and the mirror does not show yet is not found by it.';

CREATE TABLE crm.field_default (
    link  text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    side  text NOT NULL CHECK (side IN ('left', 'right')),
    field text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (link, side, field)
);

COMMENT ON TABLE crm.field_default IS 'Values that new records of one side get in fields that nothing is mapped to, such as one that only that CRM requires.';

CREATE TABLE crm.survivor_rule (
    link    text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    side    text NOT NULL CHECK (side IN ('left', 'right')),
    ordinal smallint NOT NULL,
    rule    text NOT NULL CHECK (rule IN ('has_partner', 'most_complete', 'newest', 'oldest', 'lowest_id', 'prefer')),
    prefer  text,
    PRIMARY KEY (link, side, ordinal),
    CHECK ((rule = 'prefer') = (prefer IS NOT NULL))
);

COMMENT ON TABLE crm.survivor_rule IS 'Which of several records of one side with the same key stands for them: rules in order, the first that tells them apart decides. Without a rule a person is asked.';

COMMENT ON COLUMN crm.survivor_rule.rule IS 'has_partner (tied by another link), most_complete (most columns filled), newest or oldest (by the CRM''s modified stamp), lowest_id, or prefer (rows for which the condition in prefer holds).';

COMMENT ON TABLE crm.conflict_policy IS 'Who wins: one row per link and field (left side''s name; * for all others; link * for mirrors without a link). Edits count from the next event on; see crm.policy_history and crm.policy_apply.';

COMMENT ON COLUMN crm.conflict_policy.strategy IS 'owner and fill_blank decide every change; append, delta and union keep what both sides added; last_write_wins, priority, function and review decide conflicts.';

COMMENT ON COLUMN crm.conflict_policy.winner IS 'Servers, local (SQL) or applications (pg_crm_sync.application), in order, comma separated: owners, or the order of priority and of ties.';

COMMENT ON COLUMN crm.conflict_policy.function IS 'For strategy function: schema.name of a function (held text, came text, context jsonb) RETURNS text that is not volatile; it runs as its owner.';

COMMENT ON COLUMN crm.conflict_policy.min_score IS 'What SQL writes lands only if the transaction gives at least this score: SET LOCAL pg_crm_sync.score = 0.9.';

COMMENT ON COLUMN crm.conflict_policy.skew IS 'Edits of two sides that lie no further apart than this have no order of their own; the row of field * sets it for the link.';

CREATE TABLE crm.field_lock (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link       text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    field      text NOT NULL,
    origin     text NOT NULL,
    changed_by name NOT NULL DEFAULT session_user,
    changed_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (link, field)
);

COMMENT ON TABLE crm.field_lock IS 'Fields that only one origin may write (a server, local for SQL, or an application): what others write is put back, whatever the strategy.';

COMMENT ON SEQUENCE crm.entity_seq IS 'Ids of real-world things that records on several sides describe.';

COMMENT ON TABLE crm.xref IS 'Which rows of which mirrors are one thing. One row per linked record; nothing else is kept of a record that is settled.';

COMMENT ON TABLE crm.field_state IS 'Only for fields that are not settled: per side the last common value, the last observed value and what we sent.';

COMMENT ON SEQUENCE crm.event_seq IS 'The engine sequence: assigned by the one session worker of the database, so it is the order of decisions.';

COMMENT ON TABLE crm.event IS 'The ledger: every observed change with its decision, append-only, in the order of decisions. Partitions are made and dropped by the worker.';

COMMENT ON COLUMN crm.event.seq IS 'The engine sequence: the order in which changes were decided. It has gaps.';

COMMENT ON COLUMN crm.event.row_id IS '_id of the row in the mirror.';

COMMENT ON COLUMN crm.event.entity IS 'The real-world thing, where the record is linked: see crm.xref.';

COMMENT ON COLUMN crm.event.tx IS 'For SQL: the transaction that made the change, see crm.change_tx.';

COMMENT ON COLUMN crm.event.occurred_at IS 'When it happened, by the clock of the source: the CRM''s, or for SQL the start of the statement.';

COMMENT ON COLUMN crm.event.received_at IS 'When it was decided and applied: the start of the worker''s transaction.';

COMMENT ON COLUMN crm.event.mirror IS 'The mirror whose record changed; null for what concerns no record.';

COMMENT ON COLUMN crm.event.stream IS 'The row of crm.stream that brought it; null for SQL, reads and results.';

COMMENT ON COLUMN crm.event.policy_version IS 'Version of the policy that decided, see crm.policy_history.';

COMMENT ON COLUMN crm.event.identity IS 'Stands for the source''s own event: equal for two deliveries of one change, see crm.event_seen; null where the source names none.';

COMMENT ON COLUMN crm.event.kind IS 'create, update, delete, restore, privacy_delete, association, merge, convert (a lead that goes on as a contact), join (records that became one thing), resolved (a steward''s answer), policy (a change of policy), tombstone (a row made only to remember that its record is deleted).';

COMMENT ON COLUMN crm.event.origin IS 'Who wrote the value: a server''s name, local for SQL, or a named application; for a result, who caused our write.';

COMMENT ON COLUMN crm.event.source IS 'webhook, pubsub, poll, backfill, read, replay, sql, link (it followed from a linked record), review (a steward''s answer), or result (the CRM''s answer to a write of ours).';

COMMENT ON COLUMN crm.event.actor IS 'The CRM''s user, or session_user of the SQL session; null if unknown.';

COMMENT ON COLUMN crm.event.application IS 'What the CRM tells of the program that wrote, or application_name of the SQL session.';

COMMENT ON COLUMN crm.event.reason IS 'pg_crm_sync.reason of the SQL session.';

COMMENT ON COLUMN crm.event.fields IS 'Changed fields, by the names of the mirror''s CRM.';

COMMENT ON COLUMN crm.event.old_values IS 'Values of the mirror''s row before, one per field, in canonical text. A null in it is a null that was there, unless unknown names the field; no array at all means that nothing is known (create, result, erased).';

COMMENT ON COLUMN crm.event.new_values IS 'Values that came, one per field, whether or not they stand now. A null in it is an explicit null; no array at all means that none came (delete, erased).';

COMMENT ON COLUMN crm.event.unknown IS 'Fields whose value before nobody knows: too long to be kept in the change log.';

COMMENT ON COLUMN crm.event.decision IS 'What was decided other than "only this side changed, the value applies" (one_side): a list of field (the policy''s name for it; "as" is the name in fields if that differs), step, and where they say something rule (crm.conflict_policy.id), strategy, winner, value, losers [{origin, value}], conflict, held. Null when every value simply applied.';

COMMENT ON COLUMN crm.event.carried IS 'What the event changed on the rows of other mirrors in the same transaction: their values before, as {"mirror": {"field": old}}.';

COMMENT ON TABLE crm.event_seen IS 'Identities of events already taken, kept for the redelivery horizon: a duplicate stops here.';

COMMENT ON TABLE crm.deferred IS 'Events taken but not decided: their row is locked by a user (locked), or the record must first be read from the CRM (read). Later events of the record wait behind them.';

COMMENT ON TABLE crm.write IS 'Outgoing writes that are not finished; a finished one leaves and stands in crm.event. See the views crm.outbox and crm.dead_letter.';

COMMENT ON TABLE crm.poison IS 'Inbound events that could not be applied; the stream went on without them. See the view crm.dead_letter.';

COMMENT ON TABLE crm.webhook_queue IS 'Webhooks taken by crm.webhook(): raw, bounded, checked and decoded by the worker.';

COMMENT ON TABLE crm.check_result IS 'Answers of the worker to crm.server_check; the row with item = ''end'' is the last. Removed after an hour.';

COMMENT ON TABLE crm.api_usage IS 'API calls per server, hour and purpose; limited counts answers 429.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['installation', 'server_state', 'remote_object', 'remote_field', 'mirror', 'mirror_column', 'backfill',
     'stream', 'link', 'field_map', 'field_default', 'survivor_rule', 'conflict_policy', 'field_lock', 'xref', 'field_state', 'event', 'event_seen', 'deferred', 'write', 'poison',
     'webhook_queue', 'api_usage', 'entity_seq', 'event_seq', 'mirror_id_seq', 'stream_id_seq', 'link_id_seq',
     'field_map_id_seq', 'conflict_policy_id_seq', 'field_lock_id_seq', 'deferred_id_seq', 'write_id_seq', 'poison_id_seq',
     'webhook_queue_id_seq']
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

COMMENT ON TABLE crm.config_change IS 'One row per committed change of servers, mirrors, links or policy that the worker has not read yet.';

CREATE OR REPLACE FUNCTION crm._config_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO crm.config_change DEFAULT VALUES;
    -- At commit: what comes next shall be decided by what stands then.
    PERFORM crm._wake();
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._config_changed() IS 'Tells the worker to read its configuration again.';

COMMENT ON FUNCTION crm._near(text, text[], integer) IS 'The candidates that look like the word (share of common letter pairs), best first: for "did you mean" hints.';

COMMENT ON FUNCTION crm._near_hint(text, text[], text) IS 'A hint that names near matches, if there are any, before the general advice.';

COMMENT ON FUNCTION crm._server_option_names() IS 'The options that CREATE SERVER accepts.';

COMMENT ON FUNCTION crm._reference_problem(text, text) IS 'Checks the syntax of an option that refers to a secret: what is wrong, what was expected, what to do; null when nothing is.';

COMMENT ON FUNCTION crm._server_option_problem(text, text) IS 'Checks the syntax of one server option: what is wrong, what was expected, what to do; null when nothing is.';

COMMENT ON FUNCTION crm._fdw_validator(text[], oid) IS 'Checks the syntax of CREATE SERVER options; refuses literal secrets, user mappings and foreign tables.';

COMMENT ON FOREIGN DATA WRAPPER pg_crm_sync IS 'CRM accounts: CREATE SERVER name TYPE ''hubspot'' | ''salesforce'' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials ''file:NAME'').';

COMMENT ON VIEW crm._server IS 'The servers of our wrapper with their options (references, never secrets).';

COMMENT ON FUNCTION crm._server_checked(text) IS 'Resolves a server name or raises: unknown (naming near matches), wrong TYPE, no USAGE.';

COMMENT ON FUNCTION crm._server_state_ensure(text) IS 'Makes the state row of a server and our own identity, if missing. Not at CREATE: a dump restores those rows itself.';

COMMENT ON FUNCTION crm._mirror_named(text) IS 'Resolves schema.table to its mirror or raises, naming near matches.';

COMMENT ON FUNCTION crm._server_ddl() IS 'After CREATE or ALTER SERVER: follows a rename and wakes the worker, which reads the catalog of a server it has not seen.';

CREATE OR REPLACE FUNCTION crm._server_renamed(old_name text, new_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['server_state', 'remote_object', 'remote_field', 'mirror', 'stream', 'poison', 'webhook_queue', 'api_usage'] LOOP
        EXECUTE format('UPDATE crm.%I SET server = $1 WHERE server = $2', t) USING new_name, old_name;
    END LOOP;
    UPDATE crm.conflict_policy p
    SET winner = (SELECT string_agg(CASE WHEN btrim(w) = old_name THEN new_name ELSE btrim(w) END, ',' ORDER BY n)
                  FROM unnest(string_to_array(p.winner, ',')) WITH ORDINALITY AS x(w, n))
    WHERE EXISTS (SELECT FROM unnest(string_to_array(p.winner, ',')) w WHERE btrim(w) = old_name);
    UPDATE crm.field_lock f SET origin = new_name WHERE f.origin = old_name;
END $$;

COMMENT ON FUNCTION crm._server_renamed(text, text) IS 'Carries a server''s new name into the tables that know it by name.';

COMMENT ON FUNCTION crm._dropped() IS 'After a DROP: refuses to lose a server that mirrors use, and forgets dropped servers and mirror tables.';

COMMENT ON FUNCTION crm._server_forget(text) IS 'Removes what is known of a server that was dropped.';

COMMENT ON FUNCTION crm._mirror_gone(text, text) IS 'Forgets a mirror whose table was dropped; refuses while a link uses it.';

COMMENT ON FUNCTION crm._mirror_ddl() IS 'After ALTER TABLE or ALTER SCHEMA: follows renamed mirrors and columns, and lets go of dropped columns.';

COMMENT ON EVENT TRIGGER pg_crm_sync_server IS 'Lets the worker of pg_crm_sync learn of new and altered servers.';

COMMENT ON EVENT TRIGGER pg_crm_sync_drop IS 'Refuses to drop servers that mirrors use; forgets mirrors whose table is dropped.';

COMMENT ON FUNCTION crm._worker_alive() IS 'Whether the session worker of this database is connected.';

COMMENT ON FUNCTION crm._ask(text, text[], oid, timestamptz) IS 'Leaves requests for the worker, waiting a little for one that is starting; returns the last ticket.';

COMMENT ON FUNCTION crm._wait_possible(text, interval) IS 'The end of a wait, or an error where waiting makes no sense.';

COMMENT ON FUNCTION crm._server_committed(oid, text) IS 'Raises when the worker cannot see the server yet.';

COMMENT ON FUNCTION crm._host_allowed(text, text) IS 'Whether host[:port] is in a comma-separated list of hosts; *.domain stands for all below it.';

COMMENT ON FUNCTION crm._hosts_checked(text) IS 'Raises when an option of the server names a host outside pg_crm_sync.allowed_hosts.';

COMMENT ON EVENT TRIGGER pg_crm_sync_alter IS 'Follows renamed mirrors and columns.';

COMMENT ON SEQUENCE crm.change_flush_seq IS 'One number per write to the change log. Not a cursor: numbers commit out of order.';

COMMENT ON TABLE crm.change_0 IS 'Changes of mirrors by users, waiting for the worker: one of two segments that are written and drained in turn.';

COMMENT ON TABLE crm.change_1 IS 'Changes of mirrors by users, waiting for the worker: one of two segments that are written and drained in turn.';

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

COMMENT ON FUNCTION crm._capture() IS 'Logs what users change on a mirror. Attached by crm._mirror_attach with the number of the mirror and its read-only columns.';

REVOKE ALL ON FUNCTION crm._capture() FROM PUBLIC;

COMMENT ON FUNCTION crm._mirror_attach(integer, regclass, text[]) IS 'Starts capturing what users change on a mirror; again with other read-only columns.';

COMMENT ON FUNCTION crm._mirror_detach(regclass) IS 'Stops capturing what users change on a mirror.';

REVOKE ALL ON FUNCTION crm._mirror_attach(integer, regclass, text[]), crm._mirror_detach(regclass) FROM PUBLIC;

COMMENT ON TABLE crm.standard_map IS 'Field maps that crm.link starts from: left is HubSpot, right is Salesforce. Part of the extension; edit crm.field_map instead.';

COMMENT ON FUNCTION crm._restoring() IS 'Whether a dump is being restored by this session.';

COMMENT ON FUNCTION crm._link_named(text) IS 'Resolves the name of a link or raises, naming near matches.';

COMMENT ON FUNCTION crm._mirror_field(integer, text) IS 'Resolves a field of a mirror by API name or column name, or raises, naming near matches.';

COMMENT ON FUNCTION crm.link(text, text, text) IS 'Links two mirrors (schema.table) with the standard field maps for the columns both have. Starts in shadow: shows what it would send, sends nothing until crm.go_live.';

COMMENT ON FUNCTION crm._pause_set(text, text, boolean) IS 'Sets the pause switch of a server, mirror or link.';

COMMENT ON FUNCTION crm.pause(text, text) IS 'Stops calls for a server, mirror or link (kind, name). Changes are still captured and wait; inbound events are taken up again by crm.resume.';

COMMENT ON FUNCTION crm.resume(text, text) IS 'Lets a paused server, mirror or link (kind, name) go on where it stopped.';

COMMENT ON TABLE crm.policy_history IS 'Every change of crm.conflict_policy (kind policy) and crm.field_lock (lock): who, when, why (pg_crm_sync.reason), the row before and after, and the policy version it began.';

CREATE TABLE crm.policy_task (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy_version bigint NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('decide', 'apply')),
    link           text NOT NULL,
    field          text NOT NULL,
    asked_by       name NOT NULL DEFAULT session_user,
    asked_at       timestamptz NOT NULL DEFAULT now(),
    cursor         bigint NOT NULL DEFAULT 0,
    looked_at      bigint NOT NULL DEFAULT 0,
    changed        bigint NOT NULL DEFAULT 0
);

COMMENT ON TABLE crm.policy_task IS 'Changes of policy that the worker has not carried out yet: unsent writes and open questions to decide again (decide), or differences to settle because somebody asked (apply, see crm.policy_apply). A finished one leaves and stands in crm.event, kind policy.';

COMMENT ON COLUMN crm.policy_task.cursor IS 'The entities up to this one are done: a crash resumes here.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['policy_history', 'policy_history_id_seq', 'policy_task', 'policy_task_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION crm._strategies() RETURNS TABLE (strategy text, decides text, needs_winner boolean, takes_winner boolean, field_types text[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES ('owner', 'every change', true, true, NULL::text[]),
           ('fill_blank', 'every change', true, true, NULL),
           ('last_write_wins', 'conflicts', false, true, NULL),
           ('priority', 'conflicts', true, true, NULL),
           ('append', 'every change', false, false, ARRAY['text']),
           ('delta', 'every change', false, false, ARRAY['number']),
           ('union', 'every change', false, false, ARRAY['multi_choice']),
           ('function', 'conflicts', false, false, NULL),
           ('review', 'conflicts', false, true, NULL)
$$;

COMMENT ON FUNCTION crm._strategies() IS 'The strategies of crm.conflict_policy: what they decide, whether they need a winner, and for which types of field they are.';

COMMENT ON FUNCTION crm._policy_winners(text) IS 'The comma-separated winners of a policy, in order.';

CREATE OR REPLACE FUNCTION crm._origins(k crm.link) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(SELECT m.server FROM crm.mirror m WHERE k.id IS NULL OR m.id IN (k.left_mirror, k.right_mirror)
                 GROUP BY m.server ORDER BY bool_or(m.id = k.right_mirror), min(m.id))
        || ARRAY['local']
        || ARRAY(SELECT DISTINCT substr(c, 25) FROM pg_db_role_setting s, unnest(s.setconfig) c
                 WHERE c LIKE 'pg\_crm\_sync.application=%' AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) ORDER BY 1)
$$;

COMMENT ON FUNCTION crm._origins(crm.link) IS 'Who may be named by a policy of this link: its servers, local, and applications that a role or database is set to (pg_crm_sync.application). Null: any server.';

COMMENT ON FUNCTION crm._policy_field(crm.link, text) IS 'Resolves the field of a policy row or raises, naming near matches.';

CREATE OR REPLACE FUNCTION crm._policy_clash(p crm.conflict_policy) RETURNS crm.conflict_policy
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT other
    FROM crm.link mine
    JOIN crm.field_map fm ON fm.link = mine.name AND fm.left_field = p.field
    JOIN crm.link theirs ON theirs.id <> mine.id
    JOIN crm.field_map tm ON tm.link = theirs.name
         AND ((mine.left_mirror = theirs.left_mirror AND fm.left_field = tm.left_field)
           OR (mine.right_mirror = theirs.right_mirror AND fm.right_field = tm.right_field)
           OR (mine.left_mirror = theirs.right_mirror AND fm.left_field = tm.right_field)
           OR (mine.right_mirror = theirs.left_mirror AND fm.right_field = tm.left_field))
    JOIN crm.conflict_policy other ON other.link = theirs.name AND other.field = tm.left_field
    WHERE mine.name = p.link
      AND (other.strategy, coalesce(other.winner, ''), coalesce(other.function, ''), coalesce(other.min_score, 0))
          IS DISTINCT FROM (p.strategy, coalesce(p.winner, ''), coalesce(p.function, ''), coalesce(p.min_score, 0))
    LIMIT 1
$$;

COMMENT ON FUNCTION crm._policy_clash(crm.conflict_policy) IS 'The row of another link of the group that decides the same field otherwise.';

CREATE OR REPLACE FUNCTION crm._policy_type_check(k crm.link, p crm.conflict_policy) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    types text[] := (SELECT s.field_types FROM crm._strategies() s WHERE s.strategy = p.strategy);
    f     crm.field_map;
    c     crm.mirror_column;
    m     crm.mirror;
BEGIN
    IF types IS NULL THEN
        RETURN;
    ELSIF p.field = '*' THEN
        RAISE EXCEPTION 'strategy "%" cannot be the default', p.strategy
            USING ERRCODE = '42804', DETAIL = format('It is for fields of type %s; field * stands for fields of every type.', array_to_string(types, ' or ')),
                  HINT = 'Name the fields: one row each.';
    END IF;
    SELECT x.* INTO f FROM crm.field_map x WHERE x.link = k.name AND x.left_field = p.field;
    FOR m IN SELECT x.* FROM crm.mirror x WHERE x.id IN (k.left_mirror, k.right_mirror) ORDER BY x.id = k.right_mirror LOOP
        c := crm._mirror_field(m.id, CASE WHEN m.id = k.left_mirror THEN f.left_field ELSE f.right_field END);
        IF c.field_type <> ALL (types) THEN
            RAISE EXCEPTION 'strategy "%" cannot decide field "%"', p.strategy, p.field
                USING ERRCODE = '42804', DETAIL = format('%s.%s is of type %s; the strategy is for %s.', m.server, c.field, c.field_type, array_to_string(types, ' or ')),
                      HINT = CASE p.strategy WHEN 'delta' THEN 'append is for text, union for multi-select fields.' WHEN 'union' THEN 'append is for text, delta for numbers.' ELSE 'delta is for numbers, union for multi-select fields.' END;
        ELSIF p.strategy = 'append' AND EXISTS (SELECT FROM crm.remote_field r WHERE r.server = m.server AND r.object = m.object AND r.field = c.field AND r.options <> '[]') THEN
            RAISE EXCEPTION 'strategy "append" cannot decide field "%"', p.field
                USING ERRCODE = '42804', DETAIL = format('%s.%s is a choice from a list; nothing can be added to one.', m.server, c.field),
                      HINT = 'Use owner, priority or last_write_wins for a single choice, union for a multi-select field.';
        END IF;
    END LOOP;
    IF f.to_left <> 'identity' OR f.to_right <> 'identity' OR (f.value_map IS NOT NULL AND p.strategy <> 'union') THEN
        RAISE EXCEPTION 'strategy "%" cannot decide field "%"', p.strategy, p.field
            USING ERRCODE = '42804', DETAIL = 'Its map changes values on the way, so what one side added is not what the other would add.',
                  HINT = format('UPDATE crm.field_map SET to_left = ''identity'', to_right = ''identity'', value_map = NULL WHERE link = %L AND left_field = %L; or use another strategy.', k.name, p.field);
    END IF;
END $$;

COMMENT ON FUNCTION crm._policy_type_check(crm.link, crm.conflict_policy) IS 'Refuses append, delta and union on fields that they cannot decide.';

CREATE OR REPLACE FUNCTION crm._policy_function(given text, asker name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name  text := regexp_replace(btrim(given), '\s*\(.*\)$', '');
    f     pg_proc;
    super boolean := (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = asker);
BEGIN
    SELECT p.* INTO f FROM pg_proc p WHERE p.oid = to_regprocedure(name || '(text, text, jsonb)') AND p.pronamespace <> 'pg_catalog'::regnamespace;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no function %(text, text, jsonb)', name
            USING ERRCODE = '42883', DETAIL = 'Arguments are: the value held, the value that came, and who wrote them when.',
                  HINT = CASE WHEN name LIKE '%.%' THEN format('CREATE FUNCTION %s(held text, came text, context jsonb) RETURNS text STABLE …', name) ELSE 'Name it with its schema.' END;
    ELSIF f.prorettype <> 'text'::regtype OR f.proretset OR f.prokind <> 'f' THEN
        RAISE EXCEPTION 'function % does not return one text', name
            USING ERRCODE = '42P13', DETAIL = format('It returns %s%s.', CASE WHEN f.proretset THEN 'SETOF ' ELSE '' END, f.prorettype::regtype),
                  HINT = 'The result is the value that is to stand, as text; null is blank.';
    ELSIF f.provolatile = 'v' THEN
        RAISE EXCEPTION 'function % is volatile', name
            USING ERRCODE = '42P17', DETAIL = 'A decision must come out the same when it is replayed.',
                  HINT = format('If it only reads: ALTER FUNCTION %s(text, text, jsonb) STABLE;', name);
    ELSIF NOT pg_has_role(asker, f.proowner, 'MEMBER') OR (NOT super AND (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = f.proowner)) THEN
        RAISE EXCEPTION 'function % belongs to %', name, f.proowner::regrole
            USING ERRCODE = '42501', DETAIL = format('It will run with the rights of its owner, and %s could not act as that role.', asker),
                  HINT = 'Name a function of your own, or let its owner add the row.';
    ELSIF NOT has_function_privilege(f.proowner, f.oid, 'EXECUTE') OR NOT has_schema_privilege(f.proowner, f.pronamespace, 'USAGE') THEN
        RAISE EXCEPTION 'role % may not execute function %', f.proowner::regrole, name
            USING ERRCODE = '42501', DETAIL = 'It runs with the rights of its owner.',
                  HINT = format('GRANT EXECUTE ON FUNCTION %s(text, text, jsonb) TO %s; GRANT USAGE ON SCHEMA %s TO %2$s;', name, f.proowner::regrole, f.pronamespace::regnamespace);
    END IF;
    RETURN format('%I.%I', (SELECT n.nspname FROM pg_namespace n WHERE n.oid = f.pronamespace), f.proname);
END $$;

COMMENT ON FUNCTION crm._policy_function(text, name) IS 'Resolves the function of a policy row or raises: signature, volatility, owner, EXECUTE.';

CREATE OR REPLACE FUNCTION crm._policy_winner_check(k crm.link, p crm.conflict_policy) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known   text[] := (SELECT array_agg(s.strategy) FROM crm._strategies() s);
    winners text[] := crm._policy_winners(p.winner);
    origins text[] := crm._origins(k);
    s       record;
    w       text;
BEGIN
    SELECT * INTO s FROM crm._strategies() x WHERE x.strategy = p.strategy;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown strategy "%"', p.strategy
            USING ERRCODE = '22023', DETAIL = 'Strategies are: ' || array_to_string(known, ', ') || '.',
                  HINT = crm._near_hint(p.strategy, known, 'owner and fill_blank decide every change; the others decide conflicts.');
    ELSIF s.needs_winner AND cardinality(winners) = 0 THEN
        RAISE EXCEPTION 'strategy "%" needs a winner', p.strategy
            USING ERRCODE = '22023', DETAIL = format('Origins of link "%s" are: %s.', p.link, array_to_string(origins, ', ')),
                  HINT = format('For example winner = %L.', origins[1]);
    ELSIF NOT s.takes_winner AND cardinality(winners) > 0 THEN
        RAISE EXCEPTION 'strategy "%" has no winner', p.strategy
            USING ERRCODE = '22023', DETAIL = format('Got %s.', p.winner), HINT = 'Leave winner out, or set it to NULL.';
    ELSIF p.strategy = 'owner' AND cardinality(winners) > 1 THEN
        RAISE EXCEPTION 'strategy "owner" has one winner, not %', cardinality(winners)
            USING ERRCODE = '22023', DETAIL = format('Got %s.', p.winner), HINT = 'Use strategy priority for an order of several.';
    ELSIF (p.strategy = 'function') <> (p.function IS NOT NULL) THEN
        RAISE EXCEPTION '%', CASE WHEN p.function IS NULL THEN 'strategy "function" needs a function' ELSE format('strategy "%s" calls no function', p.strategy) END
            USING ERRCODE = '22023', DETAIL = 'The column function names what strategy "function" calls.', HINT = 'For example strategy = ''function'', function = ''public.longer''.';
    END IF;
    FOREACH w IN ARRAY winners LOOP
        IF w <> ALL (origins) THEN
            RAISE EXCEPTION 'winner "%" is not a side of link "%"', w, p.link
                USING ERRCODE = '22023', DETAIL = 'Its sides are: ' || array_to_string(origins, ', ') || ' (local is SQL).',
                      HINT = crm._near_hint(w, origins, 'Name servers, not objects or tables; an application is known once ALTER ROLE … SET pg_crm_sync.application names it.');
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._policy_winner_check(crm.link, crm.conflict_policy) IS 'Refuses unknown strategies, and winners that are missing, superfluous or nobody.';

CREATE OR REPLACE FUNCTION crm._policy_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link;
    clash crm.conflict_policy;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    ELSIF new.link <> '*' THEN
        k := crm._link_named(new.link);
        new.field := crm._policy_field(k, new.field);
    ELSIF new.field <> '*' THEN
        RAISE EXCEPTION 'link * has the one field *' USING ERRCODE = '22023', DETAIL = 'It stands for mirrors that no link names.', HINT = 'Name the link.';
    END IF;
    new.winner := nullif(array_to_string(crm._policy_winners(new.winner), ','), '');
    PERFORM crm._policy_winner_check(k, new);
    IF new.function IS NOT NULL THEN
        new.function := crm._policy_function(new.function, session_user);
    END IF;
    IF k.id IS NOT NULL THEN
        PERFORM crm._policy_type_check(k, new);
        clash := crm._policy_clash(new);
        IF clash.id IS NOT NULL THEN
            RAISE EXCEPTION 'field "%" would be decided in two ways%', new.field, CASE WHEN 'owner' = ALL (ARRAY[new.strategy, clash.strategy]) THEN ': it would have two owners' ELSE '' END
                USING ERRCODE = '23505', DETAIL = format('Links that share a mirror are decided together; the other row is: link "%s", field "%s", %s %s.', clash.link, clash.field, clash.strategy, clash.winner),
                      HINT = 'One row is enough for all of them: change that one, or write the same here.';
        END IF;
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._policy_check() IS 'Checks a policy row: link, field, strategy, winner, types, function, one rule per field of a group.';

COMMENT ON TRIGGER policy_check ON crm.conflict_policy IS 'Refuses policies that cannot decide anything, with what to do instead.';

CREATE OR REPLACE FUNCTION crm._field_lock_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k       crm.link;
    origins text[];
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    new.field := crm._policy_field(k, new.field);
    origins := crm._origins(k);
    IF new.field = '*' THEN
        RAISE EXCEPTION 'a lock names one field' USING ERRCODE = '22023', DETAIL = 'Field * would lock the whole link.', HINT = 'Set direction in crm.field_map to let values flow one way only.';
    ELSIF new.origin <> ALL (origins) THEN
        RAISE EXCEPTION 'origin "%" is not a side of link "%"', new.origin, k.name
            USING ERRCODE = '22023', DETAIL = 'Its sides are: ' || array_to_string(origins, ', ') || ' (local is SQL).',
                  HINT = crm._near_hint(new.origin, origins, 'An application is known once ALTER ROLE … SET pg_crm_sync.application names it.');
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._field_lock_check() IS 'Checks a lock: link, field, origin.';

CREATE TRIGGER field_lock_check BEFORE INSERT OR UPDATE ON crm.field_lock FOR EACH ROW EXECUTE FUNCTION crm._field_lock_check();

COMMENT ON TRIGGER field_lock_check ON crm.field_lock IS 'Refuses locks that nobody could open, with what to do instead.';

CREATE OR REPLACE FUNCTION crm._policy_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v   bigint;
    was jsonb := CASE WHEN tg_op <> 'INSERT' THEN to_jsonb(old) END;
    is_ jsonb := CASE WHEN tg_op <> 'DELETE' THEN to_jsonb(new) END;
BEGIN
    IF crm._restoring() THEN
        RETURN NULL;
    END IF;
    INSERT INTO crm.installation DEFAULT VALUES ON CONFLICT DO NOTHING;
    UPDATE crm.installation SET policy_version = policy_version + 1 RETURNING policy_version INTO v;
    INSERT INTO crm.policy_history (policy_version, kind, before, after)
    VALUES (v, CASE tg_table_name WHEN 'field_lock' THEN 'lock' ELSE 'policy' END, was, is_);
    INSERT INTO crm.policy_task (policy_version, kind, link, field)
    SELECT DISTINCT v, 'decide', r ->> 'link', r ->> 'field' FROM unnest(ARRAY[was, is_]) r WHERE r IS NOT NULL;
    PERFORM crm._wake();
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._policy_changed() IS 'Gives every policy change its own version, keeps it in crm.policy_history, and has the worker decide again what is not sent yet.';

CREATE OR REPLACE FUNCTION crm._policy_truncate() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'table crm.% cannot be truncated', tg_table_name
        USING ERRCODE = '0A000', DETAIL = 'Every change of it is kept with the row before and after.', HINT = format('DELETE FROM crm.%I WHERE …', tg_table_name);
END $$;

COMMENT ON FUNCTION crm._policy_truncate() IS 'Refuses TRUNCATE where a history is kept.';

CREATE OR REPLACE FUNCTION crm._policy_default_kept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() AND NOT EXISTS (SELECT FROM crm.conflict_policy p WHERE p.link = old.link AND p.field = '*')
       AND (EXISTS (SELECT FROM crm.link l WHERE l.name = old.link) OR (old.link = '*' AND EXISTS (SELECT FROM crm.mirror))) THEN
        RAISE EXCEPTION 'link "%" would have no default policy', old.link
            USING ERRCODE = '23502', DETAIL = 'There is no hidden default: the row of field * decides all fields without a row of their own.',
                  HINT = format('UPDATE crm.conflict_policy SET strategy = …, winner = … WHERE link = %L AND field = ''*''; changes it.', old.link);
    END IF;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._policy_default_kept() IS 'Refuses to leave a link without its default row.';

CREATE CONSTRAINT TRIGGER policy_default_kept AFTER UPDATE OF link, field OR DELETE ON crm.conflict_policy
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (old.field = '*') EXECUTE FUNCTION crm._policy_default_kept();

COMMENT ON TRIGGER policy_default_kept ON crm.conflict_policy IS 'Keeps one default row per link.';

CREATE OR REPLACE FUNCTION crm._link_policies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tg_op = 'DELETE' THEN
        DELETE FROM crm.conflict_policy p WHERE p.link = old.name;
    ELSIF new.name <> old.name THEN
        UPDATE crm.conflict_policy p SET link = new.name WHERE p.link = old.name;
    END IF;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._link_policies() IS 'Lets policies follow their link when it is renamed or removed.';

CREATE TRIGGER link_policies AFTER UPDATE OF name OR DELETE ON crm.link FOR EACH ROW EXECUTE FUNCTION crm._link_policies();

COMMENT ON TRIGGER link_policies ON crm.link IS 'Policies follow their link.';

CREATE OR REPLACE FUNCTION crm._mirror_default() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() AND NOT EXISTS (SELECT FROM crm.conflict_policy p WHERE p.link = '*') THEN
        INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('*', '*', 'last_write_wins') ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._mirror_default() IS 'Writes the default policy of mirrors without a link with the first mirror, for all to see.';

CREATE TRIGGER mirror_default AFTER INSERT ON crm.mirror FOR EACH STATEMENT EXECUTE FUNCTION crm._mirror_default();

COMMENT ON TRIGGER mirror_default ON crm.mirror IS 'No hidden default.';

CREATE OR REPLACE FUNCTION crm.policy_apply(link text, field text DEFAULT '*') RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k    crm.link := crm._link_named(link);
    f    text := crm._policy_field(k, coalesce(field, '*'));
    task bigint;
BEGIN
    IF k.mode <> 'live' THEN
        RAISE EXCEPTION 'link "%" is in shadow', k.name
            USING ERRCODE = '55000', DETAIL = 'Differences are settled by writing to a CRM.', HINT = format('SELECT crm.preview(%L); then SELECT crm.go_live(%L);', k.name, k.name);
    END IF;
    INSERT INTO crm.policy_task (policy_version, kind, link, field)
    SELECT i.policy_version, 'apply', k.name, f FROM crm.installation i RETURNING id INTO task;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN task;
END $$;

COMMENT ON FUNCTION crm.policy_apply(text, text) IS 'Has the worker decide, by the policy as it is now, every difference that stands between tied records of a link (one field, or * for all). Returns the number of the task in crm.policy_task, which leaves when it is done.';

COMMENT ON FUNCTION crm._table_of(integer) IS 'Qualified, quoted table name of a mirror.';

COMMENT ON FUNCTION crm._column_of(integer, text) IS 'Quoted column that holds a field.';

COMMENT ON FUNCTION crm._transforms() IS 'Transforms that a field map may name.';

CREATE OR REPLACE FUNCTION crm._sql_type(field_type text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE field_type WHEN 'number' THEN 'numeric' WHEN 'boolean' THEN 'boolean' WHEN 'date' THEN 'date' WHEN 'date_time' THEN 'timestamp with time zone'
                           WHEN 'time' THEN 'time without time zone' WHEN 'multi_choice' THEN 'text[]' ELSE 'text' END
$$;

COMMENT ON FUNCTION crm._sql_type(text) IS 'Type of the columns that hold fields of a type.';

CREATE OR REPLACE FUNCTION crm._map_problem(l crm.mirror_column, r crm.mirror_column, to_left text, to_right text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN to_left LIKE '%(%' OR to_right LIKE '%(%' THEN NULL
        WHEN l.field_type = 'date_time' AND r.field_type = 'date' THEN
            CASE WHEN to_right <> 'date_of' OR to_left <> 'midnight_of' THEN 'Set to_right = ''date_of'' and to_left = ''midnight_of'': an instant becomes its day and back.' END
        WHEN l.field_type = 'date' AND r.field_type = 'date_time' THEN
            CASE WHEN to_right <> 'midnight_of' OR to_left <> 'date_of' THEN 'Set to_right = ''midnight_of'' and to_left = ''date_of'': a day becomes its midnight (UTC) and back.' END
        WHEN to_left IN ('date_of', 'midnight_of') OR to_right IN ('date_of', 'midnight_of') THEN
            'date_of and midnight_of are for a date on one side and a datetime on the other.'
        WHEN (to_left IN ('domain_of_url', 'url_of_domain') OR to_right IN ('domain_of_url', 'url_of_domain'))
             AND NOT (l.field_type = 'text' AND r.field_type = 'text') THEN 'domain_of_url and url_of_domain are for text fields.'
        WHEN l.field_type <> r.field_type THEN 'Map fields of one type, or name a function for each direction in use (to_left, to_right) that takes the one type and returns the other.'
    END
$$;

COMMENT ON FUNCTION crm._map_problem(crm.mirror_column, crm.mirror_column, text, text) IS 'Advice on why two fields cannot be mapped; null when they can.';

CREATE OR REPLACE FUNCTION crm._map_function(given text, arg_type text, result_type text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := parse_ident(split_part(given, '(', 1), false);
    p     record;
BEGIN
    SELECT f.oid, f.prokind, f.proretset, f.provolatile, format_type(f.proargtypes[0], NULL) AS arg, format_type(f.prorettype, NULL) AS result,
           format('%I.%I(%s)', n.nspname, f.proname, format_type(f.proargtypes[0], NULL)) AS signature
    INTO p
    FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE cardinality(parts) = 2 AND n.nspname = parts[1] AND f.proname = parts[2] AND f.pronargs = 1
      AND (strpos(given, '(') = 0 OR btrim(split_part(split_part(given, '(', 2), ')', 1)) IN (format_type(f.proargtypes[0], NULL), f.proargtypes[0]::regtype::text))
    ORDER BY format_type(f.proargtypes[0], NULL) = arg_type DESC, format_type(f.proargtypes[0], NULL) = 'text' DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no function % with one argument', given
            USING ERRCODE = '42883', DETAIL = format('Expected a function of yours, schema.name, that takes %s and returns %s.', arg_type, result_type),
                  HINT = format('For example: CREATE FUNCTION public.%s(v %s) RETURNS %s LANGUAGE sql IMMUTABLE AS $f$ SELECT … $f$;', 'my_map', arg_type, result_type);
    ELSIF p.prokind <> 'f' OR p.proretset THEN
        RAISE EXCEPTION 'function % cannot be a map', p.signature
            USING ERRCODE = '42809', DETAIL = 'A map makes one value of one value.', HINT = 'Name a plain function, not an aggregate, procedure or set-returning one.';
    ELSIF p.provolatile <> 'i' THEN
        RAISE EXCEPTION 'function % is not IMMUTABLE', p.signature
            USING ERRCODE = '42P17', DETAIL = 'The same value must always have the same image: it is compared with what the other side shows.',
                  HINT = format('If it reads no table, no setting and no clock: ALTER FUNCTION %s IMMUTABLE;', p.signature);
    ELSIF p.arg NOT IN (arg_type, 'text') OR p.result <> result_type THEN
        RAISE EXCEPTION 'function % returns %, which does not fit', p.signature, p.result
            USING ERRCODE = '42804', DETAIL = format('The one column is %s, the other %s.', arg_type, result_type),
                  HINT = format('It must take %s and return %s.', CASE WHEN arg_type = 'text' THEN 'text' ELSE arg_type || ' or text' END, result_type);
    END IF;
    RETURN p.signature;
END $$;

COMMENT ON FUNCTION crm._map_function(text, text, text) IS 'Resolves the function of a map to schema.name(type), or raises with what it must be like.';

CREATE OR REPLACE FUNCTION crm._map_transform(given text, l crm.mirror_column, r crm.mirror_column) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF given = ANY (crm._transforms()) THEN
        RETURN given;
    ELSIF strpos(given, '.') > 0 THEN
        RETURN crm._map_function(given, crm._sql_type(l.field_type), crm._sql_type(r.field_type));
    END IF;
    RAISE EXCEPTION 'unknown transform "%"', given
        USING ERRCODE = '22023', DETAIL = 'Transforms are: ' || array_to_string(crm._transforms(), ', ') || '.',
              HINT = crm._near_hint(given, crm._transforms(), 'Leave it out for identity. A function of yours is named with its schema.');
END $$;

COMMENT ON FUNCTION crm._map_transform(text, crm.mirror_column, crm.mirror_column) IS 'Resolves what one direction of a map names, from the first column to the second.';

CREATE OR REPLACE FUNCTION crm._value_map_check(m crm.field_map) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong  text;
    needed jsonb;
BEGIN
    IF jsonb_typeof(m.value_map) <> 'object' OR jsonb_typeof(m.value_map_back) <> 'object'
       OR EXISTS (SELECT FROM jsonb_each(m.value_map) e WHERE jsonb_typeof(e.value) <> 'string')
       OR EXISTS (SELECT FROM jsonb_each(m.value_map_back) e WHERE jsonb_typeof(e.value) <> 'string') THEN
        RAISE EXCEPTION 'the value map of field "%" is not an object of texts', m.left_field
            USING ERRCODE = '22023', DETAIL = format('Got %s.', left(concat_ws(', back ', m.value_map::text, m.value_map_back::text), 200)),
                  HINT = 'Write value_map = ''{"left value": "right value"}'', value_map_back = ''{"right value": "left value"}''.';
    ELSIF m.value_map_back IS NOT NULL AND m.value_map IS NULL THEN
        RAISE EXCEPTION 'value_map_back of field "%" has no value_map', m.left_field
            USING ERRCODE = '22023', DETAIL = 'It chooses where value_map leaves a choice.', HINT = 'Set value_map = ''{"left value": "right value"}''.';
    ELSIF m.value_map IS NOT NULL AND (m.to_left <> 'identity' OR m.to_right <> 'identity') THEN
        RAISE EXCEPTION 'field "%" has both a value map and a transform', m.left_field
            USING ERRCODE = '22023', DETAIL = format('to_left is %s, to_right is %s.', m.to_left, m.to_right), HINT = 'Use one of them; a function can hold the choices too.';
    END IF;
    IF m.direction <> 'to_right' THEN
        SELECT jsonb_object_agg(x.v, x.f), string_agg(format('%s (from %s)', x.v, x.fs), '; ') INTO needed, wrong
        FROM (SELECT v, min(f) AS f, string_agg(f, ', ' ORDER BY f) AS fs FROM jsonb_each_text(m.value_map) AS e (f, v) GROUP BY v HAVING count(*) > 1) x
        WHERE NOT coalesce(m.value_map_back, '{}') ? x.v;
        IF wrong IS NOT NULL THEN
            RAISE EXCEPTION 'value_map of field "%" is not one-to-one', m.left_field
                USING ERRCODE = '22023', DETAIL = 'Reached from several left values: ' || left(wrong, 300) || '.',
                      HINT = format('Choose the way back, for example value_map_back = %L, or direction = ''to_right''.', left(needed::text, 200));
        END IF;
    END IF;
    SELECT format('"%s" leads to "%s", which %s', b.r, b.l, CASE WHEN m.value_map ? b.l THEN format('leads to "%s"', m.value_map ->> b.l) ELSE 'value_map does not list' END) INTO wrong
    FROM jsonb_each_text(m.value_map_back) AS b (r, l)
    WHERE NOT m.value_map ? b.l
       OR (m.value_map ->> b.l <> b.r AND EXISTS (SELECT FROM jsonb_each_text(m.value_map) AS e (f, v) WHERE v = b.r)) LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'value_map_back of field "%" contradicts value_map', m.left_field
            USING ERRCODE = '22023', DETAIL = wrong || '.', HINT = 'A right value must go back to a left value of value_map: one that leads to it, if there is any.';
    END IF;
END $$;

COMMENT ON FUNCTION crm._value_map_check(crm.field_map) IS 'Refuses value maps whose way back is not defined.';

CREATE OR REPLACE FUNCTION crm._structure_check(k crm.link, m crm.field_map) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lefts  CONSTANT integer := 1 + cardinality(m.left_more);
    rights CONSTANT integer := 1 + cardinality(m.right_more);
    wrong  text;
BEGIN
    IF m.structure IS NULL AND lefts + rights = 2 THEN
        RETURN;
    ELSIF m.structure IS NULL OR lefts + rights = 2 OR (m.structure = 'unit' AND lefts <> rights) OR (m.structure <> 'unit' AND least(lefts, rights) > 1) THEN
        RAISE EXCEPTION 'field "%" ties % columns to %, which structure % does not say how to do', m.left_field, lefts, rights, coalesce(quote_literal(m.structure), 'null')
            USING ERRCODE = '22023', DETAIL = 'lines and words tie several columns of one side to one of the other; unit ties as many to as many, in order.',
                  HINT = 'For example: left_field = ''address'', left_more = ''{address2}'', right_field = ''MailingStreet'', structure = ''lines''.';
    ELSIF m.to_left <> 'identity' OR m.to_right <> 'identity' OR m.value_map IS NOT NULL OR m.match_order IS NOT NULL THEN
        RAISE EXCEPTION 'a map of several columns takes no transform, value map or match order'
            USING ERRCODE = '22023', DETAIL = format('Field "%s", structure %s.', m.left_field, m.structure), HINT = 'Map such a column on its own.';
    END IF;
    SELECT string_agg(format('%s (%s)', c.field, c.field_type), ', ') INTO wrong FROM crm.mirror_column c
    WHERE c.field_type <> 'text' AND ((c.mirror = k.left_mirror AND c.field = ANY (m.left_field || m.left_more)) OR (c.mirror = k.right_mirror AND c.field = ANY (m.right_field || m.right_more)));
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a map of several columns is for text fields' USING ERRCODE = '42804', DETAIL = format('Not text: %s.', wrong), HINT = 'Map these on their own.';
    END IF;
END $$;

COMMENT ON FUNCTION crm._structure_check(crm.link, crm.field_map) IS 'Refuses maps of several columns that cannot be put together or taken apart.';

CREATE OR REPLACE FUNCTION crm._map_taken(m crm.field_map) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('field "%s" of the %s side, with "%s"', t.field, t.side, t.named)
    FROM (
        SELECT 'left' AS side, f AS field, x.left_field AS named FROM crm.field_map x, unnest(x.left_field || x.left_more) f
        WHERE x.link = m.link AND x.id <> m.id AND (x.left_more <> '{}' OR m.left_more <> '{}') AND f = ANY (m.left_field || m.left_more)
        UNION ALL
        SELECT 'right', f, x.left_field FROM crm.field_map x, unnest(x.right_field || x.right_more) f
        WHERE x.link = m.link AND x.id <> m.id AND (x.right_more <> '{}' OR m.right_more <> '{}') AND f = ANY (m.right_field || m.right_more)
        UNION ALL
        SELECT 'left', f, m.left_field FROM unnest(m.left_field || m.left_more) f GROUP BY f HAVING count(*) > 1
        UNION ALL
        SELECT 'right', f, m.left_field FROM unnest(m.right_field || m.right_more) f GROUP BY f HAVING count(*) > 1
    ) t LIMIT 1
$$;

COMMENT ON FUNCTION crm._map_taken(crm.field_map) IS 'A column that another map of the link, or this one twice, names already.';

CREATE OR REPLACE FUNCTION crm._default_check(mirror integer, c crm.mirror_column, value text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    choices text[];
BEGIN
    IF value IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        EXECUTE format('SELECT %L::%s', CASE WHEN c.field_type = 'multi_choice' THEN '{}' ELSE value END, crm._sql_type(c.field_type));
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION '"%" cannot be the default of field "%"', value, c.field
            USING ERRCODE = '22023', DETAIL = format('The field is %s: %s.', c.field_type, sqlerrm), HINT = 'Give a value of the field''s type.';
    END;
    SELECT array_agg(coalesce(o ->> 'value', o ->> 0)) INTO choices
    FROM crm.mirror m JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object AND f.field = c.field AND f.restricted, jsonb_array_elements(f.options) o
    WHERE m.id = _default_check.mirror;
    IF value = '' OR length(value) > c.max_length OR value <> ALL (choices) THEN
        RAISE EXCEPTION '"%" cannot be the default of field "%"', value, c.field
            USING ERRCODE = '22023', DETAIL = CASE WHEN length(value) > c.max_length THEN format('It holds %s characters at most.', c.max_length)
                                                  ELSE 'It takes: ' || left(array_to_string(choices, ', '), 300) || '.' END,
                  HINT = crm._near_hint(value, choices, 'Give a value that its CRM accepts.');
    END IF;
END $$;

COMMENT ON FUNCTION crm._default_check(integer, crm.mirror_column, text) IS 'Refuses defaults that the column or its CRM cannot take.';

CREATE OR REPLACE FUNCTION crm._fuzzy_check(m crm.field_map, l crm.mirror_column, r crm.mirror_column) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF m.match_threshold IS NULL AND m.match_accept IS NULL THEN
        RETURN;
    ELSIF m.match_order IS NULL OR m.match_threshold IS NULL OR m.match_accept < m.match_threshold OR m.unique_key THEN
        RAISE EXCEPTION 'likeness of field "%" is not fully said', m.left_field
            USING ERRCODE = '22023', DETAIL = format('match_order %s, match_threshold %s, match_accept %s, unique_key %s.',
                                                     coalesce(m.match_order::text, 'null'), coalesce(m.match_threshold::text, 'null'), coalesce(m.match_accept::text, 'null'), m.unique_key),
                  HINT = 'Set match_order, a match_threshold such as 0.6, and match_accept above it or not at all. A unique key is compared for equality.';
    ELSIF l.field_type <> 'text' OR r.field_type <> 'text' THEN
        RAISE EXCEPTION 'likeness is for text fields' USING ERRCODE = '42804', DETAIL = format('"%s" is %s, "%s" is %s.', l.field, l.field_type, r.field, r.field_type), HINT = 'Compare this key for equality: leave match_threshold out.';
    ELSIF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_trgm') THEN
        RAISE EXCEPTION 'likeness needs the extension pg_trgm' USING ERRCODE = '0A000', DETAIL = 'It is part of PostgreSQL''s contrib modules.', HINT = 'CREATE EXTENSION pg_trgm;';
    END IF;
END $$;

COMMENT ON FUNCTION crm._fuzzy_check(crm.field_map, crm.mirror_column, crm.mirror_column) IS 'Refuses keys by likeness that cannot be compared.';

CREATE OR REPLACE FUNCTION crm._map_read_only(k crm.link, m crm.field_map) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.field FROM crm.mirror_column c
    WHERE c.read_only AND ((c.mirror = k.left_mirror AND m.direction <> 'to_right' AND c.field = ANY (m.left_field || m.left_more))
                        OR (c.mirror = k.right_mirror AND m.direction <> 'to_left' AND c.field = ANY (m.right_field || m.right_more)))
    ORDER BY c.field LIMIT 1
$$;

COMMENT ON FUNCTION crm._map_read_only(crm.link, crm.field_map) IS 'A read-only field that a map would write.';

CREATE OR REPLACE FUNCTION crm._field_map_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link;
    l     crm.mirror_column;
    r     crm.mirror_column;
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
    new.left_more := ARRAY(SELECT (crm._mirror_field(k.left_mirror, f)).field FROM unnest(new.left_more) WITH ORDINALITY AS x (f, n) ORDER BY n);
    new.right_more := ARRAY(SELECT (crm._mirror_field(k.right_mirror, f)).field FROM unnest(new.right_more) WITH ORDINALITY AS x (f, n) ORDER BY n);
    new.to_right := crm._map_transform(new.to_right, l, r);
    new.to_left := crm._map_transform(new.to_left, r, l);
    IF new.unique_key AND new.match_order IS NULL THEN
        new.match_order := 0;
    END IF;
    wrong := crm._map_problem(l, r, new.to_left, new.to_right);
    IF wrong IS NULL AND l.field_type <> r.field_type AND (new.to_left LIKE '%(%' OR new.to_right LIKE '%(%')
       AND ((new.direction <> 'to_right' AND new.to_left NOT LIKE '%(%') OR (new.direction <> 'to_left' AND new.to_right NOT LIKE '%(%')) THEN
        wrong := 'Types differ: name a function for the other direction too, or set direction.';
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'fields "%" (%) and "%" (%) cannot be mapped like this', l.field, l.field_type, r.field, r.field_type
            USING ERRCODE = '42804', DETAIL = format('Link "%s", to_left %s, to_right %s.', k.name, new.to_left, new.to_right), HINT = wrong;
    END IF;
    wrong := crm._map_read_only(k, new);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'field "%" is read-only in its CRM', wrong
            USING ERRCODE = '22023', DETAIL = format('direction is %s.', new.direction),
                  HINT = 'Set direction = ''to_right'' when the left field is read-only, ''to_left'' when the right one is.';
    END IF;
    wrong := crm._map_taken(new);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a column can be mapped once per link' USING ERRCODE = '23505', DETAIL = 'Mapped already: ' || wrong || '.', HINT = 'DELETE the other row of crm.field_map first.';
    ELSIF new.match_order IS NOT NULL AND (new.to_left LIKE '%(%' OR new.to_right LIKE '%(%') THEN
        RAISE EXCEPTION 'a key that identifies records takes no function'
            USING ERRCODE = '22023', DETAIL = format('Field "%s", match_order %s.', l.field, new.match_order), HINT = 'Keys are compared without regard to case and blanks; match by another field.';
    END IF;
    PERFORM crm._value_map_check(new), crm._structure_check(k, new), crm._fuzzy_check(new, l, r),
            crm._default_check(k.left_mirror, l, new.default_left), crm._default_check(k.right_mirror, r, new.default_right);
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._field_map_check() IS 'Checks a field map against the mirrors: fields, types, transforms, direction.';

COMMENT ON TRIGGER field_map_check ON crm.field_map IS 'Refuses maps that cannot work, with what to do instead.';

CREATE OR REPLACE FUNCTION crm._map_function_allowed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f text;
BEGIN
    FOREACH f IN ARRAY ARRAY[new.to_left, new.to_right] LOOP
        IF f LIKE '%(%' AND to_regprocedure(f) IS NOT NULL AND NOT has_function_privilege(f, 'EXECUTE') THEN
            RAISE EXCEPTION 'permission denied for function %', f
                USING ERRCODE = '42501', DETAIL = format('Role %s may not call it.', current_user), HINT = format('Its owner can: GRANT EXECUTE ON FUNCTION %s TO %I;', f, current_user);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._map_function_allowed() IS 'Refuses functions that the author of a map may not call.';

CREATE TRIGGER map_function_allowed AFTER INSERT OR UPDATE OF to_left, to_right ON crm.field_map FOR EACH ROW EXECUTE FUNCTION crm._map_function_allowed();

COMMENT ON TRIGGER map_function_allowed ON crm.field_map IS 'Refuses functions that the author of the map may not call.';

CREATE OR REPLACE FUNCTION crm._field_default_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link;
    c crm.mirror_column;
    m integer;
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    k := crm._link_named(new.link);
    m := CASE new.side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    c := crm._mirror_field(m, new.field);
    new.field := c.field;
    IF c.read_only THEN
        RAISE EXCEPTION 'field "%" is read-only in its CRM', c.field USING ERRCODE = '22023', DETAIL = 'A new record cannot be given a value in it.', HINT = 'Leave it to the CRM.';
    ELSIF EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND c.field = ANY (CASE new.side WHEN 'left' THEN f.left_field || f.left_more ELSE f.right_field || f.right_more END)) THEN
        RAISE EXCEPTION 'field "%" is mapped', c.field
            USING ERRCODE = '22023', DETAIL = 'A mapped field has its default in the map.', HINT = format('UPDATE crm.field_map SET default_%s = %L WHERE link = %L AND …', new.side, new.value, k.name);
    END IF;
    PERFORM crm._default_check(m, c, new.value);
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._field_default_check() IS 'Checks a default against the mirror: field, type, choices.';

CREATE TRIGGER field_default_check BEFORE INSERT OR UPDATE ON crm.field_default FOR EACH ROW EXECUTE FUNCTION crm._field_default_check();

COMMENT ON TRIGGER field_default_check ON crm.field_default IS 'Refuses defaults that no record could be made with.';

DELETE FROM crm.standard_map;
INSERT INTO crm.standard_map (pair, left_object, right_object, left_field, right_field, value_map, match_order)
SELECT 'lead', 'contacts', 'Lead', l, r, v::jsonb, m::smallint FROM (VALUES
    ('email', 'Email', NULL, 1), ('firstname', 'FirstName', NULL, NULL), ('lastname', 'LastName', NULL, NULL), ('phone', 'Phone', NULL, NULL),
    ('mobilephone', 'MobilePhone', NULL, NULL), ('jobtitle', 'Title', NULL, NULL), ('company', 'Company', NULL, NULL), ('website', 'Website', NULL, NULL),
    ('address', 'Street', NULL, NULL), ('city', 'City', NULL, NULL), ('state', 'State', NULL, NULL), ('zip', 'PostalCode', NULL, NULL), ('country', 'Country', NULL, NULL)
) AS x (l, r, v, m);

COMMENT ON FUNCTION crm._standard_maps(crm.link) IS 'Standard maps of a link for the columns that both mirrors have, whichever side is left.';

CREATE OR REPLACE FUNCTION crm._scope_checked(mirror integer, scope text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t         text := crm._table_of(mirror);
    canonical text;
BEGIN
    IF scope IS NULL THEN
        RETURN NULL;
    ELSIF NOT pg_has_role((SELECT c.relowner FROM crm.mirror m JOIN pg_namespace n ON n.nspname = m.schema_name JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.table_name WHERE m.id = _scope_checked.mirror), 'USAGE') THEN
        RAISE EXCEPTION 'the scope of % can only be set by its owner', t
            USING ERRCODE = '42501', DETAIL = 'The worker evaluates it with the rights of the table''s owner.', HINT = 'Become a member of the owning role, or ask its members.';
    END IF;
    BEGIN
        EXECUTE format('CREATE TEMPORARY TABLE _crm_scope (LIKE %s) ON COMMIT DROP', t);
        EXECUTE format('ALTER TABLE pg_temp._crm_scope ADD CONSTRAINT _crm_scope CHECK (%s)', scope);
        SELECT pg_get_expr(c.conbin, c.conrelid) INTO STRICT canonical FROM pg_constraint c WHERE c.conrelid = 'pg_temp._crm_scope'::regclass AND c.conname = '_crm_scope';
        DROP TABLE pg_temp._crm_scope;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR feature_not_supported OR no_data_found OR too_many_rows OR data_exception THEN
        RAISE EXCEPTION 'scope of % is not usable: %', t, sqlerrm
            USING ERRCODE = '22023', DETAIL = format('Got: %s', left(scope, 200)),
                  HINT = 'Expected a condition over the mirror''s own columns, without subqueries, such as: lifecyclestage = ''customer''.';
    END;
    RETURN canonical;
END $$;

COMMENT ON FUNCTION crm._scope_checked(integer, text) IS 'Checks a scope against the mirror''s columns and returns its canonical text.';

CREATE OR REPLACE FUNCTION crm._link_scope_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT crm._restoring() THEN
        IF tg_op = 'INSERT' OR new.left_scope IS DISTINCT FROM old.left_scope THEN
            new.left_scope := crm._scope_checked(new.left_mirror, new.left_scope);
        END IF;
        IF tg_op = 'INSERT' OR new.right_scope IS DISTINCT FROM old.right_scope THEN
            new.right_scope := crm._scope_checked(new.right_mirror, new.right_scope);
        END IF;
    END IF;
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._link_scope_check() IS 'Checks the scopes of a link.';

CREATE TRIGGER link_scope_check BEFORE INSERT OR UPDATE OF left_scope, right_scope ON crm.link FOR EACH ROW EXECUTE FUNCTION crm._link_scope_check();

COMMENT ON TRIGGER link_scope_check ON crm.link IS 'Refuses scopes that cannot be evaluated.';

CREATE OR REPLACE FUNCTION crm._and_clauses(condition text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    inner_text text := btrim(condition);
    found      text[] := '{}';
    first      integer := 1;
    depth      integer := 0;
    quote      text;
    c          text;
BEGIN
    IF left(inner_text, 1) = '(' AND right(inner_text, 1) = ')' THEN
        inner_text := substr(inner_text, 2, length(inner_text) - 2);
    END IF;
    FOR i IN 1 .. length(inner_text) LOOP
        c := substr(inner_text, i, 1);
        IF quote IS NOT NULL THEN
            quote := CASE WHEN c = quote THEN NULL ELSE quote END;
        ELSIF c IN ('''', '"') THEN
            quote := c;
        ELSIF c IN ('(', '[') THEN
            depth := depth + 1;
        ELSIF c IN (')', ']') THEN
            depth := depth - 1;
        END IF;
        IF depth < 0 THEN
            -- The outer parentheses were not a pair.
            RETURN ARRAY[condition];
        ELSIF depth = 0 AND quote IS NULL AND substr(inner_text, i, 5) = ' AND ' THEN
            found := found || substr(inner_text, first, i - first);
            first := i + 5;
        ELSIF depth = 0 AND quote IS NULL AND substr(inner_text, i, 4) = ' OR ' THEN
            RETURN ARRAY[condition];
        END IF;
    END LOOP;
    RETURN found || substr(inner_text, first);
END $$;

COMMENT ON FUNCTION crm._and_clauses(text) IS 'The conditions that a scope, as PostgreSQL writes it, is made of: all of them must hold.';

CREATE OR REPLACE FUNCTION crm._scope_clauses(link text, mirror regclass, _id bigint) RETURNS TABLE (clause text, holds boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link := crm._link_named(link);
    scope text := CASE WHEN mirror = crm._table_of(k.left_mirror)::regclass THEN k.left_scope WHEN mirror = crm._table_of(k.right_mirror)::regclass THEN k.right_scope END;
BEGIN
    FOREACH clause IN ARRAY CASE WHEN scope IS NULL THEN '{}' ELSE crm._and_clauses(scope) END LOOP
        EXECUTE format('SELECT (%s) FROM %s AS t WHERE t._id = $1', clause, mirror) INTO holds USING _id;
        holds := coalesce(holds, false);
        RETURN NEXT;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._scope_clauses(text, regclass, bigint) IS 'Each condition of a link''s scope with whether a row fulfils it; no rows where the link takes all rows of the mirror.';

CREATE OR REPLACE FUNCTION crm._scoped(mirror integer, scope text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN scope IS NULL THEN crm._table_of(mirror) ELSE format('(SELECT * FROM %s WHERE %s)', crm._table_of(mirror), scope) END
$$;

COMMENT ON FUNCTION crm._scoped(integer, text) IS 'SQL text: the rows of a mirror for which a scope holds.';

CREATE OR REPLACE FUNCTION crm._survivor_rule_check() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link;
BEGIN
    IF NOT crm._restoring() THEN
        k := crm._link_named(new.link);
        new.prefer := crm._scope_checked(CASE new.side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END, new.prefer);
    END IF;
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._survivor_rule_check() IS 'Checks the condition of a rule against the mirror.';

CREATE TRIGGER survivor_rule_check BEFORE INSERT OR UPDATE ON crm.survivor_rule FOR EACH ROW EXECUTE FUNCTION crm._survivor_rule_check();

COMMENT ON TRIGGER survivor_rule_check ON crm.survivor_rule IS 'Refuses rules that cannot be evaluated.';

CREATE OR REPLACE FUNCTION crm._survivor_expr(r crm.survivor_rule, mirror integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE r.rule
        WHEN 'has_partner' THEN format('EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror WHERE a.mirror = %s AND a.row_id = t._id) DESC', mirror)
        WHEN 'most_complete' THEN format('num_nonnulls(%s) DESC', coalesce((SELECT string_agg('t.' || quote_ident(c.column_name), ', ') FROM crm.mirror_column c WHERE c.mirror = $2), 'NULL::text'))
        WHEN 'newest' THEN 't._remote_modified_at DESC NULLS LAST'
        WHEN 'oldest' THEN 't._remote_modified_at ASC NULLS LAST'
        WHEN 'lowest_id' THEN 'length(t.id), t.id COLLATE "C"'
        ELSE format('((%s) IS TRUE) DESC', r.prefer) END
$$;

COMMENT ON FUNCTION crm._survivor_expr(crm.survivor_rule, integer) IS 'SQL text: how a rule orders rows, the survivor first.';

CREATE OR REPLACE FUNCTION crm._survivor(k crm.link, side text, ids bigint[], OUT survivor bigint, OUT decided_by text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    integer := CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    r    crm.survivor_rule;
    left_over bigint[] := ids;
BEGIN
    FOR r IN SELECT * FROM crm.survivor_rule s WHERE s.link = k.name AND s.side = _survivor.side ORDER BY s.ordinal LOOP
        EXECUTE format('SELECT array_agg(o._id) FROM (SELECT t._id, rank() OVER (ORDER BY %s) AS place FROM %s t WHERE t._id = ANY ($1)) o WHERE o.place = 1',
                       crm._survivor_expr(r, m), crm._table_of(m)) INTO left_over USING left_over;
        IF cardinality(left_over) = 1 THEN
            survivor := left_over[1];
            decided_by := r.rule;
            RETURN;
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._survivor(crm.link, text, bigint[]) IS 'Which of these rows of a side stands for them by crm.survivor_rule, and the rule that told; null where the rules do not tell.';

CREATE OR REPLACE FUNCTION crm.duplicates(link text)
RETURNS TABLE (mirror text, field text, match_key text, rows bigint[], records text[], survivor bigint, decided_by text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link := crm._link_named(link);
    f crm.field_map;
    s record;
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL AND m.match_threshold IS NULL ORDER BY m.match_order, m.id LOOP
        FOR s IN SELECT * FROM (VALUES ('left', k.left_mirror, f.left_field, k.left_scope), ('right', k.right_mirror, f.right_field, k.right_scope)) AS v (side, mirror, field, scope) LOOP
            RETURN QUERY EXECUTE format('SELECT %L, %L, d.key, d.ids, d.records, v.survivor, v.decided_by
                FROM (SELECT %s AS key, array_agg(t._id ORDER BY t._id) AS ids, array_agg(t.id ORDER BY t._id) AS records FROM %s t WHERE t._deleted_at IS NULL GROUP BY 1 HAVING count(*) > 1) d,
                     LATERAL crm._survivor($1, %L, d.ids) v
                WHERE d.key IS NOT NULL ORDER BY 3',
                crm._table_of(s.mirror), s.field, crm._match_expr('t.' || crm._column_of(s.mirror, s.field), f.to_left, f.to_right), crm._scoped(s.mirror, s.scope), s.side) USING k;
        END LOOP;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm.duplicates(text) IS 'Rows of one side of a link that share a match key, with the one that stands for them by crm.survivor_rule; null where a person is asked.';

COMMENT ON FUNCTION crm._match_expr(text, text, text) IS 'SQL text of the normal form in which match keys are compared: case, blanks, and for domains scheme and www.';

CREATE OR REPLACE FUNCTION crm._trgm(name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE name WHEN '%' THEN format('OPERATOR(%I.%%)', n.nspname) ELSE format('%I.%I', n.nspname, name) END
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'
$$;

COMMENT ON FUNCTION crm._trgm(text) IS 'SQL text of an operator or function of pg_trgm, wherever it is installed; null where it is not.';

CREATE OR REPLACE FUNCTION crm._match_side(k crm.link, f crm.field_map, side text, seen text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %1$s AS key, t._id FROM %2$s t %5$s WHERE t._deleted_at IS NULL AND %1$s IS NOT NULL %6$s
        AND NOT EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = %3$s AND a.row_id = t._id AND b.mirror = %4$s)',
        crm._match_expr('t.' || crm._column_of(x.own, x.field), f.to_left, f.to_right), crm._scoped(x.own, x.scope), x.own, x.other,
        CASE WHEN seen IS NOT NULL THEN format('LEFT JOIN (SELECT unnest(%s_ids) AS id FROM (%s) p) seen ON seen.id = t._id', side, seen) END,
        CASE WHEN seen IS NOT NULL THEN 'AND seen.id IS NULL' END)
    FROM (SELECT CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END, CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END,
                 CASE side WHEN 'left' THEN f.left_field ELSE f.right_field END, CASE side WHEN 'left' THEN k.left_scope ELSE k.right_scope END) AS x (own, other, field, scope)
$$;

COMMENT ON FUNCTION crm._match_side(crm.link, crm.field_map, text, text) IS 'SQL text: rows of one side that take part in the link, have a key and no partner yet.';

CREATE OR REPLACE FUNCTION crm._match_fuzzy_sql(f crm.field_map, l text, r text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %s::smallint AS key_order, %L::text AS field, c.key AS match_key, ARRAY[c.l] AS left_ids, array_agg(c.r ORDER BY c.alike DESC, c.r) AS right_ids,
            count(*) = 1 AND max(c.rivals) = 1 AND max(c.alike) >= %s AS certain
        FROM (SELECT l.key, l._id AS l, r._id AS r, %s(l.key, r.key) AS alike, count(*) OVER (PARTITION BY r._id) AS rivals
              FROM (%s) l JOIN (%s) r ON l.key %s r.key AND %s(l.key, r.key) >= %s) c
        GROUP BY c.l, c.key', f.match_order, f.left_field, coalesce(f.match_accept, 2), crm._trgm('similarity'), l, r, crm._trgm('%'), crm._trgm('similarity'), f.match_threshold)
$$;

COMMENT ON FUNCTION crm._match_fuzzy_sql(crm.field_map, text, text) IS 'SQL text of one key that is compared by likeness.';

CREATE OR REPLACE FUNCTION crm._match_sql(k crm.link) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    n     integer := 0;
    parts text[] := '{}';
    names text[] := '{}';
    seen  text;
    l     text;
    r     text;
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_order IS NOT NULL ORDER BY m.match_threshold IS NOT NULL, m.match_order, m.id LOOP
        seen := 'SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ');
        l := crm._match_side(k, f, 'left', CASE WHEN n > 0 THEN seen END);
        r := crm._match_side(k, f, 'right', CASE WHEN n > 0 THEN seen END);
        IF f.match_threshold IS NULL THEN
            parts := parts || format('k%s AS MATERIALIZED (SELECT %s::smallint AS key_order, %L::text AS field, l.key AS match_key, l.ids AS left_ids, r.ids AS right_ids, true AS certain
                FROM (SELECT key, array_agg(_id ORDER BY _id) AS ids FROM (%s) x GROUP BY 1) l JOIN (SELECT key, array_agg(_id ORDER BY _id) AS ids FROM (%s) x GROUP BY 1) r USING (key))',
                n, f.match_order, f.left_field, l, r);
        ELSE
            parts := parts || format('k%s AS MATERIALIZED (%s)', n, crm._match_fuzzy_sql(f, l, r));
        END IF;
        names := names || format('k%s', n);
        n := n + 1;
    END LOOP;
    IF n = 0 THEN
        RETURN 'SELECT NULL::smallint, NULL::text, NULL::text, NULL::bigint[], NULL::bigint[], false WHERE false';
    END IF;
    RETURN 'WITH ' || array_to_string(parts, ', ') || ' SELECT * FROM ' || array_to_string(names, ' UNION ALL SELECT * FROM ');
END $$;

COMMENT ON FUNCTION crm._match_sql(crm.link) IS 'The statement that groups rows of both mirrors by equal, then by alike match keys, in the order of match_order.';

CREATE OR REPLACE FUNCTION crm._fuzzy_bounds(k crm.link) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    pairs numeric;
    least real := (SELECT min(m.match_threshold) FROM crm.field_map m WHERE m.link = k.name);
BEGIN
    IF least IS NULL THEN
        RETURN;
    ELSIF crm._trgm('%') IS NULL THEN
        RAISE EXCEPTION 'likeness needs the extension pg_trgm'
            USING ERRCODE = '0A000', DETAIL = format('Link "%s" compares keys with match_threshold.', k.name), HINT = 'CREATE EXTENSION pg_trgm; or set match_threshold to null.';
    END IF;
    PERFORM set_config('pg_trgm.similarity_threshold', least::text, true);
    SELECT greatest(l.reltuples, 0)::numeric * greatest(r.reltuples, 0)::numeric INTO pairs
    FROM pg_class l, pg_class r WHERE l.oid = crm._table_of(k.left_mirror)::regclass AND r.oid = crm._table_of(k.right_mirror)::regclass;
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name AND m.match_threshold IS NOT NULL LOOP
        IF pairs > 100000000 AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0]
               WHERE i.indrelid = crm._table_of(k.right_mirror)::regclass AND i.indexprs IS NOT NULL AND o.opcname IN ('gin_trgm_ops', 'gist_trgm_ops')) THEN
            RAISE EXCEPTION 'comparing "%" by likeness would take % comparisons', f.left_field, pairs
                USING ERRCODE = '54000', DETAIL = 'Without an index every row is compared with every row of the other side.',
                      HINT = format('CREATE INDEX ON %s USING gin ((%s) %s);', crm._table_of(k.right_mirror),
                                    crm._match_expr(crm._column_of(k.right_mirror, f.right_field), f.to_left, f.to_right), crm._trgm('gin_trgm_ops'));
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._fuzzy_bounds(crm.link) IS 'Prepares comparing by likeness; refuses what would take too long, with the index that helps.';

CREATE OR REPLACE FUNCTION crm._match_groups(k crm.link)
RETURNS TABLE (key_order smallint, field text, match_key text, left_ids bigint[], right_ids bigint[], certain boolean)
LANGUAGE plpgsql ROWS 100000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rules CONSTANT boolean[] := ARRAY(SELECT EXISTS (SELECT FROM crm.survivor_rule s WHERE s.link = k.name AND s.side = v) FROM unnest(ARRAY['left', 'right']) WITH ORDINALITY AS u (v, n) ORDER BY n);
BEGIN
    PERFORM crm._fuzzy_bounds(k);
    RETURN QUERY EXECUTE format('SELECT g.key_order, g.field, g.match_key, %s, %s, g.certain FROM (%s) AS g (key_order, field, match_key, left_ids, right_ids, certain)',
        CASE WHEN rules[1] THEN 'CASE WHEN g.certain AND cardinality(g.left_ids) > 1 THEN coalesce((SELECT ARRAY[s.survivor] FROM crm._survivor($1, ''left'', g.left_ids) s WHERE s.survivor IS NOT NULL), g.left_ids) ELSE g.left_ids END' ELSE 'g.left_ids' END,
        CASE WHEN rules[2] THEN 'CASE WHEN g.certain AND cardinality(g.right_ids) > 1 THEN coalesce((SELECT ARRAY[s.survivor] FROM crm._survivor($1, ''right'', g.right_ids) s WHERE s.survivor IS NOT NULL), g.right_ids) ELSE g.right_ids END' ELSE 'g.right_ids' END,
        crm._match_sql(k)) USING k;
END $$;

COMMENT ON FUNCTION crm._match_groups(crm.link) IS 'Rows of both mirrors with equal or alike match keys. One id on each side, and certain, is a match; others are a question for a person.';

CREATE OR REPLACE FUNCTION crm._match(link text, OUT matched bigint, OUT ambiguous bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k crm.link := crm._link_named(link);
BEGIN
    EXECUTE format($f$
        WITH g AS MATERIALIZED (SELECT * FROM crm._match_groups($1)),
        pair AS MATERIALIZED (
            SELECT g.field, g.match_key, g.left_ids, g.right_ids, l.id AS left_record, r.id AS right_record, xl.entity AS le, xr.entity AS re, g.certain,
                   g.certain AND cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AND (xl.entity IS NULL OR xr.entity IS NULL) AS clear
            FROM g
            JOIN %1$s l ON l._id = g.left_ids[1] JOIN %2$s r ON r._id = g.right_ids[1]
            LEFT JOIN crm.xref xl ON xl.mirror = $2 AND xl.row_id = g.left_ids[1]
            LEFT JOIN crm.xref xr ON xr.mirror = $3 AND xr.row_id = g.right_ids[1]
        ), thing AS MATERIALIZED (
            -- In the order of rows, so that the indexes of crm.xref fill their pages.
            SELECT p.*, coalesce(p.le, p.re, nextval('crm.entity_seq')) AS entity FROM (SELECT * FROM pair WHERE clear ORDER BY left_ids[1]) p
        ), linked AS (
            INSERT INTO crm.xref (mirror, row_id, entity)
            SELECT * FROM (SELECT $2 AS mirror, left_ids[1], entity FROM thing WHERE le IS NULL
                           UNION ALL SELECT $3, right_ids[1], entity FROM thing WHERE re IS NULL) r ORDER BY entity, mirror
        ), asked AS (
            INSERT INTO crm.review_item AS i (kind, link, mirror, row_id, reason, candidates)
            SELECT 'match', $4, $2, p.left_ids[1], CASE WHEN p.certain THEN 'ambiguous match' ELSE 'match by likeness' END,
                   jsonb_build_object('field', p.field, 'key', p.match_key, 'left', to_jsonb(p.left_ids[1:20]), 'right', to_jsonb(p.right_ids[1:20]))
            FROM pair p WHERE NOT p.clear
            ON CONFLICT (kind, link, mirror, row_id) WHERE kind <> 'field' DO UPDATE SET candidates = excluded.candidates, changed_at = now(), resolution = NULL
            WHERE i.candidates <> excluded.candidates
        )
        SELECT count(*) FILTER (WHERE clear), count(*) FILTER (WHERE NOT clear) FROM pair$f$,
        crm._table_of(k.left_mirror), crm._table_of(k.right_mirror))
    INTO matched, ambiguous USING k, k.left_mirror, k.right_mirror, k.name;
    -- Questions that a merge in the CRM has answered meanwhile.
    DELETE FROM crm.review_item r WHERE r.link = k.name AND r.kind = 'match' AND r.resolution IS NULL
        AND EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror WHERE a.mirror = r.mirror AND a.row_id = r.row_id);
    UPDATE crm.link x SET matched_at = clock_timestamp() WHERE x.id = k.id;
END $$;

COMMENT ON FUNCTION crm._match(text) IS 'Ties rows of both mirrors with equal, unambiguous keys (crm.xref); the others become questions in crm.review.';

COMMENT ON FUNCTION crm.unlink(text) IS 'Removes a link with its maps and policies. Values stay as they are on every side; unsent writes to the other side are cancelled, those in flight are finished.';

CREATE OR REPLACE FUNCTION crm.preview(link text) RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k        crm.link := crm._link_named(link);
    left_t   text := crm._table_of(k.left_mirror);
    right_t  text := crm._table_of(k.right_mirror);
    l_ids    bigint[];
    r_ids    bigint[];
    tied     bigint;
    l_all    bigint;
    r_all    bigint;
    l_fuzzy  bigint;
    r_fuzzy  bigint;
    samples  text[];
    open     text := (SELECT string_agg(crm._table_of(b.mirror) || ' ' || b.state, ', ') FROM crm.backfill b WHERE b.mirror IN (k.left_mirror, k.right_mirror) AND b.state <> 'done');
BEGIN
    IF open IS NOT NULL THEN
        RETURN QUERY SELECT 'incomplete', NULL, NULL::bigint, open, 'The first copy is not finished: figures below will change. See crm.progress.';
    END IF;
    EXECUTE format('SELECT (SELECT count(*) FROM %s WHERE _deleted_at IS NULL), (SELECT count(*) FROM %s WHERE _deleted_at IS NULL)', left_t, right_t) INTO l_all, r_all;
    SELECT array_agg(a.row_id), array_agg(b.row_id), count(*) INTO l_ids, r_ids, tied
    FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity WHERE a.mirror = k.left_mirror AND b.mirror = k.right_mirror;
    SELECT coalesce(l_ids, '{}') || coalesce(array_agg(g.left_ids[1]) FILTER (WHERE c.clear), '{}'), coalesce(r_ids, '{}') || coalesce(array_agg(g.right_ids[1]) FILTER (WHERE c.clear), '{}'),
           coalesce(sum(cardinality(g.left_ids)) FILTER (WHERE NOT c.clear), 0), coalesce(sum(cardinality(g.right_ids)) FILTER (WHERE NOT c.clear), 0),
           array_agg(g.match_key) FILTER (WHERE NOT c.clear)
    INTO l_ids, r_ids, l_fuzzy, r_fuzzy, samples
    FROM crm._match_groups(k) g, LATERAL (SELECT g.certain AND cardinality(g.left_ids) = 1 AND cardinality(g.right_ids) = 1 AS clear) c;
    RETURN QUERY VALUES
        ('rows', left_t, l_all, NULL, NULL),
        ('rows', right_t, r_all, NULL, NULL),
        ('matches', (SELECT string_agg(f.left_field, ', ' ORDER BY f.match_order) FROM crm.field_map f WHERE f.link = k.name AND f.match_order IS NOT NULL),
         cardinality(l_ids)::bigint, format('%s tied already', tied), 'Treated as one thing each.'),
        ('only ' || left_t, NULL, l_all - cardinality(l_ids) - l_fuzzy, NULL, CASE WHEN k.create_right THEN 'A counterpart is made in the other CRM when such a row changes or is new.' ELSE 'No counterpart is made.' END),
        ('only ' || right_t, NULL, r_all - cardinality(r_ids) - r_fuzzy, NULL, CASE WHEN k.create_left THEN 'A counterpart is made in the other CRM when such a row changes or is new.' ELSE 'No counterpart is made.' END),
        ('ambiguous', NULL, coalesce(cardinality(samples), 0)::bigint, array_to_string(samples[1:3], ', '), CASE WHEN samples IS NOT NULL THEN 'Several rows share a key, or are only alike: never tied by itself. Merge them in the CRM, add crm.survivor_rule, or decide in crm.review.' END);
    RETURN QUERY SELECT d.* FROM crm._preview_duplicates(k) d;
    RETURN QUERY SELECT p.* FROM crm._preview_fields(k, l_ids, r_ids) p;
    RETURN QUERY SELECT c.problem, c.mirror || '.' || c.field, c.count, left(c.examples[1], 120), c.advice FROM crm.check_mapping(k.name) c;
    RETURN QUERY SELECT 'would send', crm._table_of(w.mirror), count(*), min(left(w.vals::text, 120)), format('About %s API calls.', ceil(count(*) / 100.0))
                 FROM crm.write w WHERE w.mirror IN (k.left_mirror, k.right_mirror) AND w.state = 'would_send' GROUP BY w.mirror;
END $$;

COMMENT ON FUNCTION crm.preview(text) IS 'What going live would mean, before any write: matches, rows of one side only, ambiguities, duplicates, fields that differ, values that would be lost, writes that wait and their API calls.';

CREATE OR REPLACE FUNCTION crm._preview_duplicates(k crm.link) RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'duplicates', d.mirror || '.' || d.field, sum(cardinality(d.rows))::bigint, min(d.match_key),
           format('Rows of one side with the same key: SELECT * FROM crm.duplicates(%L); %s of %s stand by crm.survivor_rule, merge the others in that CRM before going live.',
                  k.name, count(d.survivor), count(*))
    FROM crm.duplicates(k.name) d GROUP BY d.mirror, d.field ORDER BY 2
$$;

COMMENT ON FUNCTION crm._preview_duplicates(crm.link) IS 'Rows of one side that share a match key, counted.';

COMMENT ON FUNCTION crm._fence_open() IS 'Activates a cluster that never was; raises on a copy.';

CREATE OR REPLACE FUNCTION crm.go_live(name text) RETURNS TABLE (what text, count bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k       crm.link;
    m       crm.mirror;
    mirrors integer[];
    undone  text;
    sent    bigint;
    tied    record;
BEGIN
    SELECT * INTO k FROM crm.link x WHERE x.name = go_live.name;
    IF FOUND THEN
        mirrors := ARRAY[k.left_mirror, k.right_mirror];
    ELSE
        IF name IS NULL OR strpos(name, '.') = 0 THEN
            k := crm._link_named(name);
        END IF;
        m := crm._mirror_named(name);
        mirrors := ARRAY[m.id];
    END IF;
    SELECT string_agg(crm._table_of(x.id) || ' (backfill ' || coalesce(b.state, 'missing') || coalesce(': ' || b.error, '') || ')', ', ') INTO undone
    FROM crm.mirror x LEFT JOIN crm.backfill b ON b.mirror = x.id WHERE x.id = ANY (mirrors) AND b.state IS DISTINCT FROM 'done';
    IF undone IS NOT NULL THEN
        RAISE EXCEPTION '"%" cannot go live before its first copy is done', name
            USING ERRCODE = '55000', DETAIL = 'Not done: ' || undone || '.', HINT = 'See crm.progress. Matching half a table would make duplicates of the other half.';
    END IF;
    PERFORM crm._fence_open();
    IF k.id IS NOT NULL THEN
        RAISE NOTICE 'link "%" goes live as mapped', k.name USING HINT = format('What would be lost on the way: SELECT * FROM crm.check_mapping(%L);', k.name);
        SELECT * INTO tied FROM crm._match(k.name);
        RETURN QUERY VALUES ('matched', tied.matched), ('ambiguous', tied.ambiguous);
        UPDATE crm.link x SET mode = 'live' WHERE x.id = k.id;
    END IF;
    UPDATE crm.mirror x SET mode = 'live' WHERE x.id = ANY (mirrors) AND x.mode = 'shadow';
    -- The worker lets them go, and notes on the rows and in crm.field_state what it then waits for.
    SELECT count(*) INTO sent FROM crm.write w JOIN crm.mirror x ON x.id = w.mirror
    WHERE x.id = ANY (mirrors) AND x.mode = 'live' AND w.state = 'would_send';
    INSERT INTO crm.config_change DEFAULT VALUES;
    RETURN QUERY VALUES ('writes queued', sent);
    PERFORM crm._wake();
END $$;

COMMENT ON FUNCTION crm.go_live(text) IS 'Ends shadow mode of a link (and its mirrors) or of one mirror: ties matching rows, queues what would have been sent, and sends from now on. Activates this cluster if it never was.';

CREATE OR REPLACE FUNCTION crm._canonical_sql(mirror integer, field text, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(CASE crm._sql_type(c.field_type) WHEN 'timestamp with time zone' THEN 'to_char(%1$s.%2$I AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'')'
                       WHEN 'text[]' THEN 'array_to_string(%1$s.%2$I, '';'')' WHEN 'text' THEN 'nullif(%1$s.%2$I, '''')' ELSE '%1$s.%2$I::text' END, alias, c.column_name)
    FROM crm.mirror_column c WHERE c.mirror = $1 AND c.field = $2
$$;

COMMENT ON FUNCTION crm._canonical_sql(integer, text, text) IS 'SQL text: a column as the one spelling in which the worker compares values.';

CREATE OR REPLACE FUNCTION crm._map_fields(m crm.field_map, side text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE side WHEN 'left' THEN m.left_field || m.left_more ELSE m.right_field || m.right_more END
$$;

COMMENT ON FUNCTION crm._map_fields(crm.field_map, text) IS 'The fields of one side of a map, in order.';

CREATE OR REPLACE FUNCTION crm._cells_sql(mirror integer, fields text[], alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('ARRAY[%s]::text[]', string_agg(crm._canonical_sql($1, f, alias), ', ' ORDER BY n)) FROM unnest(fields) WITH ORDINALITY AS x (f, n)
$$;

COMMENT ON FUNCTION crm._cells_sql(integer, text[], text) IS 'SQL text: the columns of a map''s side as an array of text.';

CREATE OR REPLACE FUNCTION crm._map_call(f text, value text, result_type text, OUT image text, OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    arg  text := substr(f, strpos(f, '(') + 1, length(f) - strpos(f, '(') - 1);
    call text := format('%s(%s)', left(f, strpos(f, '(') - 1), CASE arg WHEN 'text' THEN '$1' WHEN 'text[]' THEN 'string_to_array($1, '';'')' ELSE '$1::' || arg END);
BEGIN
    EXECUTE format('SELECT nullif(%s, '''')', CASE result_type WHEN 'timestamp with time zone' THEN format('to_char(%s AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'')', call)
                                                          WHEN 'text[]' THEN format('array_to_string(%s, '';'')', call) ELSE format('(%s)::text', call) END)
    INTO image USING value;
EXCEPTION WHEN OTHERS THEN
    problem := format('%s (%s)', sqlerrm, sqlstate);
END $$;

COMMENT ON FUNCTION crm._map_call(text, text, text) IS 'The image of a value under a function of a map, or why there is none.';

CREATE OR REPLACE FUNCTION crm._map_image(k crm.link, m crm.field_map, side text, cells text[], OUT image text[], OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    transform text := CASE side WHEN 'left' THEN m.to_right ELSE m.to_left END;
    words     jsonb;
    one       text;
BEGIN
    IF m.structure IS NOT NULL THEN
        image := crm._map_cells(m.structure, cells, cardinality(crm._map_fields(m, CASE side WHEN 'left' THEN 'right' ELSE 'left' END)));
        RETURN;
    ELSIF cells[1] IS NULL THEN
        image := ARRAY[NULL::text];
        RETURN;
    ELSIF transform LIKE '%(%' THEN
        SELECT c.image, c.problem INTO one, problem
        FROM crm._map_call(transform, cells[1], (SELECT crm._sql_type(c.field_type) FROM crm.mirror_column c WHERE (c.mirror, c.field) =
             (CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END, CASE side WHEN 'left' THEN m.right_field ELSE m.left_field END))) c;
    ELSE
        IF m.value_map IS NOT NULL THEN
            words := CASE side WHEN 'left' THEN m.value_map
                     ELSE coalesce((SELECT jsonb_object_agg(v, f) FROM jsonb_each_text(m.value_map) AS e (f, v)), '{}') || coalesce(m.value_map_back, '{}') END;
        END IF;
        SELECT v.image, v.problem INTO one, problem FROM crm._map_value(transform, words, cells[1]) v;
    END IF;
    image := ARRAY[one];
END $$;

COMMENT ON FUNCTION crm._map_image(crm.link, crm.field_map, text, text[]) IS 'What the cells of one side (left or right) become on the other, or why nothing does.';

CREATE OR REPLACE FUNCTION crm._map_trivial(m crm.field_map) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.to_left = 'identity' AND m.to_right = 'identity' AND m.value_map IS NULL AND m.structure IS NULL
$$;

COMMENT ON FUNCTION crm._map_trivial(crm.field_map) IS 'Whether a map takes values over as they are.';

CREATE OR REPLACE FUNCTION crm._map_target(mirror integer, fields text[], "default" text, OUT longest integer[], OUT choices jsonb, OUT needed boolean[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(CASE WHEN c.field_type = 'text' THEN c.max_length END ORDER BY n),
           jsonb_agg(CASE WHEN r.restricted AND jsonb_array_length(r.options) > 0 THEN (SELECT jsonb_agg(o ->> 'value') FROM jsonb_array_elements(r.options) o) END ORDER BY n),
           array_agg(c.required AND "default" IS NULL ORDER BY n)
    FROM unnest(fields) WITH ORDINALITY AS x (f, n)
    JOIN crm.mirror_column c ON c.mirror = $1 AND c.field = f
    JOIN crm.mirror m ON m.id = c.mirror
    LEFT JOIN crm.remote_field r ON r.server = m.server AND r.object = m.object AND r.field = f
$$;

COMMENT ON FUNCTION crm._map_target(integer, text[], text) IS 'What the fields of one side take, per field.';

CREATE OR REPLACE FUNCTION crm._choice_missing(choices jsonb, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_typeof(choices) = 'array' AND value IS NOT NULL AND NOT choices ? value AND EXISTS (SELECT FROM unnest(string_to_array(value, ';')) c WHERE NOT choices ? c)
$$;

COMMENT ON FUNCTION crm._choice_missing(jsonb, text) IS 'Whether a value, or one of several, is none of a field''s choices.';

CREATE OR REPLACE FUNCTION crm._check_map(k crm.link, m crm.field_map, side text)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own    integer := CASE side WHEN 'left' THEN k.left_mirror ELSE k.right_mirror END;
    there  integer := CASE side WHEN 'left' THEN k.right_mirror ELSE k.left_mirror END;
    other  text := CASE side WHEN 'left' THEN 'right' ELSE 'left' END;
    fields text[] := crm._map_fields(m, side);
    target record;
    images text := CASE WHEN crm._map_trivial(m) THEN 'SELECT v.cells AS image, NULL::text AS problem' ELSE 'SELECT x.image, x.problem FROM crm._map_image($1, $2, $3, v.cells) x' END;
BEGIN
    SELECT * INTO target FROM crm._map_target(there, crm._map_fields(m, other), CASE other WHEN 'left' THEN m.default_left ELSE m.default_right END);
    IF crm._map_trivial(m) AND NOT true = ANY (target.needed) AND array_remove(target.longest, NULL) = '{}' AND NOT target.choices @? '$[*] ? (@ != null)' THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($f$
        WITH v AS MATERIALIZED (
            SELECT s.cells, count(*) AS n FROM (SELECT %1$s AS cells FROM %2$s t WHERE t._deleted_at IS NULL) s GROUP BY 1 ORDER BY 2 DESC LIMIT 100000
        ), i AS MATERIALIZED (
            SELECT v.cells, v.n, f.image, f.problem, array_to_string(v.cells, ' | ') AS shown, array_to_string(f.image, ' | ') AS becomes FROM v, LATERAL (%3$s) f
        ), b AS MATERIALIZED (
            SELECT i.*, %4$s AS back FROM i
        ), found AS (
            SELECT 'no counterpart' AS problem, b.n, b.shown || ': ' || b.problem AS example FROM b WHERE b.problem IS NOT NULL
            UNION ALL
            SELECT 'lossy', b.n, format('%%s -> %%s -> %%s', b.shown, b.becomes, array_to_string(b.back, ' | ')) FROM b
            WHERE b.problem IS NULL AND b.back IS NOT NULL AND array_to_string(b.cells, E'\x1f', '') <> array_to_string(b.back, E'\x1f', '')
            UNION ALL
            SELECT 'too long', b.n, left(c.cell, 60) FROM b, unnest(b.image, $4::integer[]) AS c (cell, longest) WHERE length(c.cell) > c.longest
            UNION ALL
            SELECT 'not a choice', b.n, concat_ws(' -> ', b.shown, nullif(b.becomes, b.shown)) FROM b, unnest(b.image) WITH ORDINALITY AS c (cell, place) WHERE crm._choice_missing($5 -> (c.place - 1)::integer, c.cell)
            UNION ALL
            SELECT 'required', b.n, coalesce(nullif(b.shown, ''), '(empty)') FROM b, unnest(b.image, $6::boolean[]) AS c (cell, needed) WHERE c.needed AND c.cell IS NULL AND b.problem IS NULL
        )
        SELECT f.problem, $7, $8, sum(f.n)::bigint, (array_agg(f.example ORDER BY f.n DESC, f.example))[1:5], crm._check_advice(f.problem, $9) FROM found f GROUP BY f.problem ORDER BY 1$f$,
        crm._cells_sql(own, fields, 't'), crm._scoped(own, CASE side WHEN 'left' THEN k.left_scope ELSE k.right_scope END), images,
        CASE WHEN m.direction = 'both' AND NOT crm._map_trivial(m) THEN format('(SELECT x.image FROM crm._map_image($1, $2, %L, i.image) x WHERE i.problem IS NULL)', other) ELSE 'NULL::text[]' END)
    USING k, m, side, target.longest, target.choices, target.needed, crm._table_of(own), array_to_string(fields, ', '), other;
END $$;

COMMENT ON FUNCTION crm._check_map(crm.link, crm.field_map, text) IS 'What one direction of a map would lose, from the rows of the side it starts from.';

CREATE OR REPLACE FUNCTION crm._check_advice(problem text, other text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE problem
        WHEN 'no counterpart' THEN 'Such values do not travel: add them to value_map, or mend the function.'
        WHEN 'lossy' THEN 'Comes back as another value. What stands there is kept while the other side is not changed; map it one way if that is wrong.'
        WHEN 'too long' THEN 'Would be cut there: shorten it, or map the field one way.'
        WHEN 'not a choice' THEN 'The other CRM would refuse it: add the choice there, or name another in value_map.'
        WHEN 'required' THEN format('The other CRM refuses records without it: set default_%s.', other) END
$$;

COMMENT ON FUNCTION crm._check_advice(text, text) IS 'What to do about a problem of crm.check_mapping.';

CREATE OR REPLACE FUNCTION crm._check_link(k crm.link)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'no key', NULL::text, NULL::text, NULL::bigint, NULL::text[], 'No field identifies records: nothing is matched, everything is made twice. Set match_order in crm.field_map.'
    WHERE NOT EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND f.match_order IS NOT NULL)
    UNION ALL
    SELECT 'required', crm._table_of(c.mirror), c.field, NULL, NULL,
           format('New records need it and nothing is mapped to it: INSERT INTO crm.field_default VALUES (%L, %L, %L, …); or map it.', k.name, s.side, c.field)
    FROM (VALUES ('left', k.left_mirror, k.create_left), ('right', k.right_mirror, k.create_right)) AS s (side, mirror, makes)
    JOIN crm.mirror_column c ON c.mirror = s.mirror AND c.required AND NOT c.read_only
    WHERE s.makes
      AND NOT EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND f.direction <> CASE s.side WHEN 'left' THEN 'to_right' ELSE 'to_left' END AND c.field = ANY (crm._map_fields(f, s.side)))
      AND NOT EXISTS (SELECT FROM crm.field_default d WHERE d.link = k.name AND d.side = s.side AND d.field = c.field)
    UNION ALL
    SELECT 'type', crm._table_of(k.left_mirror), f.left_field, NULL, ARRAY[format('%s (%s), %s (%s)', l.field, l.field_type, r.field, r.field_type)], crm._map_problem(l, r, f.to_left, f.to_right)
    FROM crm.field_map f JOIN crm.mirror_column l ON l.mirror = k.left_mirror AND l.field = f.left_field JOIN crm.mirror_column r ON r.mirror = k.right_mirror AND r.field = f.right_field
    WHERE f.link = k.name AND crm._map_problem(l, r, f.to_left, f.to_right) IS NOT NULL
    UNION ALL
    SELECT 'missing', crm._table_of(s.mirror), x.field, NULL, NULL, 'The mirror has no such column any more: DELETE the row of crm.field_map, or import the field again.'
    FROM crm.field_map f, (VALUES ('left', k.left_mirror), ('right', k.right_mirror)) AS s (side, mirror), unnest(crm._map_fields(f, s.side)) AS x (field)
    WHERE f.link = k.name AND NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = s.mirror AND c.field = x.field)
    UNION ALL
    SELECT 'function', NULL, f.left_field, NULL, ARRAY[t.name], 'The function is not there any more, or not IMMUTABLE: values of this field do not travel.'
    FROM crm.field_map f, unnest(ARRAY[f.to_left, f.to_right]) AS t (name)
    WHERE f.link = k.name AND t.name LIKE '%(%' AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure(t.name) AND p.provolatile = 'i')
    UNION ALL
    SELECT 'two targets', crm._table_of(k.left_mirror), NULL, NULL, ARRAY[o.name],
           format('New rows of %s are made over link "%s" too: give each link a left_scope, so that every row belongs to one.', crm._table_of(k.left_mirror), o.name)
    FROM crm.link o JOIN crm.mirror a ON a.id = o.right_mirror JOIN crm.mirror b ON b.id = k.right_mirror
    WHERE o.id <> k.id AND o.left_mirror = k.left_mirror AND a.server = b.server AND o.create_right AND k.create_right AND (o.left_scope IS NULL OR k.left_scope IS NULL)
$$;

COMMENT ON FUNCTION crm._check_link(crm.link) IS 'What is wrong with a link whatever its rows hold.';

CREATE OR REPLACE FUNCTION crm.check_mapping(link text)
RETURNS TABLE (problem text, mirror text, field text, count bigint, examples text[], advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k    crm.link := crm._link_named(link);
    m    crm.field_map;
    side text;
BEGIN
    RETURN QUERY SELECT * FROM crm._check_link(k);
    FOR m IN SELECT * FROM crm.field_map f WHERE f.link = k.name ORDER BY f.id LOOP
        CONTINUE WHEN EXISTS (SELECT FROM unnest(crm._map_fields(m, 'left')) x WHERE NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = k.left_mirror AND c.field = x))
                   OR EXISTS (SELECT FROM unnest(crm._map_fields(m, 'right')) x WHERE NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = k.right_mirror AND c.field = x));
        FOREACH side IN ARRAY ARRAY['left', 'right'] LOOP
            IF m.direction IN ('both', CASE side WHEN 'left' THEN 'to_right' ELSE 'to_left' END) THEN
                RETURN QUERY SELECT * FROM crm._check_map(k, m, side);
            END IF;
        END LOOP;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm.check_mapping(text) IS 'What the maps of a link would lose or could not carry, counted over the rows as they are: values that come back as others, values without counterpart, texts that are too long, choices that the other CRM does not have, missing required fields. Changes nothing.';

CREATE OR REPLACE FUNCTION crm._map_equal(k crm.link, f crm.field_map) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l text := 'l.' || crm._column_of(k.left_mirror, f.left_field);
    r text := 'r.' || crm._column_of(k.right_mirror, f.right_field);
BEGIN
    RETURN CASE
        WHEN 'domain_of_url' IN (f.to_left, f.to_right) THEN format('%s IS NOT DISTINCT FROM %s', crm._match_expr(l, f.to_left, f.to_right), crm._match_expr(r, f.to_left, f.to_right))
        WHEN NOT crm._map_trivial(f) AND f.direction = 'to_left' THEN
            format('(crm._map_image($3, $4, ''right'', %2$s)).image IS NOT DISTINCT FROM %1$s', crm._cells_sql(k.left_mirror, crm._map_fields(f, 'left'), 'l'), crm._cells_sql(k.right_mirror, crm._map_fields(f, 'right'), 'r'))
        WHEN NOT crm._map_trivial(f) THEN
            format('(crm._map_image($3, $4, ''left'', %1$s)).image IS NOT DISTINCT FROM %2$s', crm._cells_sql(k.left_mirror, crm._map_fields(f, 'left'), 'l'), crm._cells_sql(k.right_mirror, crm._map_fields(f, 'right'), 'r'))
        WHEN (SELECT c.field_type FROM crm.mirror_column c WHERE c.mirror = k.left_mirror AND c.field = f.left_field) NOT IN ('text', 'reference')
        THEN format('%s IS NOT DISTINCT FROM %s', l, r)
        ELSE format('nullif(%s::text, '''') IS NOT DISTINCT FROM nullif(%s::text, '''')', l, r) END;
END $$;

COMMENT ON FUNCTION crm._map_equal(crm.link, crm.field_map) IS 'SQL text: do both sides of a field map hold the same value?';

CREATE OR REPLACE FUNCTION crm._preview_fields(k crm.link, left_ids bigint[], right_ids bigint[])
RETURNS TABLE (what text, field text, count bigint, sample text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     crm.field_map;
    pairs text := format('unnest($1, $2) AS p (li, ri) JOIN %s l ON l._id = p.li JOIN %s r ON r._id = p.ri', crm._table_of(k.left_mirror), crm._table_of(k.right_mirror));
BEGIN
    FOR f IN SELECT * FROM crm.field_map m WHERE m.link = k.name ORDER BY m.id LOOP
        RETURN QUERY EXECUTE format(
            'SELECT ''differs'', %L, count(*), min(left(concat_ws('' <> '', coalesce(l.%s::text, ''(empty)''), coalesce(r.%s::text, ''(empty)'')), 120)), %L FROM %s WHERE NOT (%s) HAVING count(*) > 0',
            f.left_field, crm._column_of(k.left_mirror, f.left_field), crm._column_of(k.right_mirror, f.right_field),
            'Stays as it is until one side changes.', pairs, crm._map_equal(k, f)) USING left_ids, right_ids, k, f;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._preview_fields(crm.link, bigint[], bigint[]) IS 'Fields that differ between matched rows.';

CREATE OR REPLACE FUNCTION crm._tx_known(tx bigint, what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text[];
BEGIN
    IF tx IS NULL OR NOT (EXISTS (SELECT FROM crm.change_tx t WHERE t.held AND t.tx = _tx_known.tx)
                          OR EXISTS (SELECT FROM crm.write w WHERE w.state = 'held' AND w.error_code IS DISTINCT FROM 'unknown_create' AND _tx_known.tx = ANY (w.txs))) THEN
        SELECT array_agg(h.tx::text ORDER BY h.tx) INTO held FROM (
            SELECT t.tx FROM crm.change_tx t WHERE t.held
            UNION SELECT unnest(w.txs) FROM crm.write w WHERE w.state = 'held' AND w.error_code IS DISTINCT FROM 'unknown_create' ORDER BY 1 LIMIT 20) h;
        RAISE EXCEPTION 'nothing of transaction % is held', coalesce(tx::text, 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN held IS NULL THEN 'The guard holds nothing.' ELSE 'Held are: ' || array_to_string(held, ', ') || '.' END,
                  HINT = format('SELECT * FROM crm.held; shows what crm.%s can be asked for.', what);
    END IF;
END $$;

COMMENT ON FUNCTION crm._tx_known(bigint, text) IS 'Raises unless the guard holds something of that transaction.';

CREATE OR REPLACE FUNCTION crm.approve(tx bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    freed bigint;
BEGIN
    PERFORM crm._tx_known(tx, 'approve');
    UPDATE crm.change_tx t SET held = false WHERE t.tx = approve.tx;
    UPDATE crm.write w SET state = 'queued'
    WHERE w.state = 'held' AND approve.tx = ANY (w.txs) AND w.error_code IS DISTINCT FROM 'unknown_create'
      AND NOT EXISTS (SELECT FROM crm.change_tx t WHERE t.held AND t.tx = ANY (w.txs));
    GET DIAGNOSTICS freed = ROW_COUNT;
    -- Makes the worker look for what to send.
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN format('%s writes of transaction %s are on their way', freed, tx);
END $$;

COMMENT ON FUNCTION crm.approve(bigint) IS 'Sends what the guard holds of a transaction (see crm.held). A write that another held transaction touched too waits for that one as well.';

COMMENT ON FUNCTION crm._from_text(text, text) IS 'SQL text that turns canonical text into the value of a column.';

COMMENT ON FUNCTION crm._reject_sql(crm.mirror, text) IS 'The statement that undoes held updates, creates or deletes of a mirror.';

COMMENT ON FUNCTION crm._drained(bigint) IS 'Whether the worker has taken up all changes of a transaction.';

CREATE OR REPLACE FUNCTION crm._reread_held(tx bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.deferred (mirror, record_id, source, change, reason)
    SELECT w.mirror, w.record_id, 'read', '{}', 'read'
    FROM crm.write w
    WHERE w.state = 'held' AND $1 = ANY (w.txs) AND w.kind = 'update' AND w.record_id IS NOT NULL
      AND EXISTS (SELECT FROM crm.event e WHERE e.mirror = w.mirror AND e.row_id = w.row_id AND e.received_at >= w.queued_at AND e.source NOT IN ('sql', 'result'))
$$;

COMMENT ON FUNCTION crm._reread_held(bigint) IS 'Has records read again that their CRM changed while writes of a transaction were held.';

CREATE OR REPLACE FUNCTION crm.reject(tx bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until    timestamptz := crm._wait_possible('crm.reject', interval '10 seconds');
    part     record;
    m        crm.mirror;
    restored bigint := 0;
    asked    bigint := 0;
BEGIN
    PERFORM crm._tx_known(tx, 'reject');
    WHILE NOT crm._drained(tx) LOOP
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'transaction % is not taken up by the worker yet', tx
                USING ERRCODE = '55006', DETAIL = 'Its changes still wait in the change log.', HINT = 'Call again in a moment; see the worker in crm.status.';
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;
    PERFORM FROM crm.write w WHERE w.state = 'held' AND reject.tx = ANY (w.txs) FOR UPDATE;
    PERFORM crm._reread_held(tx);
    FOR part IN
        SELECT w.mirror, w.kind, count(*) AS n,
               jsonb_agg(jsonb_build_object('r', w.row_id, 'v', w.vals, 'i', w.record_id,
                   'o', CASE WHEN w.kind = 'delete' THEN (SELECT jsonb_object_agg(f, v) FROM (
                            SELECT e.fields, e.old_values FROM crm.event e WHERE e.mirror = w.mirror AND e.row_id = w.row_id AND e.kind = 'delete' ORDER BY e.seq DESC LIMIT 1) e,
                            unnest(e.fields, e.old_values) AS u (f, v)) ELSE w.old_vals END)) AS data
        FROM crm.write w
        WHERE w.state = 'held' AND reject.tx = ANY (w.txs) AND w.error_code IS DISTINCT FROM 'unknown_create'
        GROUP BY w.mirror, w.kind ORDER BY w.kind = 'create', w.mirror
    LOOP
        SELECT * INTO m FROM crm.mirror x WHERE x.id = part.mirror;
        asked := asked + part.n;
        restored := restored + crm._as_engine(format('%I.%I', m.schema_name, m.table_name)::regclass, crm._reject_sql(m, part.kind), part.data);
    END LOOP;
    -- A deleted row lost its partner at once; back again, it finds it by the keys of the link.
    PERFORM crm._match(l.name) FROM crm.link l
    WHERE l.mode = 'live' AND EXISTS (SELECT FROM crm.write w WHERE w.state = 'held' AND reject.tx = ANY (w.txs) AND w.kind = 'delete'
                                      AND w.mirror IN (l.left_mirror, l.right_mirror));
    -- Edits of rows that were never made go with them; the worker forgets what it waited for.
    WITH gone AS (
        DELETE FROM crm.write w WHERE w.state = 'held' AND reject.tx = ANY (w.txs) AND w.error_code IS DISTINCT FROM 'unknown_create'
        RETURNING w.mirror, w.row_id, w.kind, w.entity
    ), edits AS (
        DELETE FROM crm.write w USING gone g WHERE g.kind = 'create' AND w.mirror = g.mirror AND w.row_id = g.row_id AND w.state NOT IN ('in_flight', 'unknown', 'held')
    ), ties AS (
        DELETE FROM crm.xref x USING gone g WHERE g.kind = 'create' AND x.mirror = g.mirror AND x.row_id = g.row_id
    )
    -- What was seen meanwhile was no news beside the value that is gone; read again, it is.
    UPDATE crm.field_state s SET state = (s.state - 'clock') || jsonb_build_object('sides', (
        SELECT jsonb_agg(e.side - 'seen' ORDER BY e.n) FROM jsonb_array_elements(s.state -> 'sides') WITH ORDINALITY AS e (side, n)))
    FROM gone g
    WHERE s.entity = g.entity AND s.state @? '$.sides[*].sent[*] ? (@.sent == "queued")';
    DELETE FROM crm.change_tx t WHERE t.tx = reject.tx;
    -- Makes the worker look for what to read.
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN format('%s writes of transaction %s are dropped, %s rows looked at for their old values; what was changed again since stays', asked, tx, restored);
END $$;

COMMENT ON FUNCTION crm.reject(bigint) IS 'Drops what the guard holds of a transaction and puts the old values back where nothing changed since; deleted rows come back, inserted ones go.';

CREATE OR REPLACE FUNCTION crm.resolve_create(write bigint, outcome text, record_id text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w     crm.write;
    known text[] := (SELECT array_agg(x.id::text ORDER BY x.id) FROM crm.write x WHERE x.state = 'held' AND x.error_code = 'unknown_create');
BEGIN
    SELECT x.* INTO w FROM crm.write x WHERE x.id = write AND x.state = 'held' AND x.error_code = 'unknown_create' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no create % whose outcome is unknown', coalesce(write::text, 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'None waits.' ELSE 'Waiting are: ' || array_to_string(known[1:20], ', ') || '.' END,
                  HINT = 'SELECT * FROM crm.held WHERE tx IS NULL; shows them with what to call.';
    ELSIF outcome IS NULL OR outcome NOT IN ('made', 'not made') THEN
        RAISE EXCEPTION 'outcome cannot be %', coalesce(quote_literal(outcome), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected made (with the id of the record) or not made.', HINT = 'Look for the record in the CRM first: a create that is sent again makes a second one.';
    ELSIF (outcome = 'made') <> (coalesce(record_id, '') <> '') THEN
        RAISE EXCEPTION 'outcome "%" goes % a record id', outcome, CASE outcome WHEN 'made' THEN 'with' ELSE 'without' END
            USING ERRCODE = '22023', DETAIL = format('Got %s.', coalesce(quote_literal(record_id), 'null')), HINT = format('SELECT crm.resolve_create(%s, ''made'', ''the id that the CRM shows''); or SELECT crm.resolve_create(%1$s, ''not made'');', write);
    END IF;
    DELETE FROM crm.review_item r WHERE r.mirror = w.mirror AND r.row_id = w.row_id AND r.link IS NULL AND r.field IS NULL;
    -- The worker reads the record before it believes in it.
    UPDATE crm.write x SET state = CASE outcome WHEN 'made' THEN 'unknown' ELSE 'queued' END, record_id = resolve_create.record_id, attempts = 0, not_before = NULL,
           status = NULL, error_class = NULL, error_code = NULL, error = NULL, advice = NULL
    WHERE x.id = w.id;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN CASE outcome WHEN 'made' THEN format('record %s is read and becomes the record of %s row %s; if the CRM does not show it, the question comes back in crm.held', record_id, crm._table_of(w.mirror), w.row_id)
                        ELSE format('the create of %s row %s is sent again', crm._table_of(w.mirror), w.row_id) END;
END $$;

COMMENT ON FUNCTION crm.resolve_create(bigint, text, text) IS 'Answers what became of a create whose answer was lost (crm.held, tx null): made, with the id of the record, or not made, so that it is sent again.';

COMMENT ON FUNCTION crm.wait_synced(interval) IS 'Returns when the CRMs have confirmed what this session''s last transaction changed; raises with the CRM''s words if they refused.';

COMMENT ON FUNCTION crm._dead_ids(bigint[], text) IS 'Checks ids of dead letters; null stands for all of a direction.';

COMMENT ON FUNCTION crm.dead_letter_retry(bigint[], text) IS 'Tries dead letters again, all of a direction (out, in) or those named; returns how many. Correct the cause first.';

COMMENT ON FUNCTION crm.dead_letter_discard(bigint[], text) IS 'Gives dead letters up, all of a direction (out, in) or those named; returns how many. The row keeps its value, the CRM its own.';

COMMENT ON FUNCTION crm.webhook(text, text, text, jsonb, bytea) IS 'Takes a webhook as received and returns 202; the worker checks its signature. SQLSTATEs PT400, PT404, PT413, PT429 become those HTTP statuses in PostgREST.';

COMMENT ON FUNCTION crm.webhook(text, text, text, jsonb, text) IS 'The same for a body in text.';

CREATE UNIQUE INDEX review_item_field ON crm.review_item (entity, field) WHERE kind = 'field';

CREATE UNIQUE INDEX review_item_asked ON crm.review_item (kind, link, mirror, row_id) NULLS NOT DISTINCT WHERE kind <> 'field';

CREATE INDEX review_item_answered ON crm.review_item (id) WHERE resolution IS NOT NULL;

COMMENT ON TABLE crm.review_item IS 'Open questions, one row each; answered ones leave and stand in crm.event. See the view crm.review, through which they are answered.';

COMMENT ON COLUMN crm.review_item.field IS 'Name of the field as policies call it; own_field is its name in the mirror of the row.';

COMMENT ON COLUMN crm.review_item.rule IS 'crm.conflict_policy.id of the row that asks; null if none does.';

COMMENT ON COLUMN crm.review_item.resolved_by IS 'session_user of the answer; resolved_with is its application_name, resolved_why its pg_crm_sync.reason.';

COMMENT ON COLUMN crm.review_item.answer_mirror IS 'Mirror in whose types the answer''s value is.';

SELECT pg_catalog.pg_extension_config_dump('crm.review_item', '');

SELECT pg_catalog.pg_extension_config_dump('crm.review_item_id_seq', '');

CREATE OR REPLACE FUNCTION crm._review_answers(kind text, candidates jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE kind
        WHEN 'field' THEN ARRAY(SELECT DISTINCT coalesce(c ->> 'origin', c ->> 'table') FROM jsonb_array_elements(candidates) AS c ORDER BY 1) || ARRAY['value']
        WHEN 'match' THEN ARRAY['match', 'separate']
        WHEN 'create' THEN ARRAY['made', 'retry', 'discard']
        WHEN 'merge' THEN ARRAY['separate', 'delete']
        ELSE ARRAY['delete', 'keep'] END
$$;

COMMENT ON FUNCTION crm._review_answers(text, jsonb) IS 'What may be said to a question: names of sides, or words.';

CREATE VIEW crm.review AS
SELECT r.id, r.kind, r.link, format('%I.%I', m.schema_name, m.table_name) AS mirror, r.row_id, r.entity, r.field, r.reason, r.rule, r.candidates,
       crm._review_answers(r.kind, r.candidates) AS answers, r.opened_at, r.changed_at, r.resolution, r.value, r.resolved_by, r.resolved_at
FROM crm.review_item r LEFT JOIN crm.mirror m ON m.id = r.mirror;

COMMENT ON VIEW crm.review IS 'Questions that only a person can answer: conflicts whose policy is review, ambiguous matches, deletes against updates, merges. One row per open question with all candidates; answer with UPDATE crm.review SET resolution = (one of answers), value = …, or crm.review_resolve.';

COMMENT ON COLUMN crm.review.candidates IS 'For a field: who wrote which value where and when. For records: _ids of the left and right mirror, or what else there is to know.';

COMMENT ON COLUMN crm.review.answers IS 'What resolution may be set to: a side takes its candidate; value takes column value, null being blank.';

COMMENT ON COLUMN crm.review.resolution IS 'The answer. The worker acts on it and takes the row away; until then it can be changed or set to null.';

CREATE OR REPLACE FUNCTION crm._to_text(column_type text, expr text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE column_type
        WHEN 'timestamp with time zone' THEN format('to_char((%s) AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'')', expr)
        WHEN 'text[]' THEN format('array_to_string(%s, '';'')', expr)
        ELSE format('(%s)::text', expr) END
$$;

COMMENT ON FUNCTION crm._to_text(text, text) IS 'SQL text that turns the value of a column into canonical text.';

CREATE OR REPLACE FUNCTION crm._review_refused(mirror integer, given text, val text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN c.read_only THEN NULL
        WHEN val IS NULL AND c.required THEN 'it must not be blank'
        WHEN c.field_type = 'text' AND length(val) > c.max_length THEN format('it is longer than %s characters', c.max_length)
        WHEN f.restricted AND jsonb_array_length(f.options) > 0 AND EXISTS (
            SELECT FROM unnest(CASE c.field_type WHEN 'multi_choice' THEN string_to_array(val, ';') ELSE ARRAY[val] END) AS part
            WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(f.options) AS o WHERE o ->> 'value' = part)) AND val IS NOT NULL
        THEN 'it is not one of: ' || left((SELECT string_agg(o ->> 'value', ', ') FROM jsonb_array_elements(f.options) AS o), 200) END
    FROM crm.mirror m JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = given
    LEFT JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object AND f.field = c.field
    WHERE m.id = $1
$$;

COMMENT ON FUNCTION crm._review_refused(integer, text, text) IS 'Why a field of a CRM would not take a value, as far as its catalog says.';

CREATE OR REPLACE FUNCTION crm._review_image_missing(from_mirror integer, given text, val text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f     record;
    parts text[];
    image text;
    wrong text;
BEGIN
    FOR f IN
        SELECT x.value_map AS map, x.right_field AS field, k.right_mirror AS mirror, x.to_right AS transform, false AS inverse
        FROM crm.field_map x JOIN crm.link k ON k.name = x.link WHERE k.left_mirror = from_mirror AND x.left_field = given AND x.direction <> 'to_left'
        UNION ALL
        SELECT x.value_map, x.left_field, k.left_mirror, x.to_left, true
        FROM crm.field_map x JOIN crm.link k ON k.name = x.link WHERE k.right_mirror = from_mirror AND x.right_field = given AND x.direction <> 'to_right'
    LOOP
        CONTINUE WHEN val IS NULL OR f.transform <> 'identity';
        image := val;
        IF f.map IS NOT NULL THEN
            parts := CASE WHEN f.map ? val OR f.inverse AND EXISTS (SELECT FROM jsonb_each_text(f.map) AS e (l, r) WHERE r = val) THEN ARRAY[val] ELSE string_to_array(val, ';') END;
            SELECT string_agg(CASE WHEN f.inverse THEN (SELECT e.l FROM jsonb_each_text(f.map) AS e (l, r) WHERE e.r = p LIMIT 1) ELSE f.map ->> p END, ';' ORDER BY n)
            INTO image FROM unnest(parts) WITH ORDINALITY AS u (p, n)
            HAVING count(*) = count(CASE WHEN f.inverse THEN (SELECT e.l FROM jsonb_each_text(f.map) AS e (l, r) WHERE e.r = p LIMIT 1) ELSE f.map ->> p END);
            IF image IS NULL THEN
                RETURN format('%s.%s has no counterpart for it in the value map', crm._table_of(f.mirror), f.field);
            END IF;
        END IF;
        wrong := crm._review_refused(f.mirror, f.field, image);
        IF wrong IS NOT NULL AND wrong NOT LIKE 'it is longer%' THEN
            RETURN format('%s.%s would not take it: %s', crm._table_of(f.mirror), f.field, wrong);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._review_image_missing(integer, text, text) IS 'Why a value of one side cannot be shown on a side linked with it; null if it can.';

CREATE OR REPLACE FUNCTION crm._review_value(q crm.review_item, mirror integer, given text, val text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' AS $$
DECLARE
    m         crm.mirror;
    c         crm.mirror_column;
    type      text;
    canonical text;
    wrong     text;
BEGIN
    SELECT x.* INTO m FROM crm.mirror x WHERE x.id = _review_value.mirror;
    SELECT x.* INTO c FROM crm.mirror_column x WHERE x.mirror = m.id AND x.field = given;
    SELECT format_type(a.atttypid, a.atttypmod) INTO type FROM pg_attribute a
    WHERE a.attrelid = crm._relation_of(m.schema_name, m.table_name) AND a.attname = c.column_name AND NOT a.attisdropped;
    BEGIN
        EXECUTE 'SELECT ' || crm._to_text(coalesce(type, 'text'), crm._from_text(coalesce(type, 'text'), '$1')) INTO canonical USING nullif(val, '');
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        RAISE EXCEPTION '% is no value for field "%"', quote_literal(left(val, 100)), q.field
            USING ERRCODE = '22023', DETAIL = format('Column %s of %I.%I is of type %s: %s.', c.column_name, m.schema_name, m.table_name, type, sqlerrm),
                  HINT = 'Give it as the column would take it.';
    END;
    wrong := coalesce(CASE WHEN crm._review_refused(m.id, given, canonical) IS NOT NULL
                           THEN format('%I.%I would not take it: %s', m.schema_name, m.table_name, crm._review_refused(m.id, given, canonical)) END,
                      crm._review_image_missing(m.id, given, canonical));
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '% cannot stand in field "%" on every side', coalesce(quote_literal(left(canonical, 100)), 'blank'), q.field
            USING ERRCODE = '22023', DETAIL = wrong || '.', HINT = 'Choose another value, or add it to value_map of crm.field_map or to the CRM''s list first.';
    END IF;
    RETURN canonical;
END $$;

COMMENT ON FUNCTION crm._review_value(crm.review_item, integer, text, text) IS 'Canonical text of an answer''s value, or an error if a side could not hold it.';

CREATE OR REPLACE FUNCTION crm._review_pair(q crm.review_item, given text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     crm.link := crm._link_named(q.link);
    ids   text[] := regexp_split_to_array(btrim(coalesce(given, '')), '\s*[,=]\s*');
    l     jsonb := q.candidates -> 'left';
    r     jsonb := q.candidates -> 'right';
    tied  text;
    pair  bigint[];
BEGIN
    -- One id is enough where the other side has one candidate.
    IF cardinality(ids) = 1 AND jsonb_array_length(l) = 1 AND NOT l @> coalesce(to_jsonb(substring(ids[1] FROM '^\d{1,18}$')::bigint), 'null') THEN
        ids := ARRAY[l ->> 0, ids[1]];
    ELSIF cardinality(ids) = 1 AND jsonb_array_length(r) = 1 THEN
        ids := ARRAY[ids[1], r ->> 0];
    END IF;
    IF cardinality(ids) = 2 AND ids[1] ~ '^\d{1,18}$' AND ids[2] ~ '^\d{1,18}$' THEN
        pair := ids::bigint[];
    END IF;
    IF pair IS NULL OR NOT (l @> to_jsonb(pair[1]) AND r @> to_jsonb(pair[2])) THEN
        RAISE EXCEPTION 'rows % are not candidates of question %', coalesce(quote_literal(given), 'null'), q.id
            USING ERRCODE = '22023', DETAIL = format('Candidates are: left %s, right %s.', l, r),
                  HINT = 'Name one _id of each side: value = ''left,right'', or crm.review_match(id, left, right).';
    END IF;
    SELECT string_agg(format('%s row %s', crm._table_of(a.mirror), a.row_id), ', ') INTO tied
    FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.merged_into IS NULL
    WHERE (a.mirror, a.row_id, b.mirror) IN ((k.left_mirror, pair[1], k.right_mirror), (k.right_mirror, pair[2], k.left_mirror)) AND a.merged_into IS NULL;
    IF tied IS NOT NULL THEN
        RAISE EXCEPTION 'a record is one with another one already: %', tied
            USING ERRCODE = '55000', DETAIL = 'A record has one counterpart.', HINT = 'Merge the two records of one side in their CRM, or answer ''separate'' to let them be two.';
    END IF;
    RETURN format('%s,%s', pair[1], pair[2]);
END $$;

COMMENT ON FUNCTION crm._review_pair(crm.review_item, text) IS 'The two rows that an answer calls one, as "left,right", or an error if they cannot be.';

CREATE OR REPLACE FUNCTION crm._review_answer(review bigint, resolution text, value text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    q       crm.review_item;
    side    jsonb;
    target  integer;
    word    text := resolution;
    chosen  text := value;
    answers text[];
BEGIN
    SELECT r.* INTO q FROM crm.review_item r WHERE r.id = review FOR UPDATE;
    IF q.id IS NULL THEN
        RAISE EXCEPTION 'no open question %', coalesce(review::text, 'null')
            USING ERRCODE = '42704', DETAIL = format('%s questions wait.', (SELECT count(*) FROM crm.review_item)),
                  HINT = 'SELECT id, reason, candidates, answers FROM crm.review; answered ones stand in crm.review_history.';
    ELSIF word IS NULL AND chosen IS NULL THEN
        UPDATE crm.review_item r SET resolution = NULL, value = NULL, answer_mirror = NULL, resolved_by = NULL, resolved_at = NULL WHERE r.id = q.id;
        RETURN;
    END IF;
    answers := crm._review_answers(q.kind, q.candidates);
    word := coalesce(word, CASE q.kind WHEN 'field' THEN 'value' WHEN 'match' THEN 'match' END);
    target := q.mirror;
    IF q.kind = 'field' AND word <> 'value' THEN
        SELECT c INTO side FROM jsonb_array_elements(q.candidates) AS c
        WHERE word IN (c ->> 'origin', c ->> 'table') ORDER BY c ->> 'origin' = word DESC, c ->> 'at' DESC NULLS LAST LIMIT 1;
    END IF;
    IF word IS NULL OR side IS NULL AND word <> ALL (answers) THEN
        RAISE EXCEPTION '% is no answer to question %', coalesce(quote_literal(word), 'null'), q.id
            USING ERRCODE = '22023', DETAIL = format('The question: %s. Answers are: %s.', q.reason, array_to_string(answers, ', ')),
                  HINT = crm._near_hint(coalesce(word, ''), answers, CASE q.kind WHEN 'field' THEN 'A value of your own: resolution = ''value'', value = ''…''.' ELSE 'See column answers of crm.review.' END);
    ELSIF word = 'made' AND coalesce(chosen, '') = '' THEN
        RAISE EXCEPTION 'answer ''made'' needs the record''s id'
            USING ERRCODE = '22023', DETAIL = 'The worker reads it before it believes in it.', HINT = 'Set value to the id that the CRM shows.';
    ELSIF chosen IS NOT NULL AND NOT (q.kind = 'field' AND word = 'value' OR q.kind = 'match' AND word = 'match' OR word = 'made') THEN
        RAISE EXCEPTION 'answer % takes no value', quote_literal(word)
            USING ERRCODE = '22023', DETAIL = format('Got %L.', left(chosen, 100)), HINT = 'Leave value null, or set resolution = ''value''.';
    ELSIF side IS NOT NULL THEN
        target := (side ->> 'mirror')::integer;
        chosen := crm._review_value(q, target, side ->> 'field', side ->> 'value');
    ELSIF q.kind = 'field' THEN
        chosen := crm._review_value(q, target, q.own_field, chosen);
    ELSIF word = 'match' THEN
        chosen := crm._review_pair(q, chosen);
    END IF;
    UPDATE crm.review_item r SET resolution = word, value = chosen, answer_mirror = target, resolved_at = clock_timestamp(),
        resolved_by = session_user, resolved_with = nullif(current_setting('application_name', true), ''), resolved_why = nullif(current_setting('pg_crm_sync.reason', true), '')
    WHERE r.id = q.id;
    PERFORM crm._wake();
END $$;

COMMENT ON FUNCTION crm._review_answer(bigint, text, text) IS 'Checks an answer and leaves it for the worker.';

CREATE OR REPLACE FUNCTION crm._review_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_jsonb(new) - ARRAY['resolution', 'value'] <> to_jsonb(old) - ARRAY['resolution', 'value'] THEN
        RAISE EXCEPTION 'of crm.review only resolution and value can be changed'
            USING ERRCODE = '55000', DETAIL = 'The other columns say what the question is.', HINT = 'UPDATE crm.review SET resolution = ''…'' WHERE id = …;';
    END IF;
    PERFORM crm._review_answer(old.id, new.resolution,
        -- The value of an answer given before belongs to that answer.
        CASE WHEN new.value IS DISTINCT FROM old.value OR new.resolution IS NOT DISTINCT FROM old.resolution THEN new.value END);
    RETURN new;
END $$;

COMMENT ON FUNCTION crm._review_update() IS 'Takes UPDATE crm.review as answers.';

CREATE TRIGGER review_update INSTEAD OF UPDATE ON crm.review FOR EACH ROW EXECUTE FUNCTION crm._review_update();

COMMENT ON TRIGGER review_update ON crm.review IS 'Takes UPDATE crm.review as answers.';

CREATE OR REPLACE FUNCTION crm.review_resolve(review bigint, side text DEFAULT NULL, value text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF side IS NULL AND value IS NULL THEN
        RAISE EXCEPTION 'an answer to question % is missing', coalesce(review::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'Both side and value are null.',
                  HINT = 'crm.review_resolve(id, ''hubspot'') takes that side''s value, crm.review_resolve(id, value => ''…'') another; side => ''value'' without value is blank.';
    END IF;
    PERFORM crm._review_answer(review, side, value);
    RETURN (SELECT format('question %s: %s%s, for the worker to carry out', r.id, r.resolution, CASE WHEN r.kind = 'field' THEN coalesce(format(' (%s)', r.value), ' (blank)') ELSE '' END)
            FROM crm.review_item r WHERE r.id = review);
END $$;

COMMENT ON FUNCTION crm.review_resolve(bigint, text, text) IS 'Answers a question of crm.review: with a side''s value or one of the words in its column answers, or with a value of your own.';

CREATE OR REPLACE FUNCTION crm.review_match(review bigint, "left" bigint, "right" bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    q crm.review_item;
BEGIN
    SELECT r.* INTO q FROM crm.review_item r WHERE r.id = review;
    IF q.id IS NULL OR q.kind <> 'match' THEN
        RAISE EXCEPTION 'no question % about which records match', coalesce(review::text, 'null')
            USING ERRCODE = '42704', DETAIL = format('%s questions wait.', (SELECT count(*) FROM crm.review_item)), HINT = 'SELECT id, reason, candidates FROM crm.review WHERE kind = ''match'';';
    END IF;
    PERFORM crm._review_answer(review, 'match', format('%s,%s', "left", "right"));
    RETURN format('left row %s and right row %s of link "%s" are one from now on; what differs stays until one side changes', "left", "right", q.link);
END $$;

COMMENT ON FUNCTION crm.review_match(bigint, bigint, bigint) IS 'Answers a question of crm.review about which records match: these two rows (_id of the left and of the right mirror, from its candidates) are one thing.';

CREATE VIEW crm.review_history AS
SELECT e.seq, e.occurred_at AS resolved_at, e.actor AS resolved_by, e.reason AS because, d -> 'question' ->> 'kind' AS kind, format('%I.%I', m.schema_name, m.table_name) AS mirror,
       e.row_id, e.record_id, e.entity, d ->> 'field' AS field, d -> 'question' ->> 'reason' AS reason, (d -> 'question' ->> 'rule')::bigint AS rule,
       d -> 'question' -> 'candidates' AS candidates, (d -> 'question' ->> 'opened_at')::timestamptz AS opened_at,
       d -> 'question' ->> 'resolution' AS resolution, d ->> 'value' AS value, d -> 'losers' AS lost, d ->> 'held' AS held
FROM crm.event e LEFT JOIN crm.mirror m ON m.id = e.mirror,
     LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(e.decision) = 'array' THEN e.decision ELSE '[]' END) AS d
WHERE e.kind = 'resolved';

COMMENT ON VIEW crm.review_history IS 'Questions that people have answered: who, when, what was asked and what was said, and the values that lost. Kept as long as crm.event.';

CREATE TABLE crm.erased (
    mirror    integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    record    bytea NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mirror, record)
);

COMMENT ON TABLE crm.erased IS 'Tombstones of erased records: a keyed hash of the record id, so that a late event or page does not bring the person back.';

SELECT pg_catalog.pg_extension_config_dump('crm.erased', '');

CREATE OR REPLACE FUNCTION crm._erased_hash(mirror integer, record text) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(convert_to(concat_ws('/', (SELECT i.id FROM crm.installation i), mirror, record), 'UTF8'))
$$;

COMMENT ON FUNCTION crm._erased_hash(integer, text) IS 'The tombstone of a record id, see crm.erased.';

CREATE OR REPLACE FUNCTION crm._erase(mirror integer, row_ids bigint[], records text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    entities bigint[];
    ids      text[];
BEGIN
    SELECT array_agg(DISTINCT x.entity) INTO entities FROM (
        SELECT x.entity FROM crm.xref x WHERE x.mirror = _erase.mirror AND x.row_id = ANY (row_ids)
        UNION SELECT e.entity FROM crm.event e WHERE e.mirror = _erase.mirror AND e.row_id = ANY (row_ids) AND e.entity IS NOT NULL
        UNION SELECT w.entity FROM crm.write w WHERE w.mirror = _erase.mirror AND w.row_id = ANY (row_ids) AND w.entity IS NOT NULL) x;
    SELECT array_agg(DISTINCT e.record_id) INTO ids FROM crm.event e WHERE e.mirror = _erase.mirror AND e.row_id = ANY (row_ids) AND e.record_id IS NOT NULL;
    ids := coalesce(ids, '{}') || coalesce(records, '{}');
    UPDATE crm.event e SET record_id = CASE WHEN e.mirror = _erase.mirror AND cardinality(records) > 0 THEN NULL ELSE e.record_id END,
           actor = NULL, application = NULL, reason = NULL, old_values = NULL, new_values = NULL, decision = NULL, carried = NULL
    WHERE e.mirror = _erase.mirror AND (e.row_id = ANY (row_ids) OR e.record_id = ANY (ids)) OR e.entity = ANY (entities);
    DELETE FROM crm.field_state s WHERE s.entity = ANY (entities);
    DELETE FROM crm.write w WHERE w.kind <> 'delete' AND (w.mirror = _erase.mirror AND w.row_id = ANY (row_ids) OR w.entity = ANY (entities));
    DELETE FROM crm.review_item r WHERE r.kind <> 'erase' AND (r.entity = ANY (entities) OR r.mirror = _erase.mirror AND r.row_id = ANY (row_ids)
        OR r.kind = 'match' AND EXISTS (SELECT FROM crm.link k, unnest(row_ids) AS i WHERE k.name = r.link
               AND (k.left_mirror = _erase.mirror AND r.candidates -> 'left' @> to_jsonb(i) OR k.right_mirror = _erase.mirror AND r.candidates -> 'right' @> to_jsonb(i))));
    DELETE FROM crm.deferred d WHERE d.mirror = _erase.mirror AND d.record_id = ANY (ids);
    DELETE FROM crm.poison p WHERE p.mirror = _erase.mirror AND (p.record_id = ANY (ids) OR p.source = 'sql' AND p.record_id = ANY (row_ids::text[]));
END $$;

COMMENT ON FUNCTION crm._erase(integer, bigint[], text[]) IS 'Forgets the values that the engine''s tables hold of rows and records, and of what they are one with.';

CREATE OR REPLACE FUNCTION crm.erase(mirror text, id text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m crm.mirror := crm._mirror_named(mirror);
BEGIN
    IF coalesce(id, '') = '' THEN
        RAISE EXCEPTION 'no record is named'
            USING ERRCODE = '22004', DETAIL = 'The id is null or empty.', HINT = 'Give the CRM''s record id, as in column id of the mirror.';
    END IF;
    INSERT INTO crm.deferred (mirror, record_id, source, change, reason)
    VALUES (m.id, id, 'sql', jsonb_build_object('object', m.object, 'record_id', id, 'kind', jsonb_build_object('kind', 'privacy_delete'), 'fields', '[]'::jsonb,
            'reread', '[]'::jsonb, 'occurred_at', (extract(epoch FROM now()) * 1000)::bigint, 'identity', '', 'actor', session_user, 'mark', '', 'transaction', NULL), 'locked');
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN format('record %s of %s is being forgotten; the record in the CRM itself is not touched', id, crm._table_of(m.id));
END $$;

COMMENT ON FUNCTION crm.erase(text, text) IS 'Forgets a record of a mirror as if its CRM had erased it for privacy: values leave row, ledger, outbox, dead letters and questions, and it cannot come back. The CRM''s own record is not touched.';

COMMENT ON FUNCTION crm._catalog_wait(text, oid, text[], interval) IS 'Waits, bounded, until the worker has fetched the fields of these objects.';

COMMENT ON FUNCTION crm._object_checked(text, text) IS 'Resolves an object of the catalog by name or type id or raises, naming near matches.';

COMMENT ON FUNCTION crm._per_object(jsonb, text, text[], text) IS 'The part of a per-object argument that is meant for one object.';

COMMENT ON FUNCTION crm._wanted_fields(text, text, jsonb) IS 'Checks an allow-list of fields against the catalog; null stands for all.';

COMMENT ON FUNCTION crm._system_field(text) IS 'Whether a field is held by id, _remote_modified_at, _deleted_at or belongs to pg_crm_sync, so that it gets no column of its own.';

COMMENT ON FUNCTION crm._new_columns(crm.mirror, text[]) IS 'Columns that a mirror lacks, with names that collide with nothing.';

CREATE OR REPLACE FUNCTION crm._mirror_table(m crm.mirror, object_label text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text := format('%I.%I', m.schema_name, m.table_name);
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
    EXECUTE format('COMMENT ON TABLE %s IS %L', t, format('%s of server %s, kept in step with the CRM by pg_crm_sync.', object_label, m.server));
    EXECUTE format('COMMENT ON COLUMN %s._id IS %L', t, 'Our own key: stable, also before the CRM knows the record.');
    EXECUTE format('COMMENT ON COLUMN %s.id IS %L', t, 'The CRM''s record id; null until the record is made there.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_source IS %L', t, 'Who made the last change: a server, local, or a named application.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_state IS %L', t, 'Exceptions only: held, error, deleted, soft_deleted (its linked record is), erased; see crm.sync_state for pending.');
    EXECUTE format('COMMENT ON COLUMN %s._sync_error IS %L', t, 'Why, in the CRM''s words.');
    EXECUTE format('COMMENT ON COLUMN %s._remote_modified_at IS %L', t, 'Last change in the CRM, by the CRM''s clock.');
    EXECUTE format('COMMENT ON COLUMN %s._deleted_at IS %L', t, 'When the record was deleted in the CRM; the row stays.');
END $$;

COMMENT ON FUNCTION crm._mirror_table(crm.mirror, text) IS 'Creates the table of a mirror with its system columns; runs as the caller, who becomes its owner.';

COMMENT ON FUNCTION crm._mirror_columns_add(crm.mirror, text[]) IS 'Adds the columns that a mirror lacks; returns how many.';

COMMENT ON FUNCTION crm._row_filter_checked(regclass, text) IS 'Checks a row filter against the mirror''s columns and returns its canonical text.';

COMMENT ON FUNCTION crm._mirror_upsert(text, crm.remote_object, name, interval) IS 'Finds or makes the mirror of an object.';

COMMENT ON FUNCTION crm._import_one(text, text, name, jsonb, text, interval) IS 'Imports one object: table, columns, capture, backfill order.';

COMMENT ON FUNCTION crm._import_arguments(text[], name, jsonb, interval) IS 'Raises on arguments of crm.import that cannot be meant.';

COMMENT ON FUNCTION crm.import(text, text[], name, jsonb, jsonb, interval, interval) IS 'Makes mirrors of CRM objects in a schema and orders their first copy. Importing again is harmless and adds the columns newly asked for.';

COMMENT ON FUNCTION crm.mirror_drop(text, boolean) IS 'Undoes crm.import for one mirror: stops the sync, forgets unsent changes, and drops the table unless told to keep it. Nothing changes in the CRM.';

COMMENT ON FUNCTION crm.server_check(text, interval) IS 'Tries the server as the worker sees it: host, TLS, credentials, scopes, limits, streams; one row each with what to do where it fails.';

COMMENT ON FUNCTION crm.fence_status() IS 'Whether this very cluster may write to the CRMs: active; never (not activated yet); inert (a copy, a restored backup or a promoted standby of one that may), and why.';

COMMENT ON FUNCTION crm.activate() IS 'Lets this very cluster write to the CRMs, and no copy of it. crm.import does it the first time; it is needed again after a restore, a failover or a move: make sure that the original is gone, or both will write.';

CREATE TABLE crm.ledger_state (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    dropped_to    bigint NOT NULL,
    dropped_until timestamptz NOT NULL
);

COMMENT ON TABLE crm.ledger_state IS 'One row as soon as retention has dropped something: how far crm.event was dropped.';

COMMENT ON COLUMN crm.ledger_state.dropped_to IS 'Events up to this number were dropped.';

COMMENT ON COLUMN crm.ledger_state.dropped_until IS 'When the last of them had been decided.';

COMMENT ON FUNCTION crm._span(timestamptz) IS 'How long ago.';

CREATE OR REPLACE FUNCTION crm._keep(setting text) RETURNS interval
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT nullif(current_setting('pg_crm_sync.' || setting)::interval, interval '0')
$$;

COMMENT ON FUNCTION crm._keep(text) IS 'A setting of time as an interval; null where 0 stands for no limit.';

CREATE OR REPLACE FUNCTION crm._event_partitions() RETURNS TABLE (relid oid, low bigint, high bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid, b[1]::bigint, b[2]::bigint
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
         regexp_match(pg_get_expr(c.relpartbound, c.oid), $r$FROM \('?(\d+)'?\) TO \('?(\d+)'?\)$r$) AS b
    WHERE i.inhparent = 'crm.event'::regclass AND NOT i.inhdetachpending
    ORDER BY 2
$$;

COMMENT ON FUNCTION crm._event_partitions() IS 'The partitions of crm.event with the numbers that they hold, low to below high.';

CREATE OR REPLACE FUNCTION crm._event_partition_ensure(span bigint DEFAULT 1000000) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next_seq bigint := (SELECT last_value FROM crm.event_seq) + 1;
    keep     interval := crm._keep('retention');
    part     bigint;
    began    timestamptz;
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    IF keep IS NOT NULL THEN
        SELECT e.received_at INTO began FROM crm.event e WHERE e.seq >= next_seq / span * span ORDER BY e.seq LIMIT 1;
        IF began < now() - keep / 8 THEN
            next_seq := (next_seq / span + 1) * span;
            PERFORM setval('crm.event_seq', next_seq - 1);
        END IF;
    END IF;
    FOREACH part IN ARRAY ARRAY[next_seq / span, next_seq / span + 1] LOOP
        IF to_regclass(format('crm.event_%s', part)) IS NULL THEN
            EXECUTE format('CREATE TABLE crm.event_%s PARTITION OF crm.event FOR VALUES FROM (%s) TO (%s)',
                           part, part * span, (part + 1) * span);
            EXECUTE format('CREATE INDEX event_%s_row ON crm.event_%s (mirror, row_id)', part, part);
            EXECUTE format('CREATE INDEX event_%s_seq ON crm.event_%s (seq)', part, part);
            EXECUTE format('COMMENT ON TABLE crm.event_%s IS %L', part, 'Part of crm.event.');
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._event_partition_ensure(bigint) IS 'Makes the current and the next partition of crm.event; called by the worker.';

CREATE OR REPLACE FUNCTION crm._event_retain(keep interval DEFAULT crm._keep('retention'), at_most interval DEFAULT crm._keep('retention_max')) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    current_seq bigint := (SELECT last_value FROM crm.event_seq);
    wanted      bigint := (SELECT min(o.committed) FROM crm.consumer_offset o);
    p           record;
    last        record;
BEGIN
    IF keep IS NULL AND at_most IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO p FROM crm._event_partitions() x ORDER BY x.low LIMIT 1;
    IF NOT FOUND OR p.high > current_seq THEN
        RETURN NULL;
    END IF;
    SELECT e.seq, e.received_at INTO last FROM crm.event e WHERE e.seq >= p.low AND e.seq < p.high ORDER BY e.seq DESC LIMIT 1;
    IF last.seq IS NOT NULL AND NOT coalesce(last.received_at < now() - at_most, false)
       AND (coalesce(last.received_at >= now() - keep, true) OR wanted < last.seq) THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('lock_timeout', '500ms', true);
    EXECUTE format('DROP TABLE %s', p.relid::regclass);
    INSERT INTO crm.ledger_state AS s (dropped_to, dropped_until) SELECT last.seq, last.received_at WHERE last.seq IS NOT NULL
    ON CONFLICT (only_one) DO UPDATE SET dropped_to = greatest(s.dropped_to, excluded.dropped_to), dropped_until = greatest(s.dropped_until, excluded.dropped_until);
    RETURN format('%s to %s', p.low, p.high - 1);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END $$;

COMMENT ON FUNCTION crm._event_retain(interval, interval) IS 'Drops the oldest partition of crm.event if all in it is older than keep and committed by every consumer, or older than at_most; called by the worker. Says what it dropped.';

CREATE OR REPLACE FUNCTION crm._event_seen_forget(slice integer DEFAULT extract(minute FROM now())::integer, slices integer DEFAULT 60) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low  CONSTANT uuid := rpad(lpad(to_hex(slice * 256 / slices), 2, '0'), 32, '0');
    high CONSTANT uuid := rpad(lpad(to_hex((slice + 1) * 256 / slices - 1), 2, '0'), 32, 'f');
    n    bigint;
BEGIN
    DELETE FROM crm.event_seen s WHERE s.identity >= low AND s.identity <= high AND s.seen_on < current_date - 4;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

COMMENT ON FUNCTION crm._event_seen_forget(integer, integer) IS 'Forgets identities of events that can come no more, one slice of them; called by the worker.';

CREATE OR REPLACE FUNCTION crm._event_seq_at(at timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low   bigint := coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq LIMIT 1), 1);
    high  bigint := coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq DESC LIMIT 1), 0) + 1;
    mid   bigint;
    probe record;
BEGIN
    -- Numbers and times rise together: one session gives both.
    WHILE low < high LOOP
        mid := low + (high - low) / 2;
        SELECT e.seq, e.received_at INTO probe FROM crm.event e WHERE e.seq >= mid ORDER BY e.seq LIMIT 1;
        IF NOT FOUND OR probe.received_at >= at THEN
            high := mid;
        ELSE
            low := probe.seq + 1;
        END IF;
    END LOOP;
    RETURN low;
END $$;

COMMENT ON FUNCTION crm._event_seq_at(timestamptz) IS 'A number such that all events from it on were decided at or after a time, and none before it was.';

CREATE OR REPLACE FUNCTION crm._record_row(m crm.mirror, id text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r     bigint;
    known text[];
BEGIN
    IF id ~ '^#\d{1,18}$' THEN
        r := substr(id, 2)::bigint;
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO r USING r;
        IF r IS NULL AND EXISTS (SELECT FROM crm.event e WHERE e.mirror = m.id AND e.row_id = substr(_record_row.id, 2)::bigint) THEN
            RETURN substr(id, 2)::bigint;
        END IF;
    ELSE
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t.id = $1', m.schema_name, m.table_name) INTO r USING id;
        IF r IS NULL AND id IS NOT NULL THEN
            -- The row is gone; the ledger may remember it.
            SELECT e.row_id INTO r FROM crm.event e WHERE e.mirror = m.id AND e.record_id = _record_row.id AND e.row_id IS NOT NULL ORDER BY e.seq DESC LIMIT 1;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM crm.event e WHERE e.mirror = m.id AND e.row_id = r AND e.kind = 'tombstone') THEN
        RETURN coalesce((SELECT e.row_id FROM crm.event e WHERE e.mirror = m.id AND e.record_id = _record_row.id AND e.kind <> 'tombstone' AND e.row_id <> r
                         ORDER BY e.seq DESC LIMIT 1), r);
    ELSIF r IS NULL THEN
        EXECUTE format('SELECT array_agg(x.id) FROM (SELECT t.id FROM %I.%I t WHERE t.id LIKE left($1, 15) || ''%%'' OR left($1, 200) LIKE t.id || ''%%'' OR t.id = btrim($1) ORDER BY 1 LIMIT 3) x',
                       m.schema_name, m.table_name) INTO known USING replace(replace(coalesce(id, ''), '%', ''), '_', '');
        RAISE EXCEPTION 'mirror %.% has no record %', quote_ident(m.schema_name), quote_ident(m.table_name), coalesce(quote_literal(left(id, 100)), 'null')
            USING ERRCODE = '42704', DETAIL = 'Neither the table nor the ledger knows it.',
                  HINT = CASE WHEN known IS NOT NULL AND id <> '' THEN format('Did you mean %s? ', array_to_string(known, ', ')) ELSE '' END
                         || 'Name it by the CRM''s id, or a row that has none by #_id, such as ''#17''.';
    END IF;
    RETURN r;
END $$;

COMMENT ON FUNCTION crm._record_row(crm.mirror, text) IS 'The _id of a record named by the CRM''s id or by #_id, also of one that is gone; raises if nobody knows it.';

CREATE OR REPLACE FUNCTION crm._field_checked(m crm.mirror, given text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hit   text;
    known text[];
BEGIN
    SELECT c.field INTO hit FROM crm.mirror_column c WHERE c.mirror = m.id AND given IN (c.field, c.column_name::text) ORDER BY c.field = given DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT array_agg(c.field ORDER BY c.field) INTO known FROM crm.mirror_column c WHERE c.mirror = m.id;
        RAISE EXCEPTION 'mirror %.% has no field "%"', quote_ident(m.schema_name), quote_ident(m.table_name), given
            USING ERRCODE = '42703', DETAIL = format('It holds %s fields.', coalesce(cardinality(known), 0)),
                  HINT = crm._near_hint(given, known, 'See crm.mirror_column for fields and their columns.');
    END IF;
    RETURN hit;
END $$;

COMMENT ON FUNCTION crm._field_checked(crm.mirror, text) IS 'Resolves a field or column of a mirror or raises, naming near matches.';

CREATE OR REPLACE FUNCTION crm._mapped_fields(mirror integer, field text) RETURNS TABLE (own text, at_mirror integer, as_field text)
LANGUAGE sql STABLE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE pair AS (
        SELECT l.left_mirror AS a, f.left_field AS fa, l.right_mirror AS b, f.right_field AS fb FROM crm.link l JOIN crm.field_map f ON f.link = l.name
        UNION ALL
        SELECT l.right_mirror, f.right_field, l.left_mirror, f.left_field FROM crm.link l JOIN crm.field_map f ON f.link = l.name
    ), reach AS (
        SELECT c.field AS own, c.mirror, c.field FROM crm.mirror_column c
        WHERE c.mirror = _mapped_fields.mirror AND (_mapped_fields.field IS NULL OR c.field = _mapped_fields.field)
        UNION
        SELECT r.own, p.b, p.fb FROM reach r JOIN pair p ON p.a = r.mirror AND p.fa = r.field
    )
    SELECT own, mirror, field FROM reach
$$;

COMMENT ON FUNCTION crm._mapped_fields(integer, text) IS 'A mirror''s fields (or one) and what they are called on it and on every mirror that a map leads to.';

CREATE OR REPLACE FUNCTION crm._record_rows(mirror integer, row_id bigint) RETURNS TABLE (at_mirror integer, at_row bigint)
LANGUAGE sql STABLE ROWS 4 SET search_path = pg_catalog, pg_temp AS $$
    SELECT $1, $2
    UNION
    SELECT y.mirror, y.row_id FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity WHERE x.mirror = $1 AND x.row_id = $2
$$;

COMMENT ON FUNCTION crm._record_rows(integer, bigint) IS 'A row and the rows of other mirrors that are the same thing.';

CREATE OR REPLACE FUNCTION crm._decided(decision jsonb, name text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT j.d FROM jsonb_array_elements(CASE jsonb_typeof(decision) WHEN 'array' THEN decision ELSE '[]' END) AS j (d)
    WHERE coalesce(j.d ->> 'as', j.d ->> 'field') = name LIMIT 1
$$;

COMMENT ON FUNCTION crm._decided(jsonb, text) IS 'What was decided about a field, by its name on the event''s mirror; null if its value simply applied.';

CREATE OR REPLACE FUNCTION crm._outcome(source text, decided jsonb, origin text, new_value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN source = 'result' THEN 'sent'
        WHEN decided IS NULL THEN 'applied'
        WHEN decided ? 'losers' AND EXISTS (SELECT FROM jsonb_array_elements(decided -> 'losers') l
             WHERE l ->> 'origin' = origin AND l ->> 'value' IS NOT DISTINCT FROM new_value AND decided ->> 'value' IS DISTINCT FROM new_value)
            THEN CASE WHEN decided ->> 'step' IN ('stale', 'tombstone', 'too_late') THEN decided ->> 'step'
                      WHEN decided ? 'held' THEN 'review' ELSE 'lost' END
        WHEN decided ->> 'step' IN ('one_side', 'owner', 'fill_blank', 'conflict', 'resolved', 'one_way', 'score', 'merge') THEN 'applied'
        ELSE decided ->> 'step' END
$$;

COMMENT ON FUNCTION crm._outcome(text, jsonb, text, text) IS 'What became of a value: applied, lost, review, sent (by us, confirmed), or the step that found it to be no news (echo, equal, stale, …).';

CREATE OR REPLACE FUNCTION crm.lineage(mirror text, id text, field text DEFAULT NULL)
RETURNS TABLE (seq bigint, at timestamptz, "table" text, record_id text, name text, old_value text, new_value text, stands boolean, outcome text,
               origin text, actor text, application text, reason text, source text, rule bigint, strategy text, policy_version integer, lost jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    m     crm.mirror := crm._mirror_named(lineage.mirror);
    r     bigint := crm._record_row(m, lineage.id);
    f     text := CASE WHEN lineage.field IS NOT NULL THEN crm._field_checked(m, lineage.field) END;
    value text;
BEGIN
    RETURN QUERY
    WITH line AS (
        SELECT e.*, u.name, u.old, u.new, w.own, d.d,
               CASE WHEN u.name IS NULL THEN e.kind ELSE crm._outcome(e.source, d.d, e.origin, u.new) END AS outcome
        FROM crm._record_rows(m.id, r) x
        JOIN crm.event e ON e.mirror = x.at_mirror AND e.row_id = x.at_row
        LEFT JOIN LATERAL unnest(e.fields, e.old_values, e.new_values) AS u (name, old, new) ON true
        LEFT JOIN crm._mapped_fields(m.id, f) w ON w.at_mirror = e.mirror AND w.as_field = u.name
        CROSS JOIN LATERAL crm._decided(e.decision, u.name) AS d (d)
        WHERE w.own IS NOT NULL OR (u.name IS NULL AND f IS NULL)
    ), marked AS (
        SELECT l.*, l.own IS NOT NULL AND l.seq = max(l.seq) FILTER (WHERE l.outcome IN ('applied', 'normal_form') AND l.kind IN ('create', 'update')) OVER (PARTITION BY l.own) AS stands
        FROM line l
    )
    SELECT k.seq, CASE k.source WHEN 'sql' THEN k.occurred_at ELSE k.received_at END, crm._table_of(k.mirror), k.record_id, k.name, k.old, k.new, coalesce(k.stands, false), k.outcome,
           k.origin, k.actor, k.application, k.reason, k.source, (k.d ->> 'rule')::bigint, k.d ->> 'strategy', k.policy_version, k.d -> 'losers'
    FROM marked k ORDER BY k.seq, k.name;
    IF NOT FOUND AND f IS NOT NULL THEN
        EXECUTE format('SELECT t.%s::text FROM %I.%I t WHERE t._id = $1', crm._column_of(m.id, f), m.schema_name, m.table_name) INTO value USING r;
        RETURN QUERY SELECT NULL::bigint, b.finished_at, crm._table_of(m.id), lineage.id, f, NULL::text, value, true,
            CASE WHEN s.dropped_until IS NULL THEN 'first copy' ELSE 'older than the ledger' END, m.server, NULL::text, NULL::text, NULL::text, 'backfill',
            NULL::bigint, NULL::text, NULL::integer, NULL::jsonb
        FROM crm.backfill b LEFT JOIN crm.ledger_state s ON true WHERE b.mirror = m.id;
    END IF;
END $$;

COMMENT ON FUNCTION crm.lineage(text, text, text) IS 'Who set each value of a record (or of one field), on every linked mirror, when, with which program and reason, by which rule, and what lost; stands marks the line whose value is there now.';

CREATE OR REPLACE FUNCTION crm._undrained(mirror integer, row_id bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT crm._tx_has_changes() OR EXISTS (SELECT FROM crm.change_0 c WHERE c.mirror_id = $1 AND c.row_id = $2) OR EXISTS (SELECT FROM crm.change_1 c WHERE c.mirror_id = $1 AND c.row_id = $2)
$$;

COMMENT ON FUNCTION crm._undrained(integer, bigint) IS 'Whether SQL has changed a row and the worker has not taken that up yet; this transaction''s own changes are not even logged.';

CREATE OR REPLACE FUNCTION crm._undo(mirror integer, row_id bigint, at timestamptz)
RETURNS TABLE (seq bigint, since timestamptz, kind text, source text, own boolean, fields text[], old_values text[], unknown text[], carried jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    former bigint[];
BEGIN
    SELECT array_agg(DISTINCT e.entity) INTO former FROM crm.event e
    WHERE e.mirror = _undo.mirror AND e.row_id = _undo.row_id AND e.entity IS NOT NULL
      AND NOT EXISTS (SELECT FROM crm.xref x WHERE x.mirror = e.mirror AND x.row_id = e.row_id AND x.entity = e.entity);
    RETURN QUERY
    SELECT e.seq, CASE e.source WHEN 'sql' THEN e.occurred_at ELSE e.received_at END, e.kind, e.source, true, e.fields, e.old_values, e.unknown, NULL::jsonb
    FROM crm.event e
    WHERE e.mirror = _undo.mirror AND e.row_id = _undo.row_id AND NOT (e.source = 'result' AND e.kind = 'update')
      AND CASE e.source WHEN 'sql' THEN e.occurred_at ELSE e.received_at END > _undo.at
    UNION ALL
    SELECT e.seq, e.received_at, e.kind, e.source, false, NULL, NULL, NULL, e.carried -> _undo.mirror::text
    FROM crm._record_rows(_undo.mirror, _undo.row_id) x JOIN crm.event e ON e.mirror = x.at_mirror AND e.row_id = x.at_row
    WHERE e.carried ? _undo.mirror::text AND e.received_at > _undo.at
    UNION ALL
    SELECT e.seq, e.received_at, e.kind, e.source, false, NULL, NULL, NULL, e.carried -> _undo.mirror::text
    FROM crm.event e
    WHERE former IS NOT NULL AND e.entity = ANY (former) AND e.carried ? _undo.mirror::text AND e.received_at > _undo.at
      AND NOT EXISTS (SELECT FROM crm._record_rows(_undo.mirror, _undo.row_id) x WHERE x.at_mirror = e.mirror AND x.at_row = e.row_id)
    ORDER BY 2 DESC, 1 DESC;
END $$;

COMMENT ON FUNCTION crm._undo(integer, bigint, timestamptz) IS 'What changed a row after a time, newest first, with the values before.';

CREATE OR REPLACE FUNCTION crm._as_of_checked(m crm.mirror, at timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    since timestamptz := greatest((SELECT s.dropped_until FROM crm.ledger_state s), m.created_at);
BEGIN
    IF at IS NULL OR at > clock_timestamp() THEN
        RAISE EXCEPTION 'no record can be shown as of %', coalesce(at::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'The time must be given and lie in the past.', HINT = 'For the record as it is now, read the table.';
    ELSIF at < since THEN
        RAISE EXCEPTION 'the ledger does not reach back to %', at
            USING ERRCODE = '22023', DETAIL = format('What is known of %I.%I begins at %s.', m.schema_name, m.table_name, since),
                  HINT = CASE WHEN since > m.created_at THEN 'Older events were dropped: pg_crm_sync.retention says how long they are kept.'
                              ELSE 'The mirror was made then; its first copy holds what the CRM held, not what was before.' END;
    END IF;
END $$;

COMMENT ON FUNCTION crm._as_of_checked(crm.mirror, timestamptz) IS 'Raises if the ledger does not reach back to a time.';

CREATE OR REPLACE FUNCTION crm._as_of_row(m crm.mirror, now_shown jsonb, field_values jsonb, extra jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result jsonb;
BEGIN
    -- Canonical text to the column's type: PostgreSQL reads all but lists as they are.
    SELECT coalesce(jsonb_object_agg(c.column_name, CASE WHEN c.field_type = 'multi_choice' THEN to_jsonb(string_to_array(v.value, ';')) ELSE to_jsonb(v.value) END), '{}')
    INTO result
    FROM jsonb_each_text(field_values) v JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = v.key;
    EXECUTE format('SELECT to_jsonb(jsonb_populate_record(NULL::%I.%I, $1))', m.schema_name, m.table_name) INTO result USING now_shown || result || extra;
    RETURN (SELECT jsonb_object_agg(e.key, e.value) FROM jsonb_each(result) e
            WHERE e.key IN ('_id', 'id', '_deleted_at') OR EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id AND c.column_name = e.key));
END $$;

COMMENT ON FUNCTION crm._as_of_row(crm.mirror, jsonb, jsonb, jsonb) IS 'A row of a mirror as JSON: as it is, with some fields as the ledger spells them.';

CREATE OR REPLACE FUNCTION crm.record_as_of(mirror text, id text, at timestamptz) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m        crm.mirror := crm._mirror_named(record_as_of.mirror);
    r        bigint := crm._record_row(m, record_as_of.id);
    until    timestamptz := clock_timestamp() + interval '2 seconds';
    shown    jsonb;
    waits    boolean;
    history  jsonb;
    e        record;
    exists_  boolean;
    was      jsonb := '{}';
    extra    jsonb := '{}';
    unknown  text[] := '{}';
BEGIN
    PERFORM crm._as_of_checked(m, record_as_of.at);
    LOOP
        -- One statement, one snapshot: row and ledger fit together.
        EXECUTE format('SELECT (SELECT to_jsonb(t) FROM %I.%I t WHERE t._id = $1), crm._undrained($2, $1), (SELECT jsonb_agg(u ORDER BY u.since DESC, u.seq DESC) FROM crm._undo($2, $1, $3) u)',
                       m.schema_name, m.table_name) INTO shown, waits, history USING r, m.id, record_as_of.at;
        EXIT WHEN NOT waits;
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'the worker has not taken up the last change of this record yet'
                USING ERRCODE = '55006', DETAIL = 'SQL has changed the row, and the ledger does not say so yet.',
                      HINT = 'Commit first if this transaction did; else call again in a moment, and see the worker in crm.status.';
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    exists_ := shown IS NOT NULL;
    FOR e IN SELECT u.* FROM jsonb_to_recordset(history) AS u (seq bigint, kind text, source text, own boolean, fields text[], old_values text[], unknown text[], carried jsonb) LOOP
        IF NOT e.own THEN
            was := was || e.carried;
            unknown := ARRAY(SELECT x FROM unnest(unknown) x WHERE NOT e.carried ? x);
            CONTINUE;
        END IF;
        CASE
            WHEN e.kind = 'create' AND e.source = 'result' THEN extra := extra || '{"id": null}';
            WHEN e.kind IN ('create', 'tombstone') THEN exists_ := false;
            WHEN e.kind = 'restore' THEN unknown := unknown || '_deleted_at'::text;
            WHEN e.kind IN ('delete', 'privacy_delete') AND e.source <> 'sql' THEN
                extra := extra || '{"_deleted_at": null}';
                unknown := array_remove(unknown, '_deleted_at');
            ELSE
                exists_ := exists_ OR e.kind = 'delete';
                was := was || coalesce((SELECT jsonb_object_agg(u.f, u.v) FROM unnest(e.fields, e.old_values) u (f, v)), '{}');
                unknown := ARRAY(SELECT x FROM unnest(unknown) x WHERE x <> ALL (coalesce(e.fields, '{}')))
                           || CASE WHEN e.old_values IS NULL THEN coalesce(e.fields, '{}') ELSE coalesce(e.unknown, '{}') END;
        END CASE;
    END LOOP;
    IF NOT exists_ THEN
        RETURN NULL;
    END IF;
    IF shown IS NULL THEN
        extra := jsonb_build_object('_id', r, 'id', CASE WHEN record_as_of.id NOT LIKE '#%' THEN record_as_of.id END) || extra;
    END IF;
    shown := crm._as_of_row(m, coalesce(shown, '{}'), was, extra);
    -- Better no value than a wrong one.
    SELECT shown - coalesce(array_agg(coalesce(c.column_name::text, x)), '{}') || CASE WHEN count(*) > 0 THEN jsonb_build_object('_unknown', jsonb_agg(coalesce(c.column_name::text, x))) ELSE '{}' END
    INTO shown FROM (SELECT DISTINCT unnest(unknown) AS x) u LEFT JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = u.x;
    RETURN shown;
END $$;

COMMENT ON FUNCTION crm.record_as_of(text, text, timestamptz) IS 'A record as its mirror showed it at a time in the past, from the row as it is and the ledger backwards; null if there was none. Columns whose value then nobody knows are left out and named in _unknown.';

DO $$
BEGIN
    PERFORM pg_catalog.pg_extension_config_dump('crm.ledger_state', '');
END $$;

CREATE TABLE crm.consumer_offset (
    name         text PRIMARY KEY CHECK (name ~ '^[^\s].{0,62}$'),
    owner        name NOT NULL DEFAULT current_user,
    committed    bigint NOT NULL CHECK (committed >= 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    committed_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE crm.consumer_offset IS 'Named readers of crm.event and how far each has come. See the view crm.consumer.';

COMMENT ON COLUMN crm.consumer_offset.owner IS 'The role that made it: its members and crm_operator may read and commit.';

COMMENT ON COLUMN crm.consumer_offset.committed IS 'Events up to this number are done with.';

ALTER TABLE crm.consumer_offset ENABLE ROW LEVEL SECURITY;

CREATE POLICY see ON crm.consumer_offset FOR SELECT USING (true);

CREATE POLICY make ON crm.consumer_offset FOR INSERT WITH CHECK (pg_has_role(current_user, owner, 'MEMBER'));

CREATE POLICY move ON crm.consumer_offset FOR UPDATE USING (pg_has_role(current_user, owner, 'MEMBER') OR pg_has_role(current_user, 'crm_operator', 'MEMBER'));

CREATE POLICY end_it ON crm.consumer_offset FOR DELETE USING (pg_has_role(current_user, owner, 'MEMBER') OR pg_has_role(current_user, 'crm_operator', 'MEMBER'));

CREATE OR REPLACE FUNCTION crm._ledger_end() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT e.seq FROM crm.event e ORDER BY e.seq DESC LIMIT 1), (SELECT s.dropped_to FROM crm.ledger_state s), 0)
$$;

COMMENT ON FUNCTION crm._ledger_end() IS 'Number of the newest event.';

CREATE VIEW crm.consumer AS
SELECT o.name, o.owner, o.committed, d.dropped_to IS NOT NULL AS missed, n.waiting, n.waiting >= 100000 AS more, crm._span(f.received_at) AS lag, o.committed_at, o.created_at,
       CASE WHEN d.dropped_to IS NOT NULL THEN format('Events up to %s were dropped unread. SELECT crm.consumer_commit(%L, %s); goes on behind them.', d.dropped_to, o.name, d.dropped_to) END AS advice
FROM crm.consumer_offset o
LEFT JOIN crm.ledger_state d ON d.dropped_to > o.committed
LEFT JOIN LATERAL (SELECT count(*) AS waiting FROM (SELECT FROM crm.event e WHERE e.seq > o.committed LIMIT 100000) e) n ON true
LEFT JOIN LATERAL (SELECT e.received_at FROM crm.event e WHERE e.seq > o.committed ORDER BY e.seq LIMIT 1) f ON true;

COMMENT ON VIEW crm.consumer IS 'Named consumers of the ledger: how far each has committed, how many events wait for it and since when.';

COMMENT ON COLUMN crm.consumer.missed IS 'Retention (pg_crm_sync.retention_max) has dropped events that it had not committed.';

COMMENT ON COLUMN crm.consumer.waiting IS 'Events behind its offset, counted up to 100,000.';

COMMENT ON COLUMN crm.consumer.more IS 'There are more than waiting counts.';

COMMENT ON COLUMN crm.consumer.lag IS 'How long ago the oldest of them was decided.';

CREATE OR REPLACE FUNCTION crm._consumer_named(name text) RETURNS crm.consumer_offset
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o     crm.consumer_offset;
    known text[];
BEGIN
    SELECT x.* INTO o FROM crm.consumer_offset x WHERE x.name = _consumer_named.name;
    IF NOT FOUND THEN
        SELECT array_agg(x.name ORDER BY x.name) INTO known FROM crm.consumer_offset x;
        RAISE EXCEPTION 'there is no consumer %', coalesce(quote_literal(name), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'There are none.' ELSE 'Consumers are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(name, ''), known, 'crm.consumer_create(name) makes one.');
    END IF;
    RETURN o;
END $$;

COMMENT ON FUNCTION crm._consumer_named(text) IS 'Resolves a consumer or raises, naming near matches.';

CREATE OR REPLACE FUNCTION crm._ledger_start(from_seq bigint, from_time timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s     crm.ledger_state;
    start bigint;
BEGIN
    SELECT * INTO s FROM crm.ledger_state;
    IF from_seq IS NOT NULL AND from_time IS NOT NULL THEN
        RAISE EXCEPTION 'either from_seq or from_time says where to begin'
            USING ERRCODE = '22023', DETAIL = format('Got %s and %s.', from_seq, from_time), HINT = 'Leave one of them out.';
    END IF;
    start := coalesce(from_seq, crm._event_seq_at(from_time)) - 1;
    IF from_seq < 0 OR from_seq > crm._ledger_end() + 1 THEN
        RAISE EXCEPTION 'there is no event %', from_seq
            USING ERRCODE = '22023', DETAIL = format('The ledger ends at %s.', crm._ledger_end()), HINT = '0 stands for all that is kept; leave it out for what comes from now on.';
    ELSIF (from_seq > 0 AND start < s.dropped_to) OR from_time <= s.dropped_until THEN
        RAISE EXCEPTION 'the ledger does not reach back to %', coalesce(from_seq::text, from_time::text)
            USING ERRCODE = '22023', DETAIL = format('Events up to %s, of %s, were dropped.', s.dropped_to, s.dropped_until),
                  HINT = 'from_seq => 0 begins with the oldest that is kept; pg_crm_sync.retention says how long that is.';
    END IF;
    RETURN greatest(start, s.dropped_to, 0);
END $$;

COMMENT ON FUNCTION crm._ledger_start(bigint, timestamptz) IS 'The number before the first event from a number or a time on; raises if it was dropped.';

CREATE OR REPLACE FUNCTION crm.consumer_create(name text, from_seq bigint DEFAULT NULL, from_time timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    start bigint := crm._ledger_start(from_seq, from_time);
BEGIN
    IF name IS NULL OR name !~ '^[^\s].{0,62}$' THEN
        RAISE EXCEPTION 'a consumer cannot be named %', coalesce(quote_literal(left(name, 80)), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected 1 to 63 characters, the first of them visible.', HINT = 'Name it after the program that reads, such as ''billing''.';
    ELSIF EXISTS (SELECT FROM crm.consumer_offset o WHERE o.name = consumer_create.name) THEN
        RAISE EXCEPTION 'consumer "%" exists', name
            USING ERRCODE = '42710', DETAIL = format('It has committed up to %s.', (crm._consumer_named(name)).committed),
                  HINT = format('Go on with it, or SELECT crm.consumer_drop(%L); first to begin elsewhere.', name);
    END IF;
    IF from_seq IS NULL AND from_time IS NULL THEN
        start := crm._ledger_end();
    END IF;
    INSERT INTO crm.consumer_offset (name, committed) VALUES (name, start);
    RETURN start;
END $$;

COMMENT ON FUNCTION crm.consumer_create(text, bigint, timestamptz) IS 'Makes a named consumer of the ledger, which begins with what comes next, or with an event (0: all that is kept) or a time. Returns its offset. What it has not committed is kept.';

CREATE OR REPLACE FUNCTION crm.consumer_read(name text, max_events integer DEFAULT 1000) RETURNS SETOF crm.event
LANGUAGE plpgsql STABLE ROWS 1000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o       crm.consumer_offset := crm._consumer_named(name);
    dropped bigint := (SELECT s.dropped_to FROM crm.ledger_state s);
BEGIN
    IF max_events IS NULL OR max_events NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'cannot read % events at once', coalesce(max_events::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected 1 to 100000.', HINT = 'Read and commit in a loop.';
    ELSIF o.committed < dropped THEN
        RAISE EXCEPTION 'consumer "%" has missed events', name
            USING ERRCODE = '55000', DETAIL = format('It committed up to %s; events up to %s were dropped by pg_crm_sync.retention_max.', o.committed, dropped),
                  HINT = format('Bring its copy up to date by other means, then SELECT crm.consumer_commit(%L, %s);', name, dropped);
    END IF;
    RETURN QUERY SELECT e.* FROM crm.event e WHERE e.seq > o.committed ORDER BY e.seq LIMIT max_events;
END $$;

COMMENT ON FUNCTION crm.consumer_read(text, integer) IS 'The next events of a consumer in the order of decisions, the same ones until crm.consumer_commit. An event never appears behind one that was read.';

CREATE OR REPLACE FUNCTION crm.consumer_commit(name text, seq bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o    crm.consumer_offset := crm._consumer_named(name);
    last bigint := greatest(crm._ledger_end(), o.committed);
BEGIN
    IF seq IS NULL OR seq < o.committed OR seq > last THEN
        RAISE EXCEPTION 'consumer "%" cannot commit %', name, coalesce(seq::text, 'null')
            USING ERRCODE = '22023', DETAIL = format('It has committed up to %s; the ledger ends at %s.', o.committed, last),
                  HINT = CASE WHEN seq < o.committed THEN format('An offset moves forward only. To read again: crm.consumer_drop(%L), then crm.consumer_create(%L, from_seq => %s).', name, name, seq + 1)
                              ELSE 'Commit the seq of the last event that was read and done with.' END;
    END IF;
    UPDATE crm.consumer_offset x SET committed = greatest(x.committed, consumer_commit.seq), committed_at = clock_timestamp() WHERE x.name = consumer_commit.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'consumer "%" belongs to role %', name, o.owner
            USING ERRCODE = '42501', DETAIL = format('%s is not a member of it.', current_user), HINT = format('GRANT %I TO %I, or make a consumer of your own.', o.owner, current_user);
    END IF;
    RETURN seq;
END $$;

COMMENT ON FUNCTION crm.consumer_commit(text, bigint) IS 'Says that a consumer is done with all events up to this number, in the transaction that did their work.';

CREATE OR REPLACE FUNCTION crm.consumer_drop(name text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o crm.consumer_offset := crm._consumer_named(name);
BEGIN
    DELETE FROM crm.consumer_offset x WHERE x.name = consumer_drop.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'consumer "%" belongs to role %', name, o.owner
            USING ERRCODE = '42501', DETAIL = format('%s is not a member of it.', current_user), HINT = 'Its owner or a crm_operator can drop it.';
    END IF;
    RETURN o.committed;
END $$;

COMMENT ON FUNCTION crm.consumer_drop(text) IS 'Forgets a consumer; returns its offset. Events are kept for it no longer.';

CREATE TABLE crm.replay_run (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream      integer NOT NULL,
    from_seq    bigint NOT NULL,
    to_seq      bigint NOT NULL,
    next_seq    bigint NOT NULL,
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done')),
    events      bigint NOT NULL DEFAULT 0,
    changed     bigint NOT NULL DEFAULT 0,
    unchanged   bigint NOT NULL DEFAULT 0,
    put_off     bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    asked_by    name NOT NULL DEFAULT session_user,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);

COMMENT ON TABLE crm.replay_run IS 'Replays of crm.replay and how far each has come: the position is committed with what the events did.';

COMMENT ON COLUMN crm.replay_run.next_seq IS 'The event to go on with.';

COMMENT ON COLUMN crm.replay_run.events IS 'Events of the stream that were gone through.';

COMMENT ON COLUMN crm.replay_run.changed IS 'Of them, those that were decided to change something; each has a line with source replay in crm.event.';

COMMENT ON COLUMN crm.replay_run.unchanged IS 'Of them, those whose values are there already, were no news (echoes), or were overtaken by a later change on any side.';

COMMENT ON COLUMN crm.replay_run.put_off IS 'Of them, those that wait in crm.deferred, because a user holds the row or the record must be read from the CRM.';

COMMENT ON COLUMN crm.replay_run.failed IS 'Of them, those that the database refused: see crm.dead_letter.';

CREATE VIEW crm.replay_progress AS
SELECT r.id, concat_ws(' ', s.server, s.kind, nullif(s.object, '')) AS stream, r.state, r.from_seq, r.to_seq,
       round(100.0 * least(r.next_seq - r.from_seq, r.to_seq - r.from_seq + 1) / greatest(r.to_seq - r.from_seq + 1, 1), 1) AS percent,
       r.events, r.changed, r.unchanged, r.put_off, r.failed, r.asked_by, r.started_at, r.finished_at
FROM crm.replay_run r LEFT JOIN crm.stream s ON s.id = r.stream;

COMMENT ON VIEW crm.replay_progress IS 'Replays: how far each has come and what its events did.';

CREATE OR REPLACE FUNCTION crm._stream_named(stream text) RETURNS crm.stream
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    x     crm.stream;
    known text[];
BEGIN
    SELECT s.* INTO x FROM crm.stream s WHERE _stream_named.stream IN (concat_ws(' ', s.server, s.kind, nullif(s.object, '')), s.id::text);
    IF NOT FOUND THEN
        SELECT array_agg(concat_ws(' ', s.server, s.kind, nullif(s.object, '')) ORDER BY s.id) INTO known FROM crm.stream s;
        RAISE EXCEPTION 'there is no stream %', coalesce(quote_literal(stream), 'null')
            USING ERRCODE = '42704', DETAIL = CASE WHEN known IS NULL THEN 'Nothing has arrived from any CRM yet.' ELSE 'Streams are: ' || array_to_string(known, ', ') || '.' END,
                  HINT = crm._near_hint(coalesce(stream, ''), known, 'Name it as crm.status does: SELECT name FROM crm.status WHERE kind = ''stream''; changes by SQL are not replayed.');
    END IF;
    RETURN x;
END $$;

COMMENT ON FUNCTION crm._stream_named(text) IS 'Resolves a stream as crm.status names it, or by its id, or raises, naming near matches.';

CREATE OR REPLACE FUNCTION crm.replay(stream text, from_seq bigint DEFAULT NULL, from_time timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s     crm.stream := crm._stream_named(stream);
    start bigint := crm._ledger_start(from_seq, from_time) + 1;
    busy  bigint := (SELECT r.id FROM crm.replay_run r WHERE r.stream = s.id AND r.state = 'running' LIMIT 1);
    run   bigint;
BEGIN
    IF from_seq IS NULL AND from_time IS NULL THEN
        RAISE EXCEPTION 'a replay needs a beginning'
            USING ERRCODE = '22023', DETAIL = 'Neither from_seq nor from_time was given.', HINT = 'crm.replay(''hubspot webhook'', from_time => now() - interval ''1 hour''), or from_seq => 0 for all that is kept.';
    ELSIF busy IS NOT NULL THEN
        RAISE EXCEPTION 'stream "%" is being replayed already', stream
            USING ERRCODE = '55006', DETAIL = format('Replay %s is under way.', busy), HINT = format('SELECT * FROM crm.replay_progress WHERE id = %s;', busy);
    END IF;
    INSERT INTO crm.replay_run (stream, from_seq, to_seq, next_seq) VALUES (s.id, start, crm._ledger_end(), start) RETURNING id INTO run;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN run;
END $$;

COMMENT ON FUNCTION crm.replay(text, bigint, timestamptz) IS 'Lets the worker decide the events of a stream again, in their order and by the present policy, from a number or a time on. What is there already or was overtaken stays, so it may be run again. Returns the number of the replay, see crm.replay_progress.';

CREATE OR REPLACE FUNCTION crm._was_news(outcome text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT outcome NOT IN ('echo', 'normal_form', 'equal', 'known', 'stale', 'unsettled', 'not_landed', 'tombstone', 'too_late', 'sent')
$$;

COMMENT ON FUNCTION crm._was_news(text) IS 'Whether an outcome, as in crm.lineage, is that of a change.';

CREATE OR REPLACE FUNCTION crm._overtaken(e crm.event, name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM crm._record_rows(e.mirror, e.row_id) x
        JOIN crm._mapped_fields(e.mirror, name) w ON w.at_mirror = x.at_mirror
        JOIN crm.event n ON n.mirror = x.at_mirror AND n.row_id = x.at_row
        CROSS JOIN LATERAL unnest(n.fields, n.new_values) AS u (f, v)
        WHERE n.seq > e.seq AND n.source NOT IN ('result', 'replay') AND u.f = w.as_field
          AND CASE WHEN n.mirror = e.mirror THEN crm._was_news(crm._outcome(n.source, crm._decided(n.decision, u.f), n.origin, u.v))
                   ELSE crm._outcome(n.source, crm._decided(n.decision, u.f), n.origin, u.v) = 'applied' END)
$$;

COMMENT ON FUNCTION crm._overtaken(crm.event, text) IS 'Whether something later was decided about a field of an event.';

CREATE OR REPLACE FUNCTION crm._replay_batch(stream integer, next_seq bigint, to_seq bigint, max_events integer)
RETURNS TABLE (seq bigint, mirror integer, record_id text, kind text, occurred_at bigint, actor text, carried integer, fields text[], new_values text[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.seq, e.mirror, e.record_id, e.kind, (extract(epoch FROM e.occurred_at) * 1000)::bigint, e.actor, coalesce(cardinality(e.new_values), 0), v.names, v.news
    FROM (SELECT x AS line FROM crm.event x
          WHERE x.seq >= $2 AND x.seq <= $3 AND x.stream = $1 AND x.source <> 'replay' ORDER BY x.seq LIMIT $4) q, LATERAL (SELECT (q.line).*) e
    LEFT JOIN LATERAL (
        SELECT array_agg(u.f) AS names, array_agg(u.v) AS news FROM unnest(e.fields, e.new_values) AS u (f, v)
        WHERE e.new_values IS NOT NULL AND crm._was_news(crm._outcome(e.source, crm._decided(e.decision, u.f), e.origin, u.v)) AND NOT crm._overtaken(q.line, u.f)
    ) v ON true
    ORDER BY e.seq
$$;

COMMENT ON FUNCTION crm._replay_batch(integer, bigint, bigint, integer) IS 'The next events of a replay, with the fields that were news and were not overtaken.';

CREATE VIEW crm._ledger_status AS
SELECT 7 AS rank, 'ledger'::text AS kind, current_database()::text AS name,
       CASE WHEN k.held IS NOT NULL THEN 'kept for consumers' ELSE 'ok' END AS state,
       concat_ws(', ', 'since ' || date_trunc('seconds', f.received_at), pg_size_pretty(z.bytes) || ' in ' || z.parts || ' parts',
                 'kept ' || coalesce(crm._keep('retention')::text, 'for ever'), 'dropped up to ' || s.dropped_to) AS detail,
       NULL::bigint AS waiting, NULL::interval AS lag, NULL::text AS last_error, NULL::timestamptz AS last_error_at,
       CASE WHEN k.held IS NOT NULL THEN format('Consumer %s has not committed what pg_crm_sync.retention would drop. Let it read on, SELECT crm.consumer_drop(%L); or set pg_crm_sync.retention_max.', k.held, k.held) END AS advice
FROM (SELECT count(*) AS parts, coalesce(sum(pg_total_relation_size(p.relid)), 0) AS bytes FROM crm._event_partitions() p) z
LEFT JOIN crm.ledger_state s ON true
LEFT JOIN LATERAL (SELECT e.received_at FROM crm.event e ORDER BY e.seq LIMIT 1) f ON true
LEFT JOIN LATERAL (SELECT o.name AS held FROM crm.consumer_offset o
                   WHERE EXISTS (SELECT FROM crm._event_partitions() p
                                 WHERE o.committed < p.high - 1 AND p.high <= (SELECT q.last_value FROM crm.event_seq q)
                                   AND (SELECT e.received_at FROM crm.event e WHERE e.seq >= p.low AND e.seq < p.high ORDER BY e.seq DESC LIMIT 1) < now() - crm._keep('retention'))
                   ORDER BY o.committed, o.name LIMIT 1) k ON true
UNION ALL
SELECT 8, 'consumer', c.name, CASE WHEN c.missed THEN 'events missed' WHEN c.waiting > 0 THEN 'behind' ELSE 'ok' END,
       format('committed up to %s', c.committed), c.waiting, c.lag, NULL, NULL, c.advice
FROM crm.consumer c
UNION ALL
SELECT 9, 'replay', r.stream, r.state, format('%s %%, %s events, %s changed, %s unchanged, %s put off, %s failed', r.percent, r.events, r.changed, r.unchanged, r.put_off, r.failed),
       NULL, crm._span(r.started_at), NULL, NULL, NULL
FROM crm.replay_progress r WHERE r.state = 'running';

COMMENT ON VIEW crm._ledger_status IS 'The rows of crm.status about the ledger, its consumers and replays.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['consumer_offset', 'replay_run', 'replay_run_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE INDEX poison_record ON crm.poison (mirror, record_id);

CREATE INDEX review_item_row ON crm.review_item (mirror, row_id);

CREATE OR REPLACE FUNCTION crm._clause_ends(condition text) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found  integer[] := '{}';
    depth  integer := 0;
    quoted text := '';
    closed integer := 0;
    c      text;
BEGIN
    FOR i IN 1 .. length(condition) LOOP
        c := substr(condition, i, 1);
        IF quoted <> '' THEN
            quoted := CASE WHEN c = quoted THEN '' ELSE quoted END;
        ELSIF c IN ('''', '"') THEN
            quoted := c;
        ELSIF c IN ('(', '[') THEN
            depth := depth + 1;
        ELSIF c IN (')', ']') THEN
            depth := depth - 1;
            closed := CASE WHEN depth = 0 AND closed = 0 THEN i ELSE closed END;
        ELSIF depth = 0 AND substr(condition, i, 5) = ' AND ' THEN
            found := found || i;
        END IF;
    END LOOP;
    RETURN CASE WHEN condition LIKE '(%' AND closed = length(condition) THEN 0 || found ELSE found END;
END $$;

COMMENT ON FUNCTION crm._clause_ends(text) IS 'Positions of the outermost ANDs of a condition, after a 0 if parentheses enclose the whole.';

CREATE OR REPLACE FUNCTION crm._clauses(condition text) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ends  integer[] := crm._clause_ends(condition);
    start integer := 1;
    e     integer;
BEGIN
    IF ends[1] = 0 THEN
        RETURN QUERY SELECT crm._clauses(substr(condition, 2, length(condition) - 2));
        RETURN;
    END IF;
    FOREACH e IN ARRAY ends LOOP
        RETURN NEXT substr(condition, start, e - start);
        start := e + 5;
    END LOOP;
    RETURN NEXT substr(condition, start);
END $$;

COMMENT ON FUNCTION crm._clauses(text) IS 'The clauses that the outermost ANDs of a condition join.';

CREATE OR REPLACE FUNCTION crm._why_engine(servers text[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'fence', CASE f.state WHEN 'active' THEN 'ok' ELSE 'stops' END,
        CASE f.state WHEN 'active' THEN 'this cluster may write to the CRMs' WHEN 'never' THEN 'this cluster was never activated' ELSE 'this cluster is inert: ' || f.reason END,
        CASE WHEN f.state <> 'active' THEN 'If it is meant to write to the CRMs, and no other cluster does: SELECT crm.activate();' END
    FROM crm.fence_status() f;
    RETURN QUERY SELECT 'worker', CASE WHEN a.alive THEN 'ok' ELSE 'stops' END, CASE WHEN a.alive THEN 'running' ELSE 'not running: nothing is read or sent' END,
        CASE WHEN NOT a.alive THEN 'See the server log for "pg_crm_sync"; shared_preload_libraries must name it and max_worker_processes leave room.' END
    FROM crm._worker_alive() AS a (alive);
    RETURN QUERY SELECT 'server', CASE WHEN s.server IS NULL OR t.paused OR e.failing THEN 'stops' ELSE 'ok' END,
        concat_ws(' ', g.name, CASE WHEN s.server IS NULL THEN 'does not exist any more' WHEN t.paused THEN 'is paused'
                                    WHEN e.failing THEN 'cannot be used: ' || t.last_error ELSE 'is in use' END),
        CASE WHEN s.server IS NULL THEN 'CREATE SERVER of that name, or crm.mirror_drop the mirror.' WHEN t.paused THEN format('SELECT crm.resume(''server'', %L);', g.name)
             WHEN e.failing THEN coalesce(t.advice, format('SELECT * FROM crm.server_check(%L);', g.name)) END
    FROM unnest(servers) AS g (name) LEFT JOIN crm._server s ON s.server = g.name LEFT JOIN crm.server_state t ON t.server = g.name,
         LATERAL (SELECT t.last_error_at > coalesce(t.catalog_at, '-infinity')) AS e (failing);
    RETURN QUERY SELECT 'quota', 'note', format('%s answered 429 (too many calls) to %s of %s calls this hour', u.server, sum(u.limited), sum(u.calls)),
        'Writes wait for the CRM''s allowance and go on by themselves; see calls_per_window and calls_per_day of CREATE SERVER.'
    FROM crm.api_usage u WHERE u.server = ANY (servers) AND u.hour = date_trunc('hour', now()) GROUP BY u.server HAVING sum(u.limited) > 0;
    RETURN QUERY SELECT 'stream', 'note', format('%s %s: %s', x.server, concat_ws(' ', x.kind, nullif(x.object, '')), x.last_error),
        'What changes in the CRM is noticed by polling meanwhile.'
    FROM crm.stream x WHERE x.server = ANY (servers) AND x.last_error_at > coalesce(x.last_ok_at, '-infinity');
END $$;

COMMENT ON FUNCTION crm._why_engine(text[]) IS 'Part of crm.why: fence, worker, servers, limits, streams.';

CREATE OR REPLACE FUNCTION crm._why_filter(m crm.mirror, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    failed text;
BEGIN
    EXECUTE (SELECT format('SELECT concat_ws('' and '', %s) FROM %I.%I WHERE _id = $1',
                           string_agg(format('CASE WHEN (%s) IS NOT TRUE THEN %L END', c, c), ', '), m.schema_name, m.table_name)
             FROM crm._clauses(m.row_filter) c) INTO failed USING row_id;
    RETURN nullif(failed, '');
END $$;

COMMENT ON FUNCTION crm._why_filter(crm.mirror, bigint) IS 'Part of crm.why: the clauses of the mirror''s row filter that a row fails.';

CREATE OR REPLACE FUNCTION crm._why_mirror(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t      text := format('%I.%I', m.schema_name, m.table_name);
    rel    oid := crm._relation_of(m.schema_name, m.table_name);
    b      crm.backfill;
    failed text;
BEGIN
    SELECT x.* INTO b FROM crm.backfill x WHERE x.mirror = m.id;
    IF rel IS NULL THEN
        RETURN QUERY VALUES ('mirror', 'stops', t || ' is missing', format('SELECT crm.mirror_drop(%L);', t));
        RETURN;
    END IF;
    RETURN QUERY SELECT 'mirror', CASE WHEN m.paused OR m.mode <> 'live' THEN 'stops' ELSE 'ok' END,
        t || CASE WHEN m.paused THEN ' is paused' WHEN m.mode = 'shadow' THEN ' is in shadow: its changes are shown in crm.outbox and not sent'
                  WHEN m.mode = 'read_only' THEN ' is read-only: its changes are not sent' ELSE ' is live' END,
        CASE WHEN m.paused THEN format('SELECT crm.resume(''mirror'', %L);', t) WHEN m.mode = 'shadow' THEN format('SELECT * FROM crm.go_live(%L); or of its link.', t) END;
    IF NOT EXISTS (SELECT FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
                   WHERE g.tgrelid = rel AND g.tgname = 'zz_crm_capture' AND p.pronamespace = 'crm'::regnamespace AND g.tgenabled IN ('O', 'A')) THEN
        RETURN QUERY VALUES ('capture', 'stops', t || ': changes by SQL are not seen, its trigger is gone or disabled', format('ALTER TABLE %s ENABLE TRIGGER USER;', t));
    END IF;
    RETURN QUERY SELECT 'backfill', CASE b.state WHEN 'done' THEN 'ok' WHEN 'failed' THEN 'stops' ELSE 'waits' END,
        format('first copy of %s: %s, %s of %s rows%s', t, b.state, b.done, coalesce(b.total::text, '?'), ': ' || b.error),
        CASE WHEN b.state <> 'done' THEN 'See crm.progress.' END
    WHERE b.mirror IS NOT NULL;
    IF m.row_filter IS NOT NULL AND row_id IS NOT NULL AND has_table_privilege(rel, 'SELECT') THEN
        failed := crm._why_filter(m, row_id);
        RETURN QUERY SELECT 'filter', CASE WHEN failed IS NULL THEN 'ok' ELSE 'note' END,
            t || CASE WHEN failed IS NULL THEN ': the row is among those that the mirror takes' ELSE ': the row does not satisfy ' || failed END,
            CASE WHEN failed IS NOT NULL THEN 'The mirror took it when it did, and keeps it up to date.' END;
    ELSIF m.row_filter IS NOT NULL AND row_id IS NULL THEN
        RETURN QUERY VALUES ('filter', 'note', t || ' takes only records that satisfy ' || m.row_filter, 'See row_filter of crm.import.');
    END IF;
END $$;

COMMENT ON FUNCTION crm._why_mirror(crm.mirror, bigint) IS 'Part of crm.why: table, mode, capture, first copy, row filter of a mirror.';

CREATE OR REPLACE FUNCTION crm._why_blank(m crm.mirror, k crm.link, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    blank text;
BEGIN
    EXECUTE (SELECT format('SELECT CASE WHEN coalesce(%s) IS NULL THEN %L END FROM %I.%I WHERE _id = $1',
                           string_agg(format('nullif(btrim(%I::text), '''')', c.column_name), ', '),
                           coalesce(string_agg(c.column_name, ', ' ORDER BY f.match_order), 'none'), m.schema_name, m.table_name)
             FROM crm.field_map f JOIN crm.mirror_column c ON c.mirror = m.id AND c.field = CASE k.left_mirror WHEN m.id THEN f.left_field ELSE f.right_field END
             WHERE f.link = k.name AND f.match_order IS NOT NULL HAVING count(*) > 0) INTO blank USING row_id;
    RETURN blank;
END $$;

COMMENT ON FUNCTION crm._why_blank(crm.mirror, crm.link, bigint) IS 'Part of crm.why: the match keys of a link, if a row leaves all of them blank.';

CREATE OR REPLACE FUNCTION crm._why_links(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k      crm.link;
    other  integer;
    makes  boolean;
    tied   bigint;
    asked  bigint;
    blank  text;
BEGIN
    FOR k IN SELECT l.* FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror) ORDER BY l.id LOOP
        other := CASE k.left_mirror WHEN m.id THEN k.right_mirror ELSE k.left_mirror END;
        makes := CASE k.left_mirror WHEN m.id THEN k.create_right ELSE k.create_left END;
        RETURN QUERY SELECT 'link', CASE WHEN k.paused OR k.mode <> 'live' THEN 'stops' ELSE 'ok' END,
            format('link "%s" is %s', k.name, CASE WHEN k.paused THEN 'paused' WHEN k.mode = 'shadow' THEN 'in shadow: it shows what it would send in crm.outbox and sends nothing' ELSE k.mode END),
            CASE WHEN k.paused THEN format('SELECT crm.resume(''link'', %L);', k.name) WHEN k.mode = 'shadow' THEN format('SELECT * FROM crm.preview(%L); then crm.go_live(%L).', k.name, k.name) END;
        SELECT y.row_id INTO tied FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity AND y.mirror = other AND y.merged_into IS NULL
        WHERE x.mirror = m.id AND x.row_id = _why_links.row_id AND x.merged_into IS NULL;
        CONTINUE WHEN row_id IS NULL;
        IF tied IS NOT NULL THEN
            RETURN QUERY VALUES ('counterpart', 'ok', format('%s row %s', crm._table_of(other), tied), NULL);
            CONTINUE;
        END IF;
        SELECT min(r.id) INTO asked FROM crm.review_item r WHERE r.mirror = m.id AND r.row_id = _why_links.row_id AND r.kind IN ('match', 'create');
        blank := CASE WHEN asked IS NULL THEN crm._why_blank(m, k, row_id) END;
        RETURN QUERY SELECT 'counterpart', CASE WHEN asked IS NOT NULL OR NOT makes THEN 'stops' ELSE 'differs' END,
            format('link "%s": %s has no counterpart of it', k.name, crm._table_of(other))
            || CASE WHEN asked IS NOT NULL THEN format(': question %s of crm.review is open', asked) WHEN blank IS NOT NULL THEN format(': nothing to find it by, %s is blank', blank) ELSE '' END
            || CASE WHEN makes THEN '' ELSE '; the link makes none' END,
            CASE WHEN asked IS NOT NULL THEN format('SELECT * FROM crm.review WHERE id = %s; then answer it.', asked)
                 WHEN NOT makes THEN format('Create it there, or set %s of crm.link.', CASE k.left_mirror WHEN m.id THEN 'create_right' ELSE 'create_left' END)
                 ELSE 'One is made for a row that is new while the link is live; for an older one create it there, and the keys of the link tie them.' END;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._why_links(crm.mirror, bigint) IS 'Part of crm.why: mode of the links of a mirror, and the row''s counterparts or why there are none.';

CREATE OR REPLACE FUNCTION crm._why_captured(mirror integer, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bytes bigint := pg_relation_size('crm.change_0') + pg_relation_size('crm.change_1');
    n     bigint;
BEGIN
    IF bytes > 4194304 THEN
        RETURN QUERY VALUES ('change log', 'waits', format('about %s of SQL changes wait for the worker; whether one is of this record is not looked up', pg_size_pretty(bytes)),
                             'The worker takes them in order; see crm.status.');
        RETURN;
    END IF;
    SELECT count(*) INTO n FROM (SELECT FROM crm.change_0 c WHERE c.mirror_id = $1 AND c.row_id = $2
                                 UNION ALL SELECT FROM crm.change_1 c WHERE c.mirror_id = $1 AND c.row_id = $2) x;
    IF n > 0 THEN
        RETURN QUERY VALUES ('change log', 'waits', format('%s changes by SQL wait to be decided', n), 'The worker takes them within milliseconds while it runs.');
    END IF;
END $$;

COMMENT ON FUNCTION crm._why_captured(integer, bigint) IS 'Part of crm.why: changes by SQL that the worker has not taken up.';

CREATE OR REPLACE FUNCTION crm._why_writes(mirrors integer[], rows bigint[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT CASE w.state WHEN 'dead' THEN 'dead letter' ELSE 'outbox' END, CASE WHEN w.state IN ('queued', 'in_flight', 'unknown') THEN 'waits' ELSE 'stops' END,
        concat_ws(', ', format('write %s: %s of %s%s is %s', w.id, w.kind, crm._table_of(w.mirror),
                               (SELECT ' (' || left(string_agg(f, ', ' ORDER BY f), 200) || ')' FROM jsonb_object_keys(w.vals) f), w.state),
            CASE WHEN w.state = 'queued' THEN (SELECT format('%s%s writes before it', count(*), CASE WHEN count(*) > 10000 THEN ' or more' END)
                                               FROM (SELECT FROM crm.write q WHERE q.mirror = w.mirror AND q.state = 'queued' AND q.id < w.id LIMIT 10001) b) END,
            'for ' || crm._span(w.queued_at), nullif(w.attempts, 0) || ' attempts',
            CASE WHEN w.state = 'queued' AND w.not_before > now() THEN 'not before ' || date_trunc('seconds', w.not_before) END, 'last error: ' || w.error),
        CASE w.state WHEN 'held' THEN format('The guard holds it: SELECT crm.approve(%1$s); or crm.reject(%1$s).', w.txs[1]) WHEN 'would_send' THEN 'Shadow: nothing is sent until crm.go_live.'
                     WHEN 'unknown' THEN 'The answer was lost; the worker reads the record back before it does anything.'
                     WHEN 'dead' THEN coalesce(w.advice || ' ', '') || format('Then SELECT crm.dead_letter_retry(ARRAY[%s]);', w.id) ELSE coalesce(w.advice, 'It goes on by itself.') END
    FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.write w ON w.mirror = v.mirror AND w.row_id = v.row_id ORDER BY w.id LIMIT 100;
END $$;

COMMENT ON FUNCTION crm._why_writes(integer[], bigint[]) IS 'Part of crm.why: writes of these rows that are not finished, with their place in the queue and what refused them.';

CREATE OR REPLACE FUNCTION crm._why_events(mirrors integer[], rows bigint[], records text[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'deferred', 'waits', format('%s events of %s wait: %s', count(*), crm._table_of(d.mirror),
            CASE d.reason WHEN 'locked' THEN 'a transaction holds the row' ELSE 'the record is read from the CRM first' END),
            CASE d.reason WHEN 'locked' THEN 'They are decided when that transaction ends: see pg_stat_activity for long ones.' ELSE 'It needs an API call; see the server in crm.status.' END
        FROM unnest(mirrors, records) AS v (mirror, record) JOIN crm.deferred d ON d.mirror = v.mirror AND d.record_id = v.record GROUP BY d.mirror, d.reason;
    RETURN QUERY SELECT 'dead letter', 'stops', format('event %s from %s could not be applied: %s', p.id, crm._table_of(p.mirror), p.error),
            p.advice || format(' Then SELECT crm.dead_letter_retry(ARRAY[%s], ''in'');', p.id)
        FROM unnest(mirrors, records || rows::text[]) AS v (mirror, record) JOIN crm.poison p ON p.mirror = v.mirror AND p.record_id = v.record ORDER BY p.id LIMIT 20;
    RETURN QUERY SELECT 'review', 'stops', format('question %s (%s): %s', r.id, r.kind, r.reason), 'Answer it in crm.review.'
        FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.review_item r ON r.mirror = v.mirror AND r.row_id = v.row_id AND r.kind <> 'field' ORDER BY r.id LIMIT 20;
    RETURN QUERY SELECT 'merged', 'note', format('%s row %s lives on as %s', crm._table_of(x.mirror), x.row_id, x.merged_into), 'Look at that record instead.'
        FROM unnest(mirrors, rows) AS v (mirror, row_id) JOIN crm.xref x ON x.mirror = v.mirror AND x.row_id = v.row_id WHERE x.merged_into IS NOT NULL;
END $$;

COMMENT ON FUNCTION crm._why_events(integer[], bigint[], text[]) IS 'Part of crm.why: events that wait or could not be applied, open questions, merges.';

CREATE OR REPLACE FUNCTION crm._why_decisions(entity bigint, mirrors integer[], rows bigint[])
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT CASE WHEN s.state #>> '{hold,reason}' LIKE '%keep overwriting each other%' THEN 'breaker' ELSE 'review' END, 'stops',
            format('%s waits for a person: %s', s.field, s.state #>> '{hold,reason}'),
            format('SELECT * FROM crm.review WHERE entity = %s; then answer it. The other fields go on.', s.entity)
        FROM crm.field_state s WHERE s.entity = _why_decisions.entity AND s.state -> 'hold' IS NOT NULL;
    RETURN QUERY SELECT 'decision', 'note', format('%s: %s of %s lost to %s of %s at %s (%s, rule %s)', d ->> 'field', coalesce(quote_literal(left(o ->> 'value', 120)), 'empty'), o ->> 'origin',
                                                 coalesce(quote_literal(left(d ->> 'value', 120)), 'empty'), coalesce(nullif(d ->> 'winner', ''), 'what was there'),
                                                 date_trunc('seconds', e.received_at), coalesce(d ->> 'strategy', d ->> 'step'), coalesce(d ->> 'rule', 'none')),
            'See crm.conflict, and crm.conflict_policy for the rule.'
        FROM (SELECT x.seq, x.received_at, x.decision FROM unnest(mirrors, rows) AS v (mirror, row_id), crm.event x
              WHERE x.mirror = v.mirror AND x.row_id = v.row_id AND jsonb_typeof(x.decision) = 'array' ORDER BY x.seq DESC LIMIT 20) e,
             jsonb_array_elements(e.decision) d, jsonb_array_elements(d -> 'losers') o
        ORDER BY e.seq DESC LIMIT 3;
END $$;

COMMENT ON FUNCTION crm._why_decisions(bigint, integer[], bigint[]) IS 'Part of crm.why: fields that a person or the breaker holds, and values that lost last.';

CREATE OR REPLACE FUNCTION crm._why_record(m crm.mirror, row_id bigint)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text := format('%I.%I', m.schema_name, m.table_name);
    r record;
BEGIN
    EXECUTE format('SELECT x.id, x._deleted_at, x._sync_state, x._sync_error FROM %s x WHERE x._id = $1', t) INTO r USING row_id;
    IF r._deleted_at IS NOT NULL THEN
        RETURN QUERY VALUES ('record', 'note', format('deleted in %s at %s', m.server, date_trunc('seconds', r._deleted_at)), 'It comes back if it is restored there.');
    ELSIF r.id IS NULL THEN
        RETURN QUERY VALUES ('record', 'differs', format('the row has no record in %s yet', m.server), 'See crm.outbox for its create.');
    END IF;
    IF r._sync_error IS NOT NULL THEN
        RETURN QUERY VALUES ('record', 'stops', format('%s refused the row: %s', m.server, r._sync_error), 'See crm.dead_letter.');
    END IF;
END $$;

COMMENT ON FUNCTION crm._why_record(crm.mirror, bigint) IS 'Part of crm.why: what the row itself says.';

CREATE OR REPLACE FUNCTION crm._why_record_id(mirror integer, row_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t  crm.mirror;
    id text;
BEGIN
    SELECT x.* INTO t FROM crm.mirror x WHERE x.id = $1;
    IF has_table_privilege(crm._relation_of(t.schema_name, t.table_name), 'SELECT') THEN
        EXECUTE format('SELECT x.id FROM %I.%I x WHERE x._id = $1', t.schema_name, t.table_name) INTO id USING row_id;
    END IF;
    RETURN id;
END $$;

COMMENT ON FUNCTION crm._why_record_id(integer, bigint) IS 'Part of crm.why: the CRM''s id of a row, if the caller may see it.';

CREATE OR REPLACE FUNCTION crm._why(m crm.mirror, row_id bigint, asked text)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    thing   bigint := (SELECT x.entity FROM crm.xref x WHERE x.mirror = m.id AND x.row_id = _why.row_id);
    mirrors integer[] := ARRAY[m.id];
    rows    bigint[] := ARRAY[row_id];
    records text[] := ARRAY[asked];
    x       record;
    o       crm.mirror;
BEGIN
    IF row_id IS NOT NULL THEN
        EXECUTE format('SELECT ARRAY[x.id] FROM %I.%I x WHERE x._id = $1', m.schema_name, m.table_name) INTO records USING row_id;
    END IF;
    FOR x IN SELECT y.mirror, y.row_id, crm._why_record_id(y.mirror, y.row_id) AS record_id FROM crm.xref y WHERE y.entity = thing AND y.mirror <> m.id AND y.merged_into IS NULL LOOP
        mirrors := mirrors || x.mirror;
        rows := rows || x.row_id;
        records := records || x.record_id;
    END LOOP;
    IF row_id IS NULL THEN
        RETURN QUERY VALUES ('record', 'differs', format('%I.%I has no row of %s', m.schema_name, m.table_name, asked), 'It is not in the CRM, was not copied yet, or the mirror does not take it.');
    ELSE
        RETURN QUERY SELECT * FROM crm._why_record(m, row_id);
        RETURN QUERY SELECT 'values', v.* FROM crm._why_values(m.id, row_id) v;
        RETURN QUERY SELECT * FROM crm._why_captured(m.id, row_id);
        RETURN QUERY SELECT * FROM crm._why_writes(mirrors, rows);
        RETURN QUERY SELECT * FROM crm._why_decisions(thing, mirrors, rows);
    END IF;
    RETURN QUERY SELECT * FROM crm._why_events(mirrors, rows, records);
    RETURN QUERY SELECT * FROM crm._why_links(m, row_id);
    FOR o IN SELECT y.* FROM crm.mirror y WHERE y.id = ANY (mirrors) ORDER BY y.id <> m.id, y.id LOOP
        RETURN QUERY SELECT * FROM crm._why_mirror(o, rows[array_position(mirrors, o.id)]);
    END LOOP;
    RETURN QUERY SELECT * FROM crm._why_engine(ARRAY(SELECT DISTINCT y.server FROM crm.mirror y WHERE y.id = ANY (mirrors)));
END $$;

COMMENT ON FUNCTION crm._why(crm.mirror, bigint, text) IS 'All that is known of one row of a mirror, in the way or not.';

CREATE OR REPLACE FUNCTION crm._why_told(m crm.mirror, row_id bigint, asked text, all_checks boolean)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    WITH c AS MATERIALIZED (SELECT w.*, row_number() OVER () AS n, array_position(ARRAY['stops', 'differs', 'waits', 'note', 'ok'], w.verdict) AS rank FROM crm._why(m, row_id, asked) w),
    s AS (SELECT min(c.rank) AS worst, coalesce(bool_or(c.verdict = 'differs' OR (c.verdict = 'stops' AND c.item IN ('values', 'outbox', 'dead letter', 'review', 'breaker', 'record', 'counterpart'))), false) AS apart,
                 coalesce(bool_or(c.rank = 3), false) AS waits,
                 count(*) FILTER (WHERE c.rank <= 3) AS reasons FROM c)
    SELECT x.item, x.verdict, x.detail, x.advice FROM (
        SELECT 'summary', CASE WHEN s.apart THEN 'not in sync' WHEN s.worst = 1 THEN 'stopped' WHEN s.worst = 3 THEN 'on its way' ELSE 'in sync' END,
               format('%I.%I %s: %s', m.schema_name, m.table_name, coalesce('row ' || row_id, asked),
                      CASE WHEN s.reasons = 0 THEN 'all values agree and nothing stands in the way'
                           WHEN s.worst = 1 AND NOT s.apart AND NOT s.waits THEN 'all values agree, but a change would not go through'
                           ELSE s.reasons || CASE s.reasons WHEN 1 THEN ' reason' ELSE ' reasons' END END),
               NULL::text, 0 AS rank, 0::bigint AS n FROM s
        UNION ALL SELECT c.item, c.verdict, c.detail, c.advice, c.rank, c.n FROM c WHERE all_checks OR c.rank <= 4) AS x (item, verdict, detail, advice, rank, n)
    ORDER BY x.rank, x.n;
END $$;

COMMENT ON FUNCTION crm._why_told(crm.mirror, bigint, text, boolean) IS 'The answer of crm.why: a summary, then the reasons, worst first.';

CREATE OR REPLACE FUNCTION crm._why_mirror_named(mirror text) RETURNS crm.mirror
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._mirror_named(mirror);
    rel oid := crm._relation_of(m.schema_name, m.table_name);
BEGIN
    IF rel IS NULL THEN
        RAISE EXCEPTION 'the table of mirror % is missing', mirror USING ERRCODE = '42P01', DETAIL = 'It was dropped or renamed outside of pg_crm_sync.', HINT = format('SELECT crm.mirror_drop(%L); forgets the mirror.', mirror);
    ELSIF NOT has_table_privilege(rel, 'SELECT') THEN
        RAISE EXCEPTION 'permission denied for mirror %', mirror
            USING ERRCODE = '42501', DETAIL = 'The answer shows values of the record.', HINT = format('GRANT SELECT ON %I.%I TO %I;', m.schema_name, m.table_name, current_user);
    END IF;
    RETURN m;
END $$;

COMMENT ON FUNCTION crm._why_mirror_named(text) IS 'The mirror of that name, if the caller may read it; else raises.';

CREATE OR REPLACE FUNCTION crm.why(mirror text, id text, all_checks boolean DEFAULT false)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._why_mirror_named(mirror);
    row bigint;
BEGIN
    IF coalesce(id, '') = '' OR length(id) > 1000 THEN
        RAISE EXCEPTION 'no record is named' USING ERRCODE = '22023', DETAIL = 'Expected the record''s id in the CRM, or the _id of its row.', HINT = format('For example SELECT * FROM crm.why(%L, ''101'');', mirror);
    END IF;
    EXECUTE format('SELECT t._id FROM %I.%I t WHERE t.id = $1', m.schema_name, m.table_name) INTO row USING id;
    IF row IS NULL AND id ~ '^[0-9]{1,18}$' THEN
        EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO row USING id::bigint;
    END IF;
    RETURN QUERY SELECT * FROM crm._why_told(m, row, 'record ' || id, all_checks);
END $$;

COMMENT ON FUNCTION crm.why(text, text, boolean) IS 'Why is this record not in sync? A summary, then each reason with what to do; all_checks => true shows what was found in order too. id is the record''s id in the CRM, or else the _id of its row.';

CREATE OR REPLACE FUNCTION crm.why(mirror text, _id bigint, all_checks boolean DEFAULT false)
RETURNS TABLE (item text, verdict text, detail text, advice text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m   crm.mirror := crm._why_mirror_named(mirror);
    row bigint;
BEGIN
    EXECUTE format('SELECT t._id FROM %I.%I t WHERE t._id = $1', m.schema_name, m.table_name) INTO row USING _id;
    RETURN QUERY SELECT * FROM crm._why_told(m, row, coalesce('row ' || _id, 'a row without a number'), all_checks);
END $$;

COMMENT ON FUNCTION crm.why(text, bigint, boolean) IS 'The same for a row by its _id, for example one that has no record in the CRM yet.';

CREATE OR REPLACE FUNCTION crm.explain(event bigint DEFAULT NULL, write bigint DEFAULT NULL)
RETURNS TABLE (what text, server text, object text, record text, field text, value text, instead_of text, competing jsonb,
               winner text, rule bigint, decided_by text, calls integer, verdict text, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM crm._explain_pending(event, write);
END $$;

COMMENT ON FUNCTION crm.explain(bigint, bigint) IS 'What would follow from an event that waits (event => id of crm.deferred), or what a write would send (write => id of crm.outbox); without effect.';

CREATE OR REPLACE FUNCTION crm.explain(policy jsonb, max_rows integer DEFAULT 1000)
RETURNS TABLE (what text, server text, object text, record text, field text, value text, instead_of text, competing jsonb,
               winner text, rule bigint, decided_by text, calls integer, verdict text, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM crm._explain_policy(coalesce(policy, 'null'), coalesce(max_rows, 0));
END $$;

COMMENT ON FUNCTION crm.explain(jsonb, integer) IS 'What is open now (writes not sent, questions to people) and would be decided otherwise if crm.conflict_policy had these rows: call it as crm.explain(policy => ''[…]''). Without effect.';

CREATE OR REPLACE FUNCTION crm._policy_draft(draft jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known CONSTANT text[] := ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = 'crm.conflict_policy'::regclass AND a.attnum > 0 AND NOT a.attisdropped
                                   AND a.attname NOT IN ('id', 'changed_by', 'changed_at') ORDER BY a.attnum);
    r     jsonb;
    alien text;
BEGIN
    IF jsonb_typeof(draft) = 'object' THEN
        draft := jsonb_build_array(draft);
    END IF;
    IF draft IS NULL OR jsonb_typeof(draft) <> 'array' OR jsonb_array_length(draft) NOT BETWEEN 1 AND 1000 OR EXISTS (SELECT FROM jsonb_array_elements(draft) e WHERE jsonb_typeof(e) <> 'object') THEN
        RAISE EXCEPTION 'a policy draft is a list of 1 to 1000 rows' USING ERRCODE = '22023', DETAIL = 'Each row is an object with the columns of crm.conflict_policy.',
              HINT = 'For example ''[{"link": "contacts", "field": "phone", "strategy": "owner", "winner": "salesforce"}]''; "strategy": null takes a row away.';
    END IF;
    FOR r IN SELECT e FROM jsonb_array_elements(draft) e LOOP
        SELECT k INTO alien FROM jsonb_object_keys(r) k WHERE k <> ALL (known) LIMIT 1;
        IF alien IS NOT NULL THEN
            RAISE EXCEPTION 'a policy row has no "%"', alien USING ERRCODE = '42703', DETAIL = 'Its columns are: ' || array_to_string(known, ', ') || '.', HINT = crm._near_hint(alien, known, 'Leave it out.');
        ELSIF r ->> 'link' IS NULL THEN
            RAISE EXCEPTION 'a row of the draft names no link' USING ERRCODE = '22004', DETAIL = format('Got %s.', r), HINT = 'SELECT name FROM crm.link;';
        ELSIF r ->> 'strategy' IS NULL THEN
            DELETE FROM crm.conflict_policy p WHERE p.link = r ->> 'link' AND p.field = coalesce(r ->> 'field', '*');
            CONTINUE WHEN FOUND;
            RAISE EXCEPTION 'there is no policy for field "%" of link "%"', coalesce(r ->> 'field', '*'), r ->> 'link'
                USING ERRCODE = '42704', DETAIL = '"strategy" is null or missing, which takes the row away.', HINT = 'SELECT link, field, strategy FROM crm.conflict_policy;';
        ELSE
            EXECUTE (SELECT format('INSERT INTO crm.conflict_policy (%1$s) SELECT %1$s FROM jsonb_populate_record(NULL::crm.conflict_policy, $1) ON CONFLICT (link, field) DO UPDATE SET %2$s',
                                   string_agg(quote_ident(c), ', ') FILTER (WHERE r ? c),
                                   string_agg(format('%1$I = %2$s', c, CASE WHEN r ? c THEN format('excluded.%I', c) ELSE 'DEFAULT' END), ', ') FILTER (WHERE c NOT IN ('link', 'field')))
                     FROM unnest(known) AS c) USING r;
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION crm._policy_draft(jsonb) IS 'Puts the rows of a draft into crm.conflict_policy, through all its checks; for callers that undo it.';

CREATE OR REPLACE FUNCTION crm.what_if(policy jsonb, since timestamptz DEFAULT '-infinity', max_rows integer DEFAULT 10000)
RETURNS TABLE (link text, mirror text, row_id bigint, record text, field text, value_now text, value_then text, rule bigint, decided_by text, seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF max_rows IS NULL OR max_rows NOT BETWEEN 1 AND 1000000 THEN
        RAISE EXCEPTION 'max_rows cannot be %', coalesce(max_rows::text, 'null') USING ERRCODE = '22023', DETAIL = 'Expected 1 to 1000000.', HINT = 'Leave it out for 10000.';
    ELSIF since IS NULL THEN
        RAISE EXCEPTION 'since is null' USING ERRCODE = '22004', DETAIL = 'It says from when on the ledger is replayed.', HINT = 'Leave it out for all of the ledger, or write now() - interval ''1 day''.';
    END IF;
    RETURN QUERY SELECT * FROM crm._what_if(coalesce(policy, 'null'), since, max_rows);
END $$;

COMMENT ON FUNCTION crm.what_if(jsonb, timestamptz, integer) IS 'Which values would differ if crm.conflict_policy had been with these rows since then: replays the ledger in memory and lists each cell with its value now, its value then, the rule and the event that would have decided. Changes nothing.';

COMMENT ON FUNCTION crm._relation_of(name, name) IS 'OID of a table, null if it is missing.';

COMMENT ON VIEW crm.progress IS 'First copy of each mirror: rows done and in all, rows per second, time left (eta).';

CREATE VIEW crm.outbox AS
SELECT w.id, format('%I.%I', m.schema_name, m.table_name) AS mirror, w.row_id, w.record_id, w.kind,
       w.state, w.vals AS send, w.old_vals AS instead_of, w.origin, w.attempts, w.queued_at, crm._span(w.queued_at) AS waiting, w.not_before,
       w.error, CASE w.state WHEN 'held' THEN CASE w.error_code WHEN 'unknown_create' THEN w.advice ELSE 'SELECT crm.approve(tx) or crm.reject(tx): see crm.held.' END
                             WHEN 'would_send' THEN 'Shadow mode: nothing is sent until crm.go_live.'
                             WHEN 'unknown' THEN 'The answer was lost; the worker reads the record back before it does anything.'
                             WHEN 'dead' THEN coalesce(w.advice, 'See crm.dead_letter.')
                             ELSE w.advice END AS advice
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror;

COMMENT ON VIEW crm.outbox IS 'Changes on their way to a CRM, in order per record: queued, in_flight, unknown, held, would_send (shadow), dead. Sent ones have left; see crm.event.';

CREATE VIEW crm.held AS
SELECT tx, array_agg(DISTINCT format('%I.%I', m.schema_name, m.table_name)) AS mirrors, count(*) AS writes,
       count(*) FILTER (WHERE w.kind = 'delete') AS deletes, array_agg(DISTINCT w.origin) AS origins, min(w.queued_at) AS since,
       format('SELECT crm.approve(%s); sends them, SELECT crm.reject(%s); puts the old values back.', tx, tx) AS advice
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror, unnest(w.txs) AS tx
WHERE w.state = 'held' AND w.error_code IS DISTINCT FROM 'unknown_create'
GROUP BY tx
UNION ALL
SELECT NULL, ARRAY[format('%I.%I', m.schema_name, m.table_name)], 1, 0, ARRAY[w.origin], w.queued_at,
       format('A create whose answer was lost. Look for %s in the CRM; SELECT crm.resolve_create(%s, ''made'', ''its id''); if it is there, else SELECT crm.resolve_create(%2$s, ''not made'');', left(w.vals::text, 200), w.id)
FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror
WHERE w.state = 'held' AND w.error_code = 'unknown_create';

COMMENT ON VIEW crm.held IS 'Transactions whose outgoing writes the guard holds, which change more than guard_soft_rows or came in a loop that went over guard_window_rows (SELECT crm.approve(tx) FROM crm.held approves all); and, with tx null, creates of which nobody knows whether they happened.';

CREATE VIEW crm.conflict AS
SELECT e.seq, e.received_at AS decided_at, format('%I.%I', m.schema_name, m.table_name) AS mirror, e.row_id, e.record_id, e.entity,
       d ->> 'field' AS field, d ->> 'strategy' AS strategy, d ->> 'rule' AS rule, d ->> 'winner' AS winner,
       d -> 'value' AS value, d -> 'losers' AS lost, d -> 'merged' AS merged, coalesce((d ->> 'conflict')::boolean, false) AS both_changed, d ->> 'held' AS held, e.origin, e.policy_version
FROM crm.event e JOIN crm.mirror m ON m.id = e.mirror,
     LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(e.decision) = 'array' THEN e.decision ELSE '[]' END) AS d
WHERE e.decision IS NOT NULL AND (coalesce(d -> 'losers', 'null') NOT IN ('null', '[]') OR d ? 'merged' OR d ->> 'held' IS NOT NULL);

COMMENT ON VIEW crm.conflict IS 'Decisions that made a value lose or stay behind: field, strategy and rule (crm.conflict_policy.id) that decided, who won with which value, each loser with its value, and the values that both went into the one that stands (merged). both_changed tells a conflict from an owner who rejects a change; held says why a value did not reach another side (no counterpart in the value map, too long, refused).';

COMMENT ON VIEW crm.dead_letter IS 'What could not be done and waits for a person: writes that a CRM refused for good (out), events that the database refused (in), each with the reason and what to do.';

CREATE VIEW crm._status_parts AS
-- How the installation as a whole stands.
SELECT 1 AS rank, 'fence'::text AS kind, current_database()::text AS name, f.state, f.reason AS detail, NULL::bigint AS waiting, NULL::interval AS lag,
       NULL::text AS last_error, NULL::timestamptz AS last_error_at,
       CASE f.state WHEN 'inert' THEN 'Nothing is read or sent. If this cluster is meant to write to the CRMs: SELECT crm.activate();'
                    WHEN 'never' THEN 'Nothing is imported yet. The first crm.import activates this cluster.' END AS advice
FROM crm.fence_status() f
UNION ALL
SELECT 2, 'worker', current_database()::text, CASE WHEN a.alive THEN 'running' ELSE 'absent' END, NULL, (SELECT count(*) FROM crm.webhook_queue),
       (SELECT crm._span(min(q.received_at)) FROM crm.webhook_queue q), NULL, NULL,
       CASE WHEN NOT a.alive THEN 'Nothing is read or sent. See the server log for "pg_crm_sync"; shared_preload_libraries must name it and max_worker_processes leave room.' END
FROM crm._worker_alive() AS a (alive)
UNION ALL
SELECT 3, 'server', s.server, CASE WHEN t.paused THEN 'paused' WHEN t.server IS NULL THEN 'unused'
                                   WHEN t.last_error_at > coalesce(t.catalog_at, '-infinity') THEN 'error'
                                   WHEN t.catalog_at IS NULL THEN 'new' ELSE 'ok' END,
       concat_ws(', ', s.server_type, 'account ' || t.tenant, 'catalog read ' || date_trunc('seconds', t.catalog_at),
                 (SELECT sum(u.calls) || ' calls this hour' FROM crm.api_usage u WHERE u.server = s.server AND u.hour = date_trunc('hour', now()))),
       n.waiting, crm._span(n.oldest),
       t.last_error, t.last_error_at,
       CASE WHEN t.paused THEN format('SELECT crm.resume(''server'', %L);', s.server)
            WHEN t.last_error_at > coalesce(t.catalog_at, '-infinity') THEN coalesce(t.advice, format('SELECT * FROM crm.server_check(%L);', s.server))
            WHEN t.server IS NULL THEN format('SELECT crm.import(%L, ARRAY[…], into_schema => …);', s.server) END
FROM crm._server s LEFT JOIN crm.server_state t ON t.server = s.server
LEFT JOIN LATERAL (
    SELECT count(*) AS waiting, min(w.queued_at) AS oldest FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror
    WHERE m.server = s.server AND w.state IN ('queued', 'in_flight', 'unknown')) n ON true
UNION ALL
SELECT 4, 'mirror', format('%I.%I', m.schema_name, m.table_name),
       CASE WHEN crm._relation_of(m.schema_name, m.table_name) IS NULL THEN 'table missing'
            WHEN c.uncaptured THEN 'not captured' WHEN c.unseen THEN 'partly captured'
            WHEN m.paused THEN 'paused' WHEN b.state IN ('waiting', 'running', 'failed') THEN 'backfill ' || b.state ELSE m.mode END,
       concat_ws(', ', m.server || '.' || m.object, format('%s of %s rows copied', b.done, coalesce(b.total::text, '?')),
                 nullif(n.held, 0) || ' held', nullif(n.shadow, 0) || ' would be sent', nullif(n.dead, 0) || ' dead'),
       n.waiting, crm._span(n.oldest), b.error, b.finished_at,
       CASE WHEN crm._relation_of(m.schema_name, m.table_name) IS NULL THEN format('SELECT crm.mirror_drop(%L);', format('%I.%I', m.schema_name, m.table_name))
            WHEN c.uncaptured THEN format('ALTER TABLE %I.%I ENABLE TRIGGER zz_crm_capture; what was written meanwhile was not seen and goes nowhere.', m.schema_name, m.table_name)
            WHEN c.unseen THEN format('A subscription writes this table unseen. To send its changes too: ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER zz_crm_capture;', m.schema_name, m.table_name)
            WHEN m.paused THEN format('SELECT crm.resume(''mirror'', %L);', format('%I.%I', m.schema_name, m.table_name))
            WHEN n.dead > 0 THEN 'See crm.dead_letter.' WHEN n.held > 0 THEN 'See crm.held.'
            WHEN m.mode = 'shadow' THEN 'Shadow: changes are shown in crm.outbox and not sent. crm.preview, then crm.go_live.' END
FROM crm.mirror m LEFT JOIN crm.backfill b ON b.mirror = m.id
-- O fires for sessions only, A also for replication and session_replication_role = replica.
CROSS JOIN LATERAL (
    SELECT NOT coalesce(bool_or(g.tgenabled IN ('O', 'A')), false) AS uncaptured,
           NOT coalesce(bool_or(g.tgenabled = 'A'), false)
           AND EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = crm._relation_of(m.schema_name, m.table_name)) AS unseen
    FROM pg_trigger g
    WHERE g.tgrelid = crm._relation_of(m.schema_name, m.table_name) AND g.tgname = 'zz_crm_capture') c
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.state IN ('queued', 'in_flight', 'unknown')) AS waiting, count(*) FILTER (WHERE w.state = 'held') AS held,
           count(*) FILTER (WHERE w.state = 'would_send') AS shadow, count(*) FILTER (WHERE w.state = 'dead') AS dead,
           min(w.queued_at) FILTER (WHERE w.state IN ('queued', 'in_flight', 'unknown')) AS oldest
    FROM crm.write w WHERE w.mirror = m.id) n ON true
UNION ALL
SELECT 5, 'link', l.name, CASE WHEN l.paused THEN 'paused' ELSE l.mode END,
       concat_ws(', ', crm._table_of(l.left_mirror) || ' <-> ' || crm._table_of(l.right_mirror),
                 (SELECT count(*) FROM crm.field_map f WHERE f.link = l.name) || ' fields', coalesce('matched ' || date_trunc('seconds', l.matched_at), 'not matched yet')),
       (SELECT count(*) FROM crm.review_item r WHERE r.link = l.name), NULL, NULL, NULL,
       CASE WHEN l.paused THEN format('SELECT crm.resume(''link'', %L);', l.name)
            WHEN l.mode = 'shadow' THEN format('SELECT * FROM crm.preview(%L); then SELECT crm.go_live(%L);', l.name, l.name)
            WHEN EXISTS (SELECT FROM crm.review_item r WHERE r.link = l.name) THEN 'Questions wait in crm.review.' END
FROM crm.link l
UNION ALL
SELECT 6, 'stream', concat_ws(' ', x.server, x.kind, nullif(x.object, '')), x.state,
       concat_ws(', ', x.events || ' events', nullif(x.duplicates, 0) || ' duplicates', nullif(x.rejected, 0) || ' rejected', 'last event ' || date_trunc('seconds', x.last_event_at)),
       NULL, crm._span(x.last_ok_at), x.last_error, x.last_error_at,
       CASE WHEN x.last_error_at > coalesce(x.last_ok_at, '-infinity') THEN format('SELECT * FROM crm.server_check(%L); polling goes on meanwhile.', x.server) END
FROM crm.stream x
UNION ALL
SELECT * FROM crm._ledger_status;

COMMENT ON VIEW crm._status_parts IS 'The rows of crm.status with their rank.';

CREATE VIEW crm.status AS
SELECT kind, name, state, detail, waiting, lag, last_error, last_error_at, advice
FROM crm._status_parts ORDER BY rank, name;

COMMENT ON VIEW crm.status IS 'How everything stands: fence, worker, servers, mirrors, links, streams; what waits, how far behind, the last error, and what to do.';

COMMENT ON FUNCTION crm.sync_state(regclass, bigint) IS 'How one row of a mirror stands: synced, pending, would_send (shadow), held, error, deleted, soft_deleted (its linked record is), erased, local (never sent); null if there is no such row.';

CREATE OR REPLACE FUNCTION "_explain_pending"(
	"event" bigint, /* Option < i64 > */
	"write" bigint /* Option < i64 > */
) RETURNS TABLE (
	"what" TEXT,  /* & '_ str */
	"server" TEXT,  /* Option < String > */
	"object" TEXT,  /* Option < String > */
	"record" TEXT,  /* Option < String > */
	"field" TEXT,  /* Option < String > */
	"value" TEXT,  /* Option < String > */
	"instead_of" TEXT,  /* Option < String > */
	"competing" jsonb,  /* Option < JsonB > */
	"winner" TEXT,  /* Option < String > */
	"rule" bigint,  /* Option < i64 > */
	"decided_by" TEXT,  /* Option < String > */
	"calls" INT,  /* Option < i32 > */
	"verdict" TEXT,  /* String */
	"detail" TEXT  /* Option < String > */
)
VOLATILE PARALLEL UNSAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'explain_pending_wrapper';

CREATE OR REPLACE FUNCTION "_explain_policy"(
	"policy" jsonb, /* JsonB */
	"max_rows" INT /* i32 */
) RETURNS TABLE (
	"what" TEXT,  /* & '_ str */
	"server" TEXT,  /* Option < String > */
	"object" TEXT,  /* Option < String > */
	"record" TEXT,  /* Option < String > */
	"field" TEXT,  /* Option < String > */
	"value" TEXT,  /* Option < String > */
	"instead_of" TEXT,  /* Option < String > */
	"competing" jsonb,  /* Option < JsonB > */
	"winner" TEXT,  /* Option < String > */
	"rule" bigint,  /* Option < i64 > */
	"decided_by" TEXT,  /* Option < String > */
	"calls" INT,  /* Option < i32 > */
	"verdict" TEXT,  /* String */
	"detail" TEXT  /* Option < String > */
)
STRICT VOLATILE PARALLEL UNSAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'explain_policy_wrapper';

CREATE OR REPLACE FUNCTION "_map_cells"(
	"structure" TEXT, /* & str */
	"cells" TEXT[], /* Vec < Option < String > > */
	"width" INT /* i32 */
) RETURNS TEXT[] /* Vec < Option < String > > */
IMMUTABLE STRICT PARALLEL SAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'map_cells_wrapper';

CREATE OR REPLACE FUNCTION "_map_value"(
	"transform" TEXT, /* & str */
	"pairs" jsonb, /* Option < pgrx :: JsonB > */
	"value" TEXT /* Option < & str > */
) RETURNS TABLE (
	"image" TEXT,  /* Option < String > */
	"problem" TEXT  /* Option < String > */
)
IMMUTABLE PARALLEL SAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'map_value_wrapper';

COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the session worker and returns the ticket under which the answer will stand.';

COMMENT ON FUNCTION crm._wake() IS 'Wakes the session worker when this transaction commits.';

CREATE OR REPLACE FUNCTION "_what_if"(
	"policy" jsonb, /* JsonB */
	"since" timestamp with time zone, /* TimestampWithTimeZone */
	"max_rows" INT /* i32 */
) RETURNS TABLE (
	"link" TEXT,  /* Option < String > */
	"mirror" TEXT,  /* String */
	"row_id" bigint,  /* i64 */
	"record" TEXT,  /* String */
	"field" TEXT,  /* String */
	"value_now" TEXT,  /* Option < String > */
	"value_then" TEXT,  /* Option < String > */
	"rule" bigint,  /* Option < i64 > */
	"decided_by" TEXT,  /* String */
	"seq" bigint  /* i64 */
)
STRICT VOLATILE PARALLEL UNSAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'what_if_wrapper';

CREATE OR REPLACE FUNCTION "_why_values"(
	"mirror" INT, /* i32 */
	"row_id" bigint /* i64 */
) RETURNS TABLE (
	"verdict" TEXT,  /* String */
	"detail" TEXT,  /* String */
	"advice" TEXT  /* String */
)
STRICT STABLE PARALLEL UNSAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'why_values_wrapper';

CREATE OR REPLACE FUNCTION "explain"(
	"statement" TEXT, /* Option < & str > */
	"max_rows" INT DEFAULT 1000 /* i32 */
) RETURNS TABLE (
	"what" TEXT,  /* & '_ str */
	"server" TEXT,  /* Option < String > */
	"object" TEXT,  /* Option < String > */
	"record" TEXT,  /* Option < String > */
	"field" TEXT,  /* Option < String > */
	"value" TEXT,  /* Option < String > */
	"instead_of" TEXT,  /* Option < String > */
	"competing" jsonb,  /* Option < JsonB > */
	"winner" TEXT,  /* Option < String > */
	"rule" bigint,  /* Option < i64 > */
	"decided_by" TEXT,  /* Option < String > */
	"calls" INT,  /* Option < i32 > */
	"verdict" TEXT,  /* String */
	"detail" TEXT  /* Option < String > */
)
VOLATILE PARALLEL UNSAFE 
LANGUAGE c /* Rust */
AS 'MODULE_PATHNAME', 'explain_statement_wrapper';

COMMENT ON FUNCTION crm._map_value(text, jsonb, text) IS 'The image of a value under a transform or a value map, as the worker makes it; where there is none, why.';

COMMENT ON FUNCTION crm._map_cells(text, text[], integer) IS 'The columns of one side for those of the other, where a map makes one value of several, as the worker makes them.';

COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the worker of this database, also before this transaction ends; the answer is a row under the returned ticket.';

COMMENT ON FUNCTION crm._wake() IS 'Wakes the worker of this database when this transaction commits.';

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

COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the worker at once, outside the transaction; returns the ticket of its answer.';

COMMENT ON FUNCTION crm._wake() IS 'Wakes the worker when this transaction commits.';

COMMENT ON FUNCTION crm._role_ensure(name, boolean, text) IS 'Makes a role of ours, or refuses one of the same name that we did not make.';

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

GRANT SELECT ON ALL TABLES IN SCHEMA crm TO crm_reader;

REVOKE SELECT ON crm.installation, crm.webhook_queue, crm.change_0, crm.change_1 FROM crm_reader;

GRANT SELECT (only_one, id, activated_at, policy_version) ON crm.installation TO crm_reader;

DO $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS signature, p.proname AS name, p.prosecdef AS definer FROM pg_proc p WHERE p.pronamespace = 'crm'::regnamespace LOOP
        -- Helpers run with the caller's rights; these do not and trust their arguments.
        IF f.name NOT IN ('_as_engine', '_fence_write', '_role_ensure', '_event_partition_ensure', '_event_retain', '_event_seen_forget') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_admin', f.signature);
        END IF;
        IF f.name IN ('pause', 'resume', 'server_check', 'approve', 'reject', 'resolve_create', 'dead_letter_retry', 'dead_letter_discard', '_pause_set', '_ask', '_request',
                      '_wait_possible', '_server_committed', '_server_state_ensure', '_wake', '_link_named', '_mirror_named', '_tx_known', '_dead_ids') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_operator', f.signature);
        END IF;
        IF f.name IN ('review_match', 'review_resolve') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_steward', f.signature);
        END IF;
        IF f.name IN ('replay', 'consumer_create', 'consumer_drop', '_ledger_start', '_stream_named') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_operator', f.signature);
        END IF;
        IF f.name IN ('lineage', 'record_as_of', 'consumer_read', 'consumer_commit', '_consumer_named', '_ledger_end', '_keep', '_event_partitions', '_event_seq_at',
                      '_record_row', '_field_checked', '_mapped_fields', '_record_rows', '_outcome', '_decided', '_undrained', '_undo', '_as_of_checked', '_as_of_row') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_reader', f.signature);
        END IF;
        IF f.name IN ('wait_synced', 'sync_state', 'fence_status', '_fence', '_span', '_relation_of', '_table_of', '_column_of', '_review_answers', '_worker_alive', '_server_checked', '_near', '_near_hint', '_link_named',
                      '_mirror_named', '_host_allowed') OR f.name ~ '^(why|_why.*|_clauses|_clause_ends|explain|_explain.*)$' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO crm_reader', f.signature);
        END IF;
    END LOOP;
END $$;

GRANT INSERT, UPDATE, DELETE ON crm.mirror, crm.mirror_column, crm.backfill, crm.link, crm.field_map, crm.conflict_policy, crm.field_lock, crm.policy_task, crm.xref, crm.field_state TO crm_admin;

GRANT INSERT, UPDATE, DELETE ON crm.server_state, crm.stream, crm.review_item, crm.write, crm.remote_object, crm.remote_field TO crm_admin;

GRANT INSERT ON crm.installation, crm.config_change TO crm_admin;

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

CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.field_lock
    FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.field_default
    FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
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
