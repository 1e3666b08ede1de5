//! Creating a backstore and exposing it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::backstore::{Backstore, Place};
use crate::change::Change;
use crate::error::{Error, Result};
use crate::spec::{BackstoreSpec, DEFAULT_TRANSFER};
use crate::tree::{Guard, Tree};
use crate::undo::Undo;
use crate::{daemon, identity, iscsi, loopback, size};

/// A specification with all defaults filled in.
pub(crate) struct Settled<'a> {
    spec: &'a BackstoreSpec,
    dev_config: String,
    size: u64,
    block_size: u32,
    max_sectors: u32,
    serial: String,
}

impl Tree {
    /// Creates a backstore, exposes it as the specification says, and waits until it can be used.
    /// If a step fails, those before it are undone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a specification that cannot be meant, [`Error::Exists`],
    /// [`Error::NoDaemon`], [`Error::NoHandler`], [`Error::NoModule`], [`Error::Refused`] with the daemon's verdict,
    /// [`Error::TimedOut`] and [`Error::NoDisk`] where the daemon does not answer, and
    /// [`Error::Leftovers`] around any of these if undoing failed as well.
    pub fn create(&self, spec: &BackstoreSpec) -> Result<Backstore> {
        let settled = self.settle(spec)?;
        self.prepare()?;
        self.check_daemon(&spec.handler)?;
        let _lock = self.lock_backstore(&spec.name)?;
        if let Some(place) = self
            .places()?
            .into_iter()
            .find(|place| place.name == spec.name)
        {
            return Err(Error::Exists {
                name: place.name,
                hba: place.hba,
            });
        }
        let mut undo = Undo::new(self);
        match self.create_steps(&settled, &mut undo) {
            Ok(backstore) => {
                undo.keep();
                Ok(backstore)
            }
            Err(error) => Err(undo.give_up(error)),
        }
    }

    /// Refuses what no daemon would serve.
    pub(crate) fn check_daemon(&self, handler: &str) -> Result<()> {
        if !self.daemon_check {
            return Ok(());
        }
        if daemon::find(&self.roots).is_none() {
            return Err(Error::NoDaemon);
        }
        match daemon::handlers_without(&self.roots, handler) {
            Some(known) => Err(Error::NoHandler {
                handler: handler.to_owned(),
                known: known.join(", "),
            }),
            None => Ok(()),
        }
    }

    /// Checks a specification and fills in what it leaves open.
    pub(crate) fn settle<'a>(&self, spec: &'a BackstoreSpec) -> Result<Settled<'a>> {
        let dev_config = spec.check()?;
        // Only the file handler's configuration is known to be a path.
        let path = if spec.handler == "file" {
            size::config_path(&spec.config)
        } else {
            None
        };
        let backing = match path {
            Some(path) if spec.size.is_none() || spec.block_size.is_none() => {
                // With the size given, the daemon may well see what we cannot.
                size::probe(&self.roots, path)
                    .or_else(|e| spec.size.map_or(Err(e), |_| Ok(None)))?
            }
            _ => None,
        };
        let block_size = spec
            .block_size
            .or(backing.and_then(|b| b.sector))
            .unwrap_or(size::DEFAULT_BLOCK_SIZE);
        size::check_block_size(block_size)?;
        let size = match (spec.size.or(backing.map(|b| b.size)), path) {
            (Some(size), _) => size,
            (None, Some(path)) => {
                return Err(Error::Invalid(format!(
                    "say the LUN's --size: there is no file or block device {} to take it from",
                    path.display()
                )));
            }
            (None, None) => {
                return Err(Error::Invalid(format!(
                    "say the LUN's --size: it cannot be told from the config {dev_config}"
                )));
            }
        };
        size::check_size(size, block_size)?;
        let serial = spec
            .serial
            .clone()
            .unwrap_or_else(|| identity::serial(&self.roots, &spec.name, &dev_config));
        let max_sectors = spec.max_sectors.unwrap_or(DEFAULT_TRANSFER / block_size);
        Ok(Settled {
            spec,
            dev_config,
            size,
            block_size,
            max_sectors,
            serial,
        })
    }

    fn create_steps(&self, settled: &Settled<'_>, undo: &mut Undo<'_>) -> Result<Backstore> {
        let place = self.make_backstore(settled, undo)?;
        self.configure(settled, &place.path)?;
        self.enable(settled, &place.path)?;
        let mut made = Vec::new();
        if settled.spec.loopback {
            let (target, address) = self.attach_loopback(undo, &place.path, &settled.serial)?;
            self.await_disk(&address)?;
            made.push((loopback::FABRIC, target));
        }
        // The lock keeps a target from being removed, as empty, while a LUN is being added.
        let mut lock = None;
        if let Some(spec) = &settled.spec.iscsi {
            lock = Some(self.lock_target(&spec.iqn)?);
            if self.attach_iscsi(undo, &place.path, spec)? {
                made.push((iscsi::FABRIC, spec.iqn.clone()));
            }
        }
        let backstore = self.summary(&place)?;
        for (fabric, target) in made {
            self.mark_as_ours(fabric, &target)?;
        }
        drop(lock);
        Ok(backstore)
    }

    /// Makes the folders: an HBA of its own, unless one is given, and the backstore in it.
    pub(crate) fn make_backstore(
        &self,
        settled: &Settled<'_>,
        undo: &mut Undo<'_>,
    ) -> Result<Place> {
        let core = self.roots.core();
        let folder = |hba: u32| core.join(format!("user_{hba}"));
        let hba = match settled.spec.hba {
            Some(hba) => {
                undo.make_dir_if_absent(&folder(hba), Guard::Bounded)?;
                hba
            }
            None => {
                // Others create as well: the folder that we make ourselves is ours.
                let mut hba = 0;
                while folder(hba).exists()
                    || !undo.make_dir_if_absent(&folder(hba), Guard::Bounded)?
                {
                    hba += 1;
                }
                hba
            }
        };
        let path = folder(hba).join(&settled.spec.name);
        undo.make_dir(&path, Guard::Netlink)?;
        Ok(Place {
            name: settled.spec.name.clone(),
            hba,
            path,
        })
    }

    /// Sets what has to be set before `enable`.
    pub(crate) fn configure(&self, settled: &Settled<'_>, path: &Path) -> Result<()> {
        let write = |attribute: &str, value: String| {
            self.check_interrupt()?;
            self.apply(Change::Write(path.join(attribute), value))
        };
        // `control` would split the configuration at commas.
        write("attrib/dev_config", settled.dev_config.clone())?;
        for (key, value) in [
            ("dev_size", settled.size),
            ("hw_block_size", settled.block_size.into()),
            ("hw_max_sectors", settled.max_sectors.into()),
            ("max_data_area_mb", settled.spec.data_area_mb.into()),
            ("cmd_ring_size_mb", settled.spec.ring_mb.into()),
        ] {
            write("control", format!("{key}={value}"))?;
        }
        write(
            "attrib/cmd_time_out",
            settled.spec.command_timeout.to_string(),
        )?;
        let write_cache = if settled.spec.write_cache { "1" } else { "0" };
        write("attrib/emulate_write_cache", write_cache.to_owned())?;
        // Before `enable`, so that the daemon can read it when it hears of the device.
        write("wwn/vpd_unit_serial", settled.serial.clone())
    }

    /// Enables the device: the kernel asks the daemon and waits for its verdict.
    pub(crate) fn enable(&self, settled: &Settled<'_>, path: &Path) -> Result<()> {
        let enable = Change::Write(path.join("enable"), "1".to_owned());
        let what = format!("the new LUN with the config {}", settled.dev_config);
        let begin = SystemTime::now();
        match self.attempt_until_unblocked(&enable, &Guard::Netlink) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(Error::Refused {
                what,
                meaning: enable_verdict(&source, settled),
                reason: self.refusal(path, begin),
                source,
            }),
            // Daemons keep silent about each other's subtypes.
            Err(Error::TimedOut { seconds, note, .. }) => Err(Error::TimedOut {
                what,
                seconds,
                note: format!(
                    "{note}. Is there a handler {} at all? Nobody answers for an unknown one",
                    settled.spec.handler
                ),
            }),
            Err(error) => Err(error),
        }
    }

    /// How to take a LUN's link away when its creation failed: the daemon may not serve it at all.
    pub(crate) fn hasty(&self, backstore: &Path) -> Guard {
        Guard::Ring {
            backstore: backstore.to_owned(),
            patience: std::time::Duration::from_secs(2).min(self.time_limit),
        }
    }

    /// Notes that we made a target, so that deleting its last LUN removes it.
    ///
    /// The note lies in /run: like the tree, it ends with the system's run.
    pub(crate) fn mark_as_ours(&self, fabric: &str, target: &str) -> Result<()> {
        let mark = self.mark(fabric, target);
        let folder = mark.parent().unwrap_or(&mark);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&mark, ""))
            .map_err(|e| Error::kernel(format!("write {}", mark.display()), e))
    }

    /// The file that notes that we made a target.
    pub(crate) fn mark(&self, fabric: &str, target: &str) -> PathBuf {
        self.roots.state.join("targets").join(fabric).join(target)
    }
}

/// What the answer to `enable` means: the daemon's negative errno comes back as the write's.
fn enable_verdict(error: &io::Error, settled: &Settled<'_>) -> String {
    use rustix::io::Errno;
    let config = &settled.spec.config;
    let handler = &settled.spec.handler;
    let Some(errno) = Errno::from_io_error(error) else {
        return error.to_string();
    };
    match errno {
        Errno::NOENT => format!("the daemon finds nothing at {config}"),
        Errno::ISDIR => format!(
            "{config} is a directory; the {handler} handler needs something to \
                                 store data in"
        ),
        Errno::INVAL => format!(
            "the config is not valid for the {handler} handler, or the size or block size does \
             not fit what it stores on"
        ),
        Errno::ACCESS | Errno::PERM => {
            format!("the daemon is not allowed to open {config}, or its handler failed")
        }
        Errno::ROFS => format!("{config} is on a read-only file system"),
        Errno::FBIG => format!(
            "{config} does not offer the {} that the LUN would have",
            size::show_size(settled.size)
        ),
        Errno::NOSPC | Errno::DQUOT => {
            format!(
                "there is no space left to hold {}",
                size::show_size(settled.size)
            )
        }
        Errno::BUSY | Errno::TXTBSY => format!("{config} is in use by somebody else"),
        Errno::NODEV | Errno::NXIO | Errno::OPNOTSUPP | Errno::NOSYS => {
            format!("the daemon has no handler {handler}, or its storage is not there")
        }
        Errno::NOMEM => "there is not enough memory for the LUN's ring, in the kernel or in the \
                         daemon (try a smaller --ring-mb or --data-area-mb)"
            .to_owned(),
        Errno::IO => format!("the daemon met an I/O error on {config}"),
        _ => error.to_string(),
    }
}
