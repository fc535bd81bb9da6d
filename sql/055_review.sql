-- Questions that only a person can answer, and the answers.

CREATE TABLE crm.review_item (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind          text NOT NULL CHECK (kind IN ('field', 'match', 'create', 'delete', 'merge', 'erase', 'missing')),
    link          text,
    mirror        integer,
    row_id        bigint,
    entity        bigint,
    field         text,
    own_field     text,
    reason        text NOT NULL,
    rule          bigint,
    candidates    jsonb NOT NULL,
    opened_at     timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    resolution    text,
    value         text,
    answer_mirror integer,
    resolved_by   text,
    resolved_with text,
    resolved_why  text,
    resolved_at   timestamptz
);
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

CREATE FUNCTION crm._review_answers(kind text, candidates jsonb) RETURNS text[]
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
COMMENT ON VIEW crm.review IS 'Questions that only a person can answer: conflicts whose policy is review, ambiguous matches, deletes against updates, merges, many records that are missing in a CRM at once. One row per open question with all candidates; answer with UPDATE crm.review SET resolution = (one of answers), value = …, or crm.review_resolve.';
COMMENT ON COLUMN crm.review.candidates IS 'For a field: who wrote which value where and when. For records: _ids of the left and right mirror, or what else there is to know.';
COMMENT ON COLUMN crm.review.answers IS 'What resolution may be set to: a side takes its candidate; value takes column value, null being blank.';
COMMENT ON COLUMN crm.review.resolution IS 'The answer. The worker acts on it and takes the row away; until then it can be changed or set to null.';

-- Canonical text of a column's value: what crm._from_text reads.
CREATE FUNCTION crm._to_text(column_type text, expr text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE column_type
        WHEN 'timestamp with time zone' THEN format('to_char((%s) AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'')', expr)
        WHEN 'text[]' THEN format('array_to_string(%s, '';'')', expr)
        ELSE format('(%s)::text', expr) END
$$;
COMMENT ON FUNCTION crm._to_text(text, text) IS 'SQL text that turns the value of a column into canonical text.';

-- Why a CRM would not take a value; null if nothing is known against it.
CREATE FUNCTION crm._review_refused(mirror integer, given text, val text) RETURNS text
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

CREATE FUNCTION crm._review_image_missing(from_mirror integer, given text, val text) RETURNS text
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

-- The DateStyle makes dates canonical; what a user types is read by his own time zone.
CREATE FUNCTION crm._review_value(q crm.review_item, mirror integer, given text, val text) RETURNS text
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
    -- Converting to a type of a user's, such as a domain with a CHECK, would run his code with our rights.
    SELECT format_type(a.atttypid, a.atttypmod) INTO type FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid AND y.typnamespace = 'pg_catalog'::regnamespace
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

CREATE FUNCTION crm._review_pair(q crm.review_item, given text) RETURNS text
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

-- The answer is checked here and acted upon by the worker, which alone decides.
CREATE FUNCTION crm._review_answer(review bigint, resolution text, value text) RETURNS void
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

CREATE FUNCTION crm._review_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_jsonb(new) - ARRAY['resolution', 'value'] <> to_jsonb(old) - ARRAY['resolution', 'value'] THEN
        RAISE EXCEPTION 'of crm.review only resolution and value can be changed'
            USING ERRCODE = '55000', DETAIL = 'The other columns say what the question is.', HINT = 'UPDATE crm.review SET resolution = ''…'' WHERE id = …;';
    END IF;
    PERFORM crm._review_answer(old.id, new.resolution,
        -- The value of an answer given before belongs to that answer; that of a side's is its candidate's, and not given.
        CASE WHEN new.value IS DISTINCT FROM old.value
                  OR new.resolution IS NOT DISTINCT FROM old.resolution AND coalesce(new.resolution, 'value') IN ('value', 'match', 'made') THEN new.value END);
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._review_update() IS 'Takes UPDATE crm.review as answers.';
CREATE TRIGGER review_update INSTEAD OF UPDATE ON crm.review FOR EACH ROW EXECUTE FUNCTION crm._review_update();
COMMENT ON TRIGGER review_update ON crm.review IS 'Takes UPDATE crm.review as answers.';

CREATE FUNCTION crm.review_resolve(review bigint, side text DEFAULT NULL, value text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF side IS NULL AND value IS NULL THEN
        RAISE EXCEPTION 'an answer to question % is missing', coalesce(review::text, 'null')
            USING ERRCODE = '22023', DETAIL = 'Both side and value are null.',
                  HINT = 'crm.review_resolve(id, ''hubspot'') takes that side''s value, crm.review_resolve(id, value => ''…'') another; side => ''value'' without value is blank.';
    END IF;
    PERFORM crm._review_answer(review, side, value);
    RETURN (SELECT format('question %s: %s%s, for the worker to carry out', r.id, r.resolution, CASE WHEN r.kind = 'field' THEN coalesce(' (' || r.value || ')', ' (blank)') ELSE '' END)
            FROM crm.review_item r WHERE r.id = review);
END $$;
COMMENT ON FUNCTION crm.review_resolve(bigint, text, text) IS 'Answers a question of crm.review: with a side''s value or one of the words in its column answers, or with a value of your own.';

CREATE FUNCTION crm.review_match(review bigint, "left" bigint, "right" bigint) RETURNS text
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

-- The worker writes answers that it carries out into crm.event itself; what ends otherwise goes there by crm.given_up.
CREATE FUNCTION crm._review_noted(q crm.review_item, step text, word text, said text, because text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.given_up (kind, mirror, row_id, entity, decision, reason)
    SELECT 'discard', m.id, q.row_id, q.entity,
           jsonb_build_array(jsonb_strip_nulls(jsonb_build_object('step', step, 'field', q.field, 'value', said)) || jsonb_build_object('question',
               jsonb_build_object('id', q.id, 'kind', q.kind, 'reason', q.reason, 'rule', q.rule, 'candidates', q.candidates, 'opened_at', q.opened_at, 'resolution', word))),
           nullif(concat_ws(': ', because, nullif(current_setting('pg_crm_sync.reason', true), '')), '')
    FROM crm.mirror m WHERE m.id = q.mirror
$$;
COMMENT ON FUNCTION crm._review_noted(crm.review_item, text, text, text, text) IS 'Notes for crm.review_history how a question ended that leaves without the worker.';

CREATE VIEW crm.review_history AS
SELECT e.seq, e.occurred_at AS resolved_at, e.actor AS resolved_by, e.reason AS because, d -> 'question' ->> 'kind' AS kind, format('%I.%I', m.schema_name, m.table_name) AS mirror,
       e.row_id, e.record_id, e.entity, d ->> 'field' AS field, d -> 'question' ->> 'reason' AS reason, (d -> 'question' ->> 'rule')::bigint AS rule,
       d -> 'question' -> 'candidates' AS candidates, (d -> 'question' ->> 'opened_at')::timestamptz AS opened_at,
       d -> 'question' ->> 'resolution' AS resolution, d ->> 'value' AS value, d -> 'losers' AS lost, d ->> 'held' AS held
FROM crm.event e LEFT JOIN crm.mirror m ON m.id = e.mirror,
     LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(e.decision) = 'array' THEN e.decision ELSE '[]' END) AS d
WHERE e.kind = 'resolved' OR (e.kind = 'discard' AND d ? 'question');
COMMENT ON VIEW crm.review_history IS 'Questions that people have answered: who, when, what was asked and what was said, and the values that lost; and those that ended without an answer (resolution ended, because says why): about fields with their record, about a removal with the return of the record, and all of a link with crm.unlink. Kept as long as crm.event.';

-- What is left of records that a privacy erasure removed.
CREATE TABLE crm.erased (
    mirror    integer NOT NULL REFERENCES crm.mirror ON DELETE CASCADE,
    record    bytea NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mirror, record)
);
COMMENT ON TABLE crm.erased IS 'Tombstones of erased records: a keyed hash of the record id, so that a late event or page does not bring the person back.';
SELECT pg_catalog.pg_extension_config_dump('crm.erased', '');

CREATE FUNCTION crm._erased_hash(mirror integer, record text) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(convert_to(concat_ws('/', (SELECT i.id FROM crm.installation i), mirror, record), 'UTF8'))
$$;
COMMENT ON FUNCTION crm._erased_hash(integer, text) IS 'The tombstone of a record id, see crm.erased.';

-- Set-based over all tables of the engine that may hold a value of these rows
-- or of the entities that they belong to.
CREATE FUNCTION crm._erase(mirror integer, row_ids bigint[], records text[]) RETURNS void
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
    DELETE FROM crm.review_item r WHERE (r.kind <> 'erase' OR r.resolution IS NULL AND cardinality(records) > 0) AND (r.entity = ANY (entities) OR r.mirror = _erase.mirror AND r.row_id = ANY (row_ids)
        OR r.kind = 'match' AND EXISTS (SELECT FROM crm.link k, unnest(row_ids) AS i WHERE k.name = r.link
               AND (k.left_mirror = _erase.mirror AND r.candidates -> 'left' @> to_jsonb(i) OR k.right_mirror = _erase.mirror AND r.candidates -> 'right' @> to_jsonb(i))));
    DELETE FROM crm.deferred d WHERE d.mirror = _erase.mirror AND d.record_id = ANY (ids);
    DELETE FROM crm.given_up g WHERE g.mirror = _erase.mirror AND (g.row_id = ANY (row_ids) OR g.record_id = ANY (ids)) OR g.entity = ANY (entities);
    DELETE FROM crm.poison p WHERE p.mirror = _erase.mirror AND (p.record_id = ANY (ids) OR p.source = 'sql' AND p.record_id = ANY (row_ids::text[]));
END $$;
COMMENT ON FUNCTION crm._erase(integer, bigint[], text[]) IS 'Forgets the values that the engine''s tables hold of rows and records, and of what they are one with.';

CREATE FUNCTION crm.erase(mirror text, id text) RETURNS text
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
