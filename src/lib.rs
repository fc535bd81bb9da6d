//! pg_crm_sync.
pgrx::pg_module_magic!();
