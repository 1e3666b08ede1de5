//! Guest tests that go wrong in every way that the harness must report truthfully. They are no tests
//! of the project: `tests/harness.rs` runs them and looks at the report.
#![forbid(unsafe_code)]

use std::fs;
use std::thread;
use std::time::Duration;

use tcmu_guest_tests::{TestResult, guest_test, skip};

guest_test!(a_passes);
fn a_passes() -> TestResult {
    println!("nobody should see this line of a passing test");
    Ok(())
}

guest_test!(b_returns_an_error);
fn b_returns_an_error() -> TestResult {
    println!("printed before the error");
    anyhow::bail!("the error's text")
}

guest_test!(c_panics);
fn c_panics() -> TestResult {
    panic!("the panic's text");
}

guest_test!(d_crashes_the_kernel);
fn d_crashes_the_kernel() -> TestResult {
    fs::write("/proc/sysrq-trigger", "c")?;
    Ok(())
}

guest_test!(e_is_skipped);
fn e_is_skipped() -> TestResult {
    skip!("for the reason of {}", "example");
}

guest_test!(f_hangs, limit = Duration::from_secs(1));
fn f_hangs() -> TestResult {
    // As the log of a daemon that it had started.
    let log = format!("/run/guest-test-daemon-{}-0.log", std::process::id());
    fs::write(log, "the daemon's last words\n")?;
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

guest_test!(g_leaves_the_guest);
fn g_leaves_the_guest() -> TestResult {
    // Ends the harness's process in the guest, and so the guest, without a word.
    let parent = std::os::unix::process::parent_id().to_string();
    tcmu_guest_tests::sh::run(&["kill", "-KILL", &parent])?;
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

guest_test!(h_passes_after_all_that);
fn h_passes_after_all_that() -> TestResult {
    Ok(())
}

fn main() -> std::process::ExitCode {
    tcmu_guest_tests::main()
}
