//! Side-by-side benchmark of the runner and its peers inside the rig.
//!
//! The host's side boots a kernel and runs this same program in it; the guest's side sets all
//! candidates up on one image, measures them in turn with fio, and writes what it saw, line by
//! line; the report turns the lines into a table, plots, and a verdict on each target. [`crash`]
//! does the same for what a daemon's end costs initiators.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod command;
pub mod crash;
pub mod engine;
pub mod fio;
pub mod guest;
pub mod host;
pub mod plan;
pub mod record;
pub mod report;
pub mod stats;
pub mod targets;
