use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::ring::{Command, Completion, Entry, Ring};

const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 1, 0, 0, 8, 0];
const LONG: Duration = Duration::from_secs(60);

fn device(config: Config) -> (MockKernel, MockDevice, Ring) {
    let (kernel, device) = MockKernel::new(config).unwrap();
    let ring = Ring::new(Arc::clone(device.memory())).unwrap();
    (kernel, device, ring)
}

fn next(ring: &mut Ring) -> Command {
    match ring.next() {
        Ok(Some(Entry::Command(command))) => command,
        other => panic!("expected a command, got {other:?}"),
    }
}

fn ready(device: &MockDevice) -> PollFlags {
    let fd = device.poll_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap();
    fds[0].revents()
}

fn set_tail(kernel: &MockKernel, tail: u32) {
    kernel
        .memory()
        .store_release_u32(offset_of!(abi::Mailbox, cmd_tail), tail)
        .unwrap();
}

#[test]
fn a_kernel_can_live_on_another_thread() {
    let (mut kernel, device, mut ring) = device(Config::default());
    let kernel = thread::spawn(move || {
        for len in [1, 4096, 100_000] {
            let tag = kernel.submit(&READ_10, Data::In(len)).unwrap();
            let finished = kernel.wait_for(tag, LONG).unwrap().unwrap();
            assert_eq!(finished.data_in, vec![8; len]);
        }
        kernel
    });
    let mut served = 0;
    while served < 3 {
        let fd = device.poll_fd();
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
        device.clear().unwrap();
        while let Some(Entry::Command(command)) = ring.next().unwrap() {
            for segment in command.data() {
                ring.memory().fill(segment.offset, segment.len, 8).unwrap();
            }
            ring.complete(command, Completion::GOOD);
            served += 1;
        }
        if ring.publish() {
            device.kick().unwrap();
        }
    }
    let mut kernel = kernel.join().unwrap();
    assert_eq!((kernel.broken(), kernel.late_writes()), (None, 0));
}

#[test]
fn events_are_merged_until_they_are_cleared() {
    let (mut kernel, device, _ring) = device(Config::default());
    assert_eq!(ready(&device), PollFlags::empty());
    device.clear().unwrap();
    for _ in 0..3 {
        kernel.submit(&READ_10, Data::None).unwrap();
    }
    assert_eq!(ready(&device), PollFlags::IN);
    device.clear().unwrap();
    assert_eq!(ready(&device), PollFlags::empty());
    kernel.plug();
    kernel.submit(&READ_10, Data::None).unwrap();
    assert_eq!(ready(&device), PollFlags::empty());
    kernel.unplug();
    assert_eq!(ready(&device), PollFlags::IN);
}

#[test]
fn either_side_sees_that_the_other_is_gone() {
    let (kernel, device, _ring) = device(Config::default());
    drop(kernel);
    assert!(ready(&device).contains(PollFlags::HUP));
    assert_eq!(
        device.clear().unwrap_err().raw_os_error(),
        Some(Errno::IO.raw_os_error())
    );
    assert_eq!(
        device.kick().unwrap_err().raw_os_error(),
        Some(Errno::IO.raw_os_error())
    );

    let (mut kernel, device, _ring) = self::device(Config::default());
    device.kick().unwrap();
    assert!(kernel.wait_kick().unwrap());
    drop(device);
    assert!(!kernel.wait_kick().unwrap());
    let tag = kernel.submit(&READ_10, Data::None).unwrap();
    assert_eq!(kernel.wait_for(tag, LONG).unwrap(), None);
}

#[test]
fn a_wait_without_a_kick_ends() {
    let (kernel, _device, _ring) = device(Config::default());
    assert!(!kernel.wait_kick_for(Duration::from_millis(1)).unwrap());
}

#[test]
fn the_ring_fills_up_and_empties() {
    let config = Config {
        ring_size: 1024,
        ..Config::default()
    };
    let (mut kernel, _device, mut ring) = device(config);
    for _ in 0..3 {
        // Seven entries of 128 bytes fit: one byte must stay free.
        for _ in 0..7 {
            kernel.submit(&READ_10, Data::None).unwrap();
        }
        assert_eq!(kernel.submit(&READ_10, Data::None), Err(SubmitError::Full));
        while let Some(Entry::Command(command)) = ring.next().unwrap() {
            ring.complete(command, Completion::GOOD);
        }
        assert!(ring.publish());
        assert_eq!(kernel.submit(&READ_10, Data::None), Err(SubmitError::Full));
        assert_eq!(kernel.reap().len(), 7);
    }
}

#[test]
fn the_data_area_fills_up_and_empties() {
    let (mut kernel, _device, mut ring) = device(Config {
        blocks: 4,
        ..Config::default()
    });
    kernel.submit(&READ_10, Data::In(3 * 4096)).unwrap();
    assert_eq!(
        kernel.submit(&READ_10, Data::In(4097)),
        Err(SubmitError::Full)
    );
    let command = next(&mut ring);
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    kernel.reap();
    kernel.submit(&READ_10, Data::In(4 * 4096)).unwrap();
}

#[test]
fn what_can_never_fit_is_refused_as_such() {
    let config = Config {
        ring_size: 512,
        blocks: 4,
        ..Config::default()
    };
    let (mut kernel, _device, _ring) = device(config);
    assert_eq!(
        kernel.submit(&READ_10, Data::In(5 * 4096)),
        Err(SubmitError::TooBig)
    );
    let mut cdb = [0; 200];
    cdb[0] = 0x7f;
    cdb[7] = 192;
    assert_eq!(kernel.submit(&cdb, Data::None), Err(SubmitError::TooBig));
}

#[test]
fn a_double_completion_breaks_the_device() {
    let (mut kernel, _device, mut ring) = device(Config::default());
    kernel.submit(&READ_10, Data::None).unwrap();
    kernel.submit(&READ_10, Data::None).unwrap();
    let [_first, second] = [(); 2].map(|()| next(&mut ring));
    let id = second.id();
    ring.complete(second, Completion::GOOD);
    assert!(ring.publish());
    kernel.reap();
    // The second slot still names its own command, which is completed.
    set_tail(&kernel, 256);
    assert!(kernel.reap().is_empty());
    assert_eq!(kernel.broken(), Some(Broken::UnknownId { id }));
    assert_eq!(
        kernel.submit(&READ_10, Data::None),
        Err(SubmitError::Broken)
    );
    kernel.reset_ring();
    assert_eq!(kernel.broken(), None);
    kernel.submit(&READ_10, Data::None).unwrap();
}

#[test]
fn a_tail_that_is_no_end_of_an_entry_breaks_the_device() {
    for tail in [8, 120, 136, 256, 4096, u32::MAX] {
        let (mut kernel, _device, _ring) = device(Config::default());
        kernel.submit(&READ_10, Data::None).unwrap();
        set_tail(&kernel, tail);
        kernel.reap();
        assert_eq!(kernel.broken(), Some(Broken::Tail { tail }));
    }
}

#[test]
fn disorder_breaks_a_device_that_does_not_offer_it() {
    let (mut kernel, _device, _ring) = device(Config {
        flags: 0,
        ..Config::default()
    });
    kernel.submit(&READ_10, Data::None).unwrap();
    kernel.submit(&READ_10, Data::None).unwrap();
    let id = RING_START + offset_of!(abi::EntryHeader, cmd_id);
    kernel.memory().store_u16(id, 2).unwrap();
    set_tail(&kernel, 128);
    kernel.reap();
    assert_eq!(
        kernel.broken(),
        Some(Broken::OutOfOrder { id: 2, expected: 1 })
    );
}

#[test]
fn an_overwritten_header_breaks_the_device() {
    let (mut kernel, _device, _ring) = device(Config::default());
    kernel.submit(&READ_10, Data::None).unwrap();
    kernel
        .memory()
        .store_u32(RING_START, 256 | abi::OP_CMD)
        .unwrap();
    set_tail(&kernel, 128);
    kernel.reap();
    assert_eq!(kernel.broken(), Some(Broken::Header { offset: 0 }));
}

#[test]
fn a_timed_out_command_keeps_its_place() {
    let (mut kernel, _device, mut ring) = device(Config {
        blocks: 1,
        ..Config::default()
    });
    let tag = kernel.submit(&READ_10, Data::In(512)).unwrap();
    let command = next(&mut ring);
    let finished = kernel.expire(tag).unwrap();
    assert_eq!((finished.tag, finished.status), (tag, 2));
    assert_eq!(kernel.expire(tag), None);
    assert_eq!(kernel.in_flight(), 1);
    assert_eq!(
        kernel.submit(&READ_10, Data::In(512)),
        Err(SubmitError::Full)
    );
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    assert!(
        kernel.reap().is_empty(),
        "the initiator has its answer already"
    );
    assert_eq!((kernel.late_completions(), kernel.broken()), (1, None));
    kernel.submit(&READ_10, Data::In(512)).unwrap();
}

#[test]
fn writes_to_reclaimed_blocks_are_found() {
    let (mut kernel, _device, mut ring) = device(Config::default());
    kernel.submit(&READ_10, Data::In(8192)).unwrap();
    let command = next(&mut ring);
    let segment = command.data()[0];
    ring.memory().fill(segment.offset, segment.len, 1).unwrap();
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    assert_eq!(kernel.late_writes(), 0, "not reclaimed yet");
    kernel.reap();
    assert_eq!(kernel.late_writes(), 0);
    ring.memory()
        .fill(segment.offset + segment.len - 1, 1, 1)
        .unwrap();
    assert_eq!(kernel.late_writes(), 1);
    ring.memory().fill(segment.offset, 1, 1).unwrap();
    kernel.submit(&READ_10, Data::In(1)).unwrap();
    assert_eq!(kernel.late_writes(), 2);
}

#[test]
fn a_buffer_that_is_not_filled_shows() {
    let (mut kernel, _device, mut ring) = device(Config {
        blocks: 1,
        ..Config::default()
    });
    for expected in [0, blocks::POISON] {
        kernel.submit(&READ_10, Data::In(16)).unwrap();
        let command = next(&mut ring);
        ring.complete(command, Completion::GOOD);
        assert!(ring.publish());
        assert_eq!(kernel.reap()[0].data_in, [expected; 16]);
    }
}

#[test]
fn a_reset_answers_busy() {
    let (mut kernel, _device, _ring) = device(Config::default());
    let tags = [(); 2].map(|()| kernel.submit(&READ_10, Data::In(1)).unwrap());
    kernel.expire(tags[0]).unwrap();
    let finished: Vec<_> = kernel
        .reset_ring()
        .iter()
        .map(|f| (f.tag, f.status))
        .collect();
    assert_eq!(finished, [(tags[1], 0x08)]);
    assert_eq!(kernel.in_flight(), 0);
}
