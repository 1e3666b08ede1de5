//! One open export.

use std::ops::Range;
use std::sync::Arc;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, DataAccess, Error, ErrorKind, Extent, Fua, Io,
    OpenRequest, Result, Unmap, WriteFlags, ZeroFlags,
};

use crate::connect::{Connected, connect};
use crate::connection::{Connection, Shared};
use crate::handshake::Export;
use crate::options::Options;
use crate::protocol::{allocation, command_flag, flag};
use crate::request::{Command, Request};
use crate::slots::Answer;
use crate::unflushed::Unflushed;

/// The longest request without data, in bytes: servers count in 32 bits.
const MAX_RANGE: u32 = 1 << 30;
/// The unit of the page cache.
const PAGE: u32 = 4096;

/// An open export of an NBD server.
#[derive(Debug)]
pub struct NbdImage {
    shared: Shared,
    /// At least one.
    connections: Vec<Connection>,
}

impl NbdImage {
    /// Connects, and looks whether such a LUN can be served.
    pub(crate) fn open(options: Options, request: &OpenRequest) -> Result<Self> {
        let first = connect(&options)?;
        let export = first.session.export;
        suits(&options, &export, request)?;
        let mut connections = vec![Connection::new(first)];
        while connections.len() < options.connections {
            connections.push(Connection::new(another(&options, &export)?));
        }
        Ok(Self {
            shared: Shared {
                options: Arc::new(options),
                export,
                unflushed: Unflushed::default(),
            },
            connections,
        })
    }

    /// Takes no writes.
    fn is_read_only(&self) -> bool {
        self.shared.options.read_only || self.shared.export.has(flag::READ_ONLY)
    }

    /// The connection that has the least to do.
    fn connection(&self) -> Result<&Connection> {
        let least = self.connections.iter().min_by_key(|one| one.load());
        least.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no connection"))
    }

    async fn request(
        &self,
        io: &Io,
        request: Request,
        buffer: Option<Buffer<'_>>,
    ) -> Result<Answer> {
        if request.command.changes() && self.is_read_only() {
            let server = &self.shared.options.address;
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("NBD server {server}: the export is open for reading only"),
            ));
        }
        let connection = self.connection()?;
        connection.request(io, &self.shared, request, buffer).await
    }

    /// A request that reads or writes, in as many parts as the server needs.
    async fn transfer(
        &self,
        io: &Io,
        command: Command,
        flags: u16,
        buffer: Buffer<'_>,
        offset: u64,
    ) -> Result<()> {
        for part in parts(buffer.len() as u64, self.shared.export.max_payload) {
            let request = Request {
                command,
                flags,
                offset: offset + part.start,
                len: (part.end - part.start) as u32,
            };
            let data = buffer.slice(part.start as usize..part.end as usize);
            let data = data.map_err(|error| {
                Error::new(ErrorKind::Internal, "the request's memory").with_source(error)
            })?;
            self.request(io, request, Some(data)).await?;
        }
        Ok(())
    }

    /// A request without data.
    async fn range(&self, io: &Io, command: Command, flags: u16, extent: Extent) -> Result<()> {
        for part in parts(extent.len, MAX_RANGE) {
            let request = Request {
                command,
                flags,
                offset: extent.offset + part.start,
                len: (part.end - part.start) as u32,
            };
            self.request(io, request, None).await?;
        }
        Ok(())
    }
}

/// `len` bytes in parts of at most `longest`.
fn parts(len: u64, longest: u32) -> impl Iterator<Item = Range<u64>> {
    let longest = u64::from(longest);
    (0..len.div_ceil(longest)).map(move |number| {
        let start = number * longest;
        start..len.min(start + longest)
    })
}

/// Whether a LUN can be served from the export.
fn suits(options: &Options, export: &Export, request: &OpenRequest) -> Result<()> {
    let server = &options.address;
    if options.connections > 1 && !export.has(flag::CAN_MULTI_CONN) {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "NBD server {server}: it does not promise that several connections see the same: \
                 leave the option connections out"
            ),
        ));
    }
    if request.size > export.size {
        return Err(Error::new(
            ErrorKind::OutOfRange,
            format!(
                "NBD server {server}: the export has {} bytes, less than the LUN's {}",
                export.size, request.size
            ),
        ));
    }
    if request.block_size < export.block_size {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "NBD server {server}: it takes requests in units of {} bytes: the LUN's blocks of {} \
                 bytes are too small",
                export.block_size, request.block_size
            ),
        ));
    }
    Ok(())
}

/// A further connection to the same export.
fn another(options: &Options, export: &Export) -> Result<Connected> {
    let connected = connect(options)?;
    match connected.session.export == *export {
        true => Ok(connected),
        false => Err(Error::new(
            ErrorKind::Internal,
            format!(
                "NBD server {}: it exports something else on each connection",
                options.address
            ),
        )),
    }
}

impl Backstore for NbdImage {
    fn capabilities(&self) -> Capabilities {
        let export = &self.shared.export;
        let read_only = self.is_read_only();
        let writable = |flag| !read_only && export.has(flag);
        let physical_block_size = export.preferred.min(PAGE).max(export.block_size);
        Capabilities {
            size: export.size - export.size % u64::from(export.block_size),
            block_size: export.block_size,
            physical_block_size,
            optimal_io_size: match export.preferred {
                preferred if preferred > physical_block_size => preferred,
                _ => 0,
            },
            read_only,
            volatile_cache: writable(flag::FLUSH),
            fua: match export.has(flag::FUA) {
                true => Fua::Native,
                false => Fua::Emulate,
            },
            unmap: writable(flag::TRIM).then(|| Unmap {
                granularity: export.preferred.into(),
                // proto.md: nothing is said of what is read after a trim.
                reads_zeroes: false,
            }),
            write_zeroes: writable(flag::WRITE_ZEROES),
            data_access: match self.shared.options.tls {
                None => DataAccess::FdToFd,
                Some(_) => DataAccess::Bytes,
            },
            ..Capabilities::new(export.size)
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.transfer(io, Command::Read, 0, buffer, offset).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        self.transfer(io, Command::Write, fua(flags.fua), buffer, offset)
            .await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        let request = Request {
            command: Command::Flush,
            flags: 0,
            offset: 0,
            len: 0,
        };
        let flush = self.shared.unflushed.begin();
        self.request(io, request, None).await?;
        match self.shared.unflushed.done(flush) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Write,
                format!(
                    "NBD server {}: its connection ended before this flush: what was written since \
                     the one before may be lost",
                    self.shared.options.address
                ),
            )),
        }
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.range(io, Command::Trim, 0, extent).await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let keep = match flags.may_unmap {
            true => 0,
            false => command_flag::NO_HOLE,
        };
        let flags = keep | fua(flags.fua);
        self.range(io, Command::WriteZeroes, flags, extent).await
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        let mapped = BlockStatus {
            len: extent.len,
            mapped: true,
        };
        if !self.shared.export.has_status {
            return Ok(mapped);
        }
        let request = Request {
            command: Command::BlockStatus,
            flags: command_flag::REQ_ONE,
            offset: extent.offset,
            len: extent.len.min(MAX_RANGE.into()) as u32,
        };
        Ok(match self.request(io, request, None).await? {
            Answer::Extent { len, flags } => BlockStatus {
                len: len.into(),
                mapped: flags & allocation::HOLE == 0,
            },
            Answer::Done => mapped,
        })
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        match self.shared.export.has(flag::CACHE) {
            true => self.range(io, Command::Cache, 0, extent).await,
            false => Ok(()),
        }
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let flushed = match self.capabilities().volatile_cache && self.shared.unflushed.is_any() {
            true => self.flush(io).await,
            false => Ok(()),
        };
        for connection in &self.connections {
            connection.close(io).await;
        }
        flushed
    }
}

fn fua(fua: bool) -> u16 {
    match fua {
        true => command_flag::FUA,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_and_are_not_too_long() {
        assert_eq!(parts(0, 10).count(), 0);
        assert_eq!(parts(10, 10).count(), 1);
        assert_eq!(parts(25, 10).collect::<Vec<_>>(), [0..10, 10..20, 20..25]);
    }
}
