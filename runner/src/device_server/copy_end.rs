//! A unit as one end of a copy: what it does when it is asked, on its own thread.

use std::io;

use tcmu_handler::{Backstore, Error, ErrorKind, Extent, File, Io, OwnedBuffer, WriteFlags};

use super::LogicalUnit;
use super::neighbours::{CopyEnd, CopyFailure, CopyReply, CopyRequest, CopyResult};
use super::reply::Failure;
use super::unit::Unit;

impl<B: Backstore> LogicalUnit<B> {
    /// Does what a copy asks for.
    pub(crate) async fn serve_copy(&self, io: &Io, request: CopyRequest) -> CopyResult {
        self.answer_copy(io, request).await.map_err(CopyFailure)
    }

    async fn answer_copy(&self, io: &Io, request: CopyRequest) -> Result<CopyReply, Failure> {
        // An operation on all of the medium may have begun since the copy did.
        if let Some(sense) = self.unit.not_ready.get() {
            return Err(sense.into());
        }
        match request {
            CopyRequest::Describe { destination } => {
                if destination {
                    self.unit.check_writable()?;
                }
                Ok(CopyReply::Described(CopyEnd {
                    block_size: self.unit.block_size(),
                    blocks: self.unit.blocks(),
                    file: self.backstore.file(),
                }))
            }
            CopyRequest::Read { lba, buffer } => {
                let extent = self.unit.copy_extent(lba, buffer.view().len() as u64)?;
                let _range = self.unit.ranges.shared(extent).await;
                self.backstore
                    .read(io, buffer.view(), extent.offset)
                    .await
                    .map_err(|error| self.failed("the reading of a copy", &error))?;
                Ok(CopyReply::Done)
            }
            CopyRequest::Write { lba, buffer } => self.write_copy(io, lba, &buffer).await,
            CopyRequest::CopyFrom {
                lba,
                source,
                offset,
                len,
            } => self.copy_from_file(io, lba, source, offset, len).await,
        }
    }

    async fn write_copy(
        &self,
        io: &Io,
        lba: u64,
        buffer: &OwnedBuffer,
    ) -> Result<CopyReply, Failure> {
        self.unit.check_writable()?;
        let extent = self.unit.copy_extent(lba, buffer.view().len() as u64)?;
        let _range = self.unit.ranges.shared(extent).await;
        let fua = self.native_fua(false);
        self.backstore
            .write(io, buffer.view(), extent.offset, WriteFlags { fua })
            .await
            .map_err(|error| self.failed("the writing of a copy", &error))?;
        self.settle(io, false, fua).await?;
        Ok(CopyReply::Done)
    }

    async fn copy_from_file(
        &self,
        io: &Io,
        lba: u64,
        source: File,
        offset: u64,
        len: u64,
    ) -> Result<CopyReply, Failure> {
        self.unit.check_writable()?;
        let extent = self.unit.copy_extent(lba, len)?;
        let Some(destination) = self.backstore.file() else {
            return Ok(CopyReply::NotOffloaded);
        };
        let _range = self.unit.ranges.shared(extent).await;
        let copied = io
            .blocking(move || copy_file_range(&source, offset, &destination, extent))
            .await
            .and_then(|copied| copied);
        match copied {
            Ok(true) => {
                self.settle(io, false, false).await?;
                Ok(CopyReply::Done)
            }
            Ok(false) => Ok(CopyReply::NotOffloaded),
            Err(error) => {
                let error = Error::os("copying within the kernel", error);
                let error = match error.kind() {
                    ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::Gone => error,
                    _ => error.with_kind(ErrorKind::Write),
                };
                Err(self.failed("a copy", &error))
            }
        }
    }
}

impl Unit {
    /// `len` bytes from `lba` on; copies are whole blocks.
    fn copy_extent(&self, lba: u64, len: u64) -> Result<Extent, Failure> {
        let blocks = u32::try_from(self.in_blocks(len)).unwrap_or(u32::MAX);
        Ok(self.extent(lba, blocks)?)
    }
}

/// Copies between two files, sharing their storage where the file system can. Says `false` if the
/// kernel does not do that for these files; a part may have been copied even so.
fn copy_file_range(source: &File, offset: u64, destination: &File, to: Extent) -> io::Result<bool> {
    use rustix::io::Errno;
    let mut done = 0;
    while done < to.len {
        let (mut from, mut into) = (offset + done, to.offset + done);
        let len = usize::try_from(to.len - done).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(
            source,
            Some(&mut from),
            destination,
            Some(&mut into),
            len,
        ) {
            // Behind the end of the source: the reading that follows says what is wrong.
            Ok(0) => return Ok(false),
            Ok(count) => done += count as u64,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::BADF
                | Errno::TXTBSY
                | Errno::OVERFLOW,
            ) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
