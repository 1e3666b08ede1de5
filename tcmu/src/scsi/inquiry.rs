//! Standard INQUIRY data (SPC-4, 6.6.2).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PERIPHERAL DEVICE TYPE of a direct access block device (SBC).
pub const DIRECT_ACCESS_BLOCK_DEVICE: u8 = 0x00;
/// VERSION: SPC-4.
pub const VERSION_SPC4: u8 = 0x06;
/// RESPONSE DATA FORMAT: the one that SPC-4 defines.
pub const RESPONSE_DATA_FORMAT: u8 = 0x02;
/// 3PC in [`Standard::protection`]: third-party copy commands.
pub const THIRD_PARTY_COPY: u8 = 0x08;
/// TPGS in [`Standard::protection`]: target port groups change their state by themselves.
pub const TPGS_IMPLICIT: u8 = 0x10;
/// TPGS in [`Standard::protection`]: SET TARGET PORT GROUPS changes their state.
pub const TPGS_EXPLICIT: u8 = 0x20;
/// MULTIP in [`Standard::enclosure`]: there are several ports.
pub const MULTIP: u8 = 0x10;
/// CMDQUE in [`Standard::command_management`]: several commands at once.
pub const CMDQUE: u8 = 0x02;

/// Version descriptors (SPC-4, 6.6.2, table 139), without claiming a revision.
pub mod version_descriptor {
    /// SAM-5.
    pub const SAM_5: u16 = 0x00a0;
    /// SPC-4.
    pub const SPC_4: u16 = 0x0460;
    /// SBC-3.
    pub const SBC_3: u16 = 0x04c0;
}

/// Standard INQUIRY data.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Standard {
    /// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE.
    pub peripheral: u8,
    /// RMB in bit 7.
    pub removable: u8,
    /// VERSION.
    pub version: u8,
    /// NORMACA, HISUP, RESPONSE DATA FORMAT.
    pub format: u8,
    /// ADDITIONAL LENGTH: the bytes that follow this one.
    pub additional_length: u8,
    /// SCCS, TPGS, 3PC, PROTECT.
    pub protection: u8,
    /// ENCSERV, MULTIP.
    pub enclosure: u8,
    /// CMDQUE.
    pub command_management: u8,
    /// T10 VENDOR IDENTIFICATION, padded by spaces.
    pub vendor: [u8; 8],
    /// PRODUCT IDENTIFICATION, padded by spaces.
    pub product: [u8; 16],
    /// PRODUCT REVISION LEVEL, padded by spaces.
    pub revision: [u8; 4],
    vendor_specific: [u8; 20],
    spi: u8,
    reserved: u8,
    /// VERSION DESCRIPTORs; 0 in those that are not used.
    pub version_descriptors: [U16; 8],
    reserved2: [u8; 22],
}

impl Standard {
    /// The data of a disk with the given identification.
    pub fn disk(vendor: [u8; 8], product: [u8; 16], revision: [u8; 4]) -> Self {
        let mut version_descriptors = [U16::ZERO; 8];
        version_descriptors[0] = version_descriptor::SAM_5.into();
        version_descriptors[1] = version_descriptor::SPC_4.into();
        version_descriptors[2] = version_descriptor::SBC_3.into();
        Self {
            peripheral: DIRECT_ACCESS_BLOCK_DEVICE,
            removable: 0,
            version: VERSION_SPC4,
            format: RESPONSE_DATA_FORMAT,
            additional_length: size_of::<Self>() as u8 - 5,
            protection: 0,
            enclosure: 0,
            command_management: CMDQUE,
            vendor,
            product,
            revision,
            vendor_specific: [0; 20],
            spi: 0,
            reserved: 0,
            version_descriptors,
            reserved2: [0; 22],
        }
    }

    /// Makes them the data of a device of another type, without claiming a standard for the type.
    pub fn set_device_type(&mut self, device_type: u8) {
        self.peripheral = device_type;
        self.version_descriptors[2] = U16::ZERO;
    }
}

/// `text` as a left-aligned ASCII field (SPC-4, 4.3.1): cut or padded by spaces to `N` bytes, with
/// everything that is not printable replaced by a space.
pub fn ascii_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        if from.is_ascii_graphic() {
            *to = from;
        }
    }
    field
}

const _: () = assert!(size_of::<Standard>() == 96);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_standard_puts_them() {
        let data = Standard::disk(
            ascii_field("LIO-ORG"),
            ascii_field("disk"),
            ascii_field("00025"),
        );
        let bytes = data.as_bytes();
        assert_eq!(bytes[..8], [0, 0, 6, 2, 91, 0, 0, 2]);
        assert_eq!(&bytes[8..36], b"LIO-ORG disk            0002");
        assert_eq!(bytes[58..66], [0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0, 0]);
    }

    #[test]
    fn ascii_fields_hold_printable_characters_only() {
        assert_eq!(&ascii_field::<8>("a\0b\u{e9}c"), b"a b  c  ");
    }
}
