//! The kernel's side of a command ring, played in user space.
//!
//! [`MockKernel`] does what `drivers/target/target_core_user.c` does with the ring and the data
//! area, and checks what the real one only suffers from. A ring, a runner or a handler can be
//! tested and measured against it without root and without a kernel module.

mod blocks;
mod completion;
mod doorbell;
mod submission;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::mem::{self, offset_of, size_of};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use self::blocks::Blocks;
pub use self::completion::{Broken, Finished};
use self::doorbell::{Bell, Signal};
pub use self::submission::{Data, SubmitError};
use crate::abi;
use crate::doorbell::Doorbell;
use crate::mapping::Mapping;
use crate::ring::Segment;
use crate::scsi::Status;

/// Where the command ring starts: right after the mailbox.
const RING_START: usize = size_of::<abi::Mailbox>();

const PAGE: usize = 4096;

/// What the device looks like.
#[derive(Clone, Debug)]
pub struct Config {
    /// Size of the command ring in bytes, a multiple of 8.
    pub ring_size: u32,
    /// Size of a data block in bytes, a multiple of 4096.
    pub block_size: usize,
    /// How many data blocks there are.
    pub blocks: usize,
    /// `abi::FLAG_*`: what the kernel offers.
    pub flags: u16,
    /// Fill reclaimed data blocks with a pattern, and look for writes to them.
    pub poison: bool,
}

impl Default for Config {
    /// A ring of 64 KiB with the mailbox, 4 MiB of data, all features but KEEP_BUF.
    fn default() -> Self {
        Self {
            ring_size: 0x1_0000 - RING_START as u32,
            block_size: PAGE,
            blocks: 1024,
            flags: abi::FLAG_OUT_OF_ORDER | abi::FLAG_READ_LEN | abi::FLAG_TMR,
            poison: true,
        }
    }
}

/// Names a submitted command. Unlike command ids, tags are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandTag(u64);

/// The kernel's side: queues commands and takes completions.
///
/// It may live on another thread than the device's side. When it is dropped, the device is gone:
/// the other side's descriptor hangs up.
#[derive(Debug)]
pub struct MockKernel {
    /// What the memory is a mapping of.
    file: File,
    memory: Arc<Mapping>,
    bell: Bell,
    ring_size: u32,
    flags: u16,
    /// `cmd_head`.
    head: u32,
    /// Up to where completions were taken.
    cleaned: u32,
    /// The entries between `cleaned` and `head`, oldest first.
    entries: VecDeque<RingEntry>,
    commands: BTreeMap<u16, InFlight>,
    blocks: Blocks,
    next_tag: u64,
    plugged: bool,
    broken: Option<Broken>,
    finished: Vec<Finished>,
    late_completions: u64,
}

#[derive(Debug)]
struct RingEntry {
    offset: u32,
    len: u32,
    op: u32,
    id: u16,
}

#[derive(Debug)]
struct InFlight {
    tag: CommandTag,
    blocks: Vec<usize>,
    /// What goes to the initiator.
    data_in: Vec<Segment>,
    bidirectional: bool,
    /// Timed out: the initiator has its answer, but the ring's slot and the data are in use.
    expired: bool,
}

/// Cannot fail: all of it was laid out by `MockKernel::new`.
const CHECKED: &str = "ring and data area lie in the mapping";

impl MockKernel {
    /// Makes a device: the kernel's side, and what a runner gets by opening and mapping it.
    ///
    /// # Errors
    /// Those of mmap(2) and socketpair(2).
    pub fn new(config: Config) -> io::Result<(Self, MockDevice)> {
        let data_start = (RING_START + config.ring_size as usize).next_multiple_of(PAGE);
        let len = data_start + config.blocks * config.block_size;
        let file = File::from(memfd_create("mock-tcmu", MemfdFlags::CLOEXEC)?);
        file.set_len(len as u64)?;
        let memory = Arc::new(Mapping::map(&file, len)?);
        let (kernel, device) = Bell::pair()?;
        let word = |offset, value| memory.store_u32(offset, value).expect(CHECKED);
        word(offset_of!(abi::Mailbox, cmdr_off), RING_START as u32);
        word(offset_of!(abi::Mailbox, cmdr_size), config.ring_size);
        let half = |offset, value| memory.store_u16(offset, value).expect(CHECKED);
        half(offset_of!(abi::Mailbox, flags), config.flags);
        half(offset_of!(abi::Mailbox, version), abi::MAILBOX_VERSION);
        let blocks = Blocks::new(
            Arc::clone(&memory),
            data_start,
            config.block_size,
            config.blocks,
            config.poison,
        );
        let device = MockDevice {
            memory: Arc::clone(&memory),
            bell: device,
        };
        let kernel = Self {
            file,
            memory,
            bell: kernel,
            ring_size: config.ring_size,
            flags: config.flags,
            head: 0,
            cleaned: 0,
            entries: VecDeque::new(),
            commands: BTreeMap::new(),
            blocks,
            next_tag: 1,
            plugged: false,
            broken: None,
            finished: Vec::new(),
            late_completions: 0,
        };
        Ok((kernel, device))
    }

    /// Gives the device to another process: a doorbell and a mapping of its own. The one before has
    /// to be gone.
    ///
    /// # Errors
    /// Those of mmap(2) and socketpair(2).
    pub fn reopen(&mut self) -> io::Result<MockDevice> {
        let memory = Arc::new(Mapping::map(&self.file, self.memory.len())?);
        let (kernel, bell) = Bell::pair()?;
        self.bell = kernel;
        Ok(MockDevice { memory, bell })
    }

    /// The memory that both sides share.
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// Why the device is broken, if it is: nothing completes any more.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// How many commands hold a place in the ring, timed out ones included.
    pub fn in_flight(&self) -> usize {
        self.commands.len()
    }

    /// How many commands were completed after they had timed out.
    pub fn late_completions(&self) -> u64 {
        self.late_completions
    }

    /// How many writes to data blocks were found that no command owned at the time.
    ///
    /// Always 0 without [`Config::poison`].
    pub fn late_writes(&mut self) -> u64 {
        self.blocks.late_writes()
    }

    /// Holds back events, as the kernel does while it queues a batch.
    pub fn plug(&mut self) {
        self.plugged = true;
    }

    /// Ends [`plug`](Self::plug), with one event.
    pub fn unplug(&mut self) {
        self.plugged = false;
        self.notify();
    }

    /// Waits for a kick and takes it. False if the other side has closed the device.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait_kick(&self) -> io::Result<bool> {
        Ok(self.bell.wait(None)? == Signal::Rung)
    }

    /// Waits for a kick and takes it. False if there was none in that time, or the other side has
    /// closed the device.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait_kick_for(&self, timeout: Duration) -> io::Result<bool> {
        Ok(self.bell.wait(Some(timeout))? == Signal::Rung)
    }

    /// Takes completions at every kick until this command's is there. Those of other commands are
    /// kept for [`reap`](Self::reap). `None` if it did not come in time, or cannot any more.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait_for(&mut self, tag: CommandTag, timeout: Duration) -> io::Result<Option<Finished>> {
        let deadline = Instant::now() + timeout;
        loop {
            self.take_completions();
            if let Some(index) = self
                .finished
                .iter()
                .position(|finished| finished.tag == tag)
            {
                return Ok(Some(self.finished.remove(index)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.broken.is_some() || !self.wait_kick_for(left)? {
                return Ok(None);
            }
        }
    }

    /// Fails all commands with BUSY and empties the ring, as `action/reset_ring` does.
    pub fn reset_ring(&mut self) -> Vec<Finished> {
        for (_, command) in mem::take(&mut self.commands) {
            self.blocks.release(&command.blocks);
            if !command.expired {
                self.finished
                    .push(Finished::without_data(command.tag, Status::Busy.code()));
            }
        }
        self.entries.clear();
        self.head = 0;
        self.cleaned = 0;
        self.broken = None;
        self.memory
            .store_u32(offset_of!(abi::Mailbox, cmd_tail), 0)
            .expect(CHECKED);
        self.publish_head();
        mem::take(&mut self.finished)
    }

    fn notify(&self) {
        if !self.plugged {
            // That the device's side is gone does not keep the kernel from queueing.
            let _ = self.bell.ring();
        }
    }

    fn publish_head(&self) {
        self.memory
            .store_release_u32(offset_of!(abi::Mailbox, cmd_head), self.head)
            .expect(CHECKED);
    }

    /// Where the ring's `offset` is in the mapping.
    fn at(&self, offset: u32) -> usize {
        RING_START + offset as usize
    }
}

/// What a runner gets by opening a device: its memory and its doorbell.
#[derive(Debug)]
pub struct MockDevice {
    memory: Arc<Mapping>,
    bell: Bell,
}

impl MockDevice {
    /// The memory to make a [`Ring`](crate::ring::Ring) of.
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// The same, with the device closed.
    pub fn into_memory(self) -> Arc<Mapping> {
        self.memory
    }
}

impl Doorbell for MockDevice {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd()
    }

    fn clear(&self) -> io::Result<()> {
        match self.bell.take()? {
            Signal::Rung | Signal::Quiet => Ok(()),
            Signal::Gone => Err(Errno::IO.into()),
        }
    }

    fn kick(&self) -> io::Result<()> {
        self.bell.ring()
    }
}
