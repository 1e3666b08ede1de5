//! The project's tests on a real kernel. `cargo test -p tcmu-guest-tests` boots it and runs them.
#![forbid(unsafe_code)]

mod kernel;

fn main() -> std::process::ExitCode {
    tcmu_guest_tests::main()
}
