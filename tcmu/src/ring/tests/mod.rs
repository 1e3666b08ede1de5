mod crash;
mod malformed;

use super::*;
use crate::mock::{CommandTag, Config, Data, Finished, MockKernel};

const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 1, 0, 0, 8, 0];
const WRITE_16: [u8; 16] = [0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0];

fn device(config: Config) -> (MockKernel, Ring) {
    let (kernel, device) = MockKernel::new(config).unwrap();
    let ring = Ring::new(Arc::clone(device.memory())).unwrap();
    // The other end of the doorbell is not needed here.
    drop(device);
    (kernel, ring)
}

fn in_order() -> Config {
    Config {
        flags: 0,
        ..Config::default()
    }
}

fn next(ring: &mut Ring) -> Command {
    match ring.next() {
        Ok(Some(Entry::Command(command))) => command,
        other => panic!("expected a command, got {other:?}"),
    }
}

fn submit(kernel: &mut MockKernel, data: Data<'_>) -> CommandTag {
    kernel.submit(&READ_10, data).unwrap()
}

fn write_segments(memory: &Mapping, segments: &[Segment], byte: u8) {
    for segment in segments {
        memory.fill(segment.offset, segment.len, byte).unwrap();
    }
}

fn read_segments(memory: &Mapping, segments: &[Segment]) -> Vec<u8> {
    let mut data = Vec::new();
    for segment in segments {
        let start = data.len();
        data.resize(start + segment.len, 0);
        memory.read(segment.offset, &mut data[start..]).unwrap();
    }
    data
}

fn is_internal_target_failure(finished: &Finished) -> bool {
    finished.status == Status::CheckCondition.code()
        && finished.sense[0] == 0x70
        && finished.sense[2] == 4
        && finished.sense[12..14] == [0x44, 0]
}

fn head(memory: &Mapping) -> u32 {
    memory.load_u32(offset_of!(abi::Mailbox, cmd_head)).unwrap()
}

fn tail(memory: &Mapping) -> u32 {
    memory.load_u32(offset_of!(abi::Mailbox, cmd_tail)).unwrap()
}

#[test]
fn a_read_goes_round() {
    let (mut kernel, mut ring) = device(Config::default());
    assert!(!ring.has_new());
    let tag = submit(&mut kernel, Data::In(5000));
    assert!(ring.has_new());
    let command = next(&mut ring);
    assert!(!ring.has_new());
    assert_eq!(**command.cdb(), READ_10);
    assert_eq!(command.data_len(), 5000);
    assert_eq!(
        command.data().len(),
        1,
        "neighbouring blocks are one segment"
    );
    assert_eq!(command.bidi_in(), []);
    assert_eq!(ring.in_flight(), 1);
    write_segments(ring.memory(), command.data(), 7);
    ring.complete(command, Completion::GOOD);
    assert_eq!(ring.in_flight(), 0);
    assert!(
        kernel.reap().is_empty(),
        "nothing is visible before it is published"
    );
    assert!(ring.publish());
    let finished = kernel.reap();
    assert_eq!(finished.len(), 1);
    assert_eq!((finished[0].tag, finished[0].status), (tag, 0));
    assert_eq!(finished[0].data_in, [7; 5000]);
    assert!(!ring.publish());
    assert_eq!(ring.next().unwrap().map(|_| ()), None);
}

#[test]
fn a_write_brings_its_data() {
    let (mut kernel, mut ring) = device(Config::default());
    let data: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
    kernel.submit(&WRITE_16, Data::Out(&data)).unwrap();
    let command = next(&mut ring);
    assert_eq!(**command.cdb(), WRITE_16);
    assert_eq!(read_segments(ring.memory(), command.data()), data);
}

#[test]
fn a_bidirectional_command_has_two_buffers() {
    let (mut kernel, mut ring) = device(Config::default());
    let tag = submit(
        &mut kernel,
        Data::Bidi {
            out: &[3; 4096],
            len_in: 100,
        },
    );
    let command = next(&mut ring);
    assert_eq!(command.data_len(), 4096);
    assert_eq!(read_segments(ring.memory(), command.data()), [3; 4096]);
    assert_eq!(
        command
            .bidi_in()
            .iter()
            .map(|segment| segment.len)
            .sum::<usize>(),
        100
    );
    write_segments(ring.memory(), command.bidi_in(), 9);
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    let finished = kernel.reap();
    assert_eq!(
        (finished[0].tag, &*finished[0].data_in),
        (tag, &[9; 100][..])
    );
}

#[test]
fn scattered_blocks_are_several_segments() {
    let (mut kernel, mut ring) = device(Config::default());
    for _ in 0..4 {
        submit(&mut kernel, Data::In(4096));
    }
    let commands: Vec<_> = (0..4).map(|_| next(&mut ring)).collect();
    for (index, command) in commands.into_iter().enumerate() {
        if index % 2 == 0 {
            ring.complete(command, Completion::GOOD);
        } else {
            std::mem::forget(command);
        }
    }
    assert!(ring.publish());
    kernel.reap();
    submit(&mut kernel, Data::In(3 * 4096 - 1));
    let command = next(&mut ring);
    let lengths: Vec<_> = command.data().iter().map(|segment| segment.len).collect();
    assert_eq!(lengths, [4096, 4096, 4095]);
    assert_eq!(command.data_len(), 3 * 4096 - 1);
}

#[test]
fn taken_segments_leave_the_length() {
    let (mut kernel, mut ring) = device(Config::default());
    let tag = submit(&mut kernel, Data::In(512));
    let mut command = next(&mut ring);
    let (data, bidi_in) = command.take_segments();
    assert_eq!((data.len(), bidi_in.len()), (1, 0));
    assert_eq!(command.data(), []);
    assert_eq!(command.data_len(), 512);
    ring.recycle(data);
    ring.recycle(bidi_in);
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    assert_eq!(kernel.reap()[0].tag, tag);
}

#[test]
fn completions_go_out_of_order() {
    let (mut kernel, mut ring) = device(Config::default());
    assert!(ring.out_of_order());
    let tags: Vec<_> = (1..=3)
        .map(|n| submit(&mut kernel, Data::In(n * 512)))
        .collect();
    let mut commands: Vec<_> = (0..3).map(|_| Some(next(&mut ring))).collect();
    for (order, index) in [2, 0, 1].into_iter().enumerate() {
        let command = commands[index].take().unwrap();
        write_segments(ring.memory(), command.data(), index as u8);
        ring.complete(command, Completion::GOOD);
        assert!(ring.publish());
        let finished = kernel.reap();
        assert_eq!(finished.len(), 1, "completion {order}");
        assert_eq!(finished[0].tag, tags[index]);
        assert_eq!(finished[0].data_in, vec![index as u8; (index + 1) * 512]);
    }
    assert_eq!(kernel.broken(), None);
}

#[test]
fn completions_wait_for_the_oldest_where_order_matters() {
    let (mut kernel, mut ring) = device(in_order());
    assert!(!ring.out_of_order());
    let tags: Vec<_> = (0..3).map(|_| submit(&mut kernel, Data::In(512))).collect();
    let [first, second, third] = [(); 3].map(|()| next(&mut ring));
    ring.complete(
        third,
        Completion {
            status: 0x28,
            ..Completion::GOOD
        },
    );
    assert!(!ring.publish());
    ring.complete(first, Completion::GOOD);
    assert!(ring.publish());
    assert_eq!(
        kernel.reap().iter().map(|f| f.tag).collect::<Vec<_>>(),
        [tags[0]]
    );
    ring.complete(
        second,
        Completion {
            status: 0x08,
            ..Completion::GOOD
        },
    );
    assert!(ring.publish());
    let finished: Vec<_> = kernel.reap().iter().map(|f| (f.tag, f.status)).collect();
    assert_eq!(finished, [(tags[1], 0x08), (tags[2], 0x28)]);
    assert_eq!(kernel.broken(), None);
}

#[test]
fn many_laps_with_padding() {
    for config in [Config::default(), in_order()] {
        let (mut kernel, mut ring) = device(Config {
            ring_size: 1000,
            ..config
        });
        for lap in 0..500 {
            let len = 8 + lap % 90;
            let mut cdb = vec![lap as u8; len];
            cdb[0] = 0x7f;
            cdb[7] = (len - 8) as u8;
            let tags = [
                kernel.submit(&cdb, Data::None),
                kernel.submit(&cdb, Data::In(1)),
            ];
            let [first, second] = [(); 2].map(|()| next(&mut ring));
            assert_eq!(**first.cdb(), *cdb);
            ring.complete(second, Completion::GOOD);
            ring.complete(first, Completion::GOOD);
            assert!(ring.publish());
            let mut finished: Vec<_> = kernel.reap().iter().map(|f| f.tag).collect();
            finished.sort();
            assert_eq!(finished, tags.map(Result::unwrap), "lap {lap}");
        }
        assert_eq!(kernel.broken(), None);
    }
}

#[test]
fn long_cdbs_are_copied_whole() {
    let (mut kernel, mut ring) = device(Config::default());
    let mut cdb: Vec<u8> = (0..263).map(|i| i as u8).collect();
    cdb[0] = 0x7f;
    cdb[7] = 255;
    kernel.submit(&cdb, Data::In(1)).unwrap();
    assert_eq!(**next(&mut ring).cdb(), *cdb);
}

#[test]
fn task_management_names_commands() {
    let (mut kernel, mut ring) = device(Config::default());
    assert!(ring.task_management());
    let tags: Vec<_> = (0..3).map(|_| submit(&mut kernel, Data::None)).collect();
    let commands = [(); 3].map(|()| next(&mut ring));
    kernel
        .notify_task_management(TmrKind::LunReset, &[tags[0], tags[2]])
        .unwrap();
    match ring.next() {
        Ok(Some(Entry::TaskManagement(notice))) => assert_eq!(
            notice,
            TaskManagement {
                kind: TmrKind::LunReset,
                commands: vec![commands[0].id(), commands[2].id()]
            }
        ),
        other => panic!("expected a notice, got {other:?}"),
    }
}

#[test]
fn task_management_kinds_are_the_kernels_numbers() {
    for number in 0..=255 {
        assert_eq!(u8::from(TmrKind::from(number)), number);
    }
    assert_eq!(TmrKind::from(1), TmrKind::AbortTask);
    assert_eq!(TmrKind::from(7), TmrKind::TargetColdReset);
    assert_eq!(TmrKind::from(128), TmrKind::PreemptAndAbort);
    assert_eq!(TmrKind::from(0), TmrKind::Other(0));
}

#[test]
fn entries_without_answer_give_their_room_back() {
    for config in [Config::default(), in_order()] {
        let (mut kernel, mut ring) = device(Config {
            ring_size: 1000,
            ..config
        });
        for _ in 0..200 {
            kernel
                .notify_task_management(TmrKind::AbortTask, &[])
                .unwrap();
            assert!(matches!(ring.next(), Ok(Some(Entry::TaskManagement(_)))));
            assert!(ring.publish());
            assert!(kernel.reap().is_empty());
        }
        assert_eq!(kernel.broken(), None);
    }
}

#[test]
fn a_notice_between_commands_does_not_hold_them() {
    for config in [Config::default(), in_order()] {
        let (mut kernel, mut ring) = device(config);
        submit(&mut kernel, Data::None);
        kernel
            .notify_task_management(TmrKind::AbortTask, &[])
            .unwrap();
        submit(&mut kernel, Data::None);
        kernel
            .notify_task_management(TmrKind::AbortTask, &[])
            .unwrap();
        let first = next(&mut ring);
        assert!(matches!(ring.next(), Ok(Some(Entry::TaskManagement(_)))));
        let second = next(&mut ring);
        assert!(matches!(ring.next(), Ok(Some(Entry::TaskManagement(_)))));
        assert!(!ring.publish(), "the oldest entry is open");
        ring.complete(first, Completion::GOOD);
        ring.complete(second, Completion::GOOD);
        assert!(ring.publish());
        assert_eq!(kernel.reap().len(), 2);
        assert_eq!(tail(ring.memory()), head(ring.memory()));
    }
}

#[test]
fn a_dropped_command_is_answered() {
    for config in [Config::default(), in_order()] {
        let (mut kernel, mut ring) = device(config);
        let tags: Vec<_> = (0..3).map(|_| submit(&mut kernel, Data::In(512))).collect();
        let [first, second, third] = [(); 3].map(|()| next(&mut ring));
        drop(first);
        drop(third);
        assert_eq!(ring.in_flight(), 3);
        assert!(ring.publish());
        ring.complete(second, Completion::GOOD);
        assert!(ring.publish());
        assert_eq!(ring.in_flight(), 0);
        let mut finished = kernel.reap();
        finished.sort_by_key(|finished| finished.tag);
        assert_eq!(finished.iter().map(|f| f.tag).collect::<Vec<_>>(), tags);
        let failed: Vec<_> = finished.iter().map(is_internal_target_failure).collect();
        assert_eq!(failed, [true, false, true]);
        assert_eq!(kernel.broken(), None);
    }
}

#[test]
fn a_command_of_another_ring_is_not_completed_here() {
    let (mut kernel, mut ring) = device(Config::default());
    let (mut other_kernel, mut other_ring) = device(Config::default());
    submit(&mut kernel, Data::None);
    let other_tag = submit(&mut other_kernel, Data::None);
    let command = next(&mut ring);
    let other = next(&mut other_ring);
    ring.complete(other, Completion::GOOD);
    assert!(!ring.publish());
    assert_eq!(ring.in_flight(), 1);
    assert!(other_ring.publish());
    let finished = other_kernel.reap();
    assert_eq!(finished[0].tag, other_tag);
    assert!(is_internal_target_failure(&finished[0]));
    drop(command);
}

fn read_with(config: Config, completion: Completion<'_>) -> Finished {
    let (mut kernel, mut ring) = device(config);
    submit(&mut kernel, Data::In(6000));
    let command = next(&mut ring);
    write_segments(ring.memory(), command.data(), 5);
    ring.complete(command, completion);
    assert!(ring.publish());
    kernel.reap().remove(0)
}

#[test]
fn features_that_are_not_offered_are_not_used() {
    let (mut kernel, mut ring) = device(in_order());
    assert!(!ring.read_len() && !ring.task_management());
    submit(&mut kernel, Data::In(512));
    let command = next(&mut ring);
    ring.complete(
        command,
        Completion {
            read_len: Some(36),
            ..Completion::GOOD
        },
    );
    let header = size_of::<abi::Mailbox>();
    let uflags = header + offset_of!(abi::EntryHeader, uflags);
    assert_eq!(ring.memory().load_u8(uflags), Ok(0));
}

#[test]
fn a_short_read_says_its_length() {
    let short = Completion {
        read_len: Some(36),
        ..Completion::GOOD
    };
    let finished = read_with(Config::default(), short);
    assert_eq!(
        (finished.read_len, &*finished.data_in),
        (Some(36), &[5; 36][..])
    );

    let finished = read_with(in_order(), short);
    assert_eq!(
        (finished.read_len, finished.data_in.len()),
        (None, 6000),
        "not offered"
    );

    let empty = Completion {
        read_len: Some(0),
        ..Completion::GOOD
    };
    let finished = read_with(Config::default(), empty);
    assert_eq!((finished.read_len, finished.data_in.len()), (None, 6000));
}

#[test]
fn a_failed_read_can_bring_data() {
    let sense = [0x70, 0, 3];
    let finished = read_with(Config::default(), Completion::check_condition(&sense));
    assert_eq!((finished.status, finished.data_in.len()), (2, 0));
    let partial = Completion {
        read_len: Some(4096),
        ..Completion::check_condition(&sense)
    };
    let finished = read_with(Config::default(), partial);
    assert_eq!((finished.status, finished.data_in.len()), (2, 4096));
    assert_eq!(finished.sense[..3], sense);
}

#[test]
fn sense_is_cut_or_filled_up_to_96_bytes() {
    let finished = read_with(Config::default(), Completion::check_condition(&[0x72, 5]));
    let mut expected = vec![0; 96];
    expected[..2].copy_from_slice(&[0x72, 5]);
    assert_eq!(finished.sense, expected, "nothing of the request shows");

    let long: Vec<u8> = (0..200).collect();
    let finished = read_with(Config::default(), Completion::check_condition(&long));
    assert_eq!(finished.sense, long[..96]);
}

#[test]
fn a_new_ring_goes_on_at_the_tail() {
    let (mut kernel, mut ring) = device(Config::default());
    let tags: Vec<_> = (0..3).map(|_| submit(&mut kernel, Data::In(512))).collect();
    let first = next(&mut ring);
    ring.complete(first, Completion::GOOD);
    assert!(ring.publish());
    let lost = next(&mut ring);
    let memory = Arc::clone(ring.memory());
    drop(ring);
    drop(lost);

    let mut ring = Ring::new(memory).unwrap();
    assert!(ring.has_new());
    for _ in 0..2 {
        let command = next(&mut ring);
        ring.complete(command, Completion::GOOD);
    }
    assert!(ring.next().unwrap().is_none());
    assert!(ring.publish());
    assert_eq!(
        kernel.reap().iter().map(|f| f.tag).collect::<Vec<_>>(),
        tags
    );
    assert_eq!(kernel.broken(), None);
}

#[test]
fn without_commands_there_is_nothing_to_do() {
    let (kernel, mut ring) = device(Config::default());
    assert!(ring.next().unwrap().is_none());
    assert!(!ring.publish());
    assert_eq!(kernel.in_flight(), 0);
}
