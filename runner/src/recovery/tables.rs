//! The files of the in-flight tables.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tcmu::discovery::{Device, DeviceName};
use tcmu::mapping::Mapping;
use tcmu::ring::recovery::{Mismatch, Owner, Table};

/// Differs from one start of the machine to the next; 32 hexadecimal digits and dashes.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The folder with the in-flight tables.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    folder: PathBuf,
}

/// What is known of a device's predecessor.
pub(crate) enum Found {
    /// Nobody has served it.
    Nothing,
    /// A table that fits its ring. So many commands are in flight, and one of them was found in flight
    /// by so many processes.
    Table {
        table: Table,
        in_flight: usize,
        runs: u32,
    },
    /// Something that is of no use.
    Unusable(Mismatch),
}

impl Tables {
    /// The tables in `folder`, which is there.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// What a predecessor left about a device.
    pub(crate) fn find(&self, device: &Device, mapping: &Arc<Mapping>) -> Found {
        let file = match self.options().open(self.path(&device.name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Unusable(error.into()),
        };
        let opened = owner(device)
            .map_err(Mismatch::from)
            .and_then(|owner| Table::open(file, &owner, mapping));
        let checked = opened.and_then(|table| Ok((table.check(mapping)?, table)));
        match checked {
            Ok(((in_flight, runs), table)) => Found::Table {
                table,
                in_flight,
                runs,
            },
            Err(mismatch) => Found::Unusable(mismatch),
        }
    }

    /// A new table for a device of whose commands none was fetched.
    pub(crate) fn create(
        &self,
        device: &Device,
        mapping: &Arc<Mapping>,
    ) -> Result<Table, Mismatch> {
        // A predecessor's file may still be mapped by it: it is left alone.
        self.remove(&device.name);
        let file: File = self
            .options()
            .create_new(true)
            .open(self.path(&device.name))?;
        Table::create(file, &owner(device)?, mapping).inspect_err(|_| self.remove(&device.name))
    }

    /// Removes a device's table: there is nothing to go on with.
    pub(crate) fn remove(&self, device: &DeviceName) {
        // It may never have had one.
        let _ = fs::remove_file(self.path(device));
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }

    fn path(&self, device: &DeviceName) -> PathBuf {
        self.folder.join(format!("{}.{}", device.hba, device.name))
    }
}

/// What no other device has: the boot, and the device's number within it.
fn owner(device: &Device) -> io::Result<Owner> {
    let boot = fs::read_to_string(BOOT_ID)?;
    let digits: String = boot.trim().split('-').collect();
    let boot = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    let mut owner = Owner::default();
    owner[..16].copy_from_slice(&boot.to_ne_bytes());
    owner[16..24].copy_from_slice(&device.instance()?.to_ne_bytes());
    owner[24..28].copy_from_slice(&device.minor.to_ne_bytes());
    Ok(owner)
}
