//! Deleting a backstore and all that exposes it.

use std::fs;
use std::io;
use std::time::Duration;

use crate::backstore::Place;
use crate::change::Change;
use crate::error::{Error, Result};
use crate::export::LunPlace;
use crate::spec::DeleteOptions;
use crate::tree::{Guard, Tree};
use crate::{daemon, iscsi, loopback};

/// How long a disk's last users may take to go: udev looks at a disk for a moment when something
/// changed.
const LINGER: Duration = Duration::from_secs(3);

/// The target port group (ALUA) that every backstore has.
pub(crate) const DEFAULT_PORT_GROUP: &str = "default_tg_pt_gp";

/// With no daemon, or one that is to leave the LUN alone, nobody will answer: how long a command may
/// stay before it is failed.
const UNSERVED_PATIENCE: Duration = Duration::from_millis(200);

/// Says how a LUN is deleted whose commands nobody answers, where that was not tried.
fn advise_force(error: Error, name: &str, options: &DeleteOptions) -> Error {
    match error {
        Error::TimedOut {
            what,
            seconds,
            note,
        } if !options.force => Error::TimedOut {
            what,
            seconds,
            note: format!(
                "{note}. If its commands are stuck for good, `tcmuctl delete --force {name}` fails \
                 them and deletes it"
            ),
        },
        error => error,
    }
}

impl Tree {
    /// Deletes a backstore: its LUNs on any fabric, targets that [`Tree::create`] made and that
    /// are empty now, and the backstore itself.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Ambiguous`]; [`Error::InUse`], which
    /// [`DeleteOptions::force`] overrides; [`Error::TimedOut`] and [`Error::Kernel`]. Deleting
    /// again goes on where a failure stopped it.
    pub fn delete(&self, name: &str, options: &DeleteOptions) -> Result<()> {
        self.require_root()?;
        self.check_interrupt()?;
        // Found before it is locked: what is not in the tree is no name to make a lock file of.
        self.find(name, options.hba)?;
        let _lock = self.lock_backstore(name)?;
        let place = self.find(name, options.hba)?;
        if !options.force {
            self.check_unused(&place, options)?;
        }
        let guard = if options.held.is_some() || daemon::find(&self.roots).is_none() {
            Guard::Ring {
                backstore: place.path.clone(),
                patience: UNSERVED_PATIENCE,
            }
        } else if options.force {
            Guard::Ring {
                backstore: place.path.clone(),
                patience: self.time_limit,
            }
        } else {
            Guard::Bounded
        };
        for lun in self.lun_places_of(&place.path)? {
            let _lock = self.lock_target(&lun.target_name())?;
            self.remove_lun(&lun, &guard)
                .map_err(|error| advise_force(error, name, options))?;
            self.remove_target_if_ours(&lun)?;
        }
        // The kernel removes the default one with the backstore, and those that people made not.
        for group in self.folders(&place.path.join("alua"))? {
            if !group.ends_with(DEFAULT_PORT_GROUP) {
                self.apply_guarded(Change::RemoveDir(group), &Guard::Bounded)?;
            }
        }
        self.apply_guarded(Change::RemoveDir(place.path.clone()), &Guard::Netlink)?;
        let hba = place.path.parent().unwrap_or(&place.path).to_owned();
        if self.folders(&hba)?.is_empty() {
            let removal = Change::RemoveDir(hba);
            match self.attempt(&removal, &Guard::Bounded)? {
                Ok(()) => {}
                // Somebody has put another backstore into it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(e) => return Err(Error::kernel(removal.to_string(), e)),
            }
        }
        Ok(())
    }

    fn check_unused(&self, place: &Place, options: &DeleteOptions) -> Result<()> {
        let mut users = Vec::new();
        let unused = self.poll(&format!("the users of {}", place.name), LINGER, || {
            users = self.users(place)?;
            users.extend(options.held.clone());
            let lasting = users.iter().any(|user| !user.starts_with("process "));
            // Only processes come and go by themselves.
            Ok((users.is_empty() || lasting).then_some(()))
        })?;
        if unused.is_some() && users.is_empty() {
            return Ok(());
        }
        Err(Error::InUse {
            name: place.name.clone(),
            users,
        })
    }

    /// Who uses a backstore, one phrase each.
    fn users(&self, place: &Place) -> Result<Vec<String>> {
        let mut users = Vec::new();
        for export in self.summary(place)?.exports {
            if let Some(disk) = &export.block_device {
                users.extend(self.disk_users(disk)?);
            }
            for initiator in &export.initiators {
                users.push(format!("{initiator} is logged in to {}", export.target));
            }
        }
        Ok(users)
    }

    /// Takes a LUN away from its target, and from the ACLs that map it.
    fn remove_lun(&self, lun: &LunPlace, guard: &Guard) -> Result<()> {
        for acl in self.folders(&lun.tpg.join("acls"))? {
            for mapped in self.folders(&acl)? {
                if let Some((link, goal)) = self.link_in(&mapped)?
                    && goal == lun.lun
                {
                    self.apply_guarded(Change::Unlink(link), guard)?;
                    self.apply_guarded(Change::RemoveDir(mapped), &Guard::Bounded)?;
                }
            }
        }
        self.apply_guarded(Change::Unlink(lun.link.clone()), guard)?;
        self.apply_guarded(Change::RemoveDir(lun.lun.clone()), &Guard::Bounded)
    }

    /// Removes a target that we made once it has no LUNs left.
    fn remove_target_if_ours(&self, lun: &LunPlace) -> Result<()> {
        let mark = self.mark(&lun.fabric, &lun.target_name());
        if !mark.exists() || !self.names(&lun.tpg.join("lun"))?.is_empty() {
            return Ok(());
        }
        match lun.fabric.as_str() {
            loopback::FABRIC => self.remove_loopback_target(&lun.target, &lun.tpg)?,
            iscsi::FABRIC => self.remove_iscsi_target(&lun.target, &lun.tpg)?,
            _ => return Ok(()),
        }
        fs::remove_file(&mark).map_err(|e| Error::kernel(format!("remove {}", mark.display()), e))
    }
}
