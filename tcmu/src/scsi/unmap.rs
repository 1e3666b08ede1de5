//! The UNMAP parameter list (SBC-3, 5.25.2).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the list begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnmapHeader {
    /// UNMAP DATA LENGTH: the bytes that follow this field.
    pub data_length: U16,
    /// UNMAP BLOCK DESCRIPTOR DATA LENGTH in bytes.
    pub descriptors_length: U16,
    reserved: U32,
}

/// UNMAP block descriptor: a range to be unmapped.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnmapDescriptor {
    /// UNMAP LOGICAL BLOCK ADDRESS.
    pub lba: U64,
    /// NUMBER OF LOGICAL BLOCKS; 0 is not an error.
    pub blocks: U32,
    reserved: U32,
}

const _: () = {
    assert!(size_of::<UnmapHeader>() == 8);
    assert!(size_of::<UnmapDescriptor>() == 16);
};
