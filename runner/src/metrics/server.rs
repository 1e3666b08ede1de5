//! Who waits for those that fetch the figures.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::exposition::exposition;
use super::http::{self, Stream};
use super::listen::Listen;
use crate::daemon::board::Board;

/// How many connections are served at once; others are refused.
const MOST_CONNECTIONS: usize = 8;

/// How long nobody is let in when the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(200);

/// Listens until it is dropped.
pub(crate) struct Server {
    listen: Listen,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens, and shows the figures of `board`.
    ///
    /// # Errors
    /// If that is not possible there.
    pub(crate) fn start(listen: Listen, board: Arc<Board>) -> io::Result<Self> {
        let listener = Listener::at(&listen)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || wait(&listener, &stopped, &board))?;
        Ok(Self {
            listen,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub(crate) fn listen(&self) -> &Listen {
        &self.listen
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The counter cannot overflow.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
        if let Listen::Unix(path) = &self.listen {
            // Somebody may have removed it already.
            let _ = fs::remove_file(path);
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn at(listen: &Listen) -> io::Result<Self> {
        Ok(match listen {
            Listen::Unix(path) => Self::Unix(unix(path)?),
            Listen::Loopback(address) => {
                let listener = TcpListener::bind(address)?;
                // Whoever knocked may have gone when it is let in.
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }

    /// Serves the next connection on a thread of its own.
    fn accept(&self, busy: &Arc<AtomicUsize>, board: &Arc<Board>) -> io::Result<()> {
        match self {
            Self::Unix(listener) => serve(listener.accept()?.0, busy, board),
            Self::Tcp(listener) => serve(listener.accept()?.0, busy, board),
        }
        Ok(())
    }
}

/// Listens at a path, for root alone; a socket that a dead process left there is replaced.
fn unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = |path: &Path| {
        let found = fs::symlink_metadata(path);
        found.is_ok_and(|found| found.file_type().is_socket())
    };
    if is_socket(path)
        && let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets connections in until it is told to stop.
fn wait(listener: &Listener, stop: &OwnedFd, board: &Arc<Board>) {
    let busy = Arc::<AtomicUsize>::default();
    loop {
        let mut watched = [
            PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "the figures are not shown any more"),
        }
        if !watched[1].revents().is_empty() {
            return;
        }
        if let Err(error) = listener.accept(&busy, board)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::debug!(%error, "a connection for the figures was not let in");
            rest(stop);
        }
    }
}

/// Rests, unless it is told to stop.
fn rest(stop: &OwnedFd) {
    let pause = Timespec::try_from(PAUSE).ok();
    // How it ends does not matter.
    let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], pause.as_ref());
}

fn serve(stream: impl Stream, busy: &Arc<AtomicUsize>, board: &Arc<Board>) {
    let Some(place) = Place::take(busy) else {
        return http::refuse(stream);
    };
    let board = Arc::clone(board);
    let thread = thread::Builder::new().name("metrics".to_owned());
    let spawned = thread.spawn(move || {
        let _place = place;
        if let Err(error) = http::serve(stream, || exposition(&board)) {
            tracing::debug!(%error, "the figures were not fetched");
        }
    });
    if let Err(error) = spawned {
        tracing::debug!(%error, "a connection for the figures cannot be served");
    }
}

/// One of the connections that are served at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// Only one thread takes places.
    fn take(busy: &Arc<AtomicUsize>) -> Option<Self> {
        if busy.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            return None;
        }
        busy.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(busy)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    fn fetch(mut stream: impl Read + Write) -> String {
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_socket_of_a_dead_process_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listen = Listen::Unix(path.clone());
        let server = Server::start(listen.clone(), Arc::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = fetch(UnixStream::connect(&path).unwrap());
        assert!(answer.contains("\ntcmu_runner_info{"), "{answer}");
        let in_use = Server::start(listen.clone(), Arc::default());
        assert_eq!(
            in_use.err().map(|error| error.kind()),
            Some(io::ErrorKind::AddrInUse)
        );
        assert!(fetch(UnixStream::connect(&path).unwrap()).contains("200 OK"));
        drop(server);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(Server::start(listen, Arc::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn so_many_connections_and_no_more() {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let address: SocketAddr = address.unwrap();
        let server = Server::start(Listen::Loopback(address), Arc::default()).unwrap();
        let idle: Vec<TcpStream> = (0..MOST_CONNECTIONS)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        // They were let in before this one.
        let mut refused = String::new();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.read_to_string(&mut refused).unwrap();
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        drop(idle);
        let mut answer = String::new();
        while !answer.contains("200 OK") {
            let mut stream = TcpStream::connect(address).unwrap();
            answer.clear();
            // A refusal may come as a reset.
            let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            let _ = asked.and_then(|()| stream.read_to_string(&mut answer));
        }
        drop(server);
        TcpStream::connect(address).unwrap_err();
    }
}
