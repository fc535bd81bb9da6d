//! A prepared statement as SPI keeps it, with a say in how it is planned.

use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::spi::{Error, Spi};

use super::spi::{Arg, Result};

/// A statement with the plan that the server keeps for it.
pub(super) struct Plan {
    at: NonNull<pg_sys::_SPI_plan>,
    /// One plan whatever the values are; else the server decides.
    generic: bool,
    made: Instant,
    uses: u32,
    /// Rows of all larger batches when it was made.
    batched: u64,
}

impl Plan {
    /// Longest list of rows that counts as few: the server supposes ten in a
    /// list that it does not know.
    pub(super) const FEW: usize = 32;
    /// A plan for few rows is made anew after this many uses, if this long ago,
    /// and when this many rows came in larger batches: it was made for tables as
    /// they were.
    const USES: u32 = 200;
    const AGE: Duration = Duration::from_secs(10);
    const GROWTH: u64 = 2_000;

    /// Prepares a statement for arguments like these.
    pub(super) fn make(sql: &str, args: &[Arg<'_>], generic: bool, batched: u64) -> Result<Self> {
        let text = CString::new(sql).map_err(|_| Error::InvalidPosition)?;
        let mut types: Vec<pg_sys::Oid> = args.iter().map(Arg::oid).collect();
        let count = c_int::try_from(types.len()).map_err(|_| Error::InvalidPosition)?;
        let options = if generic {
            pg_sys::CURSOR_OPT_GENERIC_PLAN
        } else {
            0
        };
        // SAFETY: connected to SPI; as many types as told, a text that ends. What
        // is prepared is kept at once, so that it outlives the connection.
        unsafe {
            let options = c_int::try_from(options).unwrap_or_default();
            let plan =
                pg_sys::SPI_prepare_cursor(text.as_ptr(), count, types.as_mut_ptr(), options);
            let Some(at) = NonNull::new(plan) else {
                Spi::check_status(pg_sys::SPI_result)?;
                return Err(Error::InvalidPosition);
            };
            if pg_sys::SPI_keepplan(at.as_ptr()) != 0 {
                return Err(Error::InvalidPosition);
            }
            Ok(Self {
                at,
                generic,
                made: Instant::now(),
                uses: 0,
                batched,
            })
        }
    }

    /// Whether it may still be used, `batched` rows of larger batches later.
    pub(super) fn serves(&self, batched: u64) -> bool {
        let grown = batched - self.batched > Self::GROWTH;
        let old = self.uses >= Self::USES && self.made.elapsed() >= Self::AGE;
        !self.generic || !(grown || old)
    }

    /// Runs it; the rows that it answered or touched.
    pub(super) fn run(&mut self, args: &[Arg<'_>], reads: bool) -> Result<usize> {
        self.uses = self.uses.saturating_add(1);
        let mut values = Vec::with_capacity(args.len());
        let mut nulls = Vec::with_capacity(args.len());
        for arg in args {
            let value = arg.datum();
            nulls.push(if value.is_some() { b' ' } else { b'n' } as c_char);
            values.push(value.map_or(pg_sys::Datum::from(0), |v| v.sans_lifetime()));
        }
        // SAFETY: connected to SPI; a value and a flag for each argument that the
        // statement was prepared with.
        unsafe {
            if self.generic && (self.uses == 1 || !pg_sys::SPI_plan_is_valid(self.at.as_ptr())) {
                self.plan_by_index();
            }
            if usize::try_from(pg_sys::SPI_getargcount(self.at.as_ptr())) != Ok(args.len()) {
                return Err(Error::InvalidPosition);
            }
            pg_sys::SPI_tuptable = std::ptr::null_mut();
            let (values, nulls) = (values.as_mut_ptr(), nulls.as_ptr());
            let status = pg_sys::SPI_execute_plan(self.at.as_ptr(), values, nulls, reads, 0);
            Spi::check_status(status)?;
            Ok(usize::try_from(pg_sys::SPI_processed).unwrap_or_default())
        }
    }

    /// Has the server plan it now, with scans of whole tables only where there is
    /// no index: tables of work are empty at times and full of dead rows at
    /// others, and what it cost to read them whole is no measure of either.
    ///
    /// # Safety
    /// Connected to SPI, in a transaction, and prepared as a generic plan.
    unsafe fn plan_by_index(&self) {
        // SAFETY: settings that planning reads, put back on every way out; the
        // plan is released at once, and stays with its statement.
        unsafe {
            let _settings = Settings::for_indexes();
            let plan = pg_sys::SPI_plan_get_cached_plan(self.at.as_ptr());
            if !plan.is_null() {
                pg_sys::ReleaseCachedPlan(plan, pg_sys::CurrentResourceOwner);
            }
        }
    }

    /// How many elements a list has that is given as an argument.
    pub(super) fn length(arg: &Arg<'_>) -> Option<usize> {
        const LISTS: [pg_sys::Oid; 8] = [
            pg_sys::INT8ARRAYOID,
            pg_sys::TEXTARRAYOID,
            pg_sys::INT4ARRAYOID,
            pg_sys::BOOLARRAYOID,
            pg_sys::TIDARRAYOID,
            pg_sys::FLOAT4ARRAYOID,
            pg_sys::FLOAT8ARRAYOID,
            pg_sys::UUIDARRAYOID,
        ];
        let value = arg.datum().filter(|_| LISTS.contains(&arg.oid()))?;
        let list: *const pg_sys::ArrayType = value.sans_lifetime().cast_mut_ptr();
        // SAFETY: made for this call, so neither compressed nor elsewhere; its
        // dimensions follow its header.
        unsafe {
            match (*list).ndim {
                0 => Some(0),
                _ => usize::try_from(*list.add(1).cast::<c_int>()).ok(),
            }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: kept by SPI until now, and used by nobody else.
        unsafe {
            pg_sys::SPI_freeplan(self.at.as_ptr());
        }
    }
}

/// Settings of the planner, put back when dropped.
struct Settings {
    seqscan: bool,
    jit: bool,
}

impl Settings {
    /// # Safety
    /// Only the main thread plans.
    unsafe fn for_indexes() -> Self {
        // SAFETY: plain flags of this process.
        unsafe {
            let was = Self {
                seqscan: pg_sys::enable_seqscan,
                jit: pg_sys::jit_enabled,
            };
            pg_sys::enable_seqscan = false;
            // The penalty for a scan without index looks like work that pays for compiling.
            pg_sys::jit_enabled = false;
            was
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::enable_seqscan = self.seqscan;
            pg_sys::jit_enabled = self.jit;
        }
    }
}
