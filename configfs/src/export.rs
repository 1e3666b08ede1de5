//! Where LUNs are exposed: any fabric's `target/<fabric>/<wwn>/tpgt_N/lun/lun_N/<link>`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::change::Change;
use crate::error::Result;
use crate::tree::{Guard, Tree};
use crate::undo::Undo;
use crate::{iscsi, loopback};

/// The name of the links that we make from a LUN to its backstore. The kernel lets it be anything
/// but the name of one of the LUN's attributes.
const LINK: &str = "storage";

/// One LUN of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Export {
    /// The fabric: `loopback`, `iscsi`, or any other that LIO has.
    pub fabric: String,
    /// The target's name: its IQN or NAA identifier.
    pub target: String,
    /// The target portal group's tag.
    pub tpg: u16,
    /// The logical unit number.
    pub lun: u64,
    /// iSCSI: where the target listens, as `address:port`.
    pub portals: Vec<String>,
    /// iSCSI: the initiators that are logged in to the target.
    pub initiators: Vec<String>,
    /// Loopback: the SCSI address `host:channel:target:lun`.
    pub scsi_address: Option<String>,
    /// Loopback: the disk of this machine, such as `/dev/sda`.
    pub block_device: Option<PathBuf>,
}

/// An export's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LunPlace {
    pub(crate) fabric: String,
    /// `target/<fabric>/<wwn>`
    pub(crate) target: PathBuf,
    /// `…/tpgt_N`
    pub(crate) tpg: PathBuf,
    /// `…/lun/lun_N`
    pub(crate) lun: PathBuf,
    /// `…/<link>`
    pub(crate) link: PathBuf,
    /// The backstore that the link leads to.
    pub(crate) backstore: PathBuf,
}

impl LunPlace {
    /// The target's name.
    pub(crate) fn target_name(&self) -> String {
        self.target
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

/// The number in `prefix_N`.
fn number_after<T: std::str::FromStr>(path: &Path, prefix: &str) -> Option<T> {
    path.file_name()?
        .to_str()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}

impl Tree {
    /// Every LUN of every fabric that leads to a backstore.
    pub(crate) fn lun_places(&self) -> Result<Vec<LunPlace>> {
        self.lun_places_where(|_| true)
    }

    /// Every LUN of every fabric that leads to the backstore in this folder. The links of all others,
    /// of which there may be hundreds, are not followed.
    pub(crate) fn lun_places_of(&self, backstore: &Path) -> Result<Vec<LunPlace>> {
        // The last two, `user_N/NAME`, tell backstores apart.
        let hba = backstore.parent().and_then(Path::file_name);
        let end: PathBuf = hba.into_iter().chain(backstore.file_name()).collect();
        let mut places = self.lun_places_where(|goal| goal.ends_with(&end))?;
        places.retain(|place| place.backstore == backstore);
        Ok(places)
    }

    /// Every LUN whose link has a text that is `wanted`.
    fn lun_places_where(&self, wanted: impl Fn(&Path) -> bool) -> Result<Vec<LunPlace>> {
        let mut places = Vec::new();
        let root = self.roots.configfs.join("target");
        for fabric_name in self.names(&root)? {
            if matches!(fabric_name.as_str(), "core" | "version" | "dbroot") {
                continue;
            }
            for target in self.folders(&root.join(&fabric_name))? {
                for tpg in self.folders(&target)? {
                    if number_after::<u16>(&tpg, "tpgt_").is_none() {
                        continue;
                    }
                    for lun in self.folders(&tpg.join("lun"))? {
                        let mut links = self.links(&lun)?.into_iter();
                        let leads_there =
                            |link: &PathBuf| link.read_link().is_ok_and(|goal| wanted(&goal));
                        if let Some(link) = links.find(leads_there)
                            && let Ok(backstore) = link.canonicalize()
                        {
                            places.push(LunPlace {
                                fabric: fabric_name.clone(),
                                target: target.clone(),
                                tpg: tpg.clone(),
                                lun,
                                link,
                                backstore,
                            });
                        }
                    }
                }
            }
        }
        Ok(places)
    }

    /// Every export, with the folder of the backstore that it leads to.
    pub(crate) fn all_exports(&self) -> Result<Vec<(PathBuf, Export)>> {
        self.describe_exports(self.lun_places()?)
    }

    /// As [`Tree::all_exports`], of the one backstore in this folder: with hundreds of others, that is
    /// much less to read.
    pub(crate) fn exports_of(&self, backstore: &Path) -> Result<Vec<(PathBuf, Export)>> {
        self.describe_exports(self.lun_places_of(backstore)?)
    }

    fn describe_exports(&self, places: Vec<LunPlace>) -> Result<Vec<(PathBuf, Export)>> {
        let described = places.into_iter().map(|place| {
            let lun = number_after(&place.lun, "lun_").unwrap_or(0);
            let mut export = Export {
                fabric: place.fabric.clone(),
                target: place.target_name(),
                tpg: number_after(&place.tpg, "tpgt_").unwrap_or(0),
                lun,
                portals: Vec::new(),
                initiators: Vec::new(),
                scsi_address: None,
                block_device: None,
            };
            match place.fabric.as_str() {
                loopback::FABRIC => {
                    export.scsi_address = self.scsi_address(&place.tpg, lun);
                    export.block_device = export
                        .scsi_address
                        .as_deref()
                        .and_then(|address| self.disk_at(address));
                }
                iscsi::FABRIC => {
                    export.portals = self.names(&place.tpg.join("np"))?;
                    export.initiators = self.initiators(&place.tpg)?;
                }
                _ => {}
            }
            Ok((place.backstore, export))
        });
        described.collect()
    }

    /// The symbolic link in a LUN's folder, and where it leads.
    pub(crate) fn link_in(&self, folder: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
        let mut links = self.links(folder)?.into_iter();
        Ok(links.find_map(|link| link.canonicalize().ok().map(|goal| (link, goal))))
    }

    /// Makes `lun/lun_N` below a target portal group and links it to a backstore, which makes the
    /// kernel offer it.
    pub(crate) fn link_lun(
        &self,
        undo: &mut Undo<'_>,
        tpg: &Path,
        lun: u64,
        backstore: &Path,
    ) -> Result<()> {
        let folder = tpg.join(format!("lun/lun_{lun}"));
        undo.make_dir(&folder, Guard::Bounded)?;
        let link = folder.join(LINK);
        // Loopback scans the LUN at once, so this waits for the daemon to serve its first commands.
        let guard = Guard::Ring {
            backstore: backstore.to_owned(),
            patience: self.time_limit,
        };
        undo.push(Change::Unlink(link.clone()), self.hasty(backstore));
        let linked = self.apply_guarded(Change::Link(backstore.to_owned(), link.clone()), &guard);
        if linked.is_err() && !link.is_symlink() {
            undo.forget_last();
        }
        linked
    }
}
