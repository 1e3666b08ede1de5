//! EXTENDED COPY (LID1): SPC-4, 6.4.
//!
//! The unit that gets the command is the copy manager. It copies between itself and itself, or other
//! logical units of the same runner, which live on other threads: each reads and writes its own
//! backstore, and the data move in bounded pieces through memory of the copy manager's, or, where
//! both images are plain files, through the kernel alone.
//!
//! Which other units there are to be reached is for [`Neighbours`](super::neighbours::Neighbours) to
//! say.

use std::cell::Cell;
use std::rc::Rc;

use tcmu::scsi::copy::ExtendedCopy;
use tcmu::scsi::inquiry::DIRECT_ACCESS_BLOCK_DEVICE;
use tcmu::scsi::{AdditionalSense, Sense, SenseKey, Status};
use tcmu_handler::{Backstore, Buffer, Io, OwnedBuffer, yield_now};

use super::LogicalUnit;
use super::copy_list::{CopyList, Cscd, CscdId, MAX_LIST_LEN, Segment};
use super::copy_results::{Copies, CopyResults};
use super::logical_unit::parse;
use super::neighbours::{CopyEnd, CopyFailure, CopyReply, CopyRequest, CopyResult, Neighbour};
use super::reply::{Answer, Failure, Response};
use super::unmap::parameter_list;

/// MAXIMUM SEGMENT LENGTH in bytes.
pub(super) const MAX_SEGMENT_LEN: u32 = 256 << 20;
/// MAXIMUM CONCURRENT COPIES of a unit.
pub(super) const MAX_CONCURRENT_COPIES: u8 = 16;

/// How much is read and written at once, in bytes: a copy's memory. It is a multiple of every block
/// length that there is.
const PIECE: u64 = 1 << 20;
/// How much the kernel is asked to copy at once, in bytes.
const OFFLOADED_PIECE: u64 = 16 << 20;

/// A unit at one end of a copy.
#[derive(Clone)]
enum End {
    Own,
    Other(Rc<dyn Neighbour>),
}

/// An end that was reached.
#[derive(Clone)]
struct Reached {
    id: CscdId,
    end: End,
    /// The unit's designator; none is the copy manager's own unit.
    unit: Option<[u8; 16]>,
    about: CopyEnd,
}

/// Part of a segment: byte offsets in each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    from: u64,
    to: u64,
    len: u64,
}

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn extended_copy(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<ExtendedCopy>(cdb)?;
        let len = command.parameter_list_length.get() as usize;
        if len == 0 {
            return Ok(Response::GOOD);
        }
        // What follows the longest list can only be wrong, as its header tells.
        let list = CopyList::parse(&parameter_list(
            data,
            len.min(data.len()).min(MAX_LIST_LEN),
        )?)?;
        let Some(_place) = Place::take(&self.unit.copies_running) else {
            return Err(busy());
        };
        let mut report = Report::begin(&self.unit.copies, list.list_identifier);
        let result = self.copy_segments(io, &list, &mut report.results).await;
        report.end(result)
    }

    async fn copy_segments(
        &self,
        io: &Io,
        list: &CopyList,
        results: &mut CopyResults,
    ) -> Result<(), Failure> {
        let mut sources: Vec<Reached> = Vec::new();
        let mut destinations: Vec<Reached> = Vec::new();
        let mut memory = None;
        for segment in &list.segments {
            let source = self
                .reach(io, list, segment.source, false, &mut sources)
                .await?;
            let destination = self
                .reach(io, list, segment.destination, true, &mut destinations)
                .await?;
            self.copy_segment(io, segment, &source, &destination, &mut memory, results)
                .await?;
            results.segments += 1;
        }
        Ok(())
    }

    /// The end with this id; looked up once for all segments.
    async fn reach(
        &self,
        io: &Io,
        list: &CopyList,
        id: CscdId,
        destination: bool,
        known: &mut Vec<Reached>,
    ) -> Result<Reached, Failure> {
        if let Some(reached) = known.iter().find(|reached| reached.id == id) {
            return Ok(reached.clone());
        }
        let (end, cscd) = match id {
            CscdId::Own => (End::Own, None),
            CscdId::Listed(place) => {
                let cscd = list.cscds.get(usize::from(place));
                let cscd = cscd.ok_or(aborted(AdditionalSense::UNREACHABLE_COPY_TARGET))?;
                (self.locate(io, cscd, destination).await?, Some(cscd))
            }
        };
        let unit = match end {
            End::Own => None,
            End::Other(_) => cscd.and_then(|cscd| cscd.designator),
        };
        let about = match self
            .ask(io, &end, CopyRequest::Describe { destination })
            .await
        {
            Ok(CopyReply::Described(about)) => about,
            Ok(_) => return Err(failed_at(CopyFailure::gone())),
            Err(failure) => return Err(failed_at(failure)),
        };
        if cscd.is_some_and(|cscd| cscd.block_length != about.block_size) {
            return Err(aborted(AdditionalSense::INCORRECT_COPY_TARGET_DEVICE_TYPE));
        }
        let reached = Reached {
            id,
            end,
            unit,
            about,
        };
        known.push(reached.clone());
        Ok(reached)
    }

    async fn locate(&self, io: &Io, cscd: &Cscd, destination: bool) -> Result<End, Failure> {
        let unreachable = aborted(AdditionalSense::COPY_TARGET_DEVICE_NOT_REACHABLE);
        if cscd.device_type != DIRECT_ACCESS_BLOCK_DEVICE {
            return Err(aborted(AdditionalSense::INCORRECT_COPY_TARGET_DEVICE_TYPE));
        }
        let designator = cscd.designator.ok_or(unreachable)?;
        if self.unit.naa() == Some(designator) {
            return Ok(End::Own);
        }
        let neighbours = self.neighbours.as_ref().ok_or(unreachable)?;
        // A LUN that is just being opened is waited for.
        match neighbours.find(io, designator, destination).await {
            Some(found) => Ok(End::Other(found.into())),
            // Whoever serves the unit next does the copy.
            None if self.unit.operations.stopping.get() => Err(busy()),
            None => Err(unreachable),
        }
    }

    async fn ask(&self, io: &Io, end: &End, request: CopyRequest) -> CopyResult {
        match end {
            End::Own => self.serve_copy(io, request).await,
            End::Other(neighbour) => neighbour.ask(request).await,
        }
    }

    async fn copy_segment(
        &self,
        io: &Io,
        segment: &Segment,
        source: &Reached,
        destination: &Reached,
        memory: &mut Option<OwnedBuffer>,
        results: &mut CopyResults,
    ) -> Result<(), Failure> {
        let whole = extents(segment, &source.about, &destination.about)?;
        let backwards = source.unit == destination.unit && whole.reaches_into_itself();
        let offloads = destination.about.file.is_some() && !backwards;
        let mut offload = source.about.file.clone().filter(|_| offloads);
        let mut done = 0;
        while done < whole.len {
            if self.unit.operations.stopping.get() {
                // Nobody is to wait for the rest; whoever serves the unit next copies it.
                return Err(busy());
            }
            if let Some(file) = &offload {
                let piece = whole.part(done, OFFLOADED_PIECE, false);
                let request = CopyRequest::CopyFrom {
                    lba: piece.to / u64::from(destination.about.block_size),
                    source: file.clone(),
                    offset: piece.from,
                    len: piece.len,
                };
                match self
                    .ask(io, &destination.end, request)
                    .await
                    .map_err(failed_at)?
                {
                    CopyReply::NotOffloaded => offload = None,
                    _ => {
                        done += piece.len;
                        results.transferred += piece.len;
                    }
                }
                continue;
            }
            let piece = whole.part(done, PIECE, backwards);
            let buffer = memory_of(io, memory)?
                .view()
                .slice(0..piece.len as usize)
                .map_err(|_| aborted(AdditionalSense::INTERNAL_TARGET_FAILURE))?
                .to_owned();
            let read = CopyRequest::Read {
                lba: piece.from / u64::from(source.about.block_size),
                buffer: buffer.clone(),
            };
            self.ask(io, &source.end, read).await.map_err(failed_at)?;
            let write = CopyRequest::Write {
                lba: piece.to / u64::from(destination.about.block_size),
                buffer,
            };
            self.ask(io, &destination.end, write)
                .await
                .map_err(failed_at)?;
            done += piece.len;
            results.transferred += piece.len;
            yield_now().await;
        }
        Ok(())
    }
}

impl Piece {
    /// Within one image, the destination begins inside of the source.
    fn reaches_into_itself(&self) -> bool {
        self.from < self.to && self.to - self.from < self.len
    }

    /// A part of at most `most` bytes, once `done` are done. A copy that reaches into itself has to
    /// go `backwards`, so that it reads what it would overwrite first.
    fn part(&self, done: u64, most: u64, backwards: bool) -> Self {
        let len = most.min(self.len - done);
        let at = if backwards {
            self.len - done - len
        } else {
            done
        };
        Self {
            from: self.from + at,
            to: self.to + at,
            len,
        }
    }
}

/// A copy's memory, made when it is needed first.
fn memory_of<'a>(io: &Io, memory: &'a mut Option<OwnedBuffer>) -> Result<&'a OwnedBuffer, Failure> {
    match memory {
        Some(memory) => Ok(memory),
        none => Ok(none.insert(io.allocate(PIECE as usize).map_err(|_| busy())?)),
    }
}

/// Where a segment lies in both images.
fn extents(segment: &Segment, source: &CopyEnd, destination: &CopyEnd) -> Result<Piece, Failure> {
    let counted = if segment.counts_destination {
        destination.block_size
    } else {
        source.block_size
    };
    let len = u64::from(segment.blocks) * u64::from(counted);
    if len > MAX_SEGMENT_LEN.into() {
        return Err(aborted(AdditionalSense::COPY_SEGMENT_GRANULARITY_VIOLATION));
    }
    let offset = |about: &CopyEnd, lba: u64| {
        let block_size = u64::from(about.block_size);
        if len % block_size != 0 {
            return Err(aborted(AdditionalSense::UNEXPECTED_INEXACT_SEGMENT));
        }
        match lba.checked_add(len / block_size) {
            Some(end) if end <= about.blocks => Ok(lba * block_size),
            _ => Err(aborted(AdditionalSense::NO_ADDITIONAL_SENSE_INFORMATION)),
        }
    };
    Ok(Piece {
        from: offset(source, segment.source_lba)?,
        to: offset(destination, segment.destination_lba)?,
        len,
    })
}

/// The copy ends before all segments are done.
fn aborted(code: AdditionalSense) -> Failure {
    Sense::new(SenseKey::CopyAborted, code).into()
}

/// Not now; the same copy can be tried again.
fn busy() -> Failure {
    Failure {
        status: Status::Busy,
        sense: None,
    }
}

/// One end of the copy did not do its part.
fn failed_at(CopyFailure(failure): CopyFailure) -> Failure {
    match failure.sense {
        None => failure,
        Some(_) => aborted(AdditionalSense::THIRD_PARTY_DEVICE_FAILURE),
    }
}

/// One of the copies that a unit runs at once.
struct Place<'a>(&'a Cell<u8>);

impl<'a> Place<'a> {
    fn take(running: &'a Cell<u8>) -> Option<Self> {
        if running.get() >= MAX_CONCURRENT_COPIES {
            return None;
        }
        running.set(running.get() + 1);
        Some(Self(running))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Notes what becomes of a copy, also if it is not run to its end.
struct Report<'a> {
    copies: &'a Copies,
    list_identifier: Option<u8>,
    results: CopyResults,
}

impl<'a> Report<'a> {
    fn begin(copies: &'a Copies, list_identifier: Option<u8>) -> Self {
        copies.note(list_identifier, CopyResults::default());
        Self {
            copies,
            list_identifier,
            results: CopyResults {
                failure: Some(Sense::new(
                    SenseKey::CopyAborted,
                    AdditionalSense::NO_ADDITIONAL_SENSE_INFORMATION,
                )),
                ..CopyResults::default()
            },
        }
    }

    fn end(mut self, result: Result<(), Failure>) -> Answer {
        self.results.failure = match &result {
            Ok(()) => None,
            Err(failure) => failure.sense.or(self.results.failure),
        };
        result.map(|()| Response::GOOD)
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.results.ended = true;
        self.copies.note(self.list_identifier, self.results);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(whole: Piece, most: u64) -> Vec<Piece> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < whole.len {
            let part = whole.part(done, most, whole.reaches_into_itself());
            done += part.len;
            parts.push(part);
        }
        parts
    }

    #[test]
    fn copies_within_an_image_read_before_they_overwrite() {
        for (from, to) in [(0, 3), (3, 0), (0, 100), (7, 8), (8, 7)] {
            let mut image: Vec<u8> = (0..200).collect();
            let mut expected = image.clone();
            expected.copy_within(from..from + 50, to);
            let whole = Piece {
                from: from as u64,
                to: to as u64,
                len: 50,
            };
            for part in parts(whole, 16) {
                let (from, to, len) = (part.from as usize, part.to as usize, part.len as usize);
                image.copy_within(from..from + len, to);
            }
            assert_eq!(image, expected, "{from} to {to}");
        }
    }

    #[test]
    fn a_segment_lies_within_both_images() {
        let end = |block_size, blocks| CopyEnd {
            block_size,
            blocks,
            file: None,
        };
        let segment = |blocks, counts_destination, source_lba, destination_lba| Segment {
            source: CscdId::Own,
            destination: CscdId::Own,
            blocks,
            counts_destination,
            source_lba,
            destination_lba,
        };
        let (small, large) = (end(512, 80), end(4096, 10));
        let whole = extents(&segment(16, false, 8, 1), &small, &large).unwrap();
        assert_eq!((whole.from, whole.to, whole.len), (4096, 4096, 8192));
        let whole = extents(&segment(2, true, 8, 1), &small, &large).unwrap();
        assert_eq!(whole.len, 8192);
        assert!(extents(&segment(15, false, 8, 1), &small, &large).is_err());
        assert!(extents(&segment(0, false, 80, 10), &small, &large).is_ok());
        for (source, destination) in [(73, 0), (0, 10), (u64::MAX, 0), (0, u64::MAX)] {
            let segment = segment(8, false, source, destination);
            assert!(extents(&segment, &small, &large).is_err());
        }
    }
}
