//! Debian's targetcli, unmodified, from the first LUN to the last.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tcmu_guest_tests::bus::{Bus, NAME, await_name};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::initiator::{PORTAL, Session};
use tcmu_guest_tests::lun::{MIB, holds, image, leftovers, tcmuctl, write};
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus, sh};

/// A slow emulated CPU runs some forty Python programs.
const LIMIT: Duration = Duration::from_secs(600);

const NAA: &str = "naa.5001405000000001";
const IQN: &str = "iqn.2026-11.com.example:targetcli";
const CONFIG: &str = "/etc/rtslib-fb-target/saveconfig.json";
/// What targetcli says where something went wrong and it goes on all the same.
const COMPLAINTS: [&str; 4] = ["error", "skipped", "cannot", "failed"];

/// Runs one command of targetcli, which must find nothing to complain of.
fn targetcli(words: &[&str]) -> anyhow::Result<String> {
    let said = sh::run(&[&["targetcli"], words].concat())?;
    let lower = said.to_lowercase();
    ensure!(
        !COMPLAINTS.iter().any(|complaint| lower.contains(complaint)),
        "targetcli {}: {said}",
        words.join(" ")
    );
    Ok(said)
}

/// A backstore in targetcli's tree.
struct Backstore {
    handler: &'static str,
    /// What targetcli calls the cfgstring.
    config: String,
    /// That of another medium.
    other: Option<String>,
    /// Whether data survive the end of the LUN.
    lasting: bool,
    /// Whether data are kept at all.
    keeps: bool,
}

impl Backstore {
    fn folder(&self) -> String {
        format!("/backstores/user:{}", self.handler)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.folder(), self.name())
    }

    fn name(&self) -> String {
        format!("{}_disk", self.handler)
    }

    fn create(&self) -> TestResult {
        let (name, folder) = (format!("name={}", self.name()), self.folder());
        let config = format!("cfgstring={}", self.config);
        targetcli(&[&folder, "create", &name, "size=32M", &config])?;
        let listed = targetcli(&[&folder, "ls"])?;
        ensure!(
            listed.contains(&self.name()) && listed.contains("(32.0MiB)"),
            "{listed}"
        );
        Ok(())
    }

    /// Writes to the disk and reads what was written.
    fn use_disk(&self, disk: &Path, value: u8) -> TestResult {
        write(disk, MIB, value)?;
        let expected = if self.keeps { value } else { 0 };
        ensure!(
            holds(disk, MIB, expected)?,
            "{} does not hold what was written",
            disk.display()
        );
        Ok(())
    }

    /// The whole life of a LUN.
    fn live(&self) -> TestResult {
        let _bus = Bus::start()?;
        let daemon = Daemon::start_on_bus()?;
        await_name(NAME, true)?;
        self.create()?;

        targetcli(&["/loopback", "create", NAA])?;
        let luns = format!("/loopback/{NAA}/luns");
        targetcli(&[&luns, "create", &self.path()])?;
        let disk = await_disk(32 * MIB)?;
        self.use_disk(&disk, 0x11)?;

        self.export_iscsi()?;
        self.use_session(&disk)?;
        self.resize(&disk)?;
        self.change_medium(&disk)?;

        targetcli(&["saveconfig"])?;
        let saved = fs::read_to_string(CONFIG)?;
        ensure!(saved.contains(&self.config), "{saved}");

        // Our own tool restores the same from it.
        targetcli(&["clearconfig", "confirm=True"])?;
        let said = tcmuctl(&["restore", CONFIG])?;
        ensure!(said.contains(" 0 different, 0 failed, 0 skipped"), "{said}");
        targetcli(&["saveconfig"])?;
        ensure!(
            without_aliases(&fs::read_to_string(CONFIG)?)? == without_aliases(&saved)?,
            "what tcmuctl restored is not what was saved"
        );
        fs::write(CONFIG, &saved)?;

        // As at a start of the machine: nothing is configured, and the daemon is new.
        targetcli(&["clearconfig", "confirm=True"])?;
        ensure!(
            leftovers()? == [""; 0],
            "left in configfs: {:?}",
            leftovers()?
        );
        daemon.stop()?;
        let daemon = Daemon::start_on_bus()?;
        targetcli(&["restoreconfig"])?;
        let disk = await_disk(48 * MIB)?;
        if self.lasting {
            ensure!(holds(&disk, MIB, 0x11)?, "the data did not survive");
        }
        self.use_disk(&disk, 0x22)?;
        targetcli(&["saveconfig"])?;
        ensure!(
            fs::read_to_string(CONFIG)? == saved,
            "what was restored is not what was saved"
        );

        // Over what is there, and with another daemon.
        daemon.stop()?;
        let daemon = Daemon::start_on_bus()?;
        targetcli(&["restoreconfig", "clear_existing=True"])?;
        let disk = await_disk(48 * MIB)?;
        if self.lasting {
            ensure!(holds(&disk, MIB, 0x22)?, "the data did not survive");
        }

        targetcli(&[&luns, "delete", "0"])?;
        targetcli(&["/loopback", "delete", NAA])?;
        targetcli(&["/iscsi", "delete", IQN])?;
        targetcli(&[&self.folder(), "delete", &self.name()])?;
        ensure!(
            leftovers()? == [""; 0],
            "left in configfs: {:?}",
            leftovers()?
        );
        daemon.stop()
    }

    /// Exports the LUN over iSCSI as well, and looks at it from there.
    fn export_iscsi(&self) -> TestResult {
        targetcli(&["/iscsi", "create", IQN])?;
        let group = format!("/iscsi/{IQN}/tpg1");
        targetcli(&[&format!("{group}/luns"), "create", &self.path()])?;
        targetcli(&[
            &group,
            "set",
            "attribute",
            "generate_node_acls=1",
            "demo_mode_write_protect=0",
            "authentication=0",
            "cache_dynamic_acls=1",
        ])?;
        let url = format!("iscsi://{PORTAL}/{IQN}/0");
        let inquiry = sh::run(&["iscsi-inq", &url])?;
        ensure!(inquiry.contains("DIRECT_ACCESS"), "no disk");
        let capacity = sh::run(&["iscsi-readcapacity16", &url])?;
        ensure!(capacity.contains("Total size:33554432"), "not the size");
        Ok(())
    }

    /// Reads and writes as an initiator of the iSCSI target, what the loopback disk sees as well.
    fn use_session(&self, disk: &Path) -> TestResult {
        let session = Session::login(IQN)?;
        write(session.disk(), MIB, 0x33)?;
        if self.keeps {
            ensure!(holds(disk, MIB, 0x33)?, "the two paths differ");
        }
        self.use_disk(disk, 0x11)?;
        session.logout()
    }

    /// Changes to another medium of the same size and back.
    fn change_medium(&self, disk: &Path) -> TestResult {
        let Some(other) = &self.other else {
            return Ok(());
        };
        let to = |config: &str| {
            let (name, config) = (
                format!("name={}", self.name()),
                format!("cfgstring={config}"),
            );
            targetcli(&[&self.folder(), "changemedium", &name, "size=48M", &config])
        };
        to(other)?;
        ensure!(holds(disk, MIB, 0)?, "the other medium is not new");
        write(disk, MIB, 0x44)?;
        to(&self.config)?;
        ensure!(holds(disk, MIB, 0x11)?, "the medium from before is another");
        Ok(())
    }

    /// Makes the LUN larger while it is used.
    fn resize(&self, disk: &Path) -> TestResult {
        let size = format!("dev_size={}", 48 * MIB);
        targetcli(&[&self.path(), "set", "attribute", &size])?;
        let name = disk.file_name().context("a disk without a name")?;
        let rescan = Path::new("/sys/class/block")
            .join(name)
            .join("device/rescan");
        fs::write(&rescan, "1").with_context(|| rescan.display().to_string())?;
        await_disk(48 * MIB)?;
        self.use_disk(disk, 0x11)
    }
}

/// A saved configuration without the names of links, which targetcli makes up.
fn without_aliases(saved: &str) -> anyhow::Result<Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.remove("alias");
                object.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(saved)?;
    strip(&mut value);
    Ok(value)
}

/// Waits for the one disk of so many bytes.
fn await_disk(bytes: u64) -> anyhow::Result<PathBuf> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for entry in fs::read_dir("/sys/class/block")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let sectors = fs::read_to_string(entry.path().join("size")).unwrap_or_default();
            let disk = Path::new("/dev").join(&name);
            if name.starts_with("sd")
                && sectors.trim().parse() == Ok(bytes / 512)
                && File::open(&disk).is_ok()
            {
                return Ok(disk);
            }
        }
        ensure!(
            Instant::now() < deadline,
            "no disk of {bytes} bytes appears"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

guest_test!(a_file_lives, limit = LIMIT);
fn a_file_lives() -> TestResult {
    needs_several_cpus("a life in targetcli")?;
    let config = image("targetcli", 48 * MIB)?;
    Backstore {
        handler: "file",
        config,
        other: Some(image("targetcli-other", 48 * MIB)?),
        lasting: true,
        keeps: true,
    }
    .live()
}

guest_test!(a_qcow_image_lives, limit = LIMIT);
fn a_qcow_image_lives() -> TestResult {
    needs_several_cpus("a life in targetcli")?;
    let image = |name: &str, size: &str| -> anyhow::Result<String> {
        let path = format!("/run/{name}.qcow2");
        sh::run(&["qemu-img", "create", "-q", "-f", "qcow2", &path, size])?;
        Ok(path)
    };
    Backstore {
        handler: "qcow",
        config: image("targetcli", "32M")?,
        other: Some(image("targetcli-other", "48M")?),
        lasting: true,
        keeps: true,
    }
    .live()
}

guest_test!(memory_lives, limit = LIMIT);
fn memory_lives() -> TestResult {
    needs_several_cpus("a life in targetcli")?;
    Backstore {
        handler: "ram",
        config: "scratch".to_owned(),
        other: None,
        lasting: false,
        keeps: true,
    }
    .live()
}

guest_test!(nothing_lives, limit = LIMIT);
fn nothing_lives() -> TestResult {
    needs_several_cpus("a life in targetcli")?;
    Backstore {
        handler: "null",
        config: "void".to_owned(),
        other: None,
        lasting: false,
        keeps: false,
    }
    .live()
}

guest_test!(
    what_cannot_be_served_is_refused_with_the_reason,
    limit = LIMIT
);
fn what_cannot_be_served_is_refused_with_the_reason() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let image = image("small", MIB)?;
    let refused = |name: &str, config: &str, reason: &str| -> TestResult {
        let name = format!("name={name}");
        let config = format!("cfgstring={config}");
        let folder = "/backstores/user:file";
        let create = ["targetcli", folder, "create", &name, "size=32M", &config];
        let output = sh::run_any(&create)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(
            !output.status.success() && said.contains(reason),
            "{config}: {said}"
        );
        ensure!(
            leftovers()? == [""; 0],
            "left in configfs: {:?}",
            leftovers()?
        );
        Ok(())
    };
    refused("missing", "/run/none.img", "does not exist")?;
    refused("folder", "/run", "/run")?;
    refused("comma", "/run/a,b.img", "comma")?;
    // Only opening it shows this; targetcli then has no reason to tell, and the log has.
    refused("small", &image, "creation failed")?;
    ensure!(
        daemon.log().contains("less than the LUN's"),
        "the log has no reason"
    );
    daemon.stop()
}

guest_test!(both_ways_of_setting_up_see_each_other, limit = LIMIT);
fn both_ways_of_setting_up_see_each_other() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let image = image("mixed", 32 * MIB)?;
    let create = [
        "create",
        "mixed",
        "--handler",
        "file",
        "--config",
        &image,
        "--loopback",
    ];
    tcmuctl(&create)?;
    let listed = targetcli(&["/backstores/user:file", "ls"])?;
    ensure!(
        listed.contains("mixed") && listed.contains("activated"),
        "{listed}"
    );
    targetcli(&["clearconfig", "confirm=True"])?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    targetcli(&[
        "/backstores/user:ram",
        "create",
        "name=theirs",
        "size=32M",
        "cfgstring=x",
    ])?;
    ensure!(tcmuctl(&["list"])?.contains("theirs"));
    tcmuctl(&["delete", "theirs"])?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    daemon.stop()
}
