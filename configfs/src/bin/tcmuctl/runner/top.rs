//! `tcmuctl top`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use super::client::{Client, LunStats};
use super::error::Error;
use super::figures::Work;
use super::screen::{Input, Screen};
use super::text;
use super::wanted::Wanted;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    wanted: Wanted,

    /// Length of an interval
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,

    /// End after so many intervals
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// What the LUNs are sorted by
    #[arg(long, value_name = "KEY", default_value = "iops")]
    sort: Sort,
}

/// What LUNs are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Commands per second
    Iops,
    /// Bytes per second
    Bytes,
    /// The time that 99 % of the commands do not exceed
    Latency,
    /// Commands that failed per second
    Errors,
    /// Name
    Name,
}

impl Sort {
    fn of_key(key: char) -> Option<Self> {
        Some(match key {
            'i' => Self::Iops,
            'm' => Self::Bytes,
            'l' => Self::Latency,
            'e' => Self::Errors,
            'n' => Self::Name,
            _ => return None,
        })
    }

    fn sort(self, work: &mut [Work]) {
        work.sort_by(|a, b| {
            let figure = |work: &Work| match self {
                Self::Iops => work.all.commands,
                Self::Bytes => work.all.bytes,
                Self::Latency => work.all.quantile(0.99).unwrap_or_default(),
                Self::Errors => work.all.failed,
                Self::Name => 0,
            };
            let names = || (&a.name, a.hba).cmp(&(&b.name, b.hba));
            figure(b).cmp(&figure(a)).then_with(names)
        });
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give seconds, from 0.1 to 3600".to_owned()),
    }
}

/// The figures when they were looked at last.
struct Look {
    time: Instant,
    luns: Vec<LunStats>,
}

impl Look {
    fn now(client: &Client, ids: &[u32]) -> Result<Self, Error> {
        let luns = client.stats(ids)?;
        Ok(Self {
            time: Instant::now(),
            luns,
        })
    }

    /// What has been done since `before`.
    fn since(&self, before: &Self) -> Vec<Work> {
        let interval = (self.time - before.time).as_secs_f64().max(1e-3);
        let luns = self.luns.iter().map(|lun| {
            let earlier = before.luns.iter().find(|earlier| {
                (earlier.id, &earlier.name, earlier.hba) == (lun.id, &lun.name, lun.hba)
            });
            Work::between(earlier, lun, interval)
        });
        luns.collect()
    }
}

pub(super) fn run(client: &Client, arguments: &Arguments, as_json: bool) -> Result<(), Error> {
    let wanted = arguments.wanted.find(client)?;
    let ids: Vec<u32> = wanted.iter().map(|lun| lun.id).collect();
    let mut before = Look::now(client, &ids)?;
    let on_screen = !as_json && io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut screen = on_screen.then(Screen::take).transpose()?;
    let mut sort = arguments.sort;
    let mut work = before.since(&before);
    let mut left = arguments.count;
    while left != Some(0) {
        let deadline = before.time + arguments.interval;
        match &mut screen {
            None => std::thread::sleep(deadline.saturating_duration_since(Instant::now())),
            Some(screen) => loop {
                sort.sort(&mut work);
                screen.draw(&page(&work, sort))?;
                match screen.wait(deadline)? {
                    Some(Input::Quit) => return Ok(()),
                    Some(Input::Key(key)) => sort = Sort::of_key(key).unwrap_or(sort),
                    Some(Input::Redraw) => {}
                    None => break,
                }
            },
        }
        let now = Look::now(client, &ids)?;
        work = now.since(&before);
        before = now;
        sort.sort(&mut work);
        if screen.is_none() {
            let mut out = io::stdout().lock();
            if as_json {
                let work: Vec<Value> = work.iter().map(work_as_json).collect();
                writeln!(out, "{}", Value::from(work))?;
            } else {
                writeln!(out, "{}\n", output::plain(table(&work)))?;
            }
            out.flush()?;
        }
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// What is on the screen.
fn page(work: &[Work], sort: Sort) -> String {
    let iops: f64 = work.iter().map(|w| w.per_second(w.all.commands)).sum();
    let bytes: f64 = work.iter().map(|w| w.per_second(w.all.bytes)).sum();
    let luns = match work.len() {
        1 => "1 LUN".to_owned(),
        luns => format!("{luns} LUNs"),
    };
    let sort = sort
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    format!(
        "{luns}, {} commands/s, {} MB/s, sorted by {sort}; i m l e n sort, q quits\n\n{}",
        text::rate(iops),
        text::rate(bytes / 1e6),
        output::plain(table(work))
    )
}

fn table(work: &[Work]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "LUN",
        "STATE",
        "READ/s",
        "WRITE/s",
        "OTHER/s",
        "READ MB/s",
        "WRITE MB/s",
        "P50",
        "P99",
        "P99.9",
        "QD",
        "FAILED/s",
    ]);
    for work in work {
        let others = work.all.commands - work.reads.commands - work.writes.commands;
        table.add_row([
            work.name.clone(),
            work.state.clone(),
            text::rate(work.per_second(work.reads.commands)),
            text::rate(work.per_second(work.writes.commands)),
            text::rate(work.per_second(others)),
            text::rate(work.per_second(work.reads.bytes) / 1e6),
            text::rate(work.per_second(work.writes.bytes) / 1e6),
            text::time_or_dash(work.all.quantile(0.5)),
            text::time_or_dash(work.all.quantile(0.99)),
            text::time_or_dash(work.all.quantile(0.999)),
            text::rate(work.queue_depth()),
            text::rate(work.per_second(work.all.failed)),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn work_as_json(work: &Work) -> Value {
    let others = work.all.commands - work.reads.commands - work.writes.commands;
    json!({
        "name": work.name,
        "hba": work.hba,
        "state": work.state,
        "interval_s": work.interval,
        "reads_per_s": work.per_second(work.reads.commands),
        "writes_per_s": work.per_second(work.writes.commands),
        "others_per_s": work.per_second(others),
        "read_bytes_per_s": work.per_second(work.reads.bytes),
        "write_bytes_per_s": work.per_second(work.writes.bytes),
        "p50_ns": work.all.quantile(0.5),
        "p99_ns": work.all.quantile(0.99),
        "p999_ns": work.all.quantile(0.999),
        "queue_depth": work.queue_depth(),
        "in_flight": work.in_flight,
        "failed_per_s": work.per_second(work.all.failed),
    })
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::stats;
    use super::*;

    fn works() -> Vec<Work> {
        let mut slow = stats(2, "slow", 5, 5);
        slow.classes[0]
            .failures
            .push(("busy".to_owned(), String::new(), 3));
        let before = stats(1, "fast", 1000, 0);
        vec![
            Work::between(None, &slow, 1.0),
            Work::between(Some(&before), &stats(1, "fast", 3000, 0), 1.0),
            Work::between(None, &stats(3, "idle", 0, 0), 1.0),
        ]
    }

    #[test]
    fn luns_are_sorted_as_wanted() {
        let order = |key| {
            let mut work = works();
            Sort::of_key(key).expect("a key").sort(&mut work);
            let names: Vec<String> = work.into_iter().map(|work| work.name).collect();
            names.join(" ")
        };
        assert_eq!(order('i'), "fast slow idle");
        assert_eq!(order('m'), "fast slow idle");
        assert_eq!(order('l'), "slow fast idle");
        assert_eq!(order('e'), "slow fast idle");
        assert_eq!(order('n'), "fast idle slow");
        assert_eq!(Sort::of_key('x'), None);
    }

    #[test]
    fn the_page_shows_what_was_done() {
        let page = page(&works(), Sort::Latency);
        assert!(
            page.starts_with("3 LUNs, 2010 commands/s, 8.2 MB/s, sorted by latency"),
            "{page}"
        );
        let rows: Vec<Vec<&str>> = page
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let fast = rows.iter().find(|row| row.first() == Some(&"fast"));
        assert_eq!(
            fast.expect("a row")[..],
            [
                "fast", "serving", "2000", "0", "0", "8.2", "0", "1.00", "ms", "1.00", "ms",
                "1.00", "ms", "2.0", "0"
            ]
        );
        let idle = rows.iter().find(|row| row.first() == Some(&"idle"));
        assert_eq!(idle.expect("a row")[7..10], ["-", "-", "-"]);
    }

    #[test]
    fn an_interval_is_a_number_of_seconds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "1e9", "NaN", "inf"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
