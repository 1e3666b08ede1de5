//! Is somebody there who answers for TCMU devices?
//!
//! The kernel waits for a daemon's answer even when no daemon listens
//! (`tcmu_netlink_event_send` in `drivers/target/target_core_user.c`), so it has to be known
//! before `enable` is written.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::fs::{major, minor};

use crate::roots::Roots;

/// The file that the running daemon keeps locked.
pub const PID_FILE: &str = "/run/tcmu-runner/tcmu-runner.pid";

/// The file in which the running daemon names the subtypes of its handlers, one in each line.
pub const HANDLERS_FILE: &str = "/run/tcmu-runner/handlers";

/// The daemon's process name; the C implementation's is the same.
pub const PROCESS_NAME: &str = "tcmu-runner";

/// Where the reader of an error finds the daemon's side of it.
pub(crate) const LOG_HINT: &str = "The daemon's log (`journalctl -u tcmu-runner`)";

/// TCMU's generic netlink family and its multicast group (`include/uapi/linux/target_core_user.h`).
const FAMILY: &str = "TCM-USER";
const GROUP: &str = "config";

/// How a daemon was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A socket of this network namespace has joined TCMU's multicast group.
    Subscribed,
    /// The pid file is locked.
    PidFile,
    /// A process has the daemon's name: it may be starting, or listen in another network
    /// namespace.
    Process {
        /// Its process id.
        pid: u32,
    },
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Subscribed => f.write_str("a socket hears TCMU's events"),
            Sign::PidFile => f.write_str("its pid file is locked"),
            Sign::Process { pid } => write!(f, "process {pid}"),
        }
    }
}

/// Looks for a daemon that listens to TCMU; the surest sign found is returned.
pub fn find(roots: &Roots) -> Option<Sign> {
    if listeners(roots) > 0 {
        return Some(Sign::Subscribed);
    }
    if pid_file_is_locked(roots) {
        return Some(Sign::PidFile);
    }
    let pid = processes_named(&roots.proc, PROCESS_NAME)
        .first()
        .copied()?;
    Some(Sign::Process { pid })
}

/// The handlers of the running daemon, if `subtype` is none of them and nobody else could serve it.
///
/// A daemon keeps silent about the subtypes of others, so such a device would wait in vain.
pub(crate) fn handlers_without(roots: &Roots, subtype: &str) -> Option<Vec<String>> {
    if !pid_file_is_locked(roots) || listeners(roots) > 1 {
        return None;
    }
    let handlers = fs::read_to_string(&roots.handlers_file).ok()?;
    let handlers: Vec<String> = handlers.lines().map(str::to_owned).collect();
    (!handlers.is_empty() && !handlers.iter().any(|handler| handler == subtype)).then_some(handlers)
}

/// How many sockets of this network namespace hear TCMU's events.
pub(crate) fn listeners(roots: &Roots) -> usize {
    if roots.is_system()
        && let Ok(Some(group)) = config_group()
    {
        subscribers(&read_proc(roots, "net/netlink"), group)
    } else {
        0
    }
}

/// Whether a daemon of ours holds the lock.
pub(crate) fn pid_file_is_locked(roots: &Roots) -> bool {
    fs::metadata(&roots.pid_file)
        .is_ok_and(|meta| is_locked(&read_proc(roots, "locks"), meta.dev(), meta.ino()))
}

fn read_proc(roots: &Roots, name: &str) -> String {
    fs::read_to_string(roots.proc.join(name)).unwrap_or_default()
}

/// The number of TCMU's multicast group; `None` if the kernel has no such family.
fn config_group() -> io::Result<Option<u32>> {
    let mut request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
    });
    request.finalize();
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<GenlMessage<GenlCtrl>>::deserialize(&answer).map_err(io::Error::other)?;
    let NetlinkPayload::InnerMessage(family) = answer.payload else {
        return Ok(None);
    };
    Ok(family
        .payload
        .nlas
        .iter()
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::McastGroups(groups) => groups.iter().find_map(|group| {
                let named = group
                    .iter()
                    .any(|a| matches!(a, McastGrpAttrs::Name(n) if n == GROUP));
                group.iter().find_map(|a| match a {
                    McastGrpAttrs::Id(id) if named => Some(*id),
                    _ => None,
                })
            }),
            _ => None,
        }))
}

/// How many generic netlink sockets `/proc/net/netlink` shows in this multicast group.
///
/// The file shows the first 32 groups only: of a higher one, nothing can be said.
fn subscribers(table: &str, group: u32) -> usize {
    let Some(bit) = group
        .checked_sub(1)
        .and_then(|shift| 1_u32.checked_shl(shift))
    else {
        return 0;
    };
    let is_member = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let protocol = fields.next().and_then(|f| f.parse::<isize>().ok());
        let groups = fields.nth(1).and_then(|f| u32::from_str_radix(f, 16).ok());
        protocol == Some(NETLINK_GENERIC) && groups.is_some_and(|groups| groups & bit != 0)
    };
    table.lines().skip(1).filter(is_member).count()
}

/// Whether `/proc/locks` shows a lock, of any kind, on this file.
///
/// Looking there rather than trying to lock leaves a daemon alone that is about to.
fn is_locked(table: &str, device: u64, inode: u64) -> bool {
    let id = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Waiting for a lock is shown by an arrow, and is not holding it.
        fields.get(1) != Some(&"->") && fields.contains(&id.as_str())
    })
}

/// The processes of this name.
pub(crate) fn processes_named(proc: &Path, name: &str) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then_some(pid)
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETLINK: &str = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   0          00000000 0        0        0     2        0        3
0000000000000000 15  1234       00000010 0        0        0     2        0        3812
0000000000000000 16  2          00000008 0        0        0     2        0        4
0000000000000000 16  1234       00000012 0        0        0     2        0        3812
";

    #[test]
    fn a_subscriber_is_a_generic_netlink_socket_with_the_groups_bit() {
        assert_eq!(subscribers(NETLINK, 5), 1);
        assert_eq!(subscribers(NETLINK, 4), 1);
        assert_eq!(subscribers(NETLINK, 6), 0);
        assert_eq!(subscribers(NETLINK, 0), 0);
        assert_eq!(subscribers(NETLINK, 33), 0);
        let only_other_protocols = NETLINK.replace(" 16 ", " 12 ");
        assert_eq!(subscribers(&only_other_protocols, 5), 0);
        assert_eq!(subscribers("", 5), 0);
    }

    #[test]
    fn a_daemon_that_says_so_lacks_other_handlers() {
        let folder = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(folder.path());
        let lacks = |subtype: &str| handlers_without(&roots, subtype);
        fs::create_dir_all(&roots.proc).expect("a folder");
        fs::create_dir_all(roots.pid_file.parent().expect("a folder")).expect("a folder");
        fs::write(&roots.pid_file, "1\n").expect("written");
        fs::write(&roots.handlers_file, "file\nram\n").expect("written");
        assert_eq!(lacks("rbd"), None, "the daemon is gone");
        let meta = fs::metadata(&roots.pid_file).expect("the pid file");
        let (major, minor) = (major(meta.dev()), minor(meta.dev()));
        let lock = format!(
            "1: FLOCK ADVISORY WRITE 7 {major:02x}:{minor:02x}:{} 0 EOF\n",
            meta.ino()
        );
        fs::write(roots.proc.join("locks"), lock).expect("written");
        assert_eq!(
            lacks("rbd"),
            Some(vec!["file".to_owned(), "ram".to_owned()])
        );
        assert_eq!(lacks("ram"), None);
        fs::remove_file(&roots.handlers_file).expect("removed");
        assert_eq!(lacks("rbd"), None, "the daemon does not say");
    }

    #[test]
    fn a_lock_that_is_held_counts_and_one_that_waits_does_not() {
        let device = rustix::fs::makedev(0, 0x1a);
        for kind in ["FLOCK  ADVISORY ", "OFDLCK ADVISORY ", "POSIX  ADVISORY "] {
            let table = format!("1: {kind} WRITE 77 00:1a:5678 0 EOF\n");
            assert!(is_locked(&table, device, 5678), "{table}");
            assert!(!is_locked(&table, device, 567));
            assert!(!is_locked(&table, rustix::fs::makedev(0, 0x1b), 5678));
        }
        let waiting = "1: -> FLOCK  ADVISORY  WRITE 77 00:1a:5678 0 EOF\n";
        assert!(!is_locked(waiting, device, 5678));
    }

    #[test]
    fn a_process_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().expect("a folder");
        for (pid, comm) in [
            ("self", "tcmu-runner"),
            ("12", "tcmu-runner-x"),
            ("9", "sh"),
        ] {
            fs::create_dir(folder.path().join(pid)).expect("a folder");
            fs::write(folder.path().join(pid).join("comm"), format!("{comm}\n")).expect("written");
        }
        assert!(processes_named(folder.path(), PROCESS_NAME).is_empty());
        fs::write(folder.path().join("9/comm"), "tcmu-runner\n").expect("written");
        assert_eq!(processes_named(folder.path(), PROCESS_NAME), [9]);
    }

    #[test]
    fn the_kernels_answer_about_the_family_is_understood() {
        // With the family or without: asking must not fail, nor hang.
        config_group().expect("generic netlink answers");
    }
}
