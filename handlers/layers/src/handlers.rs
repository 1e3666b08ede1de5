//! The handlers that layers lie over.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tcmu_handler::{Config, Error, ErrorKind, Handler, OpenRequest, Result};

use crate::AnyBackstore;

/// Handlers, by subtype.
pub struct Handlers {
    by_subtype: RwLock<BTreeMap<String, Arc<dyn Opens>>>,
    parse: Box<Parse>,
}

/// Takes the configuration of a subtype apart, or refuses it.
type Parse = dyn Fn(&str, &str) -> Result<Config> + Send + Sync;

/// A handler, whatever its backstores are.
trait Opens: Send + Sync {
    fn check(&self, config: &Config) -> Result<()>;
    fn open(&self, request: &OpenRequest) -> Result<AnyBackstore>;
}

impl<H: Handler> Opens for H {
    fn check(&self, config: &Config) -> Result<()> {
        Handler::check(self, config)
    }

    fn open(&self, request: &OpenRequest) -> Result<AnyBackstore> {
        Handler::open(self, request).map(AnyBackstore::new)
    }
}

impl Handlers {
    /// No handlers yet.
    pub fn new() -> Self {
        Self::with_parser(|_, text| Ok(text.parse()?))
    }

    /// No handlers yet; `parse` takes the configuration of an image below a layer apart, given its
    /// subtype and what stands behind that. It may refuse what must not be opened.
    pub fn with_parser(
        parse: impl Fn(&str, &str) -> Result<Config> + Send + Sync + 'static,
    ) -> Self {
        Self {
            by_subtype: RwLock::default(),
            parse: Box::new(parse),
        }
    }

    /// Adds a handler; it takes the place of one with the same subtype.
    pub fn add<H: Handler>(&self, handler: Arc<H>) {
        let subtype = handler.subtype().to_owned();
        let handlers = self.by_subtype.write();
        let mut handlers = handlers.unwrap_or_else(PoisonError::into_inner);
        handlers.insert(subtype, handler);
    }

    /// Takes a handler away, if it is there.
    pub fn remove(&self, subtype: &str) {
        let handlers = self.by_subtype.write();
        let mut handlers = handlers.unwrap_or_else(PoisonError::into_inner);
        handlers.remove(subtype);
    }

    /// Says whether `subtype` could open `config`, the part behind the subtype. May block.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, subtype: &str, config: &str) -> Result<()> {
        self.find(subtype)?.check(&(self.parse)(subtype, config)?)
    }

    /// Opens an image. May block.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(&self, subtype: &str, request: &OpenRequest) -> Result<AnyBackstore> {
        self.find(subtype)?.open(request)
    }

    /// Opens what lies below a layer.
    pub(crate) fn open_below(
        &self,
        subtype: &str,
        config: &str,
        request: &OpenRequest,
    ) -> Result<AnyBackstore> {
        let config = (self.parse)(subtype, config)?;
        let request = OpenRequest {
            config,
            ..request.clone()
        };
        self.open(subtype, &request)
    }

    fn find(&self, subtype: &str) -> Result<Arc<dyn Opens>> {
        let handlers = self.by_subtype.read();
        let handlers = handlers.unwrap_or_else(PoisonError::into_inner);
        match handlers.get(subtype) {
            Some(handler) => Ok(Arc::clone(handler)),
            None => {
                let known: Vec<&str> = handlers.keys().map(String::as_str).collect();
                let known = known.join(", ");
                Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!("there is no handler \"{subtype}\" to lie over; there are {known}"),
                ))
            }
        }
    }
}

impl Default for Handlers {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let handlers = self.by_subtype.read();
        let handlers = handlers.unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(handlers.keys()).finish()
    }
}
