//! Task management: aborted commands are carried out, and nothing else suffers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::PipeWriter;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use tcmu::mock::{CommandTag, Data, Finished};
use tcmu::ring::TmrKind;
use tcmu::scsi::Status;
use tcmu_handler::{
    Backstore, Buffer, Capabilities, Error, Extent, File, Io, Result, Unmap, WriteFlags,
};

use crate::lun::{BLOCK, Lun, SIZE};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// Reads and unmaps of this block wait until the gate is opened.
const STUCK: u32 = 8;
/// So do writes that begin with this one: 1 MiB from the beginning.
const STUCK_WRITE: u32 = 2048;
/// Reads of this block wait, in the kernel, for a pipe that nobody writes to.
const PIPE: u32 = 16;

/// What a stuck backstore waits for.
#[derive(Default)]
struct Gate {
    open: bool,
    waiting: Vec<Waker>,
}

#[derive(Clone, Default)]
struct SharedGate(Arc<Mutex<Gate>>);

impl SharedGate {
    async fn pass(&self) {
        poll_fn(|context| {
            let mut gate = self.0.lock().unwrap();
            if gate.open {
                return Poll::Ready(());
            }
            gate.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// From another thread: what wakes on the reactor's own does so in its turns.
    fn open(&self) {
        let shared = Arc::clone(&self.0);
        let open = move || {
            let mut gate = shared.lock().unwrap();
            gate.open = true;
            gate.waiting.drain(..).for_each(Waker::wake);
        };
        std::thread::spawn(open).join().unwrap();
    }

    fn close(&self) {
        self.0.lock().unwrap().open = false;
    }
}

struct Stubborn {
    gate: SharedGate,
    pipe: File,
    bytes: RefCell<Vec<u8>>,
}

impl Stubborn {
    fn block(offset: u64) -> u32 {
        (offset / BLOCK as u64) as u32
    }
}

impl Backstore for Stubborn {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            unmap: Some(Unmap {
                granularity: BLOCK as u64,
                reads_zeroes: true,
            }),
            ..Capabilities::new(SIZE)
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        match Self::block(offset) {
            STUCK => self.gate.pass().await,
            PIPE => {
                let read = io.read_exact(&self.pipe, buffer, 0).await;
                return read.map_err(|error| Error::os("reading a pipe", error));
            }
            _ => {}
        }
        buffer.copy_from(0, &self.bytes.borrow()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    async fn write(&self, _: &Io, buffer: Buffer<'_>, offset: u64, _: WriteFlags) -> Result<()> {
        if Self::block(offset) == STUCK_WRITE {
            self.gate.pass().await;
        }
        let bytes = &mut self.bytes.borrow_mut()[offset as usize..][..buffer.len()];
        buffer.copy_to(0, bytes);
        Ok(())
    }

    async fn unmap(&self, _: &Io, extent: Extent) -> Result<()> {
        if Self::block(extent.offset) == STUCK {
            self.gate.pass().await;
        }
        self.bytes.borrow_mut()[extent.offset as usize..extent.end() as usize].fill(0);
        Ok(())
    }
}

fn stubborn() -> (Lun, SharedGate, PipeWriter) {
    let gate = SharedGate::default();
    let (reader, writer) = std::io::pipe().unwrap();
    let backstore = Stubborn {
        gate: gate.clone(),
        pipe: Arc::new(reader.into()),
        bytes: RefCell::new(vec![0; SIZE as usize]),
    };
    (Lun::new(backstore), gate, writer)
}

fn abort(lun: &mut Lun, kind: TmrKind, tags: &[CommandTag]) {
    lun.kernel.notify_task_management(kind, tags).unwrap();
}

const FORMAT: [u8; 6] = [0x04, 0, 0, 0, 0, 0];

/// What TEST UNIT READY finds.
fn ready(lun: &mut Lun) -> Finished {
    let tag = lun.submit(&[0; 6], Data::None);
    lun.wait(tag)
}

/// What another command finds: the LUN works, and nothing stuck has ended meanwhile.
fn works_on(lun: &mut Lun) -> Finished {
    let tag = lun.read(0, 1);
    lun.wait(tag)
}

#[test]
fn a_command_ends_with_what_the_backstore_does_for_it() {
    let (mut lun, gate, _pipe) = stubborn();
    let stuck = [lun.read(STUCK, 1), lun.read(STUCK, 1)];
    assert_eq!(works_on(&mut lun).status, GOOD);
    abort(&mut lun, TmrKind::LunReset, &stuck);
    assert_eq!(works_on(&mut lun).status, GOOD);
    assert_eq!(lun.kernel.in_flight(), 2);
    gate.open();
    for tag in stuck {
        lun.wait(tag);
    }
    assert_eq!(lun.kernel.in_flight(), 0);
    assert_eq!(lun.kernel.broken(), None);
    assert_eq!(lun.kernel.late_writes(), 0);
    // The same slots serve other commands, which nobody has aborted.
    let again = [lun.read(STUCK, 1), lun.read(STUCK, 1)];
    for tag in again {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
}

/// Where an initiator is told that an aborted command has succeeded, it has to have.
#[test]
fn what_waits_for_another_command_is_carried_out_in_its_order() {
    let (mut lun, gate, _pipe) = stubborn();
    let stuck = lun.read(STUCK, 1);
    works_on(&mut lun);
    // COMPARE AND WRITE of two blocks waits for the read, and the others wait for it.
    let mut cdb = [0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x89, STUCK as u8, 2);
    let data = [[0; 2 * BLOCK], [1; 2 * BLOCK]].concat();
    let aborted = [
        lun.submit(&cdb, Data::Out(&data)),
        lun.write(STUCK, &[2; BLOCK]),
        lun.read(STUCK + 1, 1),
    ];
    works_on(&mut lun);
    abort(&mut lun, TmrKind::LunReset, &aborted);
    works_on(&mut lun);
    assert_eq!(lun.kernel.in_flight(), 4, "somebody did not wait");
    gate.open();
    let data = |finished: Finished| {
        assert_eq!(finished.status, GOOD);
        finished.data_in
    };
    assert_eq!(data(lun.wait(stuck)), [0; BLOCK]);
    assert_eq!(data(lun.wait(aborted[2])), [1; BLOCK]);
    data(lun.wait(aborted[0]));
    data(lun.wait(aborted[1]));
    let tag = lun.read(STUCK, 2);
    assert_eq!(data(lun.wait(tag)), [[2; BLOCK], [1; BLOCK]].concat());
    assert_eq!(lun.kernel.in_flight(), 0);
    assert_eq!(lun.kernel.broken(), None);
    assert_eq!(lun.kernel.late_writes(), 0);
}

#[test]
fn what_is_done_in_pieces_is_carried_out_to_its_end() {
    let (mut lun, gate, _pipe) = stubborn();
    for block in [STUCK, 32, 48] {
        let tag = lun.write(block, &[3; BLOCK]);
        lun.wait(tag);
    }
    // WRITE SAME of three pieces, the second of which is stuck.
    const PIECE: u32 = 1024;
    let mut cdb = [0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[2..6].copy_from_slice(&(STUCK_WRITE - PIECE).to_be_bytes());
    cdb[7..9].copy_from_slice(&(3 * PIECE as u16).to_be_bytes());
    let mut list = vec![0, 54, 0, 48, 0, 0, 0, 0];
    for block in [u64::from(STUCK), 32, 48] {
        list.extend(block.to_be_bytes());
        list.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    }
    let aborted = [
        lun.submit(&cdb, Data::Out(&[4; BLOCK])),
        lun.submit(&[0x42, 0, 0, 0, 0, 0, 0, 0, 56, 0], Data::Out(&list)),
    ];
    works_on(&mut lun);
    abort(&mut lun, TmrKind::LunReset, &aborted);
    works_on(&mut lun);
    assert_eq!(lun.kernel.in_flight(), 2, "nothing was stuck");
    gate.open();
    for tag in aborted {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    for piece in 0..3 {
        let tag = lun.read(STUCK_WRITE + piece * PIECE - 1, 1);
        assert_eq!(lun.wait(tag).data_in, [4; BLOCK], "before piece {piece}");
    }
    let tag = lun.read(STUCK_WRITE + 2 * PIECE - 1, 2);
    assert_eq!(lun.wait(tag).data_in, [[4; BLOCK], [0; BLOCK]].concat());
    for block in [STUCK, 32, 48] {
        let tag = lun.read(block, 1);
        assert_eq!(lun.wait(tag).data_in, [0; BLOCK], "block {block}");
    }
}

/// The operation goes on without its command, and the unit says so (SBC-3, 4.11.2).
#[test]
fn nobody_waits_for_a_format_that_was_aborted() {
    const LAST: u32 = SIZE as u32 / BLOCK as u32 - 1;
    let (mut lun, gate, _pipe) = stubborn();
    for block in [0, LAST] {
        let tag = lun.write(block, &[5; BLOCK]);
        lun.wait(tag);
    }
    let format = lun.submit(&FORMAT, Data::None);
    ready(&mut lun);
    abort(&mut lun, TmrKind::AbortTask, &[format]);
    assert_eq!(lun.wait(format).status, Status::TaskAborted.code());
    let refused = ready(&mut lun);
    assert_eq!(refused.status, CHECK_CONDITION);
    assert_eq!(refused.sense[12..14], [4, 4]);
    gate.open();
    while ready(&mut lun).status != GOOD {}
    for block in [0, LAST] {
        let tag = lun.read(block, 1);
        assert_eq!(lun.wait(tag).data_in, [0; BLOCK], "block {block}");
    }
}

#[test]
fn an_abort_concerns_the_command_that_it_names() {
    let (mut lun, gate, _pipe) = stubborn();
    let stuck = lun.read(STUCK, 1);
    let format = lun.submit(&FORMAT, Data::None);
    ready(&mut lun);
    abort(&mut lun, TmrKind::AbortTask, &[stuck]);
    assert_eq!(ready(&mut lun).status, CHECK_CONDITION);
    assert!(!lun.has_finished(format), "another command was aborted");
    gate.open();
    assert_eq!(lun.wait(stuck).status, GOOD);
    assert_eq!(lun.wait(format).status, GOOD);
}

/// A command that takes the place of one that was aborted is not aborted.
#[test]
fn an_abort_ends_with_its_command() {
    let (mut lun, gate, _pipe) = stubborn();
    let aborted = lun.submit(&FORMAT, Data::None);
    ready(&mut lun);
    abort(&mut lun, TmrKind::AbortTask, &[aborted]);
    assert_eq!(lun.wait(aborted).status, Status::TaskAborted.code());
    gate.open();
    while ready(&mut lun).status != GOOD {}
    gate.close();
    let format = lun.submit(&FORMAT, Data::None);
    assert_eq!(ready(&mut lun).status, CHECK_CONDITION);
    assert!(!lun.has_finished(format), "nobody has aborted it");
    gate.open();
    assert_eq!(lun.wait(format).status, GOOD);
}

/// An initiator may be told that an aborted write was done: then it has to be.
#[test]
fn what_waits_in_the_kernel_is_not_cancelled() {
    let (mut lun, _gate, pipe) = stubborn();
    let aborted = lun.read(PIPE, 1);
    works_on(&mut lun);
    abort(&mut lun, TmrKind::AbortTask, &[aborted]);
    works_on(&mut lun);
    assert_eq!(lun.kernel.in_flight(), 1);
    std::io::Write::write_all(&mut &pipe, &[7; BLOCK]).unwrap();
    assert_eq!(lun.wait(aborted).status, GOOD);
    assert_eq!(lun.kernel.in_flight(), 0);
    assert_eq!(lun.kernel.broken(), None);
}

#[test]
fn a_notice_about_commands_that_are_done_changes_nothing() {
    let (mut lun, ..) = stubborn();
    let tag = lun.read(0, 1);
    lun.wait(tag);
    abort(&mut lun, TmrKind::LunReset, &[]);
    abort(&mut lun, TmrKind::AbortTask, &[tag]);
    assert_eq!(works_on(&mut lun).status, GOOD);
}

#[test]
fn a_reset_restores_mode_parameters() {
    let (mut lun, ..) = stubborn();
    let mut list = [0; 16];
    list[4..].copy_from_slice(&[0x0a, 0x0a, 0x06, 0x10, 0, 0x40, 0, 0, 0xff, 0xff, 0, 0]);
    let select = lun.submit(&[0x15, 0x10, 0, 0, 16, 0], Data::Out(&list));
    assert_eq!(lun.wait(select).status, GOOD);
    let format = |lun: &mut Lun| {
        let tag = lun.submit(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Data::None);
        lun.wait(tag).sense[0]
    };
    assert_eq!(format(&mut lun), 0x72);
    abort(&mut lun, TmrKind::AbortTask, &[]);
    assert_eq!(format(&mut lun), 0x72, "that was no reset");
    abort(&mut lun, TmrKind::LunReset, &[]);
    assert_eq!(format(&mut lun), 0x70);
}
