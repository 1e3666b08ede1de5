//! Which servers are taken, and what is said of the others.

use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use tcmu_handler::testing::{block_on, io, scattered};
use tcmu_handler::{Backstore, ErrorKind, Extent, Fua, Handler, Unmap, WriteFlags, ZeroFlags};

use super::fake::{Asked, Fake, Peer, SPEC, Spec};
use super::open;
use crate::NbdHandler;
use crate::protocol::{MAGIC, OPTION_MAGIC, chunk, flag, info, option, option_reply};
use crate::reply::tests::chunk_bytes;

const MIB: u64 = 1 << 20;

/// What opening says of a server with this script.
fn refused(script: impl Fn(usize, Peer) + Send + Sync + 'static) -> (ErrorKind, String) {
    refused_with(";connect_timeout=100", script)
}

/// The same with these options.
fn refused_with(
    options: &str,
    script: impl Fn(usize, Peer) + Send + Sync + 'static,
) -> (ErrorKind, String) {
    let fake = Fake::start(script);
    let error = open(fake.path(), options, MIB).unwrap_err();
    let words = error.to_string();
    assert!(
        words.starts_with(&format!("NBD server unix:{}: ", fake.path().display())),
        "{words}"
    );
    (error.kind(), words)
}

/// What opening says of an export.
fn refused_export(spec: Spec) -> (ErrorKind, String) {
    refused(move |_, mut peer| {
        peer.serve(spec);
        peer.request();
    })
}

/// What opening says of a server that answers the choice of an export like this.
fn refused_go(answers: impl Fn(&mut Peer) + Send + Sync + 'static) -> (ErrorKind, String) {
    refused(move |_, mut peer| {
        peer.greet();
        while let Some((option, _)) = peer.option() {
            match option {
                option::GO => answers(&mut peer),
                _ => {
                    peer.answer(option, option_reply::UNSUPPORTED, &[]);
                }
            }
        }
    })
}

#[test]
fn the_export_is_what_the_lun_can_do() {
    let serve = |spec: Spec| {
        Fake::start(move |_, mut peer| {
            peer.serve(spec);
            // Until the goodbye.
            while peer.request().is_some_and(|asked| asked.kind != 2) {}
        })
    };
    let fake = serve(SPEC);
    let image = open(fake.path(), ";connections=3", MIB).unwrap();
    let capabilities = image.capabilities();
    assert_eq!((capabilities.size, capabilities.block_size), (MIB, 512));
    assert_eq!(capabilities.physical_block_size, 4096);
    assert!(capabilities.volatile_cache && capabilities.write_zeroes && !capabilities.read_only);
    assert_eq!(capabilities.fua, Fua::Native);
    let unmap = Unmap {
        granularity: 4096,
        reads_zeroes: false,
    };
    assert_eq!(capabilities.unmap, Some(unmap));
    block_on(image.close(&io())).unwrap();

    let poor = Spec {
        size: MIB + 100,
        flags: flag::HAS_FLAGS | flag::READ_ONLY | flag::TRIM | flag::FLUSH,
        sizes: None,
        structured: false,
        status: false,
    };
    let fake = serve(poor);
    let image = open(fake.path(), "", MIB).unwrap();
    let capabilities = image.capabilities();
    assert_eq!(capabilities.size, MIB, "a part of a block is nobody's");
    assert!(capabilities.read_only && !capabilities.volatile_cache);
    assert_eq!((capabilities.unmap, capabilities.fua), (None, Fua::Emulate));
    // What the server cannot say needs no request.
    let extent = Extent {
        offset: 0,
        len: MIB,
    };
    let status = block_on(image.block_status(&io(), extent)).unwrap();
    assert!(status.mapped && status.len == MIB);
    block_on(image.prefetch(&io(), extent)).unwrap();

    let large = Spec {
        sizes: Some([4096, 65536, u32::MAX]),
        ..SPEC
    };
    let fake = serve(large);
    let (config, lun) = (format!("unix:{}", fake.path().display()), 4096);
    let request = tcmu_handler::OpenRequest {
        config: config.parse().unwrap(),
        size: MIB,
        block_size: lun,
    };
    let capabilities = NbdHandler.open(&request).unwrap().capabilities();
    assert_eq!(capabilities.optimal_io_size, 65536);
    let error = open(fake.path(), "", MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    let error = open(fake.path(), "", 2 * MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
}

#[test]
fn several_connections_need_a_promise() {
    let (kind, words) = {
        let spec = Spec {
            flags: SPEC.flags & !flag::CAN_MULTI_CONN,
            ..SPEC
        };
        let fake = Fake::start(move |_, mut peer| {
            peer.serve(spec);
            peer.request();
        });
        let error = open(fake.path(), ";connections=2", MIB).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(kind, ErrorKind::InvalidConfig);
    assert!(words.contains("connections"), "{words}");
}

#[test]
fn who_is_no_server_of_ours_is_refused_with_words() {
    let (kind, words) = refused(|_, mut peer| {
        peer.send(b"SSH-2.0-OpenSSH_9.2\r\n");
        peer.receive::<1>();
    });
    assert_eq!(kind, ErrorKind::Internal);
    assert!(words.contains("no NBD server"), "{words}");

    // Oldstyle, and newstyle that is not fixed.
    for (magic, flags) in [(0x0000_4202_8186_1253_u64, 0u16), (OPTION_MAGIC, 0)] {
        let (kind, words) = refused(move |_, mut peer| {
            let greeting = [MAGIC.to_be_bytes(), magic.to_be_bytes()].concat();
            peer.send(&[greeting, flags.to_be_bytes().to_vec()].concat());
            peer.receive::<1>();
        });
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(words.contains("too old"), "{words}");
    }

    let (kind, _) = refused(|_, _| {});
    assert_eq!(kind, ErrorKind::Gone);
}

#[test]
fn refusals_are_passed_on() {
    let error = |code: u32, words: &'static [u8]| {
        refused_go(move |peer| {
            peer.answer(option::GO, code, words);
        })
    };
    let (kind, words) = error(option_reply::UNKNOWN, b"not\x07 here");
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(words.contains("default export: not  here"), "{words}");
    let (kind, words) = error(option_reply::TLS_REQUIRED, b"");
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(words.contains("TLS"), "{words}");
    assert_eq!(
        error(option_reply::POLICY, b"").0,
        ErrorKind::PermissionDenied
    );
    assert_eq!(error(option_reply::SHUTDOWN, b"").0, ErrorKind::Gone);
    assert_eq!(
        error(option_reply::UNSUPPORTED, b"").0,
        ErrorKind::Unsupported
    );
    assert_eq!(error(option_reply::ERROR + 77, b"").0, ErrorKind::Internal);
}

#[test]
fn nonsense_is_refused() {
    // Nothing is said of the export.
    let (kind, _) = refused_go(|peer| {
        peer.answer(option::GO, option_reply::ACK, &[]);
    });
    assert_eq!(kind, ErrorKind::Internal);
    // Information without end.
    let (kind, _) = refused_go(|peer| {
        while peer.answer(option::GO, option_reply::INFO, &info::EXPORT.to_be_bytes()) {}
    });
    assert_eq!(kind, ErrorKind::Internal);
    // An answer to something else, of a wrong type, and one of 4 GiB.
    let (kind, _) = refused_go(|peer| {
        peer.answer(option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    });
    assert_eq!(kind, ErrorKind::Internal);
    let (kind, _) = refused_go(|peer| {
        peer.answer(option::GO, option_reply::META_CONTEXT, &[]);
    });
    assert_eq!(kind, ErrorKind::Internal);
    let (kind, words) = refused(|_, mut peer| {
        peer.greet();
        peer.option();
        let header = crate::protocol::OPTION_REPLY_MAGIC.to_be_bytes();
        peer.send(&header);
        peer.send(
            &[option::STRUCTURED_REPLY, 1, u32::MAX]
                .map(u32::to_be_bytes)
                .concat(),
        );
        peer.receive::<1>();
    });
    assert_eq!(kind, ErrorKind::Internal);
    assert!(words.contains("4294967295"), "{words}");
    for spec in [
        Spec { flags: 0, ..SPEC },
        Spec {
            size: 1 << 63,
            ..SPEC
        },
        Spec {
            sizes: Some([3, 4096, 1 << 20]),
            ..SPEC
        },
        Spec {
            sizes: Some([0, 4096, 1 << 20]),
            ..SPEC
        },
        Spec {
            sizes: Some([1 << 17, 1 << 17, 1 << 20]),
            ..SPEC
        },
        Spec {
            sizes: Some([512, 5000, 1 << 20]),
            ..SPEC
        },
        Spec {
            sizes: Some([4096, 4096, 512]),
            ..SPEC
        },
    ] {
        assert_eq!(refused_export(spec).0, ErrorKind::Internal, "{spec:?}");
    }
}

#[test]
fn a_server_that_keeps_us_waiting_is_given_up() {
    // It says nothing; it says a byte now and then; it accepts nobody.
    let (kind, words) = refused_with(";connect_timeout=1", |_, mut peer| {
        peer.receive::<1>();
    });
    assert_eq!(kind, ErrorKind::TimedOut, "{words}");
    let (kind, words) = refused_with(";connect_timeout=1", |_, mut peer| {
        let greeting = [MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        for byte in greeting {
            peer.send(&[byte]);
            thread::sleep(Duration::from_millis(300));
        }
    });
    assert_eq!(kind, ErrorKind::TimedOut, "{words}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = open(&path, ";connect_timeout=1", MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[test]
fn a_check_connects_and_says_goodbye() {
    let (sender, goodbyes) = std::sync::mpsc::channel();
    let fake = Fake::start(move |_, mut peer| {
        peer.serve(SPEC);
        sender.send(peer.request().map(|asked| asked.kind)).unwrap();
    });
    let check = |text: &str| NbdHandler.check(&text.parse().unwrap());
    let config = format!("unix:{}", fake.path().display());
    check(&config).unwrap();
    assert_eq!(goodbyes.recv().unwrap(), Some(2));
    let error = check(&format!("{config};speed=11")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let error = check(&format!("{config}-not")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // A port of our own that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = check(&port.to_string()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    let error = check("nowhere.invalid").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn requests_say_what_is_meant() {
    let (sender, seen) = std::sync::mpsc::channel();
    let fake = Fake::start(move |_, mut peer| {
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            let Asked {
                kind,
                flags,
                offset,
                len,
                ..
            } = asked;
            sender.send((kind, flags, offset, len)).unwrap();
            match kind {
                7 => {
                    let extent = [1u32, 512, 1].map(u32::to_be_bytes).concat();
                    peer.send(&chunk_bytes(1, chunk::BLOCK_STATUS, asked.cookie, &extent));
                }
                _ => {
                    peer.done(&asked);
                }
            }
        }
    });
    let image = open(fake.path(), "", MIB).unwrap();
    let (io, bytes) = (io(), scattered(&[1; 1024], 512));
    let extent = Extent {
        offset: 512,
        len: 1024,
    };
    let write = |fua| block_on(image.write(&io, bytes.view(), 512, WriteFlags { fua })).unwrap();
    let zero = |fua, may_unmap| {
        let flags = ZeroFlags { fua, may_unmap };
        block_on(image.write_zeroes(&io, extent, flags)).unwrap();
    };
    write(false);
    write(true);
    block_on(image.flush(&io)).unwrap();
    block_on(image.unmap(&io, extent)).unwrap();
    block_on(image.prefetch(&io, extent)).unwrap();
    zero(false, false);
    zero(true, true);
    let status = block_on(image.block_status(&io, extent)).unwrap();
    assert!(!status.mapped && status.len == 512);
    block_on(image.close(&io)).unwrap();
    drop(image);
    let (fua, no_hole, req_one) = (1, 2, 8);
    let seen: Vec<_> = seen.iter().take(9).collect();
    let expected = [
        (1, 0, 512, 1024),
        (1, fua, 512, 1024),
        (3, 0, 0, 0),
        (4, 0, 512, 1024),
        (5, 0, 512, 1024),
        (6, no_hole, 512, 1024),
        (6, fua, 512, 1024),
        (7, req_one, 512, 1024),
        // What was trimmed and zeroed is flushed before the goodbye.
        (3, 0, 0, 0),
    ];
    assert_eq!(seen, expected);
}
