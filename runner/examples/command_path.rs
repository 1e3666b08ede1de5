//! Serves many 4 KiB commands on the mock kernel, 32 at a time, for a profiler to look at.
//!
//! The instructions of the runner alone, without the mock kernel's, per command:
//!
//! ```text
//! cargo build --release --package tcmu-runner --example command_path
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no \
//!     --toggle-collect='*runner_turn*' target/release/examples/command_path null read 100000
//! ```
//!
//! divided by the number of commands; the rest (warming up) is small beside it.
#![allow(clippy::unwrap_used, reason = "its caller sees what is wrong")]

mod support;

use support::{FILE, NULL, QCOW, Way};

const DEPTH: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [below, way, count] = words[..] else {
        eprintln!("usage: command_path null|file|qcow read|write COUNT");
        std::process::exit(2);
    };
    let below = match below {
        "null" => NULL,
        "qcow" => QCOW,
        _ => FILE,
    };
    let mut lun = below.lun();
    let way = if way == "read" { Way::Read } else { Way::Write };
    let count: usize = count.parse().unwrap();
    for _ in 0..count / DEPTH {
        lun.submit(way, DEPTH);
        lun.serve(DEPTH);
    }
    println!("{:?}", lun.counters());
}
