//! What operations did to files, for power cuts to take back.

use std::collections::HashMap;

/// Device and inode.
pub type FileId = (u64, u64);

/// What an operation did to a regular file, or promised.
#[derive(Clone, Debug)]
pub enum Record {
    /// It wrote.
    Write {
        /// To which file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// The bytes that were there; zeroes behind the end of the file.
        before: Vec<u8>,
        /// The bytes that are there now.
        after: Vec<u8>,
        /// They were durable at its end.
        durable: bool,
    },
    /// It made zeroes, without making the file longer.
    Zero {
        /// In which file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// The bytes that were there, up to the end of the file.
        before: Vec<u8>,
    },
    /// It made the file's records before number `covers` durable.
    Sync {
        /// Which file.
        file: FileId,
        /// How many records there were when it began.
        covers: usize,
    },
}

impl Record {
    /// Which file it is about.
    pub fn file(&self) -> FileId {
        match self {
            Self::Write { file, .. } | Self::Zero { file, .. } | Self::Sync { file, .. } => *file,
        }
    }
}

/// Which of the records in `log` no power cut behind its end takes back: durable writes, and what syncs
/// have covered.
pub fn durable(log: &[Record]) -> Vec<bool> {
    let mut covered: HashMap<FileId, usize> = HashMap::new();
    for record in log {
        if let Record::Sync { file, covers } = record {
            let known = covered.entry(*file).or_default();
            *known = (*known).max(*covers);
        }
    }
    let is_durable = |(number, record): (usize, &Record)| {
        let alone = matches!(record, Record::Write { durable: true, .. });
        alone || covered.get(&record.file()).is_some_and(|end| number < *end)
    };
    log.iter().enumerate().map(is_durable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_covers_what_was_there_when_it_began() {
        let write = |file, durable| Record::Write {
            file: (1, file),
            offset: 0,
            before: vec![0],
            after: vec![1],
            durable,
        };
        let sync = |file, covers| Record::Sync {
            file: (1, file),
            covers,
        };
        let log = [
            write(1, false),
            write(2, false),
            write(1, true),
            write(1, false),
            sync(1, 1),
            write(2, false),
        ];
        assert_eq!(durable(&log), [true, false, true, false, false, false]);
        assert_eq!(durable(&log[..4]), [false, false, true, false]);
    }
}
