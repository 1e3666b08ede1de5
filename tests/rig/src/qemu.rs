use crate::error::Error;
use crate::guest::Guest;
use crate::kernel::Bootable;
use crate::launch::{Folders, Machine};

pub(crate) fn machine(
    _guest: &Guest<'_>,
    _bootable: &Bootable,
    _folders: &Folders,
) -> Result<Machine, Error> {
    Err(Error::missing("qemu", "choose another kernel"))
}
