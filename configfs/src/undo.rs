//! A stack of the steps that take back what was done, for when a later step fails.

use std::io;
use std::path::Path;

use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::{Guard, Tree};

/// Changes made, each with the change that takes it back.
///
/// Dropped without [`Undo::keep`] or [`Undo::roll_back`], as by a panic, it rolls back.
pub(crate) struct Undo<'a> {
    tree: &'a Tree,
    steps: Vec<(Change, Guard)>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Self {
        Undo {
            tree,
            steps: Vec::new(),
        }
    }

    /// Remembers how to take back what was just done.
    pub(crate) fn push(&mut self, change: Change, guard: Guard) {
        self.steps.push((change, guard));
    }

    /// Forgets the last step: it turned out not to have been made.
    pub(crate) fn forget_last(&mut self) {
        self.steps.pop();
    }

    /// Makes a folder, to be removed again under `guard`.
    pub(crate) fn make_dir(&mut self, path: &Path, guard: Guard) -> Result<()> {
        self.tree.check_interrupt()?;
        self.tree.apply(Change::MakeDir(path.to_owned()))?;
        self.push(Change::RemoveDir(path.to_owned()), guard);
        Ok(())
    }

    /// Makes a folder unless it is there. Returns whether it made it.
    pub(crate) fn make_dir_if_absent(&mut self, path: &Path, guard: Guard) -> Result<bool> {
        match self.make_dir(path, guard) {
            Ok(()) => Ok(true),
            Err(Error::Kernel { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Everything worked: what was done stays.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
    }

    /// Takes everything back, the last first, and names what could not be.
    fn roll_back(mut self) -> Vec<String> {
        self.take_back()
    }

    /// Takes everything back because of an error, which then says what could not be.
    pub(crate) fn give_up(self, error: Error) -> Error {
        let leftovers = self.roll_back();
        if leftovers.is_empty() {
            return error;
        }
        Error::Leftovers {
            error: Box::new(error),
            leftovers,
        }
    }

    /// Takes over the steps of another.
    pub(crate) fn append(&mut self, mut other: Undo<'_>) {
        self.steps.append(&mut other.steps);
    }

    fn take_back(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        while let Some((change, guard)) = self.steps.pop() {
            if let Err(error) = self.tree.apply_guarded(change, &guard) {
                leftovers.push(error.to_string());
            }
        }
        leftovers
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.take_back();
    }
}
