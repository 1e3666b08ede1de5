//! The handlers that other processes have registered.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::subtype::Subtype;

/// More than anyone has.
const MOST: usize = 64;

/// The longest description that is kept, in bytes.
const LONGEST_DESCRIPTION: usize = 16 << 10;

/// The handlers in other processes: what they serve is not ours to answer for.
#[derive(Debug, Default)]
pub(crate) struct Externals {
    handlers: Mutex<BTreeMap<Subtype, String>>,
}

impl Externals {
    /// Adds a handler with its description.
    pub(super) fn add(&self, subtype: &Subtype, description: &str) -> Result<(), String> {
        if description.len() > LONGEST_DESCRIPTION {
            return Err(format!(
                "the description has more than {LONGEST_DESCRIPTION} bytes"
            ));
        }
        let mut handlers = self.handlers();
        if handlers.contains_key(subtype) {
            return Err(format!("a handler {subtype} is registered already"));
        }
        if handlers.len() >= MOST {
            return Err(format!(
                "{MOST} handlers are registered, and no more can be"
            ));
        }
        handlers.insert(subtype.clone(), description.to_owned());
        Ok(())
    }

    /// Takes a handler out; says whether it was there.
    pub(super) fn remove(&self, subtype: &Subtype) -> bool {
        self.handlers().remove(subtype).is_some()
    }

    /// The bus is gone, and with it the names that the handlers are registered by.
    pub(super) fn clear(&self) {
        self.handlers().clear();
    }

    /// The subtypes with their descriptions.
    pub(super) fn all(&self) -> BTreeMap<Subtype, String> {
        self.handlers().clone()
    }

    /// The subtypes, in alphabetical order.
    pub(crate) fn subtypes(&self) -> Vec<String> {
        let handlers = self.handlers();
        handlers.keys().map(ToString::to_string).collect()
    }

    fn handlers(&self) -> MutexGuard<'_, BTreeMap<Subtype, String>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subtype(number: usize) -> Subtype {
        Subtype::new(&format!("h{number}")).unwrap()
    }

    #[test]
    fn a_handler_is_there_once() {
        let externals = Externals::default();
        externals.add(&subtype(1), "first").unwrap();
        assert!(externals.add(&subtype(1), "again").is_err());
        assert_eq!(externals.all()[&subtype(1)], "first");
        assert!(externals.remove(&subtype(1)));
        assert!(!externals.remove(&subtype(1)));
        externals.add(&subtype(1), "again").unwrap();
        externals.clear();
        assert!(externals.subtypes().is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let externals = Externals::default();
        let long = "x".repeat(LONGEST_DESCRIPTION + 1);
        assert!(externals.add(&subtype(0), &long).is_err());
        externals.add(&subtype(0), &long[1..]).unwrap();
        for number in 1..MOST {
            externals.add(&subtype(number), "").unwrap();
        }
        assert!(externals.add(&subtype(MOST), "").is_err());
        assert_eq!(externals.subtypes().len(), MOST);
    }
}
