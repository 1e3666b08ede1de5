//! A new connection, from the socket to the end of the handshake. All of it blocks.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{
    Timeout, set_socket_keepalive, set_socket_timeout, set_tcp_nodelay, set_tcp_user_timeout,
};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, send, socket_with,
};
use rustls::ClientConnection;
use tcmu_handler::{Error, ErrorKind, Result};

use crate::address::Address;
use crate::handshake::{Session, greet, negotiate, start_tls};
use crate::options::Options;
use crate::request::{Command, Request};
use crate::tls;

/// How long to wait before a Unix socket is tried again whose queue of connections is full.
const CROWDED: Duration = Duration::from_millis(20);

/// A connection on which requests can follow.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session,
    /// What encrypts all that goes through the socket, if anything does.
    pub(crate) encryption: Option<Box<ClientConnection>>,
}

/// Connects to the server and agrees on its export, in no more than
/// [`connect_timeout`](Options::connect_timeout), apart from looking up a host's name.
pub(crate) fn connect(options: &Options) -> Result<Connected> {
    connect_bare(options).map_err(|error| {
        let context = format!("NBD server {}: {error}", options.address);
        Error::new(error.kind(), context)
    })
}

fn connect_bare(options: &Options) -> Result<Connected> {
    let deadline = Instant::now() + options.connect_timeout;
    let socket = match &options.address {
        Address::Unix(path) => unix(path, deadline)?,
        Address::Tcp { host, port } => tcp(host, *port, deadline, options.timeout)?,
    };
    let mut stream = Stream {
        socket: &socket,
        deadline,
    };
    greet(&mut stream)?;
    let (session, encryption) = match &options.tls {
        None => (negotiate(&mut stream, &options.export)?, None),
        Some(tls) => {
            let (mut stream, mut encryption) = (stream, tls.client()?);
            start_tls(&mut stream)?;
            tls::shake_hands(&mut encryption, &mut stream)?;
            let mut stream = rustls::Stream::new(&mut *encryption, &mut stream);
            let session = negotiate(&mut stream, &options.export).map_err(tls::afterwards)?;
            (session, Some(encryption))
        }
    };
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, None).map_err(unusable)?;
    }
    Ok(Connected {
        socket,
        session,
        encryption,
    })
}

/// Tells the server that nothing follows.
pub(crate) fn disconnect(mut connected: Connected) {
    let goodbye = goodbye(connected.encryption.as_deref_mut());
    // It hears the connection's end otherwise.
    let _ = send(&connected.socket, &goodbye, SendFlags::NOSIGNAL);
}

/// What tells a server that nothing follows, as it goes through the socket.
pub(crate) fn goodbye(encryption: Option<&mut ClientConnection>) -> Vec<u8> {
    let request = Request {
        command: Command::Disconnect,
        flags: 0,
        offset: 0,
        len: 0,
    };
    let header = request.header(0);
    match encryption {
        None => header.to_vec(),
        Some(encryption) => tls::last_words(encryption, &header),
    }
}

fn unix(path: &Path, deadline: Instant) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path).map_err(unusable)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.map_err(unusable)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            // unix(7): the queue of a server that accepts nobody is full.
            Err(Errno::AGAIN) if Instant::now() + CROWDED < deadline => thread::sleep(CROWDED),
            Err(Errno::AGAIN) => {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    "connecting: the server accepts nobody",
                ));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(refused(errno.into())),
        }
    }
    // io_uring waits for a socket only if it may block.
    fcntl_setfl(&socket, OFlags::empty()).map_err(unusable)?;
    Ok(socket)
}

fn tcp(host: &str, port: u16, deadline: Instant, timeout: Option<Duration>) -> Result<OwnedFd> {
    let addresses = (host, port).to_socket_addrs().map_err(|error| {
        let unknown = ErrorKind::NotFound;
        Error::os(format!("looking up {host}"), error).with_kind(unknown)
    })?;
    let mut error = Error::new(ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses {
        let Some(left) = left(deadline) else { break };
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                let socket = OwnedFd::from(stream);
                set_tcp_nodelay(&socket, true).map_err(unusable)?;
                set_socket_keepalive(&socket, true).map_err(unusable)?;
                if let Some(timeout) = timeout {
                    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
                    set_tcp_user_timeout(&socket, milliseconds).map_err(unusable)?;
                }
                return Ok(socket);
            }
            Err(refusal) => error = refused(refusal),
        }
    }
    Err(error)
}

/// The time up to a deadline, if there is any.
fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (left > Duration::ZERO).then_some(left)
}

fn refused(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            Error::os("connecting: no server listens", error).with_kind(ErrorKind::Gone)
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Error::os("connecting", error).with_kind(ErrorKind::Gone)
        }
        _ => Error::os("connecting", error),
    }
}

fn unusable(errno: Errno) -> Error {
    Error::os("preparing the socket", errno.into())
}

/// A socket until a deadline.
struct Stream<'a> {
    socket: &'a OwnedFd,
    deadline: Instant,
}

impl Stream<'_> {
    /// Lets the next system call take only the time that is left.
    fn limit(&self, direction: Timeout) -> io::Result<()> {
        let left = left(self.deadline).ok_or(io::ErrorKind::TimedOut)?;
        Ok(set_socket_timeout(self.socket, direction, Some(left))?)
    }
}

/// What the kernel says of a socket whose time is up.
fn timed_out(errno: Errno) -> io::Error {
    match errno {
        Errno::AGAIN => io::ErrorKind::TimedOut.into(),
        errno => errno.into(),
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.limit(Timeout::Recv)?;
        retry_on_intr(|| rustix::io::read(self.socket, &mut *buffer)).map_err(timed_out)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.limit(Timeout::Send)?;
        retry_on_intr(|| send(self.socket, buffer, SendFlags::NOSIGNAL)).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
