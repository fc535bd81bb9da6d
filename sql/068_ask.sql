-- Questions about what would be: what a statement, an event or a draft of the policy would
-- lead to, and what would have been. They read, and change nothing.

-- crm.explain(text, integer), for a statement, is made by the library: it must see the caller's search_path.
CREATE FUNCTION crm.explain(event bigint DEFAULT NULL, write bigint DEFAULT NULL)
RETURNS TABLE (what text, server text, object text, record text, field text, value text, instead_of text, competing jsonb,
               winner text, rule bigint, decided_by text, calls integer, verdict text, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM crm._explain_pending(event, write);
END $$;
COMMENT ON FUNCTION crm.explain(bigint, bigint) IS 'What would follow from an event that waits (event => id of crm.deferred), or what a write would send (write => id of crm.outbox); without effect.';

CREATE FUNCTION crm.explain(policy jsonb, max_rows integer DEFAULT 1000)
RETURNS TABLE (what text, server text, object text, record text, field text, value text, instead_of text, competing jsonb,
               winner text, rule bigint, decided_by text, calls integer, verdict text, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM crm._explain_policy(coalesce(policy, 'null'), coalesce(max_rows, 0));
END $$;
COMMENT ON FUNCTION crm.explain(jsonb, integer) IS 'What is open now (writes not sent, questions to people) and would be decided otherwise if crm.conflict_policy and crm.field_lock had these rows: call it as crm.explain(policy => ''[…]''). Without effect.';

-- Rows of a policy that is only thought of, as {"link", "field", "strategy", …}: each replaces
-- the row of its link and field; strategy null takes that row away. A row with "origin" is one
-- of crm.field_lock; origin null unlocks. The caller undoes it.
CREATE FUNCTION crm._policy_draft(draft jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known CONSTANT text[] := ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = 'crm.conflict_policy'::regclass AND a.attnum > 0 AND NOT a.attisdropped
                                   AND a.attname NOT IN ('id', 'changed_by', 'changed_at') ORDER BY a.attnum) || 'origin'::text;
    r     jsonb;
    alien text;
BEGIN
    IF jsonb_typeof(draft) = 'object' THEN
        draft := jsonb_build_array(draft);
    END IF;
    IF draft IS NULL OR jsonb_typeof(draft) <> 'array' OR jsonb_array_length(draft) NOT BETWEEN 1 AND 1000 OR EXISTS (SELECT FROM jsonb_array_elements(draft) e WHERE jsonb_typeof(e) <> 'object') THEN
        RAISE EXCEPTION 'a policy draft is a list of 1 to 1000 rows' USING ERRCODE = '22023', DETAIL = 'Each row is an object with the columns of crm.conflict_policy, or of crm.field_lock.',
              HINT = 'For example ''[{"link": "contacts", "field": "phone", "strategy": "owner", "winner": "salesforce"}]''; "strategy": null takes a row away.';
    END IF;
    FOR r IN SELECT e FROM jsonb_array_elements(draft) e LOOP
        SELECT k INTO alien FROM jsonb_object_keys(r) k WHERE k <> ALL (known) LIMIT 1;
        IF alien IS NOT NULL THEN
            RAISE EXCEPTION 'a policy row has no "%"', alien USING ERRCODE = '42703', DETAIL = 'Its columns are: ' || array_to_string(known, ', ') || '.', HINT = crm._near_hint(alien, known, 'Leave it out.');
        ELSIF r ->> 'link' IS NULL THEN
            RAISE EXCEPTION 'a row of the draft names no link' USING ERRCODE = '22004', DETAIL = format('Got %s.', r), HINT = 'SELECT name FROM crm.link;';
        ELSIF r ? 'origin' THEN
            IF EXISTS (SELECT FROM jsonb_object_keys(r) k WHERE k NOT IN ('link', 'field', 'origin')) THEN
                RAISE EXCEPTION 'a row with "origin" is a lock' USING ERRCODE = '22023', DETAIL = format('Got %s.', r), HINT = 'A lock has link, field and origin; write the policy as a row of its own.';
            ELSIF r ->> 'origin' IS NULL THEN
                DELETE FROM crm.field_lock f WHERE f.link = r ->> 'link' AND f.field = r ->> 'field';
                CONTINUE WHEN FOUND;
                RAISE EXCEPTION 'field "%" of link "%" is not locked', coalesce(r ->> 'field', '*'), r ->> 'link'
                    USING ERRCODE = '42704', DETAIL = '"origin" is null, which takes the lock away.', HINT = 'SELECT link, field, origin FROM crm.field_lock;';
            END IF;
            INSERT INTO crm.field_lock (link, field, origin) VALUES (r ->> 'link', coalesce(r ->> 'field', '*'), r ->> 'origin')
            ON CONFLICT (link, field) DO UPDATE SET origin = excluded.origin;
        ELSIF r ->> 'strategy' IS NULL THEN
            DELETE FROM crm.conflict_policy p WHERE p.link = r ->> 'link' AND p.field = coalesce(r ->> 'field', '*');
            CONTINUE WHEN FOUND;
            RAISE EXCEPTION 'there is no policy for field "%" of link "%"', coalesce(r ->> 'field', '*'), r ->> 'link'
                USING ERRCODE = '42704', DETAIL = '"strategy" is null or missing, which takes the row away.', HINT = 'SELECT link, field, strategy FROM crm.conflict_policy;';
        ELSE
            EXECUTE (SELECT format('INSERT INTO crm.conflict_policy (%1$s) SELECT %1$s FROM jsonb_populate_record(NULL::crm.conflict_policy, $1) ON CONFLICT (link, field) DO UPDATE SET %2$s',
                                   string_agg(quote_ident(c), ', ') FILTER (WHERE r ? c),
                                   string_agg(format('%1$I = %2$s', c, CASE WHEN r ? c THEN format('excluded.%I', c) ELSE 'DEFAULT' END), ', ') FILTER (WHERE c NOT IN ('link', 'field')))
                     FROM unnest(known) AS c WHERE c <> 'origin') USING r;
        END IF;
    END LOOP;
    -- The caller undoes it before the transaction ends, when a missing default would be found.
    SET CONSTRAINTS crm.policy_default_kept IMMEDIATE;
END $$;
COMMENT ON FUNCTION crm._policy_draft(jsonb) IS 'Puts the rows of a draft into crm.conflict_policy and crm.field_lock, through all their checks; for callers that undo it.';

CREATE FUNCTION crm.what_if(policy jsonb, since timestamptz DEFAULT '-infinity', max_rows integer DEFAULT 10000)
RETURNS TABLE (link text, mirror text, row_id bigint, record text, field text, value_now text, value_then text, rule bigint, decided_by text, seq bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF max_rows IS NULL OR max_rows NOT BETWEEN 1 AND 1000000 THEN
        RAISE EXCEPTION 'max_rows cannot be %', coalesce(max_rows::text, 'null') USING ERRCODE = '22023', DETAIL = 'Expected 1 to 1000000.', HINT = 'Leave it out for 10000.';
    ELSIF since IS NULL THEN
        RAISE EXCEPTION 'since is null' USING ERRCODE = '22004', DETAIL = 'It says from when on the ledger is replayed.', HINT = 'Leave it out for all of the ledger, or write now() - interval ''1 day''.';
    END IF;
    PERFORM crm._note_dropped(since);
    RETURN QUERY SELECT * FROM crm._what_if(coalesce(policy, 'null'), since, max_rows);
END $$;
COMMENT ON FUNCTION crm.what_if(jsonb, timestamptz, integer) IS 'Which values would differ if crm.conflict_policy and crm.field_lock had been with these rows since then: replays the ledger in memory and lists each cell with its value now, its value then, the rule and the event that would have decided. Changes nothing.';
