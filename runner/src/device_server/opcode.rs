//! One command of the opcode table: how its CDB looks, and what it needs.

use tcmu::scsi::cdb::LONGEST_CDB;
use tcmu::scsi::{Sense, opcode as op};

/// What runs a command. Those that differ only in the layout of their CDB share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSelect,
    ModeSense,
    StartStopUnit,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    WriteAndVerify,
    WriteAtomic,
    Verify,
    CompareAndWrite,
    OrWrite,
    SynchronizeCache,
    WriteSame,
    Unmap,
    PreFetch,
    GetLbaStatus,
    ReadDefectData10,
    ReadDefectData12,
    FormatUnit,
    Sanitize,
    ExtendedCopy,
    ReceiveCopyResults,
    ReportSupportedOpcodes,
    ReportTaskManagement,
    ReportTargetPortGroups,
    SetTargetPortGroups,
    LogSense,
    SendDiagnostic,
    ReceiveDiagnostic,
    /// The target core answers the command before it gets here. It is in the table because an
    /// initiator that asks what the logical unit supports does not care who answers.
    Kernel,
}

impl Command {
    /// All device types have it (SPC-4), and it says nothing of a medium.
    const fn is_primary(self) -> bool {
        matches!(
            self,
            Self::TestUnitReady
                | Self::RequestSense
                | Self::Inquiry
                | Self::ReportSupportedOpcodes
                | Self::ReportTaskManagement
                | Self::ReportTargetPortGroups
                | Self::SetTargetPortGroups
                | Self::Kernel
        )
    }

    /// It tells what the unit is and does, and needs no medium: it runs while one is being formatted
    /// or sanitized (SBC-3, 4.11.2 and 5.2).
    pub(super) const fn runs_while_not_ready(self) -> bool {
        matches!(
            self,
            Self::Inquiry
                | Self::RequestSense
                | Self::ReportSupportedOpcodes
                | Self::ReportTaskManagement
                | Self::ReportTargetPortGroups
        )
    }

    /// It changes the medium.
    pub(super) const fn writes(self) -> bool {
        matches!(
            self,
            Self::Write
                | Self::WriteAndVerify
                | Self::WriteAtomic
                | Self::CompareAndWrite
                | Self::OrWrite
                | Self::WriteSame
                | Self::Unmap
                | Self::FormatUnit
                | Self::Sanitize
        )
    }

    /// RECOMMENDED COMMAND TIMEOUT in seconds.
    const fn timeout(self) -> u32 {
        match self {
            Self::Read
            | Self::Write
            | Self::WriteAndVerify
            | Self::WriteAtomic
            | Self::CompareAndWrite
            | Self::OrWrite
            | Self::PreFetch
            | Self::GetLbaStatus => TRANSFER,
            Self::SynchronizeCache
            | Self::Verify
            | Self::WriteSame
            | Self::Unmap
            | Self::StartStopUnit
            | Self::SendDiagnostic
            | Self::SetTargetPortGroups
            | Self::ModeSelect
            | Self::ExtendedCopy => LONG,
            Self::FormatUnit | Self::Sanitize => WHOLE_MEDIUM,
            _ => QUICK,
        }
    }

    /// There is no data for the initiator.
    pub(super) const fn returns_nothing(self) -> bool {
        matches!(
            self,
            Self::TestUnitReady
                | Self::ModeSelect
                | Self::StartStopUnit
                | Self::SendDiagnostic
                | Self::SetTargetPortGroups
                | Self::SynchronizeCache
                | Self::PreFetch
                | Self::Verify
                | Self::ExtendedCopy
        ) || self.writes()
    }
}

/// What a command needs before the logical unit supports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// [`Features::unmap`].
    Unmap,
    /// [`Features::unmap_by_write_same`].
    UnmapByWriteSame,
    /// Not [`Features::unmap_by_write_same`].
    NoUnmapByWriteSame,
    /// [`Features::atomic_writes`].
    AtomicWrites,
    /// [`Features::block_erase`].
    BlockErase,
    /// [`Features::reservations`].
    Reservations,
    /// [`Features::report_port_groups`].
    PortGroups,
    /// [`Features::set_port_groups`].
    ExplicitPortGroups,
}

/// What the commands of a logical unit depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// The backstore unmaps.
    pub(super) unmap: bool,
    /// It can also write zeroes and unmap at once.
    pub(super) unmap_by_write_same: bool,
    /// Some writes are atomic.
    pub(super) atomic_writes: bool,
    /// The backstore gives the storage of blocks back and promises that they read as zeroes.
    pub(super) block_erase: bool,
    /// The target core serves reservations.
    pub(super) reservations: bool,
    /// The target core keeps target port groups.
    pub(super) report_port_groups: bool,
    /// Initiators may change their states.
    pub(super) set_port_groups: bool,
    /// The backstore answers the commands of a device type of its own.
    pub(super) own_type: bool,
}

/// One command.
#[derive(Debug)]
pub(super) struct Opcode {
    pub(super) command: Command,
    pub(super) opcode: u8,
    pub(super) service_action: Option<u16>,
    /// In bytes.
    pub(super) cdb_len: u8,
    /// It changes the medium.
    pub(super) writes: bool,
    /// RECOMMENDED COMMAND TIMEOUT in seconds.
    pub(super) timeout: u32,
    needs: Needs,
    /// CDB USAGE DATA (SPC-4, 6.35.3): the opcode and service action themselves, and a 1 for every
    /// other bit that may be set.
    usage: [u8; LONGEST_CDB],
}

/// Answered from memory.
const QUICK: u32 = 10;
/// Moves the data of one command.
const TRANSFER: u32 = 30;
/// May have to move much more.
const LONG: u32 = 60;
/// Writes all of the medium, however large it is: a day.
const WHOLE_MEDIUM: u32 = 24 * 60 * 60;

impl Opcode {
    /// A command without service action whose CDB goes on with `usage` after the opcode.
    pub(super) const fn new(command: Command, opcode: u8, usage: &[u8]) -> Self {
        let mut bytes = [0; LONGEST_CDB];
        bytes[0] = opcode;
        let mut at = 0;
        while at < usage.len() {
            bytes[at + 1] = usage[at];
            at += 1;
        }
        Self {
            command,
            opcode,
            service_action: None,
            cdb_len: usage.len() as u8 + 1,
            writes: command.writes(),
            timeout: command.timeout(),
            needs: Needs::Nothing,
            usage: bytes,
        }
    }

    /// With a service action, in byte 1 or, of variable length commands, in bytes 8 and 9.
    pub(super) const fn action(mut self, service_action: u16) -> Self {
        self.service_action = Some(service_action);
        if self.opcode == op::VARIABLE_LENGTH {
            let [high, low] = service_action.to_be_bytes();
            self.usage[8] = high;
            self.usage[9] = low;
        } else {
            self.usage[1] |= service_action as u8;
        }
        self
    }

    pub(super) const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    pub(super) fn is_supported(&self, features: Features) -> bool {
        if features.own_type && !self.command.is_primary() {
            return false;
        }
        match self.needs {
            Needs::Nothing => true,
            Needs::Unmap => features.unmap,
            Needs::UnmapByWriteSame => features.unmap_by_write_same,
            Needs::NoUnmapByWriteSame => !features.unmap_by_write_same,
            Needs::AtomicWrites => features.atomic_writes,
            Needs::BlockErase => features.block_erase,
            Needs::Reservations => features.reservations,
            Needs::PortGroups => features.report_port_groups,
            Needs::ExplicitPortGroups => features.set_port_groups,
        }
    }

    /// CDB USAGE DATA.
    pub(super) fn usage(&self) -> &[u8] {
        &self.usage[..self.cdb_len.into()]
    }

    /// The bytes of `cdb` that belong to the command, once no bit is set that means nothing.
    pub(super) fn check<'a>(&self, cdb: &'a [u8]) -> Result<&'a [u8], Sense> {
        let Some(cdb) = cdb.get(..self.cdb_len.into()) else {
            // Only a variable length command can be too short: its byte 7 says so.
            return Err(Sense::invalid_cdb_field(7, None));
        };
        if self.opcode == op::VARIABLE_LENGTH && cdb[7] != self.cdb_len - 8 {
            return Err(Sense::invalid_cdb_field(7, None));
        }
        // The lookup went by opcode and service action: their bits are those of the table.
        if self.has_only_known_bits(cdb) {
            return Ok(cdb);
        }
        for (at, (byte, usage)) in cdb.iter().zip(&self.usage).enumerate() {
            let wrong = byte & !usage;
            if wrong != 0 {
                let bit = 7 - wrong.leading_zeros() as u8;
                return Err(Sense::invalid_cdb_field(at as u16, Some(bit)));
            }
        }
        Ok(cdb)
    }

    /// Whether no bit is set that means nothing: for the usual lengths, in a few steps.
    #[inline]
    fn has_only_known_bits(&self, cdb: &[u8]) -> bool {
        fn fits<const N: usize>(cdb: &[u8], usage: &[u8]) -> bool {
            let bits = cdb.first_chunk::<N>().zip(usage.first_chunk::<N>());
            bits.is_some_and(|(cdb, usage)| {
                let wrong = cdb.iter().zip(usage).map(|(byte, usage)| byte & !usage);
                wrong.fold(0, |all, wrong| all | wrong) == 0
            })
        }
        match cdb.len() {
            10 => fits::<10>(cdb, &self.usage),
            16 => fits::<16>(cdb, &self.usage),
            _ => false,
        }
    }
}
