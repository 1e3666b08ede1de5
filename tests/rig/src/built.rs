//! Our own User-mode Linux kernel, in the cache.

use std::path::Path;

use crate::cache;
use crate::error::Error;
use crate::kernel::{Bootable, Kernel};

/// What the guests need of the kernel.
const CONFIG: &str = include_str!("../kernel/uml.config");

fn recipe() -> String {
    cache::fingerprint(&[CONFIG])
}

/// The newest one that was built from this recipe.
pub(crate) fn cached() -> Result<Option<Bootable>, Error> {
    Ok(cache::newest("uml-", &recipe())?.map(|dir| bootable(&dir)))
}

fn bootable(dir: &Path) -> Bootable {
    Bootable {
        kernel: Kernel::UmlBuilt,
        image: dir.join("linux"),
        modules_dir: Some(dir.join("lib/modules")),
    }
}
