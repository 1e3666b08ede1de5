//! The project's tests on a real kernel. `cargo test -p tcmu-guest-tests` boots it and runs them.
#![forbid(unsafe_code)]

mod again;
mod away;
mod bad_input;
mod commands;
mod config;
mod copy;
mod dbus;
mod disk;
mod drain;
mod examples;
mod faults;
mod format;
mod insight;
mod iscsi;
mod kernel;
mod killed;
mod layers;
mod lifecycle;
mod many;
mod medium;
mod nbd;
mod numbers;
mod primary;
mod qcow;
mod rbd;
mod recovery;
mod resets;
mod saved;
mod storm;
mod targetcli;
mod view;

fn main() -> std::process::ExitCode {
    tcmu_guest_tests::main()
}
