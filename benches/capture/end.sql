-- Prints what the statement since begin.sql took.
SELECT extract(epoch FROM clock_timestamp()) AS time1 \gset
SELECT 'bulk.' || :'what', :'variant', :'round', round((:time1 - :time0)::numeric, 6),
       (regexp_match(pg_read_file('/proc/self/stat'), '\) \S(?: \S+){10} (\d+) (\d+)'))[1]::bigint
     + (regexp_match(pg_read_file('/proc/self/stat'), '\) \S(?: \S+){10} (\d+) (\d+)'))[2]::bigint - :ticks0,
       (pg_current_wal_insert_lsn() - :'wal0'::pg_lsn)::bigint,
       (SELECT count(*) FROM (SELECT FROM crm.change_0 UNION ALL SELECT FROM crm.change_1) c) - :logged0;
