//! A Ceph cluster on this machine: one monitor and one OSD, with authentication, all in one folder.
//!
//! Needs the programs of Debian's ceph-mon, ceph-osd and ceph-common. The OSD keeps its data in a file, so
//! that it can be killed and started again.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

const PROGRAMS: &[&str] = &[
    "ceph",
    "ceph-authtool",
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "rbd",
];

/// The pool with the images.
pub const POOL: &str = "rbd";

/// How long a daemon may take to do what is expected of it. Generous: a hang should run into it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The programs that are not installed here; a cluster needs all.
pub fn missing_programs() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = |program: &&&str| !folders.iter().any(|folder| folder.join(program).is_file());
    PROGRAMS.iter().filter(missing).copied().collect()
}

/// The cluster; it ends when it is dropped, and with this process at the latest.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    _monitor: Daemon,
    osd: Mutex<Daemon>,
    images: AtomicU32,
}

impl Cluster {
    /// Starts one that listens at this address of the machine's, with its files in a new folder below
    /// `parent`, and waits until it takes requests. To be called on a thread that outlives it.
    ///
    /// # Errors
    /// If a program is missing or fails.
    pub fn start(address: &str, parent: &Path) -> anyhow::Result<Self> {
        let started = Instant::now();
        let folder = TempDir::new_in(parent)?;
        let path = folder.path();
        for name in ["mon", "osd", "run"] {
            fs::create_dir(path.join(name))?;
        }
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let ports = free_ports(address)?;
        let monitor = format!("[v2:{address}:{},v1:{address}:{}]", ports[0], ports[1]);
        let conf = path.join("ceph.conf");
        fs::write(&conf, configuration(path, fsid.trim(), address, &monitor))?;
        make_keys(path)?;
        let map = path.join("monmap");
        run(Command::new("monmaptool")
            .args(["--create", "--fsid", fsid.trim(), "--addv", "a", &monitor])
            .arg(&map))?;
        run(Command::new("ceph-mon")
            .args(["--mkfs", "-i", "a", "-c"])
            .arg(&conf)
            .arg("--monmap")
            .arg(&map)
            .arg("--keyring")
            .arg(path.join("keyring")))?;
        let monitor = Daemon::start("ceph-mon", "a", path)?;
        run(ceph(&conf).args(["osd", "new", fsid.trim(), "0"]))?;
        run(Command::new("ceph-osd")
            .args(["--mkfs", "-i", "0", "--osd-uuid", fsid.trim(), "-c"])
            .arg(&conf))?;
        let osd = Daemon::start("ceph-osd", "0", path)?;
        run(ceph(&conf).args(["osd", "pool", "create", POOL, "8"]))?;
        let cluster = Self {
            folder,
            _monitor: monitor,
            osd: Mutex::new(osd),
            images: AtomicU32::new(0),
        };
        cluster.rbd(&["pool", "init", POOL])?;
        eprintln!(
            "the cluster took {:.1} s to start",
            started.elapsed().as_secs_f64()
        );
        Ok(cluster)
    }

    /// A file in the cluster's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration string of an image, with further options.
    pub fn config(&self, image: &str, options: &str) -> String {
        format!("{image};conf={}{options}", self.path("ceph.conf").display())
    }

    /// Makes an image with objects of 1 MiB, so that requests cross their bounds, and returns its name.
    ///
    /// # Errors
    /// If that fails.
    pub fn image(&self, size: u64) -> anyhow::Result<String> {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let name = format!("{POOL}/image{number}");
        self.create(&name, size)?;
        Ok(name)
    }

    /// Makes an image of this name.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(&self, name: &str, size: u64) -> anyhow::Result<()> {
        let size = format!("{size}B");
        self.rbd(&["create", name, "--size", &size, "--object-size", "1M"])?;
        Ok(())
    }

    /// Runs the program `rbd`, and returns what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn rbd(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("rbd");
        run(command.arg("-c").arg(self.path("ceph.conf")).args(args))
    }

    /// Runs the program `ceph`.
    ///
    /// # Errors
    /// If it fails.
    pub fn ceph(&self, args: &[&str]) -> anyhow::Result<String> {
        run(ceph(&self.path("ceph.conf")).args(args))
    }

    /// Writes another configuration, with changes to the lines of the cluster's own.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn configuration_with(
        &self,
        name: &str,
        change: impl Fn(&str) -> String,
    ) -> anyhow::Result<PathBuf> {
        let own = fs::read_to_string(self.path("ceph.conf"))?;
        let path = self.path(name);
        let lines: Vec<String> = own.lines().map(change).collect();
        fs::write(&path, lines.join("\n") + "\n")?;
        Ok(path)
    }

    /// Stops the OSD's threads where they are.
    ///
    /// # Errors
    /// If it has ended.
    pub fn freeze_osd(&self) -> anyhow::Result<()> {
        self.osd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .signal(Signal::STOP)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// If it has ended.
    pub fn thaw_osd(&self) -> anyhow::Result<()> {
        self.osd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .signal(Signal::CONT)
    }

    /// Kills the OSD.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill_osd(&self) -> anyhow::Result<()> {
        self.osd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kill()
    }

    /// Starts the OSD again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_osd(&self) -> anyhow::Result<()> {
        let again = Daemon::start("ceph-osd", "0", self.folder.path())?;
        *self.osd.lock().unwrap_or_else(PoisonError::into_inner) = again;
        Ok(())
    }
}

/// A daemon of the cluster. It dies with the thread that started it, which is the test program's first.
#[derive(Debug)]
struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(program: &str, id: &str, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{program}.out"));
        let output = File::options().create(true).append(true).open(&log)?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", program, "-f", "-i", id, "-c"])
            .arg(folder.join("ceph.conf"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot run setpriv")?;
        Ok(Self { process, log })
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(status) = self.process.try_wait()? {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            bail!("the daemon ended with {status}: {said}");
        }
        let id = Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).context("cannot signal the daemon")
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(folder: &Path, fsid: &str, address: &str, monitor: &str) -> String {
    let folder = folder.display();
    format!(
        "[global]
fsid = {fsid}
mon host = {monitor}
keyring = {folder}/keyring
run dir = {folder}/run
admin socket = {folder}/run/$cluster-$name.$pid.$cctid.asok
log file = {folder}/$name.log
log to stderr = false
err to stderr = true
public addr = {address}
cluster addr = {address}
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
[client]
err to stderr = false
[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
mon osd down out interval = 86400
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 2147483648
bluestore block create = true
bluestore block wal create = false
osd class load list = *
osd class default list = *
"
    )
}

/// The keys of all who take part, in one keyring, which the monitor takes over when it is made.
fn make_keys(folder: &Path) -> anyhow::Result<()> {
    let keyring = folder.join("keyring");
    File::create(&keyring)?;
    let users: [(&str, &[[&str; 2]]); 4] = [
        ("mon.", &[["mon", "allow *"]]),
        (
            "client.admin",
            &[["mon", "allow *"], ["osd", "allow *"], ["mgr", "allow *"]],
        ),
        ("osd.0", &[["mon", "allow profile osd"], ["osd", "allow *"]]),
        (
            "client.elsewhere",
            &[
                ["mon", "profile rbd"],
                ["osd", "profile rbd pool=elsewhere"],
            ],
        ),
    ];
    for (user, capabilities) in users {
        let mut command = Command::new("ceph-authtool");
        command.arg(&keyring).args(["--gen-key", "-n", user]);
        for [service, allowed] in capabilities {
            command.args(["--cap", service, allowed]);
        }
        run(&mut command)?;
    }
    let mut own = File::create(folder.join("osd/keyring"))?;
    let all = fs::read_to_string(&keyring)?;
    let mut mine = false;
    for line in all.lines() {
        if line.starts_with('[') {
            mine = line == "[osd.0]";
        }
        if mine {
            writeln!(own, "{line}")?;
        }
    }
    Ok(())
}

fn free_ports(address: &str) -> anyhow::Result<[u16; 2]> {
    let any = (address, 0);
    let listeners = [TcpListener::bind(any)?, TcpListener::bind(any)?];
    Ok([
        listeners[0].local_addr()?.port(),
        listeners[1].local_addr()?.port(),
    ])
}

fn ceph(conf: &Path) -> Command {
    let mut command = Command::new("ceph");
    command
        .arg("-c")
        .arg(conf)
        .args(["--connect-timeout", "60"]);
    command
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let mut child = command
        .env_remove("CEPH_CONF")
        .env_remove("CEPH_ARGS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            bail!("{command:?} hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{command:?} ended with {status}: {said}");
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
