//! The handlers of a runner, by subtype.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tcmu::configfs::BackstoreDir;
use tcmu::discovery::DeviceName;
use tcmu::mapping::Mapping;
use tcmu::ring::Ring;
use tcmu::ring::recovery::Table;
use tcmu::uio::Uio;
use tcmu_handler::{AllowedPaths, Backstore, Config, Error, ErrorKind, Handler, OpenRequest};
use tcmu_handler_layers::{Handlers, Layer};

use crate::device_server::{Geometry, Identity, Journal, LogicalUnit};
use crate::identity::{IdentitySource, LateNames};
use crate::journal::FileJournal;
use crate::meter::Meter;
use crate::reactor::{self, MakeLun, Recovered, Recovery};
use crate::recovery::Offline;
use crate::target_core::Configfs;

/// The longest transfer in bytes that every LUN takes. LIO's `hw_max_sectors` of a user backstore is
/// 64 KiB unless somebody sets it, and nothing depends on it; while some initiators do not ask before
/// they send more. The entry of such a command fits into a ring of 1 MiB, however scattered its data
/// are.
const LEAST_MAX_TRANSFER: u32 = 32 << 20;

/// The handlers of a runner.
pub struct Registry {
    handlers: BTreeMap<String, Arc<dyn AnyHandler>>,
    /// The same, as layers see them.
    below_layers: Arc<Handlers>,
    places: Arc<Places>,
}

/// Where images may be, by subtype; anywhere for those that are not in it.
#[derive(Default)]
struct Places(RwLock<BTreeMap<String, Arc<AllowedPaths>>>);

impl Registry {
    /// No handlers.
    pub fn new() -> Self {
        let places = Arc::<Places>::default();
        let below = Arc::clone(&places);
        Self {
            handlers: BTreeMap::new(),
            below_layers: Arc::new(Handlers::with_parser(move |subtype, text| {
                below.config(subtype, text)
            })),
            places,
        }
    }

    /// Adds a handler; it takes the place of one with the same subtype.
    pub fn add(&mut self, handler: impl Handler) {
        let handler = Arc::new(handler);
        let subtype = handler.subtype().to_owned();
        self.below_layers.add(Arc::clone(&handler));
        self.handlers.insert(subtype, handler);
    }

    /// Adds the layers of `tcmu-handler-layers`, which lie over all handlers here: those that were
    /// added before and those that come.
    pub fn add_layers(&mut self) {
        for layer in Layer::all(&self.below_layers) {
            self.add(layer);
        }
    }

    /// Takes a handler away, if it is there.
    pub(crate) fn remove(&mut self, subtype: &str) {
        self.handlers.remove(subtype);
        self.below_layers.remove(subtype);
    }

    /// The subtypes and what their configuration strings look like, in alphabetical order.
    pub fn help(&self) -> impl Iterator<Item = (&str, &str)> {
        self.handlers
            .iter()
            .map(|(subtype, handler)| (subtype.as_str(), handler.help()))
    }

    /// Whether there is a handler of exactly this subtype.
    pub(crate) fn serves(&self, subtype: &str) -> bool {
        self.handlers.contains_key(subtype)
    }

    /// Says where the images of handlers may be, by subtype; those of others may be anywhere. It
    /// holds for what is checked and opened from now on.
    pub(crate) fn allow_paths(&self, paths: impl IntoIterator<Item = (String, Vec<PathBuf>)>) {
        let paths = paths.into_iter();
        let allowed = paths.map(|(subtype, paths)| (subtype, Arc::new(AllowedPaths::new(paths))));
        *self
            .places
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = allowed.collect();
    }

    /// Takes the configuration of a LUN of this subtype apart, if it leads where it may.
    fn config(&self, subtype: &str, text: &str) -> Result<Config, Error> {
        self.places.config(subtype, text)
    }

    /// Says whether the handler could open a configuration, the part behind its subtype. Blocks as
    /// long as the handler does.
    pub(crate) fn check(&self, subtype: &str, config: &str) -> Result<(), Error> {
        match self.handlers.get(subtype) {
            Some(handler) => handler.check(&self.config(subtype, config)?),
            None => Err(no_handler(subtype)),
        }
    }

    /// Opens the image that a device's name tells. Blocks as long as the handler does.
    pub(crate) fn open(&self, request: &ImageRequest) -> Result<Image, Error> {
        let subtype = &request.name.subtype;
        match self.handlers.get(subtype) {
            Some(handler) => handler.open(self.config(subtype, &request.name.config)?, request),
            None => Err(no_handler(subtype)),
        }
    }

    /// Serves a device without its image: nothing that needs it is done.
    pub(crate) fn serve_offline(device: OpenDevice) -> MakeLun {
        let offline = Offline::new(device.geometry.size);
        device.serve(offline, |unit| unit.take_offline())
    }
}

impl Places {
    /// Takes the configuration of an image of this subtype apart, if it leads where it may.
    fn config(&self, subtype: &str, text: &str) -> Result<Config, Error> {
        let mut config: Config = text.parse()?;
        // Following a path may take long, so the lock must be free again by then.
        let allowed = {
            let allowed = self.0.read();
            let allowed = allowed.unwrap_or_else(PoisonError::into_inner);
            allowed.get(subtype).map(Arc::clone)
        };
        if let Some(allowed) = allowed {
            config.restrict(allowed)?;
        }
        Ok(config)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

/// Which image is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct ImageRequest {
    pub(crate) name: DeviceName,
    pub(crate) geometry: Geometry,
}

/// An image that is open: makes a LUN of the device that it is for.
pub(crate) type Image = Box<dyn FnOnce(OpenDevice, Past) -> MakeLun + Send>;

/// What initiators have seen of a LUN before its image was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Nothing that they should hear of: commands have waited at the most.
    Uneventful,
    /// It was offline.
    Offline,
    /// It had another image, and perhaps another size.
    OtherMedium { resized: bool },
}

fn no_handler(subtype: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("there is no handler for the subtype \"{subtype}\""),
    )
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

/// A device that is open and mapped, and what the kernel says of it.
pub(crate) struct OpenDevice {
    uio: Uio,
    mapping: Arc<Mapping>,
    backstore: BackstoreDir,
    geometry: Geometry,
    write_cache: bool,
    identity: Identity,
    meter: Arc<Meter>,
    /// Where to note what is in flight, and what a predecessor has noted.
    table: Option<Table>,
    /// Called when nothing of what the predecessor noted is in flight any more.
    recovered: Recovered,
}

impl OpenDevice {
    /// Asks the kernel what there is to know of a device. May wait for a lock of configfs, see
    /// [`tcmu::configfs`].
    pub(crate) fn new(
        uio: Uio,
        mapping: Arc<Mapping>,
        backstore: BackstoreDir,
        meter: Arc<Meter>,
        table: Option<Table>,
        recovered: Recovered,
    ) -> Result<Self, Error> {
        let geometry = geometry(&backstore)?;
        let write_cache = backstore.write_cache().map_err(attribute("write cache"))?;
        if let Err(error) = backstore.notify_task_management() {
            tracing::warn!(
                lun = uio.name().name,
                %error,
                "the kernel will not say which commands were aborted: they end when they would have anyway"
            );
        }
        let identity = IdentitySource::new(uio.name().name.clone(), backstore.clone()).read();
        Ok(Self {
            uio,
            mapping,
            backstore,
            geometry,
            write_cache,
            identity,
            meter,
            table,
            recovered,
        })
    }

    /// What is to be opened for it.
    pub(crate) fn image_request(&self) -> ImageRequest {
        ImageRequest {
            name: self.uio.name().clone(),
            geometry: self.geometry,
        }
    }

    /// Puts the LUN together; `prepare` sees its unit before the first command.
    fn serve<B: Backstore>(
        self,
        backstore: B,
        prepare: impl FnOnce(&mut LogicalUnit<B>) + Send + 'static,
    ) -> MakeLun {
        let Self {
            uio,
            mapping,
            backstore: dir,
            geometry,
            write_cache,
            identity,
            table,
            recovered,
            meter,
        } = self;
        let folder = dir.path().to_owned();
        let name = uio.name().name.clone();
        let target_core = Arc::new(Configfs::new(dir.clone()));
        let source = IdentitySource::new(name.clone(), dir);
        meter.opened(geometry.size, geometry.block_size.get());
        Box::new(move |context| {
            let unusable = || Error::new(ErrorKind::Internal, "the command ring cannot be used");
            let (ring, interrupted) = match table {
                Some(table) => Ring::with_table(mapping, table)
                    .map_err(|error| unusable().with_source(error))?,
                None => (
                    Ring::new(mapping).map_err(|error| unusable().with_source(error))?,
                    Vec::new(),
                ),
            };
            let names = LateNames::after(&identity, source);
            let mut unit = LogicalUnit::new(backstore, identity, geometry, write_cache)
                .with_target_core(target_core);
            prepare(&mut unit);
            context.introduce(&mut unit, folder);
            Ok(reactor::lun(
                name,
                Box::new(uio),
                (ring, Recovery::new(interrupted, recovered)),
                unit,
                names,
                meter,
                context,
            ))
        })
    }
}

/// The size and shape that the kernel has for a LUN.
fn geometry(dir: &BackstoreDir) -> Result<Geometry, Error> {
    let size = dir.size().map_err(attribute("size"))?;
    let block_size = dir.block_size().map_err(attribute("block size"))?;
    let max_sectors = dir
        .hw_max_sectors()
        .map_err(attribute("longest transfer"))?;
    let block_size = NonZeroU32::new(block_size)
        .filter(|size| (512..=65536).contains(&size.get()) && size.is_power_of_two())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("a block size of {block_size} bytes is not a power of two from 512 on"),
            )
        })?;
    if size == 0 || size % u64::from(block_size.get()) != 0 {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("a size of {size} bytes is not a multiple of the block size, {block_size}"),
        ));
    }
    Ok(Geometry {
        size,
        block_size,
        max_transfer_blocks: max_sectors.max(LEAST_MAX_TRANSFER / block_size),
    })
}

fn attribute(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::os(format!("reading the LUN's {what}"), error)
}

/// A handler, whatever its backstores are.
trait AnyHandler: Send + Sync {
    fn help(&self) -> &str;
    fn check(&self, config: &Config) -> Result<(), Error>;
    fn open(&self, config: Config, request: &ImageRequest) -> Result<Image, Error>;
}

impl<H: Handler> AnyHandler for H {
    fn help(&self) -> &str {
        Handler::help(self)
    }

    fn check(&self, config: &Config) -> Result<(), Error> {
        Handler::check(self, config)
    }

    fn open(&self, config: Config, request: &ImageRequest) -> Result<Image, Error> {
        let ImageRequest { name, geometry } = request;
        let backstore = Handler::open(
            self,
            &OpenRequest {
                config,
                size: geometry.size,
                block_size: geometry.block_size.get(),
            },
        )?;
        let journal = FileJournal::of(name);
        let kept = journal
            .load()
            .map_err(|error| Error::os("reading the LUN's journal", error))?;
        Ok(Box::new(move |device, past| {
            device.serve(backstore, move |unit| {
                unit.keep_journal(Arc::new(journal), kept.as_deref());
                match past {
                    Past::Uneventful => {}
                    Past::Offline => unit.became_ready(),
                    Past::OtherMedium { resized } => unit.announce_medium(resized),
                }
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_leads_only_where_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("x");
        let inside = inside.to_str().unwrap();
        let registry = Registry::new();
        registry.config("file", "/etc/passwd").unwrap();

        registry.allow_paths([("file".to_owned(), vec![folder.path().to_owned()])]);
        assert_eq!(registry.config("file", inside).unwrap().target(), inside);
        let options = format!("{inside};direct=on");
        assert_eq!(registry.config("file", &options).unwrap().target(), inside);
        for config in ["/etc/passwd", "/etc/passwd;direct=on", "pool/image", ""] {
            let error = registry.config("file", config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        registry.config("qcow", "/etc/passwd").unwrap();

        registry.allow_paths([]);
        registry.config("file", "/etc/passwd").unwrap();
    }

    #[test]
    fn layers_lead_only_where_what_is_below_may_lead() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("x");
        std::fs::write(&inside, [0; 512]).unwrap();
        let (inside, outside) = (inside.display(), "/etc/passwd");
        let mut registry = Registry::new();
        registry.add_layers();
        registry.add(tcmu_handler_file::FileHandler);
        let check = |config: &str| registry.check("log", config);
        check(&format!("file/{outside};readonly=on")).unwrap();

        registry.allow_paths([("file".to_owned(), vec![folder.path().to_owned()])]);
        check(&format!("file/{inside}")).unwrap();
        check(&format!("delay/ms=1/file/{inside}")).unwrap();
        for config in [
            format!("file/{outside};readonly=on"),
            format!("delay/ms=1/file/{outside};readonly=on"),
            format!("verify/file/{inside};mirror=file/{outside}\\;readonly=on"),
        ] {
            let error = check(&config).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::PermissionDenied,
                "{config}: {error}"
            );
        }

        registry.remove("file");
        let error = registry.check("log", &format!("file/{inside}"));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}
