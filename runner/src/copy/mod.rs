//! Copies between the LUNs of a runner (EXTENDED COPY).
//!
//! The LUNs live on several reactors, each on one. A LUN that copies asks the other through a
//! [`Mailer`](crate::reactor::Mailer) and waits for its answer, as it would for a disk: no LUN touches
//! another's state, and no reactor waits. The [`Directory`] knows where they are, and [`Access`] who
//! may reach whom.

mod access;
mod configfs_access;
mod directory;

pub use access::Access;
pub(crate) use configfs_access::ConfigfsAccess;
pub use directory::Directory;
pub(crate) use directory::RemoteCopy;
