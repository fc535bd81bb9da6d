-- Tables of pg_crm_sync. Names of the CRM side are kept as text and our own
-- ids as integers; no reg* columns, so that pg_upgrade accepts them.

CREATE TABLE crm.installation (
    only_one        boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    id              text NOT NULL DEFAULT substr(replace(gen_random_uuid()::text, '-', ''), 1, 12),
    activated_at    timestamptz,
    activation      text,
    policy_version  bigint NOT NULL DEFAULT 1
);
COMMENT ON TABLE crm.installation IS 'One row: who we are to the CRMs (client mark pg_crm_sync_<id>), and the activation that lets this very cluster write to them.';

CREATE TABLE crm.server_state (
    server              text PRIMARY KEY,
    server_type         text NOT NULL CHECK (server_type IN ('hubspot', 'salesforce')),
    paused              boolean NOT NULL DEFAULT false,
    tenant              text,
    catalog_at          timestamptz,
    catalog_ticket      bigint NOT NULL DEFAULT 0,
    last_error          text,
    last_error_at       timestamptz,
    advice              text,
    time_zone           text
);
COMMENT ON TABLE crm.server_state IS 'What the worker knows of each CRM account: pause switch, last catalog refresh, last error and what to do about it.';
COMMENT ON COLUMN crm.server_state.time_zone IS 'The account''s time zone, as the CRM tells it.';

CREATE TABLE crm.remote_object (
    server       text NOT NULL,
    object       text NOT NULL,
    type_id      text NOT NULL,
    label        text NOT NULL,
    label_plural text NOT NULL,
    custom       boolean NOT NULL,
    createable   boolean NOT NULL,
    updateable   boolean NOT NULL,
    deletable    boolean NOT NULL,
    streamable   boolean NOT NULL,
    PRIMARY KEY (server, object)
);
COMMENT ON TABLE crm.remote_object IS 'Catalog: the object types that each CRM account offers, as the CRM describes them.';

CREATE TABLE crm.remote_field (
    server       text NOT NULL,
    object       text NOT NULL,
    field        text NOT NULL,
    ordinal      integer NOT NULL,
    label        text NOT NULL,
    description  text NOT NULL,
    field_type   text NOT NULL,
    remote_type  text NOT NULL,
    column_type  text NOT NULL,
    max_length   integer,
    "precision"  integer,
    scale        integer,
    options      jsonb NOT NULL DEFAULT '[]',
    restricted   boolean NOT NULL,
    required     boolean NOT NULL,
    is_unique    boolean NOT NULL,
    external_id  boolean NOT NULL,
    read_only    boolean NOT NULL,
    calculated   boolean NOT NULL,
    "references" text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (server, object, field)
);
COMMENT ON TABLE crm.remote_field IS 'Catalog: the fields of each object type with type, length, choices and what may be written.';

CREATE TABLE crm.mirror (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server        text NOT NULL,
    object        text NOT NULL,
    schema_name   name NOT NULL,
    table_name    name NOT NULL,
    mode          text NOT NULL DEFAULT 'shadow' CHECK (mode IN ('shadow', 'live')),
    paused        boolean NOT NULL DEFAULT false,
    row_filter    text,
    poll_interval interval NOT NULL DEFAULT '60 seconds' CHECK (poll_interval >= '1 second' AND poll_interval <= '1 day'),
    unique_field  text,
    source_field  text,
    api_share     real CHECK (api_share > 0 AND api_share <= 1),
    created_at    timestamptz NOT NULL DEFAULT now(),
    reconcile_at    time DEFAULT '06:00',
    reconcile_zone  text,
    reconcile_depth text NOT NULL DEFAULT 'stamps' CHECK (reconcile_depth IN ('stamps', 'values')),
    reconcile_patience interval NOT NULL DEFAULT '1 minute' CHECK (reconcile_patience >= '0' AND reconcile_patience <= '1 day'),
    missing_limit bigint NOT NULL DEFAULT 1000 CHECK (missing_limit >= 0),
    missing_share numeric NOT NULL DEFAULT 0.1 CHECK (missing_share >= 0 AND missing_share <= 1),
    on_schema_change text NOT NULL DEFAULT 'ask' CHECK (on_schema_change IN ('ignore', 'add', 'ask', 'pause')),
    UNIQUE (schema_name, table_name),
    UNIQUE (server, object, schema_name)
);
COMMENT ON TABLE crm.mirror IS 'One row per mirror: which object type of which server a table holds, and whether its changes go out (mode live) or are only shown (shadow).';
COMMENT ON COLUMN crm.mirror.unique_field IS 'Our own unique property or External ID in that CRM, if the account has it: creates become upserts on it, so a lost answer makes no duplicate.';
COMMENT ON COLUMN crm.mirror.api_share IS 'Of the calls that this database may make to the account, per window and per 24 hours, the part that this mirror may use at most; null for all.';
COMMENT ON COLUMN crm.mirror.on_schema_change IS 'What follows when the CRM changes a field of the object: ignore, add, ask (the default) or pause; see crm.schema_policy.';
COMMENT ON COLUMN crm.mirror.source_field IS 'The property in that CRM that says who wrote last (sync_source), if the account has it.';
COMMENT ON COLUMN crm.mirror.reconcile_at IS 'When a day the mirror is compared with its CRM, by the clock of the account; null for never. See crm.reconcile.';
COMMENT ON COLUMN crm.mirror.reconcile_zone IS 'The time zone of reconcile_at; null for the account''s own (crm.server_state.time_zone), UTC until that is known.';
COMMENT ON COLUMN crm.mirror.reconcile_depth IS 'What a scheduled reconciliation compares: stamps (ids and modified stamps) or values (all columns too).';
COMMENT ON COLUMN crm.mirror.reconcile_patience IS 'How long streams get to bring what a reconciliation found before it is read and counts as missed.';
COMMENT ON COLUMN crm.mirror.missing_limit IS 'When more records than this are missing in the CRM, none is removed here and crm.review asks.';
COMMENT ON COLUMN crm.mirror.missing_share IS 'The same as a share of the rows, 0 to 1, from 20 missing records on.';

CREATE TABLE crm.mirror_column (
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    column_name name NOT NULL,
    field       text NOT NULL,
    field_type  text NOT NULL,
    max_length  integer,
    read_only   boolean NOT NULL,
    required    boolean NOT NULL,
    gone_at     timestamptz,
    PRIMARY KEY (mirror, column_name)
);
COMMENT ON COLUMN crm.mirror_column.gone_at IS 'Since when the CRM does not have the field any more, or hides it from our user: the column keeps its last values and is neither read nor written.';
COMMENT ON TABLE crm.mirror_column IS 'Which field of the CRM each column of a mirror holds.';

CREATE TABLE crm.backfill (
    mirror      integer PRIMARY KEY REFERENCES crm.mirror ON DELETE CASCADE,
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    cursor      text,
    done        bigint NOT NULL DEFAULT 0,
    total       bigint,
    started_at  timestamptz,
    finished_at timestamptz,
    error       text
);
COMMENT ON TABLE crm.backfill IS 'First copy of each mirror: the cursor is committed with the rows of its page, so a crash resumes where it was.';

CREATE TABLE crm.stream (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server        text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('webhook', 'journal', 'pubsub', 'cometd', 'poll')),
    object        text NOT NULL DEFAULT '',
    replay_id     bytea,
    modified_at   bigint,
    record_id     text,
    state         text NOT NULL DEFAULT 'new',
    events        bigint NOT NULL DEFAULT 0,
    duplicates    bigint NOT NULL DEFAULT 0,
    rejected      bigint NOT NULL DEFAULT 0,
    last_event_at timestamptz,
    last_ok_at    timestamptz,
    last_error    text,
    last_error_at timestamptz,
    refused       text,
    refused_at    timestamptz,
    UNIQUE (server, kind, object)
);
COMMENT ON TABLE crm.stream IS 'Inbound sources and how far each was applied: the offset is committed with the data it brought.';
COMMENT ON COLUMN crm.stream.state IS 'new: nothing came yet; running; failed: tried again after a while; polls: the CRM has no such stream, or refused it, and the object is polled.';
COMMENT ON COLUMN crm.stream.refused IS 'Why there is no stream, in the CRM''s words. Asked again after crm.refresh, crm.server_check, crm.schema_refresh or crm.import, and once a day.';
COMMENT ON COLUMN crm.stream.modified_at IS 'Milliseconds since 1970. Polls: the modified stamp of the last row seen. Journals: up to when nothing was missed.';

CREATE TABLE crm.link (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    left_mirror  integer NOT NULL REFERENCES crm.mirror,
    right_mirror integer NOT NULL REFERENCES crm.mirror,
    mode         text NOT NULL DEFAULT 'shadow' CHECK (mode IN ('shadow', 'live')),
    paused       boolean NOT NULL DEFAULT false,
    create_left  boolean NOT NULL DEFAULT true,
    create_right boolean NOT NULL DEFAULT true,
    on_left_delete     text NOT NULL DEFAULT 'unlink' CHECK (on_left_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    on_right_delete    text NOT NULL DEFAULT 'unlink' CHECK (on_right_delete IN ('propagate', 'soft_delete', 'unlink', 'ignore')),
    on_delete_conflict text NOT NULL DEFAULT 'review' CHECK (on_delete_conflict IN ('review', 'delete', 'keep')),
    left_scope   text,
    right_scope  text,
    on_leave     text NOT NULL DEFAULT 'keep' CHECK (on_leave IN ('keep', 'unlink', 'delete')),
    latency      text NOT NULL DEFAULT 'interactive' CHECK (latency IN ('interactive', 'relaxed', 'off_peak')),
    matched_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK (left_mirror <> right_mirror)
);
COMMENT ON TABLE crm.link IS 'Pairs of mirrors whose rows describe the same things. A new link is in shadow: it shows what it would send, and sends nothing until crm.go_live.';
COMMENT ON COLUMN crm.link.on_left_delete IS 'When a record of the left side is removed, the right one: propagate is removed in its CRM too; soft_delete is shown as deleted here, stays in its CRM and comes back with the first; unlink stays and is a thing of its own; ignore stays and stays tied.';
COMMENT ON COLUMN crm.link.on_right_delete IS 'The same for the left record when the right one is removed.';
COMMENT ON COLUMN crm.link.on_delete_conflict IS 'When a record is removed while a change was on its way there: review asks in crm.review, delete lets the removal stand, keep brings the record back.';

COMMENT ON COLUMN crm.link.latency IS 'How soon its changes are wanted: interactive (at once), relaxed (when nothing interactive waits for a call), off_peak (in the windows of crm.off_peak, as heavy work). A mirror goes by the most urgent of its links.';
COMMENT ON COLUMN crm.link.left_scope IS 'Which rows of the left mirror take part: a condition over its columns, such as lifecyclestage = ''customer''; null for all.';
COMMENT ON COLUMN crm.link.right_scope IS 'The same for the right mirror.';
COMMENT ON COLUMN crm.link.on_leave IS 'What happens to a tied pair when one of its rows leaves the scope: keep (the tie rests, nothing travels), unlink (the tie ends), or delete (the other record is deleted).';

CREATE TABLE crm.field_map (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link        text NOT NULL REFERENCES crm.link (name) ON UPDATE CASCADE ON DELETE CASCADE,
    left_field  text NOT NULL,
    right_field text NOT NULL,
    direction   text NOT NULL DEFAULT 'both' CHECK (direction IN ('both', 'to_left', 'to_right')),
    to_left     text NOT NULL DEFAULT 'identity',
    to_right    text NOT NULL DEFAULT 'identity',
    value_map   jsonb,
    value_map_back jsonb,
    default_left text,
    default_right text,
    structure   text CHECK (structure IN ('lines', 'words', 'unit')),
    left_more   text[] NOT NULL DEFAULT '{}',
    right_more  text[] NOT NULL DEFAULT '{}',
    match_order smallint,
    match_threshold real CHECK (match_threshold > 0 AND match_threshold <= 1),
    match_accept real CHECK (match_accept > 0 AND match_accept <= 1),
    unique_key  boolean NOT NULL DEFAULT false,
    UNIQUE (link, left_field),
    UNIQUE (link, right_field)
);
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
COMMENT ON COLUMN crm.field_map.unique_key IS 'The value exists once on each side (an invoice number): compared before all other keys, for equality; a record that has it is taken instead of being made. Before a record is made the CRM itself is asked for the value, one search per batch of creates.';

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

CREATE TABLE crm.conflict_policy (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    link       text NOT NULL,
    field      text NOT NULL DEFAULT '*',
    strategy   text NOT NULL,
    winner     text,
    function   text,
    min_score  numeric CHECK (min_score >= 0 AND min_score <= 1),
    skew       interval NOT NULL DEFAULT '2 seconds' CHECK (skew >= '0' AND skew <= '1 hour'),
    strict     boolean NOT NULL DEFAULT false,
    changed_by name NOT NULL DEFAULT session_user,
    changed_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (link, field)
);
COMMENT ON TABLE crm.conflict_policy IS 'Who wins: one row per link and field (left side''s name; * for all others; link * for mirrors without a link). Edits count from the next event on; see crm.policy_history and crm.policy_apply.';
COMMENT ON COLUMN crm.conflict_policy.strategy IS 'owner and fill_blank decide every change; append, delta and union keep what both sides added; last_write_wins, priority, function and review decide conflicts.';
COMMENT ON COLUMN crm.conflict_policy.winner IS 'Servers, local (SQL) or applications (pg_crm_sync.application), in order, comma separated: owners, or the order of priority and of ties.';
COMMENT ON COLUMN crm.conflict_policy.function IS 'For strategy function: schema.name of a function (held text, came text, context jsonb) RETURNS text that is not volatile; it runs as its owner.';
COMMENT ON COLUMN crm.conflict_policy.min_score IS 'What SQL writes lands only if the transaction gives at least this score: SET LOCAL pg_crm_sync.score = 0.9.';
COMMENT ON COLUMN crm.conflict_policy.strict IS 'Nothing in the CRM may be overwritten unseen: writes of the field go to Salesforce one record a call, on condition that nobody changed the record since it was last seen. HubSpot knows no such condition.';
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

CREATE SEQUENCE crm.entity_seq;
COMMENT ON SEQUENCE crm.entity_seq IS 'Ids of real-world things that records on several sides describe.';

-- Kept for every linked record, so it is as narrow as can be: the record's id
-- stands in the mirror.
CREATE TABLE crm.xref (
    row_id      bigint NOT NULL,
    entity      bigint NOT NULL,
    linked_at   timestamptz NOT NULL DEFAULT now(),
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    merged_into text,
    PRIMARY KEY (mirror, row_id)
);
CREATE INDEX xref_entity ON crm.xref (entity);
COMMENT ON TABLE crm.xref IS 'Which rows of which mirrors are one thing. One row per linked record; nothing else is kept of a record that is settled.';

CREATE TABLE crm.field_state (
    entity bigint NOT NULL,
    field  text NOT NULL,
    state  jsonb NOT NULL,
    at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (entity, field)
);
COMMENT ON TABLE crm.field_state IS 'Only for fields that are not settled: per side the last common value, the last observed value and what we sent.';

CREATE SEQUENCE crm.event_seq;
COMMENT ON SEQUENCE crm.event_seq IS 'The engine sequence: assigned by the one session worker of the database, so it is the order of decisions.';

-- Columns of fixed length first: one line of the ledger costs 24 bytes less so.
CREATE TABLE crm.event (
    seq            bigint NOT NULL,
    row_id         bigint,
    entity         bigint,
    tx             bigint,
    occurred_at    timestamptz NOT NULL,
    received_at    timestamptz NOT NULL,
    mirror         integer,
    stream         integer,
    policy_version integer,
    identity       uuid,
    kind           text NOT NULL,
    origin         text NOT NULL,
    source         text NOT NULL,
    record_id      text,
    actor          text,
    application    text,
    reason         text,
    fields         text[],
    old_values     text[],
    new_values     text[],
    unknown        text[],
    decision       jsonb,
    carried        jsonb,
    score          real
) PARTITION BY RANGE (seq);
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
COMMENT ON COLUMN crm.event.kind IS 'create, update, delete, restore, privacy_delete, association, merge, convert (a lead that goes on as a contact), join (records that became one thing), schema (the CRM changed a field, see crm.schema_change), resolved (a steward''s answer, or a question that ended with its record), discard (values that were given up: the row keeps them, see decision), policy (a change of policy), tombstone (a row made only to remember that its record is deleted).';
COMMENT ON COLUMN crm.event.origin IS 'Who wrote the value: a server''s name, local for SQL, or a named application; for a result, who caused our write.';
COMMENT ON COLUMN crm.event.source IS 'webhook, pubsub, poll, backfill, read, reconcile (read because a reconciliation found a difference), replay, catalog, sql, link (it followed from a linked record, or from what happened to the record itself), review (a steward''s answer), reject (crm.reject put old values back; actor, application and reason are those of who rejected), or result (the CRM''s answer to a write of ours).';
COMMENT ON COLUMN crm.event.actor IS 'The CRM''s user, or session_user of the SQL session; null if unknown.';
COMMENT ON COLUMN crm.event.application IS 'What the CRM tells of the program that wrote, or application_name of the SQL session.';
COMMENT ON COLUMN crm.event.reason IS 'pg_crm_sync.reason of the SQL session.';
COMMENT ON COLUMN crm.event.score IS 'pg_crm_sync.score of the SQL session, 0 to 1: how sure it was of what it wrote; null where it stated none. See crm.conflict_policy.min_score.';
COMMENT ON COLUMN crm.event.fields IS 'Changed fields, by the names of the mirror''s CRM.';
COMMENT ON COLUMN crm.event.old_values IS 'Values of the mirror''s row before, one per field, in canonical text. A null in it is a null that was there, unless unknown names the field; no array at all means that nothing is known (create, result, erased).';
COMMENT ON COLUMN crm.event.new_values IS 'Values that came, one per field, whether or not they stand now. A null in it is an explicit null; no array at all means that none came (delete, erased).';
COMMENT ON COLUMN crm.event.unknown IS 'Fields whose value before nobody knows: too long to be kept in the change log.';
COMMENT ON COLUMN crm.event.decision IS 'What was decided other than "only this side changed, the value applies" (one_side): a list of field (the policy''s name for it; "as" is the name in fields if that differs), step, and where they say something rule (crm.conflict_policy.id), strategy, winner, value, losers [{origin, value}], conflict, held. Null when every value simply applied.';
COMMENT ON COLUMN crm.event.carried IS 'What the event changed on the rows of other mirrors in the same transaction: their values before, as {"mirror": {"field": old}}.';

CREATE TABLE crm.event_seen (
    identity uuid PRIMARY KEY,
    seen_on  date NOT NULL DEFAULT current_date
);
COMMENT ON TABLE crm.event_seen IS 'Identities of events already taken, kept for the redelivery horizon: a duplicate stops here.';

CREATE TABLE crm.deferred (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    record_id   text NOT NULL,
    source      text NOT NULL,
    change      jsonb NOT NULL,
    reason      text NOT NULL CHECK (reason IN ('locked', 'read')),
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deferred_record ON crm.deferred (mirror, record_id);
COMMENT ON TABLE crm.deferred IS 'Events taken but not decided: their row is locked by a user (locked), or the record must first be read from the CRM (read). Later events of the record wait behind them.';

CREATE TABLE crm.write (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    row_id      bigint NOT NULL,
    entity      bigint,
    kind        text NOT NULL CHECK (kind IN ('create', 'update', 'delete')),
    record_id   text,
    vals        jsonb NOT NULL DEFAULT '{}',
    old_vals    jsonb NOT NULL DEFAULT '{}',
    origin      text NOT NULL,
    state       text NOT NULL CHECK (state IN ('queued', 'in_flight', 'unknown', 'held', 'would_send', 'dead')),
    txs         bigint[] NOT NULL DEFAULT '{}',
    attempts    integer NOT NULL DEFAULT 0,
    not_before  timestamptz,
    queued_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_at  timestamptz,
    status      integer,
    error_class text,
    error_code  text,
    error       text,
    advice      text,
    -- Bulk job that carries a write in flight: after a crash it is asked what became of it.
    job         text
);
CREATE INDEX write_record ON crm.write (mirror, row_id);
CREATE INDEX write_queue ON crm.write (mirror, id) WHERE state = 'queued';
CREATE INDEX write_removal ON crm.write (mirror, record_id) WHERE kind = 'delete';
COMMENT ON TABLE crm.write IS 'Outgoing writes that are not finished; a finished one leaves and stands in crm.event. See the views crm.outbox and crm.dead_letter.';
COMMENT ON COLUMN crm.write.txs IS 'Transactions that caused it (crm.change_tx), in the order in which they were taken up: the last 1000, of what the guard holds the first 1000.';

CREATE TABLE crm.poison (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror      integer,
    server      text,
    source      text NOT NULL,
    record_id   text,
    change      jsonb,
    sqlstate    text,
    error       text NOT NULL,
    advice      text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crm.poison IS 'Inbound events that could not be applied; the stream went on without them. See the view crm.dead_letter.';

CREATE TABLE crm.webhook_queue (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server      text NOT NULL,
    method      text NOT NULL,
    uri         text NOT NULL,
    headers     jsonb NOT NULL,
    body        bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crm.webhook_queue IS 'Webhooks taken by crm.webhook(): raw, bounded, checked and decoded by the worker.';

CREATE TABLE crm.check_result (
    ticket  bigint NOT NULL,
    ordinal integer NOT NULL,
    item    text NOT NULL,
    ok      boolean,
    detail  text NOT NULL,
    advice  text,
    PRIMARY KEY (ticket, ordinal)
);
COMMENT ON TABLE crm.check_result IS 'Answers of the worker to crm.server_check; the row with item = ''end'' is the last. Removed after an hour.';

-- One call per statement: each one updates the row of the extension in pg_extension.
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['installation', 'server_state', 'remote_object', 'remote_field', 'mirror', 'mirror_column', 'backfill',
     'stream', 'link', 'field_map', 'field_default', 'survivor_rule', 'conflict_policy', 'field_lock', 'xref', 'field_state', 'event', 'event_seen', 'deferred', 'write', 'poison',
     'webhook_queue', 'entity_seq', 'event_seq', 'mirror_id_seq', 'stream_id_seq', 'link_id_seq',
     'field_map_id_seq', 'conflict_policy_id_seq', 'field_lock_id_seq', 'deferred_id_seq', 'write_id_seq', 'poison_id_seq',
     'webhook_queue_id_seq']
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

-- A row says "read the configuration again". Inserted, never updated: a counter
-- would make every open transaction that touches configuration block the worker.
CREATE TABLE crm.config_change (
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crm.config_change IS 'One row per committed change of servers, mirrors, links or policy that the worker has not read yet.';

CREATE FUNCTION crm._config_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO crm.config_change DEFAULT VALUES;
    -- At commit: what comes next shall be decided by what stands then.
    PERFORM crm._wake();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION crm._config_changed() IS 'Tells the worker to read its configuration again.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['mirror', 'mirror_column', 'link', 'field_map', 'field_default', 'conflict_policy', 'field_lock'] LOOP
        EXECUTE format('CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.%I
                        FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed()', t);
    END LOOP;
END $$;
CREATE TRIGGER config_changed AFTER UPDATE OF paused ON crm.server_state
    FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
