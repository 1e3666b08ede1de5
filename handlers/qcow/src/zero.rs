//! Zeroes without data: unmapping, and WRITE SAME of zeroes.

use tcmu_handler::{Extent, Io, Result};

use crate::allocate::Payload;
use crate::disk::Below;
use crate::entry::{Entry, State};
use crate::image::{QcowImage, Writer};
use crate::layer::Layer;
use crate::mapping::Piece;

impl QcowImage {
    /// Makes a range read as zeroes.
    pub(crate) async fn zero_range(&self, io: &Io, extent: Extent, below: Below) -> Result<()> {
        let _inside = self.writer()?.allocator.grace.enter();
        let mut at = extent.offset;
        while at < extent.end() {
            let piece = self.top.find(io, at, extent.end() - at).await?;
            at += self.zero_piece(io, at, extent.end(), piece, below).await?;
        }
        Ok(())
    }

    /// Zeroes some of a piece, or of the cluster that it begins in; returns how many bytes.
    async fn zero_piece(
        &self,
        io: &Io,
        at: u64,
        end: u64,
        piece: Piece,
        below: Below,
    ) -> Result<u64> {
        let Layer { disk, mapping, .. } = &self.top;
        let layout = &mapping.layout;
        let whole = self.whole_clusters(at, end);
        // An external data file keeps every cluster at its place, and version 2 cannot say that a
        // cluster is zero although the image below has data there.
        let kept = layout.external || (layout.version == 2 && self.is_backed(at));
        match piece.state {
            State::Zero => Ok(piece.len),
            State::Unallocated if !self.is_backed(at) => Ok(piece.len),
            State::Data { host, owned: true } if kept || below == Below::Kept || whole == 0 => {
                let next = layout.cluster_start(at) + layout.cluster_size();
                let len = if kept || below == Below::Kept {
                    piece.len
                } else {
                    piece.len.min(next - at)
                };
                self.check_place(io, host, len).await?;
                let extent = Extent { offset: host, len };
                disk.zero(io, disk.data(), extent, below).await?;
                if piece.dirty {
                    mapping.settle(io, disk).await?;
                }
                Ok(len)
            }
            _ if whole != 0 && !kept => Box::pin(self.drop_clusters(io, at, whole)).await,
            _ => {
                let next = layout.cluster_start(at) + layout.cluster_size();
                let len = if whole != 0 {
                    whole
                } else {
                    end.min(next) - at
                };
                Box::pin(self.allocate(io, Payload::Zeroes(len), at)).await
            }
        }
    }

    /// How many bytes from `at` on are whole clusters, before `end`. The last cluster of the disk
    /// is whole without what lies behind the end of the disk.
    fn whole_clusters(&self, at: u64, end: u64) -> u64 {
        let layout = &self.top.mapping.layout;
        if layout.cluster_start(at) != at {
            return 0;
        }
        if end >= self.top.mapping.size.get() {
            end - at
        } else {
            layout.cluster_start(end).saturating_sub(at)
        }
    }

    /// Has whole clusters, `len` bytes from `at` on, map to zeroes without storage; returns how
    /// many bytes of them.
    async fn drop_clusters(&self, io: &Io, at: u64, len: u64) -> Result<u64> {
        let Writer {
            allocator,
            changing,
        } = self.writer()?;
        let Layer { disk, mapping, .. } = &self.top;
        let layout = &mapping.layout;
        let end = (at + len).min(layout.slice_end(at));
        let clusters = at >> layout.cluster_bits..=(end - 1) >> layout.cluster_bits;
        let _held = changing.lock(clusters.clone()).await;
        let slice = self.own_slice(io, at).await?;
        let mut replaced = Vec::new();
        for cluster in clusters.clone() {
            let keeps = slice
                .entry(cluster, layout)
                .keeps(layout)
                .map_err(|corrupt| corrupt.at(&disk.storage.path, at))?;
            replaced.extend(keeps);
        }
        for (offset, len) in &replaced {
            if disk.bounds.is_table(*offset, *len) {
                return Err(disk.corrupt(&format!("guest data at {offset:#x} lie in its tables")));
            }
        }
        for cluster in clusters {
            let start = cluster << layout.cluster_bits;
            let entry = if self.is_backed(start) {
                Entry::zero(layout)
            } else {
                Entry::default()
            };
            slice.set(cluster, entry, layout);
        }
        mapping.changed(&slice);
        mapping.write(io, disk, &slice).await?;
        let mark = disk.barrier.mark();
        for (offset, len) in replaced {
            allocator.free(offset, len, mark);
        }
        Ok(end - at)
    }
}
