//! The images of a chain, and which of them has the bytes at an offset.

use tcmu_handler::{Buffer, Io, Result};

use crate::compress::Unpacker;
use crate::disk::Disk;
use crate::entry::{Compressed, State};
use crate::mapping::{Found, Mapping, Piece};
use crate::storage::Storage;
use crate::transfers::Transfers;

/// A qcow2 image of a chain.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) disk: Disk,
    pub(crate) mapping: Mapping,
    pub(crate) unpacker: Unpacker,
}

/// An image below another.
#[derive(Debug)]
pub(crate) enum Backing {
    Raw { storage: Storage, size: u64 },
    Qcow(Box<Layer>),
}

impl Backing {
    /// Bytes of its virtual disk. What lies behind reads as zeroes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Raw { size, .. } => *size,
            Self::Qcow(layer) => layer.mapping.size.get(),
        }
    }
}

/// Where the bytes of a range come from.
#[derive(Debug)]
pub(crate) enum Origin<'a> {
    Zero,
    File(&'a Storage, u64),
    /// A compressed cluster, and where in it the range begins.
    Packed(&'a Layer, Compressed, u64),
}

impl Layer {
    /// What this image has at `offset`, loading what is needed to know.
    pub(crate) async fn find(&self, io: &Io, offset: u64, len: u64) -> Result<Piece> {
        loop {
            match self.mapping.find(offset, len) {
                Ok(Found::Piece(piece)) => return Ok(piece),
                Ok(Found::Missing(number)) => {
                    Box::pin(self.mapping.load(io, &self.disk, number)).await?;
                }
                Err(corrupt) => return Err(corrupt.at(&self.disk.storage.path, offset)),
            }
        }
    }

    /// Where a range lies in the data file, if that is known and the range is one piece.
    pub(crate) fn in_one_piece(&self, offset: u64, len: u64) -> Option<u64> {
        match self.mapping.find(offset, len) {
            Ok(Found::Piece(Piece {
                state: State::Data { host, .. },
                len: found,
                ..
            })) if found == len => Some(host),
            _ => None,
        }
    }

    /// The origin of a piece that this image has; nothing if that is for the image below to say.
    fn origin(&self, piece: &Piece, offset: u64) -> Option<Origin<'_>> {
        match piece.state {
            State::Unallocated => None,
            State::Zero => Some(Origin::Zero),
            State::Data { host, .. } => Some(Origin::File(self.disk.data(), host)),
            State::Compressed(packed) => {
                let start = self.mapping.layout.cluster_start(offset);
                Some(Origin::Packed(self, packed, offset - start))
            }
        }
    }
}

/// Where the bytes at `offset` come from, and up to which length that holds.
pub(crate) async fn resolve<'a>(
    io: &Io,
    top: &'a Layer,
    backing: &'a [Backing],
    offset: u64,
    len: u64,
) -> Result<(Origin<'a>, u64)> {
    let piece = top.find(io, offset, len).await?;
    let mut len = piece.len;
    if let Some(origin) = top.origin(&piece, offset) {
        return Ok((origin, len));
    }
    for image in backing {
        let size = image.size();
        if offset >= size {
            break;
        }
        len = len.min(size - offset);
        match image {
            Backing::Raw { storage, .. } => return Ok((Origin::File(storage, offset), len)),
            Backing::Qcow(layer) => {
                let piece = layer.find(io, offset, len).await?;
                len = piece.len;
                if let Some(origin) = layer.origin(&piece, offset) {
                    return Ok((origin, len));
                }
            }
        }
    }
    Ok((Origin::Zero, len))
}

/// Fills `buffer` with the bytes of the virtual disk at `offset`.
pub(crate) async fn read(
    io: &Io,
    top: &Layer,
    backing: &[Backing],
    buffer: Buffer<'_>,
    offset: u64,
) -> Result<()> {
    let mut transfers = Transfers::new(io, buffer);
    let started = start(io, top, backing, buffer, offset, &mut transfers).await;
    let finished = transfers.finish().await;
    started.and(finished)
}

async fn start<'a>(
    io: &'a Io,
    top: &'a Layer,
    backing: &'a [Backing],
    buffer: Buffer<'a>,
    offset: u64,
    transfers: &mut Transfers<'a>,
) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        let left = (buffer.len() - done) as u64;
        let (origin, len) = resolve(io, top, backing, at, left).await?;
        let end = done + len as usize;
        let part = buffer.slice(done..end).unwrap_or(buffer);
        match origin {
            Origin::Zero => part.fill(0),
            Origin::File(storage, host) => transfers.read(storage, done..end, host).await,
            Origin::Packed(layer, packed, within) => {
                let bytes = Box::pin(layer.unpacker.unpack(io, &layer.disk, packed)).await?;
                let from = within as usize;
                part.copy_from(0, bytes.get(from..from + part.len()).unwrap_or(&[]));
            }
        }
        done = end;
    }
    Ok(())
}
