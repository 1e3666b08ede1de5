//! What is to be seen of the daemon and its LUNs: figures, metrics, logs, events.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use prometheus_parse::{Scrape, Value as Metric};
use serde_json::Value;
use tcmu_guest_tests::bus::{Bus, NAME, await_name};
use tcmu_guest_tests::daemon::{Daemon, program};
use tcmu_guest_tests::lun::{Disk, MIB, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::sg::Sg;
use tcmu_guest_tests::{TestResult, guest_test, sh};

use crate::faults::Freezer;

const CONFIG: &str = "/run/insight.conf";
const SOCKET: &str = "/run/insight.sock";
const ADDRESS: &str = "127.0.0.1:19361";

/// What `tcmuctl stats` says of a LUN.
fn stats(lun: &str) -> anyhow::Result<Value> {
    let text = tcmuctl(&["--json", "stats", lun])?;
    let mut luns: Vec<Value> = serde_json::from_str(&text)?;
    ensure!(luns.len() == 1, "not one LUN: {text}");
    Ok(luns.remove(0))
}

/// How many commands of a class there were, how many bytes they moved, and how many failed.
fn class(stats: &Value, class: &str) -> anyhow::Result<[u64; 3]> {
    let class = &stats["classes"][class];
    let figure = |name: &str| {
        class[name]
            .as_u64()
            .with_context(|| format!("no {name}: {class}"))
    };
    let times = class["times"].as_array().context("no times")?;
    let sum: u64 = times.iter().filter_map(|time| time["count"].as_u64()).sum();
    ensure!(
        sum == figure("commands")?,
        "the histogram has {sum} commands: {class}"
    );
    Ok([figure("commands")?, figure("bytes")?, figure("failed")?])
}

/// A CDB of READ(10), WRITE(10) or SYNCHRONIZE CACHE(10).
fn cdb(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// Does the same again and again until the figures show exactly what was done: the kernel may look at a
/// new disk for a while, and its commands count too. Figures that are wrong are always wrong.
fn exactly(
    lun: &str,
    mut work: impl FnMut() -> TestResult,
    expected: &[(&str, [u64; 3])],
) -> TestResult {
    let mut seen = Vec::new();
    for _ in 0..10 {
        let before = stats(lun)?;
        work()?;
        let after = stats(lun)?;
        let differences = expected.iter().map(|(name, _)| {
            let (before, after) = (class(&before, name)?, class(&after, name)?);
            Ok([0, 1, 2].map(|figure| after[figure] - before[figure]))
        });
        seen = differences.collect::<anyhow::Result<Vec<_>>>()?;
        if expected.iter().map(|(_, figures)| figures).eq(&seen) {
            return Ok(());
        }
    }
    anyhow::bail!("{expected:?} was done, and {seen:?} counted")
}

guest_test!(the_figures_are_those_of_what_was_done);
fn the_figures_are_those_of_what_was_done() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("counted", 16 * MIB)?;
    let mut sg = Sg::open(&disk)?;
    let work = || {
        for number in 0..37 {
            sg.execute(&cdb(0x28, number * 8, 8), &[], 4096)?;
        }
        for number in 0..11 {
            sg.execute(&cdb(0x2a, number * 16, 16), &[7; 8192], 0)?;
        }
        for _ in 0..3 {
            sg.execute(&cdb(0x35, 0, 0), &[], 0)?;
        }
        for _ in 0..4 {
            let beyond = sg.execute(&cdb(0x28, 1 << 20, 8), &[], 4096);
            ensure!(beyond.is_err(), "a read beyond the end succeeds");
        }
        Ok(())
    };
    let expected = [
        ("read", [41, 37 * 4096, 4]),
        ("write", [11, 11 * 8192, 0]),
        ("flush", [3, 0, 0]),
        ("unmap", [0, 0, 0]),
    ];
    exactly("counted", work, &expected)?;
    let failures = stats("counted")?["classes"]["read"]["failures"].clone();
    ensure!(
        failures[0]["status"] == "check-condition" && failures[0]["sense_key"] == "illegal-request",
        "{failures}"
    );

    let input = format!("if={}", disk.path());
    let dd = [
        "dd",
        &input,
        "of=/dev/null",
        "bs=4k",
        "count=100",
        "iflag=direct",
    ];
    let work = || sh::run(&dd).map(drop);
    exactly("counted", work, &[("read", [100, 100 * 4096, 0])])?;
    for words in ["counted", "read", "write", "illegal-request"] {
        let text = tcmuctl(&["stats"])?;
        ensure!(text.contains(words), "no {words}: {text}");
    }
    let why = tcmuctl_fails(&["stats", "nosuch"])?;
    ensure!(why.contains("no LUN named nosuch"), "{why}");
    disk.delete()?;
    daemon.stop()
}

guest_test!(the_daemon_is_shown_and_says_what_happened);
fn the_daemon_is_shown_and_says_what_happened() -> TestResult {
    let why = tcmuctl_fails(&["status"])?;
    ensure!(why.contains("system bus cannot be reached"), "{why}");
    let bus = Bus::start()?;
    let why = tcmuctl_fails(&["status"])?;
    ensure!(why.contains("not running"), "{why}");
    let silent = Daemon::start()?;
    let why = tcmuctl_fails(&["top", "--count", "1"])?;
    ensure!(why.contains("--no-dbus"), "{why}");
    silent.stop()?;

    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("watched", 16 * MIB)?;
    let text = tcmuctl(&["status"])?;
    for words in [
        &format!("process {}", daemon.pid()),
        "watched",
        "serving",
        "log level: info",
    ] {
        ensure!(text.contains(words), "no {words}: {text}");
    }
    let status: Value = serde_json::from_str(&tcmuctl(&["status", "--json"])?)?;
    ensure!(status["daemon"]["process_id"] == daemon.pid(), "{status}");
    ensure!(status["luns"][0]["name"] == "watched", "{status}");

    // While the LUN is read from, what it does shows.
    let (path, done) = (
        disk.path().to_owned(),
        std::sync::atomic::AtomicBool::new(false),
    );
    let top = thread::scope(|scope| {
        scope.spawn(|| {
            let input = format!("if={path}");
            let dd = ["dd", &input, "of=/dev/null", "bs=64k", "iflag=direct"];
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if let Err(error) = sh::run(&dd) {
                    println!("{error}");
                    return;
                }
            }
        });
        let top = tcmuctl(&["top", "--json", "--interval", "0.5", "--count", "2"]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        top
    })?;
    let intervals: Vec<Value> = top
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(intervals.len() == 2, "{top}");
    let read = |interval: &Value| interval[0]["read_bytes_per_s"].as_f64().unwrap_or_default();
    ensure!(
        intervals.iter().any(|interval| read(interval) > 0.0),
        "{top}"
    );
    ensure!(
        intervals
            .iter()
            .any(|interval| interval[0]["p99_ns"].is_u64()),
        "{top}"
    );
    let table = tcmuctl(&["top", "-i", "0.1", "-c", "2", "watched"])?;
    ensure!(table.matches("READ MB/s").count() == 2, "{table}");

    // On a terminal, it draws there and gives it back.
    let tool = program("tcmuctl")?;
    let drawn = format!("stty cols 120 rows 30; {} top -i 0.1 -c 1", tool.display());
    let drawn = sh::run(&[
        "script",
        "--quiet",
        "--return",
        "--command",
        &drawn,
        "/dev/null",
    ])?;
    for words in [
        "\x1b[?1049h",
        "1 LUN, ",
        "sorted by iops",
        "watched",
        "\x1b[?1049l",
    ] {
        ensure!(drawn.contains(words), "no {words:?}: {drawn:?}");
    }

    disk.delete()?;
    let events = tcmuctl(&["events", "--json"])?;
    let kinds = events
        .lines()
        .map(|line| Ok(serde_json::from_str::<Value>(line)?["kind"].clone()))
        .collect::<anyhow::Result<Vec<Value>>>()?;
    ensure!(kinds == ["serving", "closed"], "{events}");
    let text = tcmuctl(&["events", "--after", "1"])?;
    ensure!(
        text.contains("closed") && !text.contains("serving"),
        "{text}"
    );
    daemon.stop()?;
    drop(bus);
    Ok(())
}

guest_test!(events_are_followed_from_daemon_to_daemon);
fn events_are_followed_from_daemon_to_daemon() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let file = fs::File::create("/run/insight-events")?;
    let mut follower = std::process::Command::new(program("tcmuctl")?)
        .args(["events", "--follow"])
        .stdout(file)
        .spawn()?;
    let followed = |words: &str| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let text = fs::read_to_string("/run/insight-events")?;
            if text.contains(words) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no {words}: {text}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let result = (|| {
        Disk::of_image("first", 16 * MIB)?.delete()?;
        followed(&format!("{:<14} first", "closed"))?;
        daemon.stop()?;
        await_name(NAME, false)?;
        let daemon = Daemon::start_on_bus()?;
        Disk::of_image("second", 16 * MIB)?.delete()?;
        followed(&format!("{:<14} second", "closed"))?;
        daemon.stop()
    })();
    follower.kill()?;
    follower.wait()?;
    result
}

guest_test!(how_much_is_logged_can_be_changed);
fn how_much_is_logged_can_be_changed() -> TestResult {
    let _bus = Bus::start()?;
    fs::write(CONFIG, "")?;
    let daemon = Daemon::start_with_config(CONFIG)?;
    await_name(NAME, true)?;
    ensure!(tcmuctl(&["log-level"])? == "info\n");
    let why = tcmuctl_fails(&["log-level", "loud"])?;
    ensure!(why.contains("\"loud\" is none of error, warn"), "{why}");
    ensure!(tcmuctl(&["log-level"])? == "info\n");
    Disk::of_image("quiet", 16 * MIB)?.delete()?;
    ensure!(
        !daemon.log().contains("DEBUG"),
        "more than asked for is logged"
    );

    ensure!(tcmuctl(&["log-level", "debug"])? == "debug\n");
    let from = daemon.log().len();
    Disk::of_image("loud", 16 * MIB)?.delete()?;
    daemon.await_log(from, "DEBUG")?;
    ensure!(tcmuctl(&["log-level", "--reset"])? == "info\n");
    ensure!(tcmuctl(&["log-level", "warn"])? == "warn\n");
    // A changed file is newer.
    fs::write(CONFIG, "log_level = \"trace\"\n")?;
    daemon.await_log(from, "settings read again")?;
    ensure!(tcmuctl(&["log-level"])? == "trace\n");
    daemon.stop()
}

/// What a server of metrics answers.
fn fetch(mut stream: impl Read + Write) -> anyhow::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
    ensure!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    Ok(body.to_owned())
}

fn scrape(text: &str) -> anyhow::Result<HashMap<(String, String), Metric>> {
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
    let samples = scrape.samples.into_iter();
    let of_lun = samples.filter(|sample| sample.labels.get("lun") == Some("measured"));
    Ok(of_lun
        .map(|sample| {
            let class = sample.labels.get("class").unwrap_or_default().to_owned();
            ((sample.metric, class), sample.value)
        })
        .collect())
}

/// Whether metrics say the same of a LUN at rest as `tcmuctl stats`.
fn agree(text: &str) -> TestResult {
    let (metrics, stats) = (scrape(text)?, stats("measured")?);
    for name in ["read", "write", "flush", "unmap", "other"] {
        let [commands, bytes, _] = class(&stats, name)?;
        let metric = |metric: &str| {
            let key = (metric.to_owned(), name.to_owned());
            metrics.get(&key).with_context(|| format!("no {key:?}"))
        };
        let counter = |name: &str| match metric(name)? {
            Metric::Counter(value) => Ok(*value as u64),
            other => anyhow::bail!("{name} is {other:?}"),
        };
        ensure!(
            counter("tcmu_lun_commands_total")? == commands,
            "{name}: {text}"
        );
        ensure!(counter("tcmu_lun_bytes_total")? == bytes, "{name}: {text}");
        let Metric::Histogram(buckets) = metric("tcmu_lun_command_seconds")? else {
            anyhow::bail!("no histogram");
        };
        let last = buckets.last().context("no buckets")?;
        ensure!(
            last.less_than.is_infinite() && last.count as u64 == commands,
            "{name}"
        );
        ensure!(
            buckets.is_sorted_by(|a, b| a.count <= b.count),
            "{buckets:?}"
        );
    }
    Ok(())
}

guest_test!(metrics_are_fetched_and_agree_with_the_figures);
fn metrics_are_fetched_and_agree_with_the_figures() -> TestResult {
    let _bus = Bus::start()?;
    fs::write(CONFIG, format!("[metrics]\nlisten = \"unix:{SOCKET}\"\n"))?;
    let daemon = Daemon::start_with_config(CONFIG)?;
    await_name(NAME, true)?;
    let disk = Disk::of_image("measured", 16 * MIB)?;
    disk.write(MIB, 5)?;
    ensure!(disk.holds(MIB, 5)?);
    // A new disk may still be looked at.
    let same = || agree(&fetch(UnixStream::connect(SOCKET)?)?);
    (0..10).find_map(|_| same().ok()).map_or_else(same, Ok)?;
    let status = tcmuctl(&["status"])?;
    ensure!(
        status.contains(&format!("metrics: unix:{SOCKET}")),
        "{status}"
    );

    // An address that others reach is refused, and what was stays.
    let at = daemon.log().len();
    fs::write(CONFIG, "[metrics]\nlisten = \"0.0.0.0:19361\"\n")?;
    daemon.await_log(at, "0.0.0.0 is no loopback address")?;
    fetch(UnixStream::connect(SOCKET)?)?;
    // Another place holds at once.
    fs::write(CONFIG, format!("[metrics]\nlisten = \"{ADDRESS}\"\n"))?;
    daemon.await_log(at, "the figures can be fetched")?;
    let same = || agree(&fetch(TcpStream::connect(ADDRESS)?)?);
    (0..10).find_map(|_| same().ok()).map_or_else(same, Ok)?;
    ensure!(
        UnixStream::connect(SOCKET).is_err(),
        "the old place is still there"
    );

    // Whoever says nothing is in nobody's way.
    let _idle = [TcpStream::connect(ADDRESS)?, TcpStream::connect(ADDRESS)?];
    fetch(TcpStream::connect(ADDRESS)?)?;
    disk.write(0, 1)?;
    disk.delete()?;
    daemon.stop()?;
    ensure!(TcpStream::connect(ADDRESS).is_err());
    Ok(())
}

guest_test!(a_slow_command_is_logged);
fn a_slow_command_is_logged() -> TestResult {
    let _bus = Bus::start()?;
    fs::write(CONFIG, "slow_command_ms = 500\n")?;
    let daemon = Daemon::start_with_config(CONFIG)?;
    await_name(NAME, true)?;
    let mut freezer = Freezer::new()?;
    let disk = Disk::create("slow", "file", &freezer.image("slow")?, &[])?;
    let mut sg = Sg::open(&disk)?;
    sg.execute(&cdb(0x2a, 0, 1), &[1; 512], 0)?;
    freezer.freeze()?;
    let writing = thread::spawn(move || sg.execute(&cdb(0x2a, 0x1234, 2), &[2; 1024], 0));
    let is_in_flight = || Ok::<_, anyhow::Error>(stats("slow")?["in_flight"] == 1);
    while !is_in_flight()? {
        ensure!(!writing.is_finished(), "the write does not wait");
        thread::sleep(Duration::from_millis(10));
    }
    // What is stuck cannot be drained, and goes on. The time of this makes it slow, too.
    let why = tcmuctl_fails(&["drain", "slow", "--limit", "1"])?;
    ensure!(why.contains("still in flight on slow"), "{why}");
    freezer.thaw()?;
    writing.join().ok().context("the writer panicked")??;
    let slow = "cdb=\"2a 00 00 00 12 34 00 00 02 00\"";
    daemon.await_log(0, slow)?;
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains(slow))
        .context("no line")?;
    for words in [
        "slow: the backstore took",
        "for a write",
        "lun=\"slow\"",
        "lba=4660",
        "blocks=2",
        "status=Good",
    ] {
        ensure!(line.contains(words), "no {words}: {line}");
    }
    ensure!(
        stats("slow")?["slow"].as_u64() >= Some(1),
        "none is counted"
    );
    disk.delete()?;
    drop(freezer);
    daemon.stop()
}
