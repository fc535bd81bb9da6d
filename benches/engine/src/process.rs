//! What a process used, as the kernel counts it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ticks of `/proc/PID/stat` per second: the same on every Linux that PostgreSQL runs on.
const TICKS: f64 = 100.0;

/// Seconds of CPU, user and system, that all threads of `pid` used so far.
pub(crate) fn cpu_seconds(pid: i32) -> f64 {
    seconds_of(&format!("/proc/{pid}/stat"))
}

/// The same of its first thread alone.
pub(crate) fn main_thread_seconds(pid: i32) -> f64 {
    seconds_of(&format!("/proc/{pid}/task/{pid}/stat"))
}

fn seconds_of(path: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("no {path}: {e}"));
    // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15 of the whole line.
    let after = text.rsplit_once(')').expect("a name in parentheses").1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |i: usize| fields[i].parse::<f64>().expect("ticks are a number");
    (ticks(11) + ticks(12)) / TICKS
}

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Highest resident size ever, shared buffers that it touched included.
    pub(crate) highest: u64,
    /// Resident now, without memory shared with other processes of the cluster.
    pub(crate) own: u64,
}

/// Reads `/proc/PID/status`; `None` when the process has ended.
pub(crate) fn memory(pid: i32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| {
        text.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .map(|n: u64| n * 1_024)
    };
    Some(Memory {
        highest: kilobytes("VmHWM:")?,
        own: kilobytes("RssAnon:")? + kilobytes("RssFile:")?,
    })
}

/// Samples a process every 10 ms until it is asked for the peak.
pub(crate) struct Peak {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: JoinHandle<()>,
    pid: i32,
}

impl Peak {
    pub(crate) fn of(pid: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let (ended, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Some(memory) = memory(pid) else { return };
                highest.fetch_max(memory.own, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            stop,
            peak,
            thread,
            pid,
        }
    }

    /// Highest own memory seen, and the kernel's highest resident size.
    pub(crate) fn end(self) -> Memory {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler does not fail");
        let last = memory(self.pid)
            .unwrap_or_else(|| panic!("process {} ended while it was measured", self.pid));
        Memory {
            highest: last.highest,
            own: self.peak.load(Ordering::Relaxed).max(last.own),
        }
    }
}

/// Bytes as megabytes (2^20).
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
