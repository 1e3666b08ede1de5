//! What a logical unit is at the moment, apart from its data.

use std::cell::{Cell, RefCell};

use tcmu::scsi::inquiry::DIRECT_ACCESS_BLOCK_DEVICE;
use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{Capabilities, Fua};

use super::abort::Aborts;
use super::copy_results::Copies;
use super::error_log::ErrorLog;
use super::mode_pages::ModeValues;
use super::opcode::{Command, Features, Opcode};
use super::opcode_table;
use super::operation::{Method, Operations};
use super::range_lock::RangeLock;
use super::target_core::Surroundings;
use super::thresholds::Watch;
use super::unit_attention::{Condition, UnitAttention};
use super::{Geometry, Identity};

/// The state of a logical unit.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) identity: RefCell<Identity>,
    /// Somebody has seen the identity: a change is worth a unit attention.
    pub(super) identified: Cell<bool>,
    pub(super) attention: UnitAttention,
    /// Why the unit takes no commands that need the medium at the moment: what a FORMAT UNIT or a
    /// SANITIZE that is under way reports, with its progress.
    pub(super) not_ready: Cell<Option<Sense>>,
    /// What is being read and written.
    pub(super) ranges: RangeLock,
    pub(super) operations: Operations,
    pub(super) copies: Copies,
    /// How many copies this unit runs.
    pub(super) copies_running: Cell<u8>,
    pub(super) errors: ErrorLog,
    pub(super) aborts: Aborts,
    pub(super) watch: Watch,
    /// How the unit is exported, as far as is known.
    pub(super) surroundings: RefCell<Surroundings>,
    pub(super) mode: Cell<ModeValues>,
    pub(super) default_mode: ModeValues,
    geometry: Geometry,
    capabilities: Cell<Capabilities>,
    blocks: Cell<u64>,
    features: Cell<Features>,
}

impl Unit {
    pub(super) fn new(
        identity: Identity,
        geometry: Geometry,
        capabilities: Capabilities,
        write_cache: bool,
    ) -> Self {
        let mode = ModeValues {
            write_cache,
            ..ModeValues::default()
        };
        let unit = Self {
            identity: RefCell::new(identity),
            identified: Cell::new(false),
            attention: UnitAttention::default(),
            not_ready: Cell::new(None),
            ranges: RangeLock::default(),
            operations: Operations::default(),
            copies: Copies::default(),
            copies_running: Cell::new(0),
            errors: ErrorLog::default(),
            aborts: Aborts::default(),
            watch: Watch::default(),
            surroundings: RefCell::default(),
            mode: Cell::new(mode),
            default_mode: mode,
            geometry,
            capabilities: Cell::new(capabilities),
            blocks: Cell::new(0),
            features: Cell::new(Features {
                reservations: true,
                ..Features::default()
            }),
        };
        unit.apply(geometry.size, capabilities);
        unit
    }

    /// The command in `cdb` and the bytes that belong to it, if it may run now.
    pub(super) fn admit<'a>(&self, cdb: &'a [u8]) -> Result<(&'static Opcode, &'a [u8]), Sense> {
        let opcode = opcode_table::find(cdb, self.features())?;
        // SAM-5, 5.14: these two neither report nor clear a unit attention as CHECK CONDITION.
        if !matches!(opcode.command, Command::Inquiry | Command::RequestSense)
            && let Some(attention) = self.attention.take()
        {
            return Err(attention);
        }
        if let Some(sense) = self.not_ready.get()
            && !opcode.command.runs_while_not_ready()
            && !self.may_make_up_for_failure(opcode.command)
        {
            return Err(sense);
        }
        if opcode.writes {
            self.check_writable()?;
        }
        // What a unit refuses anyway, it refuses for that reason, whatever the fields are.
        let cdb = opcode.check(cdb)?;
        Ok((opcode, cdb))
    }

    /// Whether a command is one of those that a failed FORMAT UNIT or SANITIZE still leaves: a failed
    /// sanitize ends by another one only (SBC-3, 4.11.3).
    fn may_make_up_for_failure(&self, command: Command) -> bool {
        let failed = self.operations.failed.borrow();
        failed.as_ref().is_some_and(|operation| match command {
            Command::Sanitize => true,
            Command::FormatUnit => operation.method == Method::Format,
            _ => false,
        })
    }

    pub(super) fn check_writable(&self) -> Result<(), Sense> {
        let code = if self.capabilities().read_only {
            AdditionalSense::WRITE_PROTECTED
        } else if self.mode.get().software_write_protect {
            AdditionalSense::LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED
        } else {
            return Ok(());
        };
        Err(Sense::new(SenseKey::DataProtect, code))
    }

    pub(super) fn features(&self) -> Features {
        self.features.get()
    }

    pub(super) fn set_reservations(&self, reservations: bool) {
        self.features.set(Features {
            reservations,
            ..self.features.get()
        });
    }

    /// Whether there are target port groups to report, and whether their states can be set.
    pub(super) fn set_port_groups(&self, reported: bool, set: bool) {
        self.features.set(Features {
            report_port_groups: reported,
            set_port_groups: set,
            ..self.features.get()
        });
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities.get()
    }

    /// PERIPHERAL DEVICE TYPE.
    pub(super) fn device_type(&self) -> u8 {
        let own = self.capabilities().device_type;
        own.map_or(DIRECT_ACCESS_BLOCK_DEVICE, |own| own & 0x1f)
    }

    /// In bytes.
    pub(super) fn block_size(&self) -> u32 {
        self.geometry.block_size.get()
    }

    /// How many blocks `bytes` are, rounded down.
    pub(super) fn in_blocks(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.geometry.block_size.get())
    }

    /// 0: no limit.
    pub(super) fn max_transfer_blocks(&self) -> u32 {
        self.geometry.max_transfer_blocks
    }

    /// How many blocks the unit has.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// RETURNED LOGICAL BLOCK ADDRESS of READ CAPACITY. A unit without blocks cannot be told there
    /// from one with a single block; reads find out.
    pub(super) fn last_lba(&self) -> u64 {
        self.blocks().saturating_sub(1)
    }

    /// Sets the size in bytes and what the backstore does at this size.
    pub(super) fn resize(&self, size: u64, capabilities: Capabilities) {
        let before = self.blocks();
        self.apply(size, capabilities);
        if self.blocks() != before {
            self.attention.establish(Condition::Capacity);
        }
    }

    /// A backstore is never asked for bytes beyond its own size, whatever the LUN's.
    fn apply(&self, size: u64, capabilities: Capabilities) {
        let unmap = capabilities.unmap.is_some();
        self.capabilities.set(capabilities);
        let unmapped_reads_zeroes = capabilities.unmap.is_some_and(|unmap| unmap.reads_zeroes);
        self.features.set(Features {
            unmap,
            block_erase: unmapped_reads_zeroes && capabilities.write_zeroes,
            unmap_by_write_same: unmap && capabilities.write_zeroes,
            atomic_writes: self.atomic_limits().is_some(),
            own_type: capabilities.device_type.is_some(),
            ..self.features.get()
        });
        self.blocks.set(self.in_blocks(size.min(capabilities.size)));
    }

    /// The NAA designator of the unit, if it has one.
    pub(super) fn naa(&self) -> Option<[u8; 16]> {
        self.identity.borrow().naa()
    }

    /// Replaces the names.
    pub(super) fn set_identity(&self, identity: Identity) {
        let changed = *self.identity.borrow() != identity;
        if changed && self.identified.get() {
            self.attention.establish(Condition::InquiryData);
        }
        self.identity.replace(identity);
    }

    /// There is a volatile cache, and it is on (WCE).
    pub(super) fn write_cache(&self) -> bool {
        self.capabilities().volatile_cache && self.mode.get().write_cache
    }

    /// Whether a write has to be durable before it ends: because it says so (`fua`), or because the
    /// write cache is off.
    pub(super) fn must_be_durable(&self, fua: bool) -> bool {
        self.capabilities().volatile_cache && (fua || !self.mode.get().write_cache)
    }

    /// Whether the backstore itself makes single writes durable.
    pub(super) fn has_native_fua(&self) -> bool {
        self.capabilities().fua == Fua::Native
    }
}
