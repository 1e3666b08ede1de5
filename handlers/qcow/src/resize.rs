//! Larger images. Smaller ones would lose data, and are not made.

use tcmu_handler::{ErrorKind, Extent, Io, Result};

use crate::barrier::Mark;
use crate::disk::Below;
use crate::fault::{failed, refused};
use crate::header::field;
use crate::image::{QcowImage, out_of_range};
use crate::layer::Layer;
use crate::open::usable_size;
use crate::refcounts::bytes_of;

/// qemu opens no larger L1 table.
const LARGEST_L1: u64 = (32 << 20) / 8;

impl QcowImage {
    /// Makes the disk at least `size` bytes large; what is new reads as zeroes.
    pub(crate) async fn grow(&self, io: &Io, size: u64) -> Result<()> {
        let Layer { disk, mapping, .. } = &self.top;
        let path = &disk.storage.path;
        let have = mapping.size.get();
        if self.writer.is_none() {
            return Err(out_of_range(path, have, size));
        }
        let size = size.next_multiple_of(512);
        let unsupported = |why: &str| Err(refused(ErrorKind::Unsupported, path, why));
        if self.header.bitmaps.is_some() {
            return unsupported(
                "an image with persistent bitmaps is not made larger; `qemu-img resize` does it \
                 while the LUN does not exist",
            );
        }
        if mapping.layout.version == 2 && !self.snapshots.is_empty() {
            return unsupported(
                "an image of version 2 with snapshots is not made larger, because they have no \
                 size of their own; `qemu-img amend -o compat=1.1` makes it version 3",
            );
        }
        self.grow_l1(io, size).await?;
        self.grow_data_file(io, size).await?;
        // The last cluster may hold anything behind the old end, and the image below may be longer.
        let shown = self.backing.first().map_or(0, |image| image.size());
        let cluster_end = mapping
            .layout
            .cluster_start(have + mapping.layout.cluster_size() - 1);
        let end = size.min(cluster_end.max(shown));
        mapping.size.set(size);
        let zeroed = async {
            if end > have {
                let len = end - have;
                let extent = Extent { offset: have, len };
                self.zero_range(io, extent, Below::Punched).await?;
            }
            self.make_durable(io).await?;
            disk.patch_header(io, &[(field::SIZE, &size.to_be_bytes())])
                .await
        };
        if let Err(error) = zeroed.await {
            mapping.size.set(have);
            return Err(error);
        }
        let mut capabilities = self.capabilities.get();
        capabilities.size = usable_size(size);
        self.capabilities.set(capabilities);
        Ok(())
    }

    async fn grow_l1(&self, io: &Io, size: u64) -> Result<()> {
        let Layer { disk, mapping, .. } = &self.top;
        let layout = &mapping.layout;
        let allocator = &self.writer()?.allocator;
        let _writer = mapping.l1_writer.lock().await;
        let needed = layout.l1_entries(size);
        let have = mapping.l1.borrow().len() as u64;
        if needed <= have {
            return Ok(());
        }
        if needed > LARGEST_L1 {
            return Err(refused(
                ErrorKind::OutOfRange,
                &disk.storage.path,
                format!(
                    "clusters of {} bytes are too small for a disk of {size} bytes",
                    layout.cluster_size()
                ),
            ));
        }
        let mut table = mapping.l1.borrow().clone();
        table.resize(needed as usize, 0);
        let clusters = (needed * 8).div_ceil(layout.cluster_size());
        let offset = allocator.take_row(io, disk, clusters).await?;
        disk.write_metadata(io, &bytes_of(&table), offset, false)
            .await?;
        disk.pass_barrier(io).await?;
        disk.patch_header(
            io,
            &[
                (field::L1_SIZE, &(needed as u32).to_be_bytes()),
                (field::L1_OFFSET, &offset.to_be_bytes()),
            ],
        )
        .await?;
        let old = mapping.l1_offset.replace(offset);
        mapping.l1.replace(table);
        let len = clusters * layout.cluster_size();
        disk.bounds.set_l1(Extent { offset, len });
        if have != 0 {
            allocator.free(old, have * 8, Mark::PAST);
        }
        Ok(())
    }

    async fn grow_data_file(&self, io: &Io, size: u64) -> Result<()> {
        let Some(data) = &self.top.disk.data else {
            return Ok(());
        };
        let file = std::sync::Arc::clone(&data.file);
        let is_device = data.is_device;
        io.blocking(move || -> rustix::io::Result<()> {
            if is_device || rustix::fs::fstat(&*file)?.st_size as u64 >= size {
                return Ok(());
            }
            rustix::fs::ftruncate(&*file, size)
        })
        .await
        .and_then(|result| result.map_err(Into::into))
        .map_err(|error| failed(ErrorKind::Write, "enlarging", &data.path, error))
    }
}
