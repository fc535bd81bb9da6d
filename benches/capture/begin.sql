-- Notes time, processor time and WAL position of this backend.
SELECT count(*) AS logged0 FROM (SELECT FROM crm.change_0 UNION ALL SELECT FROM crm.change_1) c \gset
SELECT (regexp_match(pg_read_file('/proc/self/stat'), '\) \S(?: \S+){10} (\d+) (\d+)'))[1]::bigint
     + (regexp_match(pg_read_file('/proc/self/stat'), '\) \S(?: \S+){10} (\d+) (\d+)'))[2]::bigint AS ticks0,
       pg_current_wal_insert_lsn() AS wal0, extract(epoch FROM clock_timestamp()) AS time0 \gset
