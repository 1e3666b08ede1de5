//! Rings that break the rules.

use super::*;

/// Where the ring's `offset` is in the mapping.
fn entry_at(offset: u32) -> usize {
    size_of::<abi::Mailbox>() + offset as usize
}

#[test]
fn commands_that_point_astray_are_answered() {
    type Spoil = fn(&Mapping, usize);
    const IOV: usize = size_of::<abi::CommandRequest>();
    const IOV_CNT: usize = offset_of!(abi::CommandRequest, iov_cnt);
    const BIDI_CNT: usize = offset_of!(abi::CommandRequest, iov_bidi_cnt);
    const CDB_OFF: usize = offset_of!(abi::CommandRequest, cdb_off);
    let cases: [(&str, Spoil); 12] = [
        ("iovec outside the mapping", |m, at| {
            m.store_u64(at + IOV, m.len() as u64).unwrap()
        }),
        ("iovec leaves the mapping", |m, at| {
            m.store_u64(at + IOV + 8, m.len() as u64).unwrap()
        }),
        ("iovec wraps around", |m, at| {
            m.store_u64(at + IOV + 8, u64::MAX).unwrap()
        }),
        ("iovec in the ring", |m, at| {
            m.store_u64(at + IOV, 0xfff8).unwrap()
        }),
        ("iovec on the mailbox", |m, at| {
            m.store_u64(at + IOV, 0).unwrap()
        }),
        ("too many iovecs", |m, at| {
            m.store_u32(at + IOV_CNT, 6).unwrap()
        }),
        ("far too many iovecs", |m, at| {
            m.store_u32(at + IOV_CNT, u32::MAX).unwrap()
        }),
        ("too many data-in iovecs", |m, at| {
            m.store_u32(at + BIDI_CNT, u32::MAX).unwrap()
        }),
        ("CDB on the mailbox", |m, at| {
            m.store_u64(at + CDB_OFF, 0).unwrap()
        }),
        ("CDB in the data area", |m, at| {
            m.store_u64(at + CDB_OFF, 0x1_0000).unwrap()
        }),
        ("CDB outside", |m, at| {
            m.store_u64(at + CDB_OFF, u64::MAX).unwrap()
        }),
        ("CDB leaves the ring", |m, at| {
            m.store_u8(0xffff, 0x28).unwrap();
            m.store_u64(at + CDB_OFF, 0xffff).unwrap();
        }),
    ];
    for (name, spoil) in cases {
        for config in [Config::default(), in_order()] {
            let (mut kernel, mut ring) = device(config);
            submit(&mut kernel, Data::In(512));
            let open = next(&mut ring);
            let before = head(ring.memory());
            let bad = submit(&mut kernel, Data::In(512));
            let good = submit(&mut kernel, Data::In(512));
            spoil(ring.memory(), entry_at(before));
            let command = next(&mut ring);
            assert_eq!(ring.malformed(), 1, "{name}");
            assert_eq!(ring.in_flight(), 2, "{name}");
            ring.complete(open, Completion::GOOD);
            ring.complete(command, Completion::GOOD);
            assert!(ring.publish(), "{name}");
            let finished = kernel.reap();
            assert_eq!(finished.len(), 3, "{name}");
            for finished in finished {
                assert_eq!(
                    is_internal_target_failure(&finished),
                    finished.tag == bad,
                    "{name}"
                );
                assert_eq!(
                    finished.status == 0,
                    finished.tag != bad,
                    "{name}, {good:?}"
                );
            }
            assert_eq!(kernel.broken(), None, "{name}");
        }
    }
}

#[test]
fn iovecs_after_the_end_of_the_entry_do_not_count() {
    let (mut kernel, mut ring) = device(Config::default());
    submit(&mut kernel, Data::In(512));
    let memory = ring.memory();
    let iovecs = entry_at(0) + size_of::<abi::CommandRequest>();
    let first = memory.load_u64(iovecs).unwrap();
    for index in 1..6 {
        memory.store_u64(iovecs + index * 16, first).unwrap();
        memory.store_u64(iovecs + index * 16 + 8, 512).unwrap();
    }
    // The CDB would lie below the iovecs.
    let cdb_off = entry_at(0) + offset_of!(abi::CommandRequest, cdb_off);
    memory.store_u64(cdb_off, 0x8000).unwrap();
    let bidi_count = entry_at(0) + offset_of!(abi::CommandRequest, iov_bidi_cnt);
    memory.store_u32(bidi_count, 5).unwrap();
    assert!(ring.next().unwrap().is_none());
    assert_eq!(ring.malformed(), 1);
}

#[test]
fn a_notice_with_too_many_ids_is_skipped() {
    let (mut kernel, mut ring) = device(Config::default());
    kernel
        .notify_task_management(TmrKind::AbortTask, &[])
        .unwrap();
    let count = entry_at(0) + offset_of!(abi::TmrEntry, cmd_cnt);
    ring.memory().store_u32(count, u32::MAX).unwrap();
    assert!(ring.next().unwrap().is_none());
    assert_eq!(ring.malformed(), 1);
    assert!(ring.publish());
}

#[test]
fn an_unknown_entry_is_marked_and_skipped() {
    let (mut kernel, mut ring) = device(Config::default());
    let tag = submit(&mut kernel, Data::None);
    let at = entry_at(0);
    let len_op = ring.memory().load_u32(at).unwrap();
    ring.memory()
        .store_u32(at, len_op & !abi::OP_MASK | 5)
        .unwrap();
    assert!(ring.next().unwrap().is_none());
    assert_eq!((ring.malformed(), ring.in_flight()), (1, 0));
    assert!(ring.publish());
    // The kernel takes whatever is neither a pad nor a notice for a command.
    ring.memory().store_u32(at, len_op).unwrap();
    let finished = kernel.reap();
    assert_eq!((finished[0].tag, finished[0].status), (tag, 2));
}

#[test]
fn what_cannot_be_read_ends_the_ring() {
    type Spoil = fn(&Mapping, u32);
    fn set_len_op(memory: &Mapping, at: u32, len_op: u32) {
        memory.store_u32(entry_at(at), len_op).unwrap();
    }
    fn set_id(memory: &Mapping, at: u32, id: u16) {
        memory
            .store_u16(entry_at(at) + offset_of!(abi::EntryHeader, cmd_id), id)
            .unwrap();
    }
    fn set_head(memory: &Mapping, head: u32) {
        memory
            .store_u32(offset_of!(abi::Mailbox, cmd_head), head)
            .unwrap();
    }
    let offset = 128;
    let cases: [(Spoil, RingError); 11] = [
        (
            |m, at| set_len_op(m, at, abi::OP_CMD),
            RingError::EmptyEntry { offset },
        ),
        (
            |m, at| set_len_op(m, at, abi::OP_PAD),
            RingError::EmptyEntry { offset },
        ),
        (
            |m, at| set_len_op(m, at, 136 | abi::OP_CMD),
            RingError::EntryTooLong {
                offset,
                len: 136,
                available: 128,
            },
        ),
        (
            |m, at| set_len_op(m, at, !abi::OP_MASK | abi::OP_PAD),
            RingError::EntryTooLong {
                offset,
                len: !7,
                available: 128,
            },
        ),
        (
            |m, at| set_len_op(m, at, 104 | abi::OP_CMD),
            RingError::ShortEntry { offset, len: 104 },
        ),
        (
            |m, at| set_len_op(m, at, 24 | abi::OP_TMR),
            RingError::ShortEntry { offset, len: 24 },
        ),
        (|m, at| set_id(m, at, 0), RingError::NoCommandId { offset }),
        (
            |m, at| set_id(m, at, 1),
            RingError::DuplicateCommandId { offset, id: 1 },
        ),
        (
            |m, _| set_head(m, 0x1_0000 - 128),
            RingError::Head {
                head: 0x1_0000 - 128,
            },
        ),
        (|m, _| set_head(m, 129), RingError::Head { head: 129 }),
        (
            |m, _| set_head(m, 64),
            RingError::Moved {
                head: 64,
                tail: 0,
                fetched: 128,
                published: 0,
            },
        ),
    ];
    for (spoil, error) in cases {
        let (mut kernel, mut ring) = device(Config::default());
        let tag = submit(&mut kernel, Data::None);
        let command = next(&mut ring);
        assert!(ring.next().unwrap().is_none());
        submit(&mut kernel, Data::None);
        spoil(ring.memory(), 128);
        assert_eq!(ring.next().map(|_| ()), Err(error));
        assert_eq!(ring.error(), Some(error));
        assert!(!ring.has_new());
        // It stays that way, also if the memory looks fine again.
        set_len_op(ring.memory(), 128, 128 | abi::OP_CMD);
        set_id(ring.memory(), 128, 2);
        set_head(ring.memory(), 256);
        assert_eq!(ring.next().map(|_| ()), Err(error));
        // What was fetched before can still end, unless nobody knows it any more.
        ring.complete(command, Completion::GOOD);
        let lost = matches!(error, RingError::Moved { .. });
        assert_eq!(ring.publish(), !lost);
        let finished: Vec<_> = kernel.reap().iter().map(|f| f.tag).collect();
        assert_eq!(finished, if lost { vec![] } else { vec![tag] });
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn an_entry_must_not_cross_the_end_of_the_ring() {
    let (mut kernel, mut ring) = device(Config {
        ring_size: 1024,
        ..Config::default()
    });
    // Seven entries of 128 bytes, then one at 896 that ends with the ring.
    for _ in 0..7 {
        submit(&mut kernel, Data::None);
        let command = next(&mut ring);
        ring.complete(command, Completion::GOOD);
        assert!(ring.publish());
        kernel.reap();
    }
    submit(&mut kernel, Data::None);
    submit(&mut kernel, Data::None);
    assert_eq!(head(ring.memory()), 128);
    ring.memory()
        .store_u32(entry_at(896), 136 | abi::OP_CMD)
        .unwrap();
    let error = RingError::EntryTooLong {
        offset: 896,
        len: 136,
        available: 128,
    };
    assert_eq!(ring.next().map(|_| ()), Err(error));
}

#[test]
fn changes_after_the_fetch_do_not_mislead() {
    let (mut kernel, mut ring) = device(Config::default());
    submit(&mut kernel, Data::In(512));
    submit(&mut kernel, Data::In(512));
    let [first, second] = [(); 2].map(|()| next(&mut ring));
    let (cdb, data) = (second.cdb().clone(), second.data().to_vec());
    let end = head(ring.memory());
    ring.memory().fill(entry_at(0), end as usize, 0xff).unwrap();
    assert_eq!((second.cdb(), second.data()), (&cdb, &*data));
    ring.complete(second, Completion::GOOD);
    ring.complete(first, Completion::GOOD);
    assert!(ring.publish());
    assert_eq!(tail(ring.memory()), end);
}

/// A ring with one command completed, published or not, one in flight, and none known to the
/// kernel any more.
fn after_a_reset(published: bool) -> (MockKernel, Ring, Command) {
    let (mut kernel, mut ring) = device(Config::default());
    submit(&mut kernel, Data::In(512));
    submit(&mut kernel, Data::In(512));
    let [first, second] = [(); 2].map(|()| next(&mut ring));
    ring.complete(first, Completion::GOOD);
    if published {
        assert!(ring.publish());
    }
    kernel.reset_ring();
    (kernel, ring, second)
}

fn ring_bytes(ring: &Ring) -> Vec<u8> {
    let mut bytes = vec![0; entry_at(0) + Config::default().ring_size as usize];
    ring.memory().read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_reset_is_noticed_by_next() {
    for (published, submitted) in [(true, 1), (true, 3), (false, 0), (false, 1)] {
        let (mut kernel, mut ring, command) = after_a_reset(published);
        let mut tags: Vec<_> = (0..submitted)
            .map(|_| submit(&mut kernel, Data::In(512)))
            .collect();
        assert!(ring.has_new());
        assert!(matches!(ring.next(), Err(RingError::Moved { .. })));
        // The head may pass the place where it was before the reset.
        tags.extend((0..3).map(|_| submit(&mut kernel, Data::In(512))));
        let before = ring_bytes(&ring);
        ring.complete(command, Completion::GOOD);
        assert!(!ring.publish());
        assert_eq!(
            ring_bytes(&ring),
            before,
            "the kernel's memory is not touched any more"
        );

        let mut ring = Ring::new(Arc::clone(ring.memory())).unwrap();
        while let Some(Entry::Command(command)) = ring.next().unwrap() {
            ring.complete(command, Completion::GOOD);
        }
        assert!(ring.publish());
        assert_eq!(
            kernel.reap().iter().map(|f| f.tag).collect::<Vec<_>>(),
            tags
        );
        assert_eq!(kernel.broken(), None);
    }
}

#[test]
fn a_reset_is_noticed_before_a_tail_is_published() {
    for published in [true, false] {
        let (mut kernel, mut ring, command) = after_a_reset(published);
        ring.complete(command, Completion::GOOD);
        assert!(!ring.publish());
        assert_eq!(tail(ring.memory()), 0);
        assert!(matches!(ring.error(), Some(RingError::Moved { .. })));
        assert!(kernel.reap().is_empty());
        assert_eq!(kernel.broken(), None);
    }
}

#[test]
fn a_mailbox_that_makes_no_sense_is_refused() {
    let small = Arc::new(Mapping::anonymous(64).unwrap());
    assert_eq!(
        Ring::new(small).unwrap_err(),
        RingError::NoMailbox { len: 64 }
    );

    type Spoil = fn(&Mapping) -> Result<(), OutOfBounds>;
    const START: usize = offset_of!(abi::Mailbox, cmdr_off);
    const SIZE: usize = offset_of!(abi::Mailbox, cmdr_size);
    const HEAD: usize = offset_of!(abi::Mailbox, cmd_head);
    const TAIL: usize = offset_of!(abi::Mailbox, cmd_tail);
    let size = Config::default().ring_size;
    let start = 128;
    let huge = !7;
    let cases: [(Spoil, RingError); 11] = [
        (|m| m.store_u16(0, 1), RingError::Version { version: 1 }),
        (
            |m| m.store_u32(START, 120),
            RingError::Layout { start: 120, size },
        ),
        (
            |m| m.store_u32(START, 132),
            RingError::Layout { start: 132, size },
        ),
        (
            |m| m.store_u32(START, !7),
            RingError::Layout { start: huge, size },
        ),
        (
            |m| m.store_u32(SIZE, 0),
            RingError::Layout { start, size: 0 },
        ),
        (
            |m| m.store_u32(SIZE, 1028),
            RingError::Layout { start, size: 1028 },
        ),
        (
            |m| m.store_u32(SIZE, !7),
            RingError::Layout { start, size: huge },
        ),
        (|m| m.store_u32(HEAD, 4), RingError::Head { head: 4 }),
        (|m| m.store_u32(HEAD, !7), RingError::Head { head: huge }),
        (|m| m.store_u32(TAIL, 4), RingError::Tail { tail: 4 }),
        (|m| m.store_u32(TAIL, !7), RingError::Tail { tail: huge }),
    ];
    for (spoil, error) in cases {
        let (_kernel, device) = MockKernel::new(Config::default()).unwrap();
        spoil(device.memory()).unwrap();
        assert_eq!(Ring::new(Arc::clone(device.memory())).unwrap_err(), error);
    }
}
