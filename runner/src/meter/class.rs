//! Which figures a command counts in.

use tcmu::scsi::opcode::{self as op, variable_length};

/// A class of commands with figures of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// READ.
    Read,
    /// WRITE, and what writes the data that it brings: WRITE AND VERIFY, WRITE ATOMIC, ORWRITE,
    /// COMPARE AND WRITE.
    Write,
    /// SYNCHRONIZE CACHE.
    Flush,
    /// UNMAP, and WRITE SAME, which mostly writes zeroes.
    Unmap,
    /// All others.
    Other,
}

impl Class {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::Other,
    ];

    /// The class's name in interfaces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Unmap => "unmap",
            Self::Other => "other",
        }
    }

    /// The class of a command.
    #[inline]
    pub(crate) fn of(cdb: &[u8]) -> Self {
        match cdb.first() {
            Some(&op::VARIABLE_LENGTH) => Self::of_service_action(cdb),
            Some(&opcode) => BY_OPCODE[usize::from(opcode)],
            None => Self::Other,
        }
    }

    #[cold]
    fn of_service_action(cdb: &[u8]) -> Self {
        let &[_, _, _, _, _, _, _, _, high, low, ..] = cdb else {
            return Self::Other;
        };
        match u16::from_be_bytes([high, low]) {
            variable_length::READ_32 => Self::Read,
            variable_length::WRITE_32 | variable_length::WRITE_AND_VERIFY_32 => Self::Write,
            variable_length::WRITE_SAME_32 => Self::Unmap,
            _ => Self::Other,
        }
    }
}

static BY_OPCODE: [Class; 256] = {
    const READS: &[u8] = &[op::READ_6, op::READ_10, op::READ_12, op::READ_16];
    const WRITES: &[u8] = &[
        op::WRITE_6,
        op::WRITE_10,
        op::WRITE_12,
        op::WRITE_16,
        op::WRITE_AND_VERIFY_10,
        op::WRITE_AND_VERIFY_12,
        op::WRITE_AND_VERIFY_16,
        op::WRITE_ATOMIC_16,
        op::ORWRITE_16,
        op::COMPARE_AND_WRITE,
    ];
    const FLUSHES: &[u8] = &[op::SYNCHRONIZE_CACHE_10, op::SYNCHRONIZE_CACHE_16];
    const UNMAPS: &[u8] = &[op::UNMAP, op::WRITE_SAME_10, op::WRITE_SAME_16];
    let table = [Class::Other; 256];
    let table = with(table, READS, Class::Read);
    let table = with(table, WRITES, Class::Write);
    let table = with(table, FLUSHES, Class::Flush);
    with(table, UNMAPS, Class::Unmap)
};

const fn with(mut table: [Class; 256], opcodes: &[u8], class: Class) -> [Class; 256] {
    let mut at = 0;
    while at < opcodes.len() {
        table[opcodes[at] as usize] = class;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_its_number() {
        for (number, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, number);
        }
    }

    #[test]
    fn commands_are_told_by_opcode_and_service_action() {
        let long = |action: u16| {
            let mut cdb = [0; 32];
            cdb[0] = 0x7f;
            cdb[8..10].copy_from_slice(&action.to_be_bytes());
            Class::of(&cdb)
        };
        for (class, opcodes) in [
            (Class::Read, &[0x08, 0x28, 0xa8, 0x88][..]),
            (Class::Write, &[0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0x89, 0x9c]),
            (Class::Flush, &[0x35, 0x91]),
            (Class::Unmap, &[0x42, 0x41, 0x93]),
            (Class::Other, &[0x00, 0x12, 0x25, 0x2f, 0x9e, 0xa3, 0xff]),
        ] {
            for &opcode in opcodes {
                assert_eq!(Class::of(&[opcode; 16]), class, "{opcode:#04x}");
            }
        }
        assert_eq!(long(0x09), Class::Read);
        assert_eq!(long(0x0b), Class::Write);
        assert_eq!(long(0x0d), Class::Unmap);
        assert_eq!(long(0x12), Class::Other);
        assert_eq!(Class::of(&[0x7f, 0, 0, 0, 0, 0, 0, 1, 0]), Class::Other);
        assert_eq!(Class::of(&[]), Class::Other);
    }
}
