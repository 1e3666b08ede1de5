//! CPU time and CPU binding, from /proc.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use rustix::thread::CpuSet;

/// Set in `flags` of /proc/PID/stat for a kernel thread (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// One process, as far as /proc/PID/stat is of interest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    kernel_thread: bool,
    /// User and system time of all threads, dead ones included, in clock ticks.
    ticks: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field, the name in parentheses, may hold spaces and parentheses itself.
    let after_name = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    // Field n of proc(5) is fields[n - 3]: flags 9, utime 14, stime 15.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        kernel_thread: field(9)? & PF_KTHREAD != 0,
        ticks: field(14)?.checked_add(field(15)?)?,
    })
}

/// The CPU time used so far by a daemon and by the kernel's threads. The kernel scales both parts
/// of a process's time so that their sum is the precise run time; a tick is 10 ms.
#[derive(Debug)]
pub(super) struct CpuTimes {
    daemon: u64,
    kernel_threads: HashMap<u32, u64>,
}

impl CpuTimes {
    /// The times now.
    ///
    /// # Errors
    /// A /proc that cannot be read.
    pub(super) fn now(daemon: Option<u32>) -> Result<Self> {
        let mut times = Self {
            daemon: 0,
            kernel_threads: HashMap::new(),
        };
        for entry in fs::read_dir("/proc").context("/proc")? {
            let entry = entry.context("/proc")?;
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end between the listing and the reading.
            let Some(stat) = fs::read_to_string(entry.path().join("stat"))
                .ok()
                .as_deref()
                .and_then(parse_stat)
            else {
                continue;
            };
            if stat.kernel_thread {
                times.kernel_threads.insert(pid, stat.ticks);
            } else if Some(pid) == daemon {
                times.daemon = stat.ticks;
            }
        }
        Ok(times)
    }

    /// CPU time from `earlier` to `self`: the daemon's and the kernel threads'. A kernel thread
    /// that is new counts whole.
    #[must_use]
    pub(super) fn since(&self, earlier: &Self) -> (Duration, Duration) {
        let kernel = self
            .kernel_threads
            .iter()
            .map(|(pid, ticks)| {
                ticks.saturating_sub(earlier.kernel_threads.get(pid).copied().unwrap_or(0))
            })
            .sum();
        (
            from_ticks(self.daemon.saturating_sub(earlier.daemon)),
            from_ticks(kernel),
        )
    }
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Binds all threads of `pid` to `cpu`, or to no CPU in particular.
///
/// # Errors
/// A process that is gone, and a CPU that is not there.
pub(super) fn bind(pid: u32, cpu: Option<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu),
        None => (0..cpus()?).for_each(|cpu| set.set(cpu)),
    }
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the daemon's threads")? {
        let task = task.context("the daemon's threads")?.file_name();
        let thread = task.to_str().and_then(|name| name.parse().ok());
        let thread = thread
            .and_then(Pid::from_raw)
            .context("a thread id that is no number")?;
        match rustix::thread::sched_setaffinity(Some(thread), &set) {
            // The thread has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot bind process {pid} to {cpu:?}"));
            }
        }
    }
    Ok(())
}

/// The number of CPUs that this process may use.
///
/// # Errors
/// An operating system that does not tell.
pub(super) fn cpus() -> Result<usize> {
    Ok(std::thread::available_parallelism()
        .context("the number of CPUs")?
        .get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_any_name() {
        let line = "77 (a) b (c)) S 2 0 0 0 -1 2129984 0 0 0 0 7 35 0 0 20 0 1 0 3 0 0";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                kernel_thread: true,
                ticks: 42
            })
        );
        let user = line.replace("2129984", "4194304");
        assert_eq!(parse_stat(&user).map(|s| s.kernel_thread), Some(false));
        assert_eq!(parse_stat("77 (x) S 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn time_counts_new_threads_whole_and_forgets_dead_ones() {
        let before = CpuTimes {
            daemon: 5,
            kernel_threads: HashMap::from([(1, 10), (2, 50)]),
        };
        let after = CpuTimes {
            daemon: 9,
            kernel_threads: HashMap::from([(1, 13), (3, 2)]),
        };
        let (daemon, kernel) = after.since(&before);
        assert_eq!(daemon, from_ticks(4));
        assert_eq!(kernel, from_ticks(5));
    }

    #[test]
    fn own_time_grows_with_work() {
        let me = Some(std::process::id());
        let before = CpuTimes::now(me).expect("own /proc");
        let mut sum = 0u64;
        while CpuTimes::now(me)
            .expect("own /proc")
            .since(&before)
            .0
            .is_zero()
        {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
