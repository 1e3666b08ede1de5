//! Resizing a backstore while it serves.

use std::io;
use std::time::SystemTime;

use rustix::io::Errno;

use crate::backstore::Backstore;
use crate::change::Change;
use crate::error::{Error, Result};
use crate::spec::ResizeOptions;
use crate::tree::{Guard, Tree};
use crate::{daemon, size};

impl Tree {
    /// Gives a backstore a new size in bytes: the daemon is asked first, then the kernel commits
    /// it, then this machine's disks of it are read again. iSCSI initiators hear of it by a unit
    /// attention, or rescan themselves.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size that is not whole blocks or would shrink the LUN without
    /// [`ResizeOptions::shrink`]; [`Error::NotFound`], [`Error::Ambiguous`], [`Error::NoDaemon`],
    /// [`Error::Refused`] with the daemon's verdict, and [`Error::TimedOut`].
    pub fn resize(&self, name: &str, size: u64, options: &ResizeOptions) -> Result<Backstore> {
        self.require_root()?;
        // Found before it is locked: what is not in the tree is no name to make a lock file of.
        self.find(name, options.hba)?;
        let _lock = self.lock_backstore(name)?;
        let place = self.find(name, options.hba)?;
        let before = self.summary(&place)?;
        size::check_size(size, before.block_size)?;
        if size < before.size && !options.shrink {
            return Err(Error::Invalid(format!(
                "{name} has {} bytes: making it smaller gives up the data beyond {size}; say \
                 --shrink if that is meant",
                before.size
            )));
        }
        if self.daemon_check && daemon::find(&self.roots).is_none() {
            return Err(Error::NoDaemon);
        }
        if size != before.size {
            let write = Change::Write(place.path.join("attrib/dev_size"), size.to_string());
            let what = format!("the new size of {name}");
            let begin = SystemTime::now();
            match self.attempt_until_unblocked(&write, &Guard::Netlink) {
                Ok(Ok(())) => {}
                Ok(Err(source)) => {
                    return Err(Error::Refused {
                        what,
                        meaning: resize_verdict(&source, size),
                        reason: self.refusal(&place.path, begin),
                        source,
                    });
                }
                Err(Error::TimedOut { seconds, note, .. }) => {
                    return Err(Error::TimedOut {
                        what,
                        seconds,
                        note,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        for export in &before.exports {
            if let (Some(address), Some(disk)) = (&export.scsi_address, &export.block_device) {
                self.rescan_disk(address, disk, size)?;
            }
        }
        self.summary(&place)
    }
}

/// What the answer to a new `dev_size` means.
fn resize_verdict(error: &io::Error, size: u64) -> String {
    let size = size::show_size(size);
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
            format!("there is no space to hold {size}")
        }
        Some(Errno::INVAL) => format!("what the LUN is stored on does not have {size}"),
        Some(Errno::OPNOTSUPP | Errno::NOSYS) => "the handler cannot resize".to_owned(),
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            "what the LUN is stored on may not be changed, or its handler failed".to_owned()
        }
        Some(Errno::BUSY) => {
            "its image is to be left alone for now: see `tcmuctl status`".to_owned()
        }
        Some(Errno::SRCH) => "no daemon listens".to_owned(),
        _ => error.to_string(),
    }
}
