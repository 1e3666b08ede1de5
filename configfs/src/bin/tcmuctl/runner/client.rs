//! The daemon's interface `Runner1`, from outside.

use std::time::Duration;

use serde::Serialize;
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::DynamicDeserialize;
use zbus::{DeserializeDict, DynamicType, OwnedFd, Proxy, Type, block_on};

use super::error::Error;

pub(super) const NAME: &str = "org.kernel.TCMUService1";
const PATH: &str = "/org/kernel/TCMUService1/Runner1";
pub(super) const INTERFACE: &str = "org.kernel.TCMUService1.Runner1";

/// The daemon.
#[derive(Debug, DeserializeDict, Serialize, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) process_id: u32,
    /// In milliseconds since 1970.
    pub(super) started: u64,
    pub(super) reactors: u32,
    pub(super) log_level: String,
    /// 0: slow commands are not logged.
    pub(super) slow_command_ms: u64,
    /// Empty: nowhere.
    pub(super) metrics: String,
    pub(super) latest_event: u64,
}

/// A LUN.
#[derive(Clone, Debug, DeserializeDict, Serialize, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct Lun {
    /// The minor number of its uio device.
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) hba: u32,
    pub(super) handler: String,
    pub(super) config: String,
    pub(super) state: String,
    pub(super) reason: String,
    /// Since when it is in this state, in milliseconds since 1970.
    pub(super) since: u64,
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) reactor: u32,
    pub(super) ring_resets: u32,
    pub(super) completed: u64,
    pub(super) in_flight: u32,
    /// Whether its image does not answer; an older daemon does not say.
    pub(super) stuck: Option<bool>,
}

impl Lun {
    /// Where it stands, in a word.
    pub(super) fn state(&self) -> &str {
        match self.stuck {
            Some(true) => "stuck",
            _ => &self.state,
        }
    }
}

impl Lun {
    /// Whether it has this name, in the HBA `hba` if one is given.
    pub(super) fn is_called(&self, name: &str, hba: Option<u32>) -> bool {
        self.name == name && hba.is_none_or(|hba| self.hba == hba)
    }

    /// Whether the daemon fetches no commands because somebody wants its image left alone.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.state.as_str(), "draining" | "held")
    }
}

/// The figures of a LUN.
#[derive(Clone, Debug, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct LunStats {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) hba: u32,
    pub(super) state: String,
    pub(super) in_flight: u32,
    pub(super) slow: u64,
    pub(super) classes: Vec<ClassStats>,
}

/// The figures of a class of commands.
#[derive(Clone, Debug, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct ClassStats {
    pub(super) class: String,
    pub(super) commands: u64,
    pub(super) bytes: u64,
    pub(super) nanoseconds: u64,
    /// How many took less than so many nanoseconds, and not less than the bucket before allows.
    pub(super) times: Vec<(u64, u64)>,
    /// Status, sense key, and how many.
    pub(super) failures: Vec<(String, String, u64)>,
}

/// Something that has happened.
#[derive(Clone, Debug, DeserializeDict, Serialize, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct Event {
    pub(super) sequence: u64,
    /// In milliseconds since 1970.
    pub(super) time: u64,
    pub(super) kind: String,
    pub(super) lun: String,
    pub(super) message: String,
}

/// A connection to the daemon.
pub(super) struct Client {
    proxy: Proxy<'static>,
}

impl Client {
    /// Connects to the system bus; answers may take as long as `patience` says.
    pub(super) fn connect(patience: Duration) -> Result<Self, Error> {
        let connect = Builder::system().method_timeout(patience).build();
        let connection = block_on(connect).map_err(|error| Error::NoBus(error.to_string()))?;
        let proxy = zbus::proxy::Builder::new(&connection)
            .destination(NAME)
            .path(PATH)
            .interface(INTERFACE)
            .cache_properties(CacheProperties::No);
        let proxy = block_on(proxy.build())?;
        Ok(Self { proxy })
    }

    /// Calls a method; a daemon that does not run is not started for it.
    pub(super) async fn call<B, R>(&self, method: &'static str, body: &B) -> Result<R, Error>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let flags = MethodFlags::NO_AUTO_START;
        let answer = self.proxy.call_with_flags(method, flags, body).await?;
        answer.ok_or_else(|| Error::Bus("there was no answer".to_owned()))
    }

    pub(super) fn status(&self) -> Result<Status, Error> {
        block_on(self.call("Status", &()))
    }

    pub(super) fn luns(&self) -> Result<Vec<Lun>, Error> {
        block_on(self.call("ListLuns", &()))
    }

    /// The figures of these LUNs, or of all if there are none.
    pub(super) fn stats(&self, luns: &[u32]) -> Result<Vec<LunStats>, Error> {
        block_on(self.call("Stats", &luns))
    }

    pub(super) async fn events_after(&self, after: u64) -> Result<(Vec<Event>, u64), Error> {
        self.call("ListEvents", &after).await
    }

    pub(super) fn set_log_level(&self, level: &str) -> Result<String, Error> {
        block_on(self.call("SetLogLevel", &level))
    }

    pub(super) fn drain(&self, luns: &[u32], seconds: u32) -> Result<(OwnedFd, Vec<u32>), Error> {
        block_on(self.call("Drain", &(luns, seconds)))
    }

    /// The LUNs of these names, each in the HBA `hba` if one is given.
    pub(super) fn find(&self, names: &[String], hba: Option<u32>) -> Result<Vec<Lun>, Error> {
        select(self.luns()?, names, hba)
    }
}

fn select(luns: Vec<Lun>, names: &[String], hba: Option<u32>) -> Result<Vec<Lun>, Error> {
    let mut found: Vec<Lun> = Vec::new();
    for name in names {
        let mut matching = luns.iter().filter(|lun| lun.is_called(name, hba));
        match (matching.next(), matching.next()) {
            (Some(lun), None) => found.push(lun.clone()),
            (Some(one), Some(other)) => {
                return Err(Error::Usage(format!(
                    "there are several LUNs named {name}: say --hba {} or --hba {}",
                    one.hba, other.hba
                )));
            }
            (None, _) => {
                return Err(Error::Refused(format!(
                    "tcmu-runner has no LUN named {name}: see `tcmuctl status`"
                )));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn lun(id: u32, name: &str, hba: u32) -> Lun {
        Lun {
            id,
            name: name.to_owned(),
            hba,
            handler: "file".to_owned(),
            config: "/srv/x.img".to_owned(),
            state: "serving".to_owned(),
            reason: String::new(),
            since: 0,
            size: 1 << 30,
            block_size: 512,
            reactor: 0,
            ring_resets: 0,
            completed: 0,
            in_flight: 0,
            stuck: Some(false),
        }
    }

    #[test]
    fn a_lun_is_found_by_name_and_hba() {
        let luns = || vec![lun(1, "a", 0), lun(2, "b", 0), lun(3, "b", 1)];
        let ids = |names: &[&str], hba| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = select(luns(), &names, hba);
            found.map(|luns| luns.iter().map(|lun| lun.id).collect::<Vec<_>>())
        };
        assert_eq!(ids(&["a"], None).expect("found"), [1]);
        assert_eq!(ids(&["b"], Some(1)).expect("found"), [3]);
        assert!(ids(&[], None).expect("found").is_empty());
        let several = ids(&["a", "b"], None).expect_err("several");
        assert!(
            several.to_string().contains("--hba 0 or --hba 1"),
            "{several}"
        );
        let none = ids(&["a"], Some(1)).expect_err("none");
        assert!(none.to_string().contains("no LUN named a"), "{none}");
    }
}
