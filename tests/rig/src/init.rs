//! The guest's pid 1: sets the guest up, runs the program, reports, powers off.
//!
//! It is the very executable that started the guest, entered through [`enter`]. So both sides are
//! always of one build, and nothing has to be found or built for the guest.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::WaitOptions;
use rustix::system::RebootCommand;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use crate::guard;
use crate::guest_root::{self, CONTROL_DIR};
use crate::protocol::{
    CONTROL_VAR, ORDER_FILE, Order, REPORT_FILE, Report, ReportedEnd, SHARE_TYPE_VAR,
};
use crate::systemd;

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Makes the calling executable fit to start guests. Call it first thing in `main()`.
///
/// On the host this notes that it was called and returns. In a guest, where the same executable is
/// started as pid 1, it runs the guest and never returns.
pub fn enter() {
    ENTERED.store(true, Ordering::Relaxed);
    guard::enter();
    systemd::enter();
    if std::process::id() != 1 {
        return;
    }
    let (Ok(control), Ok(share_type)) = (std::env::var(CONTROL_VAR), std::env::var(SHARE_TYPE_VAR))
    else {
        return;
    };
    run_guest(&control, &share_type)
}

pub(crate) fn entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

fn run_guest(control: &str, share_type: &str) -> ! {
    let reporter = Arc::new(Reporter::default());
    match guest_root::set_up(control, share_type) {
        Ok(order) if order.systemd_root.is_some() => {
            let why = systemd::start();
            reporter.report_and_power_off(ReportedEnd::SetupFailed(why.to_string()))
        }
        Ok(order) => {
            let end = run_program(&order, &reporter)
                .unwrap_or_else(|e| ReportedEnd::SetupFailed(format!("{e:#}")));
            reporter.report_and_power_off(end)
        }
        Err(e) => reporter.report_and_power_off(ReportedEnd::SetupFailed(e.to_string())),
    }
}

/// Runs the program of this guest as a service of the systemd that is its pid 1.
pub(crate) fn run_as_service() -> ! {
    let reporter = Arc::new(Reporter::default());
    let order = fs::read(Path::new(CONTROL_DIR).join(ORDER_FILE)).and_then(|bytes| {
        let mut order: Order = serde_json::from_slice(&bytes)?;
        order.program = guest_root::on_host(&order.program);
        order.cwd = "/".into();
        Ok(order)
    });
    let end = order
        .and_then(|order| run_program(&order, &reporter))
        .unwrap_or_else(|e| ReportedEnd::SetupFailed(format!("{e:#}")));
    reporter.report_and_power_off(end)
}

/// Writes the one report of this guest: the program's end or the watchdog's, whichever is first.
#[derive(Default)]
struct Reporter(Mutex<()>);

impl Reporter {
    fn report_and_power_off(&self, end: ReportedEnd) -> ! {
        // Never released: whoever comes second waits here until the power is off.
        let _first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let ReportedEnd::SetupFailed(why) = &end {
            eprintln!("tcmu-rig: cannot set up the guest: {why}");
        }
        if matches!(end, ReportedEnd::TimedOut) {
            print_processes();
        }
        let report = Report {
            kernel_release: kernel_release(),
            end,
        };
        if let Err(e) = write_report(&report) {
            eprintln!("tcmu-rig: cannot write the report: {e}");
        }
        // No sync(2): a file system on a LUN whose daemon is gone would hang it.
        let why = rustix::system::reboot(RebootCommand::PowerOff);
        eprintln!("tcmu-rig: cannot power off: {why:?}");
        loop {
            thread::park();
        }
    }
}

fn write_report(report: &Report) -> io::Result<()> {
    let dir = Path::new(CONTROL_DIR);
    let partial = dir.join("report.partial");
    let mut file = fs::File::create(&partial)?;
    serde_json::to_writer(&file, report)?;
    file.flush()?;
    file.sync_all()?;
    fs::rename(partial, dir.join(REPORT_FILE))
}

pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn run_program(order: &Order, reporter: &Arc<Reporter>) -> io::Result<ReportedEnd> {
    let tty = fs::File::options()
        .write(true)
        .read(true)
        .open(&order.output_tty)
        .map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot open {}: {e}", order.output_tty.display()),
            )
        })?;
    let mut attributes = tcgetattr(&tty)?;
    attributes.make_raw();
    tcsetattr(&tty, OptionalActions::Now, &attributes)?;

    let child = Command::new(&order.program)
        .args(&order.args)
        .env_clear()
        .envs(order.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&order.cwd)
        .stdin(Stdio::null())
        .stdout(tty.try_clone()?)
        .stderr(tty.try_clone()?)
        .spawn()
        .map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot run {}: {e}", order.program.display()),
            )
        })?;
    let pid = child.id();

    let watchdog = Arc::clone(reporter);
    let timeout = Duration::from_secs(order.timeout_s);
    thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            thread::sleep(timeout);
            watchdog.report_and_power_off(ReportedEnd::TimedOut)
        })?;

    let end = reap_until(pid)?;
    tcdrain(&tty)?;
    for share in &order.shares {
        if let Ok(dir) = fs::File::open(&share.path) {
            rustix::fs::syncfs(dir.as_fd())?;
        }
    }
    Ok(end)
}

/// Reaps every orphan, as pid 1 must, until the process `pid` ends.
fn reap_until(pid: u32) -> io::Result<ReportedEnd> {
    loop {
        let Some((reaped, status)) = rustix::process::wait(WaitOptions::empty())? else {
            continue;
        };
        if reaped.as_raw_nonzero().get().unsigned_abs() != pid {
            continue;
        }
        if let Some(code) = status.exit_status() {
            return Ok(ReportedEnd::Exited(code));
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(ReportedEnd::Signaled(signal));
        }
    }
}

/// Says on the console what every process was doing, so that a hang can be understood.
fn print_processes() {
    eprintln!("tcmu-rig: time is up; pid, state, name, where in the kernel it waits:");
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let mut pids: Vec<i32> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let name = stat
            .find('(')
            .zip(stat.rfind(')'))
            .map_or("?", |(a, b)| &stat[a..=b]);
        let state = stat
            .rfind(") ")
            .and_then(|at| stat[at + 2..].chars().next())
            .unwrap_or('?');
        let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        let kernel_thread = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.is_empty());
        if !kernel_thread || state == 'D' {
            eprintln!("  {pid:>5} {state} {name} {wchan}");
        }
    }
    // Stacks of all blocked tasks, where the kernel was built with the magic key.
    let _ = fs::write("/proc/sysrq-trigger", "w");
}
