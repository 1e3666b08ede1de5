//! A LUN on the mock kernel that serves 4 KiB reads and writes.

use std::num::NonZeroU32;
use std::sync::Arc;

use tcmu::mock::{Config, Data, MockKernel};
use tcmu::ring::recovery::Table;
use tcmu_handler::{Backstore, Handler, OpenRequest};
use tcmu_handler_file::FileHandler;
use tcmu_handler_null::NullHandler;
use tcmu_handler_qcow::QcowHandler;
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit};
use tcmu_runner::{Counters, LocalReactor};

const SIZE: u64 = 64 << 20;
const BLOCK: u32 = 512;
const TRANSFER: usize = 4096;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// What a LUN stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Nothing: neither reads nor writes touch the data.
    Null,
    /// A file in a temporary folder.
    File,
    /// A qcow2 image in a temporary folder, with clusters for all its data.
    Qcow,
    /// A qcow2 image without any data.
    EmptyQcow,
}

pub(crate) const NULL: Below = Below::Null;
pub(crate) const FILE: Below = Below::File;
pub(crate) const QCOW: Below = Below::Qcow;
#[allow(dead_code, reason = "not every user asks")]
pub(crate) const EMPTY_QCOW: Below = Below::EmptyQcow;

impl Below {
    pub(crate) fn lun(self) -> Lun {
        let request = |config: &str| OpenRequest {
            config: config.parse().unwrap(),
            size: SIZE,
            block_size: BLOCK,
        };
        match self {
            Self::Null => Lun::new(NullHandler.open(&request("x;fill=off")).unwrap(), None),
            Self::File => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("image");
                std::fs::write(&path, vec![1; SIZE as usize]).unwrap();
                let config = path.display().to_string();
                Lun::new(FileHandler.open(&request(&config)).unwrap(), Some(folder))
            }
            Self::Qcow => Lun::on_qcow("full", &request),
            Self::EmptyQcow => Lun::on_qcow("off", &request),
        }
    }
}

pub(crate) struct Lun {
    kernel: MockKernel,
    reactor: LocalReactor,
    next: u32,
    _folder: Option<tempfile::TempDir>,
}

impl Lun {
    fn new<B: Backstore>(backstore: B, folder: Option<tempfile::TempDir>) -> Self {
        let config = Config {
            poison: false,
            ..Config::default()
        };
        let (kernel, device) = MockKernel::new(config).unwrap();
        let mut reactor = LocalReactor::new(1).unwrap();
        let memory = Arc::clone(device.memory());
        let geometry = Geometry {
            size: SIZE,
            block_size: NonZeroU32::new(BLOCK).unwrap(),
            max_transfer_blocks: 0,
        };
        // With an in-flight table, as the daemon has one.
        let table = tempfile::tempfile().unwrap();
        let table = Table::create(table, &[0; 32], &memory).unwrap();
        let unit = LogicalUnit::new(backstore, Identity::default(), geometry, true);
        let device = Box::new(device);
        reactor
            .attach_with_table("bench".to_owned(), device, memory, table, unit)
            .unwrap();
        Self {
            kernel,
            reactor,
            next: 0,
            _folder: folder,
        }
    }

    fn on_qcow(preallocation: &str, request: &dyn Fn(&str) -> OpenRequest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let path = path.display();
        let config = format!("{path};create=on;preallocation={preallocation}");
        Self::new(QcowHandler.open(&request(&config)).unwrap(), Some(folder))
    }

    /// Has the kernel submit `count` commands at places all over the LUN, with one signal.
    pub(crate) fn submit(&mut self, way: Way, count: usize) {
        let data = [7; TRANSFER];
        let blocks = TRANSFER as u32 / BLOCK;
        self.kernel.plug();
        for _ in 0..count {
            self.next = self
                .next
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            let block = (self.next >> 8) % (SIZE as u32 / TRANSFER as u32) * blocks;
            let mut cdb = [0; 10];
            cdb[2..6].copy_from_slice(&block.to_be_bytes());
            cdb[8] = blocks as u8;
            let data = match way {
                Way::Read => {
                    cdb[0] = tcmu::scsi::opcode::READ_10;
                    Data::In(TRANSFER)
                }
                Way::Write => {
                    cdb[0] = tcmu::scsi::opcode::WRITE_10;
                    Data::Out(&data)
                }
            };
            self.kernel.submit(&cdb, data).unwrap();
        }
        self.kernel.unplug();
    }

    /// What the runner has done so far.
    #[allow(dead_code, reason = "not every user asks")]
    pub(crate) fn counters(&self) -> Counters {
        self.reactor.counters()
    }

    /// Has the runner serve `count` commands.
    pub(crate) fn serve(&mut self, count: usize) {
        let mut left = count;
        let mut wait = true;
        while left > 0 {
            runner_turn(&mut self.reactor, wait);
            let finished = self.kernel.reap();
            assert!(finished.iter().all(|finished| finished.status == 0));
            left -= finished.len();
            wait = finished.is_empty();
        }
    }
}

/// A function of its own, for a profiler to tell the runner's work from the mock kernel's.
#[inline(never)]
fn runner_turn(reactor: &mut LocalReactor, wait: bool) {
    reactor.turn(wait).unwrap();
}
