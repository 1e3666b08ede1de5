//! User-mode Linux: the kernel as a process.

use std::process::Command;

use crate::error::{Context as _, Error};
use crate::guest::Guest;
use crate::kernel::{Bootable, Kernel};
use crate::launch::{Folders, Machine};
use crate::protocol::{CONTROL_VAR, SHARE_TYPE_VAR};

/// The file descriptor that UML's second console writes to.
const OUTPUT_FD: i32 = 3;

pub(crate) fn machine(
    guest: &Guest<'_>,
    bootable: &Bootable,
    folders: &Folders,
) -> Result<Machine, Error> {
    let init = std::env::current_exe().context(|| "cannot find this executable".into())?;
    let control = folders.control.display().to_string();
    let run = folders.run.display().to_string();
    if [&init.display().to_string(), &control]
        .iter()
        .any(|p| p.contains(char::is_whitespace))
    {
        return Err(Error::Usage(format!(
            "the kernel's command line cannot hold a space: {} or {control}",
            init.display()
        )));
    }

    // A panicking UML must not leave its memory as a core file.
    let mut command = Command::new("prlimit");
    command.arg("--core=0").arg(&bootable.image);
    command
        .arg(format!("mem={}M", guest.memory_mb))
        .args(["root=/dev/root", "rootfstype=hostfs", "ro"])
        .arg(format!("init={}", init.display()))
        .arg(format!("{CONTROL_VAR}={control}"))
        .arg(format!("{SHARE_TYPE_VAR}=hostfs"))
        // Its own folder for its socket and pid, so that guests do not meet.
        .args([format!("uml_dir={run}"), "umid=uml".into()])
        .args(["con=null", "con0=null,fd:1"])
        .arg(format!("con1=null,fd:{OUTPUT_FD}"));
    if bootable.kernel == Kernel::UmlBuilt {
        // Far cheaper system calls than ptrace's, and what several CPUs need.
        command
            .arg("seccomp=on")
            .arg(format!("ncpus={}", guest.cpus.max(1)));
        if guest.cpus > 1 {
            command.arg("bind_cpus"); // kernel/patches/bind-cpus.patch
        }
    }
    command.args(&guest.kernel_args);
    Ok(Machine {
        command,
        output_fd: OUTPUT_FD,
        output_tty: "/dev/tty1",
        results_source: folders.results.display().to_string(),
    })
}
