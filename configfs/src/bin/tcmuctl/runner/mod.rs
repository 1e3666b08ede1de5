//! Commands that ask the running daemon: its state, figures and events, and what it may be asked for.
//!
//! It is asked over D-Bus, at `org.kernel.TCMUService1.Runner1`, and never started for that.

mod client;
mod drain;
mod error;
mod events;
mod figures;
mod level;
mod screen;
mod stats;
mod status;
mod text;
mod times;
mod top;
mod view;
mod wanted;

use std::time::Duration;

use clap::Subcommand;

pub(crate) use self::error::Error;
pub(crate) use self::view::{Seen, View};

use self::client::Client;

/// What it is and what it says.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the running daemon and the LUNs that it serves
    ///
    /// A LUN's state is one of
    /// opening: its image is being opened;
    /// waiting: its image cannot be opened for now, and commands wait;
    /// serving;
    /// stuck: its image does not answer;
    /// draining and held: see `tcmuctl drain`;
    /// offline: commands are answered with NOT READY;
    /// leaving: what is in flight is being finished;
    /// failed: it is not served.
    /// NOTE says why where that needs words.
    Status,

    /// Show what the LUNs have done since they were opened
    ///
    /// Counts of commands by class: read, write, flush (SYNCHRONIZE CACHE), unmap (UNMAP and WRITE
    /// SAME) and other. BYTES is what those that succeeded moved; FAILED are those that ended with
    /// another status than GOOD, of which some are nothing to worry about, such as a unit attention
    /// after a change of size. MEAN, P50, P99, P99.9 and MAX are the time from when tcmu-runner
    /// fetched a command until it published its completion; half of the commands took no longer than
    /// P50. They are at most 6 % too high. --json adds the histograms.
    Stats(stats::Arguments),

    /// Watch the LUNs at work
    ///
    /// Shows each LUN's commands and MB (of 1000000 bytes) per second, how long commands took, how
    /// many were in flight on average (QD) and how many failed per second, in the last interval. On
    /// a terminal it draws over itself: i sorts by commands per second, m by MB/s, l by latency, e by
    /// errors, n by name; q ends it. Elsewhere it prints one table, or with --json one line, per
    /// interval.
    Top(top::Arguments),

    /// Show what has happened
    ///
    /// The daemon keeps the last 1024 events since its start; its log has them too.
    Events(events::Arguments),

    /// Show or change how much the daemon logs
    ///
    /// The change holds until the daemon ends or log_level in its configuration file is changed.
    LogLevel(level::Arguments),

    /// Leave the images of LUNs alone for a moment, or while a command runs
    ///
    /// The daemon fetches no further commands of the LUNs, finishes those in flight, and makes
    /// all that was written durable. Then it holds the LUNs: while COMMAND runs, with --hold until
    /// this is interrupted, otherwise just long enough to know. What initiators ask for meanwhile
    /// waits in the kernel, and is not lost. They give up after a time of their own, often 30
    /// seconds, so be quick.
    ///
    /// An image is then in the state of a machine whose power has failed after everything was
    /// written: good for a snapshot or a copy, while what file systems hold in memory is not in it.
    ///
    /// The LUNs are served again when this ends, however it does, and when --limit is over. If that
    /// is before COMMAND has ended, the exit status is 1; otherwise it is COMMAND's. Meanwhile
    /// `tcmuctl delete` refuses to delete them, unless with --force.
    #[command(after_long_help = drain::EXAMPLES)]
    Drain(drain::Arguments),
}

/// Runs a command.
pub(crate) fn run(command: Command, json: bool, patience: Duration) -> Result<(), Error> {
    let patience = match &command {
        Command::Drain(arguments) => arguments.patience(),
        _ => patience,
    };
    let client = Client::connect(patience)?;
    match command {
        Command::Status => status::run(&client, json),
        Command::Stats(arguments) => stats::run(&client, &arguments, json),
        Command::Top(arguments) => top::run(&client, &arguments, json),
        Command::Events(arguments) => events::run(&client, &arguments, json),
        Command::LogLevel(arguments) => level::run(&client, &arguments, json),
        Command::Drain(arguments) => drain::run(&client, &arguments, json),
    }
}
