//! The background workers: one launcher per cluster, one session per database.
