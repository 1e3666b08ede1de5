//! The description of one run, and its outcome.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context as _, Error};
use crate::kernel::Kernel;
use crate::launch;

/// `PATH` of programs in the guest.
pub(crate) const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a guest with a tree of its own sees the host's.
pub const HOST_TREE: &str = "/run/tcmu-host";

/// Modules that LUNs, their fabrics and the disks on them need.
const MODULES: &[&str] = &[
    "sd_mod",
    "sg",
    "loop",
    "uio",
    "target_core_mod",
    "target_core_user",
    "target_core_file",
    "target_core_iblock",
    "tcm_loop",
    "iscsi_target_mod",
    "iscsi_tcp",
];

type OnLine<'a> = Box<dyn FnMut(&str) + 'a>;

/// A guest to be booted for one program. Made by [`Guest::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use tcmu_rig::{Guest, Kernel};
///
/// fn main() -> Result<(), tcmu_rig::Error> {
///     tcmu_rig::enter();
///     let outcome = Guest::builder("/usr/bin/uname")
///         .arg("-a")
///         .kernel(Kernel::Uml)
///         .timeout(Duration::from_secs(60))
///         .on_line(|line| println!("guest: {line}"))
///         .run()?;
///     assert!(outcome.success(), "{outcome}");
///     Ok(())
/// }
/// ```
#[must_use = "a guest does nothing until run() is called"]
pub struct Guest<'a> {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) timeout: Duration,
    pub(crate) results: Option<PathBuf>,
    pub(crate) modules: Vec<String>,
    pub(crate) kernel_args: Vec<String>,
    pub(crate) systemd_root: Option<PathBuf>,
    pub(crate) on_line: Option<OnLine<'a>>,
}

impl std::fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

impl<'a> Guest<'a> {
    /// A guest that runs `program` (a path on the host, which has the same path in the guest).
    ///
    /// Defaults: the kernel of [`Kernel::default_choice`], 1 CPU, 1024 MiB, 5 minutes.
    pub fn builder(program: impl Into<PathBuf>) -> Self {
        Guest {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            kernel: None,
            cpus: 1,
            memory_mb: 1024,
            timeout: Duration::from_secs(300),
            results: None,
            modules: MODULES.iter().map(|&m| m.to_owned()).collect(),
            kernel_args: Vec::new(),
            systemd_root: None,
            on_line: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable. The program gets these, `PATH`, `HOME`, `LANG` and
    /// `TCMU_RIG_GUEST` (the kernel's name), and nothing else of the host's environment.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// The program's working directory; by default the caller's.
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.cwd = Some(cwd.into());
        self
    }

    /// The kernel to boot.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// The number of CPUs. [`Kernel::Uml`] has one whatever this says; [`Kernel::Host`] has the
    /// host's.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The guest's memory in MiB. Each tmpfs may take half of it.
    pub fn memory_mb(mut self, memory_mb: u32) -> Self {
        self.memory_mb = memory_mb;
        self
    }

    /// How long the program may run, in whole seconds. Then the guest reports [`End::TimedOut`] with
    /// its processes on the console and powers itself off. If it cannot, the host kills it, once
    /// this time, three minutes for booting and half a minute of grace are over.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The folder for results; created if need be. The program can write to it **at the same
    /// path** and finds that path in `TCMU_RIG_RESULTS`. The guest's `console.log` and `output.log`
    /// are put there. Without it a temporary folder is used and removed after a successful run.
    pub fn results_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.results = Some(dir.into());
        self
    }

    /// Loads one more kernel module before the program starts.
    pub fn module(mut self, module: impl Into<String>) -> Self {
        self.modules.push(module.into());
        self
    }

    /// Adds a word to the kernel's command line.
    pub fn kernel_arg(mut self, word: impl Into<String>) -> Self {
        self.kernel_args.push(word.into());
        self
    }

    /// Boots a Debian tree in a folder of the host, with the systemd that is in it, and runs the
    /// program when that has come up. What the guest writes to the tree is gone with it. The host's
    /// own tree is seen, read-only, below [`HOST_TREE`]; it is there that the program is run from, so
    /// the tree has to have libraries that suit it.
    ///
    /// Only the kernels that are User-mode Linux can do this.
    pub fn systemd_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.systemd_root = Some(root.into());
        self
    }

    /// Called with each line that the program prints, as it comes, without its line end.
    pub fn on_line(mut self, callback: impl FnMut(&str) + 'a) -> Self {
        self.on_line = Some(Box::new(callback));
        self
    }

    /// Boots the kernel, runs the program, and returns when the guest is gone.
    ///
    /// # Errors
    /// Only if the guest could not be started. A guest that started and ended badly is an
    /// [`Outcome`] whose [`End`] says so.
    pub fn run(self) -> Result<Outcome, Error> {
        launch::run(self)
    }
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The program exited with this code.
    Exited(i32),
    /// The program was killed by this signal.
    Signaled(i32),
    /// The program was still running when its time was up.
    TimedOut,
    /// The guest's kernel panicked; the console's line that says why.
    Panicked(String),
    /// The guest could not be set up, or ended or had to be killed without a report; what is known.
    Died(String),
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The kernel it ran on, as `uname -r` prints it; `None` if the guest never reported.
    pub kernel_release: Option<String>,
    /// From starting the kernel to its end.
    pub duration: Duration,
    /// What the kernel said on its console that should not be there: warnings, oopses, hung tasks.
    pub kernel_complaints: Vec<String>,
    pub(crate) results: Results,
}

impl Outcome {
    /// Whether the program exited with code 0.
    pub fn success(&self) -> bool {
        self.end == End::Exited(0)
    }

    /// The program's exit code, if it exited.
    pub fn exit_code(&self) -> Option<i32> {
        match self.end {
            End::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// The results folder. A temporary one lasts as long as this value.
    pub fn results_dir(&self) -> &Path {
        self.results.path()
    }

    /// The kernel's console log.
    pub fn console_path(&self) -> PathBuf {
        self.results.path().join(CONSOLE_LOG)
    }

    /// The program's output.
    pub fn output_path(&self) -> PathBuf {
        self.results.path().join(OUTPUT_LOG)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.end {
            End::Exited(0) => write!(f, "the program succeeded")?,
            End::Exited(code) => write!(f, "the program exited with code {code}")?,
            End::Signaled(signal) => write!(f, "the program was killed by signal {signal}")?,
            End::TimedOut => write!(f, "the program's time was up")?,
            End::Panicked(why) => write!(f, "the guest's kernel panicked: {why}")?,
            End::Died(why) => write!(f, "the guest died: {why}")?,
        }
        write!(f, " after {:.1} s", self.duration.as_secs_f64())?;
        if let Some(release) = &self.kernel_release {
            write!(f, " on Linux {release}")?;
        }
        if !self.success() {
            write!(f, "; its console is in {}", self.console_path().display())?;
        }
        Ok(())
    }
}

pub(crate) const CONSOLE_LOG: &str = "console.log";
pub(crate) const OUTPUT_LOG: &str = "output.log";

/// The results folder: the caller's, or a temporary one.
#[derive(Debug)]
pub(crate) enum Results {
    Named(PathBuf),
    Temporary(tempfile::TempDir),
    /// A temporary one that is not removed, since somebody will want to read the console.
    Kept(PathBuf),
}

impl Results {
    pub(crate) fn new(dir: Option<PathBuf>) -> Result<Self, Error> {
        match dir {
            Some(dir) => {
                fs::create_dir_all(&dir).path_context("create", &dir)?;
                let dir = dir.canonicalize().path_context("find", &dir)?;
                Ok(Results::Named(dir))
            }
            None => tempfile::Builder::new()
                .prefix("tcmu-rig-results-")
                .tempdir()
                .map(Results::Temporary)
                .context(|| "cannot create a temporary results folder".into()),
        }
    }

    /// Keeps what somebody will want to read after such an end.
    pub(crate) fn after(self, end: &End) -> Self {
        match self {
            Results::Temporary(dir) if *end != End::Exited(0) => Results::Kept(dir.keep()),
            other => other,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Results::Named(path) | Results::Kept(path) => path,
            Results::Temporary(dir) => dir.path(),
        }
    }
}
