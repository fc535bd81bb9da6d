\pset fieldsep '\t'
SET search_path = bench;
\ir empty.sql
SELECT format('COPY %I (email, firstname, lastname, phone, company, city, country, amount, score, birthday, contacted_at, opted_in, lifecycle) FROM %L', :'variant', :'file') AS copy \gset
\ir begin.sql
:copy;
\ir end.sql
VACUUM ANALYZE :variant;
