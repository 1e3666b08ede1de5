//! The table's file, and what is noted in it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::FallocateFlags;

use super::error::Mismatch;
use super::layout::{
    IN_FLIGHT, MAGIC, NOTES, PAGE, RECORD, RECORDS, VERSION, file_len, header, most_ids, record,
    record_at, stretch_at,
};
use super::record::{self as records, Outstanding};
use crate::abi;
#[cfg(feature = "kill-points")]
use crate::kill_points::{self, KillPoint};
use crate::mapping::{Mapping, OutOfBounds};
use crate::ring::command::{Body, Command};
use crate::ring::mailbox::Mailbox;
use crate::ring::{Ring, RingError};

/// Says which device a table is about: 32 bytes that no other device has had since the machine was
/// started.
pub type Owner = [u8; 32];

/// For how many ids there is room at first: what one page holds.
const FIRST_IDS: usize = PAGE / RECORD;

/// Cannot fail: the file has its full length, and ids beyond the capacity are not written.
const CHECKED: &str = "the record lies in the table";

/// The in-flight table of one device: see the [module](super) for what it is good for.
///
/// It is made by whoever opens the device, and given to [`Ring::with_table`].
#[derive(Debug)]
pub struct Table {
    memory: Arc<Mapping>,
    file: File,
    /// How many ids there can be.
    most: usize,
    /// For how many ids the records are allocated.
    capacity: usize,
    /// How much of each id's stretch is allocated.
    stretches: Vec<usize>,
    /// The serial number of the next command.
    serial: u64,
    /// The number of the next publication.
    next: u64,
}

/// A command that a predecessor had fetched and that has to run again.
#[derive(Debug)]
pub struct Interrupted {
    /// The command; its data are where they were.
    pub command: Command,
    /// What was last noted with [`Phases::set`]; 0 if nothing was. Start those with another phase
    /// than 0 first, in their order, before any that has none.
    pub phase: u64,
    /// How many processes have found it in flight, this one included.
    pub runs: u32,
}

/// Notes how far commands have come, where a successor finds it.
#[derive(Clone, Debug)]
pub struct Phases {
    memory: Arc<Mapping>,
}

impl Phases {
    /// Notes the phase of the command `id`, which is in flight. A successor finds either this or
    /// what was noted before; it is 0 at first.
    pub fn set(&self, id: u16, phase: u64) {
        let capacity = self.memory.load_u32(header::CAPACITY).expect(CHECKED);
        // An id without a record belongs to a table that was given up.
        if u32::from(id) < capacity {
            self.memory
                .store_release_u64(record_at(id) + record::PHASE, phase)
                .expect(CHECKED);
            compiler_fence(Ordering::SeqCst);
            #[cfg(feature = "kill-points")]
            kill_points::pass(KillPoint::Noted);
        }
    }
}

/// Sixteen words that mean something only to the table's owner; 0 at first. A successor finds them
/// as they were last set.
#[derive(Clone, Debug)]
pub struct Notes {
    memory: Arc<Mapping>,
}

impl Notes {
    /// The word with this number.
    ///
    /// # Panics
    /// From number 16 on.
    pub fn get(&self, word: usize) -> u64 {
        self.memory.load_u64(note_at(word)).expect(CHECKED)
    }

    /// Sets the word with this number.
    ///
    /// # Panics
    /// From number 16 on.
    pub fn set(&self, word: usize, value: u64) {
        self.memory
            .store_release_u64(note_at(word), value)
            .expect(CHECKED);
    }
}

fn note_at(word: usize) -> usize {
    assert!(word < NOTES, "there are {NOTES} notes");
    header::NOTES + 8 * word
}

impl Table {
    /// Makes an empty table in `file`, whatever is in it, for the device with this mapping. Nothing
    /// of the ring may be in flight: all that lies between tail and head counts as never fetched.
    ///
    /// # Errors
    /// [`Mismatch::Io`], also where the file system is full; [`Mismatch::InOrder`];
    /// [`Mismatch::Ring`].
    pub fn create(file: File, owner: &Owner, device: &Arc<Mapping>) -> Result<Self, Mismatch> {
        let mailbox = mailbox(device)?;
        let most = most_ids(mailbox.size());
        file.set_len(0)?;
        file.set_len(file_len(most) as u64)?;
        allocate(&file, 0, RECORDS + FIRST_IDS * RECORD)?;
        let memory = Arc::new(Mapping::map(&file, file_len(most))?);
        let table = Self {
            memory,
            file,
            most,
            capacity: FIRST_IDS,
            stretches: Vec::new(),
            serial: 0,
            next: 1,
        };
        table
            .begin(owner, device, &mailbox)
            .map_err(io::Error::other)?;
        Ok(table)
    }

    fn begin(&self, owner: &Owner, device: &Mapping, mailbox: &Mailbox) -> Result<(), OutOfBounds> {
        let memory = &self.memory;
        memory.store_u32(header::VERSION, VERSION)?;
        memory.store_u32(header::CAPACITY, self.capacity as u32)?;
        memory.store_u64(header::MAPPING_LEN, device.len() as u64)?;
        memory.store_u64(header::RING, ring_word(mailbox))?;
        memory.write(header::OWNER, owner)?;
        memory.store_u64(header::PUBLICATION, self.next - 1)?;
        for parity in 0..2 {
            memory.store_u32(header::TAILS + 4 * parity, mailbox.tail())?;
        }
        memory.store_release_u64(header::MAGIC, MAGIC)
    }

    /// Opens the table that a predecessor left in `file`.
    ///
    /// # Errors
    /// A [`Mismatch`] if it is not one about this device. Whether it is one about the ring's present
    /// state, [`check`](Self::check) says.
    pub fn open(file: File, owner: &Owner, device: &Arc<Mapping>) -> Result<Self, Mismatch> {
        let mailbox = mailbox(device)?;
        let most = most_ids(mailbox.size());
        let (len, expected) = (file.metadata()?.len(), file_len(most) as u64);
        if len < PAGE as u64 {
            return Err(Mismatch::NoTable);
        }
        let memory = Arc::new(Mapping::map(&file, file_len(most))?);
        const CHECKED: &str = "the header lies in the table";
        let word = |offset| memory.load_u64(offset).expect(CHECKED);
        if word(header::MAGIC) != MAGIC {
            return Err(Mismatch::NoTable);
        }
        let version = memory.load_u32(header::VERSION).expect(CHECKED);
        if version != VERSION {
            return Err(Mismatch::Version { version });
        }
        let mut found = Owner::default();
        memory.read(header::OWNER, &mut found).expect(CHECKED);
        if found != *owner {
            return Err(Mismatch::OtherDevice);
        }
        if word(header::RING) != ring_word(&mailbox)
            || word(header::MAPPING_LEN) != device.len() as u64
        {
            return Err(Mismatch::OtherRing);
        }
        if len != expected {
            return Err(Mismatch::Length { len, expected });
        }
        let capacity = memory.load_u32(header::CAPACITY).expect(CHECKED) as usize;
        Ok(Self {
            memory,
            file,
            most,
            capacity: capacity.min(most),
            stretches: Vec::new(),
            serial: 0,
            next: 0,
        })
    }

    /// The table as a process uses it that the fuse kills.
    #[cfg(test)]
    pub(in super::super) fn with_fuse(mut self, fuse: &Arc<crate::mapping::tests::Fuse>) -> Self {
        let memory = Mapping::map(&self.file, self.memory.len()).expect("it was mapped before");
        self.memory = Arc::new(memory.with_fuse(fuse));
        self
    }

    /// Has the file refuse to grow, as where the file system is full.
    #[cfg(test)]
    pub(in super::super) fn refuse_growth(&mut self) {
        self.file = File::open("/dev/null").expect("it is there");
    }

    /// Compares the table with the ring, and says how many commands are outstanding that a
    /// predecessor had fetched, and how many processes have found the one that has been found most
    /// often.
    ///
    /// # Errors
    /// A [`Mismatch`] if the ring was used or reset by somebody else.
    pub fn check(&self, device: &Arc<Mapping>) -> Result<(usize, u32), Mismatch> {
        mailbox(device)?;
        let mut ring = Ring::new(Arc::clone(device))?;
        let (outstanding, _) = self.outstanding(&ring.mailbox)?;
        ring.walk(outstanding.len())?;
        let runs = outstanding.iter().map(|command| command.runs).max();
        Ok((outstanding.len(), runs.unwrap_or(0)))
    }

    /// The words of the table's owner.
    pub fn notes(&self) -> Notes {
        Notes {
            memory: Arc::clone(&self.memory),
        }
    }

    /// Notes the phases of commands.
    pub fn phases(&self) -> Phases {
        Phases {
            memory: Arc::clone(&self.memory),
        }
    }

    /// The commands that are outstanding, in the order in which they were fetched, and the number of
    /// the last publication that took place.
    pub(in super::super) fn outstanding(
        &self,
        mailbox: &Mailbox,
    ) -> Result<(Vec<Outstanding>, u64), Mismatch> {
        let memory = &self.memory;
        let last = memory.load_u64(header::PUBLICATION).expect(CHECKED);
        let tail = mailbox.tail();
        let after = memory.load_u32(tail_of(last)).expect(CHECKED);
        let before = memory
            .load_u32(tail_of(last.wrapping_sub(1)))
            .expect(CHECKED);
        let published = if tail == after {
            last
        } else if tail == before {
            last.wrapping_sub(1)
        } else {
            return Err(Mismatch::Tail {
                tail,
                before,
                after,
            });
        };
        let data_area = mailbox.ring().end..mailbox.mapping().len();
        let mut outstanding = Vec::new();
        for id in (0..self.capacity).filter_map(|id| u16::try_from(id).ok()) {
            let at = record_at(id);
            let state = memory.load_u64(at + record::STATE).expect(CHECKED);
            if state <= published {
                continue;
            }
            let stretch = stretch_at(self.most, id);
            let command = records::read(memory, id, at, stretch, &data_area)
                .filter(|_| id != 0)
                .ok_or(Mismatch::Record { id })?;
            outstanding.push(command);
        }
        outstanding.sort_unstable_by_key(|command| command.serial);
        Ok((outstanding, published))
    }

    /// Goes on with these commands in flight after the last publication that took place.
    pub(in super::super) fn go_on(&mut self, outstanding: &mut [Outstanding], published: u64) {
        for command in &mut *outstanding {
            let at = record_at(command.id);
            command.runs = command.runs.saturating_add(1);
            self.memory
                .store_u32(at + record::RUNS, command.runs)
                .expect(CHECKED);
            let state = at + record::STATE;
            self.memory
                .store_release_u64(state, IN_FLIGHT)
                .expect(CHECKED);
        }
        compiler_fence(Ordering::SeqCst);
        self.serial = outstanding.last().map_or(0, |last| last.serial + 1);
        self.next = published + 1;
    }

    /// Notes that a command was fetched; a malformed one has no body.
    ///
    /// # Errors
    /// If there is no room for it; the table must not be used any more then.
    #[inline]
    pub(in super::super) fn fetched(&mut self, id: u16, body: Option<&Body>) -> io::Result<()> {
        let mut stretch = None;
        if usize::from(id) >= self.capacity || !body.is_none_or(records::fits) {
            stretch = self.make_room(id, body).inspect_err(|_| {
                let given_up = self.memory.store_release_u64(header::MAGIC, 0);
                given_up.expect(CHECKED);
            })?;
        }
        self.put(id, stretch, body);
        Ok(())
    }

    #[inline]
    fn put(&mut self, id: u16, stretch: Option<usize>, body: Option<&Body>) {
        let at = record_at(id);
        records::write(&self.memory, at, stretch, self.serial, body).expect(CHECKED);
        self.memory
            .store_release_u64(at + record::STATE, IN_FLIGHT)
            .expect(CHECKED);
        // What overwrites the entry in the ring stays behind this.
        compiler_fence(Ordering::SeqCst);
        self.serial += 1;
    }

    /// Allocates what the command needs. Returns where its body goes, if not into its record.
    #[cold]
    fn make_room(&mut self, id: u16, body: Option<&Body>) -> io::Result<Option<usize>> {
        let place = usize::from(id);
        if place >= self.most {
            return Err(io::Error::other(format!(
                "the kernel gave a command the id {id}, although the ring has room for {}",
                self.most
            )));
        }
        if place >= self.capacity {
            let capacity = (2 * place).next_multiple_of(FIRST_IDS).min(self.most);
            let (start, end) = (RECORDS, RECORDS + capacity * RECORD);
            allocate(&self.file, start, end - start)?;
            self.memory
                .store_u32(header::CAPACITY, capacity as u32)
                .map_err(io::Error::other)?;
            self.capacity = capacity;
        }
        let Some(body) = body.filter(|body| !records::fits(body)) else {
            return Ok(None);
        };
        let needed = records::stretch_len(body).ok_or_else(|| {
            io::Error::other("a command has more scattered data than the table has room for")
        })?;
        if place >= self.stretches.len() {
            self.stretches.resize(place + 1, 0);
        }
        let stretch = stretch_at(self.most, id);
        if self.stretches[place] < needed {
            let len = needed.next_multiple_of(PAGE);
            allocate(&self.file, stretch, len)?;
            self.stretches[place] = len;
        }
        Ok(Some(stretch))
    }

    /// Notes that a command is completed and ends with the next publication.
    #[inline]
    pub(in super::super) fn completed(&self, id: u16) {
        self.memory
            .store_release_u64(record_at(id) + record::STATE, self.next)
            .expect(CHECKED);
    }

    /// Notes that `cmd_tail` is about to become `tail`. It must be stored next.
    #[inline]
    pub(in super::super) fn publishing(&mut self, tail: u32) {
        self.memory
            .store_u32(tail_of(self.next), tail)
            .expect(CHECKED);
        self.memory
            .store_release_u64(header::PUBLICATION, self.next)
            .expect(CHECKED);
        self.next += 1;
    }
}

/// Where the tail is noted that publication `number` leads to.
#[inline]
fn tail_of(number: u64) -> usize {
    header::TAILS + 4 * (number % 2) as usize
}

fn ring_word(mailbox: &Mailbox) -> u64 {
    mailbox.ring().start as u64 | u64::from(mailbox.size()) << 32
}

/// The mailbox of a device whose ring a table can be about.
fn mailbox(device: &Arc<Mapping>) -> Result<Mailbox, Mismatch> {
    let mailbox = Mailbox::new(Arc::clone(device))?;
    if !mailbox.offers(abi::FLAG_OUT_OF_ORDER) {
        return Err(Mismatch::InOrder);
    }
    let tail = mailbox.tail();
    if !mailbox.is_position(tail) {
        return Err(RingError::Tail { tail }.into());
    }
    Ok(mailbox)
}

fn allocate(file: &File, start: usize, len: usize) -> io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), start as u64, len as u64)?;
    Ok(())
}
