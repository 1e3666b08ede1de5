//! `cargo xtask test`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use tcmu_rig::{KERNEL_VAR, Kernel};

use crate::tally::{Counts, Row, summarise};
use crate::{cargo, kernel, package, packages, print};

/// What the tests run in the guest and beside it.
const PACKAGES: &[&str] = &[
    "ceph-common",
    "ceph-mon",
    "ceph-osd",
    "dbus",
    "dbus-bin",
    "dmsetup",
    "e2fsprogs",
    "fio",
    "iproute2",
    "kmod",
    "libiscsi-bin",
    "librbd1",
    "lsscsi",
    "nbdkit",
    "open-iscsi",
    "qemu-utils",
    "sg3-utils",
    "targetcli-fb",
    "user-mode-linux",
];

/// The kernels that the guest tests run on unless told.
const KERNELS: &[Kernel] = &[Kernel::Uml, Kernel::UmlBuilt];

/// Where libiscsi, sg3_utils and hostile commands judge the LUNs: they send far too many commands for
/// the other one.
const JUDGES_KERNEL: Kernel = Kernel::UmlBuilt;

/// How much of everything there is in the guest tests with `--full`: how often the daemon is killed in
/// each test that kills it, and how many devices a storm has.
const FULL: &[(&str, &str)] = &[("TCMU_KILLS", "100"), ("TCMU_STORM_DEVICES", "500")];

/// Run everything that CI runs
///
/// Installs what is missing (apt, as root), checks formatting and lints, runs the tests that need no
/// kernel and the documentation's examples, then the tests on a real kernel: in a guest of each
/// kernel. The kernel uml-built is built the first time: about 5 minutes more.
///
/// All steps run even if one fails. The last line says how many tests and checks passed, failed and
/// were skipped; the exit status is 0 only if none failed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The kernels for the guest tests
    #[arg(long, value_delimiter = ',', default_values_t = KERNELS)]
    kernel: Vec<Kernel>,
    /// Also build the Debian package and try it out in a fresh Debian tree with systemd; in the guest,
    /// kill the daemon 100 times in a row instead of 12, and let storms have 500 devices instead of 64
    #[arg(long)]
    full: bool,
    /// No formatting and lint checks, no tests outside the guest
    #[arg(long)]
    only_guest: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    packages::ensure(PACKAGES)?;
    let mut rows = Vec::new();
    if !options.only_guest {
        check(&mut rows, "formatting", &["fmt", "--all", "--check"]);
        let lints = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ];
        check(&mut rows, "lints", &lints);
        let workspace = ["test", "--workspace", "--no-fail-fast"];
        let guest_tests = [
            "--exclude",
            "tcmu-guest-tests",
            "--exclude",
            "tcmu-conformance",
        ];
        tests(
            &mut rows,
            "tests and examples",
            &[&workspace[..], &guest_tests].concat(),
            &[],
        );
        let harness = [
            "test",
            "--package",
            "tcmu-guest-tests",
            "--lib",
            "--test",
            "harness",
        ];
        tests(&mut rows, "the guest tests' harness", &harness, &[]);
        let judges = ["test", "--package", "tcmu-conformance", "--lib"];
        tests(&mut rows, "what the judges' words mean", &judges, &[]);
        let example = ["test", "--package", "tcmu-guest-tests", "--doc"];
        tests(&mut rows, "the harness's examples", &example, &[]);
        check(
            &mut rows,
            "documentation",
            &["doc", "--workspace", "--no-deps", "--quiet"],
        );
    }
    for &kernel in &options.kernel {
        let name = format!("guest tests on {kernel}");
        let started = Instant::now();
        if let Err(e) = kernel::prepare(kernel) {
            eprintln!("xtask: {e:#}");
            add(
                &mut rows,
                &name,
                Counts {
                    failed: 1,
                    ..Counts::default()
                },
                started,
            );
            continue;
        }
        let guest = ["test", "--package", "tcmu-guest-tests", "--test", "guest"];
        let mut vars = vec![(KERNEL_VAR, kernel.name())];
        if options.full {
            vars.extend(FULL);
        }
        tests(&mut rows, &name, &guest, &vars);
        if kernel == JUDGES_KERNEL {
            packages::ensure_lists()?;
            let judges = ["test", "--package", "tcmu-conformance", "--test", "judges"];
            tests(
                &mut rows,
                "conformance",
                &judges,
                &[(KERNEL_VAR, kernel.name())],
            );
        }
    }

    if options.full {
        let started = Instant::now();
        let mut counts = Counts::default();
        if let Err(e) = package::test(|line| counts.add_line(line)) {
            eprintln!("xtask: {e:#}");
            counts.failed = counts.failed.max(1);
        }
        add(&mut rows, "the Debian package", counts, started);
    }

    print::heading("Summary");
    let (table, sum) = summarise(&rows);
    println!("{table}\n\n{sum}");
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A step that passes or fails as a whole.
fn check(rows: &mut Vec<Row>, name: &str, args: &[&str]) {
    let started = begin(name, args, &[]);
    let mut command = cargo::command(args);
    // For the documentation: a broken link fails it.
    command.env("RUSTDOCFLAGS", "--deny warnings");
    let passed = relay(&mut command, |_| {}).unwrap_or_else(|e| {
        eprintln!("xtask: {e:#}");
        false
    });
    let counts = Counts {
        passed: passed.into(),
        failed: (!passed).into(),
        skipped: 0,
    };
    add(rows, name, counts, started);
}

/// A step whose programs count their tests, with further environment variables.
fn tests(rows: &mut Vec<Row>, name: &str, args: &[&str], vars: &[(&str, &str)]) {
    let started = begin(name, args, vars);
    let mut command = cargo::command(args);
    command.envs(vars.iter().copied());
    let mut counts = Counts::default();
    let passed = relay(&mut command, |line| counts.add_line(line)).unwrap_or_else(|e| {
        eprintln!("xtask: {e:#}");
        false
    });
    // What does not build, or dies, counts no failure of its own.
    if !passed && counts.failed == 0 {
        counts.failed = 1;
    }
    add(rows, name, counts, started);
}

fn begin(name: &str, args: &[&str], vars: &[(&str, &str)]) -> Instant {
    print::heading(&format!("{}{}", name[..1].to_uppercase(), &name[1..]));
    let vars: String = vars.iter().map(|(k, v)| format!("{k}={v} ")).collect();
    print::command(&format!("{vars}cargo {}", args.join(" ")));
    Instant::now()
}

fn add(rows: &mut Vec<Row>, name: &str, counts: Counts, started: Instant) {
    rows.push(Row {
        name: name.to_owned(),
        counts,
        seconds: started.elapsed().as_secs_f64(),
    });
}

/// Runs a command, prints its standard output as it comes, and shows each line to `see`. Returns
/// whether it succeeded.
fn relay(command: &mut Command, mut see: impl FnMut(&str)) -> anyhow::Result<bool> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = Vec::new();
    while output
        .read_until(b'\n', &mut line)
        .context("cannot read the output")?
        > 0
    {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        see(text.trim_end());
        line.clear();
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}
