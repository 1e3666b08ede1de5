//! What is worked out from a LUN's figures.

use super::client::{ClassStats, LunStats};
use super::times::{self, Times};

/// The figures of some commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) commands: u64,
    pub(super) bytes: u64,
    pub(super) nanoseconds: u64,
    pub(super) failed: u64,
    pub(super) times: Times,
}

impl Sum {
    pub(super) fn of(class: &ClassStats) -> Self {
        Self {
            commands: class.commands,
            bytes: class.bytes,
            nanoseconds: class.nanoseconds,
            failed: class.failures.iter().map(|(_, _, count)| count).sum(),
            times: class.times.clone(),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.bytes += other.bytes;
        self.nanoseconds += other.nanoseconds;
        self.failed += other.failed;
        times::merge(&mut self.times, &other.times);
    }

    /// What came since `before`; all of it if the LUN was opened anew meanwhile.
    fn since(&self, before: &Self) -> Self {
        if self.commands < before.commands {
            return self.clone();
        }
        Self {
            commands: self.commands - before.commands,
            bytes: self.bytes.saturating_sub(before.bytes),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
            failed: self.failed.saturating_sub(before.failed),
            times: times::since(&self.times, &before.times),
        }
    }

    /// How long a command took on average, in nanoseconds.
    pub(super) fn mean(&self) -> Option<u64> {
        self.nanoseconds.checked_div(self.commands)
    }

    pub(super) fn quantile(&self, share: f64) -> Option<u64> {
        times::quantile(&self.times, share)
    }
}

/// What a LUN did in an interval.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) name: String,
    pub(super) hba: u32,
    pub(super) state: String,
    pub(super) in_flight: u32,
    pub(super) reads: Sum,
    pub(super) writes: Sum,
    pub(super) all: Sum,
    /// In seconds.
    pub(super) interval: f64,
}

impl Work {
    /// What the LUN did between two looks at its figures, `interval` seconds apart.
    pub(super) fn between(before: Option<&LunStats>, now: &LunStats, interval: f64) -> Self {
        let mut work = Self {
            name: now.name.clone(),
            hba: now.hba,
            state: now.state.clone(),
            in_flight: now.in_flight,
            reads: Sum::default(),
            writes: Sum::default(),
            all: Sum::default(),
            interval,
        };
        for class in &now.classes {
            let earlier = before.and_then(|before| {
                let mut classes = before.classes.iter();
                classes.find(|earlier| earlier.class == class.class)
            });
            let earlier = earlier.map(Sum::of).unwrap_or_default();
            let sum = Sum::of(class).since(&earlier);
            match class.class.as_str() {
                "read" => work.reads.add(&sum),
                "write" => work.writes.add(&sum),
                _ => {}
            }
            work.all.add(&sum);
        }
        work
    }

    /// So many in the interval, per second.
    pub(super) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.interval
    }

    /// How many commands were in flight on average: by Little's law, what they took together, by the
    /// time in which they ended.
    pub(super) fn queue_depth(&self) -> f64 {
        self.all.nanoseconds as f64 / 1e9 / self.interval
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn stats(id: u32, name: &str, reads: u64, writes: u64) -> LunStats {
        let class = |class: &str, commands: u64, took: u64| ClassStats {
            class: class.to_owned(),
            commands,
            bytes: commands * 4096,
            nanoseconds: commands * took,
            times: vec![(took, commands)],
            failures: Vec::new(),
        };
        LunStats {
            id,
            name: name.to_owned(),
            hba: 0,
            state: "serving".to_owned(),
            in_flight: 1,
            slow: 0,
            classes: vec![
                class("read", reads, 1_000_000),
                class("write", writes, 4_000_000),
            ],
        }
    }

    #[test]
    fn the_work_of_an_interval() {
        let before = stats(1, "a", 100, 10);
        let mut now = stats(1, "a", 1100, 260);
        let failure = ("busy".to_owned(), String::new(), 6);
        now.classes[1].failures.push(failure);
        let work = Work::between(Some(&before), &now, 2.0);
        assert_eq!((work.reads.commands, work.writes.commands), (1000, 250));
        assert_eq!(work.per_second(work.all.commands), 625.0);
        assert_eq!(work.per_second(work.all.failed), 3.0);
        assert_eq!(work.queue_depth(), 1.0);
        assert_eq!(work.all.quantile(0.5), Some(1_000_000));
        assert_eq!(work.all.quantile(0.99), Some(4_000_000));
        assert_eq!(work.all.mean(), Some(1_600_000));
        assert_eq!(work.writes.bytes, 250 * 4096);
    }

    #[test]
    fn a_lun_that_is_new_or_opened_anew_begins_with_nothing() {
        let now = stats(1, "a", 10, 0);
        let work = Work::between(None, &now, 1.0);
        assert_eq!(work.all.commands, 10);
        let before = stats(1, "a", 50, 5);
        let work = Work::between(Some(&before), &now, 1.0);
        assert_eq!((work.reads.commands, work.writes.commands), (10, 0));
        assert_eq!(Work::between(Some(&now), &now, 1.0).all, Sum::default());
        assert_eq!(Sum::default().mean(), None);
    }
}
