//! Writes to files in memory.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::task::Waker;

use tcmu_handler::File;

use super::*;

struct Setting {
    engine: UringEngine,
    file: File,
}

impl Setting {
    fn new() -> Self {
        let memory = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
        Self {
            engine: UringEngine::new(BlockingPool::new(1)).unwrap(),
            file: Arc::new(memory.unwrap()),
        }
    }

    /// Begins to write so many bytes of this value.
    fn write(&self, file: &File, byte: u8, len: usize, offset: u64) -> Ticket {
        let buffer = self.engine.allocate(len).unwrap();
        let buffer = buffer.view();
        buffer.fill(byte);
        Engine::submit(
            &self.engine,
            Operation::Write {
                file,
                buffer,
                offset,
                durable: false,
                in_memory: true,
            },
        )
    }

    fn poll(&self, ticket: Ticket) -> Poll<io::Result<u32>> {
        self.engine
            .poll(ticket, &mut Context::from_waker(Waker::noop()))
    }

    fn turn(&self, wait: Wait) {
        self.engine.turn(wait, &mut Vec::new()).unwrap();
    }

    /// Takes turns until the operation has ended.
    fn end(&self, ticket: Ticket) -> io::Result<u32> {
        loop {
            if let Poll::Ready(result) = self.poll(ticket) {
                return result;
            }
            self.turn(Wait::Event);
        }
    }

    /// The bytes of the file, each value once, and how many there are of it.
    fn content(&self) -> Vec<(u8, usize)> {
        let file = fs::File::from(self.file.try_clone().unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let chunks = bytes.chunk_by(|one, next| one == next);
        chunks.map(|chunk| (chunk[0], chunk.len())).collect()
    }
}

#[test]
fn a_lonely_write_to_memory_ends_at_once() {
    let setting = Setting::new();
    let ticket = setting.write(&setting.file, 7, 4096, 512);
    assert!(setting.poll(ticket).is_pending());
    // It would sleep for ever if it had nothing to say.
    setting.turn(Wait::Event);
    assert!(matches!(setting.poll(ticket), Poll::Ready(Ok(4096))));
    assert_eq!(setting.engine.counters().system_calls, 2);
    assert_eq!(setting.content(), [(0, 512), (7, 4096)]);
    assert!(!setting.engine.is_busy());
}

#[test]
fn several_writes_to_memory_share_a_system_call() {
    let setting = Setting::new();
    let tickets = [1, 2, 3].map(|n| setting.write(&setting.file, n, 4096, u64::from(n) << 12));
    setting.turn(Wait::No);
    assert_eq!(setting.engine.counters().system_calls, 1);
    for ticket in tickets {
        assert_eq!(setting.end(ticket).unwrap(), 4096);
    }
    assert_eq!(
        setting.content(),
        [(0, 4096), (1, 4096), (2, 4096), (3, 4096)]
    );
}

#[test]
fn a_write_that_is_alone_by_chance_goes_the_way_of_the_others() {
    let setting = Setting::new();
    setting.engine.expect_crowd(true);
    let ticket = setting.write(&setting.file, 7, 4096, 0);
    setting.turn(Wait::No);
    assert_eq!(setting.engine.counters().system_calls, 1);
    assert_eq!(setting.end(ticket).unwrap(), 4096);
    assert_eq!(setting.content(), [(7, 4096)]);
}

#[test]
fn the_kernel_s_answer_is_the_same_on_both_ways() {
    let setting = Setting::new();
    let read_only = fs::File::open("/proc/self/exe").unwrap();
    let read_only: File = Arc::new(OwnedFd::from(read_only));
    let ticket = setting.write(&read_only, 1, 512, 0);
    let alone = setting.end(ticket).unwrap_err();
    let tickets = [0, 512].map(|offset| setting.write(&read_only, 1, 512, offset));
    for ticket in tickets {
        let together = setting.end(ticket).unwrap_err();
        assert_eq!(together.raw_os_error(), alone.raw_os_error());
    }
    assert_eq!(alone.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_write_that_nobody_waits_for_is_done_all_the_same() {
    let mut setting = Setting::new();
    let ticket = setting.write(&setting.file, 5, 4096, 0);
    setting.engine.forget(ticket);
    assert!(setting.engine.has_forgotten());
    setting.turn(Wait::No);
    assert!(!setting.engine.has_forgotten());
    assert_eq!(setting.content(), [(5, 4096)]);

    // Not even the engine.
    setting.write(&setting.file, 6, 4096, 4096);
    setting.engine = UringEngine::new(BlockingPool::new(1)).unwrap();
    assert_eq!(setting.content(), [(5, 4096), (6, 4096)]);
}
