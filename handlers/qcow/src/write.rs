//! Writes: in place where the guest's clusters are the image's own, through new clusters elsewhere.

use tcmu_handler::{Buffer, Io, Result};

use crate::allocate::Payload;
use crate::entry::State;
use crate::image::QcowImage;
use crate::layer::Layer;
use crate::mapping::{Found, Piece};
use crate::transfers::{self, Transfers, Way};

/// What is left to do when all transfers of a write have ended.
#[derive(Clone, Copy, Debug, Default)]
struct After {
    /// A mapping that was used is not in the file yet.
    settle: bool,
    /// Something that the write relies on is not durable, and has to be.
    flush: bool,
    /// Mappings were changed.
    allocated: bool,
}

impl QcowImage {
    /// Stores `buffer` at `offset`.
    pub(crate) async fn write_data(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        fua: bool,
    ) -> Result<()> {
        let mut after = After::default();
        {
            let _inside = self.writer()?.allocator.grace.enter();
            // Most requests lie within one piece: one transfer is all that they need.
            let place = match self.top.mapping.find(offset, buffer.len() as u64) {
                Ok(Found::Piece(piece)) if piece.len == buffer.len() as u64 => self
                    .in_place(&piece, fua, &mut after)
                    .filter(|(host, _)| self.admits(*host, piece.len)),
                _ => None,
            };
            match place {
                Some((host, durable)) => {
                    let (data, way) = (self.top.disk.data(), Way::Write { durable });
                    let result = transfers::start(io, way, data, buffer, host).await;
                    if !transfers::is_whole(&result, &buffer) {
                        let rest = transfers::complete(io, way, data, buffer, host, result);
                        Box::pin(rest).await?;
                    }
                }
                None => after = Box::pin(self.write_pieces(io, buffer, offset, fua)).await?,
            }
        }
        if after.flush {
            Box::pin(self.make_durable(io)).await?;
        } else if after.settle {
            let Layer { disk, mapping, .. } = &self.top;
            Box::pin(mapping.settle(io, disk)).await?;
        }
        if after.allocated {
            Box::pin(self.after_allocating(io)).await?;
        }
        Ok(())
    }

    async fn after_allocating(&self, io: &Io) -> Result<()> {
        let allocator = &self.writer()?.allocator;
        if allocator.is_low() {
            allocator.look_ahead(io, &self.top.disk).await;
        }
        self.tidy(io).await
    }

    /// Writes what takes more than one transfer.
    async fn write_pieces(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        fua: bool,
    ) -> Result<After> {
        let mut transfers = Transfers::new(io, buffer);
        let started = self
            .start_writing(io, buffer, offset, fua, &mut transfers)
            .await;
        transfers.finish().await.and(started)
    }

    async fn start_writing<'a>(
        &'a self,
        io: &'a Io,
        buffer: Buffer<'a>,
        offset: u64,
        fua: bool,
        transfers: &mut Transfers<'a>,
    ) -> Result<After> {
        let disk = &self.top.disk;
        let mut after = After::default();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let rest = buffer.slice(done..buffer.len()).unwrap_or(buffer);
            let piece = self.top.find(io, at, rest.len() as u64).await?;
            let Some((host, durable)) = self.in_place(&piece, fua, &mut after) else {
                let payload = Payload::Bytes(rest);
                done += Box::pin(self.allocate(io, payload, at)).await? as usize;
                after.allocated = true;
                after.flush |= fua;
                continue;
            };
            self.check_place(io, host, piece.len).await?;
            let end = done + piece.len as usize;
            transfers.write(disk.data(), done..end, host, durable).await;
            done = end;
        }
        Ok(after)
    }

    /// Where a piece is written in place, and whether that write has to be durable by itself;
    /// nothing if it needs another mapping.
    fn in_place(&self, piece: &Piece, fua: bool, after: &mut After) -> Option<(u64, bool)> {
        let State::Data { host, owned: true } = piece.state else {
            return None;
        };
        after.settle |= piece.dirty;
        // One durable write is enough if what leads to the data is durable already.
        let alone = !piece.dirty && self.top.disk.barrier.is_settled();
        after.flush |= fua && !alone;
        Some((host, fua && alone))
    }
}
