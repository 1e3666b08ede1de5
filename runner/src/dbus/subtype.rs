//! Subtypes as parts of D-Bus names.

use std::fmt;

/// What stands beside the handlers under the root object.
const TAKEN: [&str; 2] = ["HandlerManager1", "Runner1"];

/// More than any handler's name has.
const LONGEST: usize = 64;

/// A handler's subtype that can be an element of an object path and of a bus name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subtype(String);

/// A subtype that has no place on the bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSubtype {
    #[error(
        "a handler's name has 1 to {LONGEST} letters, digits and underscores, and begins with a letter"
    )]
    Malformed,
    #[error("\"{0}\" is the name of another object: take another one")]
    Taken(&'static str),
}

impl Subtype {
    pub(super) fn new(text: &str) -> Result<Self, BadSubtype> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !(1..=LONGEST).contains(&text.len())
            || !text.bytes().all(legal)
            || !text.starts_with(|first: char| first.is_ascii_alphabetic())
        {
            return Err(BadSubtype::Malformed);
        }
        match TAKEN.into_iter().find(|taken| *taken == text) {
            Some(taken) => Err(BadSubtype::Taken(taken)),
            None => Ok(Self(text.to_owned())),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of our object for the handler.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", super::ROOT, self.0)
    }

    /// The name that the process of an external handler owns.
    pub(super) fn bus_name(&self) -> String {
        format!("{}.{}", super::manager::INTERFACE, self.0)
    }

    /// The object that it answers at.
    pub(super) fn external_path(&self) -> String {
        format!("{}/HandlerManager1/{}", super::ROOT, self.0)
    }

    /// The subtype whose external handler owns a name.
    pub(super) fn of_bus_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(super::manager::INTERFACE)?;
        Self::new(rest.strip_prefix('.')?).ok()
    }
}

impl fmt::Display for Subtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_names_of_the_bus() {
        let subtype = Subtype::new("my_rbd2").unwrap();
        assert_eq!(subtype.path(), "/org/kernel/TCMUService1/my_rbd2");
        assert_eq!(
            subtype.external_path(),
            "/org/kernel/TCMUService1/HandlerManager1/my_rbd2"
        );
        let name = "org.kernel.TCMUService1.HandlerManager1.my_rbd2";
        assert_eq!(subtype.bus_name(), name);
        assert_eq!(Subtype::of_bus_name(name), Some(subtype.clone()));
        zbus::ObjectPath::try_from(subtype.path()).unwrap();
        zbus::ObjectPath::try_from(subtype.external_path()).unwrap();
        zbus::names::WellKnownName::try_from(subtype.bus_name()).unwrap();
    }

    #[test]
    fn refuses_what_would_be_another_name() {
        let long = "x".repeat(LONGEST + 1);
        for bad in [
            "", "a/b", "a.b", "a-b", "2x", "_x", "a b", "ä", "a\n", &long,
        ] {
            assert_eq!(Subtype::new(bad), Err(BadSubtype::Malformed), "{bad}");
        }
        assert!(Subtype::new(&long[1..]).is_ok());
        for taken in TAKEN {
            assert_eq!(Subtype::new(taken), Err(BadSubtype::Taken(taken)));
        }
        for name in [
            "org.kernel.TCMUService1.HandlerManager1",
            "org.kernel.TCMUService1.HandlerManager1.",
            "org.kernel.TCMUService1.HandlerManager1x.y",
            "org.kernel.TCMUService1.HandlerManager1.a.b",
            ":1.7",
        ] {
            assert_eq!(Subtype::of_bus_name(name), None, "{name}");
        }
    }
}
