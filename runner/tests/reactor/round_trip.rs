//! Data come back as they went.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tcmu::mock::{CommandTag, Data};
use tcmu::scsi::Status;
use tcmu_handler::{
    Backstore, Buffer, Capabilities, Handler as _, Io, OpenRequest, Result, WriteFlags,
};
use tcmu_handler_ram::RamHandler;

use crate::lun::{BLOCK, Lun, SIZE, image, image_with, pattern};

const GOOD: u8 = Status::Good.code();

#[test]
fn what_was_written_is_read_through_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut lun = Lun::new(image(folder.path()));
    let mut writes = Vec::new();
    for number in 0..32 {
        let data = pattern(number, 8 * BLOCK * (1 + number as usize % 4));
        writes.push((
            lun.write(number as u32 * 64, &data),
            number as u32 * 64,
            data,
        ));
    }
    for (tag, _, _) in &writes {
        assert_eq!(lun.wait(*tag).status, GOOD);
    }
    let mut reads = Vec::new();
    for (_, block, data) in writes.iter().rev() {
        reads.push((lun.read(*block, (data.len() / BLOCK) as u16), data));
    }
    for (tag, data) in reads {
        let finished = lun.wait(tag);
        assert_eq!(finished.status, GOOD);
        assert!(finished.data_in == *data);
    }
    let on_disk = std::fs::read(folder.path().join("image")).unwrap();
    for (_, block, data) in &writes {
        let at = *block as usize * BLOCK;
        assert!(on_disk[at..at + data.len()] == *data);
    }
    assert_eq!(lun.kernel.broken(), None);
    assert_eq!(lun.kernel.late_writes(), 0);
}

#[test]
fn commands_of_many_turns_of_the_ring_reach_an_image_with_direct_io() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut lun = Lun::new(image_with(folder.path(), "direct=on"));
    for round in 0..40u64 {
        let data = pattern(round, 128 * BLOCK);
        let tags: Vec<_> = (0..32).map(|slot| lun.write(slot * 128, &data)).collect();
        for tag in tags {
            assert_eq!(lun.wait(tag).status, GOOD);
        }
        let tag = lun.read((round % 32) as u32 * 128, 128);
        assert!(lun.wait(tag).data_in == data);
    }
    let flush = lun.submit(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], Data::None);
    assert_eq!(lun.wait(flush).status, GOOD);
    assert_eq!(lun.kernel.broken(), None);
}

/// Notes where the memory of requests lies.
struct Noting<B> {
    below: B,
    seen: Arc<Mutex<BTreeSet<(usize, usize)>>>,
}

impl<B> Noting<B> {
    fn note(&self, buffer: Buffer<'_>) {
        let base = buffer.memory().base() as usize;
        let mut seen = self.seen.lock().unwrap();
        seen.extend(buffer.segments().map(|part| (base + part.offset, part.len)));
    }
}

impl<B: Backstore> Backstore for Noting<B> {
    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.note(buffer);
        self.below.read(io, buffer, offset).await
    }

    async fn write(&self, io: &Io, buffer: Buffer<'_>, offset: u64, f: WriteFlags) -> Result<()> {
        self.note(buffer);
        self.below.write(io, buffer, offset, f).await
    }
}

/// The backstore gets the data area itself, and (as the tests of the engine and of the handler
/// `file` show) hands exactly that to the kernel: nothing in user space copies the data.
#[test]
fn a_backstore_works_on_the_pages_of_the_data_area() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let backstore = Noting {
        below: image(folder.path()),
        seen: Arc::clone(&seen),
    };
    let mut lun = Lun::new(backstore);
    let memory = Arc::clone(lun.kernel.memory());
    let (start, end) = (
        memory.as_ptr() as usize,
        memory.as_ptr() as usize + memory.len(),
    );

    let data = pattern(1, 64 * BLOCK);
    let tags = [lun.write(0, &data), lun.write(64, &data)];
    for tag in tags {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    let tag = lun.read(0, 128);
    assert_eq!(lun.wait(tag).status, GOOD);

    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty());
    for &(at, len) in seen.iter() {
        assert!(
            start <= at && at + len <= end,
            "{at:#x}+{len:#x} not in {start:#x}..{end:#x}"
        );
    }
}

#[test]
fn completions_of_a_turn_are_kicked_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut lun = Lun::new(image(folder.path()));
    let data = pattern(3, 8 * BLOCK);
    let warm: Vec<_> = (0..32).map(|number| lun.write(number * 8, &data)).collect();
    for tag in warm {
        lun.wait(tag);
    }
    let before = lun.reactor.counters();
    lun.kernel.plug();
    // Nothing of it reaches the image, so all of it is done in the turn in which it is seen.
    let tags: Vec<_> = (0..16).map(|_| lun.submit(&[0; 6], Data::None)).collect();
    lun.kernel.unplug();
    for tag in tags {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    let after = lun.reactor.counters();
    assert_eq!(after.kicks - before.kicks, 1);
    assert!(
        after.system_calls - before.system_calls <= 4,
        "{before:?} {after:?}"
    );
}

/// A LUN in memory, which does everything at once, so that each turn's commands are done in that turn.
fn in_memory() -> Lun {
    let request = OpenRequest {
        config: "portions".parse().unwrap(),
        size: SIZE,
        block_size: BLOCK as u32,
    };
    Lun::new(RamHandler.open(&request).unwrap())
}

/// Waits for commands of which no turn finishes more than `portion`, although they were there at once.
#[track_caller]
fn finish_in_portions(lun: &mut Lun, tags: &[CommandTag], portion: usize) {
    let mut finished = 0;
    while finished < tags.len() {
        lun.turn(true);
        let now = tags.iter().filter(|&&tag| lun.has_finished(tag)).count();
        assert!(now - finished <= portion, "{finished} before, {now} now");
        finished = now;
    }
    for &tag in tags {
        assert_eq!(lun.wait(tag).status, GOOD);
    }
}

#[test]
fn of_large_transfers_a_turn_takes_a_portion() {
    let mut lun = in_memory();
    let data = pattern(4, 256 << 10);
    let blocks = (data.len() / BLOCK) as u32;
    lun.kernel.plug();
    let tags: Vec<_> = (0..6)
        .map(|number| lun.write(number * blocks, &data))
        .collect();
    lun.kernel.unplug();
    finish_in_portions(&mut lun, &tags, 1);
}

#[test]
fn of_many_commands_a_turn_takes_a_portion() {
    let mut lun = in_memory();
    lun.kernel.plug();
    let tags: Vec<_> = (0..100).map(|_| lun.submit(&[0; 6], Data::None)).collect();
    lun.kernel.unplug();
    finish_in_portions(&mut lun, &tags, 16);
}
