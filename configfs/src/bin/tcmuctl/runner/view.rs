//! What the daemon knows of the LUNs in the kernel's tree.

use std::time::Duration;

use serde::Serialize;
use tcmu_configfs::{Backstore, Roots, State, find_daemon};

use super::client::{Client, Lun};

/// The tree can be shown without the daemon, so it is not waited for as long as elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// A LUN that the daemon does not know.
const UNKNOWN: &str = "unknown";

/// A daemon that runs and cannot be asked.
const SILENT: &str = "silent";

/// No daemon.
const NONE: &str = "none";

/// Something in the tree, and how the daemon sees it; as JSON, an object with one field more.
#[derive(Debug, Serialize)]
pub(crate) struct Seen<T> {
    #[serde(flatten)]
    pub(crate) tree: T,
    pub(crate) daemon: Service,
}

/// How the daemon sees a LUN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Service {
    /// A state of `tcmuctl status`, or `unknown`, `silent` or `none`.
    pub(crate) state: String,
    /// Why, in words; empty where that needs none.
    pub(crate) reason: String,
    /// Since when, in milliseconds since 1970, where the daemon says so.
    pub(crate) since: Option<u64>,
}

impl Service {
    fn without_daemon(state: &str, reason: impl Into<String>) -> Self {
        Self {
            state: state.to_owned(),
            reason: reason.into(),
            since: None,
        }
    }
}

/// All that the daemon knows, or why there is nothing to be heard of it.
pub(crate) struct View(Result<Vec<Lun>, Service>);

impl View {
    /// Asks the daemon of this machine. It is not started for that, and that it cannot be asked is no
    /// error.
    pub(crate) fn take() -> Self {
        let answer = Client::connect(PATIENCE).and_then(|client| client.luns());
        Self(answer.map_err(|error| match find_daemon(&Roots::system()) {
            Some(_) => Service::without_daemon(SILENT, error.to_string()),
            None => no_daemon(),
        }))
    }

    /// That of a tree below a folder: such a machine has no bus.
    pub(crate) fn without_bus(roots: &Roots) -> Self {
        Self(Err(match find_daemon(roots) {
            Some(sign) => Service::without_daemon(SILENT, format!("there is no bus ({sign})")),
            None => no_daemon(),
        }))
    }

    /// Whether it holds back the commands of a LUN, because `tcmuctl drain` wants it. A daemon that cannot
    /// be asked was not told to, either.
    pub(crate) fn is_held(&self, name: &str, hba: Option<u32>) -> bool {
        let mut luns = self.0.iter().flatten();
        luns.any(|lun| lun.is_called(name, hba) && lun.is_held())
    }

    /// What is in the tree of one LUN, and how the daemon sees that.
    pub(crate) fn on<T>(&self, lun: &Backstore, tree: T) -> Seen<T> {
        Seen {
            tree,
            daemon: self.of(lun),
        }
    }

    fn of(&self, lun: &Backstore) -> Service {
        let luns = match &self.0 {
            Ok(luns) => luns,
            Err(why) => return why.clone(),
        };
        match luns.iter().find(|l| l.hba == lun.hba && l.name == lun.name) {
            Some(known) => Service {
                state: known.state().to_owned(),
                reason: known.reason.clone(),
                since: Some(known.since),
            },
            None if lun.state == State::Disabled => {
                Service::without_daemon(UNKNOWN, "it is not enabled")
            }
            None => Service::without_daemon(
                UNKNOWN,
                format!(
                    "tcmu-runner has no handler {:?} for it, or leaves it to another process",
                    lun.handler
                ),
            ),
        }
    }
}

fn no_daemon() -> Service {
    Service::without_daemon(
        NONE,
        "no daemon runs; start it, for example with `systemctl start tcmu-runner`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::lun;
    use super::*;

    fn backstore(name: &str, hba: u32, state: State) -> Backstore {
        Backstore {
            name: name.to_owned(),
            hba,
            handler: "file".to_owned(),
            config: "/srv/x.img".to_owned(),
            size: 1 << 30,
            block_size: 512,
            max_sectors: 8192,
            state,
            serial: String::new(),
            uio: None,
            exports: Vec::new(),
        }
    }

    #[test]
    fn a_lun_is_known_by_its_name_and_hba() {
        let mut away = lun(4, "disk", 1);
        away.state = "waiting".to_owned();
        away.reason = "no such file".to_owned();
        away.since = 17;
        let view = View(Ok(vec![lun(3, "disk", 0), away]));
        let seen = |name, hba| view.of(&backstore(name, hba, State::Activated));
        assert_eq!(seen("disk", 0).state, "serving");
        let waiting = Service {
            state: "waiting".to_owned(),
            reason: "no such file".to_owned(),
            since: Some(17),
        };
        assert_eq!(seen("disk", 1), waiting);
        for (name, hba) in [("disk", 2), ("disk1", 0)] {
            let service = seen(name, hba);
            assert_eq!((&*service.state, service.since), (UNKNOWN, None));
            assert!(service.reason.contains("handler \"file\""), "{service:?}");
        }
        let new = view.of(&backstore("new", 0, State::Disabled));
        assert!(new.reason.contains("not enabled"), "{new:?}");
    }

    #[test]
    fn a_stuck_image_goes_before_the_state() {
        let mut stuck = lun(3, "disk", 0);
        stuck.stuck = Some(true);
        let view = View(Ok(vec![stuck]));
        let seen = view.of(&backstore("disk", 0, State::Activated));
        assert_eq!(seen.state, "stuck");
    }

    #[test]
    fn a_lun_is_held_from_when_it_is_drained() {
        let mut luns = vec![lun(3, "disk", 0), lun(4, "disk", 1), lun(5, "other", 0)];
        luns[1].state = "held".to_owned();
        luns[2].state = "draining".to_owned();
        let view = View(Ok(luns));
        assert!(view.is_held("disk", None) && view.is_held("disk", Some(1)));
        assert!(!view.is_held("disk", Some(0)));
        assert!(view.is_held("other", None));
        assert!(!view.is_held("nosuch", None));
        assert!(!View(Err(no_daemon())).is_held("disk", None));
    }

    #[test]
    fn what_is_seen_is_one_field_more() {
        let view = View(Err(no_daemon()));
        let lun = backstore("disk", 0, State::Activated);
        let mut json = serde_json::to_value(view.on(&lun, &lun)).expect("JSON");
        let daemon = json.as_object_mut().and_then(|json| json.remove("daemon"));
        assert_eq!(daemon.expect("the field")["state"], "none");
        assert_eq!(json, serde_json::to_value(&lun).expect("JSON"));
    }
}
