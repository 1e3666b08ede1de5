//! What independent judges say of our LUNs, and how it is held against what is expected of them.
//!
//! - [`libiscsi`] reads the results of `iscsi-test-cu`;
//! - [`manifest`] is the list of what each of its tests has to come to;
//! - [`sg_io`] sends any command whatever to `/dev/sgN`.
//!
//! The tests themselves run in the guest: `tests/judges`.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod libiscsi;
pub mod manifest;
pub mod sg_io;
