//! Who a logical unit says that it is.

use tcmu::scsi::inquiry::ascii_field;
use tcmu::scsi::vpd::naa_registered_extended;

/// OpenFabrics' IEEE company id, which LIO makes its NAA designators with.
const COMPANY_ID: u32 = 0x00_1405;

/// The names of a logical unit, as an administrator sets them.
///
/// The defaults are those of the C tcmu-runner: host tools, such as the device table of
/// multipath-tools, know LUNs from user space by vendor and product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// PRODUCT SERIAL NUMBER, from LIO's `wwn/vpd_unit_serial`; empty while there is none. The NAA
    /// designator is made of its hexadecimal digits.
    pub serial: String,
    /// The backstore's name, for the log, and for identification while there is no serial number.
    pub name: String,
    /// T10 VENDOR IDENTIFICATION, at most 8 characters; by default `LIO-ORG`.
    pub vendor: Option<String>,
    /// PRODUCT IDENTIFICATION, at most 16 characters; by default `TCMU device`.
    pub product: Option<String>,
    /// PRODUCT REVISION LEVEL, at most 4 characters; by default `0002`.
    pub revision: Option<String>,
}

impl Identity {
    /// The NAA designator of the logical unit, if it has a serial number.
    pub(super) fn naa(&self) -> Option<[u8; 16]> {
        let serial = Some(&self.serial).filter(|serial| !serial.is_empty())?;
        Some(naa_registered_extended(COMPANY_ID, serial))
    }

    pub(super) fn vendor_field(&self) -> [u8; 8] {
        ascii_field(self.vendor.as_deref().unwrap_or("LIO-ORG"))
    }

    pub(super) fn product(&self) -> &str {
        self.product.as_deref().unwrap_or("TCMU device")
    }

    pub(super) fn product_field(&self) -> [u8; 16] {
        ascii_field(self.product())
    }

    pub(super) fn revision_field(&self) -> [u8; 4] {
        ascii_field(self.revision.as_deref().unwrap_or("0002"))
    }
}
