//! Medians, and the summary of many samples.

use std::collections::BTreeMap;

use crate::plan::{Candidate, Job, Placement, Run};
use crate::record::{Record, Sample};

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// A median with the smallest and the largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// All rounds of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Requests per second.
    pub iops: Spread,
    /// Megabytes (10^6) per second.
    pub mb_per_s: Spread,
    /// Median completion latency, microseconds.
    pub p50_us: Spread,
    /// 99th percentile of the completion latency, microseconds.
    pub p99_us: Spread,
    /// CPU seconds of daemon and kernel threads per GiB moved.
    pub target_s_per_gib: Spread,
    /// CPU microseconds of daemon and kernel threads per request.
    pub target_us: Spread,
    /// CPU microseconds of the daemon per request.
    pub daemon_us: Spread,
    /// CPU microseconds of fio, its system calls included, per request.
    pub fio_us: Spread,
}

impl Summary {
    fn of(samples: &[&Sample]) -> Option<Self> {
        let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(|s| value(s)));
        Some(Self {
            iops: spread(|s| s.iops)?,
            mb_per_s: spread(|s| s.bytes_per_s / 1e6)?,
            p50_us: spread(|s| s.p50_us)?,
            p99_us: spread(|s| s.p99_us)?,
            target_s_per_gib: spread(|s| (s.daemon_cpu_s + s.kernel_cpu_s) * GIB / s.bytes as f64)?,
            target_us: spread(|s| (s.daemon_cpu_s + s.kernel_cpu_s) * 1e6 / s.commands as f64)?,
            daemon_us: spread(|s| s.daemon_cpu_s * 1e6 / s.commands as f64)?,
            fio_us: spread(|s| s.fio_cpu_s * 1e6 / s.commands as f64)?,
        })
    }
}

/// The summaries of a record's runs.
#[derive(Debug, Clone, Default)]
pub struct Summaries(BTreeMap<Run, Summary>);

impl Summaries {
    /// Summarises all samples of `record`.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let mut runs: BTreeMap<Run, Vec<&Sample>> = BTreeMap::new();
        for sample in &record.samples {
            runs.entry(sample.run).or_default().push(sample);
        }
        Self(
            runs.into_iter()
                .filter_map(|(run, samples)| Some((run, Summary::of(&samples)?)))
                .collect(),
        )
    }

    /// The candidate's best placement for a job, by the median of its requests per second.
    #[must_use]
    pub fn best(&self, candidate: Candidate, job: Job) -> Option<(Placement, Summary)> {
        self.0
            .iter()
            .filter(|(run, _)| run.candidate == candidate && run.job == job)
            .map(|(run, summary)| (run.placement, *summary))
            .max_by(|(_, a), (_, b)| a.iops.median.total_cmp(&b.iops.median))
    }

    /// All placements of a candidate for a job, in their own order.
    pub fn placements(
        &self,
        candidate: Candidate,
        job: Job,
    ) -> impl Iterator<Item = (Placement, Summary)> {
        self.0
            .iter()
            .filter(move |(run, _)| run.candidate == candidate && run.job == job)
            .map(|(run, summary)| (run.placement, *summary))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::{Image, JobSet, Pattern, Plan};
    use crate::record::Machine;

    pub(crate) const DEEP: Job = Job {
        block_kib: 4,
        depth: 32,
        pattern: Pattern::RandRead,
        image: Image::Full,
    };

    /// A sample of 1 s with `iops`, 20 us of daemon and 10 us of kernel per request.
    pub(crate) fn sample(
        candidate: Candidate,
        placement: Placement,
        job: Job,
        iops: u32,
    ) -> Sample {
        let iops = f64::from(iops);
        let bytes = iops * f64::from(job.block_kib) * 1024.0;
        Sample {
            run: Run {
                candidate,
                placement,
                job,
            },
            round: 0,
            iops,
            bytes_per_s: bytes,
            p50_us: 100.0,
            p99_us: 900.0,
            commands: iops as u64,
            bytes: bytes as u64,
            daemon_cpu_s: iops * 20e-6,
            kernel_cpu_s: iops * 10e-6,
            fio_cpu_s: 0.5,
        }
    }

    pub(crate) fn record(kernel: &str, samples: Vec<Sample>) -> Record {
        Record {
            machine: Machine {
                rig_kernel: kernel.into(),
                ..Machine::default()
            },
            plan: Plan {
                candidates: Candidate::RAW.to_vec(),
                jobs: JobSet::Targets.jobs(),
                rounds: 1,
                runtime_ms: 1000,
                image_mib: 256,
                peer: None,
                ours: None,
                syscalls: true,
            },
            samples,
            syscalls: Vec::new(),
            no_syscalls: None,
            failed: BTreeMap::new(),
            complete: true,
        }
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        let odd = Spread::of([3.0, 1.0, 10.0]).expect("values");
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 3.0, 10.0));
        let even = Spread::of([4.0, 1.0, 2.0, 100.0]).expect("values");
        assert_eq!(even.median, 3.0);
        assert_eq!(Spread::of([7.0]).expect("one").median, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_best_placement_is_that_of_the_best_median_not_of_the_best_round() {
        let (file, on0, free) = (Candidate::File, Placement::DaemonOn0, Placement::DaemonFree);
        let samples = vec![
            sample(file, on0, DEEP, 100),
            sample(file, on0, DEEP, 110),
            sample(file, on0, DEEP, 120),
            sample(file, free, DEEP, 10),
            sample(file, free, DEEP, 20),
            sample(file, free, DEEP, 900),
        ];
        let summaries = Summaries::of(&record("uml-built", samples));
        let (placement, best) = summaries.best(file, DEEP).expect("measured");
        assert_eq!(placement, on0);
        assert_eq!(best.iops.median, 110.0);
        assert_eq!(best.iops.max, 120.0);
        assert_eq!(summaries.placements(file, DEEP).count(), 2);
        assert!(summaries.best(Candidate::Loop, DEEP).is_none());
    }

    #[test]
    fn cpu_time_is_divided_by_requests_and_bytes() {
        let samples = vec![sample(Candidate::File, Placement::DaemonOn0, DEEP, 10_000)];
        let summaries = Summaries::of(&record("uml-built", samples));
        let (_, best) = summaries.best(Candidate::File, DEEP).expect("measured");
        let near = |a: f64, b: f64| (a - b).abs() < b * 1e-9;
        assert!(near(best.target_us.median, 30.0));
        assert!(near(best.daemon_us.median, 20.0));
        assert!(near(best.target_s_per_gib.median, 30e-6 * 262_144.0));
        assert!(near(best.mb_per_s.median, 40.96));
    }
}
