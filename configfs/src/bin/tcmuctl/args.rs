//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use tcmu_configfs::{DEFAULT_COMMAND_TIMEOUT, DEFAULT_DATA_AREA_MB, DEFAULT_RING_MB};

const EXAMPLES: &str = "\
Examples:
  A disk of this machine from an image file, with the file's size:
      tcmuctl create disk0 --handler file --config /srv/disk0.img --loopback

  The same image for other machines, through iSCSI:
      tcmuctl create disk0 --handler file --config /srv/disk0.img \\
          --iscsi iqn.2026-11.com.example:disk0 --portal 192.0.2.1

  Grow it while it is in use (the image file grows with it):
      tcmuctl resize disk0 20G

  What is there, for people and for programs:
      tcmuctl list
      tcmuctl show disk0 --json

  What the daemon is doing, now and so far:
      tcmuctl top
      tcmuctl stats

  Keep it across a reboot, and take over what targetcli has saved:
      tcmuctl save
      tcmuctl restore
      tcmuctl restore --dry-run /etc/target/saveconfig.json

  Why is it slow, or does not work at all:
      tcmuctl doctor

Exit status: 0 done, 1 failed, 2 wrong usage.";

/// Set up LUNs that a user-space daemon serves (LIO, TCMU)
///
/// A backstore is a LUN whose commands the kernel passes to a daemon, tcmu-runner, which serves it
/// from a file, an image or a remote store. tcmuctl creates backstores, exposes them as disks of
/// this machine or through iSCSI, and shows, resizes and deletes them. It works on the kernel's own
/// tree, /sys/kernel/config/target, so it sees what targetcli made, and targetcli what it made.
///
/// The kernel forgets all of it at a reboot: `save` keeps it in a file, `restore` brings it back.
#[derive(Debug, Parser)]
#[command(name = "tcmuctl", version, max_term_width = 100, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How long to wait for the daemon, and for disks to appear
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// Work on a tree below this folder, for tests
    #[arg(
        long,
        global = true,
        hide = true,
        env = "TCMUCTL_ROOT",
        value_name = "DIR"
    )]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a backstore and expose it
    ///
    /// Prints the block device (--loopback), the portal, target and LUN (--iscsi), or the uio
    /// device if it is not exposed. If a step fails, those before it are undone.
    Create(Create),

    /// List all user backstores
    ///
    /// STATE is what the kernel says: disabled, deactivated (nothing exposes it), activated. DAEMON is
    /// what tcmu-runner says, in the words of `tcmuctl status`, or
    /// unknown: it does not know it;
    /// silent: a daemon runs that cannot be asked;
    /// none: no daemon runs.
    /// Below the table stands what is wrong, where the daemon says so.
    List,

    /// Show everything that is known of a backstore
    ///
    /// What the kernel says and, as DAEMON in `tcmuctl list`, tcmu-runner.
    Show(Select),

    /// Delete backstores and what exposes them
    ///
    /// Refused while a disk is mounted, held or open, an initiator is logged in, or `tcmuctl drain`
    /// holds it. Targets that tcmuctl created go with their last LUN. The data is not touched.
    ///
    /// Several are deleted at the same time, which is faster than one after another. One that cannot
    /// be deleted is named, and the others go on.
    Delete(Delete),

    /// Give a backstore a new size while it serves
    ///
    /// The daemon resizes what it stores on, then disks of this machine show the new size. File
    /// systems are left as they are: grow them afterwards.
    Resize(Resize),

    #[command(flatten)]
    Runner(crate::runner::Command),

    /// Save all backstores and the loopback and iSCSI targets that expose them
    ///
    /// The file is JSON, and holds CHAP's passwords in clear: only root can read it. It is written
    /// in one step; the one before it is kept with .bak behind its name.
    Save(SavedFile),

    /// Make what was saved and is not there
    ///
    /// Reads files of `tcmuctl save` and of targetcli. What is there already is left alone, and
    /// named where it differs. What cannot be made is named, and the rest goes on.
    ///
    /// Exit status 1 if anything failed or differs.
    Restore(Restore),

    /// Look for what stops or slows TCMU on this machine, and say how to mend it
    ///
    /// Nothing is changed. Exit status 1 if something is broken.
    Doctor,

    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },

    /// Print the manual page, or write those of all commands to a folder
    Man {
        /// The folder
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The backstore's name
    pub(crate) name: String,

    /// The handler that serves it, such as file
    #[arg(long, value_name = "SUBTYPE")]
    pub(crate) handler: String,

    /// What the handler serves, with its options: /path;key=value for a file
    ///
    /// This is what follows the first slash of tcmu-runner's configuration strings: for
    /// file//srv/disk0.img, say --handler file --config /srv/disk0.img.
    #[arg(long, value_name = "CONFIG", allow_hyphen_values = true)]
    pub(crate) config: String,

    /// Size of the LUN: bytes or 512M, 10G, 1TiB [default: that of the file or device]
    #[arg(long, value_parser = size)]
    pub(crate) size: Option<u64>,

    /// Logical block size in bytes [default: that of a backing device, else 512]
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u32>,

    /// Expose it as a disk of this machine
    #[arg(long)]
    pub(crate) loopback: bool,

    /// Expose it at this iSCSI target, which is created if there is none
    ///
    /// A new target lets in every initiator that reaches its portal, without a password and for
    /// writing too.
    #[arg(long, value_name = "IQN")]
    pub(crate) iscsi: Option<String>,

    /// Where the iSCSI target listens [default: where it does already, or 127.0.0.1:3260]
    #[arg(long, value_name = "ADDRESS[:PORT]", requires = "iscsi", value_parser = portal)]
    pub(crate) portal: Option<SocketAddr>,

    /// The iSCSI logical unit number [default: the lowest free]
    #[arg(long, requires = "iscsi")]
    pub(crate) lun: Option<u16>,

    /// Unit serial number [default: derived from machine, name, handler and config]
    ///
    /// The default stays the same when the same backstore is created again. Give the same serial
    /// on two machines only if both serve the same data.
    #[arg(long)]
    pub(crate) serial: Option<String>,

    /// Put it into the HBA user_N [default: a new one]
    #[arg(long, value_name = "N")]
    pub(crate) hba: Option<u32>,

    /// Largest transfer of one command in logical blocks [default: 4 MiB]
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) max_sectors: Option<u32>,

    /// Limit of the memory for commands' data in MiB
    ///
    /// Taken as it is needed; commands beyond it wait.
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_DATA_AREA_MB)]
    pub(crate) data_area_mb: u32,

    /// Size of the command ring in MiB, 1 to 8
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_RING_MB)]
    pub(crate) ring_mb: u32,

    /// Seconds after which the kernel fails a command that the daemon has not answered; 0 is never
    ///
    /// With a limit, the initiator may be told that a write failed which the daemon then still
    /// makes, on top of newer data. Without one, commands wait for the daemon, also while it is
    /// being restarted.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_COMMAND_TIMEOUT)]
    pub(crate) cmd_timeout: u32,

    /// Whether the LUN has a write cache
    ///
    /// on: written data is durable after the next flush, which file systems and databases ask for
    /// where they need it, as with a physical disk. off: every write is durable before it
    /// completes.
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    pub(crate) write_cache: Switch,

    /// Do not look whether a daemon is running
    #[arg(long)]
    pub(crate) no_daemon_check: bool,
}

/// A setting that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct Select {
    /// The backstore's name
    pub(crate) name: String,

    /// Its HBA user_N, if several have a backstore of this name
    #[arg(long, value_name = "N")]
    pub(crate) hba: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The backstores' names
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,

    /// Their HBA user_N, if several have a backstore of this name
    #[arg(long, value_name = "N")]
    pub(crate) hba: Option<u32>,

    /// Also if in use, and fail commands that nobody answers
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) select: Select,

    /// The new size: bytes or 512M, 10G, 1TiB
    #[arg(value_parser = size)]
    pub(crate) size: u64,

    /// Also to a smaller size, giving up the data beyond
    #[arg(long)]
    pub(crate) shrink: bool,

    /// Do not look whether a daemon is running
    #[arg(long)]
    pub(crate) no_daemon_check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SavedFile {
    /// The file [default: /etc/tcmu/saveconfig.json]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) saved: SavedFile,

    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not look whether a daemon is running
    #[arg(long)]
    pub(crate) no_daemon_check: bool,
}

fn size(text: &str) -> tcmu_configfs::Result<u64> {
    tcmu_configfs::parse_size(text)
}

fn portal(text: &str) -> tcmu_configfs::Result<SocketAddr> {
    tcmu_configfs::parse_portal(text)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("give whole seconds, at least 1".to_owned()),
    }
}
