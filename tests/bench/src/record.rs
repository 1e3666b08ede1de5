//! What the guest reports: one JSON value per line, so that a guest that dies keeps what it had.

use std::collections::BTreeMap;
use std::io::BufRead;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::{Candidate, Plan, Run};

/// What one fio run showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Who, where and what.
    pub run: Run,
    /// The round, from 0.
    pub round: u32,
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Median completion latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the completion latency in microseconds.
    pub p99_us: f64,
    /// Requests that fio completed.
    pub commands: u64,
    /// Bytes that fio moved.
    pub bytes: u64,
    /// CPU seconds of the daemon, all threads, user and system.
    pub daemon_cpu_s: f64,
    /// CPU seconds of all kernel threads (workqueues, softirq) while fio ran.
    pub kernel_cpu_s: f64,
    /// CPU seconds of fio itself, its system calls included.
    pub fio_cpu_s: f64,
}

/// How system calls were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// By the kernel's trace events.
    TraceEvents,
    /// By strace, which slows the daemon and so makes its batches larger.
    Strace,
}

/// System calls of a daemon during one fio run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyscallCount {
    /// Who, where and what.
    pub run: Run,
    /// System calls of all the daemon's threads.
    pub calls: u64,
    /// Requests that fio completed meanwhile.
    pub commands: u64,
    /// How they were counted.
    pub method: Method,
}

/// The machine that was measured on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The host's processor.
    pub processor: String,
    /// The host's kernel release.
    pub host_kernel: String,
    /// The host's load average of one minute before the guest was started: what else was going on.
    pub load_before: String,
    /// The rig's name of the guest kernel.
    pub rig_kernel: String,
    /// The guest's kernel release.
    pub guest_kernel: String,
    /// The guest's CPUs.
    pub cpus: usize,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// fio's version.
    pub fio: String,
}

/// One line of the guest's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The first line.
    Guest {
        /// The guest's kernel release.
        kernel: String,
        /// The guest's CPUs.
        cpus: usize,
        /// The guest's memory in MiB.
        memory_mib: u64,
        /// fio's version.
        fio: String,
    },
    /// A fio run.
    Sample(Sample),
    /// A count of system calls.
    Syscalls(SyscallCount),
    /// System calls could not be counted in this guest.
    NoSyscalls(String),
    /// A candidate could not be set up or stopped working.
    Failed {
        /// Who.
        candidate: Candidate,
        /// Why.
        reason: String,
    },
    /// The last line: everything was run.
    Done,
}

/// Everything one benchmark run showed: what `--json` saves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Where it was measured.
    pub machine: Machine,
    /// What was asked for.
    pub plan: Plan,
    /// What fio said.
    pub samples: Vec<Sample>,
    /// The daemons' system calls.
    pub syscalls: Vec<SyscallCount>,
    /// Why system calls were not counted, if they were not.
    pub no_syscalls: Option<String>,
    /// Candidates that failed, and why.
    pub failed: BTreeMap<Candidate, String>,
    /// Whether the guest came to its end.
    pub complete: bool,
}

impl Record {
    /// Gathers the guest's lines. A last line that was cut off by the guest's death is left out.
    pub fn gather(machine: Machine, plan: Plan, lines: impl BufRead) -> Result<Self> {
        let mut record = Self {
            machine,
            plan,
            samples: Vec::new(),
            syscalls: Vec::new(),
            no_syscalls: None,
            failed: BTreeMap::new(),
            complete: false,
        };
        let mut lines = lines.lines().peekable();
        let mut number = 0;
        while let Some(line) = lines.next() {
            number += 1;
            let line = line.context("cannot read the guest's report")?;
            match serde_json::from_str(&line) {
                Ok(line) => record.add(line),
                Err(_) if lines.peek().is_none() => break,
                Err(error) => {
                    return Err(error).with_context(|| format!("line {number} of the report"));
                }
            }
        }
        Ok(record)
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Guest {
                kernel,
                cpus,
                memory_mib,
                fio,
            } => {
                self.machine.guest_kernel = kernel;
                self.machine.cpus = cpus;
                self.machine.memory_mib = memory_mib;
                self.machine.fio = fio;
            }
            Line::Sample(sample) => self.samples.push(sample),
            Line::Syscalls(count) => self.syscalls.push(count),
            Line::NoSyscalls(reason) => self.no_syscalls = Some(reason),
            Line::Failed { candidate, reason } => {
                self.failed.entry(candidate).or_insert(reason);
            }
            Line::Done => self.complete = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::JobSet;

    fn plan() -> Plan {
        Plan {
            candidates: vec![Candidate::Loop],
            jobs: JobSet::Few.jobs(),
            rounds: 1,
            runtime_ms: 1,
            image_mib: 1,
            peer: None,
            ours: None,
            syscalls: true,
        }
    }

    #[test]
    fn lines_are_gathered_and_the_first_failure_kept() {
        let lines = [
            Line::Guest {
                kernel: "7.2".into(),
                cpus: 2,
                memory_mib: 900,
                fio: "fio-3".into(),
            },
            Line::Failed {
                candidate: Candidate::File,
                reason: "first".into(),
            },
            Line::Failed {
                candidate: Candidate::File,
                reason: "second".into(),
            },
            Line::Done,
        ];
        let text: String = lines
            .iter()
            .map(|line| serde_json::to_string(line).expect("serialises") + "\n")
            .collect();
        let record =
            Record::gather(Machine::default(), plan(), text.as_bytes()).expect("valid lines");
        assert!(record.complete);
        assert_eq!(record.machine.cpus, 2);
        assert_eq!(record.failed[&Candidate::File], "first");
    }

    #[test]
    fn a_cut_last_line_is_left_out_but_a_bad_line_amid_others_is_an_error() {
        let cut = "{\"no-syscalls\":\"x\"}\n{\"sam";
        let record = Record::gather(Machine::default(), plan(), cut.as_bytes()).expect("cut line");
        assert_eq!(record.no_syscalls.as_deref(), Some("x"));
        assert!(!record.complete);

        let bad = "nonsense\n\"done\"\n";
        assert!(Record::gather(Machine::default(), plan(), bad.as_bytes()).is_err());
    }
}
