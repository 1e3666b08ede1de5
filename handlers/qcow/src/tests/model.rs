//! What a disk must hold, request by request, and after a power cut.

use tcmu_handler::testing::Random;

pub(super) const SECTOR: usize = 512;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Read,
    Write { tag: u64, fua: bool },
    Zero { may_unmap: bool, fua: bool },
    Unmap,
    Flush,
}

/// A request and its place, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) request: Request,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Placed {
    pub(super) fn overlaps(&self, other: &Placed) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }

    fn changes(&self) -> bool {
        !matches!(self.request, Request::Read | Request::Flush)
    }

    /// The bytes of sector `sector` after this request; zeroes unless it writes.
    pub(super) fn sector(&self, sector: u64) -> [u8; SECTOR] {
        match self.request {
            Request::Write { tag, .. } => pattern(tag, sector),
            _ => [0; SECTOR],
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let first = self.offset / SECTOR as u64;
        let last = (self.offset + self.len) / SECTOR as u64;
        (first..last).flat_map(|s| self.sector(s)).collect()
    }
}

/// Bytes that tell which write they are from, and where they belong.
fn pattern(tag: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut random = Random::new(tag ^ sector << 20);
    for place in bytes.as_chunks_mut::<8>().0 {
        *place = random.number().to_le_bytes();
    }
    bytes
}

/// Makes requests, most of them in a part of the disk, so that they meet.
pub(super) fn request(random: &mut Random, size: u64, longest: u64, tag: u64) -> Placed {
    let sectors = size / SECTOR as u64;
    let longest = longest / SECTOR as u64;
    let len = match random.below(4) {
        0 => 1 + random.below(8),
        1 => 8,
        2 => 1 + random.below(longest.min(64)),
        _ => 1 + random.below(longest),
    };
    let len = len.min(sectors);
    let room = sectors - len;
    let mut sector = match random.below(3) {
        0 => random.below(room + 1),
        1 => random.below(room / 4 + 1),
        _ => room - random.below(room / 16 + 1),
    };
    if random.one_in(2) {
        sector = sector / 8 * 8;
    }
    let fua = random.one_in(8);
    let request = match random.below(20) {
        0..6 => Request::Read,
        6..14 => Request::Write { tag, fua },
        14..16 => Request::Zero {
            may_unmap: random.one_in(2),
            fua,
        },
        16..19 => Request::Unmap,
        _ => Request::Flush,
    };
    Placed {
        request,
        offset: sector * SECTOR as u64,
        len: len * SECTOR as u64,
    }
}

/// When a request ran, in positions of the engine's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    pub(super) placed: Placed,
    pub(super) started: usize,
    /// Nothing if it had not ended.
    pub(super) ended: Option<usize>,
}

/// What happened at a position of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The power was cut. A flush (or a durable write) that had ended makes certain what had ended
    /// before it began; of all that was not certain by then, anything may be there.
    Cut,
    /// The daemon was killed. All that had ended is certain.
    Killed,
}

/// What the sectors may hold after the end.
pub(super) struct Allowed<'a> {
    before: &'a [u8],
    /// For each sector: whether it may be as before, and the requests that it may show.
    sectors: Vec<(bool, Vec<&'a Placed>)>,
}

impl<'a> Allowed<'a> {
    pub(super) fn new(history: &'a [Ran], end: End, position: usize, before: &'a [u8]) -> Self {
        let had_ended = |ran: &Ran| ran.ended.is_some_and(|ended| ended <= position);
        let flushes = history
            .iter()
            .filter(|ran| matches!(ran.placed.request, Request::Flush) && had_ended(ran));
        let certain = match end {
            End::Cut => flushes.map(|ran| ran.started).max().unwrap_or(0),
            End::Killed => position,
        };
        let mut sectors = vec![(true, Vec::new()); before.len() / SECTOR];
        let began = history
            .iter()
            .filter(|ran| ran.placed.changes() && ran.started <= position);
        // Requests that overlap do not run together: the order of their beginnings is theirs.
        for ran in began {
            let durable = match ran.placed.request {
                Request::Write { fua, .. } | Request::Zero { fua, .. } => fua,
                _ => false,
            };
            let is_certain =
                ran.ended.is_some_and(|ended| ended <= certain) || (durable && had_ended(ran));
            let first = ran.placed.offset as usize / SECTOR;
            let count = ran.placed.len as usize / SECTOR;
            for (as_before, requests) in &mut sectors[first..first + count] {
                if is_certain {
                    *as_before = false;
                    requests.clear();
                }
                requests.push(&ran.placed);
            }
        }
        Self { before, sectors }
    }

    /// Whether a sector may hold these bytes.
    pub(super) fn allows(&self, sector: usize, bytes: &[u8]) -> bool {
        let (as_before, requests) = &self.sectors[sector];
        let at = sector * SECTOR;
        (*as_before && self.before[at..at + SECTOR] == *bytes)
            || requests
                .iter()
                .any(|placed| placed.sector(sector as u64) == bytes)
    }
}
