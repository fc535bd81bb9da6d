-- The calls of each CRM account: what may be used, what the CRM says is left,
-- what they were used for.

CREATE TABLE crm.api_budget (
    server              text PRIMARY KEY,
    calls_per_window    integer CHECK (calls_per_window > 0),
    share               real NOT NULL DEFAULT 1 CHECK (share > 0 AND share <= 1),
    calls_per_day       bigint CHECK (calls_per_day > 0),
    reserve             real NOT NULL DEFAULT 0.1 CHECK (reserve >= 0 AND reserve <= 0.9),
    pause_at            real NOT NULL DEFAULT 0.02 CHECK (pause_at >= 0 AND pause_at <= reserve),
    concurrent          integer CHECK (concurrent > 0),
    searches_per_second integer CHECK (searches_per_second > 0),
    time_zone           text,
    changed_by          name NOT NULL DEFAULT session_user,
    changed_at          timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crm.api_budget IS 'What may be used of an account''s API calls, one row per server; a server without a row uses what its CRM allows. Changes count at once.';
COMMENT ON COLUMN crm.api_budget.calls_per_window IS 'Calls per window at most, whatever the CRM allows; null for what it allows. The server''s option of that name counts too.';
COMMENT ON COLUMN crm.api_budget.share IS 'Of what the CRM allows, per window and per 24 hours: 0.5 leaves half to other programs.';
COMMENT ON COLUMN crm.api_budget.calls_per_day IS 'Calls of this database in 24 hours, at most; null for no limit of ours.';
COMMENT ON COLUMN crm.api_budget.reserve IS 'Of the day''s calls, the part that first copies and reconciliation leave to everything else.';
COMMENT ON COLUMN crm.api_budget.pause_at IS 'Of the day''s calls, the rest at which polls and late work stop too; users'' writes go to the last call, reads for events to a quarter of it.';
COMMENT ON COLUMN crm.api_budget.concurrent IS 'Calls at a time at most; null for pg_crm_sync.max_in_flight. Where the CRM refuses so many, fewer are tried, and one more every minute.';
COMMENT ON COLUMN crm.api_budget.searches_per_second IS 'Searches per second, where the account has another limit than the CRM documents; no answer tells it.';
COMMENT ON COLUMN crm.api_budget.time_zone IS 'Time zone of the account, for crm.off_peak; null for the one that the CRM told (crm.server_check).';

CREATE TABLE crm.off_peak (
    server text NOT NULL,
    starts time NOT NULL,
    ends   time NOT NULL,
    days   integer[] NOT NULL DEFAULT '{1,2,3,4,5,6,7}'
           CHECK (cardinality(days) > 0 AND days <@ '{1,2,3,4,5,6,7}' AND array_position(days, NULL) IS NULL),
    PRIMARY KEY (server, starts, days),
    CHECK (starts <> ends)
);
COMMENT ON TABLE crm.off_peak IS 'When heavy work on an account may run: first copies, reconciliation, links of latency off_peak. Without a row for the server: always.';
COMMENT ON COLUMN crm.off_peak.starts IS 'Begin, in the time zone of the account.';
COMMENT ON COLUMN crm.off_peak.ends IS 'End; at or before the begin it is that of the next day.';
COMMENT ON COLUMN crm.off_peak.days IS 'Days of the week on which it begins, 1 is Monday.';

CREATE TABLE crm.api_limit (
    server        text NOT NULL,
    name          text NOT NULL,
    calls_max     bigint,
    calls_left    bigint,
    per           interval,
    told_at       timestamptz,
    refused_at    timestamptz,
    refused_until timestamptz,
    PRIMARY KEY (server, name)
);
COMMENT ON TABLE crm.api_limit IS 'What each CRM last said of its limits: window, day, and others that it names; and what it refused calls for (window, class, day, concurrency, account).';
COMMENT ON COLUMN crm.api_limit.per IS 'The time in which calls_max may be made; null where the limit is not one of time.';
COMMENT ON COLUMN crm.api_limit.refused_until IS 'No call before; then it goes on by itself.';

CREATE TABLE crm.api_count (
    server   text NOT NULL,
    per      text NOT NULL CHECK (per IN ('hour', 'day')),
    since    timestamptz NOT NULL,
    purpose  text NOT NULL,
    endpoint text NOT NULL,
    mirror   integer NOT NULL,
    calls    bigint NOT NULL DEFAULT 0,
    limited  bigint NOT NULL DEFAULT 0,
    failed   bigint NOT NULL DEFAULT 0,
    bytes    bigint NOT NULL DEFAULT 0,
    records  bigint NOT NULL DEFAULT 0,
    changed  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (server, per, since, purpose, endpoint, mirror)
);
COMMENT ON TABLE crm.api_count IS 'Calls as counted, see crm.api_usage: by the hour for eight days, by the day for 400.';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['api_budget', 'off_peak', 'api_limit', 'api_count'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(format('crm.%I', t)::regclass, '');
    END LOOP;
END $$;

CREATE VIEW crm.api_usage AS
SELECT c.server, c.per, c.since, c.purpose, c.endpoint, CASE WHEN m.id IS NOT NULL THEN format('%I.%I', m.schema_name, m.table_name) END AS mirror,
       (SELECT array_agg(l.name ORDER BY l.id) FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror)) AS links,
       c.calls, c.limited, c.failed, c.bytes, c.records, c.changed,
       round(c.changed::numeric / nullif(c.calls, 0), 2) AS changed_per_call
FROM crm.api_count c LEFT JOIN crm.mirror m ON m.id = c.mirror;
COMMENT ON VIEW crm.api_usage IS 'API calls by server, purpose, endpoint and mirror (with its links), per hour for eight days and per day for 400: how many, how many the CRM refused for its limits (limited) or answered without use (failed), and what they bought: records that were read or sent, and of these the ones that were changed by it, here or there.';

-- What is wrong with a time zone: null, or the known ones that look like it.
CREATE FUNCTION crm._budget_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text[];
BEGIN
    IF crm._restoring() THEN
        RETURN new;
    END IF;
    PERFORM crm._server_checked(new.server);
    IF tg_table_name = 'off_peak' THEN
        IF crm._time_zone(new.server) IS NULL THEN
            RAISE EXCEPTION 'the time zone of server "%" is not known', new.server
                USING ERRCODE = '55000', DETAIL = 'The windows of crm.off_peak are in the time zone of the account, and its CRM has not told it.',
                      HINT = format('INSERT INTO crm.api_budget (server, time_zone) VALUES (%L, ''Europe/Berlin''); for HubSpot, SELECT * FROM crm.server_check(%L) reads it.', new.server, new.server);
        END IF;
        RETURN new;
    END IF;
    IF new.time_zone IS NOT NULL AND NOT EXISTS (SELECT FROM pg_timezone_names n WHERE n.name = new.time_zone) THEN
        SELECT array_agg(n.name) INTO known FROM pg_timezone_names n WHERE n.name !~ '^(posix|right)/';
        RAISE EXCEPTION 'there is no time zone "%"', new.time_zone
            USING ERRCODE = '22023', DETAIL = 'Names are those of pg_timezone_names.', HINT = crm._near_hint(new.time_zone, known, 'Write it like Europe/Berlin.');
    ELSIF new.time_zone IS NULL AND EXISTS (SELECT FROM crm.off_peak o WHERE o.server = new.server)
          AND NOT EXISTS (SELECT FROM crm.server_state t WHERE t.server = new.server AND t.time_zone IS NOT NULL) THEN
        RAISE EXCEPTION 'server "%" has windows in crm.off_peak and would have no time zone', new.server
            USING ERRCODE = '55000', DETAIL = 'Its CRM has not told one.', HINT = 'Delete the windows first, or name another time zone.';
    END IF;
    new.changed_by := session_user;
    new.changed_at := now();
    RETURN new;
END $$;
COMMENT ON FUNCTION crm._budget_check() IS 'Checks rows of crm.api_budget and crm.off_peak: known server and time zone.';
CREATE TRIGGER budget_check BEFORE INSERT OR UPDATE ON crm.api_budget FOR EACH ROW EXECUTE FUNCTION crm._budget_check();
COMMENT ON TRIGGER budget_check ON crm.api_budget IS 'Refuses unknown servers and time zones, with what to do instead.';
CREATE TRIGGER budget_check BEFORE INSERT OR UPDATE ON crm.off_peak FOR EACH ROW EXECUTE FUNCTION crm._budget_check();
COMMENT ON TRIGGER budget_check ON crm.off_peak IS 'Refuses unknown servers, and windows without a time zone.';
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.api_budget FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
COMMENT ON TRIGGER config_changed ON crm.api_budget IS 'Tells the worker to read its configuration again.';
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crm.off_peak FOR EACH STATEMENT EXECUTE FUNCTION crm._config_changed();
COMMENT ON TRIGGER config_changed ON crm.off_peak IS 'Tells the worker to read its configuration again.';

CREATE FUNCTION crm._time_zone(server text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT b.time_zone FROM crm.api_budget b WHERE b.server = $1), (SELECT t.time_zone FROM crm.server_state t WHERE t.server = $1))
$$;
COMMENT ON FUNCTION crm._time_zone(text) IS 'Time zone of an account: as configured, else as its CRM told.';

-- Where a row is there without a time zone, after a restore perhaps, heavy work waits.
CREATE FUNCTION crm._off_peak_spans(server text) RETURNS TABLE (starts timestamptz, ends timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (d.day + o.starts) AT TIME ZONE z.zone,
           (d.day + o.ends + CASE WHEN o.ends <= o.starts THEN interval '1 day' ELSE interval '0' END) AT TIME ZONE z.zone
    FROM crm.off_peak o, (SELECT crm._time_zone($1) AS zone) z,
         LATERAL (SELECT ((now() AT TIME ZONE z.zone)::date + n) AS day FROM generate_series(-1, 8) AS n) d
    WHERE o.server = $1 AND z.zone IS NOT NULL AND extract(isodow FROM d.day) = ANY (o.days)
      AND (d.day + o.ends + interval '1 day') AT TIME ZONE z.zone > now()
    ORDER BY 1, 2
$$;
COMMENT ON FUNCTION crm._off_peak_spans(text) IS 'The windows of crm.off_peak of the next days, as points in time.';

CREATE FUNCTION crm._api_spent(server text, mirror integer) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(c.calls), 0)::bigint FROM crm.api_count c
    WHERE c.server = $1 AND c.per = 'hour' AND c.since > now() - interval '24 hours' AND c.purpose <> 'auth' AND ($2 IS NULL OR c.mirror = $2)
$$;
COMMENT ON FUNCTION crm._api_spent(text, integer) IS 'Calls of ours in the last 24 hours, by whole hours: of one mirror, or of all.';

CREATE FUNCTION crm._budgets() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'server', s.server, 'calls_per_window', least(b.calls_per_window, w.option),
        'share', greatest(1, round(coalesce(b.share, 1)::numeric * 1000))::integer, 'calls_per_day', b.calls_per_day,
        'reserve', round(coalesce(b.reserve, 0.1)::numeric * 1000)::integer, 'pause_at', round(coalesce(b.pause_at, 0.02)::numeric * 1000)::integer,
        'concurrent', b.concurrent, 'class_per_second', b.searches_per_second,
        'heavy', CASE WHEN EXISTS (SELECT FROM crm.off_peak o WHERE o.server = s.server)
                      THEN (SELECT coalesce(jsonb_agg(jsonb_build_array((extract(epoch FROM p.starts) * 1000)::bigint, (extract(epoch FROM p.ends) * 1000)::bigint) ORDER BY p.starts), '[]')
                            FROM crm._off_peak_spans(s.server) p) END,
        'mirrors', (SELECT coalesce(jsonb_agg(jsonb_build_array(m.id, greatest(1, round(m.api_share::numeric * 1000))::integer, crm._api_spent(s.server, m.id))), '[]')
                    FROM crm.mirror m WHERE m.server = s.server AND m.api_share IS NOT NULL),
        'spent', CASE WHEN b.share < 1 OR b.calls_per_day IS NOT NULL THEN crm._api_spent(s.server, NULL) ELSE 0 END)), '[]')
    FROM crm._server s LEFT JOIN crm.api_budget b ON b.server = s.server,
         LATERAL (SELECT (SELECT substr(o, 18)::integer FROM unnest(s.options) o WHERE o LIKE 'calls\_per\_window=%') AS option) w
$$;
COMMENT ON FUNCTION crm._budgets() IS 'The budgets of all servers as the worker takes them: shares in thousandths, times in milliseconds since 1970.';

CREATE FUNCTION crm._api_count_add(counts jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.api_count (server, per, since, purpose, endpoint, mirror, calls, limited, failed, bytes, records, changed)
    SELECT c.server, 'hour', date_trunc('hour', now()), c.purpose, c.endpoint, c.mirror, c.calls, c.limited, c.failed, c.bytes, c.records, c.changed
    FROM jsonb_to_recordset(counts) AS c (server text, purpose text, endpoint text, mirror integer, calls bigint, limited bigint, failed bigint, bytes bigint, records bigint, changed bigint)
    ON CONFLICT (server, per, since, purpose, endpoint, mirror) DO UPDATE SET calls = api_count.calls + excluded.calls, limited = api_count.limited + excluded.limited,
        failed = api_count.failed + excluded.failed, bytes = api_count.bytes + excluded.bytes, records = api_count.records + excluded.records, changed = api_count.changed + excluded.changed
$$;
COMMENT ON FUNCTION crm._api_count_add(jsonb) IS 'Adds what the worker counted to this hour.';

CREATE FUNCTION crm._api_limit_told(told jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO crm.api_limit AS l (server, name, calls_max, calls_left, per, told_at, refused_at, refused_until)
    SELECT t.server, t.name, t.calls_max, t.calls_left, make_interval(secs => t.per_ms / 1000.0),
           CASE WHEN t.calls_max IS NOT NULL THEN now() END, CASE WHEN t.until IS NOT NULL THEN now() END, to_timestamp(t.until / 1000.0)
    FROM jsonb_to_recordset(told) AS t (server text, name text, calls_max bigint, calls_left bigint, per_ms bigint, until bigint)
    ON CONFLICT (server, name) DO UPDATE SET calls_max = coalesce(excluded.calls_max, l.calls_max), calls_left = coalesce(excluded.calls_left, l.calls_left),
        per = coalesce(excluded.per, l.per), told_at = coalesce(excluded.told_at, l.told_at),
        refused_at = coalesce(excluded.refused_at, l.refused_at), refused_until = coalesce(excluded.refused_until, l.refused_until)
$$;
COMMENT ON FUNCTION crm._api_limit_told(jsonb) IS 'Takes over what a CRM said of its limits.';

-- Hours become days, and days end.
CREATE FUNCTION crm._api_count_fold() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH old AS (
        DELETE FROM crm.api_count c WHERE c.per = 'hour' AND c.since < date_trunc('day', now()) - interval '8 days' RETURNING *
    )
    INSERT INTO crm.api_count (server, per, since, purpose, endpoint, mirror, calls, limited, failed, bytes, records, changed)
    SELECT o.server, 'day', date_trunc('day', o.since), o.purpose, o.endpoint, o.mirror, sum(o.calls), sum(o.limited), sum(o.failed), sum(o.bytes), sum(o.records), sum(o.changed)
    FROM old o GROUP BY 1, 3, 4, 5, 6
    ON CONFLICT (server, per, since, purpose, endpoint, mirror) DO UPDATE SET calls = api_count.calls + excluded.calls, limited = api_count.limited + excluded.limited,
        failed = api_count.failed + excluded.failed, bytes = api_count.bytes + excluded.bytes, records = api_count.records + excluded.records, changed = api_count.changed + excluded.changed;
    DELETE FROM crm.api_count c WHERE c.per = 'day' AND c.since < now() - interval '400 days';
$$;
COMMENT ON FUNCTION crm._api_count_fold() IS 'Puts hours of more than eight days ago together to days, and removes days of more than 400 days ago.';

CREATE VIEW crm._budget_state AS
SELECT s.server, d.calls_max AS day_max, d.calls_left AS day_left, coalesce(b.reserve, 0.1) AS reserve, coalesce(b.pause_at, 0.02) AS pause_at, own.day AS own_max, own.spent AS own_spent,
       r.name AS refused_for, r.refused_until,
       CASE WHEN own.rest IS NULL THEN least(d.calls_left::float8 / nullif(d.calls_max, 0)) ELSE least(d.calls_left::float8 / nullif(d.calls_max, 0), own.rest) END AS rest,
       h.closed, h.opens
FROM crm._server s
LEFT JOIN crm.api_budget b ON b.server = s.server
LEFT JOIN crm.api_limit d ON d.server = s.server AND d.name = 'day'
LEFT JOIN LATERAL (SELECT l.name, l.refused_until FROM crm.api_limit l WHERE l.server = s.server AND l.refused_until > now() AND l.name <> 'concurrency' ORDER BY l.refused_until DESC LIMIT 1) r ON true
CROSS JOIN LATERAL (
    SELECT q.day, q.spent, greatest(q.day - q.spent, 0)::float8 / q.day AS rest
    FROM (SELECT CASE WHEN b.share < 1 OR b.calls_per_day IS NOT NULL THEN least(b.calls_per_day, CASE WHEN b.share < 1 THEN (d.calls_max * b.share)::bigint END) END AS day,
                 CASE WHEN b.share < 1 OR b.calls_per_day IS NOT NULL THEN crm._api_spent(s.server, NULL) END AS spent) q) own
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM crm.off_peak o WHERE o.server = s.server) AND NOT coalesce(bool_or(p.starts <= now() AND p.ends > now()), false) AS closed,
           min(p.starts) FILTER (WHERE p.starts > now()) AS opens
    FROM crm._off_peak_spans(s.server) p) h;
COMMENT ON VIEW crm._budget_state IS 'Per server: what is left of the day, what was refused, whether heavy work may run; for crm.status.';

CREATE VIEW crm._budget_status AS
SELECT 3 AS rank, 'budget'::text AS kind, x.server::text AS name,
       CASE WHEN x.refused_for IS NOT NULL THEN 'refused' WHEN x.rest <= 0 THEN 'used up' WHEN x.rest <= x.pause_at THEN 'nearly used up' WHEN x.rest <= x.reserve THEN 'low' ELSE 'ok' END AS state,
       concat_ws(', ', (SELECT format('%s calls per %s s', w.calls_max, extract(epoch FROM w.per)::integer) FROM crm.api_limit w WHERE w.server = x.server AND w.name = 'window'),
                 CASE WHEN x.day_max > 0 THEN format('%s of %s calls left today', x.day_left, x.day_max) END,
                 CASE WHEN x.own_max IS NOT NULL THEN format('%s of %s of our own in 24 hours', x.own_spent, x.own_max) END,
                 CASE WHEN x.refused_for IS NOT NULL THEN format('the CRM takes no calls (%s) until %s', x.refused_for, date_trunc('seconds', x.refused_until)) END,
                 CASE WHEN x.closed THEN 'heavy work waits' || coalesce(' until ' || date_trunc('seconds', x.opens), '') END) AS detail,
       NULL::bigint AS waiting, NULL::interval AS lag, NULL::text AS last_error, NULL::timestamptz AS last_error_at,
       CASE WHEN x.refused_for IS NOT NULL OR x.rest <= 0 THEN 'Nothing is sent or read until there are calls again; it goes on by itself. See crm.api_usage for what used them, crm.api_budget for what may.'
            WHEN x.rest <= x.pause_at THEN 'Only users'' writes and reads for events go on until there are calls again. See crm.api_usage for what used them.'
            WHEN x.rest <= x.reserve THEN 'First copies and reconciliation rest until there are calls again; everything else goes on. See crm.api_usage for what used them.' END AS advice
FROM crm._budget_state x
WHERE x.day_max IS NOT NULL OR x.own_max IS NOT NULL OR x.refused_for IS NOT NULL OR x.closed OR EXISTS (SELECT FROM crm.api_limit w WHERE w.server = x.server AND w.name = 'window');
COMMENT ON VIEW crm._budget_status IS 'The rows of crm.status on calls: an alert where they run out.';
