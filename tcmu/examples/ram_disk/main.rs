//! Disks in memory on the command ring alone: without the runner, and with a device server of a few
//! commands. It shows all that a program of one's own has to do: hear the kernel, open and map a
//! device, take commands from its ring, answer them.
//!
//! ```text
//! ram_disk &                                       # serves the subtype "ramdisk"
//! tcmuctl create x --handler ramdisk --config any --size 64M --loopback
//! ```
//!
//! With `--on-bus` it also registers with tcmu-runner over D-Bus, as a handler in another process, so
//! that targetcli knows it: `bus.rs`.
//!
//! It needs root, and the kernel module target_core_user. What is written is lost when it ends; then
//! nobody answers for the devices any more, so delete them first.

mod bus;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tcmu::discovery::{Device, Sysfs};
use tcmu::doorbell::Doorbell as _;
use tcmu::netlink::{Change, Event, Netlink};
use tcmu::ring::{Command, Completion, Entry, Ring};
use tcmu::scsi::capacity::{Capacity10, Capacity16};
use tcmu::scsi::cdb::{Block10, Block16, Inquiry};
use tcmu::scsi::inquiry::{Standard, ascii_field};
use tcmu::scsi::opcode::{
    INQUIRY, READ_10, READ_16, READ_CAPACITY_10, SERVICE_ACTION_IN_16, SYNCHRONIZE_CACHE_10,
    SYNCHRONIZE_CACHE_16, TEST_UNIT_READY, WRITE_10, WRITE_16, service_action_in_16,
};
use tcmu::scsi::sense::SENSE_BUFFER_LEN;
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu::uio::Uio;
use zerocopy::{FromBytes, IntoBytes};

const SUBTYPE: &str = "ramdisk";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let on_bus = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--on-bus"] => true,
        _ => {
            eprintln!("usage: ram_disk [--on-bus]");
            return ExitCode::from(2);
        }
    };
    match serve(on_bus) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("ram_disk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(on_bus: bool) -> Result<std::convert::Infallible, Box<dyn Error>> {
    // Listen first and look second, so that no device falls in between.
    let mut netlink = Netlink::connect()?;
    let sysfs = Sysfs::system();
    let mut disks = HashMap::new();
    for device in sysfs.scan()? {
        if device.name.subtype == SUBTYPE {
            let minor = device.minor;
            disks.insert(minor, Disk::open(&sysfs, device)?);
        }
    }
    // Who finds the handler on the bus can use it.
    let _connection = on_bus.then(bus::register).transpose()?;
    println!("serving {SUBTYPE}");
    loop {
        while let Some(event) = netlink.receive()? {
            hear(event, &netlink, &sysfs, &mut disks)?;
        }
        for disk in disks.values_mut() {
            disk.turn()?;
        }
        let mut fds = vec![PollFd::new(&netlink, PollFlags::IN)];
        for disk in disks.values() {
            fds.push(PollFd::from_borrowed_fd(disk.uio.poll_fd(), PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    }
}

/// Does what the kernel asks for, and answers.
fn hear(
    event: Event,
    netlink: &Netlink,
    sysfs: &Sysfs,
    disks: &mut HashMap<u32, Disk>,
) -> Result<(), Box<dyn Error>> {
    let (ticket, status) = match event {
        Event::Added { minor, ticket, .. } => {
            let device = sysfs.device(minor)?;
            if device.name.subtype != SUBTYPE {
                return Ok(()); // Somebody else answers.
            }
            match Disk::open(sysfs, device) {
                Ok(disk) => {
                    disks.insert(minor, disk);
                    (ticket, 0)
                }
                Err(error) => {
                    eprintln!("ram_disk: {error}");
                    (
                        ticket,
                        -error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
                    )
                }
            }
        }
        Event::Removed { minor, ticket, .. } => match disks.remove(&minor) {
            Some(_) => (ticket, 0),
            None => return Ok(()),
        },
        Event::Reconfigured {
            minor,
            change,
            ticket,
            ..
        } => match (disks.get_mut(&minor), change) {
            (Some(disk), Change::Size(size)) => {
                disk.bytes.resize(size as usize, 0);
                (ticket, 0)
            }
            (Some(_), _) => (ticket, -Errno::OPNOTSUPP.raw_os_error()),
            (None, _) => return Ok(()),
        },
        Event::Overflow => return Err("events of the kernel were lost".into()),
    };
    // Whether somebody waited for the answer makes no difference here.
    let _ = netlink.reply(ticket, status)?;
    Ok(())
}

/// One device, and the disk that it shows.
struct Disk {
    uio: Uio,
    ring: Ring,
    bytes: Vec<u8>,
    block_size: u32,
}

/// What a command comes to: bytes for the initiator or from it, or why not.
type Answer = Result<(), Sense>;

impl Disk {
    /// A server whose users may remove a device while it is being enabled opens it on another thread
    /// than the one that answers events: the documentation of `tcmu::configfs` tells why.
    fn open(sysfs: &Sysfs, device: Device) -> io::Result<Self> {
        let backstore = sysfs.backstore(&device.name);
        let (size, block_size) = (backstore.size()?, backstore.block_size()?);
        let uio = Uio::open(&device)?;
        let memory = Arc::new(uio.map()?);
        let ring = Ring::new(memory).map_err(io::Error::other)?;
        println!("{}: {size} bytes", device.name);
        Ok(Self {
            uio,
            ring,
            bytes: vec![0; size as usize],
            block_size,
        })
    }

    /// Answers all commands that are there, with one kick for all.
    fn turn(&mut self) -> Result<(), Box<dyn Error>> {
        self.uio.clear()?;
        while let Some(entry) = self.ring.next()? {
            // Aborted commands are completed like others, so there is nothing to do for a notice.
            if let Entry::Command(command) = entry {
                let mut bytes = [0; SENSE_BUFFER_LEN];
                let answer = self.execute(&command);
                let completion = match answer {
                    Ok(()) => Completion::GOOD,
                    Err(sense) => {
                        let len = sense.write_to(&mut bytes, false);
                        Completion::check_condition(&bytes[..len])
                    }
                };
                self.ring.complete(command, completion);
            }
        }
        if self.ring.publish() {
            self.uio.kick()?;
        }
        Ok(())
    }

    fn execute(&mut self, command: &Command) -> Answer {
        let cdb: &[u8] = command.cdb();
        let last_lba = (self.bytes.len() as u64 / u64::from(self.block_size)).saturating_sub(1);
        match cdb[0] {
            TEST_UNIT_READY | SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 => Ok(()),
            INQUIRY if parse::<Inquiry>(cdb)?.evpd() => Err(Sense::invalid_cdb_field(1, Some(0))),
            INQUIRY => {
                let data = Standard::disk(
                    ascii_field("EXAMPLE"),
                    ascii_field("ram_disk"),
                    ascii_field("1"),
                );
                self.supply(command, data.as_bytes())
            }
            READ_CAPACITY_10 => {
                let data = Capacity10 {
                    last_lba: u32::try_from(last_lba).unwrap_or(u32::MAX).into(),
                    block_len: self.block_size.into(),
                };
                self.supply(command, data.as_bytes())
            }
            SERVICE_ACTION_IN_16
                if u16::from(cdb[1] & 0x1f) == service_action_in_16::READ_CAPACITY_16 =>
            {
                let data = Capacity16::new(last_lba, self.block_size, 0, 0);
                self.supply(command, data.as_bytes())
            }
            READ_10 | WRITE_10 => {
                let range = parse::<Block10>(cdb)?;
                let (lba, blocks) = (range.lba.get().into(), range.length.get().into());
                self.transfer(command, lba, blocks, cdb[0] == WRITE_10)
            }
            READ_16 | WRITE_16 => {
                let range = parse::<Block16>(cdb)?;
                let (lba, blocks) = (range.lba.get(), range.length.get());
                self.transfer(command, lba, blocks, cdb[0] == WRITE_16)
            }
            _ => {
                let code = AdditionalSense::INVALID_COMMAND_OPERATION_CODE;
                Err(Sense::illegal_request(code))
            }
        }
    }

    /// Moves blocks between the disk and the data area.
    fn transfer(&mut self, command: &Command, lba: u64, blocks: u32, write: bool) -> Answer {
        let block_size = u64::from(self.block_size);
        // Both come from an initiator: nothing may overflow, and nothing lie outside.
        let bytes = lba.checked_mul(block_size).and_then(|start| {
            let end = start.checked_add(u64::from(blocks) * block_size)?;
            self.bytes
                .get_mut(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let code = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
        let mut bytes = bytes.ok_or(Sense::illegal_request(code))?;
        if bytes.len() != command.data_len() {
            return Err(Sense::invalid_cdb_field(0, None));
        }
        for segment in command.data() {
            let (now, later) = bytes.split_at_mut(segment.len);
            let memory = self.ring.memory();
            let moved = match write {
                true => memory.read(segment.offset, now),
                false => memory.write(segment.offset, now),
            };
            moved.map_err(|_| Sense::invalid_cdb_field(0, None))?;
            bytes = later;
        }
        Ok(())
    }

    /// Answers with `data`, cut off or followed by zeroes: the initiator gets the whole buffer.
    fn supply(&self, command: &Command, data: &[u8]) -> Answer {
        let mut rest = data;
        for segment in command.data() {
            let (now, later) = rest.split_at(segment.len.min(rest.len()));
            let (memory, at) = (self.ring.memory(), segment.offset);
            let supplied = memory.write(at, now);
            let zeroed = memory.fill(at + now.len(), segment.len - now.len(), 0);
            supplied
                .and(zeroed)
                .map_err(|_| Sense::invalid_cdb_field(0, None))?;
            rest = later;
        }
        Ok(())
    }
}

fn parse<T>(cdb: &[u8]) -> Result<&T, Sense>
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_bytes(cdb).map_err(|_| Sense::invalid_cdb_field(0, None))
}
