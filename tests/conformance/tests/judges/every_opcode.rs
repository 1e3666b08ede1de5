//! Whatever command comes, and whatever comes with it: a status at once, a quiet log, no memory
//! that grows, and a LUN that works on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tcmu_conformance::sg_io::{Answer, Data, Device};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::MIB;
use tcmu_guest_tests::{TestResult, guest_test};

use crate::luns::Kind;

/// Small, so that a command which fills the LUN is soon over.
const SIZE: u64 = 8 * MIB;
/// A command without a status after this long hangs. What is asked for is one second; ten times
/// that is for a slow machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a command without an own length brings or takes.
const DATA: usize = 4096;

/// Opcodes with service actions in the low bits of byte 1.
const WITH_ACTIONS: [u8; 10] = [0x48, 0x5e, 0x5f, 0x7e, 0x83, 0x84, 0x9e, 0x9f, 0xa3, 0xa4];
/// The opcode whose service action is in bytes 8 and 9.
const VARIABLE_LENGTH: u8 = 0x7f;

guest_test!(hostile_commands_to_a_file, limit = Duration::from_secs(300));
fn hostile_commands_to_a_file() -> TestResult {
    storm(Kind::File)
}

guest_test!(
    hostile_commands_to_a_readonly_lun,
    limit = Duration::from_secs(300)
);
fn hostile_commands_to_a_readonly_lun() -> TestResult {
    storm(Kind::ReadOnly)
}

fn storm(kind: Kind) -> TestResult {
    let daemon = Daemon::start()?;
    let (disk, path) = kind.disk(SIZE)?;
    let device = Device::open(&path)?;
    // The first time, the daemon takes what it needs, and keeps it.
    let commands = send_all(&device, 1)?;
    let (lines, memory) = (daemon.log().lines().count(), resident_kib(daemon.pid())?);
    println!("{commands} commands, {lines} lines of log, {memory} KiB");
    send_all(&device, 1)?;
    send_all(&device, 2)?;
    let now = resident_kib(daemon.pid())?;
    ensure!(
        now <= memory + 512,
        "the daemon's memory grew from {memory} to {now} KiB during {} commands",
        2 * commands
    );
    let lines = daemon.log().lines().count();
    ensure!(
        lines < 200,
        "{lines} lines of log for {} commands",
        3 * commands
    );
    works(&device, kind)?;
    drop(device);
    disk.delete()?;
    daemon.stop()
}

/// Sends every opcode with every service action, with fields and data of several kinds. The same
/// `seed` sends the same. Returns how many commands were sent.
fn send_all(device: &Device, seed: u64) -> anyhow::Result<u32> {
    let mut noise = Noise(seed);
    let mut sent = 0;
    let mut waits = 0;
    for cdb in every_command() {
        for fields in Fields::ALL {
            for direction in [Direction::None, Direction::In, Direction::Out] {
                let cdb = fields.fill(&cdb, &mut noise);
                let answer = direction
                    .send(device, &cdb, fields, &mut noise)
                    .with_context(|| format!("{cdb:02x?}, {fields:?}, data {direction:?}"))?;
                if let Some(answer) = answer {
                    sent += 1;
                    waits += u32::from(answer.took > Duration::from_secs(1));
                }
            }
        }
    }
    if waits > 0 {
        println!("{waits} of {sent} commands took longer than a second");
    }
    Ok(sent)
}

/// A CDB for each opcode and service action; all its fields are zero.
fn every_command() -> Vec<Vec<u8>> {
    const LENGTHS: [usize; 8] = [6, 10, 10, 32, 16, 12, 10, 10];
    let mut all = Vec::new();
    for opcode in 0..=u8::MAX {
        let mut cdb = vec![0; LENGTHS[usize::from(opcode >> 5)]];
        cdb[0] = opcode;
        match opcode {
            VARIABLE_LENGTH => {
                for action in (0..0x20).chain([0x1800, 0xffff_u16]) {
                    cdb[7] = 24;
                    cdb[8..10].copy_from_slice(&action.to_be_bytes());
                    all.push(cdb.clone());
                }
                continue;
            }
            _ if opcode >> 5 == 3 => cdb.truncate(10),
            _ => {}
        }
        let actions = if WITH_ACTIONS.contains(&opcode) {
            32
        } else {
            1
        };
        for action in 0..actions {
            cdb[1] = action;
            all.push(cdb.clone());
        }
    }
    all
}

/// What the fields behind opcode and service action hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fields {
    Zeroes,
    Ones,
    Small,
    Noise,
}

impl Fields {
    const ALL: [Fields; 4] = [Fields::Zeroes, Fields::Ones, Fields::Small, Fields::Noise];

    fn fill(self, template: &[u8], noise: &mut Noise) -> Vec<u8> {
        let mut cdb = template.to_vec();
        let first = match cdb[0] {
            VARIABLE_LENGTH => 10,
            opcode if WITH_ACTIONS.contains(&opcode) => 2,
            _ => 1,
        };
        for byte in &mut cdb[first..] {
            *byte = self.byte(noise);
        }
        cdb
    }

    fn byte(self, noise: &mut Noise) -> u8 {
        match self {
            Fields::Zeroes => 0,
            Fields::Ones => 0xff,
            // Most fields hold small numbers; so does what passes the first checks.
            Fields::Small => match noise.next() {
                byte @ 0..32 => byte,
                _ => 0,
            },
            Fields::Noise => noise.next(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    None,
    In,
    Out,
}

impl Direction {
    /// `None` if the command cannot be sent.
    fn send(
        self,
        device: &Device,
        cdb: &[u8],
        fields: Fields,
        noise: &mut Noise,
    ) -> anyhow::Result<Option<Answer>> {
        let mut data = vec![0; DATA];
        let data = match self {
            Direction::None => Data::None,
            Direction::In => Data::In(&mut data),
            Direction::Out => {
                // Not always the same length, nor a multiple of anything.
                let len = 1 + usize::from(noise.next()) * (DATA - 1) / 255;
                data.truncate(len);
                data.fill_with(|| fields.byte(noise));
                Data::Out(&data)
            }
        };
        let answer = device.send(cdb, data, PATIENCE)?;
        match answer.status {
            // CHECK CONDITION: the sense says what the matter is.
            0x02 => match answer.sense_code() {
                Some((key, ..)) if key < 0xf => {}
                _ => bail!("CHECK CONDITION with sense {:02x?}", answer.sense),
            },
            0x00 | 0x04 | 0x08 | 0x18 | 0x28 => {}
            other => bail!("status {other:#04x} is none of SAM's"),
        }
        Ok(Some(answer))
    }
}

/// Reads what was written; a read-only LUN is only read.
fn works(device: &Device, kind: Kind) -> TestResult {
    // Whatever conditions there are to be told are told now.
    for _ in 0..10 {
        device.send(&[0; 6], Data::None, PATIENCE)?;
    }
    let good = |what: &str, answer: Answer| {
        ensure!(
            answer.status == 0,
            "after all that, {what}: status {:#x}, sense {:02x?}",
            answer.status,
            answer.sense
        );
        Ok(())
    };
    good(
        "TEST UNIT READY",
        device.send(&[0; 6], Data::None, PATIENCE)?,
    )?;
    let written = vec![0xa5; 8 * 512];
    let block = [0, 0, 0, 64, 0, 0, 8, 0];
    let cdb = |opcode: u8| [&[opcode, 0][..], &block].concat();
    if let Kind::ReadOnly = kind {
        let answer = device.send(&cdb(0x2a), Data::Out(&written), PATIENCE)?;
        let sense = answer.sense_code();
        ensure!(
            sense == Some((7, 0x27, 0)),
            "a write ended with {answer:x?}"
        );
    } else {
        good(
            "WRITE",
            device.send(&cdb(0x2a), Data::Out(&written), PATIENCE)?,
        )?;
    }
    let mut read = vec![0; written.len()];
    good(
        "READ",
        device.send(&cdb(0x28), Data::In(&mut read), PATIENCE)?,
    )?;
    match kind {
        Kind::ReadOnly => ensure!(
            read.iter().all(|&b| b == 0),
            "a read-only LUN was written to"
        ),
        _ => ensure!(read == written, "what was written is not there"),
    }
    Ok(())
}

/// The memory of a process that is its own, without what it shares with the kernel, in KiB.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    number
        .and_then(|n| n.parse().ok())
        .context("no RssAnon in /proc")
}

/// Bytes that look random (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as u8
    }
}
