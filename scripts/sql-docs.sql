-- Every public object of schema crm as one JSON object per line, for scripts/sql-docs.py.
SELECT json_build_object(
    'kind', 'function', 'name', p.proname, 'signature', format('crm.%s(%s)', p.proname, pg_get_function_arguments(p.oid)),
    'returns', pg_get_function_result(p.oid), 'comment', obj_description(p.oid, 'pg_proc'),
    'roles', (SELECT array_agg(r ORDER BY r) FROM unnest(ARRAY['crm_admin', 'crm_operator', 'crm_steward', 'crm_reader']) r
              WHERE has_function_privilege(r, p.oid, 'EXECUTE')))
FROM pg_proc p
WHERE p.pronamespace = 'crm'::regnamespace AND p.proname !~ '^_' AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
ORDER BY p.proname, p.oid;

SELECT json_build_object(
    'kind', CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, 'name', c.relname, 'comment', obj_description(c.oid, 'pg_class'),
    'roles', (SELECT array_agg(r ORDER BY r) FROM unnest(ARRAY['crm_admin', 'crm_operator', 'crm_steward', 'crm_reader']) r
              WHERE has_table_privilege(r, c.oid, 'SELECT')),
    'writers', (SELECT array_agg(r ORDER BY r) FROM unnest(ARRAY['crm_admin', 'crm_operator', 'crm_steward', 'crm_reader']) r
              WHERE has_any_column_privilege(r, c.oid, 'UPDATE') OR has_table_privilege(r, c.oid, 'INSERT')),
    'columns', (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum)) ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
FROM pg_class c
WHERE c.relnamespace = 'crm'::regnamespace AND c.relkind IN ('r', 'v', 'p') AND c.relname !~ '^_' AND NOT c.relispartition
ORDER BY c.relname;

SELECT json_build_object('kind', 'setting', 'name', s.name, 'comment', s.short_desc, 'unit', s.unit, 'default', s.boot_val, 'context', s.context)
FROM pg_settings s WHERE s.name LIKE 'pg\_crm\_sync.%' ORDER BY s.name;
