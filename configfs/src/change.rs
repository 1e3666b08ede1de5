//! One change of the kernel's tree, and how to make it without being stuck with the kernel.
//!
//! Some changes wait in the kernel for the daemon, uninterruptibly: `enable`, `attrib/dev_size`,
//! the removal of a backstore, and linking or unlinking a LUN whose commands nobody answers. Such
//! a change runs beside the caller, in a thread or in a process of its own, and the caller waits
//! for it only so long. A process is what a command-line tool wants: a thread that stays in the
//! kernel would keep the whole tool from exiting.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// The first argument that makes a program a [`helper`].
pub const HELPER_ARGUMENT: &str = "__apply-change";

/// One change of the kernel's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Write a value to an attribute, in one system call.
    Write(PathBuf, String),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    /// Make a symbolic link at the second path to the first.
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl Change {
    /// Makes the change; may block for as long as the kernel likes.
    fn apply(&self) -> io::Result<()> {
        match self {
            Change::Write(path, value) => {
                // Not write_all: it would repeat the write after EINTR, which here is a verdict.
                let written = fs::OpenOptions::new()
                    .write(true)
                    .open(path)?
                    .write(value.as_bytes())?;
                if written == value.len() {
                    Ok(())
                } else {
                    Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        "the kernel took a part of it",
                    ))
                }
            }
            Change::MakeDir(path) => fs::create_dir(path),
            Change::RemoveDir(path) => fs::remove_dir(path),
            Change::Link(target, link) => std::os::unix::fs::symlink(target, link),
            Change::Unlink(path) => fs::remove_file(path),
        }
    }

    fn to_arguments(&self) -> Vec<OsString> {
        let (verb, first, second): (&str, &Path, Option<&OsStr>) = match self {
            Change::Write(path, value) => ("write", path, Some(OsStr::new(value))),
            Change::MakeDir(path) => ("mkdir", path, None),
            Change::RemoveDir(path) => ("rmdir", path, None),
            Change::Link(target, link) => ("link", target, Some(link.as_os_str())),
            Change::Unlink(path) => ("unlink", path, None),
        };
        let mut arguments = vec![verb.into(), first.as_os_str().to_owned()];
        arguments.extend(second.map(OsStr::to_owned));
        arguments
    }

    fn from_arguments(arguments: &[OsString]) -> Option<Self> {
        let path = |i: usize| arguments.get(i).map(PathBuf::from);
        let expect = |n: usize| (arguments.len() == n).then_some(());
        Some(match arguments.first()?.to_str()? {
            "write" => {
                expect(3)?;
                Change::Write(
                    path(1)?,
                    String::from_utf8(arguments[2].clone().into_vec()).ok()?,
                )
            }
            "mkdir" => Change::MakeDir(expect(2).and_then(|()| path(1))?),
            "rmdir" => Change::RemoveDir(expect(2).and_then(|()| path(1))?),
            "link" => {
                expect(3)?;
                Change::Link(path(1)?, path(2)?)
            }
            "unlink" => Change::Unlink(expect(2).and_then(|()| path(1))?),
            _ => return None,
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Write(path, value) => write!(f, "write {value:?} to {}", path.display()),
            Change::MakeDir(path) => write!(f, "create {}", path.display()),
            Change::RemoveDir(path) => write!(f, "remove {}", path.display()),
            Change::Link(target, link) => {
                write!(f, "link {} to {}", link.display(), target.display())
            }
            Change::Unlink(path) => write!(f, "unlink {}", path.display()),
        }
    }
}

/// Who makes changes: the kernel, or in unit tests what stands in for it.
pub(crate) trait Kernel: fmt::Debug + Send + Sync {
    /// Makes the change; may block.
    fn apply(&self, change: &Change) -> io::Result<()>;
}

/// The kernel itself.
#[derive(Debug)]
pub(crate) struct RealKernel;

impl Kernel for RealKernel {
    fn apply(&self, change: &Change) -> io::Result<()> {
        change.apply()
    }
}

/// Where changes that may block are made.
#[derive(Debug, Clone)]
pub(crate) enum Isolation {
    Thread,
    /// In a process of this program, which calls [`helper`].
    Process(PathBuf),
}

/// Starts a change beside the caller; its result comes through the channel, if ever.
pub(crate) fn start(
    kernel: &Arc<dyn Kernel>,
    isolation: &Isolation,
    change: &Change,
) -> io::Result<Receiver<io::Result<()>>> {
    let (sender, receiver) = mpsc::channel();
    let change = change.clone();
    let work: Box<dyn FnOnce() -> io::Result<()> + Send> = match isolation {
        Isolation::Thread => {
            let kernel = Arc::clone(kernel);
            Box::new(move || kernel.apply(&change))
        }
        Isolation::Process(program) => {
            // All standard streams are cut, lest a pipeline wait for a helper that stays behind,
            // and the process group is its own, so that the terminal's ^C does not end it halfway.
            let child = Command::new(program)
                .arg(HELPER_ARGUMENT)
                .args(change.to_arguments())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            Box::new(move || read_verdict(&child.wait_with_output()?.stdout))
        }
    };
    thread::Builder::new()
        .name("configfs-change".to_owned())
        .spawn(move || {
            // The receiver is gone if the caller gave up waiting: nobody wants the result then.
            let _ = sender.send(work());
        })?;
    Ok(receiver)
}

/// What the helper prints, read back.
fn read_verdict(output: &[u8]) -> io::Result<()> {
    let text = OsStr::from_bytes(output).to_string_lossy();
    let mut words = text.split_whitespace();
    match (words.next(), words.next().and_then(|n| n.parse().ok())) {
        (Some("done"), _) => Ok(()),
        (Some("errno"), Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other(
            "the helper process ended without an answer",
        )),
    }
}

/// The body of a helper process: makes the one change that its arguments (those after
/// [`HELPER_ARGUMENT`]) describe and prints the verdict.
///
/// A program that uses [`Tree::in_processes`](crate::Tree::in_processes) calls this first thing
/// in `main` when its first argument is [`HELPER_ARGUMENT`], and exits.
pub fn helper(arguments: impl IntoIterator<Item = OsString>) {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let Some(change) = Change::from_arguments(&arguments) else {
        return;
    };
    match change.apply() {
        Ok(()) => println!("done"),
        // EIO for what is no system error: a short write.
        Err(error) => println!("errno {}", error.raw_os_error().unwrap_or(5)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_the_way_to_the_helper() {
        for change in [
            Change::Write("/a b".into(), "dev_size=1\n".into()),
            Change::Write("/a".into(), String::new()),
            Change::MakeDir("/a".into()),
            Change::RemoveDir("/a".into()),
            Change::Link("/a".into(), "/b".into()),
            Change::Unlink(OsString::from_vec(vec![b'/', 0xff]).into()),
        ] {
            assert_eq!(Change::from_arguments(&change.to_arguments()), Some(change));
        }
        assert_eq!(Change::from_arguments(&[]), None);
        assert_eq!(Change::from_arguments(&["mkdir".into()]), None);
        assert_eq!(
            Change::from_arguments(&["mkdir".into(), "a".into(), "b".into()]),
            None
        );
        assert_eq!(Change::from_arguments(&["chmod".into(), "a".into()]), None);
    }

    #[test]
    fn the_verdict_of_the_helper_is_read_back() {
        assert!(read_verdict(b"done\n").is_ok());
        let error = read_verdict(b"errno 21\n").expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(21));
        assert!(read_verdict(b"").is_err());
    }

    #[test]
    fn writing_does_not_create_attributes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("attribute");
        let change = Change::Write(path.clone(), "1".into());
        assert_eq!(
            change.apply().expect_err("absent").kind(),
            io::ErrorKind::NotFound
        );
        fs::write(&path, "").expect("made");
        change.apply().expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "1");
    }
}
