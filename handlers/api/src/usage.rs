//! How much storage an image takes.

/// The storage of an image whose parts are taken and given back as needed, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What the image takes.
    pub used: u64,
    /// How much more it could take. Others may take from the same.
    pub available: u64,
}
