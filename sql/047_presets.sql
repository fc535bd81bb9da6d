-- What a link of well-known objects starts with: field maps, and beside them what
-- tells kinds of record apart that share an object of Salesforce.

-- One statement for all of it: an upgrade replaces the rows as a whole.
INSERT INTO crm.standard_map (pair, left_object, right_object, left_field, right_field, to_left, to_right, value_map, match_order, value_map_back, direction)
SELECT pair, left_object, right_object, left_field, right_field, coalesce(to_left, 'identity'), coalesce(to_right, 'identity'), value_map::jsonb, match_order,
       -- Several words of HubSpot may be one of Salesforce, and some of Salesforce's have none: which stands for it.
       CASE left_field WHEN 'hs_call_status' THEN '{"Completed": "COMPLETED", "In Progress": "IN_PROGRESS", "Waiting on someone else": "QUEUED"}'
                       WHEN 'hs_call_direction' THEN '{"Internal": "OUTBOUND"}' END::jsonb,
       CASE WHEN pair IN ('email', 'note') THEN 'to_right' WHEN pair = 'meeting' AND left_field = 'hs_timestamp' THEN 'to_left' ELSE 'both' END
FROM (VALUES
    ('contact', 'contacts', 'Contact', 'email', 'Email', NULL, NULL, NULL, 1::smallint),
    ('contact', 'contacts', 'Contact', 'firstname', 'FirstName', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'lastname', 'LastName', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'phone', 'Phone', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'mobilephone', 'MobilePhone', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'jobtitle', 'Title', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'address', 'MailingStreet', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'city', 'MailingCity', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'state', 'MailingState', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'zip', 'MailingPostalCode', NULL, NULL, NULL, NULL),
    ('contact', 'contacts', 'Contact', 'country', 'MailingCountry', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'domain', 'Website', 'domain_of_url', 'url_of_domain', NULL, 1),
    ('company', 'companies', 'Account', 'name', 'Name', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'phone', 'Phone', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'annualrevenue', 'AnnualRevenue', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'numberofemployees', 'NumberOfEmployees', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'description', 'Description', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'address', 'BillingStreet', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'city', 'BillingCity', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'state', 'BillingState', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'zip', 'BillingPostalCode', NULL, NULL, NULL, NULL),
    ('company', 'companies', 'Account', 'country', 'BillingCountry', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'dealname', 'Name', NULL, NULL, NULL, 1),
    ('deal', 'deals', 'Opportunity', 'amount', 'Amount', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'closedate', 'CloseDate', 'midnight_of', 'date_of', NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'description', 'Description', NULL, NULL, NULL, NULL),
    ('deal', 'deals', 'Opportunity', 'dealstage', 'StageName', NULL, NULL,
     '{"appointmentscheduled": "Prospecting", "qualifiedtobuy": "Qualification", "presentationscheduled": "Value Proposition",
       "decisionmakerboughtin": "Id. Decision Makers", "contractsent": "Negotiation/Review", "closedwon": "Closed Won", "closedlost": "Closed Lost"}', NULL),
    ('ticket', 'tickets', 'Case', 'subject', 'Subject', NULL, NULL, NULL, 1),
    ('ticket', 'tickets', 'Case', 'content', 'Description', NULL, NULL, NULL, NULL),
    ('ticket', 'tickets', 'Case', 'hs_ticket_priority', 'Priority', NULL, NULL, '{"LOW": "Low", "MEDIUM": "Medium", "HIGH": "High"}', NULL),
    ('ticket', 'tickets', 'Case', 'hs_pipeline_stage', 'Status', NULL, NULL,
     '{"1": "New", "2": "Working", "3": "Escalated", "4": "Closed"}', NULL),
    -- Many tasks have one subject: they are made on the other side, not matched.
    ('task', 'tasks', 'Task', 'hs_task_subject', 'Subject', NULL, NULL, NULL, NULL),
    ('task', 'tasks', 'Task', 'hs_task_body', 'Description', NULL, NULL, NULL, NULL),
    ('task', 'tasks', 'Task', 'hs_timestamp', 'ActivityDate', 'midnight_of', 'date_of', NULL, NULL),
    ('task', 'tasks', 'Task', 'hs_task_priority', 'Priority', NULL, NULL, '{"LOW": "Low", "MEDIUM": "Normal", "HIGH": "High"}', NULL),
    ('task', 'tasks', 'Task', 'hs_task_status', 'Status', NULL, NULL,
     '{"NOT_STARTED": "Not Started", "IN_PROGRESS": "In Progress", "WAITING": "Waiting on someone else", "DEFERRED": "Deferred",
       "COMPLETED": "Completed"}', NULL),
    -- A contact of HubSpot is a Lead or a Contact: which, a scope says.
    ('lead', 'contacts', 'Lead', 'email', 'Email', NULL, NULL, NULL, 1),
    ('lead', 'contacts', 'Lead', 'firstname', 'FirstName', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'lastname', 'LastName', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'phone', 'Phone', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'mobilephone', 'MobilePhone', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'jobtitle', 'Title', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'company', 'Company', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'website', 'Website', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'address', 'Street', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'city', 'City', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'state', 'State', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'zip', 'PostalCode', NULL, NULL, NULL, NULL),
    ('lead', 'contacts', 'Lead', 'country', 'Country', NULL, NULL, NULL, NULL),
    -- HubSpot's lead is a chance, not a person: it has none of the person's fields.
    ('sales_lead', 'leads', 'Lead', 'hs_lead_name', 'Name', NULL, NULL, NULL, 1),
    ('sales_lead', 'leads', 'Lead', 'hs_lead_label', 'Rating', NULL, NULL, '{"HOT": "Hot", "WARM": "Warm", "COLD": "Cold"}', NULL),
    ('product', 'products', 'Product2', 'hs_sku', 'ProductCode', NULL, NULL, NULL, 1),
    ('product', 'products', 'Product2', 'name', 'Name', NULL, NULL, NULL, 2),
    ('product', 'products', 'Product2', 'description', 'Description', NULL, NULL, NULL, NULL),
    -- Whose and of which product, crm.link_references says.
    ('line_item', 'line_items', 'OpportunityLineItem', 'name', 'Name', NULL, NULL, NULL, NULL),
    ('line_item', 'line_items', 'OpportunityLineItem', 'quantity', 'Quantity', NULL, NULL, NULL, NULL),
    ('line_item', 'line_items', 'OpportunityLineItem', 'price', 'UnitPrice', NULL, NULL, NULL, NULL),
    ('line_item', 'line_items', 'OpportunityLineItem', 'description', 'Description', NULL, NULL, NULL, NULL),
    ('meeting', 'meetings', 'Event', 'hs_meeting_title', 'Subject', NULL, NULL, NULL, NULL),
    ('meeting', 'meetings', 'Event', 'hs_meeting_body', 'Description', NULL, NULL, NULL, NULL),
    ('meeting', 'meetings', 'Event', 'hs_meeting_location', 'Location', NULL, NULL, NULL, NULL),
    ('meeting', 'meetings', 'Event', 'hs_meeting_start_time', 'StartDateTime', NULL, NULL, NULL, NULL),
    ('meeting', 'meetings', 'Event', 'hs_meeting_end_time', 'EndDateTime', NULL, NULL, NULL, NULL),
    ('call', 'calls', 'Task', 'hs_call_title', 'Subject', NULL, NULL, NULL, NULL),
    ('call', 'calls', 'Task', 'hs_call_body', 'Description', NULL, NULL, NULL, NULL),
    ('call', 'calls', 'Task', 'hs_timestamp', 'ActivityDate', 'midnight_of', 'date_of', NULL, NULL),
    ('call', 'calls', 'Task', 'hs_call_direction', 'CallType', NULL, NULL, '{"INBOUND": "Inbound", "OUTBOUND": "Outbound"}', NULL),
    ('call', 'calls', 'Task', 'hs_call_status', 'Status', NULL, NULL,
     '{"COMPLETED": "Completed", "NO_ANSWER": "Completed", "BUSY": "Completed", "FAILED": "Completed", "CANCELED": "Deferred", "QUEUED": "Not Started",
       "IN_PROGRESS": "In Progress", "CALLING_CRM_USER": "In Progress", "CONNECTING": "In Progress", "RINGING": "In Progress"}', NULL),
    -- HubSpot wants a time of its own of every activity; Salesforce follows the start.
    ('meeting', 'meetings', 'Event', 'hs_timestamp', 'ActivityDateTime', NULL, NULL, NULL, NULL),
    ('email', 'emails', 'Task', 'hs_email_subject', 'Subject', NULL, NULL, NULL, NULL),
    ('email', 'emails', 'Task', 'hs_email_text', 'Description', NULL, NULL, NULL, NULL),
    ('email', 'emails', 'Task', 'hs_timestamp', 'ActivityDate', 'midnight_of', 'date_of', NULL, NULL),
    ('note', 'notes', 'Task', 'hs_note_body', 'Description', NULL, NULL, NULL, NULL),
    ('note', 'notes', 'Task', 'hs_timestamp', 'ActivityDate', 'midnight_of', 'date_of', NULL, NULL)
) AS v (pair, left_object, right_object, left_field, right_field, to_left, to_right, value_map, match_order);

CREATE TABLE crm.standard_link (
    pair           text PRIMARY KEY,
    left_object    text NOT NULL,
    right_object   text NOT NULL,
    right_scope    text,
    right_defaults jsonb NOT NULL DEFAULT '{}',
    create_left    boolean NOT NULL DEFAULT true,
    create_right   boolean NOT NULL DEFAULT true
);
COMMENT ON TABLE crm.standard_link IS 'What crm.link sets besides standard field maps: which rows of the Salesforce object are meant, what new ones get, and on which side records are made. Left is HubSpot, right is Salesforce. Part of the extension; edit crm.link and crm.field_default instead.';
COMMENT ON COLUMN crm.standard_link.right_scope IS 'A condition; {Field} stands for the column that holds a field.';
INSERT INTO crm.standard_link (pair, left_object, right_object, right_scope, right_defaults, create_left, create_right) VALUES
    ('task', 'tasks', 'Task', 'coalesce({TaskSubtype}, ''Task'') NOT IN (''Call'', ''Email'', ''ListEmail'') AND {Type} IS DISTINCT FROM ''Note''', '{}', true, true),
    ('call', 'calls', 'Task', '{TaskSubtype} = ''Call''', '{"TaskSubtype": "Call"}', true, true),
    ('email', 'emails', 'Task', '{TaskSubtype} = ''Email''', '{"TaskSubtype": "Email", "Status": "Completed"}', false, true),
    ('note', 'notes', 'Task', '{Type} = ''Note''', '{"Type": "Note", "Subject": "Note", "Status": "Completed"}', false, true),
    ('product', 'products', 'Product2', NULL, '{"IsActive": "true"}', true, true),
    ('sales_lead', 'leads', 'Lead', NULL, '{}', false, false);

CREATE FUNCTION crm._standard_maps(k crm.link)
RETURNS TABLE (left_field text, right_field text, direction text, to_left text, to_right text, value_map jsonb, value_map_back jsonb, match_order smallint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH sides AS (
        SELECT lm.object AS lo, rm.object AS ro, ls.server_type AS lt, rs.server_type AS rt
        FROM crm.mirror lm JOIN crm._server ls ON ls.server = lm.server, crm.mirror rm JOIN crm._server rs ON rs.server = rm.server
        WHERE lm.id = k.left_mirror AND rm.id = k.right_mirror
    ), maps AS (
        SELECT s.left_field AS lf, s.right_field AS rf, s.direction, s.to_left, s.to_right, s.value_map, s.value_map_back, s.match_order
        FROM crm.standard_map s, sides d
        WHERE d.lt = 'hubspot' AND d.rt = 'salesforce' AND s.left_object = d.lo AND s.right_object = d.ro
        UNION ALL
        SELECT s.right_field, s.left_field, CASE s.direction WHEN 'to_left' THEN 'to_right' WHEN 'to_right' THEN 'to_left' ELSE 'both' END, s.to_right, s.to_left,
               (SELECT jsonb_object_agg(e.v, e.f) FROM jsonb_each_text(s.value_map) AS e (f, v)) || coalesce(s.value_map_back, '{}'),
               CASE WHEN s.value_map_back IS NOT NULL THEN s.value_map END, s.match_order
        FROM crm.standard_map s, sides d
        WHERE d.rt = 'hubspot' AND d.lt = 'salesforce' AND s.left_object = d.ro AND s.right_object = d.lo
    )
    SELECT m.lf, m.rf, CASE WHEN m.direction <> 'both' THEN m.direction WHEN l.read_only THEN 'to_right' WHEN r.read_only THEN 'to_left' ELSE m.direction END,
           m.to_left, m.to_right, m.value_map, m.value_map_back, m.match_order
    FROM maps m
    JOIN crm.mirror_column l ON l.mirror = k.left_mirror AND l.field = m.lf
    JOIN crm.mirror_column r ON r.mirror = k.right_mirror AND r.field = m.rf
    WHERE CASE m.direction WHEN 'to_left' THEN NOT l.read_only WHEN 'to_right' THEN NOT r.read_only ELSE NOT (l.read_only AND r.read_only) END
      AND crm._map_problem(l, r, m.to_left, m.to_right) IS NULL
$$;
COMMENT ON FUNCTION crm._standard_maps(crm.link) IS 'Standard maps of a link for the columns that both mirrors have, whichever side is left.';

-- A condition with the columns of a mirror in place of {Field}; null if it lacks one.
CREATE FUNCTION crm._standard_scope(mirror integer, scope text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
BEGIN
    FOR found IN SELECT DISTINCT x[1] FROM regexp_matches(scope, '\{(\w+)\}', 'g') x LOOP
        scope := replace(scope, '{' || found || '}', crm._column_of(mirror, found));
    END LOOP;
    RETURN scope;
END $$;
COMMENT ON FUNCTION crm._standard_scope(integer, text) IS 'The scope of a preset over the columns of a mirror; null where the mirror lacks one of them.';

-- Whether new records of a mirror may get a value: a choice that the account has not made is none.
CREATE FUNCTION crm._standard_default_fits(mirror integer, field text, value text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM crm.mirror_column c JOIN crm.mirror m ON m.id = c.mirror
                   LEFT JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object AND f.field = c.field
                   WHERE c.mirror = $1 AND c.field = $2 AND NOT c.read_only
                     AND (f.restricted IS NOT TRUE OR EXISTS (SELECT FROM jsonb_array_elements(f.options) o WHERE coalesce(o ->> 'value', o ->> 0) = $3)))
$$;
COMMENT ON FUNCTION crm._standard_default_fits(integer, text, text) IS 'Whether a mirror has the field, its CRM lets it be written, and knows the value if it must.';

CREATE FUNCTION crm._standard_link_apply(k crm.link) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p     crm.standard_link;
    -- Where Salesforce is on the left, the preset is read from the other side.
    _side text;
    there integer;
    scope text;
BEGIN
    SELECT s.*, CASE WHEN ls.server_type = 'hubspot' THEN 'right' ELSE 'left' END INTO p.pair, p.left_object, p.right_object, p.right_scope, p.right_defaults, p.create_left, p.create_right, _side
    FROM crm.mirror l JOIN crm._server ls ON ls.server = l.server, crm.mirror r JOIN crm._server rs ON rs.server = r.server, crm.standard_link s
    WHERE l.id = k.left_mirror AND r.id = k.right_mirror
      AND ((ls.server_type, rs.server_type, l.object, r.object) = ('hubspot', 'salesforce', s.left_object, s.right_object)
        OR (rs.server_type, ls.server_type, r.object, l.object) = ('hubspot', 'salesforce', s.left_object, s.right_object));
    IF NOT FOUND THEN
        RETURN;
    END IF;
    there := CASE _side WHEN 'right' THEN k.right_mirror ELSE k.left_mirror END;
    UPDATE crm.link x SET create_left = CASE _side WHEN 'right' THEN p.create_left ELSE p.create_right END,
                          create_right = CASE _side WHEN 'right' THEN p.create_right ELSE p.create_left END WHERE x.id = k.id;
    INSERT INTO crm.field_default (link, side, field, value)
    SELECT k.name, _side, d.key, d.value FROM jsonb_each_text(p.right_defaults) d
    WHERE crm._standard_default_fits(there, d.key, d.value)
      AND NOT EXISTS (SELECT FROM crm.field_map f WHERE f.link = k.name AND d.key = CASE _side WHEN 'right' THEN f.right_field ELSE f.left_field END);
    scope := crm._standard_scope(there, p.right_scope);
    -- Records that we make must be among those that the scope lets in.
    IF p.right_scope IS NULL THEN
        RETURN;
    ELSIF scope IS NULL OR EXISTS (SELECT FROM jsonb_each_text(p.right_defaults) d WHERE p.right_scope LIKE '%{' || d.key || '}%' AND NOT crm._standard_default_fits(there, d.key, d.value)) THEN
        RAISE NOTICE 'link "%" takes all rows of %', k.name, crm._table_of(there)
            USING DETAIL = format('Rows that are no %ss would be told apart by %s, which the mirror or its CRM does not offer.', p.pair, p.right_scope), HINT = 'Set a scope of your own: UPDATE crm.link SET right_scope = …';
    ELSIF NOT pg_has_role((SELECT c.relowner FROM crm.mirror m JOIN pg_class c ON c.oid = crm._relation_of(m.schema_name, m.table_name) WHERE m.id = there), 'USAGE') THEN
        RAISE NOTICE 'link "%" takes all rows of %', k.name, crm._table_of(there)
            USING DETAIL = 'Only the owner of the table can set a scope.', HINT = format('Have the owner run: UPDATE crm.link SET %s_scope = %L WHERE name = %L;', _side, scope, k.name);
    ELSIF _side = 'right' THEN
        UPDATE crm.link x SET right_scope = scope WHERE x.id = k.id;
    ELSE
        UPDATE crm.link x SET left_scope = scope WHERE x.id = k.id;
    END IF;
END $$;
COMMENT ON FUNCTION crm._standard_link_apply(crm.link) IS 'Sets scope, defaults and sides of a new link as the preset of its objects says.';
