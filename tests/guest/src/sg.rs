//! SCSI commands that nobody retries, through a disk's `/dev/sgN`.
//!
//! This is the driver's oldest interface (`struct sg_header` of include/scsi/sg.h): header, CDB and
//! data go through write(2), header and data come back through read(2), and no pointer is passed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::lun::Disk;

/// Length of the header in bytes.
const HEADER: usize = 36;
const REPLY_LEN: usize = 4;
const RESULT: usize = 12;
/// Bit fields: twelve_byte, target_status (5 bits), host_status (8), driver_status (8).
const STATUS: usize = 16;
const SENSE: usize = 20;

/// The status GOOD.
pub const GOOD: u8 = 0;

/// How a command has ended.
#[derive(Debug)]
pub struct Ended {
    /// The status, such as [`GOOD`].
    pub status: u8,
    /// The first bytes of the sense data, in whichever format; zeroes where there are none.
    pub sense: Vec<u8>,
    /// What was read.
    pub data: Vec<u8>,
}

impl Ended {
    /// The sense key; 0 where there are no sense data.
    pub fn sense_key(&self) -> u8 {
        match self.sense[0] & 0x7f {
            // Fixed format, then descriptors (SPC-4, 4.5).
            0x70 | 0x71 => self.sense[2] & 0xf,
            0x72 | 0x73 => self.sense[1] & 0xf,
            _ => 0,
        }
    }
}

/// An open `/dev/sgN`; one command at a time.
#[derive(Debug)]
pub struct Sg {
    file: File,
}

impl Sg {
    /// Opens the sg device of a disk.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(disk: &Disk) -> anyhow::Result<Self> {
        Self::of(Path::new(disk.path()))
    }

    /// Opens the sg device of the disk `/dev/sdX`.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(disk: &Path) -> anyhow::Result<Self> {
        let name = disk.file_name().context("no disk name")?;
        let folder = Path::new("/sys/class/block")
            .join(name)
            .join("device/scsi_generic");
        let entry = fs::read_dir(&folder)?.next().context("no sg device")??;
        let path = Path::new("/dev").join(entry.file_name());
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self { file })
    }

    /// Executes a command that sends `data`, or that reads `len_in` bytes if there are none to send.
    /// Returns what was read.
    ///
    /// # Errors
    /// If it ends with any other status than GOOD, or the transport has anything to complain of.
    pub fn execute(&mut self, cdb: &[u8], data: &[u8], len_in: usize) -> anyhow::Result<Vec<u8>> {
        let ended = self.attempt(cdb, data, len_in)?;
        ensure!(
            ended.status == GOOD,
            "{cdb:02x?} ended with status {:#04x}, sense {:02x?}",
            ended.status,
            ended.sense
        );
        Ok(ended.data)
    }

    /// As [`execute`](Self::execute), for a command that may end with any status.
    ///
    /// # Errors
    /// If the transport has anything to complain of.
    pub fn attempt(&mut self, cdb: &[u8], data: &[u8], len_in: usize) -> anyhow::Result<Ended> {
        let mut request = vec![0; HEADER];
        request[REPLY_LEN..REPLY_LEN + 4]
            .copy_from_slice(&((HEADER + len_in) as u32).to_ne_bytes());
        request.extend_from_slice(cdb);
        request.extend_from_slice(data);
        let written = self.file.write(&request).context("sg: write")?;
        ensure!(written == request.len(), "sg took {written} bytes only");
        let mut reply = vec![0; HEADER + len_in];
        let read = self.file.read(&mut reply).context("sg: read")?;
        ensure!(read >= HEADER, "sg gave {read} bytes only");
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&reply[at..at + 4]);
            u32::from_ne_bytes(bytes)
        };
        let (result, status) = (word(RESULT), word(STATUS) >> 1);
        // target_status holds the status without its lowest bit.
        let (target, host, driver) = (status & 0x1f, status >> 5 & 0xff, status >> 13 & 0xff);
        // The driver's complaint of a status that is not GOOD is none of its own.
        ensure!(
            host == 0 && (target != 0 || driver == 0 && result == 0),
            "{cdb:02x?} ended with host status {host:#x}, driver status {driver:#x}, errno {result}"
        );
        let data = reply.split_off(HEADER);
        Ok(Ended {
            status: (target << 1) as u8,
            sense: reply.split_off(SENSE),
            data,
        })
    }
}
