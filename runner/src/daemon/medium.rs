//! Giving a LUN another image while initiators use it.
//!
//! The LUN leaves its reactor as for a restart: what is in flight ends on the old image, later
//! commands wait in the ring. Then the new image is opened, the kernel is told of it, and the LUN is
//! attached again. The kernel is told last, and asks back: by then nothing can fail but the kernel.
//! If anything does, the old image is opened again, and initiators notice a pause only.
//!
//! A daemon that dies on the way leaves the kernel with one configuration or the other, and an
//! in-flight table in which nothing is noted: its successor goes on with that one.

use std::time::Instant;

use tcmu::discovery::{DeviceName, split_dev_config};
use tcmu_handler::{Error, ErrorKind};

use super::Daemon;
use super::board::{EventKind, LunState};
use super::device::{Device, Next, Phase};
use super::open::{Inheritance, Opener, guarded};
use super::petition::MediumChange;
use super::report::Report;
use crate::device_server::{Geometry, Journal};
use crate::journal::FileJournal;
use crate::reactor::LunId;
use crate::registry::{Image, ImageRequest, Past};

/// Another image on its way to a LUN.
pub(super) struct NewMedium {
    request: ImageRequest,
    /// The LUN has another size than before.
    resized: bool,
    /// Is told how it went.
    done: Box<dyn FnOnce(Result<(), Error>) + Send>,
    /// Why the LUN goes on with the image that it had.
    refused: Option<Error>,
}

impl NewMedium {
    /// What initiators are to hear of it.
    pub(super) fn past(&self) -> Past {
        match &self.refused {
            Some(_) => Past::Uneventful,
            None => Past::OtherMedium {
                resized: self.resized,
            },
        }
    }

    /// The LUN is not served any more.
    pub(super) fn give_up(self, error: &Error) {
        let why = match self.refused {
            Some(refused) => {
                format!("{refused}; and the image before it cannot be opened again: {error}")
            }
            None => error.to_string(),
        };
        (self.done)(Err(Error::new(error.kind(), why)));
    }
}

impl Daemon {
    /// Begins to give a LUN another image.
    pub(super) fn change_medium(&mut self, change: MediumChange) {
        let MediumChange {
            lun,
            subtype,
            config,
            size,
            done,
        } = change;
        let id = match self.with_medium_to_change(&lun, &subtype, size) {
            Ok(id) => id,
            Err(error) => return done(Err(error)),
        };
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        tracing::info!(lun, config, size, "changing the medium");
        let Some(old) = &device.request else { return };
        let request = ImageRequest {
            name: DeviceName {
                config,
                ..device.name.clone()
            },
            geometry: Geometry {
                size,
                ..old.geometry
            },
        };
        device.medium = Some(NewMedium {
            resized: false,
            request,
            done,
            refused: None,
        });
        self.detach(id, Next::ChangeMedium);
    }

    /// The LUN of this name, if its image can be changed now.
    fn with_medium_to_change(&self, lun: &str, subtype: &str, size: u64) -> Result<LunId, Error> {
        let mut named = self
            .devices
            .iter()
            .filter(|(_, device)| device.name.name == lun);
        let (id, device) = named.next().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no LUN {lun} is served here"))
        })?;
        let refuse = |kind, why: String| Err(Error::new(kind, why));
        if named.next().is_some() {
            let why = format!("several LUNs are called {lun}: it is not said which is meant");
            return refuse(ErrorKind::InvalidConfig, why);
        }
        if device.name.subtype != subtype {
            let why = format!(
                "{lun} is of the handler {}, not {subtype}",
                device.name.subtype
            );
            return refuse(ErrorKind::InvalidConfig, why);
        }
        let geometry = device.request.as_ref().map(|request| request.geometry);
        let block = geometry.map_or(512, |geometry| u64::from(geometry.block_size.get()));
        if size == 0 || !size.is_multiple_of(block) {
            let why =
                format!("a size of {size} bytes is not a multiple of the block size, {block}");
            return refuse(ErrorKind::InvalidConfig, why);
        }
        if self.stopping.is_some() || !matches!(device.phase, Phase::Serving) {
            let why = format!("{lun} is being opened or closed; try again later");
            return refuse(ErrorKind::Busy, why);
        }
        if self.drains.state(*id, device.opening) != LunState::Serving {
            let why = format!("{lun} is held for somebody: try again when that is over");
            return refuse(ErrorKind::Busy, why);
        }
        if device.offline.is_some() || device.stuck {
            let why = format!(
                "{lun} is offline, or its image does not answer: commands could not be finished on \
                 the old image"
            );
            return refuse(ErrorKind::Busy, why);
        }
        Ok(*id)
    }

    /// Whether a configuration that the kernel asks about is of our own making.
    pub(super) fn is_own_wish(&self, id: LunId, config: &str) -> bool {
        let asked = split_dev_config(config);
        self.devices.get(&id).is_some_and(|device| {
            matches!(device.phase, Phase::Opening)
                && device.medium.as_ref().is_some_and(|new| {
                    [&new.request.name, &device.name]
                        .map(DeviceName::subtype_and_config)
                        .contains(&asked)
                })
        })
    }

    /// The LUN has left its reactor: opens the other image on another thread, and tells the kernel.
    pub(super) fn open_medium(&mut self, id: LunId) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let Some(new) = &device.medium else { return };
        let (request, old) = (new.request.clone(), device.name.clone());
        self.openings += 1;
        let opening = self.openings;
        device.opening = opening;
        device.phase = Phase::Opening;
        device.since = Instant::now();
        self.board
            .turned(id, LunState::Opening, "getting another image");
        let (opener, reporter) = (self.opener.clone(), self.reporter.clone());
        self.openers.run(Box::new(move || {
            let result = guarded(|| change(&opener, &old, &request));
            reporter.send(Report::MediumOpened {
                id,
                opening,
                result,
            });
        }));
    }

    /// The other image was opened, or not: the device is served again.
    pub(super) fn medium_opened(
        &mut self,
        id: LunId,
        opening: u64,
        result: Result<(Image, bool), Error>,
    ) {
        let is_it = |device: &Device| device.opening == opening;
        if !self.devices.get(&id).is_some_and(is_it) {
            return;
        }
        let Some(mut before) = self.devices.remove(&id) else {
            return;
        };
        let Some(mut new) = before.medium.take() else {
            return;
        };
        let (name, image) = match result {
            Ok((image, resized)) => {
                new.resized = resized;
                (new.request.name.clone(), Some(image))
            }
            Err(error) => {
                new.refused = Some(error);
                (before.name, None)
            }
        };
        let device = Device {
            ticket: before.ticket,
            unwanted: before.unwanted,
            successor: before.successor,
            ring_resets: before.ring_resets,
            image,
            medium: Some(new),
            ..self.new_device(name)
        };
        self.open(id, device, Inheritance::GoOn);
    }

    /// The LUN is served again.
    pub(super) fn medium_changed(&mut self, id: LunId) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let Some(new) = device.medium.take() else {
            return;
        };
        let name = &device.name;
        match new.refused {
            None => {
                tracing::info!(
                    lun = name.name,
                    config = name.config,
                    "the medium was changed"
                );
                let message = format!("{}/{}", name.subtype, name.config);
                self.board
                    .tell(EventKind::MediumChanged, &name.name, message);
                (new.done)(Ok(()));
            }
            Some(error) => {
                tracing::warn!(lun = name.name, %error, "the medium stays as it was");
                self.board
                    .tell(EventKind::ChangeRefused, &name.name, error.to_string());
                (new.done)(Err(error));
            }
        }
    }
}

impl Daemon {
    /// Neither the other image nor the one before it can be served.
    pub(super) fn medium_is_lost(&mut self, id: LunId, error: &Error) {
        let device = self.devices.get_mut(&id);
        if let Some(new) = device.and_then(|device| device.medium.take()) {
            new.give_up(error);
        }
    }
}

/// Opens the other image, then tells the kernel. Returns also whether the LUN has another size then.
fn change(
    opener: &Opener,
    old: &DeviceName,
    request: &ImageRequest,
) -> Result<(Image, bool), Error> {
    let journal = FileJournal::of(old).load();
    let journal = journal.map_err(|error| Error::os("reading the LUN's journal", error))?;
    if journal.is_some() {
        return Err(Error::new(
            ErrorKind::Busy,
            "a FORMAT UNIT or SANITIZE of the present medium is not complete",
        ));
    }
    let image = opener.registry.open(request)?;
    let resized = tell_kernel(opener, old, request)?;
    Ok((image, resized))
}

fn tell_kernel(opener: &Opener, old: &DeviceName, new: &ImageRequest) -> Result<bool, Error> {
    let folder = opener.sysfs.backstore(old);
    let size = new.geometry.size;
    let config = |name: &DeviceName| format!("{}/{}", name.subtype, name.config);
    let told = |what, result: std::io::Result<()>| {
        result.map_err(|error| Error::os(format!("telling the kernel the other {what}"), error))
    };
    told("image", folder.set_dev_config(&config(&new.name)))?;
    if folder.size().is_ok_and(|is| is == size) {
        return Ok(false);
    }
    told("size", folder.set_size(size)).inspect_err(|_| {
        if let Err(error) = folder.set_dev_config(&config(old)) {
            let lun = &old.name;
            tracing::error!(lun, %error, "the kernel keeps the configuration of an image that is not served");
        }
    })?;
    Ok(true)
}
