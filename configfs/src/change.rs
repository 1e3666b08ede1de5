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
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    Process(Helpers),
}

/// Processes of a program that calls [`helper`]: one makes change after change, as long as none keeps
/// it in the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Helpers {
    program: PathBuf,
    idle: Arc<Mutex<Option<Helper>>>,
}

#[derive(Debug)]
struct Helper {
    child: Child,
    /// Closed, it makes an idle helper end.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Helpers {
    pub(crate) fn of(program: PathBuf) -> Self {
        Self {
            program,
            idle: Arc::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Option<Helper>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> io::Result<Helper> {
        match self.idle().take() {
            Some(helper) => Ok(helper),
            None => Helper::start(&self.program),
        }
    }

    fn make(&self, mut helper: Helper, change: &Change) -> io::Result<()> {
        // One that does not answer is not asked again.
        let answer = helper.ask(change)?;
        *self.idle() = Some(helper);
        read_verdict(&answer)
    }
}

impl Helper {
    fn start(program: &Path) -> io::Result<Self> {
        // All standard streams are cut, lest a pipeline wait for a helper that stays behind, and the
        // process group is its own, so that the terminal's ^C does not end it halfway.
        let mut child = Command::new(program)
            .arg(HELPER_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let requests = child.stdin.take();
        let answers = child.stdout.take();
        let answers = answers.ok_or_else(|| io::Error::other("no way to the helper process"))?;
        Ok(Self {
            child,
            requests,
            answers: BufReader::new(answers),
        })
    }

    fn ask(&mut self, change: &Change) -> io::Result<String> {
        let requests = self.requests.as_mut();
        let requests = requests.ok_or_else(|| io::Error::other("the helper process is gone"))?;
        write_request(requests, &change.to_arguments())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = self.child.wait();
    }
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
        Isolation::Process(helpers) => {
            let (helpers, helper) = (helpers.clone(), helpers.take()?);
            Box::new(move || helpers.make(helper, &change))
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

/// Writes the words of a change: their number, then each with its length before it.
fn write_request(to: &mut impl Write, words: &[OsString]) -> io::Result<()> {
    let mut request = vec![words.len() as u8];
    for word in words {
        request.extend((word.len() as u32).to_ne_bytes());
        request.extend(word.as_bytes());
    }
    to.write_all(&request)?;
    to.flush()
}

/// The words of the next change; `None` if there are no more.
fn read_request(from: &mut impl Read) -> io::Result<Option<Vec<OsString>>> {
    let mut count = [0];
    if from.read(&mut count)? == 0 {
        return Ok(None);
    }
    let word = |from: &mut dyn Read| {
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let mut bytes = vec![0; u32::from_ne_bytes(len) as usize];
        from.read_exact(&mut bytes)?;
        Ok(OsString::from_vec(bytes))
    };
    (0..count[0])
        .map(|_| word(from))
        .collect::<io::Result<_>>()
        .map(Some)
}

/// What the helper answers.
fn read_verdict(answer: &str) -> io::Result<()> {
    let mut words = answer.split_whitespace();
    match (words.next(), words.next().and_then(|n| n.parse().ok())) {
        (Some("done"), _) => Ok(()),
        (Some("errno"), Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other(
            "the helper process ended without an answer",
        )),
    }
}

/// The body of a helper process: makes the changes that come through its standard input, and prints
/// the verdict on each.
///
/// A program that uses [`Tree::in_processes`](crate::Tree::in_processes) calls this first thing
/// in `main` when its first argument is [`HELPER_ARGUMENT`], and exits.
pub fn helper() {
    let (mut requests, mut answers) = (io::stdin().lock(), io::stdout().lock());
    while let Ok(Some(words)) = read_request(&mut requests) {
        let Some(change) = Change::from_arguments(&words) else {
            return;
        };
        let answer = match change.apply() {
            Ok(()) => "done".to_owned(),
            // EIO for what is no system error: a short write.
            Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(5)),
        };
        if writeln!(answers, "{answer}")
            .and_then(|()| answers.flush())
            .is_err()
        {
            return;
        }
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
            let mut request = Vec::new();
            write_request(&mut request, &change.to_arguments()).expect("written");
            let mut rest = &request[..];
            let words = read_request(&mut rest).expect("read").expect("a request");
            assert_eq!(Change::from_arguments(&words), Some(change));
            assert!(read_request(&mut rest).expect("read").is_none());
            assert!(read_request(&mut &request[..request.len() - 1]).is_err());
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
        assert!(read_verdict("done\n").is_ok());
        let error = read_verdict("errno 21\n").expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(21));
        assert!(read_verdict("").is_err());
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
