//! Sees who resets command rings, whatever they say of it themselves.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// A watch on the attributes `action/reset_ring` of some backstores.
#[derive(Debug)]
pub(super) struct Resets {
    events: OwnedFd,
    /// Open, since configfs forgets what a watch is on as soon as nobody has it open.
    _attributes: Vec<File>,
}

impl Resets {
    /// Watches backstores, given by their folders.
    ///
    /// # Errors
    /// A backstore that is not enabled.
    pub(super) fn watch<'a>(backstores: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let attributes = backstores
            .map(|backstore| {
                let path = backstore.join("action/reset_ring");
                let file = File::options().write(true).open(&path);
                let file = file.with_context(|| path.display().to_string())?;
                inotify::add_watch(&events, &path, WatchFlags::MODIFY)?;
                Ok(file)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            events,
            _attributes: attributes,
        })
    }

    /// Whether a ring was reset since the last call.
    ///
    /// # Errors
    /// The watch has broken.
    pub(super) fn happened(&mut self) -> Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut happened = false;
        loop {
            match reader.next() {
                Ok(_) => happened = true,
                Err(Errno::WOULDBLOCK) => return Ok(happened),
                Err(error) => return Err(error).context("watching for ring resets"),
            }
        }
    }
}
