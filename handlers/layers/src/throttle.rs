//! `throttle`: so many requests and bytes per second, and no more.

use std::cell::Cell;
use std::future::Future;
use std::time::{Duration, Instant};

use tcmu_handler::{Io, Operation as Task, Result};

use crate::gate::Gate;
use crate::operations::{Operation, Operations, Request};
use crate::options::Options;

pub(crate) const OPTIONS: [&str; 3] = ["iops", "bandwidth", "op"];

pub(crate) const HELP: &str = "\
throttle/OPTION=VALUE.../SUBTYPE/CONFIG

Limits how many requests are executed. Those that are too many wait for their turn.

  iops=N           So many requests per second.
  bandwidth=N      So many bytes per second of reads and writes: 500k, 20M, 1G.
  op=NAME+NAME...  Only these count and wait: read, write, flush, unmap, zero, compare, status. The
                   default is all.

Example: throttle/iops=500/bandwidth=20M/file//var/lib/x.img
";

/// What may be used up at once after a pause: timers are not exact, and what they are late by would be
/// lost otherwise.
const SLACK: Duration = Duration::from_millis(20);

/// Nothing waits longer than this for what is before it alone.
const LONGEST: Duration = Duration::from_secs(60);

/// How many requests and bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    iops: Option<u64>,
    bandwidth: Option<u64>,
    operations: Operations,
}

#[derive(Debug)]
pub(crate) struct Throttle {
    limits: Limits,
    /// When the next request may begin.
    next: Cell<Instant>,
}

/// What the options say.
pub(crate) fn parse(options: &Options) -> Result<Limits> {
    options.needs_one_of(&["iops", "bandwidth"])?;
    let positive = "a number of bytes from 1 on, such as 500k or 20M";
    let bandwidth = options.bytes("bandwidth")?;
    if bandwidth == Some(0) {
        options.parsed("bandwidth", positive, |_| None::<()>)?;
    }
    Ok(Limits {
        iops: options.count("iops")?,
        bandwidth,
        operations: options.operations()?,
    })
}

impl Limits {
    /// How much time a request uses up.
    fn cost(&self, request: &Request) -> Duration {
        let share = |amount: u64, limit: Option<u64>| match limit {
            None => Duration::ZERO,
            Some(limit) => {
                let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(limit.max(1));
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        };
        let moves = matches!(
            request.operation,
            Operation::Read | Operation::Write | Operation::Compare
        );
        let bytes = if moves { request.extent.len } else { 0 };
        let cost = share(1, self.iops).max(share(bytes, self.bandwidth));
        cost.min(LONGEST)
    }
}

impl Throttle {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            limits: parse(options)?,
            next: Cell::new(Instant::now()),
        })
    }

    /// When a request that comes `now` may begin.
    fn turn(&self, now: Instant, request: &Request) -> Instant {
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let turn = self.next.get().max(earliest);
        self.next.set(turn + self.limits.cost(request));
        turn
    }
}

impl Gate for Throttle {
    async fn pass<T>(
        &self,
        io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if self.limits.operations.contains(request.operation) {
            let now = Instant::now();
            let time = self.turn(now, &request).saturating_duration_since(now);
            if !time.is_zero() {
                // What it ends with makes no difference.
                let _ = io.submit(Task::Wait { time }).await;
            }
        }
        below.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcmu_handler::{Config, Extent};

    fn throttle(text: &str) -> Throttle {
        let config: Config = text.parse().unwrap();
        Throttle::new(&Options::of("throttle", &OPTIONS, &config).unwrap()).unwrap()
    }

    fn request(operation: Operation, len: u64) -> Request {
        let extent = Extent { offset: 0, len };
        Request { operation, extent }
    }

    #[test]
    fn turns_come_at_the_rate_that_was_asked_for() {
        let throttle = throttle("iops=100/bandwidth=1M/ram/");
        let now = Instant::now() + Duration::from_secs(1);
        let small = request(Operation::Read, 512);
        let first = throttle.turn(now, &small);
        assert_eq!(first, now - SLACK);
        assert_eq!(
            throttle.turn(now, &small),
            first + Duration::from_millis(10)
        );
        let large = request(Operation::Write, 1 << 20);
        assert_eq!(
            throttle.turn(now, &large),
            first + Duration::from_millis(20)
        );
        let after = first + Duration::from_millis(1020);
        assert_eq!(
            throttle.turn(now, &request(Operation::Zero, 1 << 40)),
            after
        );
        let last = after + Duration::from_millis(10);
        assert_eq!(throttle.turn(now, &small), last);
        // What was not used is gone.
        let later = last + Duration::from_secs(5);
        assert_eq!(throttle.turn(later, &small), later - SLACK);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let throttle = throttle("bandwidth=1/ram/");
        let cost = throttle.limits.cost(&request(Operation::Read, u64::MAX));
        assert_eq!(cost, LONGEST);
    }
}
