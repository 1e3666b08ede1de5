//! The other logical units that a copy may reach, and what copies ask of a unit.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{File, Io, OwnedBuffer};

use super::reply::Failure;

/// A future that stays on its thread.
pub(crate) type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What a copy asks of one of its ends, on the end's own thread.
#[derive(Debug)]
pub(crate) enum CopyRequest {
    /// What it is like. A destination also says whether it takes data.
    Describe { destination: bool },
    /// Fill the buffer with the blocks from `lba` on.
    Read { lba: u64, buffer: OwnedBuffer },
    /// Write the buffer, which is whole blocks, from `lba` on.
    Write { lba: u64, buffer: OwnedBuffer },
    /// Have the kernel copy `len` bytes, which are whole blocks, from `offset` of `source`.
    CopyFrom {
        lba: u64,
        source: File,
        offset: u64,
        len: u64,
    },
}

/// What it answers.
#[derive(Debug)]
pub(crate) enum CopyReply {
    Described(CopyEnd),
    Done,
    /// The kernel does not copy between these two files: read and write instead.
    NotOffloaded,
}

/// What one end of a copy is like.
#[derive(Clone, Debug)]
pub(crate) struct CopyEnd {
    /// In bytes.
    pub(crate) block_size: u32,
    /// The number of blocks.
    pub(crate) blocks: u64,
    /// The file that holds the image byte by byte, if there is one.
    pub(crate) file: Option<File>,
}

/// How a request ends.
pub(crate) type CopyResult = Result<CopyReply, CopyFailure>;

/// Why an end of a copy did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyFailure(pub(super) Failure);

impl CopyFailure {
    /// The unit is not served any more.
    pub(crate) fn gone() -> Self {
        let code = AdditionalSense::LOGICAL_UNIT_COMMUNICATION_FAILURE;
        Self(Sense::new(SenseKey::NotReady, code).into())
    }
}

/// A logical unit on another thread, or of another backstore on this one.
pub(crate) trait Neighbour {
    /// Has it do something for a copy.
    fn ask(&self, request: CopyRequest) -> Local<'static, CopyResult>;
}

/// How a logical unit is known to the others of its runner, and finds them.
pub(crate) trait Neighbours: Debug {
    /// What the others know the unit by, as long as it is served.
    fn own_key(&self) -> u64;

    /// The unit's designator is now this, or it has none.
    fn introduce(&self, designator: Option<[u8; 16]>);

    /// The other unit with this designator, if everybody who sees this unit sees that one too, and
    /// may read or, `for_writing`, write it.
    fn find<'a>(
        &'a self,
        io: &'a Io,
        designator: [u8; 16],
        for_writing: bool,
    ) -> Local<'a, Option<Box<dyn Neighbour>>>;
}
