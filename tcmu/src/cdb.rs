//! Command descriptor blocks.

use std::fmt;
use std::ops::Deref;

/// Opcode of commands that state their own length (SPC-4, 4.2.3).
const VARIABLE_LENGTH: u8 = 0x7f;

/// CDBs up to this length, which is all but exotic ones, need no allocation.
const INLINE: usize = 32;

/// Length in bytes of the CDB that starts with `head`.
///
/// The opcode's group code gives it (SAM-5, 5.2.2; the kernel's `scsi_command_size`), vendor
/// specific groups included; a variable length CDB has 8 bytes plus those that its byte 7 counts.
/// `None` if `head` is too short to tell: 1 byte, or 8 for a variable length CDB, are enough.
pub fn length(head: &[u8]) -> Option<usize> {
    const BY_GROUP: [u8; 8] = [6, 10, 10, 12, 16, 12, 10, 10];
    let opcode = *head.first()?;
    if opcode == VARIABLE_LENGTH {
        return head.get(7).map(|additional| 8 + usize::from(*additional));
    }
    Some(usize::from(BY_GROUP[usize::from(opcode >> 5)]))
}

/// A private copy of one CDB, exactly as long as the command's format says.
#[derive(Clone, PartialEq, Eq)]
pub struct Cdb(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    Short { len: u8, bytes: [u8; INLINE] },
    Long(Box<[u8]>),
}

impl Cdb {
    /// Takes the CDB at the start of `bytes`, which may go on after it.
    ///
    /// `None` if `bytes` ends before the CDB does.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let cdb = bytes.get(..length(bytes)?)?;
        Some(Self(if cdb.len() <= INLINE {
            let mut inline = [0; INLINE];
            inline[..cdb.len()].copy_from_slice(cdb);
            Repr::Short {
                len: cdb.len() as u8,
                bytes: inline,
            }
        } else {
            Repr::Long(cdb.into())
        }))
    }

    /// Takes a CDB of at most `limit` bytes out of memory that may change meanwhile: `read` copies
    /// the bytes from the given position on and is called once for each byte.
    ///
    /// `Ok(None)` if the CDB is longer than `limit`.
    pub(crate) fn fetch<E>(
        limit: usize,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let mut bytes = [0; INLINE];
        let head = limit.min(INLINE);
        read(0, &mut bytes[..head])?;
        let Some(len) = length(&bytes[..head]).filter(|len| *len <= limit) else {
            return Ok(None);
        };
        if len <= INLINE {
            bytes[len..].fill(0);
            return Ok(Some(Self(Repr::Short {
                len: len as u8,
                bytes,
            })));
        }
        let mut long = vec![0; len];
        long[..INLINE].copy_from_slice(&bytes);
        read(INLINE, &mut long[INLINE..])?;
        Ok(Some(Self(Repr::Long(long.into()))))
    }
}

impl Deref for Cdb {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Short { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cdb({:02x?})", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_follows_the_group_code() {
        for (opcode, len) in [
            (0x00, 6),
            (0x12, 6),
            (0x1f, 6),
            (0x28, 10),
            (0x5f, 10),
            (0x60, 12),
            (0x7e, 12),
            (0x88, 16),
            (0x9f, 16),
            (0xa8, 12),
            (0xc0, 10),
            (0xff, 10),
        ] {
            assert_eq!(length(&[opcode]), Some(len), "opcode {opcode:02x}");
        }
    }

    #[test]
    fn variable_length_cdbs_state_their_length() {
        assert_eq!(length(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18]), Some(32));
        assert_eq!(length(&[0x7f, 0, 0, 0, 0, 0, 0, 0xff]), Some(263));
        assert_eq!(length(&[0x7f, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(length(&[]), None);
    }

    #[test]
    fn takes_exactly_the_cdb() {
        let cdb = Cdb::new(&[0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xee, 0xee]).unwrap();
        assert_eq!(*cdb, [0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(cdb, Cdb::new(&[0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap());
        assert!(Cdb::new(&[0x28; 9]).is_none());
    }

    #[test]
    fn what_follows_a_cdb_makes_no_difference() {
        let fetch = |after| {
            Cdb::fetch(INLINE, |_, to: &mut [u8]| {
                to.fill(after);
                to[..6].copy_from_slice(&[0x12, 0, 0, 0, 36, 0]);
                Ok::<_, ()>(())
            })
        };
        assert_eq!(fetch(0xff), fetch(0));
        assert_eq!(fetch(0xff), Ok(Cdb::new(&[0x12, 0, 0, 0, 36, 0])));
    }

    fn long(additional: u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..8 + u16::from(additional)).map(|i| i as u8).collect();
        bytes[0] = VARIABLE_LENGTH;
        bytes[7] = additional;
        bytes
    }

    #[test]
    fn long_cdbs_are_whole() {
        for additional in [0x18, 0x19, 0xff] {
            let bytes = long(additional);
            let mut memory = bytes.clone();
            memory.extend([0xee; 8]);
            let fetched = Cdb::fetch(memory.len(), |at, to: &mut [u8]| {
                to.copy_from_slice(&memory[at..at + to.len()]);
                Ok::<_, ()>(())
            });
            let fetched = fetched.unwrap().unwrap();
            assert_eq!(*fetched, *bytes);
            assert_eq!(fetched, Cdb::new(&bytes).unwrap());
        }
    }

    #[test]
    fn memory_that_changes_after_its_length_was_read_is_not_believed() {
        let bytes = long(0x30);
        let mut reads = 0;
        let fetched = Cdb::fetch(300, |at, to: &mut [u8]| {
            reads += 1;
            if reads == 1 {
                to.copy_from_slice(&bytes[at..at + to.len()]);
            } else {
                to.fill(0xff);
            }
            Ok::<_, ()>(())
        });
        let fetched = fetched.unwrap().unwrap();
        assert_eq!(fetched.len(), 0x38);
        assert_eq!(fetched[..INLINE], bytes[..INLINE]);
        assert_eq!(fetched[INLINE..], [0xff; 0x38 - INLINE]);
    }

    #[test]
    fn a_cdb_beyond_the_limit_is_refused() {
        let bytes = long(0xff);
        let fetched = Cdb::fetch(262, |at, to: &mut [u8]| {
            to.copy_from_slice(&bytes[at..at + to.len()]);
            Ok::<_, ()>(())
        });
        assert_eq!(fetched, Ok(None));
    }
}
