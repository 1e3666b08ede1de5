//! The refcounts of the host clusters: the refcount table, and a cache of its blocks.

use std::collections::{BTreeMap, VecDeque};

use tcmu_handler::{ErrorKind, Io, Result};

use crate::disk::Disk;
use crate::fault::refused;
use crate::layout::Layout;
use crate::number_map::NumberMap;

/// Bytes of refcount blocks that are kept in memory at the most.
const CACHE: u64 = 4 << 20;

/// The host offset in an entry of the refcount table.
const OFFSET: u64 = !0x1ff;

/// Reads entry `index` of a refcount block, or of a part of one; entries have `1 << order` bits.
pub(crate) fn get(block: &[u8], order: u32, index: u64) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block.get((index / per_byte) as usize).copied().unwrap_or(0);
        let shift = (index % per_byte) << order;
        return u64::from(byte) >> shift & ((1 << (1 << order)) - 1);
    }
    let width = 1usize << (order - 3);
    let at = index as usize * width;
    block
        .get(at..at + width)
        .unwrap_or(&[])
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Changes an entry; see [`get`].
pub(crate) fn set(block: &mut [u8], order: u32, index: u64, value: u64) {
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        let mask = ((1u16 << (1 << order)) - 1) as u8;
        if let Some(byte) = block.get_mut((index / per_byte) as usize) {
            *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
        }
        return;
    }
    let width = 1usize << (order - 3);
    let at = index as usize * width;
    if let Some(place) = block.get_mut(at..at + width) {
        place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

/// A part of a refcount block in memory.
#[derive(Debug)]
struct Part {
    bytes: Box<[u8]>,
    dirty: bool,
}

/// The refcount table and what is in memory of its blocks.
#[derive(Debug)]
pub(crate) struct Refcounts {
    layout: Layout,
    order: u32,
    /// Where each block lies; 0 where there is none.
    table: Vec<u64>,
    table_offset: u64,
    /// Blocks that the table in the file does not name yet.
    fresh: BTreeMap<u64, u64>,
    parts: NumberMap<Part>,
    queue: VecDeque<u64>,
}

impl Refcounts {
    /// The refcounts that `table` describes, which is as long as its clusters.
    pub(crate) fn new(layout: Layout, order: u32, table: Vec<u64>, table_offset: u64) -> Self {
        Self {
            layout,
            order,
            table,
            table_offset,
            fresh: BTreeMap::new(),
            parts: NumberMap::default(),
            queue: VecDeque::new(),
        }
    }

    /// How many clusters a block counts.
    pub(crate) fn per_block(&self) -> u64 {
        (self.layout.cluster_size() * 8) >> self.order
    }

    fn per_part(&self) -> u64 {
        (self.layout.slice_size() * 8) >> self.order
    }

    /// How many blocks the table has room for.
    pub(crate) fn capacity(&self) -> u64 {
        self.table.len() as u64
    }

    /// Where the table lies, and how many bytes it has.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.table_offset, self.table.len() as u64 * 8)
    }

    /// Whether there is a block that counts this cluster.
    pub(crate) fn counts(&self, cluster: u64) -> bool {
        self.block(cluster / self.per_block()).is_some()
    }

    fn block(&self, index: u64) -> Option<u64> {
        let known = self.table.get(index as usize).copied().unwrap_or(0) & OFFSET;
        match known {
            0 => self.fresh.get(&index).copied(),
            known => Some(known),
        }
    }

    /// Counts a block in at `offset` that is all zeroes there.
    pub(crate) fn add_block(&mut self, index: u64, offset: u64) {
        self.fresh.insert(index, offset);
    }

    /// The refcount of a cluster.
    pub(crate) async fn get(&mut self, io: &Io, disk: &Disk, cluster: u64) -> Result<u64> {
        let (order, index) = (self.order, cluster % self.per_part());
        let part = self.part(io, disk, cluster).await?;
        Ok(part.map_or(0, |part| get(&part.bytes, order, index)))
    }

    /// Changes a refcount in memory; [`write`](Self::write) brings it to the file.
    pub(crate) async fn set(
        &mut self,
        io: &Io,
        disk: &Disk,
        cluster: u64,
        value: u64,
    ) -> Result<()> {
        let (order, index) = (self.order, cluster % self.per_part());
        match self.part(io, disk, cluster).await? {
            Some(part) => {
                set(&mut part.bytes, order, index, value);
                part.dirty = true;
                Ok(())
            }
            None => Err(refused(
                ErrorKind::Internal,
                &disk.storage.path,
                format!("no refcount block for cluster {cluster}"),
            )),
        }
    }

    async fn part(&mut self, io: &Io, disk: &Disk, cluster: u64) -> Result<Option<&mut Part>> {
        let number = cluster / self.per_part();
        let Some(host) = self.host_of(disk, number)? else {
            return Ok(None);
        };
        if !self.parts.contains_key(&number) {
            let len = self.layout.slice_size() as usize;
            let bytes = disk.read_metadata(io, len, host).await?.into();
            self.evict();
            self.queue.push_back(number);
            let dirty = false;
            self.parts.insert(number, Part { bytes, dirty });
        }
        Ok(self.parts.get_mut(&number))
    }

    /// Where a part lies in the file.
    fn host_of(&self, disk: &Disk, number: u64) -> Result<Option<u64>> {
        let per_block = self.per_block() / self.per_part();
        let Some(block) = self.block(number / per_block) else {
            return Ok(None);
        };
        let cluster = self.layout.cluster_size();
        if block % cluster != 0 {
            return Err(disk.corrupt(&format!("a refcount block at {block:#x} is not aligned")));
        }
        disk.check_table("a refcount block", block, cluster)?;
        Ok(Some(block + number % per_block * self.layout.slice_size()))
    }

    fn evict(&mut self) {
        let capacity = (CACHE / self.layout.slice_size()) as usize;
        let mut attempts = 8;
        while self.parts.len() >= capacity && attempts > 0 {
            attempts -= 1;
            let Some(number) = self.queue.pop_front() else {
                return;
            };
            match self.parts.get(&number) {
                Some(part) if part.dirty => self.queue.push_back(number),
                _ => {
                    self.parts.remove(&number);
                }
            }
        }
    }

    /// Writes the changes to the file.
    pub(crate) async fn write(&mut self, io: &Io, disk: &Disk, durable: bool) -> Result<()> {
        for number in self.dirty() {
            let Some(host) = self.host_of(disk, number)? else {
                continue;
            };
            if let Some(part) = self.parts.get_mut(&number) {
                disk.write_metadata(io, &part.bytes, host, durable).await?;
                part.dirty = false;
            }
        }
        Ok(())
    }

    /// The parts with changes, in order.
    pub(crate) fn dirty(&self) -> Vec<u64> {
        let dirty = self.parts.iter().filter(|(_, part)| part.dirty);
        let mut numbers: Vec<u64> = dirty.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Has the table in the file name the new blocks, which are durable already.
    pub(crate) async fn link(&mut self, io: &Io, disk: &Disk) -> Result<()> {
        let per_part = self.layout.slice_size() / 8;
        let mut table = self.table.clone();
        for (index, offset) in &self.fresh {
            if let Some(entry) = table.get_mut(*index as usize) {
                *entry = *offset;
            }
        }
        let mut parts: Vec<u64> = self.fresh.keys().map(|index| index / per_part).collect();
        parts.dedup();
        for part in parts {
            let from = (part * per_part) as usize;
            let to = table.len().min(from + per_part as usize);
            let bytes = bytes_of(&table[from.min(to)..to]);
            let offset = self.table_offset + part * per_part * 8;
            disk.write_metadata(io, &bytes, offset, true).await?;
        }
        self.table = table;
        self.fresh.clear();
        Ok(())
    }

    /// The table as it will be with `len` entries and the new blocks.
    pub(crate) fn grown(&self, len: u64) -> Vec<u64> {
        let mut table = self.table.clone();
        table.resize(len as usize, 0);
        for (index, offset) in &self.fresh {
            if let Some(entry) = table.get_mut(*index as usize) {
                *entry = *offset;
            }
        }
        table
    }

    /// Uses another table, which the header names already.
    pub(crate) fn replace(&mut self, table: Vec<u64>, offset: u64) {
        self.table = table;
        self.table_offset = offset;
        self.fresh.clear();
    }

    /// Forgets changes that could not be written: what the file has counts.
    pub(crate) fn forget_changes(&mut self) {
        self.parts.retain(|_, part| !part.dirty);
        self.fresh.clear();
    }
}

/// A table as it stands in the file.
pub(crate) fn bytes_of(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let mut block = vec![0; 64];
            let entries = (64 * 8) >> order;
            let largest = u64::MAX >> (64 - (1u32 << order));
            for index in 0..entries {
                set(&mut block, order, index, (index + 1) & largest);
            }
            set(&mut block, order, 3, largest);
            for index in 0..entries {
                let expected = if index == 3 {
                    largest
                } else {
                    (index + 1) & largest
                };
                assert_eq!(get(&block, order, index), expected, "order {order}");
            }
            assert_eq!(get(&block, order, entries), 0);
        }
    }

    #[test]
    fn bytes_as_in_the_specification() {
        let mut block = [0; 8];
        set(&mut block, 4, 1, 0x1234);
        assert_eq!(block, [0, 0, 0x12, 0x34, 0, 0, 0, 0]);
        let mut bits = [0; 1];
        set(&mut bits, 0, 1, 1);
        set(&mut bits, 1, 3, 2);
        assert_eq!(bits, [0b1000_0010]);
    }
}
