//! What to create, and how to delete and resize.

use std::net::SocketAddr;

use crate::error::Result;
use crate::name;
use crate::size;

/// The largest transfer of one SCSI command by default, in bytes.
///
/// TCMU's own default of 128 blocks (64 KiB) splits large I/O into many commands, each of which
/// costs a round trip to the daemon. 4 MiB is where more brings nothing measurable, and what the
/// kernel's own backstores allow.
pub const DEFAULT_TRANSFER: u32 = 4 << 20;

/// The data area's limit by default, in MiB: 64 of the largest commands at once. Pages are taken
/// only as they are needed, but kept, so this bounds the kernel memory of a busy LUN; commands
/// beyond it wait.
pub const DEFAULT_DATA_AREA_MB: u32 = 256;

/// The command ring's size by default, in MiB. Unlike the data area it is allocated in full with
/// each LUN. A 4 KiB command takes about 128 bytes, the largest about 16 KiB.
pub const DEFAULT_RING_MB: u32 = 1;

/// The kernel's time limit for commands by default, in seconds: 0 is none.
///
/// When the limit passes, the kernel reports failure to the initiator while the daemon may still
/// be writing. The initiator then repeats or gives up the write, and the daemon's late one can
/// land on top of newer data. Without the limit, a command ends when the daemon has ended it:
/// initiators have their own limits and abort, and the target waits for the daemon before it
/// confirms the abort. A daemon that died is started again and goes on with what is in the ring.
pub const DEFAULT_COMMAND_TIMEOUT: u32 = 0;

/// A backstore to create.
///
/// Everything that is not set gets a default that fits; see the methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackstoreSpec {
    pub(crate) name: String,
    pub(crate) handler: String,
    pub(crate) config: String,
    pub(crate) size: Option<u64>,
    pub(crate) block_size: Option<u32>,
    pub(crate) hba: Option<u32>,
    pub(crate) max_sectors: Option<u32>,
    pub(crate) data_area_mb: u32,
    pub(crate) ring_mb: u32,
    pub(crate) command_timeout: u32,
    pub(crate) write_cache: bool,
    pub(crate) serial: Option<String>,
    pub(crate) loopback: bool,
    pub(crate) iscsi: Option<IscsiSpec>,
}

impl BackstoreSpec {
    /// A backstore `name`, served by the handler of subtype `handler` from `config`: the part of
    /// tcmu-runner's `subtype/rest` after the first slash, so `("file", "/srv/disk0.img")` becomes
    /// `file//srv/disk0.img`.
    pub fn new(
        name: impl Into<String>,
        handler: impl Into<String>,
        config: impl Into<String>,
    ) -> Self {
        BackstoreSpec {
            name: name.into(),
            handler: handler.into(),
            config: config.into(),
            size: None,
            block_size: None,
            hba: None,
            max_sectors: None,
            data_area_mb: DEFAULT_DATA_AREA_MB,
            ring_mb: DEFAULT_RING_MB,
            command_timeout: DEFAULT_COMMAND_TIMEOUT,
            write_cache: true,
            serial: None,
            loopback: false,
            iscsi: None,
        }
    }

    /// The LUN's size in bytes, a multiple of the block size. By default that of the file or block
    /// device that `config` names; other handlers need it said.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// The logical block size in bytes: 512, 1024, 2048 or 4096. By default a backing block
    /// device's logical sector size, else 512.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// The HBA `user_N` to put the backstore into; by default the lowest that does not exist.
    pub fn hba(mut self, number: u32) -> Self {
        self.hba = Some(number);
        self
    }

    /// The largest transfer of one command (`hw_max_sectors`), in logical blocks. By default as
    /// many as make [`DEFAULT_TRANSFER`].
    pub fn max_sectors(mut self, blocks: u32) -> Self {
        self.max_sectors = Some(blocks);
        self
    }

    /// The limit of the memory that holds commands' data, in MiB. By default
    /// [`DEFAULT_DATA_AREA_MB`].
    pub fn data_area_mb(mut self, mebibytes: u32) -> Self {
        self.data_area_mb = mebibytes;
        self
    }

    /// The command ring's size in MiB, 1 to 8. By default [`DEFAULT_RING_MB`].
    pub fn ring_mb(mut self, mebibytes: u32) -> Self {
        self.ring_mb = mebibytes;
        self
    }

    /// After how many seconds the kernel fails a command that the daemon has not answered; 0 is
    /// never. By default [`DEFAULT_COMMAND_TIMEOUT`], which says why.
    pub fn command_timeout(mut self, seconds: u32) -> Self {
        self.command_timeout = seconds;
        self
    }

    /// Whether the LUN says that it has a write cache (`emulate_write_cache`). With one, which is
    /// the default, a write is durable after the initiator's next flush, as with a physical disk;
    /// without, every write is durable before it completes, which is slow on most storage.
    pub fn write_cache(mut self, enabled: bool) -> Self {
        self.write_cache = enabled;
        self
    }

    /// The unit serial number. By default derived from the machine, name, handler and config, so
    /// that the same backstore created again is the same disk to its users.
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// Exposes the LUN as a disk of this machine, through the loopback fabric.
    pub fn loopback(mut self) -> Self {
        self.loopback = true;
        self
    }

    /// Exposes the LUN through an iSCSI target.
    pub fn iscsi(mut self, iscsi: IscsiSpec) -> Self {
        self.iscsi = Some(iscsi);
        self
    }

    /// Checks all that can be said without looking at the machine; returns the `dev_config`.
    pub(crate) fn check(&self) -> Result<String> {
        let range = |what: &str, value: u32, low: u32, high: u32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(crate::Error::Invalid(format!(
                "bad {what} {value}: {low} to {high} are possible"
            )))
        };
        name::check_name(&self.name)?;
        let dev_config = name::dev_config(&self.handler, &self.config)?;
        if let Some(block_size) = self.block_size {
            size::check_block_size(block_size)?;
        }
        if let Some(serial) = &self.serial {
            name::check_serial(serial)?;
        }
        if let Some(blocks) = self.max_sectors {
            range("number of blocks per command", blocks, 8, 1 << 16)?;
        }
        range("data area", self.data_area_mb, 1, 1 << 20)?;
        range("command ring", self.ring_mb, 1, 8)?;
        // The kernel keeps milliseconds in a C int.
        range(
            "command timeout",
            self.command_timeout,
            0,
            i32::MAX as u32 / 1000,
        )?;
        if let Some(iscsi) = &self.iscsi {
            name::check_iqn(&iscsi.iqn)?;
        }
        Ok(dev_config)
    }
}

/// How to expose a LUN through iSCSI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiSpec {
    pub(crate) iqn: String,
    pub(crate) portal: Option<SocketAddr>,
    pub(crate) lun: Option<u16>,
}

impl IscsiSpec {
    /// At the target `iqn`, which is created if there is none yet.
    ///
    /// A new target lets every initiator in that reaches its portal (LIO's demo mode).
    pub fn new(iqn: impl Into<String>) -> Self {
        IscsiSpec {
            iqn: iqn.into(),
            portal: None,
            lun: None,
        }
    }

    /// The address and port to listen on. By default the portals that the target has, and
    /// 127.0.0.1:3260 for a new one: since a new target asks nobody for a password, letting the
    /// network in is left to be said.
    pub fn portal(mut self, portal: SocketAddr) -> Self {
        self.portal = Some(portal);
        self
    }

    /// The logical unit number, at most 255. By default the lowest free one.
    pub fn lun(mut self, lun: u16) -> Self {
        self.lun = Some(lun);
        self
    }
}

/// How to delete a backstore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Also when it is in use, and also when commands are outstanding that nobody answers.
    pub force: bool,
    /// The HBA, where several have a backstore of this name.
    pub hba: Option<u32>,
    /// Somebody has the daemon leave its commands alone for now, in one phrase. That is a use like
    /// others; with `force`, commands that wait are failed at once.
    pub held: Option<String>,
}

/// How to resize a backstore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResizeOptions {
    /// Also to a smaller size, which gives up the data beyond.
    pub shrink: bool,
    /// The HBA, where several have a backstore of this name.
    pub hba: Option<u32>,
}
