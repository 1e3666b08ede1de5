//! Servers that do what a test tells them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;

use crate::protocol::{
    MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, allocation, flag, handshake, info,
    option, option_reply,
};
use crate::reply::tests::simple_bytes;

/// A server behind a Unix socket; each connection has a thread.
pub(super) struct Fake {
    _folder: TempDir,
    path: PathBuf,
}

impl Fake {
    /// Has `script` serve each connection; they are numbered.
    pub(super) fn start(script: impl Fn(usize, Peer) + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = Arc::new(script);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (script, stream) = (Arc::clone(&script), stream.unwrap());
                thread::spawn(move || script(number, Peer(stream)));
            }
        });
        Self {
            _folder: folder,
            path,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What a server says of its export.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) size: u64,
    pub(super) flags: u16,
    /// Minimum, preferred, and longest payload.
    pub(super) sizes: Option<[u32; 3]>,
    pub(super) structured: bool,
    pub(super) status: bool,
}

/// An export that does everything.
pub(super) const SPEC: Spec = Spec {
    size: 1 << 20,
    flags: flag::HAS_FLAGS
        | flag::FLUSH
        | flag::FUA
        | flag::TRIM
        | flag::WRITE_ZEROES
        | flag::CAN_MULTI_CONN
        | flag::CACHE,
    sizes: Some([1, 4096, 32 << 20]),
    structured: true,
    status: true,
};

/// A request as a server sees it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) data: Vec<u8>,
}

/// The other side of a connection.
pub(super) struct Peer(pub(super) UnixStream);

impl Peer {
    /// Sends bytes; whether they were taken.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    pub(super) fn receive<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    pub(super) fn greet(&mut self) {
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        let mut greeting = MAGIC.to_be_bytes().to_vec();
        greeting.extend(OPTION_MAGIC.to_be_bytes());
        greeting.extend(flags.to_be_bytes());
        self.send(&greeting);
        self.receive::<4>();
    }

    /// The next option, with its data.
    pub(super) fn option(&mut self) -> Option<(u32, Vec<u8>)> {
        let header: [u8; 16] = self.receive()?;
        assert_eq!(header[..8], OPTION_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(12) as usize];
        self.0.read_exact(&mut data).ok()?;
        Some((number(8), data))
    }

    pub(super) fn answer(&mut self, option: u32, kind: u32, data: &[u8]) -> bool {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes)
    }

    /// The whole handshake.
    pub(super) fn serve(&mut self, spec: Spec) -> Option<()> {
        self.greet();
        loop {
            let (option, data) = self.option()?;
            match option {
                option::STRUCTURED_REPLY if spec.structured => {
                    self.answer(option, option_reply::ACK, &[]);
                }
                option::SET_META_CONTEXT if spec.status => {
                    let mut context = 1u32.to_be_bytes().to_vec();
                    context.extend(allocation::NAME.as_bytes());
                    self.answer(option, option_reply::META_CONTEXT, &context);
                    self.answer(option, option_reply::ACK, &[]);
                }
                option::GO => {
                    assert_eq!(data[..4], 0u32.to_be_bytes(), "the default export");
                    let mut export = info::EXPORT.to_be_bytes().to_vec();
                    export.extend(spec.size.to_be_bytes());
                    export.extend(spec.flags.to_be_bytes());
                    self.answer(option, option_reply::INFO, &export);
                    if let Some(sizes) = spec.sizes {
                        let mut block_size = info::BLOCK_SIZE.to_be_bytes().to_vec();
                        block_size.extend(sizes.map(u32::to_be_bytes).concat());
                        self.answer(option, option_reply::INFO, &block_size);
                    }
                    self.answer(option, option_reply::ACK, &[]);
                    return Some(());
                }
                _ => {
                    self.answer(option, option_reply::UNSUPPORTED, b"not here");
                }
            }
        }
    }

    /// The next request; `None` at the connection's end.
    pub(super) fn request(&mut self) -> Option<Asked> {
        let header: [u8; 28] = self.receive()?;
        assert_eq!(header[..4], REQUEST_MAGIC.to_be_bytes());
        let short = |at: usize| u16::from_be_bytes(header[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let mut asked = Asked {
            flags: short(4),
            kind: short(6),
            cookie: long(8),
            offset: long(16),
            len: u32::from_be_bytes(header[24..].try_into().unwrap()),
            data: Vec::new(),
        };
        if asked.kind == 1 {
            asked.data = vec![0; asked.len as usize];
            self.0.read_exact(&mut asked.data).ok()?;
        }
        Some(asked)
    }

    /// Says that a request without data is done.
    pub(super) fn done(&mut self, asked: &Asked) -> bool {
        self.send(&simple_bytes(0, asked.cookie))
    }
}
