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
        let name = Path::new(disk.path()).file_name().context("no disk name")?;
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
        ensure!(
            result == 0 && target == 0 && host == 0 && driver == 0,
            "{cdb:02x?} ended with status {:#04x}, host status {host:#x}, driver status {driver:#x}, \
             errno {result}, sense {:02x?}",
            target << 1,
            &reply[SENSE..HEADER]
        );
        Ok(reply.split_off(HEADER))
    }
}
