//! The doctor: healthy machines are found healthy, and each fault is found and named.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};

use crate::fake::Machine;
use crate::{BackstoreSpec, Finding, Severity};

/// A machine with our daemon as process 7, and a LUN that it serves as a disk.
fn healthy() -> Machine {
    let machine = Machine::new();
    for (path, text) in [
        ("proc/sys/kernel/osrelease", "6.12.3-amd64\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        (
            "lib/modules/6.12.3-amd64/modules.dep",
            "kernel/drivers/target/loopback/tcm_loop.ko.xz: a.ko\n\
             kernel/drivers/target/iscsi/iscsi_target_mod.ko: b.ko\n",
        ),
        ("run/tcmu-runner/tcmu-runner.pid", "7\n"),
        ("run/tcmu-runner/handlers", "file\nram\n"),
        (
            "proc/7/limits",
            "Limit Soft Hard Units\nMax open files            65536    65536    files\n",
        ),
        (
            "sys/module/target_core_user/parameters/global_max_data_area_mb",
            "2048\n",
        ),
        ("sys/class/uio/uio0/name", "tcm-user/0/disk0/file//x\n"),
        ("dev/uio0", ""),
    ] {
        machine.write(path, text);
    }
    let meta = fs::metadata(&machine.roots.pid_file).expect("the pid file");
    let (major, minor) = (major(meta.dev()), minor(meta.dev()));
    let lock = format!(
        "1: FLOCK ADVISORY WRITE 7 {major:02x}:{minor:02x}:{} 0 EOF\n",
        meta.ino()
    );
    machine.write("proc/locks", &lock);
    fs::create_dir_all(machine.roots.proc.join("7/fd")).expect("a folder");
    std::os::unix::fs::symlink(
        machine.roots.dev.join("uio0"),
        machine.roots.proc.join("7/fd/9"),
    )
    .expect("linked");
    let disk = BackstoreSpec::new("disk0", "file", "/x").size(1 << 20);
    machine.tree().create(&disk.loopback()).expect("created");
    for (file, text) in [
        ("scheduler", "[none] mq-deadline bfq\n"),
        ("max_sectors_kb", "1280\n"),
        ("max_hw_sectors_kb", "4096\n"),
        ("write_cache", "write back\n"),
    ] {
        machine.write(format!("sys/class/block/sda/queue/{file}"), text);
    }
    machine
}

fn bad(machine: &Machine) -> Vec<Finding> {
    let mut findings = machine.tree().examine().expect("examined");
    findings.retain(|finding| finding.severity != Severity::Ok);
    findings
}

#[test]
fn a_healthy_machine_is_found_healthy() {
    let machine = healthy();
    let before = machine.kernel.count();
    assert_eq!(bad(&machine), []);
    let findings = machine.tree().examine().expect("examined");
    assert!(findings.len() > 8, "{findings:?}");
    assert!(
        findings
            .iter()
            .any(|f| f.check == "lun" && f.subject == "disk0")
    );
    assert_eq!(machine.kernel.count(), before, "it only looks");
}

#[test]
fn each_fault_is_found_and_can_be_mended() {
    let attribute =
        |name: &str| format!("sys/kernel/config/target/core/user_0/disk0/attrib/{name}");
    let action = "sys/kernel/config/target/core/user_0/disk0/action/block_dev".to_owned();
    let parameter = |name: &str| format!("sys/module/target_core_user/parameters/{name}");
    let queue = |name: &str| format!("sys/class/block/sda/queue/{name}");
    let kernel = |name: &str| format!("proc/sys/kernel/{name}");
    use Severity::{Broken, Slow};
    for (path, text, check, severity) in [
        (kernel("osrelease"), "5.10.0-8", "kernel", Broken),
        (kernel("io_uring_disabled"), "1", "io_uring", Broken),
        (kernel("io_uring_disabled"), "2", "io_uring", Broken),
        (parameter("block_netlink"), "blocked", "netlink", Broken),
        (
            parameter("global_max_data_area_mb"),
            "255",
            "global_max_data_area_mb",
            Slow,
        ),
        (attribute("hw_max_sectors"), "128", "hw_max_sectors", Slow),
        (
            attribute("max_data_area_mb"),
            "16",
            "max_data_area_mb",
            Slow,
        ),
        (attribute("cmd_time_out"), "30", "cmd_time_out", Slow),
        (attribute("qfull_time_out"), "0", "qfull_time_out", Slow),
        (
            attribute("emulate_write_cache"),
            "0",
            "emulate_write_cache",
            Slow,
        ),
        (action, "blocked", "block_dev", Broken),
        (
            queue("scheduler"),
            "none mq-deadline [bfq]",
            "scheduler",
            Slow,
        ),
        (queue("max_sectors_kb"), "128", "max_sectors_kb", Slow),
        (queue("write_cache"), "write through", "write_cache", Broken),
        (
            "proc/8/comm".to_owned(),
            "tcmu-runner",
            "other daemons",
            Slow,
        ),
        (
            "run/tcmu-runner/in-flight/0.gone".to_owned(),
            "",
            "in-flight table",
            Slow,
        ),
        (
            "proc/7/limits".to_owned(),
            "Max open files 256 256 files",
            "limits",
            Slow,
        ),
        (
            "etc/dbus-1/system.d/tcmu-runner.conf".to_owned(),
            r#"<policy context="default"><allow send_interface="org.kernel.TCMUService1"/></policy>"#,
            "dbus policy",
            Slow,
        ),
        (
            "boot/config-6.12.3-amd64".to_owned(),
            "CONFIG_UIO=m\nCONFIG_INOTIFY_USER=y\nCONFIG_SECCOMP_FILTER=y\n\
             # CONFIG_CGROUP_BPF is not set\nCONFIG_CRYPTO_MD5=m",
            "kernel option",
            Slow,
        ),
        (
            "lib/modules/6.12.3-amd64/config".to_owned(),
            "CONFIG_UIO_X=y\nCONFIG_INOTIFY_USER=y\n\
             CONFIG_SECCOMP_FILTER=y\nCONFIG_CGROUP_BPF=y\nCONFIG_CRYPTO_MD5=y",
            "kernel option",
            Broken,
        ),
    ] {
        let machine = healthy();
        machine.write(&path, &format!("{text}\n"));
        let found = bad(&machine);
        let [finding] = &found[..] else {
            panic!("{path} {text}: {found:#?}");
        };
        assert_eq!(
            (finding.check, finding.severity),
            (check, severity),
            "{finding:?}"
        );
        assert!(
            !finding.why.is_empty() && !finding.mend.is_empty(),
            "{finding:?}"
        );
    }
}

#[test]
fn a_kernel_without_io_uring_is_not_taken_for_an_old_one() {
    let machine = healthy();
    let switch = machine.roots.proc.join("sys/kernel/io_uring_disabled");
    fs::remove_file(switch).expect("removed");
    assert_eq!(bad(&machine)[0].check, "io_uring");
    machine.write("proc/sys/kernel/osrelease", "6.5.0-1\n");
    assert_eq!(bad(&machine), []);
}

#[test]
fn a_daemon_that_is_gone_is_missed() {
    let machine = healthy();
    fs::remove_dir_all(machine.roots.proc.join("7")).expect("removed");
    machine.write("proc/locks", "");
    let checks: Vec<_> = bad(&machine)
        .iter()
        .map(|f| (f.check, f.severity))
        .collect();
    assert_eq!(
        checks,
        [
            ("daemon", Severity::Broken),
            ("pid file", Severity::Slow),
            ("service", Severity::Broken),
        ]
    );
}

#[test]
fn another_daemon_is_not_taken_for_ours() {
    let machine = healthy();
    fs::remove_file(&machine.roots.pid_file).expect("removed");
    let found = bad(&machine);
    assert_eq!(
        (found[0].check, found[0].severity),
        ("daemon", Severity::Broken)
    );
    assert!(found[0].what.contains("process 7"), "{found:?}");
}

#[test]
fn a_lun_that_nobody_serves_is_named() {
    let machine = healthy();
    fs::remove_file(machine.roots.proc.join("7/fd/9")).expect("closed");
    let found = bad(&machine);
    assert_eq!((found[0].check, &*found[0].subject), ("service", "disk0"));
    machine.write("run/tcmu-runner/handlers", "ram\n");
    assert!(bad(&machine)[0].why.contains("no handler \"file\""));
}

#[test]
fn missing_modules_are_named() {
    let machine = healthy();
    machine.write("lib/modules/6.12.3-amd64/modules.dep", "tcm_loops.ko:\n");
    // The loopback fabric is in use; iSCSI is not there, and not needed.
    assert_eq!(bad(&machine), []);
    let machine = Machine::new();
    fs::remove_dir_all(machine.roots.sysfs.join("module")).expect("removed");
    machine.write("proc/sys/kernel/osrelease", "6.12.3-amd64\n");
    let broken: Vec<_> = bad(&machine).iter().map(|f| f.check).collect();
    assert!(
        broken.contains(&"module") && broken.contains(&"fabrics"),
        "{broken:?}"
    );
}
