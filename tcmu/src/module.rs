//! The parameters of the kernel module target_core_user.

use std::io;
use std::path::PathBuf;

use crate::attribute;

/// The folder `/sys/module/target_core_user`, which a built-in target_core_user has too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    path: PathBuf,
}

impl Module {
    /// The module described in the folder `path`.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether target_core_user is loaded or built in.
    pub fn is_loaded(&self) -> bool {
        self.path.exists()
    }

    /// Blocks or unblocks the netlink interface: while it is blocked, whatever needs an answer
    /// from a server (enable, reconfigure) fails with EAGAIN instead of waiting for it.
    ///
    /// It concerns all devices and all servers, and outlives the process that wrote it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where target_core_user is not loaded.
    pub fn block_netlink(&self, blocked: bool) -> io::Result<()> {
        let value = if blocked { "1" } else { "0" };
        attribute::write(&self.path.join("parameters/block_netlink"), value)
    }

    /// Ends every wait for an answer with EINTR: those that a dead server left behind.
    ///
    /// Events that were received before must not be answered any more: drop their
    /// [`Ticket`](crate::netlink::Ticket)s, or do this before listening.
    ///
    /// # Errors
    /// The kernel refuses with [`io::ErrorKind::ResourceBusy`] where there is a wait and the
    /// interface is not [blocked](Self::block_netlink). [`io::ErrorKind::NotFound`] where
    /// target_core_user is not loaded.
    pub fn reset_netlink(&self) -> io::Result<()> {
        attribute::write(&self.path.join("parameters/reset_netlink"), "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn writes_the_parameters_of_a_loaded_module() {
        let root = tempfile::tempdir().unwrap();
        let parameters = root.path().join("target_core_user/parameters");
        let module = Module::at(root.path().join("target_core_user"));
        assert!(!module.is_loaded());
        assert_eq!(
            module.block_netlink(true).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );

        fs::create_dir_all(&parameters).unwrap();
        for parameter in ["block_netlink", "reset_netlink"] {
            fs::write(parameters.join(parameter), "").unwrap();
        }
        let read = |parameter: &str| fs::read_to_string(parameters.join(parameter)).unwrap();
        assert!(module.is_loaded());
        module.block_netlink(true).unwrap();
        assert_eq!(read("block_netlink"), "1");
        module.block_netlink(false).unwrap();
        assert_eq!(read("block_netlink"), "0");
        module.reset_netlink().unwrap();
        assert_eq!(read("reset_netlink"), "1");
    }
}
