//! The host's side of a run: prepares the shares, starts the kernel's process, relays the program's
//! output, and ends everything in time.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, Signal};

use crate::error::{Context as _, Error};
use crate::guard::Guard;
use crate::guest::{CONSOLE_LOG, End, GUEST_PATH, Guest, OUTPUT_LOG, Outcome, Results};
use crate::kernel::{Bootable, Kernel};
use crate::protocol::{ORDER_FILE, Order, REPORT_FILE, Report, ReportedEnd, Share};
use crate::{console, host, init, qemu, uml};

/// How long a guest may take to boot, beside the program's own time.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long the host waits for a guest that should have ended by itself.
const GRACE: Duration = Duration::from_secs(30);
/// How long a guest may take to power off once it has reported.
const POWER_OFF_TIME: Duration = Duration::from_secs(5);
/// How often the kernel's process is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Longer lines are cut in pieces, so that a program cannot fill the host's memory.
const MAX_LINE: usize = 64 * 1024;

/// The folders of one run.
pub(crate) struct Folders {
    /// Everything that only the rig needs; removed after the run.
    pub run: PathBuf,
    /// Shared with the guest: the order and the report.
    pub control: PathBuf,
    /// Shared with the guest: what the program leaves.
    pub results: PathBuf,
}

/// What differs between kernels: the process to start, and how the guest sees the shares.
pub(crate) struct Machine {
    pub command: Command,
    /// The file descriptor, in that process, on which the program's output comes.
    pub output_fd: i32,
    pub output_tty: &'static str,
    /// How the guest names the results folder when it mounts it.
    pub results_source: String,
}

pub(crate) fn run(mut guest: Guest<'_>) -> Result<Outcome, Error> {
    let kernel = match guest.kernel {
        Some(kernel) => kernel,
        None => Kernel::default_choice()?,
    };
    let results = Results::new(guest.results.take())?;
    let order = order(&guest, kernel, results.path())?;
    if kernel == Kernel::Host {
        if guest.systemd_root.is_some() {
            return Err(Error::Usage(
                "this machine's own kernel is running already: choose uml-built".into(),
            ));
        }
        return host::run(guest, &order, results);
    }
    if !init::entered() {
        return Err(Error::NotEntered);
    }
    if guest.systemd_root.is_some() && kernel == Kernel::Qemu {
        return Err(Error::Usage(
            "the kernel qemu cannot boot a tree of its own: choose uml-built".into(),
        ));
    }
    let bootable = kernel.find()?;

    let temp = tempfile::Builder::new()
        .prefix("tcmu-rig-")
        .tempdir()
        .context(|| "cannot create a temporary folder".into())?;
    let run = temp
        .path()
        .canonicalize()
        .path_context("find", temp.path())?;
    let folders = Folders {
        control: run.join("control"),
        run,
        results: results.path().to_path_buf(),
    };
    fs::create_dir(&folders.control).path_context("create", &folders.control)?;

    let machine = match kernel {
        Kernel::Qemu => qemu::machine(&guest, &bootable, &folders)?,
        _ => uml::machine(&guest, &bootable, &folders)?,
    };
    write_order(order, &machine, &bootable, &folders)?;
    boot(guest, machine, &folders, results)
}

fn order(guest: &Guest<'_>, kernel: Kernel, results: &Path) -> Result<Order, Error> {
    let program = fs::canonicalize(&guest.program).path_context("find", &guest.program)?;
    if let Some(hidden) = ["/run", "/dev", "/proc", "/sys"]
        .iter()
        .find(|d| program.starts_with(d))
    {
        return Err(Error::Usage(format!(
            "{} is under {hidden}, which the guest has its own of: put it elsewhere",
            program.display()
        )));
    }
    let cwd = match &guest.cwd {
        Some(cwd) => cwd.clone(),
        None => std::env::current_dir().context(|| "cannot find the current folder".into())?,
    };
    let fixed = [
        ("PATH", GUEST_PATH.to_owned()),
        ("HOME", "/root".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TCMU_RIG_GUEST", kernel.to_string()),
        ("TCMU_RIG_RESULTS", results.display().to_string()),
    ];
    let env = fixed.into_iter().map(|(k, v)| (k.to_owned(), v));
    Ok(Order {
        program,
        args: guest.args.clone(),
        env: env.chain(guest.env.iter().cloned()).collect(),
        cwd,
        timeout_s: guest.timeout.as_secs().max(1),
        output_tty: PathBuf::new(),
        modules_dir: None,
        modules: guest.modules.clone(),
        systemd_root: guest.systemd_root.clone(),
        shares: Vec::new(),
    })
}

fn write_order(
    mut order: Order,
    machine: &Machine,
    bootable: &Bootable,
    folders: &Folders,
) -> Result<(), Error> {
    order.output_tty = machine.output_tty.into();
    order.modules_dir.clone_from(&bootable.modules_dir);
    order.shares = vec![Share {
        source: machine.results_source.clone(),
        path: folders.results.clone(),
    }];
    let path = folders.control.join(ORDER_FILE);
    let bytes = serde_json::to_vec(&order).map_err(io::Error::from);
    bytes
        .and_then(|b| fs::write(&path, b))
        .path_context("write", &path)
}

fn boot(
    mut guest: Guest<'_>,
    machine: Machine,
    folders: &Folders,
    results: Results,
) -> Result<Outcome, Error> {
    let console_path = results.path().join(CONSOLE_LOG);
    let console = File::create(&console_path).path_context("create", &console_path)?;
    let console_too = console.try_clone().path_context("open", &console_path)?;
    let output_path = results.path().join(OUTPUT_LOG);
    let output_log = File::create(&output_path).path_context("create", &output_path)?;
    let (output, output_end) = pipe()?;

    let started = Instant::now();
    let mut command = machine.command;
    command
        .current_dir(&folders.run)
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(console_too)
        .process_group(0);
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: output_end,
            child_fd: machine.output_fd,
        }])
        .map_err(|e| Error::Usage(format!("cannot pass the output's pipe: {e}")))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = Group(
        command
            .spawn()
            .context(|| format!("cannot run {program}"))?,
    );
    // The command holds this side's copy of the pipe's write end.
    drop(command);
    let guard = child
        .id()
        .map(|group| Guard::over(group, &folders.run))
        .transpose();
    let guard = guard.context(|| "cannot start the guest's guard".into())?;

    let lines = read_lines(output)?;
    let report_path = folders.control.join(REPORT_FILE);
    let deadline = started + guest.timeout + BOOT_TIME + GRACE;
    let mut on_line = guest
        .on_line
        .take()
        .unwrap_or_else(|| Box::new(|_: &str| {}));
    let mut relay = Relay {
        on_line: &mut *on_line,
        log: output_log,
    };
    let killed = relay.until_the_end(&mut child, &lines, deadline, &report_path)?;
    // First the guard, so that it never signals a group whose id is free again.
    drop(guard);
    child.kill();
    relay.rest(&lines);

    let duration = started.elapsed();
    let report: Option<Report> = fs::read(&report_path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let console = console::Console::read(&console_path);
    let end = match report.as_ref().map(|r| r.end.clone()) {
        Some(ReportedEnd::Exited(code)) => End::Exited(code),
        Some(ReportedEnd::Signaled(signal)) => End::Signaled(signal),
        Some(ReportedEnd::TimedOut) => End::TimedOut,
        Some(ReportedEnd::SetupFailed(why)) => End::Died(format!("it could not be set up: {why}")),
        None => match console.panic {
            Some(why) => End::Panicked(why),
            None => {
                let how = match killed {
                    true => "it hung, its own watchdog too, and was killed by the host",
                    false => "it ended without a report",
                };
                let last = console.last_line.as_deref().unwrap_or("nothing");
                End::Died(format!("{how}; the last that its console said was: {last}"))
            }
        },
    };
    Ok(Outcome {
        kernel_release: report.map(|r| r.kernel_release),
        duration,
        kernel_complaints: console.complaints,
        results: results.after(&end),
        end,
    })
}

/// A child process and all that it started, killed as one when dropped: a guest never outlives its
/// run, whatever goes wrong on the host.
pub(crate) struct Group(pub(crate) Child);

impl Group {
    pub(crate) fn kill(&mut self) {
        if let Some(group) = self.id() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }

    fn id(&self) -> Option<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context(|| "cannot create a pipe".into())
}

/// Reads lines on a thread of their own, so that the caller can wait for them with a time limit.
pub(crate) fn read_lines(from: OwnedFd) -> Result<Receiver<Vec<u8>>, Error> {
    let (sender, lines) = mpsc::channel();
    let mut from = BufReader::new(File::from(from));
    thread::Builder::new()
        .name("guest output".into())
        .spawn(move || {
            loop {
                let mut line = Vec::new();
                let limit = MAX_LINE as u64;
                match io::Read::take(&mut from, limit).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                    line.pop();
                }
                if sender.send(line).is_err() {
                    return;
                }
            }
        })
        .context(|| "cannot start a thread".into())?;
    Ok(lines)
}

/// Hands the program's lines to the caller and to the log.
pub(crate) struct Relay<'r> {
    pub on_line: &'r mut dyn FnMut(&str),
    pub log: File,
}

impl Relay<'_> {
    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        // A full disk must not end the run: the caller still gets the line.
        let _ = writeln!(self.log, "{text}");
        (self.on_line)(&text);
    }

    /// Relays until the child has ended, has reported and had time to power off, or its time is up.
    /// Returns whether it still ran without having reported.
    pub(crate) fn until_the_end(
        &mut self,
        child: &mut Group,
        lines: &Receiver<Vec<u8>>,
        mut deadline: Instant,
        report: &Path,
    ) -> Result<bool, Error> {
        let mut reported = false;
        loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => {
                    self.line(&line);
                    if Instant::now() < deadline {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            if child
                .0
                .try_wait()
                .context(|| "cannot wait for the guest".into())?
                .is_some()
            {
                return Ok(false);
            }
            if !reported && report.exists() {
                reported = true;
                deadline = Instant::now() + POWER_OFF_TIME;
            }
            if Instant::now() >= deadline {
                return Ok(!reported);
            }
        }
    }

    /// Relays what is still in the pipe.
    pub(crate) fn rest(&mut self, lines: &Receiver<Vec<u8>>) {
        while let Ok(line) = lines.recv_timeout(Duration::from_millis(500)) {
            self.line(&line);
        }
    }
}
