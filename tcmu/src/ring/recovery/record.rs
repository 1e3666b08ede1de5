//! One command in the table.

use super::layout::{CDB, LONG_CDB, LONG_SEGMENTS, SEGMENT, SEGMENTS, record};
use crate::cdb::Cdb;
use crate::mapping::{Mapping, OutOfBounds};
use crate::ring::Segment;
use crate::ring::command::Body;

/// A command that was fetched and not published, as its record says.
pub(in super::super) struct Outstanding {
    pub(in super::super) id: u16,
    pub(in super::super) serial: u64,
    pub(in super::super) phase: u64,
    pub(in super::super) runs: u32,
    /// `None` for a command that was malformed.
    pub(in super::super) body: Option<Body>,
}

/// What a record says before its body.
struct Head([u8; record::BODY]);

impl Head {
    fn new(serial: u64, body: Option<&Body>, spilled: bool) -> Self {
        let mut head = Self([0; record::BODY]);
        head.put(record::SERIAL, serial.to_ne_bytes());
        if let Some(body) = body {
            // Neither is ever as long as its type allows: they were taken out of a ring.
            head.put(record::CDB_LEN, (body.cdb.len() as u16).to_ne_bytes());
            head.put(record::SPILLED, u16::from(spilled).to_ne_bytes());
            head.put(record::DATA, (body.data.len() as u32).to_ne_bytes());
            head.put(record::BIDI_IN, (body.bidi_in.len() as u32).to_ne_bytes());
        }
        head
    }

    #[inline]
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }
}

/// Whether a command fits into its record.
#[inline]
pub(super) fn fits(body: &Body) -> bool {
    body.cdb.len() <= CDB && body.data.len() + body.bidi_in.len() <= SEGMENTS
}

/// How many bytes of its stretch a command needs, if it has room there.
pub(super) fn stretch_len(body: &Body) -> Option<usize> {
    let segments = body.data.len() + body.bidi_in.len();
    (segments <= LONG_SEGMENTS).then_some(LONG_CDB + segments * SEGMENT)
}

/// Writes all of the record at `at` but its state; `stretch` is where the body goes if it does not
/// [fit](fits).
#[inline]
pub(super) fn write(
    table: &Mapping,
    at: usize,
    stretch: Option<usize>,
    serial: u64,
    body: Option<&Body>,
) -> Result<(), OutOfBounds> {
    let head = Head::new(serial, body, stretch.is_some());
    table.write(at + record::SERIAL, &head.0[record::SERIAL..])?;
    let Some(body) = body else { return Ok(()) };
    let (cdb, mut place) = match stretch {
        None => (at + record::BODY, at + record::BODY + CDB),
        Some(stretch) => (stretch, stretch + LONG_CDB),
    };
    table.write(cdb, &body.cdb)?;
    for segment in body.data.iter().chain(&body.bidi_in) {
        table.store_u64(place, segment.offset as u64)?;
        table.store_u64(place + 8, segment.len as u64)?;
        place += SEGMENT;
    }
    Ok(())
}

/// Reads the record of `id`, which is at `at`; `None` if it contradicts itself, or names memory
/// outside `data_area`, a range of the device's mapping.
pub(super) fn read(
    table: &Mapping,
    id: u16,
    at: usize,
    stretch: usize,
    data_area: &std::ops::Range<usize>,
) -> Option<Outstanding> {
    let mut head = Head([0; record::BODY]);
    table.read(at, &mut head.0).ok()?;
    let cdb_len = usize::from(u16::from_ne_bytes(head.get(record::CDB_LEN)));
    let spilled = u16::from_ne_bytes(head.get(record::SPILLED)) != 0;
    let counts = [record::DATA, record::BIDI_IN].map(|field| u32::from_ne_bytes(head.get(field)));
    let counts = counts.map(|count| count as usize);
    let (cdb_room, room) = if spilled {
        (LONG_CDB, LONG_SEGMENTS)
    } else {
        (CDB, SEGMENTS)
    };
    if cdb_len > cdb_room
        || counts.iter().any(|count| *count > room)
        || counts[0] + counts[1] > room
    {
        return None;
    }
    let place = if spilled { stretch } else { at + record::BODY };
    let body = if cdb_len == 0 {
        None
    } else {
        let mut cdb = [0; LONG_CDB];
        let cdb = &mut cdb[..cdb_len];
        table.read(place, cdb).ok()?;
        let mut at = place + cdb_room;
        let (data, data_len) = segments(table, &mut at, counts[0], data_area)?;
        let (bidi_in, _) = segments(table, &mut at, counts[1], data_area)?;
        Some(Body {
            cdb: Cdb::new(cdb).filter(|copy| copy.len() == cdb_len)?,
            data,
            data_len,
            bidi_in,
        })
    };
    Some(Outstanding {
        id,
        serial: u64::from_ne_bytes(head.get(record::SERIAL)),
        phase: u64::from_ne_bytes(head.get(record::PHASE)),
        runs: u32::from_ne_bytes(head.get(record::RUNS)),
        body,
    })
}

fn segments(
    table: &Mapping,
    at: &mut usize,
    count: usize,
    data_area: &std::ops::Range<usize>,
) -> Option<(Vec<Segment>, usize)> {
    let mut segments = Vec::with_capacity(count);
    let mut total = 0_usize;
    for _ in 0..count {
        let offset = usize::try_from(table.load_u64(*at).ok()?).ok()?;
        let len = usize::try_from(table.load_u64(*at + 8).ok()?).ok()?;
        *at += SEGMENT;
        if offset < data_area.start || offset.checked_add(len)? > data_area.end {
            return None;
        }
        total = total.checked_add(len)?;
        segments.push(Segment { offset, len });
    }
    Some((segments, total))
}
