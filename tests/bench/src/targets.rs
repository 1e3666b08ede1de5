//! The targets of the project, and what was measured against them.

use crate::plan::{Candidate, Image, Job};
use crate::record::{Method, Record};
use crate::stats::{Summaries, Summary};

/// Which side of its bound a value has to be on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// One target.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What is compared.
    pub what: String,
    /// What is asked for.
    pub bound: Bound,
    /// What was measured; `None` if one side was not.
    pub measured: Option<f64>,
}

impl Verdict {
    /// Whether it is reached; `None` if it was not measured.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        self.measured.map(|value| self.bound.holds(value))
    }
}

/// Judges every target whose job was part of the plan. Each candidate counts at its best placement.
#[must_use]
pub fn judge(record: &Record, summaries: &Summaries) -> Vec<Verdict> {
    let judge = Judge { record, summaries };
    if record.plan.candidates.contains(&Candidate::Qcow) {
        return judge.qcow();
    }
    // In the emulated guest a system call costs no more than other instructions: the gain of fewer
    // of them shows more than in User-mode Linux, where fio's own dominate.
    let (deep, shallow) = if record.machine.rig_kernel == "qemu" {
        (2.0, 1.5)
    } else {
        (1.5, 1.2)
    };
    let mut verdicts = Vec::new();
    for &job in &record.plan.jobs {
        if !job.pattern.is_random() {
            continue;
        }
        match (job.block_kib, job.depth) {
            (4, 1) => verdicts.push(judge.speed(job, Candidate::TcmuRunner, shallow)),
            (4, _) => verdicts.extend([
                judge.speed(job, Candidate::TcmuRunner, deep),
                judge.speed(job, Candidate::Fileio, 1.0),
                judge.cpu(job, "target-side CPU (daemon + kernel threads)", |s| {
                    s.target_us.median
                }),
                judge.cpu(job, "daemon's CPU", |s| s.daemon_us.median),
                judge.syscalls(job),
            ]),
            (128 | 1024, _) => verdicts.extend([
                judge.speed_of_best_peer(job),
                judge.speed(job, Candidate::Null, 0.85),
            ]),
            _ => {}
        }
    }
    verdicts
}

struct Judge<'a> {
    record: &'a Record,
    summaries: &'a Summaries,
}

impl Judge<'_> {
    fn iops(&self, candidate: Candidate, job: Job) -> Option<f64> {
        let (_, summary) = self.summaries.best(candidate, job)?;
        Some(summary.iops.median)
    }

    fn speed(&self, job: Job, peer: Candidate, factor: f64) -> Verdict {
        self.speed_of(Candidate::File, job, peer, factor)
    }

    fn speed_of(&self, ours: Candidate, job: Job, peer: Candidate, factor: f64) -> Verdict {
        let measured = self
            .iops(ours, job)
            .zip(self.iops(peer, job))
            .map(|(ours, theirs)| ours / theirs);
        Verdict {
            what: format!("{job}: speed over {}", peer.title()),
            bound: Bound::AtLeast(factor),
            measured,
        }
    }

    /// What is asked of the `qcow` handler.
    fn qcow(&self) -> Vec<Verdict> {
        let peers = [
            (Candidate::File, 0.9),
            (Candidate::TcmuRunnerQcow, 2.0),
            (Candidate::QemuNbd, 1.0),
        ];
        let jobs = self.record.plan.jobs.iter();
        jobs.flat_map(|&job| {
            peers
                .into_iter()
                .filter(move |(peer, _)| job.image == Image::Full || peer.has_qcow())
                .map(move |(peer, factor)| self.speed_of(Candidate::Qcow, job, peer, factor))
        })
        .collect()
    }

    fn speed_of_best_peer(&self, job: Job) -> Verdict {
        let peers = self
            .iops(Candidate::TcmuRunner, job)
            .zip(self.iops(Candidate::Fileio, job))
            .map(|(a, b)| a.max(b));
        Verdict {
            what: format!("{job}: speed over the better of tcmu-runner and LIO fileio"),
            bound: Bound::AtLeast(1.0),
            measured: self
                .iops(Candidate::File, job)
                .zip(peers)
                .map(|(ours, theirs)| ours / theirs),
        }
    }

    fn cpu(&self, job: Job, what: &str, cost: fn(&Summary) -> f64) -> Verdict {
        let of = |candidate| {
            let (_, summary) = self.summaries.best(candidate, job)?;
            Some(cost(&summary))
        };
        Verdict {
            what: format!("{job}: {what} per command, of tcmu-runner's"),
            bound: Bound::AtMost(0.5),
            measured: of(Candidate::File)
                .zip(of(Candidate::TcmuRunner))
                .map(|(ours, theirs)| ours / theirs),
        }
    }

    fn syscalls(&self, job: Job) -> Verdict {
        let best = self.summaries.best(Candidate::File, job);
        let measured = best.and_then(|(placement, _)| {
            let count = self.record.syscalls.iter().find(|count| {
                let run = count.run;
                // Under strace the daemon is slower and its batches larger: that shows too few.
                count.method == Method::TraceEvents
                    && run.candidate == Candidate::File
                    && run.job == job
                    && run.placement == placement
            })?;
            Some(count.calls as f64 / count.commands as f64)
        });
        Verdict {
            what: format!("{job}: the runner's system calls per command"),
            bound: Bound::AtMost(0.25),
            measured,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{JobSet, Placement};
    use crate::record::SyscallCount;
    use crate::stats::tests::{DEEP, record, sample};

    fn find<'a>(verdicts: &'a [Verdict], what: &str) -> &'a Verdict {
        verdicts
            .iter()
            .find(|verdict| verdict.what == what)
            .unwrap_or_else(|| panic!("no verdict {what:?} in {verdicts:#?}"))
    }

    #[test]
    fn speed_is_compared_at_each_ones_best_placement() {
        let samples = vec![
            sample(Candidate::File, Placement::DaemonOn0, DEEP, 3000),
            sample(Candidate::File, Placement::DaemonOn1, DEEP, 100),
            sample(Candidate::TcmuRunner, Placement::DaemonOn0, DEEP, 50),
            sample(Candidate::TcmuRunner, Placement::DaemonOn1, DEEP, 2000),
        ];
        let what = "4k randread qd32: speed over tcmu-runner (C), qcow on raw";
        for (kernel, reached) in [("uml-built", true), ("qemu", false)] {
            let record = record(kernel, samples.clone());
            let verdicts = judge(&record, &Summaries::of(&record));
            let verdict = find(&verdicts, what);
            assert_eq!(verdict.measured, Some(1.5));
            assert_eq!(verdict.reached(), Some(reached), "{kernel}");
        }
    }

    #[test]
    fn qcow_images_have_targets_of_their_own() {
        let samples = vec![
            sample(Candidate::Qcow, Placement::DaemonOn0, DEEP, 2700),
            sample(Candidate::File, Placement::DaemonOn0, DEEP, 3000),
            sample(Candidate::QemuNbd, Placement::DaemonOn0, DEEP, 3000),
        ];
        let mut record = record("uml-built", samples);
        record.plan.candidates = JobSet::Qcow.candidates();
        record.plan.jobs = JobSet::Qcow.jobs();
        let verdicts = judge(&record, &Summaries::of(&record));
        // Four jobs with three peers, and one that a raw file cannot be asked for.
        assert_eq!(verdicts.len(), 4 * 3 + 2);
        let reached = |what: &str| find(&verdicts, what).reached();
        assert_eq!(
            reached("4k randread qd32: speed over ours, file"),
            Some(true)
        );
        let qemu = "4k randread qd32: speed over qemu-nbd, kernel NBD";
        assert_eq!(reached(qemu), Some(false));
        let peer = "4k randread qd32: speed over tcmu-runner (C), qcow2";
        assert_eq!(reached(peer), None);
    }

    #[test]
    fn a_side_that_is_missing_is_not_a_success() {
        let record = record(
            "uml-built",
            vec![sample(Candidate::File, Placement::DaemonOn0, DEEP, 3000)],
        );
        let verdicts = judge(&record, &Summaries::of(&record));
        assert!(verdicts.iter().all(|verdict| verdict.reached().is_none()));
        assert_eq!(verdicts.len(), 2 + 2 * 5 + 4 * 2);
    }

    #[test]
    fn system_calls_are_those_of_the_best_placement() {
        let fast = sample(Candidate::File, Placement::DaemonOn0, DEEP, 3000);
        let slow = sample(Candidate::File, Placement::DaemonOn1, DEEP, 1000);
        let mut record = record("qemu", vec![fast.clone(), slow.clone()]);
        record.syscalls = vec![
            SyscallCount {
                run: slow.run,
                calls: 900,
                commands: 1000,
                method: Method::TraceEvents,
            },
            SyscallCount {
                run: fast.run,
                calls: 100,
                commands: 1000,
                method: Method::TraceEvents,
            },
        ];
        let verdicts = judge(&record, &Summaries::of(&record));
        let verdict = find(
            &verdicts,
            "4k randread qd32: the runner's system calls per command",
        );
        assert_eq!(verdict.measured, Some(0.1));
        assert_eq!(verdict.reached(), Some(true));

        for count in &mut record.syscalls {
            count.method = Method::Strace;
        }
        let verdicts = judge(&record, &Summaries::of(&record));
        let what = "4k randread qd32: the runner's system calls per command";
        assert_eq!(find(&verdicts, what).measured, None, "strace distorts");
    }
}
