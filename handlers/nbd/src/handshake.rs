//! The first talk with a server: what is exported, and how it is spoken of.

use std::io::{self, Read, Write};

use tcmu_handler::{Error, ErrorKind, Result};

use crate::protocol::{
    MAGIC, MAX_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC, allocation, flag, handshake, info, option,
    option_reply,
};
use crate::reply::{printable, u32_at, u64_at};
use crate::tls;

/// The longest reply to an option that is read, in bytes.
const MAX_REPLY: usize = MAX_STRING + 64;
/// The most replies to one option.
const MAX_REPLIES: usize = 64;
/// The largest minimum block that the protocol allows, in bytes.
const MAX_MINIMUM: u32 = 1 << 16;
/// What every server takes in one request, in bytes; nothing longer is asked for.
const MAX_PAYLOAD: u32 = 32 << 20;
/// What a server that says nothing prefers, in bytes.
const PREFERRED: u32 = 4096;
/// The smallest logical block that there is, in bytes.
const SECTOR: u32 = 512;

/// What a server tells of an export. It must be the same at each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    /// In bytes.
    pub(crate) size: u64,
    /// Of [`flag`].
    pub(crate) flags: u16,
    /// The unit of requests in bytes: a power of two, at least 512.
    pub(crate) block_size: u32,
    /// The unit in bytes that the server likes: a power of two, at least `block_size`.
    pub(crate) preferred: u32,
    /// The longest read and write in bytes: a multiple of `block_size`, at least one.
    pub(crate) max_payload: u32,
    /// The status of blocks can be asked for.
    pub(crate) has_status: bool,
}

impl Export {
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl std::fmt::Display for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes, flags {:#x}, blocks of {} to {} bytes, requests up to {}",
            self.size, self.flags, self.block_size, self.preferred, self.max_payload
        )
    }
}

/// What was agreed on for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) export: Export,
    /// Replies come in chunks.
    pub(crate) structured: bool,
    /// The metadata context `base:allocation`.
    pub(crate) context: Option<u32>,
}

/// Comes to an agreement about the export `name`, after the greetings; requests can follow.
pub(crate) fn negotiate(stream: &mut (impl Read + Write), name: &str) -> Result<Session> {
    let structured = structured_replies(stream)?;
    let context = match structured {
        true => allocation_context(stream, name)?,
        false => None,
    };
    let export = go(stream, name, context.is_some())?;
    Ok(Session {
        export,
        structured,
        context,
    })
}

/// The greetings of both sides.
pub(crate) fn greet(stream: &mut (impl Read + Write)) -> Result<()> {
    let mut greeting = [0; 18];
    let failed = |error| failed("the server's greeting", error);
    stream.read_exact(&mut greeting).map_err(failed)?;
    if u64_at(&greeting, 0) != Some(MAGIC) {
        return Err(nonsense("who listens there is no NBD server"));
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if u64_at(&greeting, 8) != Some(OPTION_MAGIC) || flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(too_old("the fixed newstyle handshake"));
    }
    let ours = handshake::FIXED_NEWSTYLE | flags & handshake::NO_ZEROES;
    let sent = stream.write_all(&u32::from(ours).to_be_bytes());
    sent.map_err(failed)
}

/// Agrees to begin TLS. All that follows is encrypted, and what was said before counts no more.
pub(crate) fn start_tls(stream: &mut (impl Read + Write)) -> Result<()> {
    send(stream, option::START_TLS, &[])?;
    let reply = receive(stream, option::START_TLS)?;
    match reply.kind {
        option_reply::ACK => Ok(()),
        kind if kind & option_reply::ERROR != 0 => {
            let says = match printable(&reply.data) {
                words if words.is_empty() => String::new(),
                words => format!(" ({words})"),
            };
            Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the server does not offer TLS{says}: set it up there, or allow everybody in between \
                     to read and change the data with tls=off"
                ),
            ))
        }
        _ => Err(nonsense("the server answers something else than asked")),
    }
}

fn structured_replies(stream: &mut (impl Read + Write)) -> Result<bool> {
    send(stream, option::STRUCTURED_REPLY, &[])?;
    let reply = receive(stream, option::STRUCTURED_REPLY)?;
    match reply.kind {
        option_reply::ACK => Ok(true),
        kind if kind & option_reply::ERROR != 0 => Ok(false),
        _ => Err(nonsense("the server answers something else than asked")),
    }
}

/// Asks for the metadata context `base:allocation`, which not every server has.
fn allocation_context(stream: &mut (impl Read + Write), name: &str) -> Result<Option<u32>> {
    let mut data = string(name);
    data.extend(1u32.to_be_bytes());
    data.extend(string(allocation::NAME));
    send(stream, option::SET_META_CONTEXT, &data)?;
    let mut context = None;
    for _ in 0..MAX_REPLIES {
        let reply = receive(stream, option::SET_META_CONTEXT)?;
        match reply.kind {
            option_reply::META_CONTEXT => {
                if reply.data.get(4..) == Some(allocation::NAME.as_bytes()) {
                    context = u32_at(&reply.data, 0);
                }
            }
            option_reply::ACK => return Ok(context),
            kind if kind & option_reply::ERROR != 0 => return Ok(None),
            _ => break,
        }
    }
    Err(nonsense("the server answers something else than asked"))
}

/// Chooses the export, and ends the handshake.
fn go(stream: &mut (impl Read + Write), name: &str, has_status: bool) -> Result<Export> {
    let mut data = string(name);
    data.extend(1u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    send(stream, option::GO, &data)?;
    let mut size_and_flags = None;
    let mut sizes = None;
    for _ in 0..MAX_REPLIES {
        let reply = receive(stream, option::GO)?;
        match reply.kind {
            option_reply::INFO => match reply.info() {
                Some((info::EXPORT, data)) => size_and_flags = export_info(data),
                Some((info::BLOCK_SIZE, data)) => sizes = Some(data.to_vec()),
                Some(_) => {}
                None => return Err(nonsense("an empty piece of information")),
            },
            option_reply::ACK => {
                let (size, flags) = size_and_flags
                    .ok_or_else(|| nonsense("the server does not say how large the export is"))?;
                return export(size, flags, sizes.as_deref(), has_status);
            }
            kind if kind & option_reply::ERROR != 0 => return Err(refusal(name, &reply)),
            _ => break,
        }
    }
    Err(nonsense("the server answers something else than asked"))
}

fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let flags = data.get(8..10)?;
    Some((u64_at(data, 0)?, u16::from_be_bytes([flags[0], flags[1]])))
}

fn export(size: u64, flags: u16, sizes: Option<&[u8]>, has_status: bool) -> Result<Export> {
    let (minimum, preferred, payload) = match sizes {
        None => (SECTOR, PREFERRED, MAX_PAYLOAD),
        Some(sizes) => {
            let field = |at| u32_at(sizes, at).filter(|_| sizes.len() == 12);
            let fields = field(0).zip(field(4)).zip(field(8));
            let ((minimum, preferred), payload) =
                fields.ok_or_else(|| nonsense("block sizes of a wrong length"))?;
            (minimum, preferred, payload)
        }
    };
    let block_size = minimum.max(SECTOR);
    let payload = payload.min(MAX_PAYLOAD);
    let sane = minimum.is_power_of_two()
        && minimum <= MAX_MINIMUM
        && preferred.is_power_of_two()
        && payload >= block_size
        && size <= i64::MAX as u64
        && flags & flag::HAS_FLAGS != 0;
    if !sane {
        return Err(nonsense(format!(
            "an export of {size} bytes, flags {flags:#x}, and blocks of {minimum} to {preferred} bytes"
        )));
    }
    Ok(Export {
        size,
        flags,
        block_size,
        preferred: preferred.max(block_size),
        max_payload: payload - payload % block_size,
        has_status,
    })
}

fn refusal(name: &str, reply: &Reply) -> Error {
    let what = match name {
        "" => "the default export".to_owned(),
        name => format!("the export \"{name}\""),
    };
    let says = match printable(&reply.data) {
        words if words.is_empty() => String::new(),
        words => format!(": {words}"),
    };
    let (kind, context) = match reply.kind {
        option_reply::UNSUPPORTED => return too_old("NBD_OPT_GO"),
        option_reply::TLS_REQUIRED => (
            ErrorKind::Unsupported,
            format!(
                "the server demands TLS for {what}: add the options tls=require and \
                 tls_certificates=FOLDER"
            ),
        ),
        option_reply::UNKNOWN => (
            ErrorKind::NotFound,
            format!("the server does not have {what}{says}"),
        ),
        option_reply::POLICY => (
            ErrorKind::PermissionDenied,
            format!("the server does not let us have {what}{says}"),
        ),
        option_reply::SHUTDOWN => (ErrorKind::Gone, "the server is shutting down".to_owned()),
        kind => (
            ErrorKind::Internal,
            format!("the server refuses {what} with error {kind:#x}{says}"),
        ),
    };
    Error::new(kind, context)
}

/// A reply to an option.
#[derive(Debug)]
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    /// The type of a piece of information, and what it says.
    fn info(&self) -> Option<(u16, &[u8])> {
        let (kind, data) = self.data.split_first_chunk()?;
        Some((u16::from_be_bytes(*kind), data))
    }
}

/// A string behind its length.
fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn send(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<()> {
    let sent = stream.write_all(&option_bytes(option, data));
    sent.map_err(|error| failed("sending an option", error))
}

fn receive(stream: &mut impl Read, option: u32) -> Result<Reply> {
    let failed = |error| failed("the answer to an option", error);
    let mut header = [0; 20];
    stream.read_exact(&mut header).map_err(failed)?;
    let len = u32_at(&header, 16).unwrap_or(u32::MAX) as usize;
    if u64_at(&header, 0) != Some(OPTION_REPLY_MAGIC) || u32_at(&header, 8) != Some(option) {
        return Err(nonsense("the server answers something else than asked"));
    }
    if len > MAX_REPLY {
        return Err(nonsense(format!("the server answers with {len} bytes")));
    }
    let mut data = vec![0; len];
    stream.read_exact(&mut data).map_err(failed)?;
    Ok(Reply {
        kind: u32_at(&header, 12).unwrap_or(option_reply::ERROR),
        data,
    })
}

pub(crate) fn failed(what: &str, error: io::Error) -> Error {
    if let Some(error) = tls::cause(&error) {
        return error;
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::new(
            ErrorKind::Gone,
            format!("waiting for {what}: the server has ended the connection"),
        ),
        io::ErrorKind::TimedOut => Error::new(
            ErrorKind::TimedOut,
            format!("waiting for {what}: the server does not answer in time"),
        ),
        _ => Error::os(format!("waiting for {what}"), error),
    }
}

fn nonsense(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

fn too_old(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the NBD server is too old: it does not know {what}"),
    )
}
