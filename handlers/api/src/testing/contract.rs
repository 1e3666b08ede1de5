//! What every backstore must obey, as tests that an author gets with one line.
//!
//! ```
//! # mod handler {
//! #     use tcmu_handler::*;
//! #     pub struct Mine;
//! #     pub struct Nothing(u64);
//! #     impl Handler for Mine {
//! #         type Backstore = Nothing;
//! #         fn subtype(&self) -> &str { "mine" }
//! #         fn help(&self) -> &str { "" }
//! #         fn check(&self, _: &Config) -> Result<()> { Ok(()) }
//! #         fn open(&self, request: &OpenRequest) -> Result<Nothing> { Ok(Nothing(request.size)) }
//! #     }
//! #     impl Backstore for Nothing {
//! #         fn capabilities(&self) -> Capabilities { Capabilities::new(self.0) }
//! #         async fn read(&self, _: &Io, buffer: Buffer<'_>, _: u64) -> Result<()> { Ok(()) }
//! #         async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> { Ok(()) }
//! #     }
//! # }
//! #[cfg(test)]
//! mod tests {
//!     use tcmu_handler::testing::Contract;
//!
//!     tcmu_handler::contract_tests!(Contract::new(crate::handler::Mine, |folder| {
//!         format!("{}/image;create=on", folder.display())
//!     }));
//! }
//! ```
//!
//! The closure gives the configuration (the part behind the subtype) of a fresh image that reads as
//! anything, in an empty folder of its own; it is called for each test. Each [`Rule`] becomes one
//! test, and a failure says which rule is broken and how. A rule that does not apply (the image gives
//! no storage back, say) prints why it was skipped.
//!
//! The handler runs on an [`UnorderedEngine`](super::UnorderedEngine): operations on files are done in
//! random order, some of them short, some fail, and a power cut takes back what was not synced. What a
//! handler does past the engine (a network protocol, a library) is only seen in its results.

mod atomicity;
mod configuration;
mod data;
mod durability;
mod errors;
mod life;
mod space;
mod stand;

use std::any::Any;
use std::fmt;
use std::path::Path;

use crate::{Backstore, Handler};

use self::stand::Stand;

/// One rule of the contract between the runner and a backstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Configurations.
    Configuration,
    /// Capabilities.
    Capabilities,
    /// The first and the last byte of an image.
    Bounds,
    /// Places and lengths of requests.
    Alignment,
    /// The memory of requests.
    Segments,
    /// Overlapping requests.
    Overlap,
    /// Anything at all, many at once.
    Workload,
    /// Flushes, and what a power cut leaves.
    Flush,
    /// Writes with FUA.
    Fua,
    /// `write_zeroes`.
    WriteZeroes,
    /// `unmap`.
    Unmap,
    /// `compare_and_write`.
    CompareAndWrite,
    /// `block_status`.
    BlockStatus,
    /// Operations below that fail.
    Errors,
    /// Other sizes.
    Resize,
    /// Images that are opened for reading only.
    ReadOnly,
    /// The end of an image's use.
    Close,
    /// Opening an image again.
    Reopen,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 18] = [
        Self::Configuration,
        Self::Capabilities,
        Self::Bounds,
        Self::Alignment,
        Self::Segments,
        Self::Overlap,
        Self::Workload,
        Self::Flush,
        Self::Fua,
        Self::WriteZeroes,
        Self::Unmap,
        Self::CompareAndWrite,
        Self::BlockStatus,
        Self::Errors,
        Self::Resize,
        Self::ReadOnly,
        Self::Close,
        Self::Reopen,
    ];

    /// What a handler has to do.
    pub const fn law(self) -> &'static str {
        match self {
            Self::Configuration => {
                "check and open agree, check changes nothing, and an option that the handler does \
                 not have is refused as InvalidConfig"
            }
            Self::Capabilities => {
                "capabilities make sense, stay the same, and what they claim is not Unsupported"
            }
            Self::Bounds => "requests at the first and last blocks touch those and no others",
            Self::Alignment => {
                "a request may begin and end at any multiple of the LUN's block size"
            }
            Self::Segments => "a request's memory comes in segments of any number and length",
            Self::Overlap => {
                "where requests overlap, each block afterwards holds what one of them wrote, and \
                 never anything else"
            }
            Self::Workload => "an image holds what was written last, however much goes on at once",
            Self::Flush => {
                "what had completed before a successful flush began survives a power cut; without a \
                 volatile cache, everything that has completed does"
            }
            Self::Fua => "what was written with FUA survives a power cut without a flush",
            Self::WriteZeroes => "write_zeroes makes its range read as zeroes, and no other byte",
            Self::Unmap => {
                "what is unmapped reads as zeroes if that is claimed, and no other byte changes"
            }
            Self::CompareAndWrite => {
                "compare_and_write compares and writes as one step, and finds the first difference"
            }
            Self::BlockStatus => {
                "block_status moves on within the range that it is asked for, what was written has \
                 storage, and what has none reads as zeroes if that is claimed"
            }
            Self::Errors => {
                "a request whose I/O fails ends with an error of the right kind, and harms nothing \
                 outside of its range"
            }
            Self::Resize => {
                "resize makes the image at least as large or says why not, and keeps what both sizes \
                 have in common"
            }
            Self::ReadOnly => "an image that says it is read-only is never changed",
            Self::Close => {
                "close makes everything durable and lets go of the image, whatever other images do"
            }
            Self::Reopen => "an image can be opened again at once, and is as it was",
        }
    }
}

/// Why a handler does not obey a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, how } = self;
        write!(f, "the rule {rule:?} is broken: {}\n  {how}", rule.law())
    }
}

impl std::error::Error for Broken {}

/// How a rule was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was tried, and holds.
    Tried,
    /// It does not apply, for this reason.
    Skipped(String),
}

/// What a rule's check finds: how it was kept, or what was seen instead.
type Verdict = Result<Kept, String>;

fn skipped(why: &str) -> Verdict {
    Ok(Kept::Skipped(why.to_owned()))
}

/// A fresh image for one test.
pub struct Image {
    /// The configuration, or why there can be none here.
    config: Result<String, String>,
    /// What has to live as long as the image, such as a server.
    _keep: Option<Box<dyn Any>>,
}

impl Image {
    /// An image that needs `keep` to live as long as it does: a server, say.
    pub fn with(config: impl Into<String>, keep: impl Any) -> Self {
        Self {
            config: Ok(config.into()),
            _keep: Some(Box::new(keep)),
        }
    }

    /// There can be no image here, for this reason: the tests are skipped.
    pub fn missing(why: impl Into<String>) -> Self {
        Self {
            config: Err(why.into()),
            _keep: None,
        }
    }
}

impl From<String> for Image {
    fn from(config: String) -> Self {
        Self {
            config: Ok(config),
            _keep: None,
        }
    }
}

impl From<&str> for Image {
    fn from(config: &str) -> Self {
        config.to_owned().into()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// What an image remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Memory {
    /// Nothing.
    None,
    /// Everything, until it is closed.
    UntilClosed,
    /// Everything.
    Kept,
}

type Make = dyn Fn(&Path) -> Image + Send + Sync;

/// A handler and its images, to be held against the contract.
pub struct Contract<H> {
    handler: H,
    make: Box<Make>,
    memory: Memory,
    size: u64,
    block_size: u32,
    read_only: Option<String>,
    strict: bool,
}

impl<H: Handler> Contract<H> {
    /// The contract of `handler`; `make` gives the configuration of a fresh image in an empty folder.
    ///
    /// LUNs have 4 MiB and blocks of 512 bytes.
    pub fn new<I: Into<Image>>(
        handler: H,
        make: impl Fn(&Path) -> I + Send + Sync + 'static,
    ) -> Self {
        Self {
            handler,
            make: Box::new(move |folder| make(folder).into()),
            memory: Memory::Kept,
            size: 4 << 20,
            block_size: 512,
            read_only: None,
            strict: true,
        }
    }

    /// LUNs have `size` bytes: a multiple of 1 MiB.
    #[must_use]
    pub fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// LUNs have blocks of `block_size` bytes, for images that take no smaller requests.
    #[must_use]
    pub fn block_size(self, block_size: u32) -> Self {
        Self { block_size, ..self }
    }

    /// `options` make an image read-only: `;readonly=on`. They are appended to its configuration.
    #[must_use]
    pub fn read_only(self, options: &str) -> Self {
        Self {
            read_only: Some(options.to_owned()),
            ..self
        }
    }

    /// What is written is lost when an image is closed.
    #[must_use]
    pub fn forgets_when_closed(self) -> Self {
        Self {
            memory: Memory::UntilClosed,
            ..self
        }
    }

    /// Nothing that is written can be read again.
    #[must_use]
    pub fn stores_nothing(self) -> Self {
        Self {
            memory: Memory::None,
            ..self
        }
    }

    /// The handler takes any option: it passes them on, say.
    #[must_use]
    pub fn takes_any_option(self) -> Self {
        Self {
            strict: false,
            ..self
        }
    }

    /// Tries one rule.
    ///
    /// # Errors
    /// How it is broken.
    pub fn check(&self, rule: Rule) -> Result<Kept, Broken> {
        self.verdict(rule).map_err(|how| Broken { rule, how })
    }

    /// Tries one rule, and prints if it does not apply.
    ///
    /// # Panics
    /// If it is broken.
    pub fn assert(&self, rule: Rule) {
        match self.check(rule) {
            Ok(Kept::Tried) => {}
            Ok(Kept::Skipped(why)) => eprintln!("skipped: {rule:?}: {why}"),
            Err(broken) => panic!("{broken}"),
        }
    }

    fn verdict(&self, rule: Rule) -> Verdict {
        let stand = Stand::new(self, 1 + rule as u64)?;
        if let Some(why) = stand.is_missing() {
            return skipped(why);
        }
        let needed = match rule {
            Rule::Configuration | Rule::Capabilities | Rule::Resize => Memory::None,
            Rule::Flush | Rule::Fua | Rule::ReadOnly | Rule::Close | Rule::Reopen => Memory::Kept,
            _ => Memory::UntilClosed,
        };
        match rule {
            Rule::Configuration => configuration::configuration(&stand),
            Rule::Capabilities => configuration::capabilities(&stand),
            Rule::Resize => life::resize(&stand),
            _ if self.memory == Memory::None => skipped("the image stores nothing"),
            _ if self.memory < needed => skipped("the image is lost when it is closed"),
            Rule::Bounds => data::bounds(&stand),
            Rule::Alignment => data::alignment(&stand),
            Rule::Segments => data::segments(&stand),
            Rule::Overlap => data::overlap(&stand),
            Rule::Workload => data::workload(&stand),
            Rule::Flush => durability::flush(&stand),
            Rule::Fua => durability::fua(&stand),
            Rule::WriteZeroes => space::write_zeroes(&stand),
            Rule::Unmap => space::unmap(&stand),
            Rule::BlockStatus => space::block_status(&stand),
            Rule::CompareAndWrite => atomicity::compare_and_write(&stand),
            Rule::Errors => errors::errors(&stand),
            Rule::ReadOnly => life::read_only(&stand),
            Rule::Close => life::close(&stand),
            Rule::Reopen => life::reopen(&stand),
        }
    }
}

impl<H> fmt::Debug for Contract<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract")
            .field("memory", &self.memory)
            .field("size", &self.size)
            .field("block_size", &self.block_size)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// The disk's contract is for disks.
fn is_disk(backstore: &impl Backstore) -> bool {
    backstore.capabilities().device_type.is_none()
}

/// The tests of a [`Contract`](crate::testing::Contract), one for each rule.
///
/// `contract_tests!(CONTRACT)` makes a module `contract` of tests; `contract_tests!(NAME: CONTRACT)`
/// gives it another name, for a second one beside it. See [`testing::contract`](crate::testing::contract).
#[macro_export]
macro_rules! contract_tests {
    (@tests $contract:expr; $($test:ident: $rule:ident;)+) => {
        $(#[test]
        fn $test() {
            let contract = $contract;
            contract.assert($crate::testing::Rule::$rule);
        })+
    };
    ($module:ident: $contract:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::contract_tests! { @tests $contract;
                configuration: Configuration;
                capabilities: Capabilities;
                bounds: Bounds;
                alignment: Alignment;
                segments: Segments;
                overlap: Overlap;
                workload: Workload;
                flush: Flush;
                fua: Fua;
                write_zeroes: WriteZeroes;
                unmap: Unmap;
                compare_and_write: CompareAndWrite;
                block_status: BlockStatus;
                errors: Errors;
                resize: Resize;
                read_only: ReadOnly;
                close: Close;
                reopen: Reopen;
            }
        }
    };
    ($contract:expr $(,)?) => {
        $crate::contract_tests!(contract: $contract);
    };
}
