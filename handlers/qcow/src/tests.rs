//! The engine against qemu's, against power cuts, failing files and hostile images.

mod allowed;
mod contract;
mod creating;
mod damage;
mod differential;
mod faults;
mod hostile;
mod late;
mod locking;
mod mirror;
mod model;
mod nbd;
mod opening;
mod ordering;
mod power_cut;
mod qemu;
mod resizing;
mod snapshots;
mod variants;
mod workload;

use std::path::Path;

use tcmu_handler::{Handler, OpenRequest, Result};

use crate::{QcowHandler, QcowImage};

/// The configuration string of a path.
fn config(path: &Path, options: &str) -> String {
    format!("{}{options}", path.to_str().unwrap())
}

fn open(path: &Path, options: &str, size: u64) -> Result<QcowImage> {
    QcowHandler.open(&OpenRequest {
        config: config(path, options).parse()?,
        size,
        block_size: 512,
    })
}
