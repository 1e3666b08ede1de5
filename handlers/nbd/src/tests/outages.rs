//! Servers that end, hang, lie, and come again.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::future::{join, join_all, poll_fn};
use tcmu_handler::testing::{block_on, buffer, contents, io, scattered};
use tcmu_handler::{Backstore, ErrorKind, Extent, WriteFlags, ZeroFlags};

use super::fake::{Fake, SPEC, Spec};
use super::server::{Manners, start};
use super::workload::{Workload, run};
use super::{open, read, until_answered, write};
use crate::reply::tests::simple_bytes;
use crate::request::Command;

const MIB: u64 = 1 << 20;

const WORKLOAD: Workload = Workload {
    seed: 1,
    depth: 16,
    requests: 60,
    longest: 48 << 10,
    flushes: false,
};

#[test]
fn requests_wait_for_a_server_that_ends_its_connections() {
    for (structured, connections) in [(true, 1), (false, 1), (true, 3)] {
        let spec = Spec {
            structured,
            status: structured,
            ..SPEC
        };
        let manners = Manners {
            spec,
            ends_at: Some(60),
        };
        let (fake, store) = start(manners);
        let image = open(fake.path(), &format!(";connections={connections}"), MIB).unwrap();
        run(&image, &io(), WORKLOAD);
        assert!(*store.ended.lock().unwrap() > 3, "there were no outages");
    }
}

#[test]
fn a_server_that_uses_every_freedom_is_understood() {
    let manners = Manners {
        spec: SPEC,
        ends_at: None,
    };
    let (fake, store) = start(manners);
    let image = open(fake.path(), "", MIB).unwrap();
    let workload = Workload {
        depth: 32,
        longest: 32 << 10,
        flushes: true,
        ..WORKLOAD
    };
    run(&image, &io(), workload);
    // What is longer than a server takes is cut.
    let spec = Spec {
        sizes: Some([512, 512, 1500]),
        ..SPEC
    };
    let (small, small_store) = start(Manners { spec, ..manners });
    let image = open(small.path(), "", MIB).unwrap();
    let io = io();
    write(&image, &io, 7, 10_240, 512).unwrap();
    assert_eq!(read(&image, &io, 10_240, 512).unwrap(), [7; 10_240]);
    assert_eq!(small_store.bytes.lock().unwrap()[512..10_752], [7; 10_240]);
    assert_eq!(store.bytes.lock().unwrap().len(), MIB as usize);
}

#[test]
fn a_flush_tells_once_what_a_server_took_with_it() {
    for (option, tells) in [("", true), (";server_cache=durable", false)] {
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let fake = Fake::start(move |_, mut peer| {
            peer.serve(SPEC);
            while let Some(asked) = peer.request() {
                if ends.swap(false, Ordering::SeqCst) {
                    return;
                }
                peer.done(&asked);
            }
        });
        let image = open(fake.path(), option, MIB).unwrap();
        let io = io();
        let flush = || block_on(image.flush(&io)).map_err(|error| error.kind());
        let lose_connection = |step: &str| {
            end.store(true, Ordering::SeqCst);
            block_on(image.prefetch(
                &io,
                Extent {
                    offset: 0,
                    len: 512,
                },
            ))
            .expect(step);
        };
        let told = if tells { Err(ErrorKind::Write) } else { Ok(()) };
        assert_eq!(flush(), Ok(()));
        lose_connection("nothing was written");
        assert_eq!(flush(), Ok(()));

        write(&image, &io, 1, 512, 0).unwrap();
        lose_connection("a write");
        assert_eq!(flush(), told);
        assert_eq!(flush(), Ok(()));

        // The flush itself finds it out.
        write(&image, &io, 1, 512, 0).unwrap();
        end.store(true, Ordering::SeqCst);
        assert_eq!(flush(), told);

        // What was durable at once, or trimmed, is not lost.
        let bytes = scattered(&[1; 512], 512);
        let fua = WriteFlags { fua: true };
        block_on(image.write(&io, bytes.view(), 0, fua)).unwrap();
        let zero = ZeroFlags {
            fua: true,
            may_unmap: false,
        };
        let extent = Extent {
            offset: 0,
            len: 512,
        };
        block_on(image.write_zeroes(&io, extent, zero)).unwrap();
        block_on(image.unmap(&io, extent)).unwrap();
        lose_connection("durable writes");
        assert_eq!(flush(), Ok(()));

        // Closing flushes.
        write(&image, &io, 1, 512, 0).unwrap();
        lose_connection("a write before the end");
        let closed = block_on(image.close(&io)).map_err(|error| error.kind());
        assert_eq!(closed, told);
    }
}

#[test]
fn a_server_that_shuts_down_is_waited_for() {
    let fake = Fake::start(|number, mut peer| {
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            match number {
                0 => peer.send(&simple_bytes(108, asked.cookie)),
                _ => peer.done(&asked),
            };
        }
    });
    let image = open(fake.path(), "", MIB).unwrap();
    write(&image, &io(), 1, 512, 0).unwrap();
}

#[test]
fn a_server_that_hangs_makes_requests_fail_and_is_left() {
    let fake = Fake::start(|number, mut peer| {
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            if number > 0 {
                peer.done(&asked);
            }
        }
    });
    let image = open(fake.path(), ";timeout=1", MIB).unwrap();
    let io = io();
    let bytes = scattered(&[1; 512], 512);
    let writes = (0..5).map(|n| image.write(&io, bytes.view(), n * 512, WriteFlags::default()));
    for result in block_on(join_all(writes)) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    until_answered(|| write(&image, &io, 1, 512, 0));
}

#[test]
fn a_server_that_stays_away_is_given_up_and_found_again() {
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let fake = Fake::start(move |number, mut peer| {
        if number > 0 && is_away.load(Ordering::SeqCst) {
            return;
        }
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            if number == 0 {
                return;
            }
            peer.done(&asked);
        }
    });
    let image = open(fake.path(), ";reconnect=1", MIB).unwrap();
    let io = io();
    let error = write(&image, &io, 1, 512, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    // From then on there is no waiting.
    let error = write(&image, &io, 1, 512, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    away.store(false, Ordering::SeqCst);
    while let Err(error) = write(&image, &io, 1, 512, 0) {
        assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn another_export_in_the_same_place_is_refused() {
    let fake = Fake::start(|number, mut peer| {
        let size = if number == 0 { MIB } else { 2 * MIB };
        peer.serve(Spec { size, ..SPEC });
        peer.request();
    });
    let image = open(fake.path(), ";reconnect=0", MIB).unwrap();
    let error = write(&image, &io(), 1, 512, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    let words = error.to_string();
    assert!(
        words.contains("1048576") && words.contains("2097152"),
        "{words}"
    );
}

#[test]
fn a_server_that_breaks_the_rules_is_left() {
    let fake = Fake::start(|number, mut peer| {
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            match number {
                0 => peer.send(&simple_bytes(0, asked.cookie + 1)),
                _ => peer.done(&asked),
            };
        }
    });
    let image = open(fake.path(), "", MIB).unwrap();
    let io = io();
    let error = write(&image, &io, 1, 512, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("rules"), "{error}");
    write(&image, &io, 1, 512, 0).unwrap();
}

#[test]
fn a_request_that_no_server_survives_fails_alone() {
    let fake = Fake::start(|_, mut peer| {
        peer.serve(SPEC);
        // Of each two requests the write is never answered.
        let (Some(one), Some(other)) = (peer.request(), peer.request()) else {
            return;
        };
        for asked in [one, other] {
            if asked.kind == Command::Cache as u16 {
                peer.done(&asked);
            }
        }
    });
    let image = open(fake.path(), "", MIB).unwrap();
    let io = io();
    let bytes = scattered(&[1; 512], 512);
    let failure = Cell::new(None);
    let poison = async {
        let result = image
            .write(&io, bytes.view(), 0, WriteFlags::default())
            .await;
        failure.set(Some(result.unwrap_err().kind()));
    };
    let others = async {
        loop {
            let extent = Extent {
                offset: 0,
                len: 512,
            };
            image.prefetch(&io, extent).await.unwrap();
        }
    };
    // The others go on for ever; so they are not waited for.
    let mut both = pin!(join(poison, others));
    let failed = block_on(poll_fn(|context| {
        let _: Poll<((), ())> = both.as_mut().poll(context);
        failure.get().map_or(Poll::Pending, Poll::Ready)
    }));
    assert_eq!(failed, ErrorKind::Gone);
}

#[test]
fn a_request_that_is_given_up_leaves_its_memory_alone() {
    let (tell, go) = std::sync::mpsc::channel::<()>();
    let go = std::sync::Mutex::new(go);
    let fake = Fake::start(move |number, mut peer| {
        peer.serve(SPEC);
        while let Some(asked) = peer.request() {
            if number == 0 {
                go.lock().unwrap().recv().unwrap();
            }
            let payload = [asked.offset.to_be_bytes().as_slice(), &[7; 512]].concat();
            let reply = crate::reply::tests::chunk_bytes(1, 1, asked.cookie, &payload);
            peer.send(&reply);
        }
    });
    let image = open(fake.path(), "", MIB).unwrap();
    let io = io();
    let (given_up, kept) = (buffer(512), buffer(512));
    let mut first = Box::pin(image.read(&io, given_up.view(), 0));
    let mut second = Box::pin(image.read(&io, kept.view(), 512));
    // Both are sent, and the first one drives.
    block_on(poll_fn(|context| {
        for _ in 0..3 {
            assert!(first.as_mut().poll(context).is_pending());
            assert!(second.as_mut().poll(context).is_pending());
        }
        Poll::Ready(())
    }));
    drop(first);
    tell.send(()).unwrap();
    tell.send(()).unwrap();
    block_on(second).unwrap();
    assert_eq!(contents(&kept), [7; 512]);
    assert_eq!(contents(&given_up), [0; 512]);
}
