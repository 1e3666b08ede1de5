//! A command ring in which the other side writes what it likes.

use std::sync::Arc;

use tcmu::mock::{Config, Data, MockKernel};
use tcmu::ring::{Completion, Entry, Ring};

use crate::input::Input;

const RING_SIZE: u32 = 2048;
/// Mailbox and ring.
const END: u32 = 128 + RING_SIZE;

/// Plays with a ring: honest commands, and words overwritten anywhere in the mailbox and the ring.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let config = Config {
        ring_size: RING_SIZE,
        blocks: 16,
        flags: u16::from(input.u8() & 7),
        poison: false,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(config).expect("the system has memory and sockets");
    let memory = Arc::clone(device.memory());
    let mut ring = Ring::new(Arc::clone(&memory)).expect("the mailbox is valid");
    let mut commands = Vec::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => {
                let cdb = [0x28; 10];
                // Full and broken rings are part of the game.
                let _ = kernel.submit(&cdb, Data::In(input.u16().into()));
            }
            2 | 3 => {
                let word = u32::from(input.u16()) % (END / 4);
                let value = input.u32();
                memory
                    .store_u32(word as usize * 4, value)
                    .expect("the word lies in the mapping");
            }
            4 => drain(&mut ring, &mut commands),
            5 => {
                if let Some(command) = commands.pop() {
                    ring.complete(command, Completion::GOOD);
                }
            }
            6 => {
                commands.pop();
            }
            _ => {
                // The mailbox may be nonsense by now.
                let _ = ring.publish();
                let _ = kernel.reap();
            }
        }
    }
    drain(&mut ring, &mut commands);
    for command in commands {
        ring.complete(command, Completion::GOOD);
    }
    let _ = ring.publish();
    assert_eq!(ring.in_flight(), 0);
}

fn drain(ring: &mut Ring, commands: &mut Vec<tcmu::ring::Command>) {
    // No ring of this size can hold more entries.
    for _ in 0..=RING_SIZE / 8 {
        match ring.next() {
            Ok(Some(Entry::Command(command))) => {
                for segment in command.data().iter().chain(command.bidi_in()) {
                    let inside = ring.memory().check(segment.offset, segment.len).is_ok();
                    assert!(inside && segment.offset >= END as usize, "{segment:?}");
                }
                commands.push(command);
            }
            Ok(Some(Entry::TaskManagement(notice))) => {
                assert!(notice.commands.len() <= RING_SIZE as usize / 2);
            }
            Ok(None) | Err(_) => return,
        }
    }
    panic!("more entries than the ring can hold");
}
