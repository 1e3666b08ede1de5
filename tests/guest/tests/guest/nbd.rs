//! LUNs on NBD servers.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

use crate::qcow::verify;

const SOCKET: &str = "/run/nbdkit.sock";

/// nbdkit on a file; killed when it is dropped.
struct Server {
    image: String,
    process: Child,
}

impl Server {
    fn start(image: String) -> anyhow::Result<Self> {
        let process = Self::launch(&image)?;
        let server = Server { image, process };
        let greets = || UnixStream::connect(SOCKET)?.read_exact(&mut [0; 8]);
        while greets().is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn launch(image: &str) -> anyhow::Result<Child> {
        let mut nbdkit = Command::new("nbdkit");
        // With more threads, nbdkit 1.32 now and then ends by an assertion when a client leaves.
        nbdkit.args(["-f", "--threads=1", "-U", SOCKET, "file", image]);
        nbdkit
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run nbdkit (of the Debian package of that name)")
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        // Its successor could not listen there otherwise.
        fs::remove_file(SOCKET).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error.into()),
        })
    }

    /// Kills it, and starts it again after a while.
    fn replace(&mut self, after: Duration) -> anyhow::Result<()> {
        self.kill()?;
        thread::sleep(after);
        self.process = Self::launch(&self.image)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test has said what was wrong already.
        let _ = self.kill();
        let _ = fs::remove_file(&self.image);
    }
}

guest_test!(a_lun_on_an_nbd_server_loses_nothing_when_the_server_is_killed);
fn a_lun_on_an_nbd_server_loses_nothing_when_the_server_is_killed() -> TestResult {
    let daemon = Daemon::start()?;
    let mut server = Server::start(image("served", 64 * MIB)?)?;
    let config = format!("unix:{SOCKET};server_cache=durable");
    let disk = Disk::create("remote", "nbd", &config, &["--size", "64M"])?;
    let words = verify(&disk);
    let mut load = Command::new(&words[0])
        .args(&words[1..])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run fio")?;
    let mut kills = 0;
    while load.try_wait()?.is_none() {
        thread::sleep(Duration::from_millis(200));
        // So many are enough, on the slowest machine as well.
        if kills < 5 {
            server.replace(Duration::from_millis(100 * (kills % 3)))?;
            kills += 1;
        }
    }
    let output = load.wait_with_output()?;
    ensure!(
        output.status.success(),
        "fio: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(kills > 0, "the server was never killed");

    // An idle connection is found dead by the next command.
    disk.write(3 * MIB, 7)?;
    server.replace(Duration::ZERO)?;
    ensure!(disk.holds(3 * MIB, 7)?);

    // What is unmapped is given back by the server.
    let before = fs::metadata(&server.image)?.blocks();
    sh::run(&["blkdiscard", disk.path()])?;
    sh::run(&["blockdev", "--flushbufs", disk.path()])?;
    let after = fs::metadata(&server.image)?.blocks();
    ensure!(
        after < before / 4,
        "{after} of {before} blocks are left after everything was discarded"
    );
    disk.delete()?;
    drop(server);
    daemon.stop()
}

guest_test!(an_nbd_export_that_cannot_be_served_is_refused_with_words);
fn an_nbd_export_that_cannot_be_served_is_refused_with_words() -> TestResult {
    let daemon = Daemon::start()?;
    let server = Server::start(image("served", 64 * MIB)?)?;
    let nobody = "unix:/run/nobody.sock".to_owned();
    let unknown = format!("unix:{SOCKET};speed=11");
    let small = format!("unix:{SOCKET}");
    for (config, size) in [(nobody, "1M"), (unknown, "1M"), (small, "65M")] {
        tcmuctl_fails(&[
            "create",
            "no",
            "--handler",
            "nbd",
            "--config",
            &config,
            "--size",
            size,
            "--loopback",
        ])?;
    }
    let log = daemon.log();
    for words in ["/run/nobody.sock", "speed", "67108864"] {
        ensure!(log.contains(words), "the log does not say {words}: {log}");
    }
    drop(server);
    daemon.stop()
}
