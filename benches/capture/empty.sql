-- An empty table and an empty log, with nothing left to be written out.
ALTER TABLE :variant DISABLE TRIGGER USER;
TRUNCATE :variant RESTART IDENTITY;
ALTER TABLE :variant ENABLE TRIGGER USER;
TRUNCATE crm.change_0, crm.change_1, crm.change_tx, bench.audit;
CHECKPOINT;
