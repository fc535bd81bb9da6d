\pset fieldsep '\t'
SET search_path = bench;
TRUNCATE crm.change_0, crm.change_1, crm.change_tx, bench.audit;
VACUUM :variant;
CHECKPOINT;
\ir begin.sql
UPDATE :variant SET phone = phone || :'round', city = city || :'round', score = score + 1;
\ir end.sql
