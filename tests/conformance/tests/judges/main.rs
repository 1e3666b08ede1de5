//! Independent judges of our LUNs, inside the guest. See the crate `tcmu-guest-tests`.

mod every_opcode;
mod libiscsi;
mod luns;
mod sg3_utils;

fn main() -> std::process::ExitCode {
    tcmu_guest_tests::main_with(libiscsi::prepare)
}
