//! What a server answers: the headers of replies taken apart, from any bytes.

use crate::protocol::{CHUNK_MAGIC, MAX_STRING, SIMPLE_MAGIC, chunk};

/// The length of a simple reply, in bytes, without the data of a read.
pub(crate) const SIMPLE_LEN: usize = 16;
/// The length of a chunk's header, in bytes.
const CHUNK_LEN: usize = 20;
/// How many bytes of a structured reply stand before the first byte of a read's data, at least.
pub(crate) const BEFORE_DATA: usize = CHUNK_LEN + 8;
/// The longest reply, in bytes, without the data of a read: an error with a message and an offset.
pub(crate) const LONGEST: usize = CHUNK_LEN + 6 + MAX_STRING + 8;
/// How much of an error's message is kept, in bytes.
const KEPT_MESSAGE: usize = 256;

/// A reply that breaks the protocol's rules. Nothing that follows on its connection means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The beginning of a stream of replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// It takes this many bytes, counted from the reply's first, to know more.
    Incomplete(usize),
    /// A reply, or a chunk of one.
    Reply(Reply),
}

/// A reply, or a chunk of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Which request it belongs to.
    pub(crate) cookie: u64,
    /// Nothing more follows for that request.
    pub(crate) done: bool,
    /// The length in bytes, without the data of a read.
    pub(crate) len: usize,
    pub(crate) content: Content,
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A simple reply: all is done. The data of a read follow.
    Success,
    /// A chunk without content.
    Nothing,
    /// So many bytes of a read's data follow, which are from this offset.
    Data { offset: u64, len: u32 },
    /// So many bytes from this offset are zero.
    Hole { offset: u64, len: u32 },
    /// The first extent that is kept alike, in a metadata context.
    Status { context: u32, len: u32, flags: u32 },
    /// The request failed.
    Error { code: u32, message: String },
}

/// Takes the first reply in `bytes` apart. Chunks are allowed only if they were agreed on.
pub(crate) fn parse(bytes: &[u8], structured: bool) -> Result<Parsed, Malformed> {
    let Some(magic) = u32_at(bytes, 0) else {
        return Ok(Parsed::Incomplete(SIMPLE_LEN));
    };
    match magic {
        SIMPLE_MAGIC => Ok(simple(bytes)),
        CHUNK_MAGIC if structured => chunk(bytes),
        CHUNK_MAGIC => Err(Malformed("a structured reply that was not agreed on")),
        _ => Err(Malformed("no reply where one must begin")),
    }
}

fn simple(bytes: &[u8]) -> Parsed {
    match (u32_at(bytes, 4), u64_at(bytes, 8)) {
        (Some(code), Some(cookie)) => Parsed::Reply(Reply {
            cookie,
            done: true,
            len: SIMPLE_LEN,
            content: match code {
                0 => Content::Success,
                code => Content::Error {
                    code,
                    message: String::new(),
                },
            },
        }),
        _ => Parsed::Incomplete(SIMPLE_LEN),
    }
}

fn chunk(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let header = (
        u16_at(bytes, 4),
        u16_at(bytes, 6),
        u64_at(bytes, 8),
        u32_at(bytes, 16),
    );
    let (Some(flags), Some(kind), Some(cookie), Some(payload)) = header else {
        return Ok(Parsed::Incomplete(CHUNK_LEN));
    };
    let known = known_length(kind, payload)?;
    let len = CHUNK_LEN + known;
    let Some(body) = bytes.get(CHUNK_LEN..len) else {
        return Ok(Parsed::Incomplete(len));
    };
    let done = flags & chunk::DONE != 0;
    let content = content(kind, payload, body).ok_or(Malformed("a chunk without its fields"))?;
    match content {
        Content::Nothing if !done => Err(Malformed("an empty chunk that is not the last")),
        Content::Error { code: 0, .. } => Err(Malformed("an error without a number")),
        content => Ok(Parsed::Reply(Reply {
            cookie,
            done,
            len,
            content,
        })),
    }
}

/// How many bytes of a chunk's payload are looked at here: all but a read's data.
fn known_length(kind: u16, payload: u32) -> Result<usize, Malformed> {
    let len = payload as usize;
    let fits = match kind {
        chunk::NONE => len == 0,
        chunk::OFFSET_DATA if len > 8 => return Ok(8),
        chunk::OFFSET_DATA => false,
        chunk::OFFSET_HOLE => len == 12,
        // One extent was asked for, in one context.
        chunk::BLOCK_STATUS => len == 12,
        kind if kind & chunk::ERROR != 0 => (6..=LONGEST - CHUNK_LEN).contains(&len),
        _ => return Err(Malformed("a chunk of an unknown type")),
    };
    match fits {
        true => Ok(len),
        false => Err(Malformed("a chunk of a wrong length")),
    }
}

fn content(kind: u16, payload: u32, body: &[u8]) -> Option<Content> {
    Some(match kind {
        chunk::NONE => Content::Nothing,
        chunk::OFFSET_DATA => Content::Data {
            offset: u64_at(body, 0)?,
            len: payload.checked_sub(8)?,
        },
        chunk::OFFSET_HOLE => Content::Hole {
            offset: u64_at(body, 0)?,
            len: u32_at(body, 8)?,
        },
        chunk::BLOCK_STATUS => Content::Status {
            context: u32_at(body, 0)?,
            len: u32_at(body, 4)?,
            flags: u32_at(body, 8)?,
        },
        _ => {
            let len = usize::from(u16_at(body, 4)?);
            let message = body.get(6..6 + len)?;
            Content::Error {
                code: u32_at(body, 0)?,
                message: printable(message),
            }
        }
    })
}

/// A server's words, cut short, and without what a terminal would follow.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let kept = &bytes[..bytes.len().min(KEPT_MESSAGE)];
    let text = String::from_utf8_lossy(kept);
    text.trim()
        .chars()
        .map(|character| match character.is_control() {
            true => ' ',
            false => character,
        })
        .collect()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A chunk as a server sends it.
    pub(crate) fn chunk_bytes(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A simple reply as a server sends it.
    pub(crate) fn simple_bytes(code: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = SIMPLE_MAGIC.to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes
    }

    /// An error's payload.
    pub(crate) fn error_payload(code: u32, message: &[u8]) -> Vec<u8> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend((message.len() as u16).to_be_bytes());
        payload.extend(message);
        payload
    }

    fn reply(bytes: &[u8]) -> Reply {
        match parse(bytes, true) {
            Ok(Parsed::Reply(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for more until it is enough, and never for more than there is.
    fn asks_to_the_end(bytes: &[u8]) {
        for len in 0..bytes.len() {
            match parse(&bytes[..len], true) {
                Ok(Parsed::Incomplete(need)) => assert!(len < need && need <= bytes.len()),
                other => panic!("{len}: {other:?}"),
            }
        }
        assert_eq!(reply(bytes).len, bytes.len());
    }

    #[test]
    fn every_kind_of_reply_is_understood() {
        let data = [8u64.to_be_bytes().as_slice(), &[1, 2, 3]].concat();
        let bytes = chunk_bytes(1, chunk::OFFSET_DATA, 7, &data);
        let Reply {
            cookie,
            done,
            len,
            content,
        } = reply(&bytes);
        assert_eq!((cookie, done, len), (7, true, BEFORE_DATA));
        assert_eq!(content, Content::Data { offset: 8, len: 3 });

        let hole = [9u64.to_be_bytes().as_slice(), &512u32.to_be_bytes()].concat();
        let bytes = chunk_bytes(0, chunk::OFFSET_HOLE, 7, &hole);
        asks_to_the_end(&bytes);
        let content = Content::Hole {
            offset: 9,
            len: 512,
        };
        assert_eq!(reply(&bytes).content, content);
        assert!(!reply(&bytes).done);

        let status = [1u32, 4096, 3].map(u32::to_be_bytes).concat();
        let bytes = chunk_bytes(1, chunk::BLOCK_STATUS, 7, &status);
        asks_to_the_end(&bytes);
        let content = Content::Status {
            context: 1,
            len: 4096,
            flags: 3,
        };
        assert_eq!(reply(&bytes).content, content);

        let error = error_payload(5, b"disk\x1b[31m on fire\n");
        let bytes = chunk_bytes(1, chunk::ERROR + 1, 7, &error);
        asks_to_the_end(&bytes);
        let content = Content::Error {
            code: 5,
            message: "disk [31m on fire".to_owned(),
        };
        assert_eq!(reply(&bytes).content, content);

        asks_to_the_end(&chunk_bytes(1, chunk::NONE, 7, &[]));
        asks_to_the_end(&simple_bytes(0, 3));
        let content = Content::Error {
            code: 28,
            message: String::new(),
        };
        assert_eq!(reply(&simple_bytes(28, 3)).content, content);
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let error = |message_len: u16, len: usize| {
            let mut payload = vec![0; len];
            payload[3] = 5;
            payload[4..6].copy_from_slice(&message_len.to_be_bytes());
            chunk_bytes(1, chunk::ERROR + 1, 0, &payload)
        };
        for bytes in [
            b"NBDMAGIC".to_vec(),
            chunk_bytes(0, chunk::NONE, 0, &[]),
            chunk_bytes(1, chunk::NONE, 0, &[0; 4]),
            chunk_bytes(1, chunk::OFFSET_DATA, 0, &[0; 8]),
            chunk_bytes(1, chunk::OFFSET_DATA, 0, &[]),
            chunk_bytes(1, chunk::OFFSET_HOLE, 0, &[0; 11]),
            chunk_bytes(1, chunk::BLOCK_STATUS, 0, &[0; 4]),
            chunk_bytes(1, chunk::BLOCK_STATUS, 0, &[0; 20]),
            chunk_bytes(1, 3, 0, &[]),
            chunk_bytes(1, chunk::ERROR + 1, 0, &[0; 5]),
            chunk_bytes(1, chunk::ERROR + 1, 0, &error_payload(0, b"")),
            error(5, 10),
            error(0, LONGEST),
        ] {
            assert!(parse(&bytes, true).is_err(), "{bytes:x?}");
        }
        let chunk = chunk_bytes(1, chunk::NONE, 0, &[]);
        assert!(parse(&chunk, false).is_err());
    }
}
