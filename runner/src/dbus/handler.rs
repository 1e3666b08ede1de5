//! `org.kernel.TCMUService1`: one object for each handler.

use std::sync::Arc;

use futures_channel::oneshot;
use zbus::message::Header;
use zbus::{Connection, fdo};

use super::access::admit;
use super::checks::{self, Checks, rest};
use super::subtype::Subtype;
use crate::daemon::{MediumChange, Petition, Petitioner};

/// The interface's name.
pub(super) const INTERFACE: &str = "org.kernel.TCMUService1";

/// The longest answer of another process that is passed on, in characters.
const LONGEST_REASON: usize = 4096;

/// Where a handler is.
pub(super) enum Place {
    /// In this process.
    Here(Petitioner),
    /// In the process that owns the handler's name.
    Elsewhere,
}

/// A handler as an object on the bus.
pub(super) struct HandlerObject {
    pub(super) subtype: Subtype,
    pub(super) description: String,
    pub(super) place: Place,
    pub(super) checks: Arc<Checks>,
}

#[zbus::interface(name = "org.kernel.TCMUService1", introspection_docs = false)]
impl HandlerObject {
    /// What a configuration of this handler looks like.
    #[zbus(property(emits_changed_signal = "const"))]
    fn config_desc(&self) -> &str {
        &self.description
    }

    /// Whether `config`, subtype included, could be opened, and why it could not.
    #[zbus(out_args("ok", "reason"))]
    async fn check_config(
        &self,
        config: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(bool, String)> {
        admit(connection, &header).await?;
        let verdict = match self.place {
            Place::Here(_) => self.checks.run(&self.subtype, config).await,
            Place::Elsewhere => self.ask(connection, config).await,
        };
        Ok(match verdict {
            Ok(()) => (true, String::new()),
            Err(reason) => (false, reason),
        })
    }

    /// Gives the LUN `name` another image, and the size in bytes that is said; commands wait
    /// meanwhile. `rc` is 0, or a negative errno: the LUN then has the image that it had.
    #[zbus(out_args("rc", "message"))]
    async fn change_medium(
        &self,
        name: &str,
        size: u64,
        config: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(i32, String)> {
        admit(connection, &header).await?;
        let Place::Here(petitioner) = &self.place else {
            return Ok((
                -rustix::io::Errno::OPNOTSUPP.raw_os_error(),
                format!("the handler {} is another process; ask it", self.subtype),
            ));
        };
        if let Err(reason) = self.checks.run(&self.subtype, config).await {
            return Ok((-rustix::io::Errno::INVAL.raw_os_error(), reason));
        }
        // The check has looked at the subtype.
        let config = rest(&self.subtype, config).unwrap_or_default().to_owned();
        let (done, outcome) = oneshot::channel();
        petitioner.send(Petition::ChangeMedium(MediumChange {
            lun: name.to_owned(),
            subtype: self.subtype.as_str().to_owned(),
            config,
            size,
            done: Box::new(move |result| {
                // The caller may have gone.
                let _ = done.send(result);
            }),
        }));
        Ok(match outcome.await {
            Ok(Ok(())) => (0, String::new()),
            Ok(Err(error)) => (-error.errno(), error.to_string()),
            Err(oneshot::Canceled) => (
                -rustix::io::Errno::CANCELED.raw_os_error(),
                "the daemon is stopping, or the LUN was removed meanwhile".to_owned(),
            ),
        })
    }
}

impl HandlerObject {
    /// Passes a check on to the handler's process.
    async fn ask(&self, connection: &Connection, config: &str) -> Result<(), String> {
        rest(&self.subtype, config)?;
        let call = connection.call_method(
            Some(self.subtype.bus_name()),
            self.subtype.external_path(),
            Some(INTERFACE),
            "CheckConfig",
            &config,
        );
        let answer = match self.checks.runtime().timeout(checks::LIMIT, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(format!(
                    "the process of the handler {} did not check it: {error}",
                    self.subtype
                ));
            }
            Err(_) => {
                return Err(format!(
                    "the process of the handler {} did not answer within {} s",
                    self.subtype,
                    checks::LIMIT.as_secs()
                ));
            }
        };
        let body = answer.body();
        match body.deserialize::<(bool, &str)>() {
            Ok((true, _)) => Ok(()),
            Ok((false, reason)) => Err(reason.chars().take(LONGEST_REASON).collect()),
            Err(error) => Err(format!(
                "the process of the handler {} gave an answer that is none: {error}",
                self.subtype
            )),
        }
    }
}
