//! The host's side: offers the tests as a normal test binary does, and boots guests to run them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tcmu_rig::{Guest, Kernel};

use crate::Prepare;
use crate::daemon::{PROGRAMS_VAR, RUNNER_WITH_KILL_POINTS};
use crate::events::{Event, Outcome};
use crate::inside;
use crate::registry::GuestTest;

/// Memory of the guests in MiB: LUN images are in tmpfs.
const MEMORY_MB: u32 = 2048;
/// CPUs of the guests that can have more than one.
const CPUS: u32 = 2;
/// Environment variables that reach the tests.
const PASSED_ON: &[&str] = &[
    "RUST_LOG",
    "RUST_BACKTRACE",
    "TCMU_STORM_DEVICES",
    "TCMU_KILLS",
];

pub(crate) fn run(prepare: Prepare) -> ExitCode {
    let mut args = Arguments::from_args();
    // The guest runs them one by one anyway, and so each line appears when its test has ended.
    args.test_threads = Some(1);
    let plan: Vec<&'static GuestTest> = GuestTest::all()
        .into_iter()
        .filter(|t| !args.is_filtered_out(&Trial::test(t.name(), || Ok(()))))
        .collect();
    let session = Arc::new(Mutex::new(Session::new(plan, args.nocapture, prepare)));
    let trials = GuestTest::all()
        .into_iter()
        .map(|test| {
            let session = Arc::clone(&session);
            Trial::ignorable_test(test.name(), move || {
                session
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .result(test.name())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&args, trials);
    if args.list {
        return ExitCode::SUCCESS;
    }
    session
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .close();
    println!(
        "{} passed, {} failed, {} skipped",
        conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
    );
    conclusion.exit_code()
}

/// One test's end: what came of it and what it printed.
struct TestEnd {
    test: &'static str,
    outcome: Outcome,
    output: String,
}

/// The guests of this run; the first is booted when the first result is asked for.
struct Session {
    plan: Vec<&'static GuestTest>,
    nocapture: bool,
    prepare: Prepare,
    /// The guests, or why there are none.
    started: Option<Result<Started, String>>,
    /// Results that nobody has asked for yet.
    early: HashMap<&'static str, TestEnd>,
}

struct Started {
    results: Receiver<TestEnd>,
    guests: thread::JoinHandle<()>,
}

impl Session {
    fn new(plan: Vec<&'static GuestTest>, nocapture: bool, prepare: Prepare) -> Self {
        Session {
            plan,
            nocapture,
            prepare,
            started: None,
            early: HashMap::new(),
        }
    }

    fn result(&mut self, test: &'static str) -> Result<Completion, Failed> {
        let result = self
            .wait_for(test)
            .map_err(|e| Failed::from(format!("{e:#}")))?;
        match result.outcome {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Skipped(reason) => Ok(Completion::ignored_with(reason)),
            Outcome::Failed(why) => Err(Failed::from(format!("{}{why}", result.output))),
        }
    }

    fn wait_for(&mut self, test: &'static str) -> anyhow::Result<TestEnd> {
        if self.started.is_none() {
            self.started = Some(self.start().map_err(|e| format!("{e:#}")));
        }
        let results = match self.started.as_ref() {
            Some(Ok(started)) => &started.results,
            Some(Err(why)) => anyhow::bail!("{why}"),
            None => anyhow::bail!("no guests were started"),
        };
        while !self.early.contains_key(test) {
            let result = results
                .recv()
                .context("the guests ended without a word on this test")?;
            self.early.insert(result.test, result);
        }
        self.early.remove(test).context("its result was taken")
    }

    fn start(&self) -> anyhow::Result<Started> {
        let kernel = Kernel::default_choice()?;
        let programs = build_programs()?;
        let env = (self.prepare)()?;
        let (sender, results) = mpsc::channel();
        let guests = Guests {
            programs,
            env,
            nocapture: self.nocapture,
            sender,
            kernel,
        };
        let plan = self.plan.clone();
        Ok(Started {
            results,
            guests: thread::spawn(move || guests.run(plan)),
        })
    }

    /// Waits for the last guest's end.
    fn close(&mut self) {
        if let Some(Ok(started)) = self.started.take() {
            let _ = started.guests.join();
        }
    }
}

/// Builds what the tests run, as `cargo test` builds a package's own binaries, and says where it is.
fn build_programs() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this executable")?;
    // target/<profile>/<binary>, or target/<profile>/deps/<test>
    let mut dir = exe.parent().unwrap_or(Path::new("/"));
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap_or(dir);
    }
    let dir = dir.to_path_buf();
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(dir);
    };
    let kill_points = [
        "--features",
        "kill-points",
        "--bin",
        RUNNER_WITH_KILL_POINTS,
    ];
    let runner = ["--package", "tcmu-runner"];
    // Together, so that what both need is built once.
    let examples = [
        "--package",
        "tcmu",
        "--example",
        "custom_handler",
        "--example",
        "ram_disk",
    ];
    for what in [
        [&runner[..], &["--package", "tcmu-configfs"]].concat(),
        [&runner[..], &kill_points].concat(),
        [&runner[..], &examples].concat(),
    ] {
        let mut command = Command::new(&cargo);
        command.args(["build", "--quiet"]).args(what);
        if dir.file_name() == Some("release".as_ref()) {
            command.arg("--release");
        }
        command
            .arg("--target-dir")
            .arg(dir.parent().unwrap_or(Path::new(".")));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        let status = command.status().context("cannot run cargo")?;
        anyhow::ensure!(status.success(), "the programs to be tested do not build");
    }
    Ok(dir)
}

struct Guests {
    programs: PathBuf,
    env: Vec<(String, String)>,
    nocapture: bool,
    sender: Sender<TestEnd>,
    kernel: Kernel,
}

impl Guests {
    /// Boots guests until each test of the plan has a result.
    fn run(&self, mut plan: Vec<&'static GuestTest>) {
        for number in 0.. {
            if plan.is_empty() {
                return;
            }
            let mut boot = Boot::default();
            let outcome = self.boot(&plan, &mut boot, number);
            let ran = boot.ended;
            // Why the tests that have no result have none.
            let why = match &outcome {
                Ok(outcome) => outcome.to_string(),
                Err(e) => format!("the guest could not be started: {e:#}"),
            };
            plan.retain(|t| !ran.contains(&t.name()));
            match boot
                .running
                .take()
                .and_then(|name| plan.iter().position(|t| t.name() == name))
            {
                Some(at) => {
                    let test = plan.remove(at).name();
                    let outcome = Outcome::Failed(format!("it took the guest with it: {why}"));
                    self.send(test, outcome, boot.output);
                }
                None if ran.is_empty() => {
                    for test in plan.drain(..) {
                        let outcome = Outcome::Failed(format!("never ran: {why}"));
                        self.send(test.name(), outcome, boot.output.clone());
                    }
                }
                None => {}
            }
        }
    }

    fn boot(
        &self,
        plan: &[&'static GuestTest],
        boot: &mut Boot,
        number: u32,
    ) -> anyhow::Result<tcmu_rig::Outcome> {
        let name = format!("{}-{number}", std::process::id());
        let results = self.programs.join("guest-tests").join(name);
        let limit: Duration = plan.iter().map(|t| t.limit).sum();
        let mut guest = Guest::builder(std::env::current_exe()?)
            .arg(inside::RUN_ALL)
            .args(plan.iter().map(|t| t.name()))
            .env(PROGRAMS_VAR, self.programs.display().to_string())
            .kernel(self.kernel)
            .cpus(CPUS)
            .memory_mb(MEMORY_MB)
            .results_dir(&results)
            .timeout(limit + Duration::from_secs(60));
        for (var, value) in &self.env {
            guest = guest.env(var, value);
        }
        for var in PASSED_ON {
            if let Ok(value) = std::env::var(var) {
                guest = guest.env(*var, value);
            }
        }
        let outcome = guest.on_line(|line| self.line(line, plan, boot)).run()?;
        for complaint in &outcome.kernel_complaints {
            eprintln!("the guest's kernel said: {complaint}");
        }
        if outcome.success() && outcome.kernel_complaints.is_empty() {
            let _ = std::fs::remove_dir_all(&results);
        }
        Ok(outcome)
    }

    fn line(&self, line: &str, plan: &[&'static GuestTest], boot: &mut Boot) {
        let known = |name: &str| plan.iter().map(|t| t.name()).find(|t| *t == name);
        match Event::receive(line) {
            Some(Event::Started { test }) => {
                boot.running = known(&test);
                boot.output.clear();
            }
            Some(Event::Ended { test, outcome }) => {
                if let Some(test) = known(&test) {
                    boot.running = None;
                    boot.ended.push(test);
                    self.send(test, outcome, std::mem::take(&mut boot.output));
                }
            }
            None => {
                if self.nocapture {
                    println!("{line}");
                }
                boot.output.push_str(line);
                boot.output.push('\n');
            }
        }
    }

    fn send(&self, test: &'static str, outcome: Outcome, output: String) {
        // Nobody waits any more if the main thread gave up: nothing to be told then.
        let _ = self.sender.send(TestEnd {
            test,
            outcome,
            output,
        });
    }
}

/// What has been seen of one boot.
#[derive(Default)]
struct Boot {
    running: Option<&'static str>,
    ended: Vec<&'static str>,
    output: String,
}
