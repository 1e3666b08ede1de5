//! What is measured: candidates, placements and jobs, as the host hands them to the guest.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The CPU that fio is bound to in every placement but [`Placement::AllFree`].
pub const FIO_CPU: usize = 1;

/// The size of the disk in an empty image, in MiB: so large that few of the random writes of a run meet
/// a cluster that is there already.
pub const EMPTY_MIB: u64 = 4096;

/// How much a run writes to an empty image, in MiB: as much for every candidate, however long it takes.
pub const EMPTY_WRITTEN_MIB: u64 = 16;

/// The size of the file system for the empty images, in MiB. Who reserves whole clusters of 64 KiB
/// takes 16 times of it what is written in blocks of 4 KiB.
pub const EMPTY_FILE_SYSTEM_MIB: u64 = EMPTY_WRITTEN_MIB * 16 + 512;

/// `hw_max_sectors` of every user backstore, in 512-byte sectors (4 MiB per command).
pub const HW_MAX_SECTORS: u32 = 8192;

/// One thing that serves a block device.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// Debian's C tcmu-runner, its qcow handler on a raw file.
    TcmuRunner,
    /// LIO's own file backstore, buffered, write cache on (what targetcli sets up).
    Fileio,
    /// LIO's RAM disk without its copy: the limit of the fabric.
    Nullio,
    /// The kernel's loop device: no SCSI at all.
    Loop,
    /// The image itself, through the page cache: what one copy of the data costs.
    Bare,
    /// Our runner with its `file` handler.
    File,
    /// Our runner with its `null` handler: the limit of the protocol.
    Null,
    /// Our runner with its `qcow` handler.
    Qcow,
    /// Debian's C tcmu-runner, its qcow handler on a qcow2 image.
    TcmuRunnerQcow,
    /// qemu-nbd on a qcow2 image, behind the kernel's NBD client.
    QemuNbd,
}

impl Candidate {
    /// Every candidate, in the order of the report's rows.
    pub const ALL: [Self; 10] = [
        Self::File,
        Self::Null,
        Self::TcmuRunner,
        Self::Fileio,
        Self::Nullio,
        Self::Loop,
        Self::Bare,
        Self::Qcow,
        Self::TcmuRunnerQcow,
        Self::QemuNbd,
    ];

    /// Those that serve a raw image.
    pub const RAW: [Self; 7] = [
        Self::File,
        Self::Null,
        Self::TcmuRunner,
        Self::Fileio,
        Self::Nullio,
        Self::Loop,
        Self::Bare,
    ];

    /// Those that serve a qcow2 image, and our `file` handler, which they are compared with.
    pub const QCOW: [Self; 4] = [Self::Qcow, Self::File, Self::TcmuRunnerQcow, Self::QemuNbd];

    /// Whether a user-space process serves it (and can be bound to a CPU).
    #[must_use]
    pub fn has_daemon(self) -> bool {
        !matches!(self, Self::Fileio | Self::Nullio | Self::Loop | Self::Bare)
    }

    /// Whether it is served by this project's runner.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::File | Self::Null | Self::Qcow)
    }

    /// Whether it is served by the C tcmu-runner.
    #[must_use]
    pub fn is_peers(self) -> bool {
        matches!(self, Self::TcmuRunner | Self::TcmuRunnerQcow)
    }

    /// The program of ours that serves these candidates.
    #[must_use]
    pub fn runner(candidates: &[Self]) -> &'static str {
        if candidates.contains(&Self::Qcow) {
            "tcmu-bench-runner"
        } else {
            "tcmu-runner"
        }
    }

    /// Whether it serves a qcow2 image.
    #[must_use]
    pub fn has_qcow(self) -> bool {
        matches!(self, Self::Qcow | Self::TcmuRunnerQcow | Self::QemuNbd)
    }

    /// The placements that make a difference for it.
    #[must_use]
    pub fn placements(self) -> &'static [Placement] {
        if self.has_daemon() {
            &[
                Placement::DaemonFree,
                Placement::DaemonOn0,
                Placement::DaemonOn1,
                Placement::AllFree,
            ]
        } else {
            &[Placement::DaemonFree, Placement::AllFree]
        }
    }

    /// The name of the report's rows.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::File => "ours, file",
            Self::Null => "ours, null",
            Self::TcmuRunner => "tcmu-runner (C), qcow on raw",
            Self::Fileio => "LIO fileio",
            Self::Nullio => "LIO rd_mcp nullio",
            Self::Loop => "loop device",
            Self::Bare => "no target, the image itself",
            Self::Qcow => "ours, qcow",
            Self::TcmuRunnerQcow => "tcmu-runner (C), qcow2",
            Self::QemuNbd => "qemu-nbd, kernel NBD",
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcmuRunner => "tcmu-runner",
            Self::Fileio => "fileio",
            Self::Nullio => "nullio",
            Self::Loop => "loop",
            Self::Bare => "bare",
            Self::File => "file",
            Self::Null => "null",
            Self::Qcow => "qcow",
            Self::TcmuRunnerQcow => "tcmu-runner-qcow",
            Self::QemuNbd => "qemu-nbd",
        })
    }
}

/// Where fio and the daemon may run. In-kernel targets have no daemon: the kernel runs their work
/// on the submitting CPU or wherever it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// fio on its CPU, the daemon on any.
    DaemonFree,
    /// fio on its CPU, the daemon on CPU 0.
    DaemonOn0,
    /// fio and the daemon on CPU 1.
    DaemonOn1,
    /// Neither is bound.
    AllFree,
}

impl Placement {
    /// The CPU fio is bound to.
    #[must_use]
    pub fn fio_cpu(self) -> Option<usize> {
        (self != Self::AllFree).then_some(FIO_CPU)
    }

    /// The CPU the daemon is bound to.
    #[must_use]
    pub fn daemon_cpu(self) -> Option<usize> {
        match self {
            Self::DaemonOn0 => Some(0),
            Self::DaemonOn1 => Some(1),
            Self::DaemonFree | Self::AllFree => None,
        }
    }

    /// How the report names it for `candidate`.
    #[must_use]
    pub fn title(self, candidate: Candidate) -> &'static str {
        match (self, candidate.has_daemon()) {
            (Self::DaemonFree, true) => "daemon unpinned",
            (Self::DaemonFree, false) => "fio on 1",
            (Self::DaemonOn0, _) => "daemon on 0",
            (Self::DaemonOn1, _) => "daemon on 1",
            (Self::AllFree, _) => "all unpinned",
        }
    }
}

/// fio's access pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 4] = [Self::RandRead, Self::RandWrite, Self::Read, Self::Write];

    /// fio's own word for it (`rw=`).
    #[must_use]
    pub fn fio(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// Whether it reads.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Self::RandRead | Self::Read)
    }

    /// Whether it is random.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// What an image holds before a job.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Image {
    /// Data everywhere.
    #[default]
    Full,
    /// Nothing: each run has a new qcow2 image, where nearly every write allocates a cluster.
    Empty,
}

/// One fio job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Job {
    /// Bytes per request, in KiB.
    pub block_kib: u32,
    /// Requests in flight.
    pub depth: u32,
    /// The access pattern.
    pub pattern: Pattern,
    /// What the image holds.
    #[serde(default)]
    pub image: Image,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = if self.block_kib.is_multiple_of(1024) {
            format!("{}M", self.block_kib / 1024)
        } else {
            format!("{}k", self.block_kib)
        };
        write!(f, "{size} {} qd{}", self.pattern.fio(), self.depth)?;
        match self.image {
            Image::Full => Ok(()),
            Image::Empty => f.write_str(", empty image"),
        }
    }
}

/// Block size in KiB and depth of the jobs.
const SHAPES: [(u32, u32); 5] = [(4, 1), (4, 32), (64, 16), (128, 16), (1024, 8)];

/// A named choice of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum JobSet {
    /// Every shape, random and sequential, read and write.
    All,
    /// The random jobs of the shapes that have a target.
    Targets,
    /// Three jobs: enough to see that everything works.
    Few,
    /// What is asked of qcow2 images: 4k at depth, 1M in sequence, and writes that allocate.
    Qcow,
}

impl JobSet {
    /// The jobs of the set.
    #[must_use]
    pub fn jobs(self) -> Vec<Job> {
        let all = SHAPES.into_iter().flat_map(|(block_kib, depth)| {
            Pattern::ALL.map(|pattern| Job {
                block_kib,
                depth,
                pattern,
                image: Image::Full,
            })
        });
        match self {
            Self::All => all.collect(),
            Self::Targets => all
                .filter(|job| job.pattern.is_random() && job.block_kib != 64)
                .collect(),
            Self::Few => all
                .filter(|job| {
                    matches!(
                        (job.block_kib, job.depth, job.pattern),
                        (4, _, Pattern::RandRead) | (128, _, Pattern::RandWrite)
                    )
                })
                .collect(),
            Self::Qcow => {
                let allocating = Job {
                    block_kib: 4,
                    depth: 32,
                    pattern: Pattern::RandWrite,
                    image: Image::Empty,
                };
                all.filter(|job| {
                    matches!(
                        (job.block_kib, job.depth, job.pattern.is_random()),
                        (4, 32, true) | (1024, _, false)
                    )
                })
                .chain([allocating])
                .collect()
            }
        }
    }

    /// Who is measured with it unless others are named.
    #[must_use]
    pub fn candidates(self) -> Vec<Candidate> {
        match self {
            Self::Qcow => Candidate::QCOW.to_vec(),
            Self::All | Self::Targets | Self::Few => Candidate::RAW.to_vec(),
        }
    }

    /// Whether the daemons' system calls are counted too.
    #[must_use]
    pub fn counts_syscalls(self) -> bool {
        self != Self::Qcow
    }
}

/// One fio run: who serves, where, and what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// Who serves.
    pub candidate: Candidate,
    /// Where fio and the daemon run.
    pub placement: Placement,
    /// What fio does.
    pub job: Job,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            candidate,
            placement,
            job,
        } = self;
        write!(f, "{job}, {candidate}, {}", placement.title(*candidate))
    }
}

/// Everything the guest has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Who is measured.
    pub candidates: Vec<Candidate>,
    /// What fio does.
    pub jobs: Vec<Job>,
    /// How often everything is measured.
    pub rounds: u32,
    /// How long fio runs each time, in milliseconds.
    pub runtime_ms: u64,
    /// The size of the image that all candidates serve, in MiB.
    pub image_mib: u64,
    /// Debian's tcmu-runner, unpacked, with its version.
    pub peer: Option<Peer>,
    /// The folder of our `tcmu-runner` and `tcmuctl`.
    pub ours: Option<PathBuf>,
    /// Count the daemons' system calls in the end.
    pub syscalls: bool,
}

/// An unpacked Debian tcmu-runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The Debian package's version.
    pub version: String,
    /// The folder that the packages were unpacked into.
    pub root: PathBuf,
}

impl Plan {
    /// Whether anybody serves a qcow2 image.
    #[must_use]
    pub fn has_qcow(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.has_qcow())
    }

    /// The space that the images need, in MiB: one raw image for all, and one qcow2 image for each of
    /// those that write to one, which no two may do at a time.
    #[must_use]
    pub fn storage_mib(&self) -> u64 {
        let qcow = self.candidates.iter().filter(|c| c.has_qcow()).count() as u64;
        let empty = self.jobs.iter().any(|job| job.image == Image::Empty);
        self.image_mib * (1 + qcow) + if empty { EMPTY_FILE_SYSTEM_MIB } else { 0 } + 64
    }

    /// The runs of one round: for each job all candidates in turn. Each round starts with another
    /// candidate, so that none always follows the same neighbour's leavings.
    #[must_use]
    pub fn round(&self, round: u32, live: &[Candidate]) -> Vec<Run> {
        let mut runs = Vec::new();
        for &job in &self.jobs {
            let mut turn: Vec<Run> = live
                .iter()
                .filter(|candidate| job.image == Image::Full || candidate.has_qcow())
                .flat_map(|&candidate| {
                    candidate.placements().iter().map(move |&placement| Run {
                        candidate,
                        placement,
                        job,
                    })
                })
                .collect();
            if !turn.is_empty() {
                // A step that shares no factor with small counts spreads the starting points.
                let shift = (round as usize * 5) % turn.len();
                turn.rotate_left(shift);
            }
            runs.extend(turn);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            candidates: Candidate::RAW.to_vec(),
            jobs: JobSet::Few.jobs(),
            rounds: 2,
            runtime_ms: 100,
            image_mib: 64,
            peer: None,
            ours: None,
            syscalls: true,
        }
    }

    #[test]
    fn job_sets_hold_what_they_say() {
        assert_eq!(JobSet::All.jobs().len(), 20);
        let targets = JobSet::Targets.jobs();
        assert_eq!(targets.len(), 8);
        assert!(targets.iter().all(|job| job.pattern.is_random()));
        let names: Vec<String> = JobSet::Few.jobs().iter().map(Job::to_string).collect();
        assert_eq!(
            names,
            ["4k randread qd1", "4k randread qd32", "128k randwrite qd16"]
        );
        let large = Job {
            block_kib: 1024,
            depth: 8,
            pattern: Pattern::Write,
            image: Image::Full,
        };
        assert_eq!(large.to_string(), "1M write qd8");
        let names: Vec<String> = JobSet::Qcow.jobs().iter().map(Job::to_string).collect();
        assert_eq!(
            names,
            [
                "4k randread qd32",
                "4k randwrite qd32",
                "1M read qd8",
                "1M write qd8",
                "4k randwrite qd32, empty image"
            ]
        );
    }

    #[test]
    fn only_qcow2_images_are_empty() {
        let plan = Plan {
            candidates: JobSet::Qcow.candidates(),
            jobs: JobSet::Qcow.jobs(),
            ..plan()
        };
        let runs = plan.round(0, &plan.candidates);
        let empty = |run: &&Run| run.job.image == Image::Empty;
        assert_eq!(runs.iter().filter(empty).count(), 3 * 4);
        assert!(
            runs.iter()
                .filter(empty)
                .all(|run| run.candidate.has_qcow())
        );
        assert_eq!(runs.len(), (4 * 4 + 3) * 4);
        assert_eq!(plan.storage_mib(), 64 * 4 + 16 * 16 + 512 + 64);
    }

    #[test]
    fn a_round_runs_everything_once_and_interleaves_candidates() {
        let plan = plan();
        let first = plan.round(0, &plan.candidates);
        let mut unique = first.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), first.len());
        assert_eq!(first.len(), 3 * (3 * 4 + 4 * 2));
        assert!(first[..20].iter().all(|run| run.job == plan.jobs[0]));

        let mut second = plan.round(1, &plan.candidates);
        assert_ne!(second, first, "rounds start elsewhere");
        second.sort();
        assert_eq!(second, unique);
    }

    #[test]
    fn a_round_leaves_failed_candidates_out() {
        let plan = plan();
        let runs = plan.round(3, &[Candidate::Loop]);
        assert!(runs.iter().all(|run| run.candidate == Candidate::Loop));
        assert_eq!(runs.len(), 6);
        assert!(plan.round(3, &[]).is_empty());
    }

    #[test]
    fn only_a_daemon_is_placed() {
        assert_eq!(Placement::AllFree.fio_cpu(), None);
        assert_eq!(Placement::DaemonOn0.fio_cpu(), Some(1));
        for candidate in Candidate::ALL {
            let placed = candidate
                .placements()
                .iter()
                .any(|placement| placement.daemon_cpu().is_some());
            assert_eq!(placed, candidate.has_daemon());
        }
    }
}
