-- Schema drift: what the CRM changed in its fields, what the mirror's policy says
-- about it, and what a person answers. The worker notices and carries out.

CREATE TABLE crm.schema_change (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror       integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    kind         text NOT NULL CHECK (kind IN ('added', 'renamed', 'retyped', 'removed', 'restored', 'choices')),
    field        text NOT NULL,
    detail       jsonb NOT NULL,
    policy       text NOT NULL,
    state        text NOT NULL CHECK (state IN ('noted', 'asked', 'applying', 'applied', 'ignored', 'failed')),
    paused       boolean NOT NULL DEFAULT false,
    noticed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    answer       text CHECK (answer IN ('apply', 'ignore')),
    answered_by  text,
    answered_why text,
    answered_at  timestamptz,
    done_at      timestamptz,
    attempts     integer NOT NULL DEFAULT 0,
    not_before   timestamptz,
    error        text,
    advice       text
);
CREATE INDEX schema_change_open ON crm.schema_change (mirror) WHERE state IN ('asked', 'applying', 'failed');
COMMENT ON TABLE crm.schema_change IS 'What a CRM changed in the fields of a mirrored object: when it was noticed, what the mirror''s policy (crm.mirror.on_schema_change) made of it, and what a person answered. Kept; the same line stands in crm.event.';
COMMENT ON COLUMN crm.schema_change.kind IS 'added, renamed (the API name changed, known by label and type), retyped (type, length or writability), removed (gone, or hidden from our user), restored (a removed one is back), choices (values of a picklist).';
COMMENT ON COLUMN crm.schema_change.field IS 'API name; of a renamed field the new one, the old one is in detail.';
COMMENT ON COLUMN crm.schema_change.detail IS 'Before and after: from and to as the catalog describes the field, was (old name), fit (same, to_text, other), added and removed (choices).';
COMMENT ON COLUMN crm.schema_change.state IS 'noted (told, nothing follows), asked (waits for crm.schema_answer), applying (the worker is at it, or waits for a lock), applied, ignored, failed (see error; crm.schema_answer tries again).';
COMMENT ON COLUMN crm.schema_change.paused IS 'The mirror rests because of this row until it is answered.';

CREATE TABLE crm.column_fill (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    fields      text[] NOT NULL,
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done')),
    cursor      text,
    done        bigint NOT NULL DEFAULT 0,
    filled      bigint NOT NULL DEFAULT 0,
    total       bigint,
    started_at  timestamptz,
    finished_at timestamptz,
    error       text
);
CREATE INDEX column_fill_open ON crm.column_fill (mirror, id) WHERE state <> 'done';
COMMENT ON TABLE crm.column_fill IS 'Copies of single columns into mirrors that are full already: only these fields are asked for, and values that are newer stay. The cursor is committed with the rows of its page. See crm.progress.';
COMMENT ON COLUMN crm.column_fill.filled IS 'Rows that got a value by it; the others have none, or had it already.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['schema_change', 'column_fill', 'schema_change_id_seq', 'column_fill_id_seq'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE FUNCTION crm.schema_policy(mirror text, policy text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m crm.mirror := crm._mirror_named(mirror);
BEGIN
    IF policy IS NULL OR policy NOT IN ('ignore', 'add', 'ask', 'pause') THEN
        RAISE EXCEPTION 'there is no schema policy %', coalesce(quote_literal(policy), 'null')
            USING ERRCODE = '22023', DETAIL = 'Policies are: ignore, add, ask, pause.',
                  HINT = crm._near_hint(coalesce(policy, ''), ARRAY['ignore', 'add', 'ask', 'pause'], 'ask, the default, leaves the table alone and asks in crm.schema_change.');
    END IF;
    UPDATE crm.mirror x SET on_schema_change = schema_policy.policy WHERE x.id = m.id;
    RETURN format('%I.%I: %s', m.schema_name, m.table_name, policy);
END $$;
COMMENT ON FUNCTION crm.schema_policy(text, text) IS 'Sets what a mirror does when its CRM changes a field: ignore (note it), add (take it over where nothing can be lost, else ask), ask (the default: note it and ask), pause (ask, and rest until the answer).';

-- The mirror goes on when the last question for which it rests is closed.
CREATE FUNCTION crm._schema_unpause(mirror_id integer) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE crm.mirror m SET paused = false WHERE m.id = mirror_id AND m.paused
        AND NOT EXISTS (SELECT FROM crm.schema_change c WHERE c.mirror = mirror_id AND c.paused AND c.state IN ('asked', 'applying', 'failed'))
$$;
COMMENT ON FUNCTION crm._schema_unpause(integer) IS 'Lets a mirror go on for which no change of its schema is open any more.';

CREATE FUNCTION crm.schema_answer(change bigint, answer text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c     crm.schema_change;
    after text;
BEGIN
    SELECT * INTO c FROM crm.schema_change x WHERE x.id = change FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no schema change %', coalesce(change::text, 'null')
            USING ERRCODE = '42704', HINT = 'See SELECT * FROM crm.schema_change WHERE state IN (''asked'', ''failed'');';
    ELSIF c.state NOT IN ('asked', 'failed') THEN
        RAISE EXCEPTION 'schema change % is not open: it is %', change, c.state
            USING ERRCODE = '55000', HINT = 'See SELECT * FROM crm.schema_change WHERE state IN (''asked'', ''failed''); for a field that was ignored, crm.import with columns => … adds it.';
    ELSIF answer IS NULL OR answer NOT IN ('apply', 'ignore') THEN
        RAISE EXCEPTION 'a schema change cannot be answered with %', coalesce(quote_literal(answer), 'null')
            USING ERRCODE = '22023', DETAIL = 'Answers are: apply, ignore.', HINT = crm._near_hint(coalesce(answer, ''), ARRAY['apply', 'ignore'], 'apply lets the mirror follow the CRM, ignore leaves it as it is.');
    END IF;
    after := CASE WHEN answer = 'ignore' THEN 'ignored' WHEN c.kind IN ('removed', 'choices') THEN 'applied' ELSE 'applying' END;
    UPDATE crm.schema_change x SET answer = schema_answer.answer, state = after, answered_by = session_user, answered_at = clock_timestamp(), answered_why = reason,
           done_at = CASE WHEN after <> 'applying' THEN clock_timestamp() END, attempts = 0, not_before = NULL, error = NULL, advice = NULL
    WHERE x.id = change;
    IF after <> 'applying' AND c.paused THEN
        PERFORM crm._schema_unpause(c.mirror);
    END IF;
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN after;
END $$;
COMMENT ON FUNCTION crm.schema_answer(bigint, text, text) IS 'Answers a change of schema: apply lets the mirror follow (the worker adds, renames or retypes the column and fills it), ignore leaves the mirror as it is. Returns the state that follows.';

CREATE FUNCTION crm.schema_refresh(server text, wait interval DEFAULT '60 seconds') RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s      record;
    until  timestamptz := crm._wait_possible('crm.schema_refresh', wait);
    ticket bigint;
    state  crm.server_state;
    newest bigint := (SELECT coalesce(max(c.id), 0) FROM crm.schema_change c);
BEGIN
    SELECT * INTO s FROM crm._server_checked(server);
    PERFORM crm._server_committed(s.server_oid, 'crm.schema_refresh');
    ticket := crm._ask('crm.schema_refresh', ARRAY['catalog'], s.server_oid, until);
    LOOP
        SELECT * INTO state FROM crm.server_state t WHERE t.server = schema_refresh.server;
        EXIT WHEN state.catalog_ticket >= ticket;
        IF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'the catalog of server "%" did not arrive within %', server, wait
                USING ERRCODE = '57014', DETAIL = coalesce('Last error: ' || state.last_error || '.', 'The worker has reported no error yet.'),
                      HINT = coalesce(state.advice, format('See SELECT * FROM crm.server_check(%L); or call again with a longer wait.', server));
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
    IF state.last_error_at >= state.catalog_at THEN
        RAISE EXCEPTION 'the catalog of server "%" could not be read: %', server, state.last_error
            USING ERRCODE = '58000', HINT = coalesce(state.advice, format('See SELECT * FROM crm.server_check(%L);', server));
    END IF;
    RETURN (SELECT count(*) FROM crm.schema_change c JOIN crm.mirror m ON m.id = c.mirror WHERE m.server = schema_refresh.server AND c.id > newest);
END $$;
COMMENT ON FUNCTION crm.schema_refresh(text, interval) IS 'Reads the catalog of a server now, without waiting for pg_crm_sync.catalog_interval, and returns how many changes of mirrored objects were noticed by that.';

-- Values for a field that is gone go nowhere; what else a write holds goes on.
CREATE FUNCTION crm._writes_without(mirror_id integer, gone text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One that the CRM refused whole for it is tried again without it.
    INSERT INTO crm.write (mirror, row_id, entity, kind, record_id, vals, old_vals, origin, state, txs, error_class, error_code, error, advice)
    SELECT w.mirror, w.row_id, w.entity, 'update', w.record_id, jsonb_build_object(gone, w.vals -> gone), jsonb_strip_nulls(jsonb_build_object(gone, w.old_vals -> gone)),
           w.origin, 'dead', w.txs, 'fix_mapping', 'field_gone', format('the CRM has no field %s any more', gone),
           'If it comes back or was renamed, this goes out when crm.schema_change is applied; else SELECT crm.dead_letter_discard(ARRAY[id]).'
    FROM crm.write w
    WHERE w.mirror = mirror_id AND w.vals ? gone AND w.vals - gone <> '{}' AND w.kind <> 'delete'
      AND (w.state IN ('queued', 'held', 'would_send') OR (w.state = 'dead' AND w.error_class = 'fix_mapping' AND w.error_code <> 'field_gone'));
    UPDATE crm.write w SET vals = w.vals - gone, old_vals = w.old_vals - gone, state = CASE w.state WHEN 'dead' THEN 'queued' ELSE w.state END, not_before = NULL
    WHERE w.mirror = mirror_id AND w.vals ? gone AND w.vals - gone <> '{}' AND w.kind <> 'delete'
      AND (w.state IN ('queued', 'held', 'would_send') OR (w.state = 'dead' AND w.error_class = 'fix_mapping' AND w.error_code <> 'field_gone'));
    UPDATE crm.write w SET state = 'dead', error_class = 'fix_mapping', error_code = 'field_gone', error = format('the CRM has no field %s any more', gone),
           advice = 'If it comes back or was renamed, this goes out when crm.schema_change is applied; else SELECT crm.dead_letter_discard(ARRAY[id]).'
    WHERE w.mirror = mirror_id AND w.vals ? gone AND w.vals - gone = '{}' AND w.kind = 'update' AND w.state IN ('queued', 'dead')
      AND w.error_code IS DISTINCT FROM 'field_gone';
END $$;
COMMENT ON FUNCTION crm._writes_without(integer, text) IS 'Takes a field that is gone out of the writes that wait; its values stand in crm.dead_letter.';

-- Everything that calls the field by its name, but for the column: what people
-- have written about it still means it.
CREATE FUNCTION crm._field_renamed(mirror_id integer, was text, now_called text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE crm.mirror_column k SET field = now_called WHERE k.mirror = mirror_id AND k.field = was;
    UPDATE crm.field_map f SET left_field = CASE WHEN f.left_field = was THEN now_called ELSE f.left_field END, left_more = array_replace(f.left_more, was, now_called)
    FROM crm.link l WHERE l.name = f.link AND l.left_mirror = mirror_id AND (f.left_field = was OR was = ANY (f.left_more));
    UPDATE crm.field_map f SET right_field = CASE WHEN f.right_field = was THEN now_called ELSE f.right_field END, right_more = array_replace(f.right_more, was, now_called)
    FROM crm.link l WHERE l.name = f.link AND l.right_mirror = mirror_id AND (f.right_field = was OR was = ANY (f.right_more));
    UPDATE crm.field_default d SET field = now_called FROM crm.link l
    WHERE l.name = d.link AND d.field = was AND mirror_id = CASE d.side WHEN 'left' THEN l.left_mirror ELSE l.right_mirror END;
    UPDATE crm.reference_map r SET field = now_called WHERE r.theirs = mirror_id AND r.field = was;
    -- Policies, locks and states go by the left side's name.
    UPDATE crm.conflict_policy p SET field = now_called FROM crm.link l WHERE l.name = p.link AND l.left_mirror = mirror_id AND p.field = was;
    UPDATE crm.field_lock p SET field = now_called FROM crm.link l WHERE l.name = p.link AND l.left_mirror = mirror_id AND p.field = was;
    UPDATE crm.field_state s SET field = now_called
    WHERE s.field = was AND EXISTS (SELECT FROM crm.xref x WHERE x.mirror = mirror_id AND x.entity = s.entity)
      AND NOT EXISTS (SELECT FROM crm.field_state o WHERE o.entity = s.entity AND o.field = now_called);
    UPDATE crm.review_item r SET own_field = CASE WHEN r.own_field = was THEN now_called ELSE r.own_field END, field = CASE WHEN r.field = was THEN now_called ELSE r.field END
    WHERE r.mirror = mirror_id AND was IN (r.own_field, r.field);
    UPDATE crm.write w SET vals = w.vals - was || jsonb_build_object(now_called, w.vals -> was),
           old_vals = CASE WHEN w.old_vals ? was THEN w.old_vals - was || jsonb_build_object(now_called, w.old_vals -> was) ELSE w.old_vals END
    WHERE w.mirror = mirror_id AND w.vals ? was;
END $$;
COMMENT ON FUNCTION crm._field_renamed(integer, text, text) IS 'Lets a column, its maps, policies and waiting writes follow a field that got another API name.';

CREATE FUNCTION crm._schema_note(mirror_id integer, change jsonb, policy text, action text, rests text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n bigint;
BEGIN
    UPDATE crm.schema_change c SET state = 'ignored', done_at = clock_timestamp(), error = 'A later change of this field took its place.'
    WHERE c.mirror = mirror_id AND c.state IN ('asked', 'applying', 'failed') AND c.kind <> 'choices' AND change ->> 'kind' <> 'choices'
      AND c.field IN (change ->> 'field', change ->> 'was');
    INSERT INTO crm.schema_change (mirror, kind, field, detail, policy, state, paused, done_at)
    SELECT mirror_id, change ->> 'kind', change ->> 'field', change - 'kind' - 'field', policy, s.state, action = 'pause',
           CASE WHEN s.state IN ('noted', 'applied') THEN clock_timestamp() END
    FROM (SELECT CASE action WHEN 'note' THEN 'noted' WHEN 'apply' THEN 'applying' WHEN 'done' THEN 'applied' ELSE 'asked' END) AS s (state)
    RETURNING id INTO n;
    UPDATE crm.schema_change c SET advice =
        CASE WHEN c.state = 'asked' AND c.kind = 'retyped' THEN (
                 SELECT format('SELECT crm.schema_answer(%s, ''apply''); makes a column of the new type, filled from the CRM, and keeps the old one as %s_was_%s: values that the new type cannot hold are null in it and stand in crm.dead_letter. Or ''ignore'': the column stays %2$s of type %3$s.',
                               n, k.column_name, k.field_type) FROM crm.mirror_column k WHERE k.mirror = mirror_id AND k.field = c.field)
             WHEN c.state = 'asked' THEN format('SELECT crm.schema_answer(%s, ''apply''); or ''ignore''.', n)
             WHEN c.kind = 'removed' AND rests IS NOT NULL THEN 'Its column keeps its last values and is no longer read or written. DROP COLUMN when nobody needs them.' END
    WHERE c.id = n;
    IF rests IS NOT NULL THEN
        UPDATE crm.mirror_column k SET gone_at = clock_timestamp() WHERE k.mirror = mirror_id AND k.field = rests AND k.gone_at IS NULL;
        UPDATE crm.mirror m SET unique_field = nullif(m.unique_field, rests), source_field = nullif(m.source_field, rests)
        WHERE m.id = mirror_id AND rests IN (m.unique_field, m.source_field);
        PERFORM crm._writes_without(mirror_id, rests);
    END IF;
    IF action = 'pause' THEN
        UPDATE crm.mirror m SET paused = true WHERE m.id = mirror_id AND NOT m.paused;
    END IF;
    -- For the worker itself: what is to be carried out is looked for when it reads this.
    INSERT INTO crm.config_change DEFAULT VALUES;
END $$;
COMMENT ON FUNCTION crm._schema_note(integer, jsonb, text, text, text) IS 'Stores a change that the worker noticed, with what follows at once: a field that is gone rests, a mirror pauses.';

-- The statements that the table's owner must run, none of which rewrites it.
CREATE FUNCTION crm._schema_plan(change bigint) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c      crm.schema_change;
    m      crm.mirror;
    k      crm.mirror_column;
    f      crm.remote_field;
    n      record;
    t      text;
    old    name;
    locked text[];
    plan   text[] := '{}';
BEGIN
    SELECT * INTO c FROM crm.schema_change x WHERE x.id = change AND x.state = 'applying' FOR UPDATE;
    SELECT * INTO m FROM crm.mirror x WHERE x.id = c.mirror;
    SELECT * INTO f FROM crm.remote_field x WHERE x.server = m.server AND x.object = m.object AND x.field = c.field;
    IF f.field IS NULL THEN
        UPDATE crm.schema_change x SET state = 'ignored', done_at = clock_timestamp(), error = 'The field is gone meanwhile.' WHERE x.id = c.id;
        RETURN NULL;
    END IF;
    t := format('%I.%I', m.schema_name, m.table_name);
    SELECT * INTO k FROM crm.mirror_column x WHERE x.mirror = m.id AND x.field = coalesce(c.detail ->> 'was', c.field);
    locked := ARRAY(SELECT x.column_name::text FROM crm.mirror_column x WHERE x.mirror = m.id AND x.read_only ORDER BY 1);
    IF c.kind = 'added' AND k.field IS NULL THEN
        FOR n IN SELECT * FROM crm._new_columns(m, ARRAY[c.field]) LOOP
            INSERT INTO crm.mirror_column (mirror, column_name, field, field_type, max_length, read_only, required)
            VALUES (m.id, n.column_name, n.field, n.field_type, n.max_length, n.read_only, n.required);
            plan := plan || format('ALTER TABLE %s ADD COLUMN %I %s', t, n.column_name, n.column_type)
                         || format('COMMENT ON COLUMN %s.%I IS %L', t, n.column_name, n.note);
        END LOOP;
    ELSIF c.kind = 'retyped' AND c.detail ->> 'fit' <> 'same' AND k.field IS NOT NULL THEN
        SELECT x.name INTO old FROM (
            SELECT left(k.column_name, 40) || '_was_' || k.field_type || coalesce('_' || nullif(i, 1), '') AS name, i FROM generate_series(1, 100) AS i) x
        WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = crm._relation_of(m.schema_name, m.table_name) AND a.attname = x.name AND NOT a.attisdropped) ORDER BY x.i LIMIT 1;
        UPDATE crm.schema_change x SET detail = x.detail || jsonb_build_object('column', k.column_name, 'kept_as', old) WHERE x.id = c.id;
        plan := ARRAY[format('ALTER TABLE %s RENAME COLUMN %I TO %I', t, k.column_name, old),
                      format('ALTER TABLE %s ADD COLUMN %I %s', t, k.column_name, f.column_type),
                      format('COMMENT ON COLUMN %s.%I IS %L', t, old, format('What column %s held as %s, until %s.', k.column_name, k.field_type, now())),
                      format('COMMENT ON COLUMN %s.%I IS %L', t, k.column_name, left(f.label || CASE WHEN f.description <> '' THEN ': ' || f.description ELSE '' END, 1000))];
    END IF;
    -- What the trigger refuses to users goes by the names in its definition.
    IF ARRAY(SELECT CASE WHEN x.field = c.field THEN k.column_name ELSE x.column_name END::text FROM crm.mirror_column x
             WHERE x.mirror = m.id AND CASE WHEN x.field = c.field THEN f.read_only OR f.calculated ELSE x.read_only END ORDER BY 1) <> locked
       OR (c.kind = 'added' AND (f.read_only OR f.calculated)) THEN
        plan := plan || format('SELECT crm._mirror_attach(%s, %L::regclass, %L::text[])', m.id, t,
            ARRAY(SELECT x.column_name::text FROM crm.mirror_column x
                  WHERE x.mirror = m.id AND CASE WHEN x.field = c.field THEN f.read_only OR f.calculated ELSE x.read_only END ORDER BY 1)
            || ARRAY(SELECT v.mark FROM crm.remote_object o, LATERAL (VALUES (NOT o.createable, '!insert'), (NOT o.deletable, '!delete')) AS v (refused, mark)
                     WHERE o.server = m.server AND o.object = m.object AND v.refused));
    END IF;
    RETURN plan;
END $$;
COMMENT ON FUNCTION crm._schema_plan(bigint) IS 'The statements by which a mirror follows a change: columns are added and renamed, none is rewritten; null where nothing is left to follow.';

CREATE FUNCTION crm._schema_done(change bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c    crm.schema_change;
    was  text;
BEGIN
    UPDATE crm.schema_change x SET state = 'applied', done_at = clock_timestamp(), error = NULL, advice = NULL, not_before = NULL
    WHERE x.id = change AND x.state = 'applying' RETURNING * INTO c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    was := c.detail ->> 'was';
    IF was IS NOT NULL THEN
        PERFORM crm._field_renamed(c.mirror, was, c.field);
    END IF;
    UPDATE crm.mirror_column k SET gone_at = NULL, field_type = f.field_type, max_length = f.max_length, read_only = f.read_only OR f.calculated, required = f.required,
           -- The event trigger followed the old column to its new name.
           column_name = coalesce(c.detail ->> 'column', k.column_name)
    FROM crm.mirror m JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object
    WHERE m.id = c.mirror AND f.field = c.field AND k.mirror = c.mirror AND k.field = c.field;
    -- Triggers that look at the column are on the old one: their map makes them anew.
    UPDATE crm.reference_map r SET field = c.field WHERE r.theirs = c.mirror AND r.field = c.field AND c.detail ? 'column';
    -- What waited for the field goes out now.
    UPDATE crm.write w SET state = 'queued', not_before = NULL WHERE w.mirror = c.mirror AND w.state = 'dead' AND w.error_code = 'field_gone' AND w.vals ? c.field;
    IF NOT (c.kind = 'retyped' AND c.detail ->> 'fit' = 'same') THEN
        INSERT INTO crm.column_fill (mirror, fields, total) VALUES (c.mirror, ARRAY[c.field], (SELECT b.total FROM crm.backfill b WHERE b.mirror = c.mirror));
    END IF;
    IF c.paused THEN
        PERFORM crm._schema_unpause(c.mirror);
    END IF;
END $$;
COMMENT ON FUNCTION crm._schema_done(bigint) IS 'Notes that the table of a mirror has followed a change: what the column means now, and that it is to be filled.';
