//! The system bus: who answers there for the daemon, and who may.

use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::connection::Builder;
use zbus::fdo::{self, DBusProxy};

use super::Finding;
use crate::daemon::PROCESS_NAME;
use crate::tree::Tree;

/// The name that targetcli and `tcmuctl` look for.
const NAME: &str = "org.kernel.TCMUService1";

/// How long the bus may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who owns the name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// There is no bus, for this reason.
    NoBus(String),
    Nobody,
    Process {
        pid: u32,
        user: u32,
    },
}

impl Tree {
    /// `ours` is the process id of the daemon that holds the lock.
    pub(super) fn examine_bus(&self, ours: Option<u32>, findings: &mut Vec<Finding>) {
        if self.roots.is_system() {
            findings.push(self.judge_owner(&owner(), ours));
        }
        findings.extend(self.examine_policies());
    }

    fn judge_owner(&self, owner: &Owner, ours: Option<u32>) -> Finding {
        let finding = |what: String| Finding::ok("dbus name", "", what);
        let (pid, user) = match owner {
            Owner::NoBus(why) => {
                return finding(format!("the system bus cannot be reached: {why}")).slow(
                    "targetcli cannot set up LUNs, and tcmuctl cannot ask the daemon; what is set up \
                     is served all the same",
                    "apt install dbus; systemctl start dbus; systemctl restart tcmu-runner",
                );
            }
            Owner::Nobody if ours.is_none() => {
                return finding(format!("nobody owns {NAME}: no daemon runs"));
            }
            Owner::Nobody => {
                return finding(format!("nobody owns {NAME}, although tcmu-runner runs")).slow(
                    "it was started with --no-dbus, or the bus's policy does not let it own the name: \
                     targetcli cannot set up LUNs, and tcmuctl cannot ask the daemon",
                    "journalctl -u tcmu-runner | grep -i bus; systemctl restart tcmu-runner",
                );
            }
            Owner::Process { pid, user } => (*pid, *user),
        };
        let path = self.roots.proc.join(format!("{pid}/comm"));
        let program = self.read_if_any(&path).unwrap_or_default();
        let found = finding(format!("process {pid} ({program}) owns {NAME}"));
        if ours == Some(pid) {
            found
        } else if user != 0 {
            finding(format!(
                "process {pid} ({program}) of user {user}, who is not root, owns {NAME}"
            ))
            .broken(
                "it hears the configurations of all LUNs that targetcli sets up, and says which are \
                 allowed. The bus's policy lets root alone own the name: some file overrides it",
                format!(
                    "grep -l {NAME} /etc/dbus-1/system.d/* /usr/share/dbus-1/system.d/*; systemctl \
                     reload dbus; kill {pid}; systemctl restart tcmu-runner"
                ),
            )
        } else if program == PROCESS_NAME {
            found.broken(
                "it is not the daemon that holds the lock, but the C tcmu-runner, or another of its \
                 name: targetcli speaks to that one",
                format!("kill {pid}; systemctl restart tcmu-runner"),
            )
        } else {
            found.broken(
                "it is no tcmu-runner: targetcli and tcmuctl speak to it all the same",
                format!("kill {pid}; systemctl restart tcmu-runner"),
            )
        }
    }

    /// Policies of the bus that let everybody in; those of the C tcmu-runner do.
    fn examine_policies(&self) -> Vec<Finding> {
        let files = self.roots.bus_policies.iter().flat_map(|folder| {
            let names = self.names(folder).unwrap_or_default();
            names.into_iter().map(|name| folder.join(name))
        });
        let open = files.filter(|path| {
            path.extension().is_some_and(|end| end == "conf")
                && self.read_if_any(path).is_some_and(|text| is_open(&text))
        });
        open.map(|path| open_policy(&path)).collect()
    }
}

fn open_policy(path: &Path) -> Finding {
    let path = path.display();
    Finding::ok("dbus policy", path.to_string(), "it lets every user in").slow(
        "it is the C tcmu-runner's, or was changed. Every user may own the names of handlers in other \
         processes; tcmu-runner itself refuses whoever is not root",
        format!(
            "mv {path}.dpkg-dist {path} || cp org.kernel.TCMUService1.conf {path}; systemctl reload \
             dbus   # the file is in this tcmu-runner's folder systemd"
        ),
    )
}

/// Whether a policy allows something about the daemon's names in its default context.
fn is_open(policy: &str) -> bool {
    let mut text = String::new();
    for (number, part) in policy.split("<!--").enumerate() {
        let behind = part.split_once("-->").map(|(_, behind)| behind);
        text += if number == 0 {
            part
        } else {
            behind.unwrap_or_default()
        };
    }
    let sections = text.split("<policy").skip(1);
    sections
        .filter_map(|section| section.split_once('>'))
        .filter(|(context, _)| context.contains("default"))
        .filter_map(|(_, rules)| rules.split("</policy").next())
        .flat_map(|rules| rules.split("<allow").skip(1))
        .any(|rule| {
            rule.split('>')
                .next()
                .is_some_and(|rule| rule.contains(NAME))
        })
}

/// Asks the bus.
fn owner() -> Owner {
    let asked = zbus::block_on(async {
        let connection = Builder::system().method_timeout(PATIENCE).build().await?;
        let bus = DBusProxy::new(&connection).await?;
        let credentials = bus.get_connection_credentials(NAME.try_into()?).await;
        Ok::<_, zbus::Error>(credentials)
    });
    match asked {
        Err(error) => Owner::NoBus(error.to_string()),
        Ok(Err(fdo::Error::NameHasNoOwner(_))) => Owner::Nobody,
        Ok(Err(error)) => Owner::NoBus(error.to_string()),
        Ok(Ok(credentials)) => Owner::Process {
            pid: credentials.process_id().unwrap_or_default(),
            user: credentials.unix_user_id().unwrap_or(u32::MAX),
        },
    }
}

/// Where the bus looks for policies.
pub(crate) fn policies(root: &Path) -> [PathBuf; 2] {
    ["etc", "usr/share"].map(|folder| root.join(folder).join("dbus-1/system.d"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::fake::Machine;

    const OURS: &str = include_str!("../../../systemd/org.kernel.TCMUService1.conf");

    #[test]
    fn our_policy_is_closed() {
        assert!(!is_open(OURS));
        assert!(is_open(&OURS.replace("<deny own", "<allow own")));
        assert!(!is_open(""));
        let root = r#"<policy user="root"><allow own="org.kernel.TCMUService1"/></policy>"#;
        assert!(!is_open(root));
        let others = r#"<policy context="default"><allow own="org.example"/></policy>"#;
        assert!(!is_open(&format!("{others}{root}")));
        for rule in [
            r#"<allow send_destination="org.kernel.TCMUService1"/>"#,
            "<allow\n own_prefix='org.kernel.TCMUService1.HandlerManager1' />",
        ] {
            let policy = format!("{root}<policy context='default'>\n{rule}</policy>");
            assert!(is_open(&policy), "{policy}");
            let remark = format!("<policy context='default'><!-- {rule} --></policy>{root}");
            assert!(!is_open(&remark), "{remark}");
        }
    }

    #[test]
    fn the_owner_of_the_name_is_judged() {
        let machine = Machine::new();
        for (pid, comm) in [(7, "tcmu-runner"), (8, "tcmu-runner"), (9, "python3")] {
            machine.write(format!("proc/{pid}/comm"), &format!("{comm}\n"));
        }
        let process = |pid, user| Owner::Process { pid, user };
        use Severity::{Broken, Ok, Slow};
        for (owner, ours, severity, words) in [
            (process(7, 0), Some(7), Ok, "process 7 (tcmu-runner) owns"),
            (
                process(8, 0),
                Some(7),
                Broken,
                "process 8 (tcmu-runner) owns",
            ),
            (process(8, 0), None, Broken, "process 8 (tcmu-runner) owns"),
            (process(9, 0), Some(7), Broken, "process 9 (python3) owns"),
            (
                process(9, 65534),
                Some(7),
                Broken,
                "of user 65534, who is not root",
            ),
            (
                process(8, 65534),
                None,
                Broken,
                "of user 65534, who is not root",
            ),
            (Owner::Nobody, Some(7), Slow, "although tcmu-runner runs"),
            (Owner::Nobody, None, Ok, "no daemon runs"),
            (
                Owner::NoBus("x".to_owned()),
                Some(7),
                Slow,
                "cannot be reached: x",
            ),
        ] {
            let found = machine.tree().judge_owner(&owner, ours);
            assert_eq!(found.severity, severity, "{owner:?}: {found:?}");
            assert!(found.what.contains(words), "{owner:?}: {found:?}");
            assert_eq!(found.mend.is_empty(), severity == Ok, "{found:?}");
        }
    }
}
