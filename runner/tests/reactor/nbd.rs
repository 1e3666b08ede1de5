//! LUNs on the exports of a real NBD server: its connections on io_uring.

use std::thread;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::TestRunner;
use rustix::process::Signal;
use tcmu::ring::TmrKind;
use tcmu::scsi::Status;
use tcmu_handler::{Handler, OpenRequest};
use tcmu_handler_nbd::{NbdHandler, NbdImage};
use tcmu_nbd_servers::{Authority, Server, Subject};

use crate::faults::sense_key;
use crate::lun::{BLOCK, Lun, SIZE, pattern};
use crate::model::{batches, run};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();
const ABORTED_COMMAND: u8 = 0xb;

/// Opens the export of a server that serves a file of the LUN's size.
pub(crate) fn open(server: &Server, options: &str) -> NbdImage {
    let request = OpenRequest {
        config: format!("unix:{}{options}", server.path().display())
            .parse()
            .unwrap(),
        size: SIZE,
        block_size: BLOCK as u32,
    };
    NbdHandler.open(&request).unwrap()
}

#[test]
fn an_export_is_a_disk_whatever_runs_together() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&batches(), |batches| {
        let server = Server::nbdkit_on_a_file(&[], SIZE);
        run(open(&server, ""), &batches)?;
        let server = Server::nbdkit_on_a_file(&[], SIZE);
        run(open(&server, ";connections=3"), &batches)
    });
    outcome.unwrap();
}

#[test]
fn commands_wait_for_a_server_that_is_killed() {
    write_while_killed(Server::nbdkit_on_a_file(&[], SIZE), "");
}

#[test]
fn commands_wait_for_a_server_with_tls_as_well() {
    let pki = Authority::new().folder(&[Subject::Server("server.test")]);
    let pki = pki.path().display();
    let words = ["--tls=require", &format!("--tls-certificates={pki}")];
    let options = format!(";tls=require;tls_certificates={pki};tls_hostname=server.test");
    write_while_killed(Server::nbdkit_on_a_file(&words, SIZE), &options);
}

fn write_while_killed(mut server: Server, options: &str) {
    let options = format!(";server_cache=durable;reconnect=3600;timeout=0{options}");
    let mut lun = Lun::new(open(&server, &options));
    // Long and short ones, so that some are in flight in part.
    let blocks = |number: u32| if number.is_multiple_of(4) { 700 } else { 8 };
    for round in 0..4u64 {
        let data = |number: u32| pattern(round << 8 | u64::from(number), blocks(number) * BLOCK);
        let mut tags = Vec::new();
        for number in 0..16 {
            tags.push(lun.write(number * 1000, &data(number)));
        }
        // Some are sent, some are not.
        lun.turn(false);
        server.kill();
        thread::sleep(Duration::from_millis(60 * round));
        server.restart();
        for tag in tags {
            assert_eq!(lun.wait(tag).status, GOOD);
        }
        for number in 0..16 {
            let tag = lun.read(number * 1000, blocks(number) as u16);
            let read = lun.wait(tag);
            assert_eq!(read.status, GOOD);
            assert!(
                read.data_in == data(number),
                "round {round}, write {number}"
            );
        }
    }
    assert_eq!(lun.kernel.broken(), None);
    assert_eq!(lun.kernel.late_writes(), 0);
}

#[test]
fn a_server_that_hangs_makes_commands_fail_for_now() {
    let server = Server::nbdkit_on_a_file(&[], SIZE);
    let mut lun = Lun::new(open(&server, ";timeout=1"));
    server.stop();
    let tags = [lun.read(0, 8), lun.write(8, &[1; BLOCK])];
    for tag in tags {
        let finished = lun.wait(tag);
        assert_eq!(finished.status, CHECK_CONDITION);
        assert_eq!(sense_key(&finished.sense), ABORTED_COMMAND);
    }
    server.signal(Signal::CONT);
    // A busy machine's server may need more than a second at first.
    loop {
        let tag = lun.read(0, 8);
        let finished = lun.wait(tag);
        if finished.status == GOOD {
            break;
        }
        assert_eq!(sense_key(&finished.sense), ABORTED_COMMAND);
    }
    assert_eq!(lun.kernel.late_writes(), 0);
}

#[test]
fn an_abort_of_one_command_leaves_the_others_their_connection() {
    let server = Server::nbdkit_on_a_file(&[], SIZE);
    let mut lun = Lun::new(open(&server, ""));
    server.stop();
    // The first one drives the connection for both.
    let tags = [lun.read(0, 8), lun.read(8, 8)];
    lun.turn(false);
    lun.turn(false);
    lun.kernel
        .notify_task_management(TmrKind::AbortTask, &tags[..1])
        .unwrap();
    lun.turn(false);
    lun.turn(false);
    server.signal(Signal::CONT);
    for tag in tags {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
}
