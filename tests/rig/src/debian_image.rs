use crate::error::Error;
use crate::kernel::Bootable;

pub(crate) fn cached() -> Result<Option<Bootable>, Error> {
    Ok(None)
}
