//! The harness reports what it saw and nothing else.

use std::process::Command;

struct Report {
    text: String,
    success: bool,
}

impl Report {
    fn closing_line(&self) -> &str {
        self.text.lines().last().unwrap_or_default()
    }
}

fn misbehaving(args: &[&str], env: &[(&str, &str)]) -> Report {
    let output = Command::new(env!("CARGO_BIN_EXE_misbehaving"))
        .args(args)
        // It needs none of the programs under test, so they need not be built for it.
        .env_remove("CARGO")
        .envs(env.iter().copied())
        .output()
        .expect("cargo has built it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Report {
        text,
        success: output.status.success(),
    }
}

#[test]
fn every_kind_of_end_is_counted_as_what_it_was() {
    let report = misbehaving(&[], &[]);
    assert_eq!(report.closing_line(), "2 passed, 5 failed, 1 skipped");
    assert!(!report.success);
    for (test, end) in [
        ("a_passes", "ok"),
        ("b_returns_an_error", "FAILED"),
        ("c_panics", "FAILED"),
        ("d_crashes_the_kernel", "FAILED"),
        ("e_is_skipped", "ignored"),
        ("f_hangs", "FAILED"),
        ("g_leaves_the_guest", "FAILED"),
        ("h_passes_after_all_that", "ok"),
    ] {
        let line = report
            .text
            .lines()
            .find(|l| l.starts_with(&format!("test {test} ")));
        let line = line.unwrap_or_else(|| panic!("no line on {test}"));
        assert!(line.contains(&format!(" ... {end}")), "{line}");
    }
    for shown in [
        "printed before the error",
        "the error's text",
        "the panic's text",
        "sysrq triggered crash",
        "for the reason of example",
        "still running after 1 s",
        "the daemon's last words",
        " misbehaving S ",
        "Show Blocked State",
        "it took the guest with it",
    ] {
        assert!(report.text.contains(shown), "`{shown}` is not shown");
    }
    assert!(
        !report.text.contains("nobody should see"),
        "a passing test's output is shown"
    );
}

#[test]
fn a_filter_runs_only_what_it_names() {
    let report = misbehaving(&["--exact", "a_passes"], &[]);
    assert_eq!(report.closing_line(), "1 passed, 0 failed, 0 skipped");
    assert!(report.success);
}

#[test]
fn listing_boots_nothing() {
    let report = misbehaving(&["--list"], &[("TCMU_RIG_KERNEL", "no-such-kernel")]);
    assert!(report.success);
    assert!(
        report.text.lines().any(|l| l == "a_passes: test"),
        "{}",
        report.text
    );
    assert!(!report.text.contains("passed,"), "{}", report.text);
}

#[test]
fn without_a_kernel_nothing_passes() {
    let report = misbehaving(&["passes"], &[("TCMU_RIG_KERNEL", "no-such-kernel")]);
    assert_eq!(report.closing_line(), "0 passed, 2 failed, 0 skipped");
    assert!(
        report.text.contains("no-such-kernel"),
        "the reason is not shown"
    );
    assert!(!report.success);
}
