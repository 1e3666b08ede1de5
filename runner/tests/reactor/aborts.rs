//! Task management: aborted commands end as soon as they can, and nothing else suffers.

use std::future::poll_fn;
use std::io::PipeWriter;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use tcmu::mock::{CommandTag, Data, Finished};
use tcmu::ring::TmrKind;
use tcmu::scsi::Status;
use tcmu_handler::{Backstore, Buffer, Capabilities, Error, File, Io, Result, WriteFlags};

use crate::lun::{BLOCK, Lun, SIZE};

const GOOD: u8 = Status::Good.code();

/// Reads of this block wait until the gate is opened.
const STUCK: u32 = 8;
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
}

struct Stubborn {
    gate: SharedGate,
    pipe: File,
}

impl Backstore for Stubborn {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(SIZE)
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        match (offset / BLOCK as u64) as u32 {
            STUCK => self.gate.pass().await,
            PIPE => {
                let read = io.read_exact(&self.pipe, buffer, 0).await;
                return read.map_err(|error| Error::os("reading a pipe", error));
            }
            _ => {}
        }
        buffer.fill(offset as u8);
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Ok(())
    }
}

fn stubborn() -> (Lun, SharedGate, PipeWriter) {
    let gate = SharedGate::default();
    let (reader, writer) = std::io::pipe().unwrap();
    let backstore = Stubborn {
        gate: gate.clone(),
        pipe: Arc::new(reader.into()),
    };
    (Lun::new(backstore), gate, writer)
}

fn abort(lun: &mut Lun, kind: TmrKind, tags: &[CommandTag]) {
    lun.kernel.notify_task_management(kind, tags).unwrap();
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

#[test]
fn a_command_that_waits_for_another_ends_at_once() {
    let (mut lun, gate, _pipe) = stubborn();
    let stuck = lun.read(STUCK, 1);
    works_on(&mut lun);
    // COMPARE AND WRITE of the same block.
    let mut cdb = [0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x89, STUCK as u8, 1);
    let waiting = [
        lun.submit(&cdb, Data::Out(&[0; 2 * BLOCK])),
        lun.submit(&cdb, Data::Out(&[0; 2 * BLOCK])),
    ];
    works_on(&mut lun);
    assert_eq!(lun.kernel.in_flight(), 3);
    abort(&mut lun, TmrKind::AbortTask, &waiting[..1]);
    assert_eq!(lun.wait(waiting[0]).status, Status::TaskAborted.code());
    assert_eq!(lun.kernel.in_flight(), 2);
    // Nobody waits for the one that is gone.
    gate.open();
    assert_eq!(lun.wait(stuck).status, GOOD);
    lun.wait(waiting[1]);
    assert_eq!(lun.kernel.in_flight(), 0);
    assert_eq!(lun.kernel.broken(), None);
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
    abort(&mut lun, TmrKind::LunReset, &[]);
    assert_eq!(format(&mut lun), 0x70);
}
