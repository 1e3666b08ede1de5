//! The LUNs that a command is about.

use clap::Args;

use super::client::{Client, Lun};
use super::error::Error;

#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// The LUNs [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Their HBA user_N, if several have a LUN of such a name
    #[arg(long, value_name = "N", requires = "names")]
    hba: Option<u32>,
}

impl Wanted {
    /// The daemon's LUNs of these names; none stands for all.
    pub(super) fn find(&self, client: &Client) -> Result<Vec<Lun>, Error> {
        client.find(&self.names, self.hba)
    }
}
