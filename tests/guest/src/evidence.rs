//! What a guest can say of itself when a test hangs: logs, tasks, rings.
//!
//! Whatever cannot be read is left out.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::daemon::log_of;

/// So many of a log's last lines are shown.
const LOG_LINES: usize = 200;
/// The kernel takes a moment to write its stacks.
const KERNEL_PATIENCE: Duration = Duration::from_millis(500);

/// Prints what may tell why a test hangs. `test` is its process, and the group of all that it started.
pub(crate) fn show(test: u32) {
    for number in 0.. {
        let path = log_of(test, number);
        let Ok(log) = fs::read_to_string(&path) else {
            break;
        };
        println!("--- {}, the end:", path.display());
        let lines: Vec<_> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            println!("{line}");
        }
    }
    println!("--- tasks of the test, and those that sleep uninterruptibly:");
    let tasks = tasks();
    for task in &tasks {
        if task.group == test || task.state == 'D' {
            task.print(task.group == test);
        }
    }
    println!("--- rings that are mapped, and what disks have outstanding:");
    for task in tasks.iter().filter(|task| task.is_process()) {
        rings(task.process);
    }
    disks();
    println!("--- the kernel's stacks of blocked tasks:");
    blocked_tasks();
    println!("---");
}

struct Task {
    process: u32,
    folder: PathBuf,
    name: String,
    state: char,
    group: u32,
}

impl Task {
    fn read(process: u32, folder: PathBuf) -> Option<Self> {
        // proc_pid_stat(5): number, name in parentheses, state, parent, group.
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            process,
            name: name.to_owned(),
            state: fields.next()?.chars().next()?,
            group: fields.nth(1)?.parse().ok()?,
            folder,
        })
    }

    fn is_process(&self) -> bool {
        self.folder.file_name() == Some(self.process.to_string().as_ref())
    }

    /// With the system call that it is in, where it is one of a `program`.
    fn print(&self, program: bool) {
        let text = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        println!(
            "{} {} {} {}",
            self.folder.display(),
            self.name,
            self.state,
            text("wchan").trim_end()
        );
        for line in text("stack").lines() {
            println!("    {line}");
        }
        if program {
            println!("    {}", text("syscall").trim_end());
        }
    }
}

fn numbers(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn tasks() -> Vec<Task> {
    let mut tasks = Vec::new();
    for process in numbers(Path::new("/proc")) {
        let folder = PathBuf::from(format!("/proc/{process}/task"));
        for task in numbers(&folder) {
            tasks.extend(Task::read(process, folder.join(task.to_string())));
        }
    }
    tasks
}

/// The mailboxes of the rings that a process has mapped.
fn rings(process: u32) {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    for line in maps.lines() {
        let Some((range, (_, device))) = line.split_once('-').zip(line.rsplit_once(' ')) else {
            continue;
        };
        let Ok(start) = u64::from_str_radix(range.0, 16) else {
            continue;
        };
        if let Some(mailbox) = device
            .starts_with("/dev/uio")
            .then(|| Mailbox::read(process, start))
            .flatten()
        {
            println!("{process} {device} {mailbox:?}");
        }
    }
}

/// What the mailbox says (`struct tcmu_mailbox` of include/uapi/linux/target_core_user.h).
#[derive(Debug)]
#[expect(dead_code, reason = "they are printed")]
struct Mailbox {
    size: u32,
    head: u32,
    tail: u32,
}

impl Mailbox {
    fn read(process: u32, start: u64) -> Option<Self> {
        let memory = File::open(format!("/proc/{process}/mem")).ok()?;
        let word = |at: u64| {
            let mut bytes = [0; 4];
            memory.read_exact_at(&mut bytes, start + at).ok()?;
            Some(u32::from_ne_bytes(bytes))
        };
        Some(Self {
            size: word(8)?,
            head: word(12)?,
            tail: word(64)?,
        })
    }
}

fn disks() {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten();
    for disk in entries.flatten().map(|entry| entry.path()) {
        let count = |name: &str| fs::read_to_string(disk.join("device").join(name)).ok();
        if let Some((sent, answered)) = count("iorequest_cnt").zip(count("iodone_cnt")) {
            println!(
                "{} sent {} answered {}",
                disk.display(),
                sent.trim_end(),
                answered.trim_end()
            );
        }
    }
}

/// Has the kernel write the stacks of blocked tasks to its log, and prints that.
fn blocked_tasks() {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let log = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open("/dev/kmsg");
    let Ok(mut log) = log else { return };
    let wanted = log
        .seek(SeekFrom::End(0))
        .and_then(|_| fs::write("/proc/sysrq-trigger", "w"));
    if wanted.is_err() {
        return;
    }
    thread::sleep(KERNEL_PATIENCE);
    // One record a read: priority, number, time and flags, then `;` and the text.
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]);
                let text = text.split_once(';').map_or(&*text, |(_, text)| text);
                println!("{}", text.lines().next().unwrap_or_default());
            }
            Err(e) if e.kind() == ErrorKind::BrokenPipe => println!("(more than its log holds)"),
            Err(_) => return,
        }
    }
}
