//! The header: the first cluster of an image, which nobody has to trust.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tcmu_handler::{ErrorKind, Extent, Result};

use crate::fault::{invalid, refused};
use crate::layout::Layout;

/// "QFI\xfb".
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// The length of the header of version 2, in bytes.
pub(crate) const V2_LENGTH: usize = 72;
/// The shortest header of version 3.
const V3_LENGTH: usize = 104;

/// Incompatible features: who does not know a bit must not open the image.
pub(crate) mod incompatible {
    pub(crate) const DIRTY: u64 = 1;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
}

/// Features that go when somebody writes who does not know them.
pub(crate) mod autoclear {
    pub(crate) const BITMAPS: u64 = 1;
    pub(crate) const RAW_EXTERNAL: u64 = 1 << 1;
    pub(crate) const KNOWN: u64 = BITMAPS | RAW_EXTERNAL;
}

/// Where fields lie that are changed in place.
pub(crate) mod field {
    pub(crate) const SIZE: usize = 24;
    pub(crate) const L1_SIZE: usize = 36;
    pub(crate) const L1_OFFSET: usize = 40;
    pub(crate) const REFTABLE_OFFSET: usize = 48;
    pub(crate) const REFTABLE_CLUSTERS: usize = 56;
    pub(crate) const INCOMPATIBLE: usize = 72;
    pub(crate) const AUTOCLEAR: usize = 88;
}

/// Types of header extensions.
pub(crate) mod extension {
    pub(crate) const END: u32 = 0;
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(crate) const BITMAPS: u32 = 0x2385_2875;
    pub(crate) const DATA_FILE: u32 = 0x4441_5441;
}

/// qemu's limits, which keep a hostile header from asking for much memory.
mod limit {
    pub(super) const L1_BYTES: u64 = 32 << 20;
    pub(super) const REFTABLE_BYTES: u64 = 8 << 20;
    pub(super) const SNAPSHOTS: u32 = 65536;
    pub(super) const NAME: usize = 1023;
    pub(super) const BITMAPS: u32 = 65535;
    pub(super) const BITMAP_DIRECTORY: u64 = 64 << 20;
}

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Zlib,
    Zstd,
}

/// The image below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// As it stands in the header.
    pub(crate) name: PathBuf,
    /// Without it nobody can know, and guessing would let a guest choose.
    pub(crate) format: Option<String>,
}

/// Where the directory of the persistent bitmaps lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bitmaps {
    pub(crate) count: u32,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A header whose fields have been checked against the format and against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) layout: Layout,
    /// Bytes of the virtual disk.
    pub(crate) size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) autoclear: u64,
    /// log2 of the width of a refcount in bits, 0 to 6.
    pub(crate) refcount_order: u32,
    pub(crate) compression: Compression,
    pub(crate) backing: Option<Backing>,
    pub(crate) data_file: Option<PathBuf>,
    pub(crate) bitmaps: Option<Bitmaps>,
}

/// Big-endian fields of a block of bytes; what lies beyond its end is zero.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes(at))
    }
}

impl Header {
    /// How many bytes from the file's start [`parse`](Self::parse) wants, given the first 512.
    pub(crate) fn wanted(start: &[u8]) -> usize {
        match Fields(start).u32(20) {
            bits @ 9..=21 => 1 << bits,
            _ => start.len(),
        }
    }

    /// Reads the header in `bytes`, the file's first cluster (or what there is of it).
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let no = |why: String| Err(invalid(path, why));
        let fields = Fields(bytes);
        if bytes.len() < V2_LENGTH || fields.u32(0) != MAGIC {
            return no(
                "this is not a qcow2 image; raw images are served by the handler \"file\"".into(),
            );
        }
        let version = fields.u32(4);
        if !(2..=3).contains(&version) {
            return Err(refused(
                ErrorKind::Unsupported,
                path,
                format!("version {version} of qcow is not supported, only 2 and 3 are"),
            ));
        }
        let cluster_bits = fields.u32(20);
        if !(9..=21).contains(&cluster_bits) {
            return no(format!(
                "a cluster size of 2^{cluster_bits} bytes is outside the format's 512 to 2 MiB"
            ));
        }
        let modern = version == 3;
        let length = if modern {
            fields.u32(100) as usize
        } else {
            V2_LENGTH
        };
        if modern && (length < V3_LENGTH || length % 8 != 0 || length > bytes.len()) {
            return no(format!("a header of {length} bytes is not possible"));
        }
        let v3 = |at: usize| if modern { fields.u64(at) } else { 0 };
        let features = v3(72);
        refuse_features(features, fields.u32(32), path)?;
        let layout = Layout {
            version,
            cluster_bits,
            extended: features & incompatible::EXTENDED_L2 != 0,
            external: features & incompatible::EXTERNAL_DATA != 0,
        };
        if layout.extended && cluster_bits < 14 {
            return no("subclusters need clusters of at least 16 KiB".into());
        }
        let compression = match (
            features & incompatible::COMPRESSION != 0,
            length > V3_LENGTH,
        ) {
            (false, true) if bytes[104] != 0 => {
                return no("the compression type does not match its feature bit".into());
            }
            (false, _) => Compression::Zlib,
            (true, true) if bytes[104] == 1 => Compression::Zstd,
            (true, _) => {
                return Err(refused(
                    ErrorKind::Unsupported,
                    path,
                    "clusters are compressed in an unknown way; zlib and zstd are supported",
                ));
            }
        };
        let refcount_order = if modern { fields.u32(96) } else { 4 };
        if refcount_order > 6 {
            return no("refcounts are wider than 64 bits".into());
        }
        let mut header = Self {
            layout,
            size: fields.u64(24),
            l1_offset: fields.u64(40),
            l1_size: fields.u32(36),
            reftable_offset: fields.u64(48),
            reftable_clusters: fields.u32(56),
            snapshots: fields.u32(60),
            snapshots_offset: fields.u64(64),
            incompatible: features,
            autoclear: v3(88),
            refcount_order,
            compression,
            backing: None,
            data_file: None,
            bitmaps: None,
        };
        header.check_tables(path)?;
        let cluster = &bytes[..bytes.len().min(layout.cluster_size() as usize)];
        let format = header.read_extensions(cluster, length, path)?;
        header.backing = backing(cluster, fields.u64(8), fields.u32(16), format, path)?;
        if layout.external && header.data_file.is_none() {
            return no("the name of the external data file is missing".into());
        }
        if !layout.external {
            header.data_file = None;
        } else if header.is_raw_external() && header.backing.is_some() {
            return no("a raw external data file cannot have a backing file".into());
        }
        Ok(header)
    }

    /// The external data file is a raw image of the disk, also without the metadata.
    pub(crate) fn is_raw_external(&self) -> bool {
        self.layout.external && self.autoclear & autoclear::RAW_EXTERNAL != 0
    }

    /// Where the L1 table lies.
    pub(crate) fn l1(&self) -> Extent {
        Extent {
            offset: self.l1_offset,
            len: u64::from(self.l1_size) * 8,
        }
    }

    /// Where the refcount table lies.
    pub(crate) fn refcount_table(&self) -> Extent {
        Extent {
            offset: self.reftable_offset,
            len: u64::from(self.reftable_clusters) * self.layout.cluster_size(),
        }
    }

    fn check_tables(&self, path: &Path) -> Result<()> {
        let cluster = self.layout.cluster_size();
        let no = |why: String| Err(invalid(path, why));
        if u64::from(self.l1_size) * 8 > limit::L1_BYTES {
            return no(format!(
                "an L1 table of {} entries is too large",
                self.l1_size
            ));
        }
        let needed = self.layout.l1_entries(self.size);
        if needed > u64::from(self.l1_size) {
            return no(format!(
                "the L1 table has {} entries, and a disk of {} bytes needs {needed}",
                self.l1_size, self.size
            ));
        }
        if u64::from(self.reftable_clusters) * cluster > limit::REFTABLE_BYTES.max(cluster) {
            return no(format!(
                "a refcount table of {} clusters is too large",
                self.reftable_clusters
            ));
        }
        if self.reftable_clusters == 0 {
            return no("there is no refcount table".into());
        }
        if self.snapshots > limit::SNAPSHOTS {
            return no(format!("{} snapshots are too many", self.snapshots));
        }
        let offsets = [
            ("L1 table", self.l1_offset, self.l1_size != 0),
            ("refcount table", self.reftable_offset, true),
            ("snapshot table", self.snapshots_offset, self.snapshots != 0),
        ];
        for (what, offset, used) in offsets {
            if used && (offset == 0 || offset % cluster != 0 || offset >> 56 != 0) {
                return no(format!("the {what} cannot lie at {offset:#x}"));
            }
        }
        Ok(())
    }

    /// Notes the extensions that mean something here; returns the backing file's format.
    fn read_extensions(
        &mut self,
        cluster: &[u8],
        start: usize,
        path: &Path,
    ) -> Result<Option<String>> {
        let mut format = None;
        let mut at = start;
        // In version 2 they end where the backing file's name begins.
        let name = Fields(cluster).u64(8);
        let end = match usize::try_from(name) {
            Ok(name) if name != 0 => name.min(cluster.len()),
            _ => cluster.len(),
        };
        while at + 8 <= end {
            let kind = Fields(cluster).u32(at);
            let len = Fields(cluster).u32(at + 4) as usize;
            at += 8;
            if kind == extension::END {
                break;
            }
            let Some(data) = at
                .checked_add(len)
                .and_then(|last| (last <= end).then(|| cluster.get(at..last)).flatten())
            else {
                return Err(invalid(
                    path,
                    "a header extension reaches beyond the header",
                ));
            };
            match kind {
                extension::BACKING_FORMAT => {
                    format = Some(String::from_utf8_lossy(data).into_owned());
                }
                extension::DATA_FILE => {
                    self.data_file = Some(PathBuf::from(OsStr::from_bytes(data)));
                }
                extension::BITMAPS if self.autoclear & autoclear::BITMAPS != 0 => {
                    self.bitmaps = Some(self.bitmaps_of(data, path)?);
                }
                _ => {}
            }
            at += len.next_multiple_of(8);
        }
        Ok(format)
    }

    fn bitmaps_of(&self, data: &[u8], path: &Path) -> Result<Bitmaps> {
        let fields = Fields(data);
        let bitmaps = Bitmaps {
            count: fields.u32(0),
            size: fields.u64(8),
            offset: fields.u64(16),
        };
        if data.len() != 24
            || bitmaps.count == 0
            || bitmaps.count > limit::BITMAPS
            || bitmaps.size > limit::BITMAP_DIRECTORY
            || !bitmaps.offset.is_multiple_of(self.layout.cluster_size())
            || bitmaps.offset == 0
            || bitmaps.offset >> 56 != 0
        {
            return Err(invalid(
                path,
                "the directory of the bitmaps is not possible",
            ));
        }
        Ok(bitmaps)
    }
}

/// Refuses what this engine would serve wrongly.
fn refuse_features(features: u64, crypt: u32, path: &Path) -> Result<()> {
    let no = |why: String| Err(refused(ErrorKind::Unsupported, path, why));
    if crypt != 0 {
        return no(
            "the image is encrypted, which is not supported; put dm-crypt on top of the LUN instead"
                .into(),
        );
    }
    let unknown = features & !incompatible::KNOWN;
    if unknown != 0 {
        return no(format!(
            "the image has features that are not supported (incompatible bits {unknown:#x})"
        ));
    }
    Ok(())
}

fn backing(
    cluster: &[u8],
    offset: u64,
    len: u32,
    format: Option<String>,
    path: &Path,
) -> Result<Option<Backing>> {
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let name = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(len).ok())
        .filter(|(_, len)| *len <= limit::NAME)
        .and_then(|(at, len)| cluster.get(at..at.checked_add(len)?))
        .ok_or_else(|| invalid(path, "the backing file's name lies outside the header"))?;
    Ok(Some(Backing {
        name: PathBuf::from(OsStr::from_bytes(name)),
        format,
    }))
}
