//! The mode pages and their values (SPC-4, 7.5; SBC-3, 6.5).

use tcmu::scsi::mode::{
    Caching, Control, ControlExtension, D_SENSE, DEXCPT, DRA, GLTSD, IALUAE,
    InformationalExceptions, PageControl, ReadWriteErrorRecovery, SPF, SWP,
    UNRESTRICTED_REORDERING, WCE, page,
};
use zerocopy::IntoBytes;

use super::thresholds::{self, Thresholds};
use super::unit::Unit;

/// What MODE SELECT can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ModeValues {
    /// WCE.
    pub(super) write_cache: bool,
    /// D_SENSE.
    pub(super) descriptor_sense: bool,
    /// SWP.
    pub(super) software_write_protect: bool,
    pub(super) thresholds: Thresholds,
}

/// The codes and subpage codes of the pages, in the order in which MODE SENSE returns all of them.
pub(super) const PAGES: [(u8, u8); 6] = [
    (page::READ_WRITE_ERROR_RECOVERY, 0),
    (page::CACHING, 0),
    (page::CONTROL, 0),
    (page::CONTROL, page::CONTROL_EXTENSION),
    (page::INFORMATIONAL_EXCEPTIONS_CONTROL, 0),
    (
        page::INFORMATIONAL_EXCEPTIONS_CONTROL,
        page::LOGICAL_BLOCK_PROVISIONING,
    ),
];

impl Unit {
    /// The page with these codes, if there is one.
    pub(super) fn mode_page(
        &self,
        page_code: u8,
        subpage: u8,
        control: PageControl,
    ) -> Option<Vec<u8>> {
        let values = match control {
            PageControl::Default => self.default_mode,
            _ => self.mode.get(),
        };
        let has_cache = self.capabilities().volatile_cache;
        let changeable = control == PageControl::Changeable;
        if subpage != 0 {
            return self.mode_subpage(page_code, subpage, values, changeable);
        }
        Some(match page_code {
            page::READ_WRITE_ERROR_RECOVERY => recovery().as_bytes().to_vec(),
            page::CACHING if changeable => caching(has_cache, false).as_bytes().to_vec(),
            page::CACHING => caching(has_cache && values.write_cache, true)
                .as_bytes()
                .to_vec(),
            page::CONTROL if changeable => {
                let all = ModeValues {
                    write_cache: true,
                    descriptor_sense: true,
                    software_write_protect: true,
                    ..ModeValues::default()
                };
                control_page(all, false).as_bytes().to_vec()
            }
            page::CONTROL => control_page(values, true).as_bytes().to_vec(),
            page::INFORMATIONAL_EXCEPTIONS_CONTROL => exceptions(!changeable).as_bytes().to_vec(),
            _ => return None,
        })
    }
}

impl Unit {
    fn mode_subpage(
        &self,
        page_code: u8,
        subpage: u8,
        values: ModeValues,
        changeable: bool,
    ) -> Option<Vec<u8>> {
        match (page_code, subpage) {
            (page::CONTROL, page::CONTROL_EXTENSION) => {
                let implicit = self.surroundings.borrow().implicit();
                let page = control_extension(implicit && !changeable);
                Some(page.as_bytes().to_vec())
            }
            (page::INFORMATIONAL_EXCEPTIONS_CONTROL, page::LOGICAL_BLOCK_PROVISIONING)
                if self.has_thresholds() =>
            {
                let page = if changeable {
                    thresholds::changeable_page()
                } else {
                    thresholds::page(values.thresholds)
                };
                Some(page.as_bytes().to_vec())
            }
            _ => None,
        }
    }
}

fn recovery() -> ReadWriteErrorRecovery {
    ReadWriteErrorRecovery {
        page_code: page::READ_WRITE_ERROR_RECOVERY,
        page_length: page_length::<ReadWriteErrorRecovery>(),
        fields: [0; 10],
    }
}

/// `fixed` adds the values that cannot be changed.
fn caching(write_cache: bool, fixed: bool) -> Caching {
    Caching {
        page_code: page::CACHING,
        page_length: page_length::<Caching>(),
        flags: if write_cache { WCE } else { 0 },
        prefetch: [0; 9],
        // Whether anything below reads ahead is not for an initiator to know.
        read_ahead: if fixed { DRA } else { 0 },
        segments: [0; 7],
    }
}

/// `fixed` adds the values that cannot be changed.
fn control_page(values: ModeValues, fixed: bool) -> Control {
    let mut page = Control {
        page_code: page::CONTROL,
        page_length: page_length::<Control>(),
        flags: 0,
        queue: 0,
        protection: 0,
        tas: 0,
        obsolete: 0.into(),
        busy_timeout: 0.into(),
        self_test_time: 0.into(),
    };
    if values.descriptor_sense {
        page.flags |= D_SENSE;
    }
    if values.software_write_protect {
        page.protection |= SWP;
    }
    if fixed {
        page.flags |= GLTSD;
        page.queue = UNRESTRICTED_REORDERING;
        // TAS: the kernel aborts commands, and by default (attrib/emulate_tas) says so.
        page.tas = 0x40;
        page.busy_timeout = u16::MAX.into();
    }
    page
}

fn control_extension(implicit_alua: bool) -> ControlExtension {
    ControlExtension {
        page_code: SPF | page::CONTROL,
        subpage_code: page::CONTROL_EXTENSION,
        page_length: (size_of::<ControlExtension>() as u16 - 4).into(),
        flags: if implicit_alua { IALUAE } else { 0 },
        priority: 0,
        max_sense_length: 0,
        reserved: [0; 25],
    }
}

fn exceptions(fixed: bool) -> InformationalExceptions {
    InformationalExceptions {
        page_code: page::INFORMATIONAL_EXCEPTIONS_CONTROL,
        page_length: page_length::<InformationalExceptions>(),
        flags: if fixed { DEXCPT } else { 0 },
        method: 0,
        interval: 0.into(),
        report_count: 0.into(),
    }
}

/// PAGE LENGTH of page `T`.
const fn page_length<T>() -> u8 {
    size_of::<T>() as u8 - 2
}
