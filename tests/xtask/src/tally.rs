//! Counting what passed, from the lines that test programs end with.

use comfy_table::{CellAlignment, Table, presets};

use crate::print;

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Adds what a line of output says, if it is one that closes a test program's run.
    pub(crate) fn add_line(&mut self, line: &str) {
        let line = without_colours(line);
        if let Some(counts) = line
            .strip_prefix("test result: ")
            .and_then(Self::of_libtest)
        {
            self.add(counts);
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`
    fn of_libtest(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(". ")?;
        let mut counts = Counts::default();
        for part in rest.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse() else { continue };
            match what {
                "passed" => counts.passed = number,
                "failed" => counts.failed = number,
                "ignored" => counts.skipped = number,
                _ => {}
            }
        }
        Some(counts)
    }

    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // ESC [ digits m
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(c);
        }
    }
    text
}

/// One step of a run.
pub(crate) struct Row {
    pub name: String,
    pub counts: Counts,
    pub seconds: f64,
}

/// The table of all steps, and their sum.
pub(crate) fn summarise(rows: &[Row]) -> (String, Counts) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "step", "passed", "failed", "skipped", "seconds"]);
    let mut sum = Counts::default();
    for row in rows {
        sum.add(row.counts);
        let good = row.counts.failed == 0;
        table.add_row([
            print::verdict(good, if good { "ok" } else { "FAILED" }),
            row.name.clone(),
            row.counts.passed.to_string(),
            row.counts.failed.to_string(),
            row.counts.skipped.to_string(),
            format!("{:.1}", row.seconds),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (table.to_string(), sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: \u{1b}[31mFAILED\u{1b}[m. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.2s",
            "a test printed: test result: ok. 100 passed",
        ] {
            counts.add_line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 8,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(counts.to_string(), "8 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn the_table_sums_all_rows() {
        let row = |name: &str, failed| Row {
            name: name.into(),
            counts: Counts {
                passed: 2,
                failed,
                skipped: 1,
            },
            seconds: 1.0,
        };
        let (table, sum) = summarise(&[row("first", 0), row("second", 3)]);
        assert_eq!(
            sum,
            Counts {
                passed: 4,
                failed: 3,
                skipped: 2
            }
        );
        assert!(
            table.contains("first") && table.contains("FAILED"),
            "{table}"
        );
    }
}
