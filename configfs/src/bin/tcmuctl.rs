//! `tcmuctl` sets up LUNs.

fn main() {}
