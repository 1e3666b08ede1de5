//! The rig boots a kernel and always ends. Has a `main()` of its own, since this executable is the
//! guest's pid 1.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tcmu_rig::{End, Error, Guest};

/// First argument of the process that is killed while its guest runs.
const START_AND_WAIT: &str = "--start-a-guest-and-wait";

type Test = fn() -> anyhow::Result<()>;

fn main() -> ExitCode {
    tcmu_rig::enter();
    if std::env::args().nth(1).as_deref() == Some(START_AND_WAIT) {
        return start_and_wait();
    }
    let tests: [(&str, Test); 10] = [
        (
            "exit_code_and_output_come_back",
            exit_code_and_output_come_back,
        ),
        ("a_signal_is_reported", a_signal_is_reported),
        ("a_hanging_program_is_ended", a_hanging_program_is_ended),
        ("a_panic_is_reported", a_panic_is_reported),
        (
            "a_guest_that_is_not_set_up_has_no_exit_code",
            a_guest_that_is_not_set_up_has_no_exit_code,
        ),
        ("only_results_reach_the_host", only_results_reach_the_host),
        (
            "the_environment_is_the_callers_choice",
            the_environment_is_the_callers_choice,
        ),
        ("guests_run_beside_each_other", guests_run_beside_each_other),
        (
            "a_guest_dies_with_its_starter",
            a_guest_dies_with_its_starter,
        ),
        ("what_cannot_run_is_refused", what_cannot_run_is_refused),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                test().map_err(|e| Failed::from(format!("{e:?}")))
            })
        })
        .collect();
    let mut arguments = Arguments::from_args();
    // Two CPUs are enough for two guests.
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn shell(script: &str) -> Guest<'static> {
    Guest::builder("/bin/sh")
        .args(["-c", script])
        .memory_mb(256)
}

fn exit_code_and_output_come_back() -> anyhow::Result<()> {
    let mut lines = Vec::new();
    let outcome = Guest::builder("/bin/sh")
        .args(["-c", "echo one; echo two >&2; printf 'three'; exit 3"])
        .on_line(|line| lines.push(line.to_owned()))
        .run()?;
    ensure!(outcome.end == End::Exited(3), "{outcome}");
    ensure!(lines == ["one", "two", "three"], "{lines:?}");
    ensure!(fs::read_to_string(outcome.output_path())? == "one\ntwo\nthree\n");
    ensure!(
        outcome.kernel_complaints.is_empty(),
        "{:?}",
        outcome.kernel_complaints
    );
    let release = outcome.kernel_release.clone().context("no release")?;
    ensure!(
        release.starts_with(|c: char| c.is_ascii_digit()),
        "{release}"
    );
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}

fn a_signal_is_reported() -> anyhow::Result<()> {
    let outcome = shell("kill -SEGV $$").run()?;
    ensure!(outcome.end == End::Signaled(11), "{outcome}");
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}

fn a_hanging_program_is_ended() -> anyhow::Result<()> {
    let guest = shell("trap '' TERM INT; while :; do sleep 1000; done");
    let outcome = guest.timeout(Duration::from_secs(2)).run()?;
    ensure!(outcome.end == End::TimedOut, "{outcome}");
    let console = fs::read_to_string(outcome.console_path())?;
    ensure!(
        console.contains("(sleep)"),
        "the console does not say what hung: {console}"
    );
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}

fn a_panic_is_reported() -> anyhow::Result<()> {
    let outcome = shell("echo c > /proc/sysrq-trigger; sleep 60").run()?;
    let End::Panicked(why) = &outcome.end else {
        anyhow::bail!("{outcome}")
    };
    ensure!(why.contains("sysrq"), "{why}");
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}

fn a_guest_that_is_not_set_up_has_no_exit_code() -> anyhow::Result<()> {
    // A failure of our own code there must not look like the program's end.
    let outcome = shell("true").kernel_arg("TCMU_RIG_SHARE_TYPE=none").run()?;
    ensure!(!outcome.success(), "{outcome}");
    ensure!(outcome.exit_code().is_none(), "{outcome}");
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}

fn only_results_reach_the_host() -> anyhow::Result<()> {
    let results = std::env::temp_dir().join(format!("rig-test-results-{}", std::process::id()));
    let marker = format!("rig-test-marker-{}", std::process::id());
    let outcome = shell(&format!(
        "set -e; for d in / /etc /tmp /var/tmp /root /usr/bin; do echo x > $d/{marker}; done
         cat /usr/bin/{marker}; echo kept > $TCMU_RIG_RESULTS/kept; test -d /sys/kernel/config/target"
    ))
    .results_dir(&results)
    .run()?;
    ensure!(outcome.success(), "{outcome}");
    for dir in ["/", "/etc", "/tmp", "/var/tmp", "/root", "/usr/bin"] {
        let path = Path::new(dir).join(&marker);
        ensure!(!path.exists(), "the guest wrote {}", path.display());
    }
    ensure!(fs::read_to_string(results.join("kept"))? == "kept\n");
    fs::remove_dir_all(results)?;
    Ok(())
}

fn the_environment_is_the_callers_choice() -> anyhow::Result<()> {
    let mut lines = Vec::new();
    let outcome = Guest::builder("/usr/bin/env")
        .env("GIVEN", "a value with spaces")
        .on_line(|line| lines.push(line.to_owned()))
        .run()?;
    ensure!(outcome.success(), "{outcome}");
    ensure!(
        lines.iter().any(|l| l == "GIVEN=a value with spaces"),
        "{lines:?}"
    );
    ensure!(!lines.iter().any(|l| l.starts_with("CARGO")), "{lines:?}");
    Ok(())
}

fn guests_run_beside_each_other() -> anyhow::Result<()> {
    let runs: Vec<_> = (0..2)
        .map(|n| thread::spawn(move || shell(&format!("sleep 1; exit {n}")).run()))
        .collect();
    for (n, run) in (0..).zip(runs) {
        let outcome = run.join().ok().context("a thread panicked")??;
        ensure!(outcome.end == End::Exited(n), "{outcome}");
        if n != 0 {
            fs::remove_dir_all(outcome.results_dir())?;
        }
    }
    Ok(())
}

fn start_and_wait() -> ExitCode {
    let outcome = shell("touch $TCMU_RIG_RESULTS/started; sleep 1000")
        .results_dir(std::env::temp_dir().join("results"))
        .run();
    eprintln!("the guest ended before its starter: {outcome:?}");
    ExitCode::FAILURE
}

fn a_guest_dies_with_its_starter() -> anyhow::Result<()> {
    // The folder's name is in the guest's command line.
    let temp = std::env::temp_dir().join(format!("rig-test-starter-{}", std::process::id()));
    fs::create_dir(&temp)?;
    let mut starter = Command::new(std::env::current_exe()?)
        .arg(START_AND_WAIT)
        .env("TMPDIR", &temp)
        .stdin(Stdio::null())
        .spawn()?;
    let started = temp.join("results/started");
    eventually("the guest's start", || started.exists())?;
    ensure!(
        !processes_of(&temp).is_empty(),
        "its processes cannot be told"
    );
    starter.kill()?;
    starter.wait()?;
    eventually("the guest's end", || processes_of(&temp).is_empty())?;
    let is_run_folder = |name: &str| name.starts_with("tcmu-rig-");
    eventually("the folder's removal", || {
        let entries = fs::read_dir(&temp).into_iter().flatten().flatten();
        !entries
            .into_iter()
            .any(|e| is_run_folder(&e.file_name().to_string_lossy()))
    })?;
    fs::remove_dir_all(temp)?;
    Ok(())
}

/// The processes whose command line or environment names a folder.
fn processes_of(folder: &Path) -> Vec<PathBuf> {
    let name = folder.as_os_str().as_encoded_bytes();
    let names_it = |file: PathBuf| {
        fs::read(file).is_ok_and(|text| text.windows(name.len()).any(|part| part == name))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|process| names_it(process.join("cmdline")) || names_it(process.join("environ")))
        .collect()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn what_cannot_run_is_refused() -> anyhow::Result<()> {
    let missing = Guest::builder("/no/such/program").run();
    ensure!(matches!(&missing, Err(Error::Io { .. })), "{missing:?}");
    let hidden = Guest::builder("/dev/null").run();
    ensure!(matches!(&hidden, Err(Error::Usage(_))), "{hidden:?}");
    // It is there, but no program.
    let outcome = Guest::builder("/etc/passwd").run()?;
    let End::Died(why) = &outcome.end else {
        anyhow::bail!("{outcome}")
    };
    ensure!(why.contains("/etc/passwd"), "{why}");
    fs::remove_dir_all(outcome.results_dir())?;
    Ok(())
}
