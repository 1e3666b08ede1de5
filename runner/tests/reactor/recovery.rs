//! A reactor goes away in the middle of its work, and another goes on with the same commands.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU32;
use std::sync::Arc;

use tcmu::mock::{CommandTag, Config, Data, MockKernel};
use tcmu::ring::recovery::{Owner, Table};
use tcmu_runner::LocalReactor;
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit};

use crate::lun::{BLOCK, SIZE, image, pattern, rw};

const OWNER: Owner = [1; 32];
/// How many blocks a command transfers.
const BLOCKS: u16 = 16;
const PLACES: usize = 64;

struct Site {
    kernel: MockKernel,
    table: File,
    folder: tempfile::TempDir,
    random: u64,
    /// What each place holds: the seed of its pattern.
    content: Vec<u64>,
    /// The commands that have not ended: their place, and what a write writes.
    commands: BTreeMap<CommandTag, (usize, Option<u64>)>,
}

impl Site {
    fn new(seed: u64) -> Self {
        let config = Config {
            blocks: 256,
            ..Config::default()
        };
        let (mut kernel, device) = MockKernel::new(config).unwrap();
        let table = tempfile::tempfile().unwrap();
        Table::create(table.try_clone().unwrap(), &OWNER, device.memory()).unwrap();
        kernel.reopen().unwrap();
        Self {
            kernel,
            table,
            folder: tempfile::tempdir().unwrap(),
            random: seed,
            content: vec![0; PLACES],
            commands: BTreeMap::new(),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % below
    }

    fn start(&mut self) -> LocalReactor {
        let device = self.kernel.reopen().unwrap();
        let memory = Arc::clone(device.memory());
        let table = Table::open(self.table.try_clone().unwrap(), &OWNER, &memory).unwrap();
        let geometry = Geometry {
            size: SIZE,
            block_size: NonZeroU32::new(BLOCK as u32).unwrap(),
            max_transfer_blocks: 0,
        };
        let backstore = image(self.folder.path());
        let unit = LogicalUnit::new(backstore, Identity::default(), geometry, true);
        let mut reactor = LocalReactor::new(2).unwrap();
        let device = Box::new(device);
        reactor
            .attach_with_table("test".to_owned(), device, memory, table, unit)
            .unwrap();
        reactor
    }

    /// A command on a place that no other command is about.
    fn submit(&mut self) {
        let place = self.random(PLACES);
        if self.commands.values().any(|(other, _)| *other == place) {
            return;
        }
        let block = (place * usize::from(BLOCKS)) as u32;
        let len = usize::from(BLOCKS) * BLOCK;
        let write = (self.random(2) == 0).then(|| 1 + self.random(1000) as u64);
        let submitted = match write {
            Some(seed) => {
                let data = pattern(seed, len);
                self.kernel
                    .submit(&rw(0x2a, block, BLOCKS), Data::Out(&data))
            }
            None => self.kernel.submit(&rw(0x28, block, BLOCKS), Data::In(len)),
        };
        // There may be no room.
        if let Ok(tag) = submitted {
            self.commands.insert(tag, (place, write));
        }
    }

    fn reap(&mut self) -> usize {
        let finished = self.kernel.reap();
        let count = finished.len();
        for finished in finished {
            let (place, write) = self.commands.remove(&finished.tag).expect("ended twice");
            assert_eq!(finished.status, 0, "sense {:02x?}", finished.sense);
            if let Some(seed) = write {
                self.content[place] = seed;
                continue;
            }
            let len = usize::from(BLOCKS) * BLOCK;
            let expected = match self.content[place] {
                0 => vec![0; len],
                seed => pattern(seed, len),
            };
            assert!(finished.data_in == expected, "place {place}");
        }
        assert_eq!(self.kernel.broken(), None);
        count
    }
}

#[test]
fn nothing_is_lost_and_nothing_done_twice_whenever_a_reactor_goes_away() {
    for seed in 1..40_u64 {
        let mut site = Site::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut ended = 0;
        for _ in 0..10 {
            let mut reactor = site.start();
            for _ in 0..site.random(12) {
                for _ in 0..site.random(8) {
                    site.submit();
                }
                reactor.turn(false).unwrap();
                if site.random(3) == 0 {
                    ended += site.reap();
                }
            }
            // What the kernel was told it may see before or after the next one starts.
            drop(reactor);
            if site.random(2) == 0 {
                ended += site.reap();
            }
        }
        let mut reactor = site.start();
        while !site.commands.is_empty() {
            reactor.turn(ended == 0).unwrap();
            ended = site.reap();
        }
        assert_eq!(site.kernel.in_flight(), 0);
        assert_eq!(site.kernel.late_writes(), 0);
    }
}

#[test]
fn a_successor_tells_the_kernel_what_was_published_but_not_kicked() {
    let mut site = Site::new(7);
    let mut reactor = site.start();
    while site.commands.is_empty() {
        site.submit();
    }
    let tail = |site: &Site| site.kernel.memory().load_u32(64).unwrap();
    let before = tail(&site);
    // The kick goes out with the system call of the turn after the publication.
    while tail(&site) == before {
        reactor.turn(false).unwrap();
    }
    drop(reactor);
    let mut reactor = site.start();
    reactor.turn(false).unwrap();
    reactor.turn(false).unwrap();
    assert!(site.kernel.wait_kick().unwrap());
    assert_eq!(site.reap(), 1);
}
