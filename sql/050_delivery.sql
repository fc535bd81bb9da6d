-- The way out as users steer it: approve or reject what the guard holds, wait
-- for confirmation, retry or discard dead letters. And webhooks on the way in.

CREATE FUNCTION crm._tx_known(tx bigint, what text) RETURNS void
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

CREATE FUNCTION crm.approve(tx bigint) RETURNS text
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

-- A value as a column holds it, from the canonical text of a write.
CREATE FUNCTION crm._from_text(column_type text, expr text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN column_type = 'text[]' THEN format('string_to_array(%s, '';'')', expr) ELSE format('(%s)::%s', expr, column_type) END
$$;
COMMENT ON FUNCTION crm._from_text(text, text) IS 'SQL text that turns canonical text into the value of a column.';

CREATE FUNCTION crm._reject_sql(m crm.mirror, kind text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t     text := format('%I.%I', m.schema_name, m.table_name);
    sets  text;
    names text;
    vals  text;
BEGIN
    SELECT string_agg(format('%1$I = CASE WHEN d.v ? %2$L AND d.o ? %2$L AND t.%1$I IS NOT DISTINCT FROM %3$s THEN %4$s ELSE t.%1$I END', c.column_name, c.field,
                             crm._from_text(y.type, format('d.v ->> %L', c.field)), crm._from_text(y.type, format('d.o ->> %L', c.field))), ', '),
           string_agg(quote_ident(c.column_name), ', ' ORDER BY c.column_name),
           string_agg(crm._from_text(y.type, format('d.o ->> %L', c.field)), ', ' ORDER BY c.column_name)
    INTO sets, names, vals
    FROM crm.mirror_column c
    JOIN LATERAL (SELECT format_type(a.atttypid, a.atttypmod) AS type FROM pg_attribute a
                  WHERE a.attrelid = t::regclass AND a.attname = c.column_name AND NOT a.attisdropped) y ON true
    WHERE c.mirror = m.id AND (kind = 'delete' OR NOT c.read_only);
    RETURN CASE kind
        WHEN 'update' THEN format('UPDATE %s t SET %s FROM jsonb_to_recordset($1) AS d (r bigint, v jsonb, o jsonb) WHERE t._id = d.r', t, sets)
        WHEN 'create' THEN format('DELETE FROM %s t USING jsonb_to_recordset($1) AS d (r bigint) WHERE t._id = d.r AND t.id IS NULL', t)
        ELSE format('INSERT INTO %s (_id, id, %s) OVERRIDING SYSTEM VALUE SELECT d.r, d.i, %s FROM jsonb_to_recordset($1) AS d (r bigint, i text, o jsonb) ON CONFLICT DO NOTHING', t, names, vals)
    END;
END $$;
COMMENT ON FUNCTION crm._reject_sql(crm.mirror, text) IS 'The statement that undoes held updates, creates or deletes of a mirror.';

CREATE FUNCTION crm._drained(tx bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (SELECT FROM crm.change_0 c WHERE c.tx = $1) AND NOT EXISTS (SELECT FROM crm.change_1 c WHERE c.tx = $1)
$$;
COMMENT ON FUNCTION crm._drained(bigint) IS 'Whether the worker has taken up all changes of a transaction.';

-- What the CRM said of these records meanwhile was decided against values that
-- are gone now: the records are read again.
CREATE FUNCTION crm._reread_held(tx bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.deferred (mirror, record_id, source, change, reason)
    SELECT w.mirror, w.record_id, 'read', '{}', 'read'
    FROM crm.write w
    WHERE w.state = 'held' AND $1 = ANY (w.txs) AND w.kind = 'update' AND w.record_id IS NOT NULL
      AND EXISTS (SELECT FROM crm.event e WHERE e.mirror = w.mirror AND e.row_id = w.row_id AND e.received_at >= w.queued_at AND e.source NOT IN ('sql', 'result'))
$$;
COMMENT ON FUNCTION crm._reread_held(bigint) IS 'Has records read again that their CRM changed while writes of a transaction were held.';

-- Old values come back as the engine's own writes: not captured, so that the
-- restoring neither goes out nor is held again.
CREATE FUNCTION crm.reject(tx bigint) RETURNS text
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

CREATE FUNCTION crm.resolve_create(write bigint, outcome text, record_id text DEFAULT NULL) RETURNS text
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

CREATE FUNCTION crm.wait_synced(timeout interval DEFAULT '30 seconds') RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    began timestamptz := clock_timestamp();
    until timestamptz := crm._wait_possible('crm.wait_synced', timeout);
    last  bigint := crm._last_tx();
    pause float8 := 0.005;
    bad   record;
    n     bigint;
BEGIN
    IF crm._tx_has_changes() THEN
        RAISE EXCEPTION 'crm.wait_synced cannot wait for changes of the transaction it runs in'
            USING ERRCODE = '25001', DETAIL = 'They are sent after COMMIT.', HINT = 'COMMIT first, then call it in the same session.';
    ELSIF last IS NULL THEN
        RETURN 'nothing to wait for';
    END IF;
    LOOP
        SELECT w.state, w.kind, w.error, w.advice, format('%I.%I', m.schema_name, m.table_name) AS mirror, w.row_id INTO bad
        FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror
        WHERE last = ANY (w.txs) AND w.state IN ('dead', 'held', 'would_send') ORDER BY w.state LIMIT 1;
        IF bad.state = 'dead' THEN
            RAISE EXCEPTION '% of % row % failed: %', bad.kind, bad.mirror, bad.row_id, coalesce(bad.error, 'no reason given')
                USING ERRCODE = '38000', DETAIL = 'It is parked in crm.dead_letter.', HINT = coalesce(bad.advice, 'Correct the cause, then crm.dead_letter_retry().');
        ELSIF bad.state IS NOT NULL THEN
            RAISE EXCEPTION 'changes of % are not being sent: %', bad.mirror, CASE bad.state WHEN 'held' THEN 'the guard holds them' ELSE 'it is in shadow' END
                USING ERRCODE = '55000', DETAIL = format('Transaction %s.', last),
                      HINT = CASE bad.state WHEN 'held' THEN format('SELECT crm.approve(%s); or crm.reject(%s).', last, last) ELSE 'crm.go_live makes a link or mirror live.' END;
        END IF;
        SELECT count(*) INTO n FROM crm.write w WHERE last = ANY (w.txs);
        IF n = 0 AND crm._drained(last) AND NOT EXISTS (SELECT FROM crm.write w WHERE last = ANY (w.txs)) THEN
            RETURN format('confirmed after %s', date_trunc('milliseconds', clock_timestamp() - began));
        ELSIF clock_timestamp() >= until THEN
            RAISE EXCEPTION 'not confirmed within %', timeout
                USING ERRCODE = '57014', DETAIL = CASE WHEN n > 0 THEN format('%s writes of this session''s last change are under way.', n) ELSE 'The worker has not taken the change up yet.' END,
                      HINT = CASE WHEN crm._worker_alive() THEN 'It will still be sent: see crm.outbox and crm.status.' ELSE 'The worker is not running: see crm.status.' END;
        END IF;
        PERFORM pg_sleep(pause);
        pause := least(pause * 1.5, 0.25);
    END LOOP;
END $$;
COMMENT ON FUNCTION crm.wait_synced(interval) IS 'Returns when the CRMs have confirmed what this session''s last transaction changed; raises with the CRM''s words if they refused.';

CREATE FUNCTION crm._dead_ids(ids bigint[], direction text) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known bigint[];
    alien bigint[];
BEGIN
    IF direction IS NULL OR direction NOT IN ('out', 'in') THEN
        RAISE EXCEPTION 'direction cannot be %', coalesce(quote_literal(direction), 'null')
            USING ERRCODE = '22023', DETAIL = 'Expected out (writes that a CRM refused) or in (events that the database refused).', HINT = 'See the column direction of crm.dead_letter.';
    END IF;
    SELECT coalesce(array_agg(d.id), '{}') INTO known FROM crm.dead_letter d WHERE d.direction = _dead_ids.direction;
    SELECT array_agg(i) INTO alien FROM unnest(ids) i LEFT JOIN unnest(known) k ON k = i WHERE k IS NULL;
    IF alien IS NOT NULL THEN
        RAISE EXCEPTION 'no dead letter with id %', array_to_string(alien, ', ', 'null')
            USING ERRCODE = '42704', DETAIL = format('%s dead letters have direction %s.', cardinality(known), direction), HINT = 'SELECT id, direction, error FROM crm.dead_letter;';
    END IF;
    RETURN coalesce(ids, known);
END $$;
COMMENT ON FUNCTION crm._dead_ids(bigint[], text) IS 'Checks ids of dead letters; null stands for all of a direction.';

CREATE FUNCTION crm.dead_letter_retry(ids bigint[] DEFAULT NULL, direction text DEFAULT 'out') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen bigint[] := crm._dead_ids(ids, direction);
    n      bigint;
BEGIN
    IF direction = 'out' THEN
        UPDATE crm.write w SET state = CASE m.mode WHEN 'live' THEN 'queued' ELSE 'would_send' END, attempts = 0, not_before = NULL,
               status = NULL, error_class = NULL, error_code = NULL, error = NULL, advice = NULL
        FROM crm.mirror m WHERE m.id = w.mirror AND w.id = ANY (chosen) AND w.state = 'dead';
    ELSE
        -- The event itself was refused: reading the record again brings what it announced.
        WITH again AS (
            DELETE FROM crm.poison p WHERE p.id = ANY (chosen) AND p.mirror IS NOT NULL AND p.record_id IS NOT NULL RETURNING p.*
        )
        INSERT INTO crm.deferred (mirror, record_id, source, change, reason)
        SELECT a.mirror, a.record_id, a.source, coalesce(a.change, '{}'), 'read' FROM again a;
    END IF;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- Makes the worker look for what to send and to read.
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN n;
END $$;
COMMENT ON FUNCTION crm.dead_letter_retry(bigint[], text) IS 'Tries dead letters again, all of a direction (out, in) or those named; returns how many. Correct the cause first.';

CREATE FUNCTION crm.dead_letter_retry_where(condition text, expected bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    outs bigint[];
    ins  bigint[];
    n    bigint;
BEGIN
    IF condition IS NULL OR btrim(condition) = '' THEN
        RAISE EXCEPTION 'a condition is needed'
            USING ERRCODE = '22023', DETAIL = 'Expected a condition on the columns of crm.dead_letter, such as code = ''REQUIRED_FIELD_MISSING''.', HINT = 'For all of them: SELECT crm.dead_letter_retry();';
    END IF;
    BEGIN
        -- With the caller's rights: the condition is theirs.
        EXECUTE format('SELECT coalesce(array_agg(id) FILTER (WHERE direction = ''out''), ''{}''), coalesce(array_agg(id) FILTER (WHERE direction = ''in''), ''{}'') FROM crm.dead_letter WHERE (%s)', condition)
           INTO outs, ins;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
        RAISE EXCEPTION 'the condition cannot be used: %', SQLERRM
            USING ERRCODE = '22023', DETAIL = format('Asked: SELECT … FROM crm.dead_letter WHERE (%s)', condition), HINT = 'Its columns: \d crm.dead_letter. The view crm.dead_letter_cause has a condition for each cause.';
    END;
    n := cardinality(outs) + cardinality(ins);
    IF expected IS NULL THEN
        RETURN n;
    ELSIF expected <> n THEN
        RAISE EXCEPTION '% dead letters fit, % were expected', n, expected
            USING ERRCODE = '55000', DETAIL = 'Nothing was tried again.', HINT = 'Look at them, then name their number: SELECT * FROM crm.dead_letter WHERE …;';
    END IF;
    IF cardinality(outs) > 0 THEN
        PERFORM crm.dead_letter_retry(outs, 'out');
    END IF;
    IF cardinality(ins) > 0 THEN
        PERFORM crm.dead_letter_retry(ins, 'in');
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION crm.dead_letter_retry_where(text, bigint) IS 'How many dead letters fit a condition on the columns of crm.dead_letter; with that number as expected, tries them again together. Another number changes nothing.';

CREATE FUNCTION crm.dead_letter_discard(ids bigint[] DEFAULT NULL, direction text DEFAULT 'out') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen bigint[] := crm._dead_ids(ids, direction);
    n      bigint;
BEGIN
    IF direction = 'out' THEN
        DELETE FROM crm.write w WHERE w.id = ANY (chosen) AND w.state = 'dead';
    ELSE
        DELETE FROM crm.poison p WHERE p.id = ANY (chosen);
    END IF;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION crm.dead_letter_discard(bigint[], text) IS 'Gives dead letters up, all of a direction (out, in) or those named; returns how many. The row keeps its value, the CRM its own.';

CREATE FUNCTION crm.webhook(server text, method text, uri text, headers jsonb, body bytea) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    backlog bigint;
BEGIN
    IF server IS NULL OR NOT EXISTS (SELECT FROM crm._server s WHERE s.server = webhook.server) THEN
        RAISE EXCEPTION 'no such server' USING ERRCODE = 'PT404', DETAIL = 'Webhooks are taken for servers of pg_crm_sync only.', HINT = 'Name the server as in CREATE SERVER.';
    ELSIF method IS NULL OR method !~ '^[A-Z]{1,10}$' OR uri IS NULL OR length(uri) > 2000 OR body IS NULL THEN
        RAISE EXCEPTION 'malformed webhook'
            USING ERRCODE = 'PT400', DETAIL = 'Expected a method in upper case, a URI of at most 2000 characters, and a body.', HINT = 'Pass them on as received: the signature covers them.';
    ELSIF headers IS NULL OR jsonb_typeof(headers) <> 'object' OR length(headers::text) > 16384 THEN
        RAISE EXCEPTION 'malformed webhook headers'
            USING ERRCODE = 'PT400', DETAIL = 'Expected a JSON object of at most 16 kB.', HINT = 'From PostgREST: current_setting(''request.headers'')::jsonb.';
    ELSIF octet_length(body) > 1048576 THEN
        RAISE EXCEPTION 'webhook body of % bytes', octet_length(body)
            USING ERRCODE = 'PT413', DETAIL = 'At most 1 MB is taken.', HINT = 'HubSpot sends at most 100 events in one; limit the batch in the app''s settings.';
    END IF;
    -- Ids are taken in order, so this is an upper bound without counting.
    SELECT coalesce(max(q.id) - min(q.id) + 1, 0) INTO backlog FROM crm.webhook_queue q;
    IF backlog >= 10000 OR (backlog > 100 AND pg_total_relation_size('crm.webhook_queue') > 268435456
                            AND (SELECT sum(octet_length(q.body)) FROM crm.webhook_queue q) > 134217728) THEN
        RAISE EXCEPTION 'too many webhooks wait' USING ERRCODE = 'PT429', DETAIL = format('%s are queued.', backlog), HINT = 'The CRM sends it again. See the worker in crm.status.';
    END IF;
    INSERT INTO crm.webhook_queue (server, method, uri, headers, body) VALUES (webhook.server, webhook.method, webhook.uri, webhook.headers, webhook.body);
    PERFORM crm._wake();
    RETURN 202;
END $$;
COMMENT ON FUNCTION crm.webhook(text, text, text, jsonb, bytea) IS 'Takes a webhook as received and returns 202; the worker checks its signature. SQLSTATEs PT400, PT404, PT413, PT429 become those HTTP statuses in PostgREST.';

CREATE FUNCTION crm.webhook(server text, method text, uri text, headers jsonb, body text) RETURNS integer
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$ SELECT crm.webhook(server, method, uri, headers, convert_to(body, 'UTF8')) $$;
COMMENT ON FUNCTION crm.webhook(text, text, text, jsonb, text) IS 'The same for a body in text.';
