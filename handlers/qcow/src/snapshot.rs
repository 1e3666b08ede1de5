//! The table of internal snapshots.

use std::time::{Duration, SystemTime};

use tcmu_handler::Result;

use crate::fault::invalid;
use crate::header::{Fields, Header};
use crate::storage::Storage;

/// Bytes of an entry without its variable parts.
const FIXED: usize = 40;
/// Names, and what else an entry holds, are shorter than this in what qemu writes; its limit.
const EXTRA: usize = 1024;
/// qemu reads no longer table.
const LARGEST: usize = 64 << 20;
/// So many snapshots fit into a message.
const LISTED: usize = 20;
/// The largest L1 table in entries.
const LARGEST_L1: u32 = (32 << 20) / 8;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique in the image.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was taken.
    pub taken: SystemTime,
    /// Bytes of the virtual disk at that time.
    pub size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
}

/// Reads the table; also returns how many bytes it has.
pub(crate) fn read(storage: &Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    let mut table = Table {
        storage,
        start: header.snapshots_offset,
        at: 0,
        window: Vec::new(),
        window_at: 0,
    };
    for _ in 0..header.snapshots {
        snapshots.push(table.next(header)?);
    }
    Ok((snapshots, table.at as u64))
}

/// What there is, for people: names, ids and sizes.
pub(crate) fn list(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return "the image has none".into();
    }
    let described: Vec<String> = snapshots
        .iter()
        .take(LISTED)
        .map(|snapshot| {
            // Whoever made the image chose the names.
            let Snapshot { id, name, size, .. } = snapshot;
            format!(
                "{} (id {}, {size} bytes)",
                name.escape_debug(),
                id.escape_debug()
            )
        })
        .collect();
    let more = match snapshots.len() - described.len() {
        0 => String::new(),
        more => format!(", and {more} more; `qemu-img snapshot -l` lists all"),
    };
    format!("there are {}{more}", described.join(", "))
}

struct Table<'a> {
    storage: &'a Storage,
    start: u64,
    at: usize,
    window: Vec<u8>,
    window_at: usize,
}

impl Table<'_> {
    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        const WINDOW: usize = 64 << 10;
        let end = self.at.saturating_add(len);
        if end > LARGEST {
            return Err(invalid(
                &self.storage.path,
                "the snapshot table is too long",
            ));
        }
        if self.at < self.window_at || end > self.window_at + self.window.len() {
            let offset = self.start.saturating_add(self.at as u64);
            self.window = self.storage.read(len.max(WINDOW), offset)?;
            self.window_at = self.at;
        }
        let from = self.at - self.window_at;
        self.at = end;
        Ok(self.window[from..from + len].to_vec())
    }

    fn next(&mut self, header: &Header) -> Result<Snapshot> {
        let path = &self.storage.path;
        let fixed = self.take(FIXED)?;
        let fields = Fields(&fixed);
        let (l1_offset, l1_size) = (fields.u64(0), fields.u32(8));
        let cluster = header.layout.cluster_size();
        if l1_size > LARGEST_L1 || l1_offset % cluster != 0 || l1_offset >> 56 != 0 {
            return Err(invalid(path, "the L1 table of a snapshot is not possible"));
        }
        let extra_len = fields.u32(36) as usize;
        if extra_len > EXTRA {
            return Err(invalid(path, "an entry of the snapshot table is too long"));
        }
        let extra = self.take(extra_len)?;
        let id = self.take(fields.u16(12).into())?;
        let name = self.take(fields.u16(14).into())?;
        self.at = self.at.next_multiple_of(8);
        let since = Duration::new(fields.u32(16).into(), fields.u32(20).min(999_999_999));
        let snapshot = Snapshot {
            id: String::from_utf8_lossy(&id).into_owned(),
            name: String::from_utf8_lossy(&name).into_owned(),
            taken: SystemTime::UNIX_EPOCH + since,
            size: if extra_len >= 16 {
                Fields(&extra).u64(8)
            } else {
                header.size
            },
            l1_offset,
            l1_size,
        };
        if header.layout.l1_entries(snapshot.size) > l1_size.into() {
            return Err(invalid(
                &self.storage.path,
                format!(
                    "the L1 table of the snapshot \"{}\" is too short",
                    snapshot.name
                ),
            ));
        }
        Ok(snapshot)
    }
}
