//! Checking configurations, which may block on storage that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_channel::oneshot;
use zruntime::SharedRuntime;

use super::subtype::Subtype;
use crate::reactor::BlockingPool;
use crate::registry::Registry;

/// How long a check may take: D-Bus clients usually give up after 25 s.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// The kernel's limit of a configuration in bytes, subtype included (`TCMU_CONFIG_LEN` in
/// drivers/target/target_core_user.c, which counts the final zero).
const LONGEST_CONFIG: usize = 255;

/// How many checks run at once, and how many may be under way or waiting.
const THREADS: usize = 4;
const MOST: usize = 32;

/// Runs the handlers' checks.
pub(super) struct Checks {
    registry: Arc<Registry>,
    runtime: SharedRuntime,
    pool: BlockingPool,
    under_way: Arc<AtomicUsize>,
}

/// Counts a check from its arrival to its end, even if nobody waits for it any more.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Checks {
    pub(super) fn new(registry: Arc<Registry>, runtime: SharedRuntime) -> Self {
        Self {
            registry,
            runtime,
            pool: BlockingPool::new(THREADS),
            under_way: Arc::default(),
        }
    }

    /// The timers of the service's thread.
    pub(super) fn runtime(&self) -> &SharedRuntime {
        &self.runtime
    }

    /// Whether our handler `subtype` could open `config`, which includes the subtype.
    pub(super) async fn run(&self, subtype: &Subtype, config: &str) -> Result<(), String> {
        let rest = rest(subtype, config)?.to_owned();
        let slot = self.slot()?;
        let (answer, verdict) = oneshot::channel();
        let (registry, subtype) = (Arc::clone(&self.registry), subtype.clone());
        self.pool.run(Box::new(move || {
            let verdict = registry.check(subtype.as_str(), &rest);
            drop(slot);
            // Nobody may be waiting any more.
            let _ = answer.send(verdict);
        }));
        match self.runtime.timeout(LIMIT, verdict).await {
            Ok(Ok(verdict)) => verdict.map_err(|error| error.to_string()),
            Ok(Err(oneshot::Canceled)) => {
                Err("the handler's check failed; the daemon's log says how".to_owned())
            }
            Err(_) => Err(format!(
                "the storage did not answer within {} s; see whether it can be reached",
                LIMIT.as_secs()
            )),
        }
    }

    fn slot(&self) -> Result<Slot, String> {
        // The slot gives back what is counted here, also where it is one too many.
        let slot = Slot(Arc::clone(&self.under_way));
        if self.under_way.fetch_add(1, Ordering::Relaxed) < MOST {
            Ok(slot)
        } else {
            Err(
                "too many checks are under way, on storage that does not answer; try again later"
                    .to_owned(),
            )
        }
    }
}

/// The part of a configuration behind the subtype.
pub(super) fn rest<'a>(subtype: &Subtype, config: &'a str) -> Result<&'a str, String> {
    if config.len() > LONGEST_CONFIG {
        return Err(format!(
            "the configuration has {} bytes; the kernel takes {LONGEST_CONFIG} at the most",
            config.len()
        ));
    }
    // rtslib writes it to the kernel's `control` file, which takes a comma for its end.
    if config.contains([',', '\n', '\0']) {
        return Err(
            "commas and line ends do not reach the kernel this way; rename what is to be served, \
             or use tcmuctl"
                .to_owned(),
        );
    }
    config
        .strip_prefix(subtype.as_str())
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| format!("the configuration does not begin with \"{subtype}/\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_subtype_off() {
        let subtype = Subtype::new("file").unwrap();
        assert_eq!(rest(&subtype, "file//x.img;a=b"), Ok("/x.img;a=b"));
        assert_eq!(rest(&subtype, "file/"), Ok(""));
        for config in ["file", "files//x", "ram//x", "", "/file//x"] {
            let reason = rest(&subtype, config).unwrap_err();
            assert!(reason.contains("file/"), "{config}: {reason}");
        }
    }

    #[test]
    fn refuses_what_the_kernel_would_cut() {
        let subtype = Subtype::new("file").unwrap();
        let longest = format!("file/{}", "x".repeat(LONGEST_CONFIG - 5));
        assert!(rest(&subtype, &longest).is_ok());
        assert!(
            rest(&subtype, &format!("{longest}x"))
                .unwrap_err()
                .contains("255")
        );
        for config in ["file//a,b", "file//a\nb"] {
            assert!(
                rest(&subtype, config).unwrap_err().contains("comma"),
                "{config}"
            );
        }
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let checks = Checks::new(Arc::default(), SharedRuntime::new().unwrap());
        let mut slots: Vec<_> = (0..MOST).map(|_| checks.slot().unwrap()).collect();
        assert!(checks.slot().is_err());
        assert!(checks.slot().is_err());
        slots.pop();
        slots.push(checks.slot().unwrap());
        assert!(checks.slot().is_err());
        drop(slots);
        assert_eq!(checks.under_way.load(Ordering::Relaxed), 0);
    }
}
