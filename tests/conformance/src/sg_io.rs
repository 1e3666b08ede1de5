//! Any SCSI command to a device of the kernel's sg driver (`include/scsi/sg.h`, version 3).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// The ioctl.
const SG_IO: libc::c_ulong = 0x2285;

const SENSE_LEN: u8 = 96;
/// `DRIVER_SENSE`: there is sense; no failure of the driver.
const DRIVER_SENSE: u16 = 0x08;

/// `struct sg_io_hdr`.
#[repr(C)]
struct Header {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// A command's data.
#[derive(Debug)]
pub enum Data<'a> {
    /// None.
    None,
    /// To the device.
    Out(&'a [u8]),
    /// From the device; what it does not supply is left alone.
    In(&'a mut [u8]),
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SAM status.
    pub status: u8,
    /// Sense data, if any came.
    pub sense: Vec<u8>,
    /// How many bytes of the data were not transferred.
    pub residual: i32,
    /// How long it took, to the millisecond.
    pub took: Duration,
}

impl Answer {
    /// Sense key, ASC and ASCQ, in either format (SPC-4, 4.5); `None` without sense.
    pub fn sense_code(&self) -> Option<(u8, u8, u8)> {
        let at = |index: usize| self.sense.get(index).copied();
        match at(0)? & 0x7f {
            0x70 | 0x71 => Some((at(2)? & 0xf, at(12)?, at(13)?)),
            0x72 | 0x73 => Some((at(1)? & 0xf, at(2)?, at(3)?)),
            _ => None,
        }
    }
}

/// A device of the sg driver.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Opens `/dev/sgN`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Device { file })
    }

    /// Sends a command and waits for its end.
    ///
    /// # Errors
    /// The driver's (EINVAL for a CDB that it does not take), and `TimedOut` or `Other` if the
    /// command ended without a SCSI status: the transport gave it up.
    pub fn send(&self, cdb: &[u8], data: Data<'_>, patience: Duration) -> io::Result<Answer> {
        let (direction, pointer, len) = match data {
            Data::None => (-1, ptr::null_mut(), 0),
            // The driver only reads it in this direction.
            Data::Out(bytes) => (-2, bytes.as_ptr().cast_mut(), bytes.len()),
            Data::In(bytes) => (-3, bytes.as_mut_ptr(), bytes.len()),
        };
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut sense = [0; SENSE_LEN as usize];
        let mut header = Header {
            interface_id: libc::c_int::from(b'S'),
            dxfer_direction: direction,
            cmd_len: cdb.len().try_into().map_err(too_long)?,
            mx_sb_len: SENSE_LEN,
            iovec_count: 0,
            dxfer_len: len.try_into().map_err(too_long)?,
            dxferp: pointer.cast(),
            cmdp: cdb.as_ptr(),
            sbp: sense.as_mut_ptr(),
            timeout: patience.as_millis().try_into().unwrap_or(u32::MAX),
            flags: 0,
            pack_id: 0,
            usr_ptr: ptr::null_mut(),
            status: 0,
            masked_status: 0,
            msg_status: 0,
            sb_len_wr: 0,
            host_status: 0,
            driver_status: 0,
            resid: 0,
            duration: 0,
            info: 0,
        };
        // SAFETY: the header is laid out as the driver expects it, and it names memory that is
        // borrowed until the call returns, with its true lengths: the CDB and data-out, which are
        // only read, and data-in and sense, which nobody else uses meanwhile.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), SG_IO, &raw mut header) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // DID_TIME_OUT of include/scsi/scsi_status.h
        if header.host_status == 3 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if header.host_status != 0 || header.driver_status & !DRIVER_SENSE != 0 {
            return Err(io::Error::other(format!(
                "no SCSI status: host status {:#x}, driver status {:#x}",
                header.host_status, header.driver_status
            )));
        }
        Ok(Answer {
            status: header.status,
            sense: sense[..usize::from(header.sb_len_wr.min(SENSE_LEN))].to_vec(),
            residual: header.resid,
            took: Duration::from_millis(header.duration.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_long_as_the_kernels() {
        assert_eq!(
            size_of::<Header>(),
            if cfg!(target_pointer_width = "64") {
                88
            } else {
                64
            }
        );
    }

    #[test]
    fn both_formats_of_sense_are_read() {
        let answer = |sense: &[u8]| Answer {
            status: 2,
            sense: sense.to_vec(),
            residual: 0,
            took: Duration::ZERO,
        };
        let fixed = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 1, 0, 0, 0, 0];
        assert_eq!(answer(&fixed).sense_code(), Some((5, 0x24, 1)));
        let descriptor = [0x72, 6, 0x29, 0, 0, 0, 0, 0];
        assert_eq!(answer(&descriptor).sense_code(), Some((6, 0x29, 0)));
        assert_eq!(answer(&[]).sense_code(), None);
    }
}
