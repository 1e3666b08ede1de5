//! What the other tests take for granted of the guest itself.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::{TestResult, guest_test, sh};

guest_test!(kernel_has_tcmu);
fn kernel_has_tcmu() -> TestResult {
    let module = Path::new("/sys/module/target_core_user");
    ensure!(module.is_dir(), "{} is not there", module.display());
    ensure!(Path::new("/sys/class/uio").is_dir(), "no UIO class");
    Ok(())
}

guest_test!(configfs_has_the_target);
fn configfs_has_the_target() -> TestResult {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mounted = mounts
        .lines()
        .any(|l| l.starts_with("configfs /sys/kernel/config "));
    ensure!(mounted, "configfs is not mounted:\n{mounts}");
    let core = Path::new("/sys/kernel/config/target/core");
    ensure!(core.is_dir(), "{} is not there", core.display());
    Ok(())
}

guest_test!(a_user_backstore_can_be_made);
fn a_user_backstore_can_be_made() -> TestResult {
    let hba = Path::new("/sys/kernel/config/target/core/user_0");
    fs::create_dir_all(hba.join("probe"))?;
    let info = fs::read_to_string(hba.join("probe/info"))?;
    ensure!(
        info.contains("TCM_USER") || info.contains("Status: DEACTIVATED"),
        "{info}"
    );
    fs::remove_dir(hba.join("probe"))?;
    fs::remove_dir(hba)?;
    Ok(())
}

guest_test!(fabrics_are_there);
fn fabrics_are_there() -> TestResult {
    for fabric in ["loopback", "iscsi"] {
        let dir = Path::new("/sys/kernel/config/target").join(fabric);
        // Making the folder asks the kernel for the fabric's module.
        fs::create_dir_all(&dir).with_context(|| format!("no {fabric} fabric"))?;
    }
    Ok(())
}

guest_test!(loopback_network_is_up);
fn loopback_network_is_up() -> TestResult {
    let listener = TcpListener::bind("127.0.0.1:3260")?;
    TcpStream::connect(listener.local_addr()?)?;
    Ok(())
}

guest_test!(run_is_memory);
fn run_is_memory() -> TestResult {
    let kind = sh::run(&["stat", "--file-system", "--format=%T", "/run"])?;
    ensure!(kind.trim() == "tmpfs", "/run is {kind}");
    Ok(())
}
