//! A LUN on a mock kernel, served by a reactor of the test's own thread.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use tcmu::mock::{CommandTag, Config, Data, Finished, MockKernel};
use tcmu_handler::{Backstore, Handler, OpenRequest};
use tcmu_handler_file::{FileHandler, FileImage};
use tcmu_runner::device_server::{Geometry, Identity};
use tcmu_runner::{CopyDirectory, LocalReactor};

pub(crate) const BLOCK: usize = 512;
pub(crate) const SIZE: u64 = 8 << 20;

pub(crate) struct Lun {
    pub(crate) kernel: MockKernel,
    pub(crate) reactor: LocalReactor,
    finished: BTreeMap<CommandTag, Finished>,
}

impl Lun {
    pub(crate) fn new<B: Backstore>(backstore: B) -> Self {
        Self::with_config(
            backstore,
            Config {
                blocks: 4096,
                ..Config::default()
            },
        )
    }

    pub(crate) fn with_config<B: Backstore>(backstore: B, config: Config) -> Self {
        let identity = Identity {
            name: "test".to_owned(),
            ..Identity::default()
        };
        Self::attached(LocalReactor::new(4).unwrap(), backstore, config, identity)
    }

    /// A LUN that can copy to and from others in `directory`, as `name`.
    pub(crate) fn among<B: Backstore>(
        directory: &Arc<CopyDirectory>,
        name: &str,
        serial: &str,
        backstore: B,
    ) -> Self {
        let mut reactor = LocalReactor::new(4).unwrap();
        reactor.meet(Arc::clone(directory));
        let identity = Identity {
            name: name.to_owned(),
            serial: serial.to_owned(),
            ..Identity::default()
        };
        Self::attached(reactor, backstore, Config::default(), identity)
    }

    fn attached<B: Backstore>(
        mut reactor: LocalReactor,
        backstore: B,
        config: Config,
        identity: Identity,
    ) -> Self {
        let (kernel, device) = MockKernel::new(config).unwrap();
        let memory = Arc::clone(device.memory());
        let geometry = Geometry {
            size: SIZE,
            block_size: NonZeroU32::new(BLOCK as u32).unwrap(),
            max_transfer_blocks: 0,
        };
        reactor
            .attach(
                Box::new(device),
                memory,
                backstore,
                identity,
                geometry,
                true,
            )
            .unwrap();
        let mut lun = Self {
            kernel,
            reactor,
            finished: BTreeMap::new(),
        };
        lun.clear_attention();
        lun
    }

    /// The first command hears of the power on, if anything is to be heard.
    fn clear_attention(&mut self) {
        let tag = self.submit(&[0; 6], Data::None);
        self.wait(tag);
    }

    pub(crate) fn submit(&mut self, cdb: &[u8], data: Data<'_>) -> CommandTag {
        self.kernel.submit(cdb, data).unwrap()
    }

    pub(crate) fn read(&mut self, block: u32, blocks: u16) -> CommandTag {
        self.submit(
            &rw(0x28, block, blocks),
            Data::In(usize::from(blocks) * BLOCK),
        )
    }

    pub(crate) fn write(&mut self, block: u32, data: &[u8]) -> CommandTag {
        let blocks = (data.len() / BLOCK) as u16;
        self.submit(&rw(0x2a, block, blocks), Data::Out(data))
    }

    /// One turn of the reactor and one of the kernel. Sleeps, unless a command just finished.
    pub(crate) fn turn(&mut self, wait: bool) {
        self.reactor.turn(wait).unwrap();
        for finished in self.kernel.reap() {
            self.finished.insert(finished.tag, finished);
        }
    }

    /// Whether the command has finished, as far as is known.
    pub(crate) fn has_finished(&self, tag: CommandTag) -> bool {
        self.finished.contains_key(&tag)
    }

    /// Runs until the command has finished.
    pub(crate) fn wait(&mut self, tag: CommandTag) -> Finished {
        let mut wait = true;
        loop {
            if let Some(finished) = self.finished.remove(&tag) {
                return finished;
            }
            let before = self.finished.len();
            self.turn(wait);
            wait = before == self.finished.len();
        }
    }
}

/// A CDB of READ(10) or WRITE(10).
pub(crate) fn rw(opcode: u8, block: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&block.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// An image of [`SIZE`] bytes in `folder`.
pub(crate) fn image(folder: &Path) -> FileImage {
    image_with(folder, "direct=off")
}

/// An image of [`SIZE`] bytes in `folder`, with an option of the handler `file`.
pub(crate) fn image_with(folder: &Path, option: &str) -> FileImage {
    let config = format!("{}/image;create=on;{option}", folder.display())
        .parse()
        .unwrap();
    FileHandler
        .open(&OpenRequest {
            config,
            size: SIZE,
            block_size: BLOCK as u32,
        })
        .unwrap()
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}
