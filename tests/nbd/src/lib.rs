//! Real NBD servers on this machine: nbdkit and qemu-nbd, each behind a Unix socket of its own, and the
//! certificates that they need for TLS.
//!
//! Needs the Debian packages nbdkit and qemu-utils. What does not work panics: these are tests.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "for tests, which a panic ends"
)]

mod certificates;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use certificates::{Authority, Subject};

/// A server behind a Unix socket; it is killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    program: &'static str,
    words: Vec<String>,
    child: Child,
}

impl Server {
    /// nbdkit with these words.
    ///
    /// It has one thread for each connection: with more, nbdkit 1.32 now and then ends by an assertion
    /// of its own (`raw_send_socket`) when a client leaves. qemu-nbd answers in parallel.
    pub fn nbdkit(words: &[&str]) -> Self {
        Self::start(
            "nbdkit",
            &["-f", "--threads=1", "-U"],
            words,
            tempfile::tempdir().unwrap(),
        )
    }

    /// nbdkit with these words on a new file of so many bytes, which outlives each kill.
    pub fn nbdkit_on_a_file(words: &[&str], size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let words = [words, &["file", image.to_str().unwrap()]].concat();
        Self::start("nbdkit", &["-f", "--threads=1", "-U"], &words, folder)
    }

    /// qemu-nbd with these words.
    pub fn qemu(words: &[&str]) -> Self {
        Self::start(
            "qemu-nbd",
            &["--persistent", "-k"],
            words,
            tempfile::tempdir().unwrap(),
        )
    }

    /// Starts a program whose first words end with the one before the socket's path.
    fn start(program: &'static str, first: &[&str], words: &[&str], folder: TempDir) -> Self {
        let socket = socket(folder.path());
        let all = [first, &[socket.to_str().unwrap()], words].concat();
        let words: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let child = launch(program, &words);
        let server = Self {
            folder,
            program,
            words,
            child,
        };
        server.wait();
        server
    }

    /// The socket's path.
    pub fn path(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// Waits until somebody greets.
    fn wait(&self) {
        let greets = || UnixStream::connect(self.path())?.read_exact(&mut [0; 8]);
        while greets().is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // Nobody could listen there otherwise.
        let _ = fs::remove_file(self.path());
    }

    /// Starts it again after a [`kill`](Self::kill), and does not wait until it serves.
    pub fn restart(&mut self) {
        self.child = launch(self.program, &self.words);
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops the server, until it gets SIGCONT. Its threads may still answer for a moment after the
    /// signal was sent: this waits until none does.
    pub fn stop(&self) {
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
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// Starts a server's program that stays in the foreground.
pub fn launch(program: &str, words: &[String]) -> Child {
    let mut command = Command::new(program);
    command
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot run (of its Debian package): {error}"))
}
