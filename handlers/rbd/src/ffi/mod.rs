//! Ceph's libraries, as far as this handler uses them.
//!
//! The only unsafe code of the crate. What it offers is safe: handles live as long as the libraries may
//! use them, and are freed once; every request's memory lives until the library has called back (see
//! [`tcmu_handler::external`]); strings and lists that the libraries allocate are copied and freed at
//! once.

mod cluster;
mod image;
mod library;
mod request;
mod watch;

pub(crate) use cluster::Cluster;
pub(crate) use image::{Image, ZeroMode};
pub(crate) use library::Library;
pub(crate) use request::Request;
pub(crate) use watch::Watch;

use std::ffi::{CStr, c_int};
use std::io;

/// The library's answer: a number that is no error, or the negative of an error number, which on Linux
/// is Linux's.
fn answer(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(result)
    }
}

/// The string that a library has put into `bytes`.
fn text(bytes: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(bytes).map(CStr::to_string_lossy);
    text.unwrap_or_default().into_owned()
}
