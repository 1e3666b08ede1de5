//! The service on the system bus.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::bus::{self, Bus, NAME, ROOT, as_nobody, await_name, call};
use tcmu_guest_tests::daemon::{self, Daemon, program};
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl};
use tcmu_guest_tests::{TestResult, guest_test, sh};
use zbus::{OwnedObjectPath, OwnedVariant};

const HANDLER: &str = "org.kernel.TCMUService1";
const MANAGER: &str = "org.kernel.TCMUService1.HandlerManager1";
const RUNNER: &str = "org.kernel.TCMUService1.Runner1";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>>;
type Record = HashMap<String, OwnedVariant>;

fn objects() -> anyhow::Result<Objects> {
    call(ROOT, OBJECT_MANAGER, "GetManagedObjects", &())
}

fn check(subtype: &str, config: &str) -> anyhow::Result<(bool, String)> {
    call(
        &format!("{ROOT}/{subtype}"),
        HANDLER,
        "CheckConfig",
        &config,
    )
}

fn text(value: &OwnedVariant) -> String {
    String::try_from(value.clone()).unwrap_or_default()
}

guest_test!(handlers_are_found);
fn handlers_are_found() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let objects = objects()?;
    for subtype in [
        "delay", "file", "nbd", "null", "qcow", "ram", "rbd", "verify",
    ] {
        let path = OwnedObjectPath::try_from(format!("{ROOT}/{subtype}"))?;
        let interfaces = objects.get(&path).with_context(|| format!("no {path}"))?;
        ensure!(
            interfaces.keys().eq([HANDLER]),
            "{path} has other interfaces: {interfaces:?}"
        );
        let description = text(&interfaces[HANDLER]["ConfigDesc"]);
        ensure!(description.contains(subtype), "{path}: {description}");
    }
    // targetcli takes every object for a handler.
    ensure!(
        !objects.keys().any(|path| path.ends_with('1')),
        "there are objects that are no handlers: {objects:?}"
    );
    daemon.stop()
}

guest_test!(a_check_says_what_is_wrong);
fn a_check_says_what_is_wrong() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let image = image("checked", MIB)?;
    fs::create_dir("/run/checked")?;
    let good = check("file", &format!("file/{image}"))?;
    ensure!(good.0, "a good image is refused: {good:?}");
    ensure!(check("ram", "ram/")?.0);
    let long = format!("file//run/{}", "x".repeat(1 << 20));
    for (subtype, config, reason) in [
        ("file", "file//run/none.img", "does not exist"),
        ("file", "file//run/checked", "/run/checked"),
        ("file", "file/relative.img", "relative.img"),
        ("file", "file//dev/null", "character device"),
        ("file", "file//run/checked.img;nosuch=1", "nosuch"),
        ("file", "file//run/checked.img;direct", "key=value"),
        ("file", "ram/x", "file/"),
        ("file", "file//run/a,b.img", "comma"),
        ("file", "", "file/"),
        ("file", &long, "255"),
        ("ram", "ram/;readonly=perhaps", "perhaps"),
        ("rbd", "rbd/pool", "POOL/IMAGE"),
        ("rbd", "rbd/pool/image;osd_op_timeot=3", "osd_op_timeot"),
        (
            "rbd",
            "rbd/pool/image;conf=/none/ceph.conf",
            "/none/ceph.conf",
        ),
    ] {
        let (ok, why) = check(subtype, config)?;
        ensure!(!ok, "{config:.50} is accepted");
        ensure!(why.contains(reason), "{config:.50}: {why}");
    }
    ensure!(check("nosuch", "nosuch/x").is_err());
    daemon.stop()
}

guest_test!(the_policy_keeps_others_out);
fn the_policy_keeps_others_out() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    refuses_nobody("AccessDenied")?;
    let names = [NAME.to_owned(), format!("{MANAGER}.evil")];
    for name in &names {
        let request = [
            "dbus-send",
            "--system",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus.RequestName",
            &format!("string:{name}"),
            "uint32:0",
        ];
        let (succeeded, said) = as_nobody(&request)?;
        ensure!(
            !succeeded && said.contains("AccessDenied"),
            "{name}: {said}"
        );
    }
    daemon.stop()
}

guest_test!(without_a_policy_the_daemon_keeps_others_out);
fn without_a_policy_the_daemon_keeps_others_out() -> TestResult {
    let _bus = Bus::start_open()?;
    let daemon = Daemon::start_on_bus()?;
    refuses_nobody("only root")?;
    ensure!(check("ram", "ram/")?.0, "root is refused");
    daemon.stop()
}

/// Every method must be refused to a user without rights, with these words.
fn refuses_nobody(words: &str) -> TestResult {
    let file = format!("{ROOT}/file");
    let manager = format!("{ROOT}/HandlerManager1");
    let runner = format!("{ROOT}/Runner1");
    for (path, method, arguments) in [
        (
            ROOT,
            "org.freedesktop.DBus.ObjectManager.GetManagedObjects",
            &[][..],
        ),
        (
            &file,
            "org.kernel.TCMUService1.CheckConfig",
            &["string:file//etc/shadow"],
        ),
        (
            &file,
            "org.kernel.TCMUService1.ChangeMedium",
            &["string:x", "uint64:1", "string:file//x"],
        ),
        (
            &manager,
            "org.kernel.TCMUService1.HandlerManager1.RegisterHandler",
            &["string:evil", "string:"],
        ),
        (
            &manager,
            "org.kernel.TCMUService1.HandlerManager1.UnregisterHandler",
            &["string:evil"],
        ),
        (&runner, "org.kernel.TCMUService1.Runner1.ListLuns", &[]),
        (
            &runner,
            "org.kernel.TCMUService1.Runner1.ListEvents",
            &["uint64:0"],
        ),
        (&runner, "org.kernel.TCMUService1.Runner1.Status", &[]),
        (
            &runner,
            "org.kernel.TCMUService1.Runner1.Stats",
            &["array:uint32:1"],
        ),
        (
            &runner,
            "org.kernel.TCMUService1.Runner1.SetLogLevel",
            &["string:trace"],
        ),
        (
            &runner,
            "org.kernel.TCMUService1.Runner1.Drain",
            &["array:uint32:1", "uint32:1"],
        ),
    ] {
        let destination = format!("--dest={NAME}");
        let send = [
            "dbus-send",
            "--system",
            "--print-reply",
            &destination,
            path,
            method,
        ];
        let (succeeded, said) = as_nobody(&[&send[..], arguments].concat())?;
        ensure!(!succeeded && said.contains(words), "{method}: {said}");
    }
    Ok(())
}

guest_test!(the_bus_may_come_and_go);
fn the_bus_may_come_and_go() -> TestResult {
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("steady", 16 * MIB)?;
    disk.write(0, 1)?;
    for value in 1..3 {
        let bus = Bus::start()?;
        await_name(NAME, true)?;
        ensure!(objects()?.len() >= 3);
        ensure!(disk.holds(0, value)?);
        disk.write(0, value + 1)?;
        drop(bus);
    }
    ensure!(disk.holds(0, 3)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_call_starts_the_daemon);
fn a_call_starts_the_daemon() -> TestResult {
    let runner = program(daemon::RUNNER)?;
    let _bus = Bus::start_activating(&runner)?;
    await_name(NAME, false)?;
    ensure!(check("ram", "ram/")?.0, "the handler is not there");
    let pid = bus::owner(NAME)?;
    let ended = || !Path::new(&format!("/proc/{pid}")).exists();
    let checked = activated_by(pid, &runner);
    sh::run(&["kill", &pid.to_string()])?;
    for _ in 0..3000 {
        if ended() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(ended(), "the daemon that the bus started does not end");
    checked
}

/// Whether the process is the daemon, and serves.
fn activated_by(pid: u32, runner: &Path) -> TestResult {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(
        program == fs::canonicalize(runner)?,
        "it is {}",
        program.display()
    );
    let disk = Disk::of_image("activated", 16 * MIB)?;
    disk.write(0, 9)?;
    ensure!(disk.holds(0, 9)?);
    disk.delete()
}

guest_test!(callers_that_vanish_do_no_harm);
fn callers_that_vanish_do_no_harm() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    for _ in 0..50 {
        let connection = bus::connect()?;
        let call = zbus::Message::method_call(format!("{ROOT}/file"), "CheckConfig")
            .destination(NAME)
            .interface(HANDLER)
            .build(&"file//run/none.img")?;
        zbus::block_on(connection.send(&call))?;
        // Gone before the answer.
        drop(connection);
    }
    ensure!(check("ram", "ram/")?.0);
    daemon.stop()
}

/// A handler in another process, as far as the bus can tell.
struct External {
    connection: zbus::Connection,
}

struct ExternalObject {
    silent: bool,
}

#[zbus::interface(name = "org.kernel.TCMUService1")]
impl ExternalObject {
    async fn check_config(&self, config: &str) -> (bool, String) {
        if self.silent {
            std::future::pending::<()>().await;
        }
        (config == "ext/good", format!("asked for {config}"))
    }
}

impl External {
    fn start(silent: bool) -> anyhow::Result<Self> {
        let connection = zbus::block_on(
            zbus::connection::Builder::system()
                .serve_at(
                    format!("{ROOT}/HandlerManager1/ext"),
                    ExternalObject { silent },
                )
                .name(format!("{MANAGER}.ext"))
                .build(),
        )?;
        Ok(Self { connection })
    }

    fn register(&self) -> anyhow::Result<(bool, String)> {
        let answer = zbus::block_on(self.connection.call_method(
            Some(NAME),
            format!("{ROOT}/HandlerManager1"),
            Some(MANAGER),
            "RegisterHandler",
            &("ext", "ext/anything"),
        ))?;
        Ok(answer.body().deserialize()?)
    }
}

fn register(subtype: &str) -> anyhow::Result<(bool, String)> {
    let path = format!("{ROOT}/HandlerManager1");
    call(&path, MANAGER, "RegisterHandler", &(subtype, "description"))
}

fn has_ext() -> anyhow::Result<bool> {
    Ok(objects()?.keys().any(|path| path.ends_with("/ext")))
}

fn await_ext_gone() -> TestResult {
    for _ in 0..1000 {
        if !has_ext()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the handler of a process that is gone is still offered")
}

guest_test!(a_handler_in_another_process);
fn a_handler_in_another_process() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    for (subtype, reason) in [
        ("ext", "own it"),
        ("file", "of its own"),
        ("HandlerManager1", "another object"),
        ("a/b", "letters"),
    ] {
        let (registered, why) = register(subtype)?;
        ensure!(!registered && why.contains(reason), "{subtype}: {why}");
    }

    let external = External::start(false)?;
    ensure!(external.register()?.0, "a proper handler is refused");
    ensure!(!external.register()?.0, "the same handler twice");
    let objects = objects()?;
    let path = OwnedObjectPath::try_from(format!("{ROOT}/ext"))?;
    let interfaces = objects.get(&path).context("its object is not there")?;
    ensure!(text(&interfaces[HANDLER]["ConfigDesc"]) == "ext/anything");
    ensure!(
        check("ext", "ext/good")?.0,
        "its answer does not come through"
    );
    let refused = check("ext", "ext/bad")?;
    ensure!(
        refused == (false, "asked for ext/bad".to_owned()),
        "{refused:?}"
    );
    ensure!(fs::read_to_string("/run/tcmu-runner/handlers")?.contains("ext\n"));

    drop(external);
    await_ext_gone()?;
    ensure!(!fs::read_to_string("/run/tcmu-runner/handlers")?.contains("ext\n"));

    let external = External::start(false)?;
    ensure!(external.register()?.0, "it may come back");
    let path = format!("{ROOT}/HandlerManager1");
    let (gone, _): (bool, String) = call(&path, MANAGER, "UnregisterHandler", &"ext")?;
    ensure!(gone && !has_ext()?);
    daemon.stop()
}

guest_test!(a_handler_that_does_not_answer);
fn a_handler_that_does_not_answer() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let external = External::start(true)?;
    ensure!(external.register()?.0);
    let waiting = thread::spawn(|| check("ext", "ext/good"));
    // Others do not wait for it.
    ensure!(check("ram", "ram/")?.0);
    ensure!(has_ext()?);
    let (ok, why) = waiting.join().ok().context("the caller panicked")??;
    ensure!(!ok && why.contains("did not answer"), "{why}");
    daemon.stop()
}

guest_test!(the_daemon_shows_its_luns_and_events);
fn the_daemon_shows_its_luns_and_events() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let runner = format!("{ROOT}/Runner1");
    let luns = || call::<_, Vec<Record>>(&runner, RUNNER, "ListLuns", &());
    let events = |after: u64| call::<_, (Vec<Record>, u64)>(&runner, RUNNER, "ListEvents", &after);
    ensure!(luns()?.is_empty());
    let disk = Disk::of_image("shown", 16 * MIB)?;
    disk.write(0, 5)?;
    let shown = luns()?;
    let [lun] = &shown[..] else {
        anyhow::bail!("not one LUN: {shown:?}");
    };
    for (key, value) in [
        ("name", "shown"),
        ("handler", "file"),
        ("config", "/run/shown.img"),
        ("state", "serving"),
        ("reason", ""),
    ] {
        ensure!(text(&lun[key]) == value, "{key} is {:?}", lun[key]);
    }
    ensure!(u64::try_from(lun["size"].clone())? == 16 * MIB);
    ensure!(u32::try_from(lun["block_size"].clone())? == 512);
    ensure!(
        u64::try_from(lun["completed"].clone())? > 0,
        "no commands counted"
    );

    tcmuctl(&["resize", "shown", "32M"])?;
    ensure!(u64::try_from(luns()?[0]["size"].clone())? == 32 * MIB);
    disk.delete()?;
    ensure!(luns()?.is_empty(), "a LUN that is gone is shown");

    let (all, latest) = events(0)?;
    let kinds: Vec<String> = all.iter().map(|event| text(&event["kind"])).collect();
    ensure!(kinds == ["serving", "resized", "closed"], "{kinds:?}");
    ensure!(all.iter().all(|event| text(&event["lun"]) == "shown"));
    ensure!(latest == 3 && events(latest)?.0.is_empty());
    daemon.stop()
}
