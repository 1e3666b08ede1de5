//! The figures as text (prometheus.io, "Exposition formats", text format 0.0.4).

use std::fmt::{Display, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::daemon::board::{Board, LunState, LunStatus};
use crate::meter::{Bucket, ClassReading};

/// The limits of the histograms' buckets are 2^14 to 2^35 ns, 16 µs to 34 s: what lies between two
/// of them is counted exactly.
const LIMITS: std::ops::RangeInclusive<u32> = 14..=35;

/// A text that is being written.
#[derive(Default)]
struct Text(String);

/// Names of labels, and their values.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[Labels<'_>], value: impl Display) {
        self.0.push_str(name);
        let labels = labels.iter().flat_map(|labels| labels.iter());
        let mut before = '{';
        for (label, value) in labels {
            self.0.push(before);
            let _ = write!(self.0, "{label}=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
            before = ',';
        }
        if before == ',' {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

/// A LUN with its figures.
struct Lun {
    status: LunStatus,
    hba: String,
    classes: Vec<ClassReading>,
}

impl Lun {
    fn labels(&self) -> [(&str, &str); 2] {
        [("lun", &self.status.name.name), ("hba", &self.hba)]
    }
}

/// All that there is to say at this moment.
pub(super) fn exposition(board: &Board) -> String {
    let meters = board.meters().into_iter();
    let luns: Vec<Lun> = meters
        .map(|(status, meter)| Lun {
            hba: status.name.hba.to_string(),
            classes: meter.classes().collect(),
            status,
        })
        .collect();
    let mut text = Text::default();
    of_daemon(&mut text, board);
    of_luns(&mut text, &luns);
    of_commands(&mut text, &luns);
    text.0
}

fn of_daemon(text: &mut Text, board: &Board) {
    text.family("tcmu_runner_info", "gauge", "The daemon's version.");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.sample("tcmu_runner_info", &[&version], 1);
    let name = "tcmu_runner_start_time_seconds";
    text.family(name, "gauge", "When the daemon was started, since 1970.");
    text.sample(name, &[], seconds_since_1970(board.facts().started));
    let name = "tcmu_runner_events_total";
    text.family(name, "counter", "Events that tcmuctl events shows.");
    text.sample(name, &[], board.latest());
}

fn of_luns(text: &mut Text, luns: &[Lun]) {
    let name = "tcmu_lun_info";
    text.family(name, "gauge", "What serves a LUN, and from what.");
    for lun in luns {
        let device = &lun.status.name;
        let more = [
            ("handler", device.subtype.as_str()),
            ("config", device.config.as_str()),
        ];
        text.sample(name, &[&lun.labels(), &more], 1);
    }
    let name = "tcmu_lun_state";
    text.family(name, "gauge", "1 for the state that a LUN is in.");
    for lun in luns {
        for state in LunState::ALL {
            let is_it = u8::from(lun.status.state == state);
            text.sample(name, &[&lun.labels(), &[("state", state.name())]], is_it);
        }
    }
    type Figure = (
        &'static str,
        &'static str,
        &'static str,
        fn(&LunStatus) -> u64,
    );
    let figures: [Figure; 4] = [
        (
            "tcmu_lun_size_bytes",
            "gauge",
            "Size of a LUN; 0 before its image is open.",
            |lun| lun.reading.size,
        ),
        (
            "tcmu_lun_in_flight_commands",
            "gauge",
            "Commands that have been fetched and not completed.",
            |lun| lun.reading.in_flight.into(),
        ),
        (
            "tcmu_lun_slow_commands_total",
            "counter",
            "Commands that took longer than slow_command_ms of tcmu.conf.",
            |lun| lun.reading.slow,
        ),
        (
            "tcmu_lun_ring_resets_total",
            "counter",
            "Resets of a damaged command ring.",
            |lun| lun.ring_resets.into(),
        ),
    ];
    for (name, kind, help, figure) in figures {
        text.family(name, kind, help);
        for lun in luns {
            text.sample(name, &[&lun.labels()], figure(&lun.status));
        }
    }
}

fn of_commands(text: &mut Text, luns: &[Lun]) {
    let name = "tcmu_lun_commands_total";
    text.family(
        name,
        "counter",
        "Commands completed, whatever their status.",
    );
    for (lun, figures) in each(luns) {
        text.sample(name, &[&lun.labels(), &class(figures)], figures.commands);
    }
    let name = "tcmu_lun_bytes_total";
    text.family(name, "counter", "Bytes moved from or to initiators.");
    for (lun, figures) in each(luns) {
        text.sample(name, &[&lun.labels(), &class(figures)], figures.bytes);
    }
    let name = "tcmu_lun_failed_commands_total";
    text.family(
        name,
        "counter",
        "Commands that ended with another status than GOOD.",
    );
    for (lun, figures) in each(luns) {
        for (failure, count) in &figures.failures {
            let how = [
                ("status", failure.status()),
                ("sense_key", failure.sense_key()),
            ];
            text.sample(name, &[&lun.labels(), &class(figures), &how], count);
        }
    }
    let name = "tcmu_lun_command_seconds";
    let help = "Time from a command's fetch until its completion was published.";
    text.family(name, "histogram", help);
    for (lun, figures) in each(luns) {
        histogram(text, name, &[&lun.labels(), &class(figures)], figures);
    }
}

/// Each class of each LUN.
fn each(luns: &[Lun]) -> impl Iterator<Item = (&Lun, &ClassReading)> {
    luns.iter()
        .flat_map(|lun| lun.classes.iter().map(move |figures| (lun, figures)))
}

fn class(figures: &ClassReading) -> [(&'static str, &'static str); 1] {
    [("class", figures.class.name())]
}

fn histogram(text: &mut Text, name: &str, labels: &[Labels<'_>; 2], figures: &ClassReading) {
    let [lun, class] = *labels;
    let bucket = format!("{name}_bucket");
    for bits in LIMITS {
        let limit = 1_u64 << bits;
        let below = figures.times.iter().take_while(|time| time.limit <= limit);
        let count: u64 = below.map(|Bucket { count, .. }| count).sum();
        let limit = seconds(limit).to_string();
        text.sample(&bucket, &[lun, class, &[("le", &*limit)]], count);
    }
    text.sample(&bucket, &[lun, class, &[("le", "+Inf")]], figures.commands);
    text.sample(&format!("{name}_sum"), labels, seconds(figures.nanoseconds));
    text.sample(&format!("{name}_count"), labels, figures.commands);
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn seconds_since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use prometheus_parse::{Scrape, Value};
    use tcmu::scsi::{SenseKey, Status};

    use super::*;
    use crate::meter::{Class, Failure, Meter};

    /// A board with one LUN of this name to which everything has happened.
    fn board(name: &str) -> Board {
        let board = Board::default();
        let meter = Arc::new(Meter::default());
        let name = format!("tcm-user/3/{name}/file//srv/x.img");
        board.opening(7, &name.parse().unwrap(), 1, 2, Arc::clone(&meter));
        board.turned(7, LunState::Serving, "");
        meter.opened(1 << 20, 512);
        meter.ended(Class::Read, 4096, 10_000);
        meter.ended(Class::Read, 4096, 16_384);
        meter.ended(Class::Read, 4096, 70_000_000_000);
        meter.ended(Class::Write, 0, 1_000_000);
        let failure = Failure::of(Status::CheckCondition, Some(SenseKey::MediumError));
        meter.failed(Class::Write, failure.unwrap());
        meter.slow();
        meter.commands(4, 5);
        board
    }

    fn scrape(text: &str) -> Scrape {
        Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap()
    }

    /// The value of the sample of this name that has these labels, and others.
    fn value<'a>(scrape: &'a Scrape, name: &str, labels: Labels<'_>) -> &'a Value {
        let samples = scrape.samples.iter();
        let mut found = samples.filter(|sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(label) == Some(value);
            sample.metric == name && labels.iter().all(has)
        });
        let sample = found
            .next()
            .unwrap_or_else(|| panic!("no {name} {labels:?}"));
        assert!(found.next().is_none(), "several {name} {labels:?}");
        &sample.value
    }

    #[test]
    fn a_parser_reads_what_was_counted() {
        let text = exposition(&board("disk"));
        let scrape = scrape(&text);
        let lun = ("lun", "disk");
        let gauge = |name, labels: Labels<'_>| match value(&scrape, name, labels) {
            Value::Gauge(value) | Value::Counter(value) => *value,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(gauge("tcmu_runner_info", &[]), 1.0);
        assert_eq!(
            gauge("tcmu_lun_size_bytes", &[lun, ("hba", "3")]),
            1048576.0
        );
        assert_eq!(gauge("tcmu_lun_in_flight_commands", &[lun]), 5.0);
        assert_eq!(gauge("tcmu_lun_slow_commands_total", &[lun]), 1.0);
        assert_eq!(gauge("tcmu_lun_ring_resets_total", &[lun]), 2.0);
        for (state, expected) in [("serving", 1.0), ("failed", 0.0), ("opening", 0.0)] {
            assert_eq!(gauge("tcmu_lun_state", &[lun, ("state", state)]), expected);
        }
        for (class, commands, bytes) in [("read", 3.0, 12288.0), ("write", 1.0, 0.0)] {
            let labels = [lun, ("class", class)];
            assert_eq!(gauge("tcmu_lun_commands_total", &labels), commands);
            assert_eq!(gauge("tcmu_lun_bytes_total", &labels), bytes);
        }
        let failed = [
            lun,
            ("class", "write"),
            ("status", "check-condition"),
            ("sense_key", "medium-error"),
        ];
        assert_eq!(gauge("tcmu_lun_failed_commands_total", &failed), 1.0);
        let reads = [lun, ("class", "read")];
        let Value::Histogram(buckets) = value(&scrape, "tcmu_lun_command_seconds", &reads) else {
            panic!("no histogram");
        };
        let count = |limit: f64| {
            let bucket = buckets.iter().find(|bucket| bucket.less_than == limit);
            bucket.unwrap_or_else(|| panic!("no {limit}")).count
        };
        assert_eq!(count(0.000016384), 1.0);
        assert_eq!(count(0.000032768), 2.0);
        assert_eq!(count(34.359738368), 2.0);
        assert_eq!(count(f64::INFINITY), 3.0);
        assert!(text.contains(
            "tcmu_lun_command_seconds_sum{lun=\"disk\",hba=\"3\",class=\"read\"} 70.000026384\n"
        ));
        assert!(
            text.contains(
                "tcmu_lun_command_seconds_count{lun=\"disk\",hba=\"3\",class=\"read\"} 3\n"
            )
        );
    }

    #[test]
    fn names_are_escaped() {
        for (name, written) in [
            ("a\"b", r#"{lun="a\"b",hba="3"}"#),
            ("a\\b", r#"{lun="a\\b",hba="3"}"#),
            ("a\nb", r#"{lun="a\nb",hba="3"}"#),
            ("ä b{}=,", r#"{lun="ä b{}=,",hba="3"}"#),
        ] {
            let text = exposition(&board(name));
            let line = format!("tcmu_lun_size_bytes{written} 1048576\n");
            assert!(text.contains(&line), "{name:?}: {text}");
        }
    }

    #[test]
    fn every_family_is_declared_once_and_before_its_samples() {
        let text = exposition(&board("disk"));
        let mut declared = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(declared.insert(name), "{name} twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| {
                        name.strip_suffix(end)
                            .filter(|name| declared.contains(name))
                    })
                    .unwrap_or(name);
                assert_eq!(
                    declared.last().map(|_| declared.contains(family)),
                    Some(true),
                    "{line}"
                );
            }
        }
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard = include_str!("../../../systemd/grafana/tcmu-runner.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let text = exposition(&board("disk"));
        let there: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let asked = names(&dashboard);
        assert!(asked.len() >= 8, "{asked:?}");
        for name in &asked {
            assert!(there.contains(name.as_str()), "{name} is not exported");
        }
    }

    /// The names of figures in all strings of a JSON value.
    fn names(value: &serde_json::Value) -> BTreeSet<String> {
        match value {
            serde_json::Value::String(text) => text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| word.starts_with("tcmu_"))
                .map(str::to_owned)
                .collect(),
            serde_json::Value::Array(values) => values.iter().flat_map(names).collect(),
            serde_json::Value::Object(values) => values.values().flat_map(names).collect(),
            _ => BTreeSet::new(),
        }
    }
}
