//! Fixtures shared by the external tests.
