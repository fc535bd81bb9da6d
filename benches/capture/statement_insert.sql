\pset fieldsep '\t'
SET search_path = bench;
\ir empty.sql
\ir begin.sql
INSERT INTO :variant (email, firstname, lastname, phone, company, city, country, amount, score, birthday, contacted_at, opted_in, lifecycle)
SELECT email, firstname, lastname, phone, company, city, country, amount, score, birthday, contacted_at, opted_in, lifecycle FROM source;
\ir end.sql
