//! qemu-nbd as a second opinion: qemu's own engine does the same requests, and shows the same bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::model::{Placed, Request};

const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES.
const CLIENT_FLAGS: u32 = 0b11;
const OPTION_EXPORT_NAME: u32 = 1;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
/// NBD_CMD_FLAG_FUA and NBD_CMD_FLAG_NO_HOLE.
const FUA: u16 = 1;
const NO_HOLE: u16 = 1 << 1;

/// A qemu-nbd that serves an image, until the value is dropped.
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Serves `path`; the socket lies beside it.
    pub(super) fn start(path: &Path, options: &[&str]) -> Self {
        let socket = path.with_extension("socket");
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--format=qcow2", "--discard=unmap"])
            .args(options)
            .arg("--socket")
            .arg(&socket)
            .arg(path)
            .current_dir(path.parent().unwrap())
            .spawn()
            .unwrap();
        let mut server = Self { child, socket };
        server.greeted();
        server
    }

    /// A connection whose server has opened its image: the socket is there before that, but nobody
    /// is greeted.
    fn greeted(&mut self) -> UnixStream {
        let mut stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(_) => assert!(
                    self.child.try_wait().unwrap().is_none(),
                    "qemu-nbd has ended"
                ),
            }
        };
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGIC");
        stream
    }

    /// A connection that requests can be sent through.
    pub(super) fn connect(&mut self) -> Client {
        let mut stream = self.greeted();
        let mut start = [0; 10];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start[..8], OPTION_MAGIC);
        let words = [
            &CLIENT_FLAGS.to_be_bytes()[..],
            OPTION_MAGIC,
            &OPTION_EXPORT_NAME.to_be_bytes(),
            &0u32.to_be_bytes(),
        ]
        .concat();
        stream.write_all(&words).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Client { stream }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It asks to have its files flushed and its locks released; a kill does that too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection; one request at a time.
pub(super) struct Client {
    stream: UnixStream,
}

impl Client {
    fn send(&mut self, kind: u16, flags: u16, offset: u64, len: u64, bytes: &[u8]) {
        let request = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &0u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &(len as u32).to_be_bytes(),
        ]
        .concat();
        self.stream.write_all(&request).unwrap();
        self.stream.write_all(bytes).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        let expected = [&REPLY_MAGIC.to_be_bytes()[..], &[0; 12]].concat();
        assert_eq!(reply, *expected, "qemu-nbd fails at {kind} {offset} {len}");
    }

    /// The bytes of a range.
    pub(super) fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        self.send(READ, 0, offset, len, &[]);
        let mut bytes = vec![0; len as usize];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Does what our engine did; a read returns its bytes. What is unmapped is zero here too: qemu's
    /// TRIM would leave parts of clusters as they are.
    pub(super) fn execute(&mut self, placed: &Placed) -> Option<Vec<u8>> {
        let Placed {
            request,
            offset,
            len,
        } = *placed;
        let durable = |fua: bool| if fua { FUA } else { 0 };
        match request {
            Request::Read => return Some(self.read(offset, len)),
            Request::Write { fua, .. } => {
                self.send(WRITE, durable(fua), offset, len, &placed.bytes());
            }
            Request::Zero { may_unmap, fua } => {
                let flags = durable(fua) | if may_unmap { 0 } else { NO_HOLE };
                self.send(WRITE_ZEROES, flags, offset, len, &[]);
            }
            Request::Unmap => {
                self.send(TRIM, 0, offset, len, &[]);
                self.send(WRITE_ZEROES, 0, offset, len, &[]);
            }
            Request::Flush => self.send(FLUSH, 0, 0, 0, &[]),
        }
        None
    }
}
