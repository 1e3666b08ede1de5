//! Layers as handlers.

use std::sync::{Arc, Weak};

use tcmu_handler::{Backstore, Config, Error, ErrorKind, Handler, OpenRequest, Result};

use crate::delay::{self, Delay};
use crate::fault::{self, Fault};
use crate::gate::{Gate, Gated};
use crate::log::{self, Log};
use crate::options::{Options, invalid};
use crate::read_only::{self, ReadOnly};
use crate::throttle::{self, Throttle};
use crate::verify::{self, Verify};
use crate::volatile::{self, Volatile};
use crate::{AnyBackstore, Handlers};

/// A layer, as the handler of its subtype.
#[derive(Debug)]
pub struct Layer {
    kind: Kind,
    /// Layers are among these themselves, hence weak.
    below: Weak<Handlers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Delay,
    Fault,
    Log,
    ReadOnly,
    Throttle,
    Verify,
    Volatile,
}

impl Layer {
    /// All layers, over `handlers`, which has to live on. To stack them, add them to it.
    pub fn all(handlers: &Arc<Handlers>) -> impl Iterator<Item = Self> + use<> {
        let below = Arc::downgrade(handlers);
        [
            Kind::Delay,
            Kind::Fault,
            Kind::Log,
            Kind::ReadOnly,
            Kind::Throttle,
            Kind::Verify,
            Kind::Volatile,
        ]
        .into_iter()
        .map(move |kind| Self {
            kind,
            below: Weak::clone(&below),
        })
    }

    fn below(&self) -> Result<Arc<Handlers>> {
        self.below.upgrade().ok_or_else(|| {
            let why = "the handlers below the layer are gone";
            Error::new(ErrorKind::Internal, why)
        })
    }

    fn options(&self, config: &Config) -> Result<Options> {
        let known: &[&str] = match self.kind {
            Kind::Delay => &delay::OPTIONS,
            Kind::Fault => &fault::OPTIONS,
            Kind::Log => &log::OPTIONS,
            Kind::ReadOnly => &[],
            Kind::Throttle => &throttle::OPTIONS,
            Kind::Verify => &verify::OPTIONS,
            Kind::Volatile => &volatile::OPTIONS,
        };
        Options::of(self.kind.subtype(), known, config)
    }
}

impl Kind {
    const fn subtype(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Fault => "fault",
            Self::Log => "log",
            Self::ReadOnly => "readonly",
            Self::Throttle => "throttle",
            Self::Verify => "verify",
            Self::Volatile => "volatile",
        }
    }
}

/// An image behind a gate.
fn gated<G: Gate>(gate: G, below: AnyBackstore) -> AnyBackstore {
    AnyBackstore::new(Gated { gate, below })
}

impl Handler for Layer {
    type Backstore = AnyBackstore;

    fn subtype(&self) -> &str {
        self.kind.subtype()
    }

    fn help(&self) -> &str {
        match self.kind {
            Kind::Delay => delay::HELP,
            Kind::Fault => fault::HELP,
            Kind::Log => log::HELP,
            Kind::ReadOnly => read_only::HELP,
            Kind::Throttle => throttle::HELP,
            Kind::Verify => verify::HELP,
            Kind::Volatile => volatile::HELP,
        }
    }

    fn check(&self, config: &Config) -> Result<()> {
        let (config, mirror) = self.apart(config);
        let options = self.options(&config)?;
        match self.kind {
            Kind::Delay => delay::parse(&options).map(drop)?,
            Kind::Fault => fault::parse(&options).map(drop)?,
            Kind::Log => Log::new(&options).map(drop)?,
            Kind::ReadOnly => {}
            Kind::Throttle => throttle::parse(&options).map(drop)?,
            Kind::Verify => verify::parse(&options).map(drop)?,
            Kind::Volatile => volatile::parse(&options).map(drop)?,
        }
        let below = self.below()?;
        below.check(&options.subtype, &options.config)?;
        if self.kind == Kind::Verify {
            let (subtype, config) = verify::split_mirror(&mirror)?;
            below.check(subtype, config)?;
        }
        Ok(())
    }

    fn open(&self, request: &OpenRequest) -> Result<AnyBackstore> {
        let (config, mirror) = self.apart(&request.config);
        let options = self.options(&config)?;
        let handlers = self.below()?;
        let image = || {
            let image = handlers.open_below(&options.subtype, &options.config, request)?;
            disk(image, &options)
        };
        // The options come first: nothing is opened where they are wrong.
        Ok(match self.kind {
            Kind::Delay => gated(Delay::new(&options)?, image()?),
            Kind::Fault => gated(Fault::new(&options)?, image()?),
            Kind::Log => gated(Log::new(&options)?, image()?),
            Kind::ReadOnly => gated(ReadOnly, image()?),
            Kind::Throttle => gated(Throttle::new(&options)?, image()?),
            Kind::Verify => {
                let trusted = verify::parse(&options)?;
                let (subtype, config) = verify::split_mirror(&mirror)?;
                let image = image()?;
                let mirror = handlers.open_below(subtype, config, request)?;
                AnyBackstore::new(Verify::new(image, disk(mirror, &options)?, trusted))
            }
            Kind::Volatile => {
                let plan = volatile::parse(&options)?;
                AnyBackstore::new(Volatile::new(image()?, plan, request.block_size))
            }
        })
    }
}

impl Layer {
    /// The configuration without the mirror's, and that.
    fn apart(&self, config: &Config) -> (Config, String) {
        match (self.kind, config.option(verify::MIRROR)) {
            (Kind::Verify, Some(mirror)) => (config.without(verify::MIRROR), mirror.to_owned()),
            _ => (config.clone(), verify::DEFAULT_MIRROR.to_owned()),
        }
    }
}

/// Refuses what is no disk: its commands would go past the layer.
fn disk(image: AnyBackstore, options: &Options) -> Result<AnyBackstore> {
    match image.capabilities().device_type {
        None => Ok(image),
        Some(_) => Err(invalid(format!(
            "{}/{} is no disk, and layers lie over disks only",
            options.subtype, options.config
        ))),
    }
}
