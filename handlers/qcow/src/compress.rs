//! Compressed clusters: read, never written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use flate2::read::DeflateDecoder;
use tcmu_handler::{ErrorKind, Io, Result};

use crate::disk::Disk;
use crate::entry::Compressed;
use crate::fault::{failed, refused};
use crate::header::Compression;
use crate::transfers;

/// How many unpacked clusters are remembered, for requests smaller than a cluster.
const REMEMBERED: usize = 4;
/// The longest distance in a zstd frame, as log2 of bytes: clusters are 2 MiB at the most.
const ZSTD_WINDOW: u32 = 24;

/// Unpacks the clusters of one image.
#[derive(Debug)]
pub(crate) struct Unpacker {
    compression: Compression,
    cluster_size: usize,
    recent: RefCell<VecDeque<(Compressed, Arc<[u8]>)>>,
}

impl Unpacker {
    pub(crate) fn new(compression: Compression, cluster_size: u64) -> Self {
        Self {
            compression,
            cluster_size: cluster_size as usize,
            recent: RefCell::default(),
        }
    }

    /// The bytes of a cluster.
    pub(crate) async fn unpack(
        &self,
        io: &Io,
        disk: &Disk,
        packed: Compressed,
    ) -> Result<Arc<[u8]>> {
        if let Some(bytes) = self.remembered(packed) {
            return Ok(bytes);
        }
        let memory = disk.bounce(io, packed.len as usize)?;
        transfers::read(io, &disk.storage, memory.view(), packed.offset).await?;
        let (compression, len) = (self.compression, self.cluster_size);
        let unpacked = io
            .blocking(move || {
                let mut bytes = vec![0; memory.view().len()];
                memory.view().copy_to(0, &mut bytes);
                unpack(compression, &bytes, len)
            })
            .await
            .map_err(|error| failed(ErrorKind::Read, "unpacking", &disk.storage.path, error))?
            .map_err(|why| {
                refused(
                    ErrorKind::Read,
                    &disk.storage.path,
                    format!(
                        "the compressed cluster at {:#x} is damaged: {why}",
                        packed.offset
                    ),
                )
            })?;
        let unpacked: Arc<[u8]> = unpacked.into();
        let mut recent = self.recent.borrow_mut();
        recent.truncate(REMEMBERED - 1);
        recent.push_front((packed, Arc::clone(&unpacked)));
        Ok(unpacked)
    }

    fn remembered(&self, packed: Compressed) -> Option<Arc<[u8]>> {
        let recent = self.recent.borrow();
        let (_, bytes) = recent.iter().find(|(known, _)| *known == packed)?;
        Some(Arc::clone(bytes))
    }

    /// Forgets what was unpacked, because clusters may come to hold something else.
    pub(crate) fn forget(&self) {
        self.recent.borrow_mut().clear();
    }
}

/// Unpacks a cluster of `len` bytes; there may be anything behind its compressed bytes.
fn unpack(compression: Compression, packed: &[u8], len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    let result = match compression {
        Compression::Zlib => DeflateDecoder::new(packed).read_exact(&mut bytes),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(packed).map_err(|e| e.to_string())?;
            decoder
                .window_log_max(ZSTD_WINDOW)
                .map_err(|e| e.to_string())?;
            decoder.single_frame().read_exact(&mut bytes)
        }
    };
    match result {
        Ok(()) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn both_kinds_with_rubbish_behind_them() {
        let plain: Vec<u8> = (0..65536u32).map(|at| (at / 700) as u8).collect();
        let mut zlib = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&plain).unwrap();
        let mut zlib = zlib.finish().unwrap();
        let mut zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
        for packed in [&mut zlib, &mut zstd] {
            packed.extend([0xa5; 300]);
        }
        assert_eq!(unpack(Compression::Zlib, &zlib, 65536).unwrap(), plain);
        assert_eq!(unpack(Compression::Zstd, &zstd, 65536).unwrap(), plain);
        assert!(unpack(Compression::Zlib, &zlib[..50], 65536).is_err());
        assert!(unpack(Compression::Zstd, &zstd[..50], 65536).is_err());
        assert!(unpack(Compression::Zstd, &[0xff; 64], 65536).is_err());
        assert!(unpack(Compression::Zlib, &[0xff; 64], 65536).is_err());
    }
}
