-- Roles, grants, and comments of functions that the library defines.

COMMENT ON FUNCTION crm._fence() IS 'State of the fence as the library reads it: see crm.fence_status().';
COMMENT ON FUNCTION crm._fence_write(text) IS 'Writes the activation file of this cluster; only through crm.activate().';
REVOKE ALL ON FUNCTION crm._fence_write(text) FROM PUBLIC;
