-- The way out as users steer it: approve or reject what the guard holds, wait
-- for confirmation, retry or discard dead letters. And webhooks on the way in.

-- Columns as in crm.event, which only the worker writes: it takes these rows there.
CREATE TABLE crm.given_up (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('create', 'update', 'delete', 'discard')),
    mirror      integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    row_id      bigint,
    record_id   text,
    entity      bigint,
    tx          bigint,
    fields      text[],
    old_values  text[],
    new_values  text[],
    decision    jsonb NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text NOT NULL DEFAULT session_user,
    application text DEFAULT nullif(current_setting('application_name'), ''),
    reason      text DEFAULT nullif(current_setting('pg_crm_sync.reason', true), '')
);
COMMENT ON TABLE crm.given_up IS 'Values that a person gave up (crm.reject, crm.dead_letter_discard, crm.unlink) and questions that ended otherwise than in crm.review (crm.unlink, crm.resolve_create), on their way into the ledger: the worker moves each row to crm.event.';
SELECT pg_catalog.pg_extension_config_dump('crm.given_up', '');
SELECT pg_catalog.pg_extension_config_dump('crm.given_up_id_seq', '');

-- What of a write is lost: per field its value, and what stands in its place where that is known.
CREATE FUNCTION crm._lost(step text, w crm.write, restored text[] DEFAULT '{}') RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN w.kind = 'delete' THEN jsonb_build_array(jsonb_build_object('step', step, 'winner', 'local', 'losers', jsonb_build_array(jsonb_build_object('origin', w.origin, 'deleted', true))))
           ELSE (SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('field', v.key, 'step', step, 'winner', 'local', 'held', w.error))
                        || CASE WHEN v.key = ANY (restored) THEN jsonb_build_object('value', w.old_vals -> v.key) ELSE '{}' END
                        || jsonb_build_object('losers', jsonb_build_array(jsonb_build_object('origin', w.origin, 'value', v.value))) ORDER BY v.key)
                 FROM jsonb_each(w.vals) v) END
$$;
COMMENT ON FUNCTION crm._lost(text, crm.write, text[]) IS 'The decision that names what is lost with a write that a person gave up, for the ledger.';

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
COMMENT ON FUNCTION crm.approve(bigint) IS 'Sends what the guard holds of a transaction (see crm.held). A write that another held transaction touched too waits for that one as well; beyond 1000 of one record later ones go with those.';

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

CREATE FUNCTION crm._reject_finds(m crm.mirror, kind text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t    text := format('%I.%I', m.schema_name, m.table_name);
    list text;
BEGIN
    SELECT string_agg(format('CASE WHEN d.v ? %2$L AND d.o ? %2$L AND t.%1$I IS NOT DISTINCT FROM %3$s THEN %2$L END', c.column_name, c.field,
                             crm._from_text(format_type(a.atttypid, a.atttypmod), format('d.v ->> %L', c.field))), ', ')
    INTO list
    FROM crm.mirror_column c JOIN pg_attribute a ON a.attrelid = t::regclass AND a.attname = c.column_name AND NOT a.attisdropped
    WHERE c.mirror = m.id AND NOT c.read_only;
    RETURN CASE kind
        WHEN 'update' THEN format('SELECT jsonb_object_agg(x.r, x.f) FROM (SELECT d.r, array_remove(ARRAY[%s], NULL)::text[] AS f FROM %s t JOIN jsonb_to_recordset($1) AS d (r bigint, v jsonb, o jsonb) ON t._id = d.r FOR UPDATE OF t) x WHERE x.f <> ''{}''', list, t)
        WHEN 'create' THEN format('SELECT jsonb_object_agg(x.r, ''[]''::jsonb) FROM (SELECT d.r FROM %s t JOIN jsonb_to_recordset($1) AS d (r bigint) ON t._id = d.r WHERE t.id IS NULL FOR UPDATE OF t) x', t)
        ELSE format('SELECT jsonb_object_agg(d.r, ''[]''::jsonb) FROM jsonb_to_recordset($1) AS d (r bigint) WHERE NOT EXISTS (SELECT FROM %s t WHERE t._id = d.r)', t)
    END;
END $$;
COMMENT ON FUNCTION crm._reject_finds(crm.mirror, text) IS 'A query for the rows that _reject_sql will undo, as an object: _id, and of updates the fields that still hold what is rejected.';

-- A line for the ledger per write: what the row shows from now on, and what is lost.
CREATE FUNCTION crm._reject_note(m crm.mirror, what text, reject_tx bigint, found jsonb, data jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.given_up (kind, mirror, row_id, record_id, entity, tx, fields, old_values, new_values, decision)
    SELECT CASE WHEN NOT found ? w.row_id::text THEN 'discard' WHEN what = 'create' THEN 'delete' WHEN what = 'delete' THEN 'create' ELSE 'update' END,
           w.mirror, w.row_id, w.record_id, w.entity, reject_tx, f.fields, CASE WHEN what <> 'delete' THEN f.olds END, CASE WHEN what <> 'create' THEN f.news END,
           crm._lost('rejected', w, ARRAY(SELECT jsonb_array_elements_text(found -> w.row_id::text)))
    FROM crm.write w
    LEFT JOIN LATERAL (
        SELECT array_agg(k.f ORDER BY k.f) AS fields, array_agg(w.vals ->> k.f ORDER BY k.f) AS olds,
               array_agg(CASE WHEN what = 'delete' THEN d.o ->> k.f ELSE w.old_vals ->> k.f END ORDER BY k.f) AS news
        FROM jsonb_to_recordset(data) AS d (r bigint, o jsonb),
             LATERAL (SELECT jsonb_array_elements_text(found -> w.row_id::text) AS f WHERE what = 'update'
                      UNION ALL SELECT jsonb_object_keys(w.vals) WHERE what = 'create' UNION ALL SELECT jsonb_object_keys(d.o) WHERE what = 'delete') k
        WHERE d.r = w.row_id AND found ? w.row_id::text) f ON true
    WHERE w.mirror = m.id AND w.kind = what AND w.state = 'held' AND reject_tx = ANY (w.txs) AND w.error_code IS DISTINCT FROM 'unknown_create'
$$;
COMMENT ON FUNCTION crm._reject_note(crm.mirror, text, bigint, jsonb, jsonb) IS 'Notes for the ledger what crm.reject undoes and which values are lost.';

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
    SELECT w.mirror, w.record_id, CASE w.kind WHEN 'delete' THEN 'reject' ELSE 'read' END, '{}', 'read'
    FROM crm.write w
    WHERE w.state = 'held' AND $1 = ANY (w.txs) AND w.record_id IS NOT NULL
      AND (w.kind = 'delete' OR w.kind = 'update' AND EXISTS (SELECT FROM crm.event e WHERE e.mirror = w.mirror AND e.row_id = w.row_id AND e.received_at >= w.queued_at AND e.source NOT IN ('sql', 'result')))
$$;
COMMENT ON FUNCTION crm._reread_held(bigint) IS 'Has records read again that their CRM changed while writes of a transaction were held, and those whose rows come back.';

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
    found    jsonb;
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
        found := crm._as_engine_found(format('%I.%I', m.schema_name, m.table_name)::regclass, crm._reject_finds(m, part.kind), part.data);
        PERFORM crm._reject_note(m, part.kind, tx, coalesce(found, '{}'), part.data);
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
        RETURNING w.*
    ), noted AS (
        INSERT INTO crm.given_up (kind, mirror, row_id, entity, tx, decision)
        SELECT 'discard', e.mirror, e.row_id, e.entity, reject.tx, crm._lost('rejected', ROW(e.*)::crm.write) FROM edits e WHERE e.vals <> '{}'
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
COMMENT ON FUNCTION crm.reject(bigint) IS 'Drops what the guard holds of a transaction and puts the old values back where nothing changed since; deleted rows come back, inserted ones go. Who rejected it, why (pg_crm_sync.reason) and what was lost stand in crm.event.';

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
    PERFORM crm._review_noted(r, 'resolved', CASE outcome WHEN 'made' THEN 'made' ELSE 'retry' END, record_id, NULL)
    FROM crm.review_item r WHERE r.mirror = w.mirror AND r.row_id = w.row_id AND r.kind = 'create';
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
COMMENT ON FUNCTION crm.resolve_create(bigint, text, text) IS 'Answers what became of a create whose answer was lost (crm.held, tx null): made, with the id of the record, or not made, so that it is sent again. Who said so and why stands in crm.review_history.';

CREATE FUNCTION crm.wait_synced(timeout interval DEFAULT '30 seconds') RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    began  timestamptz := clock_timestamp();
    until  timestamptz := crm._wait_possible('crm.wait_synced', timeout);
    last   bigint := crm._last_tx();
    taken  boolean;
    looped boolean;
    pause  float8 := 0.005;
    bad    record;
    n      bigint;
BEGIN
    IF crm._tx_has_changes() THEN
        RAISE EXCEPTION 'crm.wait_synced cannot wait for changes of the transaction it runs in'
            USING ERRCODE = '25001', DETAIL = 'They are sent after COMMIT.', HINT = 'COMMIT first, then call it in the same session.';
    ELSIF last IS NULL THEN
        RETURN 'nothing to wait for';
    END IF;
    LOOP
        -- Before its writes are looked for: once it is taken up, they stand in crm.write until they are confirmed.
        taken := crm._drained(last);
        SELECT t.held INTO looped FROM crm.change_tx t WHERE t.tx = last;
        SELECT w.state, w.kind, w.error, w.advice, format('%I.%I', m.schema_name, m.table_name) AS mirror, w.row_id INTO bad
        FROM (SELECT w.state, w.kind, w.error, w.advice, w.mirror, w.row_id FROM crm.write w
              WHERE w.state IN ('dead', 'held', 'would_send') AND (last = ANY (w.txs) OR looped AND w.state = 'held' AND last > w.txs[1000])
              UNION ALL
              SELECT 'dead', 'update', p.error, p.advice, p.mirror, (p.change ->> 'row')::bigint FROM crm.poison p
              WHERE crm._of_sql(p.source, p.change) AND p.change -> 'txs' @> to_jsonb(last)) w JOIN crm.mirror m ON m.id = w.mirror
        ORDER BY w.state LIMIT 1;
        IF bad.state = 'dead' THEN
            RAISE EXCEPTION '% of % row % failed: %', bad.kind, bad.mirror, bad.row_id, coalesce(bad.error, 'no reason given')
                USING ERRCODE = '38000', DETAIL = 'It is parked in crm.dead_letter.', HINT = coalesce(bad.advice, 'Correct the cause, then crm.dead_letter_retry().');
        ELSIF bad.state IS NOT NULL THEN
            RAISE EXCEPTION 'changes of % are not being sent: %', bad.mirror, CASE bad.state WHEN 'held' THEN 'the guard holds them' ELSE 'it is in shadow' END
                USING ERRCODE = '55000', DETAIL = format('Transaction %s.', last),
                      HINT = CASE bad.state WHEN 'held' THEN format('SELECT crm.approve(%s); or crm.reject(%s).', last, last) ELSE 'crm.go_live makes a link or mirror live.' END;
        END IF;
        -- A write with more causes than it names may be of an older one, too, or of a later one that the guard held.
        SELECT count(*) INTO n FROM crm.write w
        WHERE last = ANY (w.txs) OR cardinality(w.txs) >= 1000 AND (last < w.txs[1] OR looped IS NOT FALSE AND last > w.txs[1000]);
        IF n = 0 AND taken THEN
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
COMMENT ON FUNCTION crm.wait_synced(interval) IS 'Returns when the CRMs have confirmed what this session''s last transaction changed; raises with the CRM''s words if they refused. A value that lost, or about which a person is asked, is not sent and not waited for: see crm.conflict and crm.review.';

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

CREATE FUNCTION crm._of_sql(source text, change jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT source = 'sql' AND coalesce(change ? 'row', false) $$;
COMMENT ON FUNCTION crm._of_sql(text, jsonb) IS 'Whether a dead letter is about a change of a row by SQL: it names the row and not what was changed, so it cannot be tried again.';

CREATE FUNCTION crm._of_sql_left(n bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF n > 0 THEN
        RAISE NOTICE 'dead letters about changes by SQL are left: %', n
            USING DETAIL = 'Each names its row (row_id in crm.dead_letter), not what was changed.', HINT = 'Change these rows again, then crm.dead_letter_discard(ARRAY[id], ''in'').';
    END IF;
END $$;
COMMENT ON FUNCTION crm._of_sql_left(bigint) IS 'Says how many dead letters were not tried again because only their rows can be changed again.';

CREATE FUNCTION crm.dead_letter_retry(ids bigint[] DEFAULT NULL, direction text DEFAULT 'out') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen bigint[] := crm._dead_ids(ids, direction);
    stuck  bigint[];
    n      bigint;
BEGIN
    IF direction = 'out' THEN
        UPDATE crm.write w SET state = CASE m.mode WHEN 'live' THEN 'queued' ELSE 'would_send' END, attempts = 0, not_before = NULL,
               status = NULL, error_class = NULL, error_code = NULL, error = NULL, advice = NULL
        FROM crm.mirror m WHERE m.id = w.mirror AND w.id = ANY (chosen) AND w.state = 'dead';
    ELSE
        SELECT array_agg(p.id ORDER BY p.id) INTO stuck FROM crm.poison p WHERE p.id = ANY (chosen) AND crm._of_sql(p.source, p.change);
        IF ids IS NOT NULL AND stuck IS NOT NULL THEN
            RAISE EXCEPTION 'dead letters about changes by SQL cannot be tried again: %', array_to_string(stuck[1:20], ', ')
                USING ERRCODE = '55000', DETAIL = 'Each names its row (row_id in crm.dead_letter), not what was changed.',
                      HINT = format('Change these rows again, then SELECT crm.dead_letter_discard(ARRAY[%s], ''in'');', array_to_string(stuck[1:20], ', '));
        END IF;
        PERFORM crm._of_sql_left(cardinality(stuck));
        -- The event itself was refused: reading the record again brings what it announced.
        WITH again AS (
            DELETE FROM crm.poison p WHERE p.id = ANY (chosen) AND p.mirror IS NOT NULL AND p.record_id IS NOT NULL AND NOT crm._of_sql(p.source, p.change) RETURNING p.*
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
COMMENT ON FUNCTION crm.dead_letter_retry(bigint[], text) IS 'Tries dead letters again, all of a direction (out, in) or those named; returns how many. Correct the cause first. Those about changes by SQL are left: change their rows again, then crm.dead_letter_discard.';

CREATE FUNCTION crm.dead_letter_retry_where(condition text, expected bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    outs  bigint[];
    ins   bigint[];
    stuck bigint;
    n     bigint;
BEGIN
    IF condition IS NULL OR btrim(condition) = '' THEN
        RAISE EXCEPTION 'a condition is needed'
            USING ERRCODE = '22023', DETAIL = 'Expected a condition on the columns of crm.dead_letter, such as code = ''REQUIRED_FIELD_MISSING''.', HINT = 'For all of them: SELECT crm.dead_letter_retry();';
    END IF;
    BEGIN
        IF NOT crm._is_expression(condition) THEN
            RAISE EXCEPTION 'it is more than one expression' USING ERRCODE = '42601';
        END IF;
        -- With the caller's rights: the condition is theirs.
        EXECUTE format('SELECT coalesce(array_agg(id) FILTER (WHERE direction = ''out''), ''{}''), coalesce(array_agg(id) FILTER (WHERE direction = ''in'' AND NOT crm._of_sql(what, change)), ''{}''), '
                       'count(*) FILTER (WHERE direction = ''in'' AND crm._of_sql(what, change)) FROM crm.dead_letter WHERE (%s)', condition)
           INTO outs, ins, stuck;
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception OR feature_not_supported THEN
        RAISE EXCEPTION 'the condition cannot be used: %', SQLERRM
            USING ERRCODE = '22023', DETAIL = format('Asked: SELECT … FROM crm.dead_letter WHERE (%s)', condition), HINT = 'Its columns: \d crm.dead_letter. The view crm.dead_letter_cause has a condition for each cause.';
    END;
    PERFORM crm._of_sql_left(stuck);
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
COMMENT ON FUNCTION crm.dead_letter_retry_where(text, bigint) IS 'How many dead letters fit a condition on the columns of crm.dead_letter; with that number as expected, tries them again together. Another number changes nothing. Those about changes by SQL are not counted: see crm.dead_letter_retry.';

CREATE FUNCTION crm.dead_letter_discard(ids bigint[] DEFAULT NULL, direction text DEFAULT 'out') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen bigint[] := crm._dead_ids(ids, direction);
    n      bigint;
BEGIN
    IF direction = 'out' THEN
        WITH gone AS (
            DELETE FROM crm.write w WHERE w.id = ANY (chosen) AND w.state = 'dead' RETURNING w.*
        ), noted AS (
            INSERT INTO crm.given_up (kind, mirror, row_id, record_id, entity, tx, fields, new_values, decision)
            SELECT 'discard', g.mirror, g.row_id, g.record_id, g.entity, g.txs[1], f.names, f.vals, coalesce(crm._lost('discarded', ROW(g.*)::crm.write), '[{"step": "discarded"}]')
            FROM gone g LEFT JOIN LATERAL (SELECT array_agg(v.key ORDER BY v.key) AS names, array_agg(v.value ORDER BY v.key) AS vals FROM jsonb_each_text(g.vals) v) f ON true
        )
        SELECT count(*) INTO n FROM gone;
    ELSE
        WITH gone AS (
            DELETE FROM crm.poison p WHERE p.id = ANY (chosen) RETURNING p.*
        ), noted AS (
            INSERT INTO crm.given_up (kind, mirror, row_id, record_id, fields, new_values, decision)
            SELECT 'discard', m.id, CASE WHEN g.source = 'sql' AND g.record_id ~ '^\d{1,18}$' THEN g.record_id::bigint END, CASE WHEN g.source <> 'sql' THEN g.record_id END, f.names, f.vals,
                   coalesce(f.lost, '[]') || jsonb_build_array(jsonb_build_object('step', 'discarded', 'winner', 'local', 'held', g.error, 'event', g.change - 'fields'))
            FROM gone g
            -- An event of an unknown object is noted with a mirror of its server.
            CROSS JOIN LATERAL (SELECT x.id, x.server FROM crm.mirror x WHERE x.id = g.mirror OR (g.mirror IS NULL AND x.server = g.server) ORDER BY x.id LIMIT 1) m
            LEFT JOIN LATERAL (
                SELECT array_agg(e.v ->> 0 ORDER BY e.n) AS names, array_agg(e.v ->> 1 ORDER BY e.n) AS vals,
                       jsonb_agg(jsonb_build_object('field', e.v -> 0, 'step', 'discarded', 'winner', 'local',
                                 'losers', jsonb_build_array(jsonb_build_object('origin', CASE g.source WHEN 'sql' THEN 'local' ELSE m.server END, 'value', e.v -> 1))) ORDER BY e.n) AS lost
                FROM jsonb_array_elements(CASE WHEN jsonb_typeof(g.change -> 'fields') = 'array' THEN g.change -> 'fields' ELSE '[]' END) WITH ORDINALITY AS e (v, n)
                WHERE jsonb_typeof(e.v) = 'array') f ON true
        )
        SELECT count(*) INTO n FROM gone;
    END IF;
    -- Makes the worker take what is noted.
    INSERT INTO crm.config_change DEFAULT VALUES;
    PERFORM crm._wake();
    RETURN n;
END $$;
COMMENT ON FUNCTION crm.dead_letter_discard(bigint[], text) IS 'Gives dead letters up, all of a direction (out, in) or those named; returns how many. The row keeps its value, the CRM its own; what was given up, by whom and why stands in crm.event.';

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
