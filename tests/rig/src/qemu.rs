//! qemu without hardware acceleration: a whole machine, every instruction about equally slow.

use std::process::Command;

use crate::error::{Context as _, Error};
use crate::guest::Guest;
use crate::kernel::Bootable;
use crate::launch::{Folders, Machine};
use crate::protocol::{CONTROL_VAR, SHARE_TYPE_VAR};

/// Without the fast string instructions: TCG executes them byte by byte, so that the kernel's copies,
/// which use them where the CPU has them, would cost many times what they cost beside other
/// instructions on a real machine.
const CPU: &str = "max,-erms,-fsrm";

/// The file descriptor that the second serial line writes to.
const OUTPUT_FD: i32 = 3;
/// Mount tags of the shares.
const CONTROL_TAG: &str = "control";
const RESULTS_TAG: &str = "results";

pub(crate) fn machine(
    guest: &Guest<'_>,
    bootable: &Bootable,
    folders: &Folders,
) -> Result<Machine, Error> {
    let init = std::env::current_exe().context(|| "cannot find this executable".into())?;
    let initramfs = bootable
        .initramfs
        .as_deref()
        .ok_or_else(|| Error::missing("the initramfs", "cargo xtask kernel --which qemu"))?;
    let mut words = vec![
        "console=ttyS0".to_owned(),
        // With -no-reboot a panic ends qemu.
        "panic=-1".to_owned(),
        format!("TCMU_RIG_INIT={}", init.display()),
        format!("{CONTROL_VAR}={CONTROL_TAG}"),
        format!("{SHARE_TYPE_VAR}=9p"),
    ];
    words.extend(guest.kernel_args.iter().cloned());

    let mut command = qemu(bootable);
    command
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-smp", &guest.cpus.max(1).to_string()])
        .args(["-m", &guest.memory_mb.to_string()])
        .arg("-kernel")
        .arg(&bootable.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &words.join(" ")])
        .args([
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ])
        .arg("-chardev")
        .arg(format!("file,id=output,path=/proc/self/fd/{OUTPUT_FD}"))
        .args(["-serial", "chardev:output"]);
    let shares = [
        ("host", "/".to_owned(), ",readonly=on"),
        (CONTROL_TAG, folders.control.display().to_string(), ""),
        (RESULTS_TAG, folders.results.display().to_string(), ""),
    ];
    for (tag, path, options) in shares {
        // A comma in a value is written twice.
        let path = path.replace(',', ",,");
        command.arg("-virtfs").arg(format!(
            "local,mount_tag={tag},path={path},security_model=none,multidevs=remap{options}"
        ));
    }
    Ok(Machine {
        command,
        output_fd: OUTPUT_FD,
        output_tty: "/dev/ttyS1",
        results_source: RESULTS_TAG.to_owned(),
    })
}

/// The installed qemu, or the one in the cache with its own libraries and firmware.
fn qemu(bootable: &Bootable) -> Command {
    let Some(root) = &bootable.qemu else {
        return Command::new("qemu-system-x86_64");
    };
    let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
    command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
    command.env(
        "QEMU_MODULE_DIR",
        root.join("usr/lib/x86_64-linux-gnu/qemu"),
    );
    for dir in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(root.join(dir));
    }
    command
}
