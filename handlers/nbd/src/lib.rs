//! Backstore on an export of an NBD server: doc/proto.md of the NBD project.
//!
//! The data of reads and writes go between the socket and the request's own memory: one message with
//! the headers and the data of many requests, one receipt for a read's data and the header behind
//! them. No copy, no thread, nothing allocated per request.
//!
//! With TLS, whose records are copies by nature, the data are encrypted from there into another buffer
//! and decrypted the other way, on the thread of the LUN; rustls allocates memory for that.
//!
//! # What of the protocol is used
//! Fixed newstyle handshake with `NBD_OPT_GO` and block sizes, structured replies where the server has
//! them, the metadata context `base:allocation`; reads, writes, flushes, trims, zeroes, prefetching,
//! block status; FUA. Several connections to servers that promise `NBD_FLAG_CAN_MULTI_CONN`. TLS 1.2 and
//! 1.3 with X.509 certificates, as the first option (`NBD_OPT_STARTTLS`), never without having been asked
//! for, and never given up for a server that does not have it. Not used: TLS with a pre-shared key, which
//! rustls does not have; 64-bit headers, since no request is that long.
//!
//! # A server that goes, and comes again
//! Requests wait for a server that has ended its connection, for as long as the option `reconnect`
//! says, and are sent again to the one that takes its place, if that exports the same. Those that a
//! silent server does not answer within `timeout` fail, and so do all if a server breaks the
//! protocol's rules. What had been acknowledged, and not flushed, may be lost with a server: the next
//! flush then fails once, unless the option `server_cache` says that this server's memory outlives it,
//! as the kernel's page cache does. TLS does not change this: who can cut connections can make a flush
//! fail, and a server that is killed says no goodbye, so that none is demanded.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod address;
mod connect;
mod connection;
mod coverage;
mod handshake;
mod image;
mod options;
mod outage;
mod protocol;
mod receiver;
mod records;
mod reply;
mod request;
mod sender;
mod slots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod unflushed;

pub use image::NbdImage;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

use crate::options::Options;

const HELP: &str = "\
nbd/SERVER[;OPTION=VALUE]...

Serves an export of an NBD server. SERVER is unix:/path/of/socket, or /path/of/socket; HOST,
HOST:PORT or [ADDRESS]:PORT (the port is 10809 unless said); or an NBD URI: nbd://HOST:PORT/EXPORT,
nbd+unix:///EXPORT?socket=/path/of/socket; with nbds in place of nbd, TLS is used. The export must be at
least as large as the LUN.

  export=NAME          The export, if it is not the server's default and the URI names none.
  tls=require|off      require: nothing is read or written without TLS. off: TLS is not used. The default
                       is what the URI says, or else off.
  tls_certificates=FOLDER
                       A folder with ca-cert.pem, who signs servers' certificates, and, if the server
                       wants to know its clients, client-cert.pem and client-key.pem.
  tls_hostname=NAME    Who the server's certificate must be for, if not for HOST.
  connections=N        How many connections to use, 1 to 16. More than 1 are refused if the server does
                       not promise that all see the same. The default is 1.
  readonly=on|off      on: serves the export for reading only. The default is off; what the server
                       exports for reading only is read-only anyway.
  reconnect=SECONDS    How long requests wait for a server that has gone. Then they fail until it is
                       there again. 0: there is one attempt to find it. The default is 60.
  timeout=SECONDS      How long a server that has something to do may be silent before all that it has
                       fails. 0: for ever. The default is 60.
  connect_timeout=SECONDS
                       How long connecting may take, 1 to 300. The default is 10.
  server_cache=volatile|durable
                       volatile: what the server has acknowledged and not flushed may be lost when it
                       ends, so that the next flush after a lost connection fails. durable: nothing is
                       lost, as with a server that writes to a file and is killed. The default is
                       volatile.
";

/// The handler `nbd`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NbdHandler;

impl Handler for NbdHandler {
    type Backstore = NbdImage;

    fn subtype(&self) -> &str {
        "nbd"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        let connected = connect::connect(&Options::of(config)?)?;
        connect::disconnect(connected);
        Ok(())
    }

    fn open(&self, request: &OpenRequest) -> Result<NbdImage> {
        NbdImage::open(Options::of(&request.config)?, request)
    }
}
