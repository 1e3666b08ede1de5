//! LUNs on the exports of a real NBD server: its connections on io_uring.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::TestRunner;
use rustix::process::{Pid, Signal, kill_process};
use tcmu::ring::TmrKind;
use tcmu::scsi::Status;
use tcmu_handler::{Handler, OpenRequest};
use tcmu_handler_nbd::{NbdHandler, NbdImage};
use tempfile::TempDir;

use crate::faults::sense_key;
use crate::lun::{BLOCK, Lun, SIZE, pattern};
use crate::model::{batches, run};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();
const ABORTED_COMMAND: u8 = 0xb;

/// nbdkit on a file, which outlives it; killed when it is dropped.
pub(crate) struct Nbdkit {
    folder: TempDir,
    child: Child,
}

impl Nbdkit {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = fs::File::create(folder.path().join("image")).unwrap();
        image.set_len(SIZE).unwrap();
        let child = launch(folder.path());
        let server = Self { folder, child };
        while UnixStream::connect(server.socket()).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn open(&self, options: &str) -> NbdImage {
        let request = OpenRequest {
            config: format!("unix:{}{options}", self.socket().display())
                .parse()
                .unwrap(),
            size: SIZE,
            block_size: BLOCK as u32,
        };
        NbdHandler.open(&request).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it. Its threads may still answer for a moment after the signal was sent.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: fs::DirEntry| {
            let state = fs::read_to_string(task.path().join("stat")).unwrap();
            state.rsplit(')').next().unwrap().starts_with(" T")
        };
        while !fs::read_dir(&tasks).unwrap().flatten().all(is_stopped) {
            thread::yield_now();
        }
    }

    /// Kills it, and starts it again after this time.
    fn replace(&mut self, after: Duration) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_file(self.socket()).unwrap();
        thread::sleep(after);
        self.child = launch(self.folder.path());
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(folder: &Path) -> Child {
    let mut command = Command::new("nbdkit");
    // With more threads, nbdkit 1.32 now and then ends by an assertion when a client leaves.
    command.args(["-f", "--threads=1", "-U"]);
    command.arg(folder.join("socket"));
    command.arg("file").arg(folder.join("image"));
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("nbdkit cannot run (of its Debian package): {error}"))
}

#[test]
fn an_export_is_a_disk_whatever_runs_together() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&batches(), |batches| {
        let server = Nbdkit::start();
        run(server.open(""), &batches)?;
        let server = Nbdkit::start();
        run(server.open(";connections=3"), &batches)
    });
    outcome.unwrap();
}

#[test]
fn commands_wait_for_a_server_that_is_killed() {
    let mut server = Nbdkit::start();
    let mut lun = Lun::new(server.open(";server_cache=durable;reconnect=3600;timeout=0"));
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
        server.replace(Duration::from_millis(60 * round));
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
    let server = Nbdkit::start();
    let mut lun = Lun::new(server.open(";timeout=1"));
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
    let server = Nbdkit::start();
    let mut lun = Lun::new(server.open(""));
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
