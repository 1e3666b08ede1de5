//! libiscsi's own conformance tests, held against the manifests in `tests/manifests/libiscsi`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tcmu_conformance::libiscsi::{results, run};
use tcmu_conformance::manifest::{Manifest, Results, Tally};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::MIB;
use tcmu_guest_tests::{TestResult, guest_test};
use tcmu_rig::ForeignPackage;

use crate::luns::{IscsiLun, Kind, SecondPath};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/libiscsi");

/// Large enough for every test; the judge calls smaller LUNs too small.
const SIZE: u64 = 256 * MIB;

/// For a suite. Slower than this is a hang.
const PATIENCE: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(500);

/// The Debian release whose libiscsi is the judge: another one has other tests.
const SUITE: &str = "trixie";
/// Environment variable with the words that run it, a line each.
const PROGRAM_VAR: &str = "TCMU_JUDGE_LIBISCSI";

/// Wants a sanitize operation that takes longer than five seconds.
const RESET: &str = "SCSI.Sanitize.Reset";

/// Gets the judge, and says where it is.
pub(crate) fn prepare() -> anyhow::Result<Vec<(String, String)>> {
    let package = ForeignPackage::fetch(SUITE, "libiscsi-bin", |step| println!("{step}"))?;
    let words = package.command("iscsi-test-cu")?;
    Ok(vec![(PROGRAM_VAR.to_owned(), words.join("\n"))])
}

guest_test!(scsi_file, limit = LIMIT);
fn scsi_file() -> TestResult {
    scsi(Kind::File)
}

guest_test!(scsi_ram, limit = LIMIT);
fn scsi_ram() -> TestResult {
    scsi(Kind::Ram)
}

guest_test!(scsi_readonly, limit = LIMIT);
fn scsi_readonly() -> TestResult {
    scsi(Kind::ReadOnly)
}

guest_test!(linux_file, limit = LIMIT);
fn linux_file() -> TestResult {
    linux(Kind::File)
}

guest_test!(linux_ram, limit = LIMIT);
fn linux_ram() -> TestResult {
    linux(Kind::Ram)
}

guest_test!(linux_readonly, limit = LIMIT);
fn linux_readonly() -> TestResult {
    linux(Kind::ReadOnly)
}

guest_test!(scsi_slow, limit = LIMIT);
/// A disk that takes its time, so that resets find a sanitize operation in progress.
fn scsi_slow() -> TestResult {
    let daemon = Daemon::start_with("slow-runner", &[], &[])?;
    let lun = IscsiLun::new(Kind::Slow, SIZE)?;
    let results = run_tests(RESET, &[&lun.url])?;
    lun.delete()?;
    daemon.stop()?;
    compare("scsi-slow", &results)
}

/// The SCSI family through iSCSI.
fn scsi(kind: Kind) -> TestResult {
    let daemon = Daemon::start()?;
    let lun = IscsiLun::new(kind, SIZE)?;
    let paths = [lun.url.as_str(), &lun.url];
    let results = judge("SCSI", kind, &paths, || lun.await_logouts())?;
    lun.delete()?;
    daemon.stop()?;
    compare(&format!("scsi-{}", kind.name()), &results)
}

/// The LINUX family through sg devices.
fn linux(kind: Kind) -> TestResult {
    let daemon = Daemon::start()?;
    let (disk, sg) = kind.disk(SIZE)?;
    let second = SecondPath::to(&disk)?;
    let results = judge("LINUX", kind, &[&sg, &second.sg], || Ok(()))?;
    second.remove()?;
    disk.delete()?;
    daemon.stop()?;
    compare(&format!("linux-{}", kind.name()), &results)
}

/// Runs a family, each suite by itself, so that none finds what another has left.
fn judge(
    family: &str,
    kind: Kind,
    paths: &[&str],
    settle: impl Fn() -> TestResult,
) -> anyhow::Result<Results> {
    let mut all = Results::new();
    for pattern in patterns(&libiscsi(&["--list"])?, family, kind) {
        // Only these tests need two paths; others are confused by a second one.
        let paths = match pattern.contains("MultipathIO") {
            true => paths,
            false => &paths[..1],
        };
        all.extend(run_tests(&pattern, paths)?);
        settle()?;
    }
    Ok(all)
}

/// Suites of which no test makes sense where nothing can be written, but for ReadOnly's.
const WRITING: &[&str] = &[
    "CompareAndWrite",
    "ExtendedCopy",
    "MultipathIO",
    "OrWrite",
    "ProutReserve",
    "ReceiveCopyResults",
    "Sanitize",
    "Unmap",
    "Write",
];

/// Suites whose tests run one by one: they leave reservations, which last until the kernel has seen
/// the session's end.
const ONE_BY_ONE: &[&str] = &["Reserve6", "Sanitize"];

/// What to run one after the other, of all that the judge lists.
fn patterns(list: &str, family: &str, kind: Kind) -> Vec<String> {
    let mut patterns = Vec::new();
    for name in list.lines() {
        let mut parts = name.split('.');
        let (of, suite, test) = (parts.next(), parts.next(), parts.next());
        let (true, Some(suite)) = (of == Some(family), suite) else {
            continue;
        };
        let writes = WRITING.iter().any(|w| suite.starts_with(w));
        let alone = ONE_BY_ONE.contains(&suite);
        if matches!(kind, Kind::ReadOnly) && writes || alone != test.is_some() {
            continue;
        }
        // `scsi_slow` is for this one.
        if name != RESET {
            patterns.push(name.to_owned());
        }
    }
    // It asks after a copy that never was, under the number of a later suite's. TCMU does not tell
    // initiators apart, so what is known of a copy outlives its session.
    patterns.sort_by_key(|name| !name.ends_with("ReceiveCopyResults"));
    patterns
}

fn run_tests(pattern: &str, paths: &[&str]) -> anyhow::Result<Results> {
    let options = ["--dataloss", "--allow-sanitize", "--test", pattern];
    let output = libiscsi(&[&options[..], paths].concat())?;
    println!("{output}");
    Ok(results(&output))
}

/// Runs the judge with these arguments.
fn libiscsi(args: &[&str]) -> anyhow::Result<String> {
    let program = std::env::var(PROGRAM_VAR).context(PROGRAM_VAR)?;
    let words: Vec<&str> = program.lines().collect();
    println!("$ iscsi-test-cu {}", args.join(" "));
    run(&[&words[..], args].concat(), PATIENCE)
}

/// Fails unless the results are those of the manifest.
fn compare(name: &str, results: &Results) -> TestResult {
    let path = Path::new(MANIFESTS).join(format!("{name}.txt"));
    let manifest = match fs::read_to_string(&path) {
        Ok(text) => Manifest::parse(&text).with_context(|| path.display().to_string())?,
        Err(_) => Manifest::default(),
    };
    println!("{name}: {}", Tally::of(results));
    let differences = manifest.differences(results);
    if differences.is_empty() {
        return Ok(());
    }
    let dir = std::env::var("TCMU_RIG_RESULTS").context("TCMU_RIG_RESULTS is not set")?;
    let skeleton = Path::new(&dir).join(format!("{name}.txt"));
    fs::write(&skeleton, manifest.skeleton(results))?;
    bail!(
        "{} of {} tests are not as in the manifest ({}):\n  {}\n\
         Mend what got worse. If the change is right, take the lines over from\n  {}\n\
         to\n  {}\nand give every skip and every failure its reason in the place of the `?`.",
        differences.len(),
        results.len(),
        Tally::of(results),
        differences.join("\n  "),
        skeleton.display(),
        path.display()
    )
}
