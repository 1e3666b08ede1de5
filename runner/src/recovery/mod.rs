//! What a daemon leaves to its successor, and what that makes of it.
//!
//! Each LUN has an in-flight table ([`tcmu::ring::recovery`]) in a file of its own in /run, so a
//! daemon that follows one that was killed goes on with the very commands that were in flight. If
//! the same commands are in flight again and again when the daemon dies, [`CrashLoop`] finds out
//! whose they are and takes that LUN offline.

mod crash_loop;
mod offline;
mod tables;

pub(crate) use self::crash_loop::{CrashLoop, TRIAL, Verdict};
pub(crate) use self::offline::Offline;
pub(crate) use self::tables::{Found, Tables};
