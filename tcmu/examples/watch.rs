//! Watches the system's TCMU devices: prints those that are there, and then what the kernel
//! tells about them.
//!
//! ```text
//! watch                 only looks: it answers no event, so a server may run beside it
//! watch --answer ram    accepts every event of devices whose dev_config starts with "ram/",
//!                       opens and maps their memory, and prints the ring's header
//! ```
//!
//! It does not serve commands: do not export a device that only this program holds. It needs
//! root, and the kernel module target_core_user. **Started without a server beside it, it makes
//! enabling a device wait for an answer that nobody gives**, since listening announces to the
//! kernel that events are answered; `echo 1 >` to the module's parameters `block_netlink` and
//! `reset_netlink` ends such a wait.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use tcmu::abi::{MAILBOX_VERSION, Mailbox};
use tcmu::discovery::{Device, DeviceName, Sysfs};
use tcmu::mapping::Mapping;
use tcmu::netlink::{Change, Event, Netlink, Ticket};
use tcmu::uio::Uio;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let subtype = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--answer", subtype] => Some(subtype.to_owned()),
        _ => return Err("usage: watch [--answer SUBTYPE]".into()),
    };

    // Listen first and look second, so that no device falls in between.
    let mut netlink = Netlink::connect()?;
    let mut watcher = Watcher {
        sysfs: Sysfs::system(),
        subtype,
        held: HashMap::new(),
    };
    watcher.scan()?;
    loop {
        while let Some(event) = netlink.receive()? {
            watcher.handle(event, &netlink)?;
        }
        let mut fds = [PollFd::new(&netlink, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    }
}

/// A device that nobody else can open while we have it.
struct Held {
    name: DeviceName,
    _uio: Uio,
    _memory: Mapping,
}

struct Watcher {
    sysfs: Sysfs,
    /// Whose events are answered.
    subtype: Option<String>,
    /// The devices of that subtype, by minor number.
    held: HashMap<u32, Held>,
}

impl Watcher {
    fn is_ours(&self, name: &DeviceName) -> bool {
        self.subtype.as_ref() == Some(&name.subtype)
    }

    /// Prints all devices, takes ours, and lets go of those that are not there any more.
    fn scan(&mut self) -> io::Result<()> {
        let devices = self.sysfs.scan()?;
        self.held.retain(|minor, held| {
            devices.iter().any(|device| {
                device.minor == *minor
                    && device.name.hba == held.name.hba
                    && device.name.name == held.name.name
            })
        });
        for device in devices {
            println!("present uio{} {}", device.minor, device.name);
            if self.is_ours(&device.name)
                && !self.held.contains_key(&device.minor)
                && let Err(error) = self.take(device)
            {
                println!("  {error}");
            }
        }
        Ok(())
    }

    /// Opens and maps a device, and prints what its owner and the kernel say about it.
    ///
    /// A server reads the attributes on another thread than the one that answers events: the
    /// documentation of `tcmu::configfs` tells why.
    fn take(&mut self, device: Device) -> io::Result<()> {
        let backstore = self.sysfs.backstore(&device.name);
        println!(
            "  {} bytes, blocks of {}, at most {} blocks at once, write cache {}, serial {:?}",
            backstore.size()?,
            backstore.block_size()?,
            backstore.hw_max_sectors()?,
            backstore.write_cache()?,
            backstore.unit_serial()?,
        );
        println!(
            "  vendor {:?}, product {:?}, revision {:?}, enabled {}",
            backstore.vendor()?,
            backstore.product()?,
            backstore.revision()?,
            backstore.is_enabled()?,
        );
        let uio = Uio::open(&device)?;
        let memory = uio.map()?;
        let word = |offset| memory.load_u32(offset).map_err(io::Error::other);
        let half = |offset| memory.load_u16(offset).map_err(io::Error::other);
        let version = half(std::mem::offset_of!(Mailbox, version))?;
        println!(
            "  {} bytes mapped, mailbox version {version}, flags {:#x}, ring of {} bytes at {}",
            memory.len(),
            half(std::mem::offset_of!(Mailbox, flags))?,
            word(std::mem::offset_of!(Mailbox, cmdr_size))?,
            word(std::mem::offset_of!(Mailbox, cmdr_off))?,
        );
        if version != MAILBOX_VERSION {
            return Err(io::Error::other("this mailbox version is not supported"));
        }
        let held = Held {
            name: device.name,
            _uio: uio,
            _memory: memory,
        };
        self.held.insert(device.minor, held);
        Ok(())
    }

    fn handle(&mut self, event: Event, netlink: &Netlink) -> Result<(), Box<dyn Error>> {
        match event {
            Event::Added {
                device,
                minor,
                ticket,
            } => {
                println!("added uio{minor} {device} (id {})", ticket.device_id());
                self.answer(netlink, &device, ticket, |watcher| {
                    let found = watcher.sysfs.device(minor)?;
                    watcher.take(found)
                })
            }
            Event::Removed {
                device,
                minor,
                ticket,
            } => {
                println!("removed uio{minor} {device} (id {})", ticket.device_id());
                self.answer(netlink, &device, ticket, |watcher| {
                    watcher.held.remove(&minor);
                    Ok(())
                })
            }
            Event::Reconfigured {
                device,
                minor,
                change,
                ticket,
            } => {
                println!("reconfigured uio{minor} {device}: {change:?}");
                self.answer(netlink, &device, ticket, |_| match change {
                    Change::Unknown => Err(rustix::io::Errno::OPNOTSUPP.into()),
                    _ => Ok(()),
                })
            }
            Event::Overflow => {
                println!("events were lost");
                Ok(self.scan()?)
            }
        }
    }

    /// Does what an event of one of our devices asks for, and tells the kernel how it went.
    fn answer(
        &mut self,
        netlink: &Netlink,
        device: &str,
        ticket: Ticket,
        action: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> Result<(), Box<dyn Error>> {
        if !self.is_ours(&device.parse()?) {
            return Ok(());
        }
        let status = match action(self) {
            Ok(()) => 0,
            Err(error) => {
                println!("  {error}");
                -error
                    .raw_os_error()
                    .unwrap_or(rustix::io::Errno::IO.raw_os_error())
            }
        };
        println!("  answered {status}: {:?}", netlink.reply(ticket, status)?);
        Ok(())
    }
}
