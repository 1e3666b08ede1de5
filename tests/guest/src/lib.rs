//! Tests that run inside the rig's guest kernel, one macro away from a normal test.
//!
//! ```
//! use tcmu_guest_tests::{TestResult, guest_test, skip};
//!
//! guest_test!(sda_is_there);
//! fn sda_is_there() -> TestResult {
//!     if !std::path::Path::new("/sys/block").exists() {
//!         skip!("this kernel has no block layer");
//!     }
//!     anyhow::ensure!(std::path::Path::new("/sys/block/sda").exists());
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! A test binary (`harness = false`) calls [`main`] and nothing else. Started by `cargo test` on the
//! host, it takes the options of a normal test binary, boots the rig with itself as the program, and
//! prints what the guest reports. Tests run one after the other, each in a process of its own with
//! its own time limit. After a test that did not pass, the rest run in a fresh guest, so that no test
//! pays for another; a test that takes the guest down with it has failed. Only what was seen to pass
//! counts as passed, and the last line of the output is the whole truth:
//!
//! ```text
//! 12 passed, 1 failed, 0 skipped
//! ```
//!
//! The modules are what tests need again and again: [`sh`] for commands with the exit code that is
//! expected of them, [`daemon`] for the runner, [`bus`] for D-Bus, [`lun`] for LUNs, [`sg`] for SCSI
//! commands that nobody retries, [`initiator`] for iSCSI sessions.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod bus;
pub mod daemon;
mod events;
mod evidence;
mod host;
pub mod initiator;
mod inside;
pub mod lun;
mod registry;
pub mod sg;
pub mod sh;

#[doc(hidden)]
pub use inventory;
#[doc(hidden)]
pub use registry::GuestTest;
pub use registry::{Skipped, TestResult, needs_several_cpus};

/// See [`main_with`].
pub type Prepare = fn() -> anyhow::Result<Vec<(String, String)>>;

/// The `main()` of a binary of guest tests: the host's side, or, started by it, the guest's.
pub fn main() -> std::process::ExitCode {
    main_with(|| Ok(Vec::new()))
}

/// As [`main`], with something to be prepared on the host before the first guest boots: it returns
/// environment variables for the tests. If it fails, so do all tests.
pub fn main_with(prepare: Prepare) -> std::process::ExitCode {
    tcmu_rig::enter();
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(inside::RUN_ALL) => inside::run_all(args),
        Some(inside::RUN_ONE) => inside::run_one(&args.next().unwrap_or_default()),
        _ => host::run(prepare),
    }
}
