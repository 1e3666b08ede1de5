//! What is asked of an image, as far as layers tell it apart.

use tcmu_handler::Extent;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
    Unmap,
    Zero,
    Compare,
    Status,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::Zero,
        Self::Compare,
        Self::Status,
    ];

    /// The word in configurations and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Unmap => "unmap",
            Self::Zero => "zero",
            Self::Compare => "compare",
            Self::Status => "status",
        }
    }

    pub(crate) const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Unmap | Self::Zero | Self::Compare)
    }
}

/// A set of kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operations(u8);

impl Operations {
    pub(crate) const ALL: Self = Self(0x7f);

    /// `read+write`, in any order.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut set = 0;
        for word in text.split('+') {
            let mut all = Operation::ALL.into_iter();
            set |= 1 << all.find(|operation| operation.name() == word)? as u8;
        }
        Some(Self(set))
    }

    pub(crate) const fn contains(self, operation: Operation) -> bool {
        self.0 & 1 << operation as u8 != 0
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Empty for a flush.
    pub(crate) extent: Extent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_named() {
        let set = Operations::parse("write+flush").unwrap();
        for operation in Operation::ALL {
            let named = matches!(operation, Operation::Write | Operation::Flush);
            assert_eq!(set.contains(operation), named, "{operation:?}");
            assert!(Operations::ALL.contains(operation));
        }
        for bad in ["", "writes", "read,write", "read+"] {
            assert_eq!(Operations::parse(bad), None, "{bad}");
        }
    }
}
