//! TLS, with real servers, bad certificates, and somebody in between.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tcmu_handler::testing::{Contract, Image, block_on, io};
use tcmu_handler::{Backstore, DataAccess, ErrorKind, Handler, contract_tests};
use tcmu_nbd_servers::{Authority, Server, Subject};
use tempfile::TempDir;

use super::fake::{Fake, Peer};
use super::real::{WORKLOAD, no_write_is_lost, try_out};
use super::workload::{Workload, run};
use super::{open, read, write};
use crate::NbdHandler;
use crate::protocol::{option, option_reply};

const MIB: u64 = 1 << 20;
const NAME: &str = "server.test";

/// A folder for a server and its clients.
fn pki() -> TempDir {
    Authority::new().folder(&[Subject::Server(NAME), Subject::Client])
}

/// A server's words, for TLS with this folder.
fn nbdkit(pki: &TempDir, words: &[&str]) -> Server {
    let folder = format!("--tls-certificates={}", pki.path().display());
    Server::nbdkit(&[&["--tls=require", &folder], words].concat())
}

/// A client's options, for TLS with this folder.
fn options(pki: &TempDir) -> String {
    let folder = pki.path().display();
    format!(";tls=require;tls_certificates={folder};tls_hostname={NAME};connect_timeout=100")
}

/// What opening says.
fn refused(path: &Path, options: &str) -> (ErrorKind, String) {
    let error = open(path, options, MIB).unwrap_err();
    (error.kind(), error.to_string())
}

fn contract() -> Contract<NbdHandler> {
    let make = move |_: &Path| {
        let pki = pki();
        let server = nbdkit(&pki, &["memory", "4M"]);
        let config = format!("unix:{}{}", server.path().display(), options(&pki));
        Image::with(config, (server, pki))
    };
    Contract::new(NbdHandler, make).read_only(";readonly=on")
}

contract_tests!(contract_with_tls: contract());

#[test]
fn nbdkit_serves_clients_that_it_knows() {
    let pki = pki();
    let server = nbdkit(&pki, &["--tls-verify-peer", "memory", "16M"]);
    try_out(&server, &options(&pki));
    try_out(&server, &format!("{};connections=3", options(&pki)));
}

#[test]
fn qemu_serves_clients_that_it_knows() {
    let pki = pki();
    let image = pki.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let creds = format!(
        "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
        pki.path().display()
    );
    let words = ["--object", &creds, "--tls-creds", "tls", "-f", "raw"];
    let image = [image.to_str().unwrap()];
    let server = Server::qemu(&[words.as_slice(), &image].concat());
    try_out(&server, &options(&pki));
}

#[test]
fn no_write_is_lost_when_servers_with_tls_are_killed() {
    let pki = pki();
    let folder = format!("--tls-certificates={}", pki.path().display());
    let server = Server::nbdkit_on_a_file(&["--tls=require", &folder], 16 * MIB);
    let options = options(&pki);
    let options = format!("{options};server_cache=durable;reconnect=3600;timeout=0;connections=2");
    no_write_is_lost(server, &options);
}

#[test]
fn a_server_has_to_prove_who_it_is() {
    let pki = pki();
    let server = nbdkit(&pki, &["memory", "1M"]);
    let image = open(&server.path(), &options(&pki), MIB).unwrap();
    assert_eq!(image.capabilities().data_access, DataAccess::Bytes);

    let elsewhere = options(&pki).replace(NAME, "elsewhere.test");
    let (kind, words) = refused(&server.path(), &elsewhere);
    assert_eq!(kind, ErrorKind::PermissionDenied, "{words}");
    let says = words.contains("elsewhere.test") && words.contains(NAME);
    assert!(says && words.contains("tls_hostname"), "{words}");

    let strangers = self::pki();
    let (kind, words) = refused(&server.path(), &options(&strangers));
    assert_eq!(kind, ErrorKind::PermissionDenied, "{words}");
    assert!(words.contains("signed by nobody in ca-cert.pem"), "{words}");

    let old = Authority::new().folder(&[Subject::ExpiredServer(NAME)]);
    let server = nbdkit(&old, &["memory", "1M"]);
    let (kind, words) = refused(&server.path(), &options(&old));
    assert_eq!(kind, ErrorKind::PermissionDenied, "{words}");
    assert!(words.contains("expired"), "{words}");

    // By its address, which is in its certificate too.
    let by_address = Authority::new().folder(&[Subject::Server("127.0.0.1")]);
    let server = nbdkit(&by_address, &["memory", "1M"]);
    let named = options(&by_address).replace(NAME, "127.0.0.1");
    open(&server.path(), &named, MIB).unwrap();
}

#[test]
fn a_server_may_refuse_its_clients() {
    let authority = Authority::new();
    let servers = authority.folder(&[Subject::Server(NAME)]);
    let server = nbdkit(&servers, &["--tls-verify-peer", "memory", "1M"]);
    // One without a certificate, and one with somebody else's.
    let stranger = pki();
    let refused = || {
        let (kind, words) = refused(&server.path(), &options(&servers));
        // Some servers say so, some only end the connection.
        let expected = [ErrorKind::PermissionDenied, ErrorKind::Gone];
        assert!(expected.contains(&kind), "{kind:?}: {words}");
        assert!(words.contains("client-cert.pem"), "{words}");
    };
    refused();
    for name in ["client-cert.pem", "client-key.pem"] {
        fs::copy(stranger.path().join(name), servers.path().join(name)).unwrap();
    }
    refused();
}

#[test]
fn there_is_no_way_back_to_a_plain_connection() {
    let pki = pki();
    let plain = Server::nbdkit(&["--tls=off", "memory", "1M"]);
    let (kind, words) = refused(&plain.path(), &options(&pki));
    assert_eq!(kind, ErrorKind::Unsupported, "{words}");
    assert!(words.contains("does not offer TLS"), "{words}");
    let server = nbdkit(&pki, &["memory", "1M"]);
    let (kind, words) = refused(&server.path(), "");
    assert_eq!(kind, ErrorKind::Unsupported, "{words}");
    assert!(words.contains("tls=require"), "{words}");
}

#[test]
fn bad_files_are_named() {
    let pki = pki();
    let server = nbdkit(&pki, &["memory", "1M"]);
    let file = |name: &str| pki.path().join(name);
    let refused = |kind, name: &str| {
        let (found, words) = refused(&server.path(), &options(&pki));
        assert_eq!(found, kind, "{words}");
        assert!(words.contains(name), "{words}");
    };
    fs::copy(file("server-key.pem"), file("client-key.pem")).unwrap();
    refused(ErrorKind::InvalidConfig, "client-key.pem");
    fs::write(file("client-key.pem"), "").unwrap();
    refused(ErrorKind::InvalidConfig, "client-key.pem");
    fs::remove_file(file("client-key.pem")).unwrap();
    refused(ErrorKind::NotFound, "client-key.pem");
    fs::write(
        file("ca-cert.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    refused(ErrorKind::InvalidConfig, "ca-cert.pem");
    fs::write(file("ca-cert.pem"), "no certificate").unwrap();
    refused(ErrorKind::InvalidConfig, "ca-cert.pem");
    fs::remove_file(file("ca-cert.pem")).unwrap();
    refused(ErrorKind::NotFound, "ca-cert.pem");
}

/// What opening within so many seconds says of a server that agrees to TLS, and then does this; it is
/// asked once.
fn refused_after_agreeing(
    seconds: u32,
    then: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> (ErrorKind, String) {
    let pki = pki();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let fake = Fake::start(move |_, mut peer| {
        count.fetch_add(1, Ordering::SeqCst);
        peer.greet();
        let (option, data) = peer.option().unwrap();
        // Nothing that can be read tells the export's name.
        assert_eq!((option, data.len()), (option::START_TLS, 0));
        peer.answer(option, option_reply::ACK, &[]);
        then(&mut peer);
    });
    let limit = format!("connect_timeout={seconds}");
    let options = options(&pki).replace("connect_timeout=100", &limit);
    let options = format!("{options};export=secret");
    let answer = refused(fake.path(), &options);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    answer
}

#[test]
fn a_handshake_that_fails_ends_in_words() {
    let (kind, words) = refused_after_agreeing(100, |_| {});
    assert_eq!(kind, ErrorKind::Gone, "{words}");
    assert!(words.contains("TLS handshake"), "{words}");
    // In the middle of a record.
    let (kind, words) = refused_after_agreeing(100, |peer| {
        peer.receive::<5>();
        peer.send(&[22, 3, 3, 0, 99, 2, 0]);
    });
    assert_eq!(kind, ErrorKind::Gone, "{words}");
    let (kind, words) = refused_after_agreeing(1, |peer| while peer.receive::<1>().is_some() {});
    assert_eq!(kind, ErrorKind::TimedOut, "{words}");
    // What somebody has put in behind the plain answer is no part of what follows.
    let (kind, words) = refused_after_agreeing(100, |peer| {
        peer.answer(option::STRUCTURED_REPLY, option_reply::ACK, &[]);
        while peer.receive::<1>().is_some() {}
    });
    assert_eq!(kind, ErrorKind::Internal, "{words}");
    assert!(words.contains("TLS"), "{words}");
}

/// Somebody between clients and a server, who changes a byte of the server's when told to.
struct Between {
    _folder: TempDir,
    path: PathBuf,
    change: Arc<AtomicBool>,
}

impl Between {
    fn start(server: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let change = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&change);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&server).unwrap());
                let never = Arc::new(AtomicBool::new(false));
                pass_on(
                    client.try_clone().unwrap(),
                    server.try_clone().unwrap(),
                    never,
                );
                pass_on(server, client, Arc::clone(&now));
            }
        });
        Self {
            _folder: folder,
            path,
            change,
        }
    }
}

/// Passes bytes on until either side ends.
fn pass_on(mut from: UnixStream, mut to: UnixStream, change: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            if change.swap(false, Ordering::SeqCst) {
                bytes[len - 1] ^= 1;
            }
            if to.write_all(&bytes[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn what_was_changed_on_its_way_is_not_taken() {
    let pki = pki();
    let server = nbdkit(&pki, &["memory", "1M"]);
    let between = Between::start(server.path());
    let durable = format!("{};server_cache=durable", options(&pki));
    let image = open(&between.path, &durable, MIB).unwrap();
    let io = io();
    write(&image, &io, 7, 65536, 0).unwrap();
    assert_eq!(read(&image, &io, 65536, 0).unwrap(), [7; 65536]);
    between.change.store(true, Ordering::SeqCst);
    let error = read(&image, &io, 65536, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.to_string().contains("changed on its way"), "{error}");
    // Another connection is as good as new.
    assert_eq!(read(&image, &io, 65536, 0).unwrap(), [7; 65536]);
    run(
        &image,
        &io,
        Workload {
            requests: 10,
            ..WORKLOAD
        },
    );
    block_on(image.close(&io)).unwrap();
}

#[test]
fn another_server_in_the_place_of_the_first_has_to_prove_who_it_is() {
    let pki = pki();
    let mut server = nbdkit(&pki, &["memory", "1M"]);
    let path = server.path();
    let image = open(&path, &format!("{};reconnect=1", options(&pki)), MIB).unwrap();
    let io = io();
    write(&image, &io, 7, 4096, 0).unwrap();
    server.kill();
    let strangers = self::pki();
    let other = nbdkit(&strangers, &["memory", "1M"]);
    std::os::unix::fs::symlink(other.path(), &path).unwrap();
    let error = read(&image, &io, 4096, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    assert!(error.to_string().contains("signed by nobody"), "{error}");
    let check = format!("unix:{}{}", path.display(), options(&pki));
    let error = NbdHandler.check(&check.parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}
