//! Real servers: nbdkit and qemu-nbd.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::process::Signal;
use tcmu_handler::testing::{Contract, Disk, Image, block_on, io, steps};
use tcmu_handler::{Backstore, ErrorKind, Extent, Handler, OpenRequest, contract_tests};
use tcmu_nbd_servers::{Server, launch};

use super::workload::{Workload, run};
use super::{open, read, until_answered, write};
use crate::NbdHandler;

const MIB: u64 = 1 << 20;

fn qemu_img(words: &[&str]) {
    let output = Command::new("qemu-img").args(words).output();
    let output = output.expect("qemu-img cannot run (of the Debian package qemu-utils)");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// An image on nbdkit with these words, for the contract's tests.
fn contract(words: &'static [&'static str], options: &'static str) -> Contract<NbdHandler> {
    let make = move |_: &Path| {
        let server = Server::nbdkit(&[words, &["memory", "4M"]].concat());
        let config = format!("unix:{}{options}", server.path().display());
        Image::with(config, server)
    };
    Contract::new(NbdHandler, make).read_only(";readonly=on")
}

contract_tests!(contract: contract(&[], ""));
contract_tests!(contract_with_simple_replies: contract(&["--no-sr"], ";connections=3"));

pub(super) const WORKLOAD: Workload = Workload {
    seed: 7,
    depth: 32,
    requests: 40,
    longest: 256 << 10,
    flushes: true,
};

/// Everything that an image can do, one after the other, and then many at once.
pub(super) fn try_out(server: &Server, options: &str) {
    let image = open(&server.path(), options, 16 * MIB).unwrap();
    // An engine that goes with an operation under way takes the connection along.
    let io = io();
    for depth in [16, 32] {
        run(&image, &io, Workload { depth, ..WORKLOAD });
    }
    block_on(image.close(&io)).unwrap();
}

/// One request after the other of all kinds, against the model of a disk.
fn try_model(fresh: impl Fn() -> Server) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 6,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&steps(256, 64), |steps| {
            let server = fresh();
            let image = open(&server.path(), "", 256 * 512).unwrap();
            Disk::new(256, 512).run(&image, &steps);
            Ok(())
        })
        .unwrap();
}

#[test]
fn nbdkit_serves_memory() {
    let server = Server::nbdkit(&["memory", "16M"]);
    let image = open(&server.path(), "", 16 * MIB).unwrap();
    let capabilities = image.capabilities();
    assert!(capabilities.write_zeroes && capabilities.unmap.is_some());
    // What was never written has no storage.
    let status = |offset, len| {
        let status = block_on(image.block_status(&io(), Extent { offset, len })).unwrap();
        (status.mapped, status.len)
    };
    assert!(!status(0, MIB).0);
    write(&image, &io(), 3, 65536, 0).unwrap();
    assert!(status(0, MIB).0);
    let extent = Extent {
        offset: 0,
        len: MIB,
    };
    block_on(image.prefetch(&io(), extent)).unwrap();
    block_on(image.unmap(&io(), extent)).unwrap();
    assert!(!status(0, MIB).0);
    drop(image);
    try_out(&server, "");
    try_out(&server, ";connections=4");
    try_model(|| Server::nbdkit(&["memory", "128k"]));
}

#[test]
fn nbdkit_without_structured_replies() {
    let server = Server::nbdkit(&["--no-sr", "memory", "16M"]);
    try_out(&server, "");
    try_out(&server, ";connections=2");
}

#[test]
fn qemu_serves_raw_and_qcow2() {
    for format in ["raw", "qcow2"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let path = path.to_str().unwrap();
        qemu_img(&["create", "-q", "-f", format, path, "16M"]);
        let words = ["-f", format, "--discard=unmap", "--shared=4", path];
        let server = Server::qemu(&words);
        try_out(&server, "");
        drop(server);
        if format == "qcow2" {
            qemu_img(&["check", "-q", "-f", format, path]);
        }
    }
    try_model(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::File::create(&path).unwrap().set_len(256 * 512).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let server = Server::qemu(&["-f", "raw", "--discard=unmap", "--shared=4", &path]);
        // qemu-nbd has the image open.
        drop(folder);
        server
    });
}

#[test]
fn a_tcp_server_and_its_exports() {
    // The port is free for a moment, which is as good as it gets.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let words = ["-x", "a disk", "--persistent", "-b", "127.0.0.1", "-p"];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    words.extend([port.to_string(), "-f".to_owned(), "raw".to_owned()]);
    words.push(path.to_str().unwrap().to_owned());
    let mut child = launch("qemu-nbd", &words);
    let config = format!("nbd://127.0.0.1:{port}/a%20disk");
    let request = |text: &str| OpenRequest {
        config: text.parse().unwrap(),
        size: 16 * MIB,
        block_size: 512,
    };
    let image = loop {
        match NbdHandler.open(&request(&config)) {
            Ok(image) => break image,
            Err(error) if error.kind() == ErrorKind::Gone => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    };
    let io = io();
    run(&image, &io, WORKLOAD);
    block_on(image.close(&io)).unwrap();
    let error = NbdHandler
        .open(&request(&format!("127.0.0.1:{port};export=none")))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn errors_of_the_server_are_those_of_the_request() {
    let words = ["--filter=error", "memory", "16M", "error-pwrite=ENOSPC"];
    let words = [words.as_slice(), &["error-pwrite-rate=100%"]].concat();
    let server = Server::nbdkit(&words);
    let image = open(&server.path(), "", 16 * MIB).unwrap();
    let io = io();
    let error = write(&image, &io, 1, 4096, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(read(&image, &io, 4096, 0).unwrap(), [0; 4096]);
    let server = Server::nbdkit(&[
        "--filter=error",
        "memory",
        "16M",
        "error-pread=EIO",
        "error-pread-rate=100%",
    ]);
    let image = open(&server.path(), "", 16 * MIB).unwrap();
    write(&image, &io, 1, 4096, 0).unwrap();
    let error = read(&image, &io, 4096, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Read, "{error}");
    let server = Server::nbdkit(&["-r", "memory", "16M"]);
    let image = open(&server.path(), "", 16 * MIB).unwrap();
    assert!(image.capabilities().read_only);
}

#[test]
fn a_slow_server_is_waited_for() {
    let server = Server::nbdkit(&[
        "--filter=delay",
        "memory",
        "16M",
        "rdelay=30ms",
        "wdelay=20ms",
    ]);
    let image = open(&server.path(), ";timeout=20", 16 * MIB).unwrap();
    let workload = Workload {
        requests: 15,
        ..WORKLOAD
    };
    run(&image, &io(), workload);
}

#[test]
fn no_write_is_lost_when_servers_are_killed_and_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let image = image.to_str().unwrap();
    // What they have acknowledged is in the page cache, which outlives them.
    let qemu = Server::qemu(&["-f", "raw", "--cache=writeback", "--shared=4", image]);
    // A busy disk may keep a flush, or a program from being started, for minutes.
    let options = ";server_cache=durable;reconnect=3600;timeout=0";
    no_write_is_lost(qemu, options);
    let nbdkit = Server::nbdkit(&["file", image]);
    no_write_is_lost(nbdkit, &format!("{options};connections=3"));
}

/// Kills and restarts the server now and then, while an image on it is in use.
pub(super) fn no_write_is_lost(mut server: Server, options: &str) {
    let image = open(&server.path(), options, 16 * MIB).unwrap();
    thread::scope(|scope| {
        let killer = scope.spawn(move || {
            for kills in 0..8 {
                thread::sleep(Duration::from_millis(100));
                server.kill();
                thread::sleep(Duration::from_millis(30 * (kills % 3)));
                server.restart();
            }
            server
        });
        let mut seed = 0;
        while !killer.is_finished() {
            run(&image, &io(), Workload { seed, ..WORKLOAD });
            seed += 1;
        }
        // It must not end before the image says goodbye.
        let server = killer.join().unwrap();
        block_on(image.close(&io())).unwrap();
        drop(server);
    });
}

#[test]
fn a_server_that_is_stopped_times_out_and_goes_on() {
    let server = Server::nbdkit(&["memory", "16M"]);
    let image = open(&server.path(), ";timeout=1;reconnect=0", 16 * MIB).unwrap();
    let io = io();
    until_answered(|| write(&image, &io, 1, 4096, 0));
    server.stop();
    let error = read(&image, &io, 4096, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    server.signal(Signal::CONT);
    let bytes = until_answered(|| read(&image, &io, 4096, 0));
    assert_eq!(bytes, [1; 4096]);
}
