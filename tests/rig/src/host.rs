//! Running on the host's own kernel.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::error::{Context as _, Error};
use crate::guest::{End, Guest, OUTPUT_LOG, Outcome, Results};
use crate::init::kernel_release;
use crate::launch::{Group, Relay, pipe, read_lines};
use crate::protocol::Order;

pub(crate) fn run(mut guest: Guest<'_>, order: &Order, results: Results) -> Result<Outcome, Error> {
    prepare(order)?;
    let output_path = results.path().join(OUTPUT_LOG);
    let log = File::create(&output_path).path_context("create", &output_path)?;
    let (output, output_end) = pipe()?;
    let output_too = output_end
        .try_clone()
        .context(|| "cannot create a pipe".into())?;

    let started = Instant::now();
    let mut command = Command::new(&order.program);
    command
        .args(&order.args)
        .env_clear()
        .envs(order.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&order.cwd)
        .stdin(Stdio::null())
        .stdout(output_end)
        .stderr(output_too)
        .process_group(0);
    let mut child = Group(
        command
            .spawn()
            .context(|| format!("cannot run {}", order.program.display()))?,
    );
    drop(command);

    let mut on_line = guest
        .on_line
        .take()
        .unwrap_or_else(|| Box::new(|_: &str| {}));
    let mut relay = Relay {
        on_line: &mut *on_line,
        log,
    };
    let lines = read_lines(output)?;
    let deadline = started + guest.timeout;
    let never = Path::new("");
    let timed_out = relay.until_the_end(&mut child, &lines, deadline, never)?;
    child.kill();
    relay.rest(&lines);

    let status = child
        .0
        .wait()
        .context(|| "cannot wait for the program".into())?;
    let end = match status.code() {
        _ if timed_out => End::TimedOut,
        Some(code) => End::Exited(code),
        None => End::Signaled(std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)),
    };
    Ok(Outcome {
        kernel_release: Some(kernel_release()),
        duration: started.elapsed(),
        kernel_complaints: Vec::new(),
        results: results.after(&end),
        end,
    })
}

/// Loads the modules, and makes sure that LIO is there.
fn prepare(order: &Order) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::missing(
            "root",
            "run as root, or choose another kernel",
        ));
    }
    for module in &order.modules {
        // Built in, or absent: what matters is looked at below.
        let _ = Command::new("modprobe")
            .args(["-q", module])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    if !Path::new("/sys/module/target_core_user").exists() {
        return Err(Error::missing(
            format!(
                "target_core_user in this machine's kernel ({})",
                kernel_release()
            ),
            "choose another kernel, for example TCMU_RIG_KERNEL=uml",
        ));
    }
    if !Path::new("/sys/kernel/config/target").exists() {
        return Err(Error::missing(
            "configfs on /sys/kernel/config",
            "mount -t configfs configfs /sys/kernel/config",
        ));
    }
    Ok(())
}
