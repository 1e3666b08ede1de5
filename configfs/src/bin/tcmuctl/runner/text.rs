//! Figures as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time in nanoseconds, with three digits.
pub(super) fn time(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// The same, or a dash where there is none.
pub(super) fn time_or_dash(nanoseconds: Option<u64>) -> String {
    nanoseconds.map_or_else(|| "-".to_owned(), time)
}

fn three_digits(value: f64) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// A count or rate, in thousands where it is long.
pub(super) fn rate(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", three_digits(value / 1e6)),
        1e4.. => format!("{}k", three_digits(value / 1e3)),
        10.0.. => format!("{value:.0}"),
        0.05.. => format!("{value:.1}"),
        _ => "0".to_owned(),
    }
}

/// How long ago a moment was, in milliseconds since 1970.
pub(super) fn age(milliseconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = now
        .unwrap_or_default()
        .saturating_sub(Duration::from_millis(milliseconds));
    span(age.as_secs())
}

fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A moment in milliseconds since 1970, as RFC 3339 writes it, in UTC.
pub(super) fn moment(milliseconds: u64) -> String {
    // The year 9999 is the last that it can write.
    const LAST: u64 = 253_402_300_799_999;
    let moment = UNIX_EPOCH + Duration::from_millis(milliseconds.min(LAST));
    humantime::format_rfc3339_millis(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (nanoseconds, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (17_408, "17.4 µs"),
            (262_144, "262 µs"),
            (1_048_576, "1.05 ms"),
            (34_359_738_368, "34.4 s"),
        ] {
            assert_eq!(time(nanoseconds), expected);
        }
        assert_eq!(time_or_dash(None), "-");
    }

    #[test]
    fn rates_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (0.26, "0.3"),
            (12.4, "12"),
            (9_999.0, "9999"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (2_500_000.0, "2.50M"),
        ] {
            assert_eq!(rate(value), expected);
        }
    }

    #[test]
    fn spans_are_rounded_down() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (3599, "59 min"),
            (3600 * 23 + 61, "23 h 1 min"),
            (86400 * 9 + 3600, "9 d 1 h"),
        ] {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn moments_are_written_in_utc() {
        assert_eq!(moment(1_795_270_245_678), "2026-11-21T14:10:45.678Z");
        assert!(moment(u64::MAX).starts_with("9999-12-31T"));
    }
}
