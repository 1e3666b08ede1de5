//! The report as Markdown.

use std::fmt::Write;

use crate::plan::{Candidate, Job};
use crate::record::{Method, Record};
use crate::stats::{Spread, Summaries};
use crate::targets::{Bound, Verdict};

/// The whole report: machine, medians, targets, details.
#[must_use]
pub fn markdown(record: &Record, summaries: &Summaries, verdicts: &[Verdict]) -> String {
    let mut out = String::new();
    header(&mut out, record);
    medians(&mut out, record, summaries);
    targets(&mut out, verdicts);
    syscalls(&mut out, record);
    details(&mut out, record, summaries);
    out
}

/// Adds a line. Writing to a string cannot fail.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {
        writeln!($out, $($text)*).expect("a String takes everything")
    };
}

fn header(out: &mut String, record: &Record) {
    let (machine, plan) = (&record.machine, &record.plan);
    line!(
        out,
        "Measured in `{}` (Linux {}, {} CPUs, {} MiB) on {}, host Linux {}, its load \
         {} before the start; {}. {} rounds of \
         {:.1} s, candidates interleaved; images of {} MiB in tmpfs, {}.",
        machine.rig_kernel,
        machine.guest_kernel,
        machine.cpus,
        machine.memory_mib,
        machine.processor,
        machine.host_kernel,
        machine.load_before,
        machine.fio,
        plan.rounds,
        plan.runtime_ms as f64 / 1000.0,
        plan.image_mib,
        if plan.has_qcow() {
            "one for each who serves a qcow2 image, all with the same bytes"
        } else {
            "one for all"
        },
    );
    if let Some(peer) = &plan.peer {
        line!(out, "C tcmu-runner: Debian's {}.", peer.version);
    }
    if !record.complete {
        line!(
            out,
            "\n**The guest did not come to its end: these are the figures up to then.**"
        );
    }
    for (candidate, reason) in &record.failed {
        line!(out, "\n**{} failed:** {reason}", candidate.title());
    }
}

fn medians(out: &mut String, record: &Record, summaries: &Summaries) {
    line!(out, "\n### Medians, each candidate at its best placement\n");
    write_row(
        out,
        std::iter::once("job".to_owned())
            .chain(record.plan.candidates.iter().map(|c| c.title().to_owned())),
    );
    write_row(
        out,
        std::iter::once("---".to_owned())
            .chain(record.plan.candidates.iter().map(|_| "--:".into())),
    );
    for &job in &record.plan.jobs {
        let cells = record.plan.candidates.iter().map(|&candidate| {
            summaries.best(candidate, job).map_or_else(
                || missing(record, candidate).to_owned(),
                |(_, summary)| speed(job, summary.iops.median, summary.mb_per_s.median),
            )
        });
        write_row(out, std::iter::once(job.to_string()).chain(cells));
    }
}

fn targets(out: &mut String, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    line!(out, "\n### Targets\n");
    line!(
        out,
        "| target | asked | measured | |\n| --- | --: | --: | --- |"
    );
    for verdict in verdicts {
        let asked = match verdict.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
        };
        let measured = verdict
            .measured
            .map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let word = match verdict.reached() {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "not measured",
        };
        line!(out, "| {} | {asked} | {measured} | {word} |", verdict.what);
    }
}

fn syscalls(out: &mut String, record: &Record) {
    if let Some(reason) = &record.no_syscalls {
        line!(out, "\nSystem calls were not counted: {reason}.");
    }
    if record.syscalls.is_empty() {
        return;
    }
    line!(
        out,
        "\n### System calls of the daemon per command\n\n| job | daemon | placement | counted by | \
         calls | commands | per command |\n| --- | --- | --- | --- | --: | --: | --: |"
    );
    for count in &record.syscalls {
        line!(
            out,
            "| {} | {} | {} | {} | {} | {} | {:.3} |",
            count.run.job,
            count.run.candidate.title(),
            count.run.placement.title(count.run.candidate),
            match count.method {
                Method::TraceEvents => "trace events",
                Method::Strace => "strace",
            },
            count.calls,
            count.commands,
            count.calls as f64 / count.commands as f64,
        );
    }
}

fn details(out: &mut String, record: &Record, summaries: &Summaries) {
    line!(
        out,
        "\n### Details\n\nMedian [smallest to largest round]. Target CPU is the time of the \
         daemon's threads and of all kernel threads; what the kernel does within fio's own system \
         calls is in fio's column. The best placement of each candidate is marked *."
    );
    for &job in &record.plan.jobs {
        line!(
            out,
            "\n#### {job}\n\n| candidate | placement | IOPS | MB/s | p50 µs | p99 µs | target CPU \
             s/GiB | target CPU µs/cmd | of it daemon | fio CPU µs/cmd |\n\
             | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
        );
        for &candidate in &record.plan.candidates {
            let best = summaries
                .best(candidate, job)
                .map(|(placement, _)| placement);
            if best.is_none() {
                line!(
                    out,
                    "| {} | {} | | | | | | | | |",
                    candidate.title(),
                    missing(record, candidate)
                );
            }
            for (placement, summary) in summaries.placements(candidate, job) {
                line!(
                    out,
                    "| {} | {}{} | {} | {} | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} | {:.1} |",
                    candidate.title(),
                    placement.title(candidate),
                    if Some(placement) == best { " *" } else { "" },
                    with_range(summary.iops),
                    with_range(summary.mb_per_s),
                    summary.p50_us.median,
                    summary.p99_us.median,
                    summary.target_s_per_gib.median,
                    summary.target_us.median,
                    summary.daemon_us.median,
                    summary.fio_us.median,
                );
            }
        }
    }
}

fn missing(record: &Record, candidate: Candidate) -> &'static str {
    if record.failed.contains_key(&candidate) {
        "failed"
    } else {
        "-"
    }
}

/// Small requests are counted, large ones weighed.
fn speed(job: Job, iops: f64, mb_per_s: f64) -> String {
    if job.block_kib == 4 {
        format!("{} IOPS", short(iops))
    } else {
        format!("{mb_per_s:.0} MB/s")
    }
}

fn with_range(spread: Spread) -> String {
    format!(
        "{} [{} to {}]",
        short(spread.median),
        short(spread.min),
        short(spread.max)
    )
}

fn short(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.1}k", value / 1000.0)
    } else {
        format!("{value:.0}")
    }
}

fn write_row(out: &mut String, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    line!(out, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Placement;
    use crate::stats::tests::{DEEP, record, sample};
    use crate::targets::judge;

    #[test]
    fn the_report_names_failures_placements_and_verdicts() {
        let mut record = record(
            "uml-built",
            vec![
                sample(Candidate::File, Placement::DaemonOn0, DEEP, 30_000),
                sample(Candidate::File, Placement::DaemonOn1, DEEP, 9_000),
                sample(Candidate::TcmuRunner, Placement::DaemonFree, DEEP, 10_000),
            ],
        );
        record
            .failed
            .insert(Candidate::Fileio, "no such module".into());
        let summaries = Summaries::of(&record);
        let text = markdown(&record, &summaries, &judge(&record, &summaries));
        for expected in [
            "**LIO fileio failed:** no such module",
            "| 4k randread qd32 | 30.0k IOPS | - | 10.0k IOPS | failed | - | - |",
            "| 4k randread qd32: speed over tcmu-runner (C), qcow on raw | ≥ 1.5 | 3.00 | reached |",
            "| 4k randread qd32: speed over LIO fileio | ≥ 1 | - | not measured |",
            "| ours, file | daemon on 0 * | 30.0k [30.0k to 30.0k] |",
            "| ours, file | daemon on 1 | 9000 [9000 to 9000] |",
            "| LIO fileio | failed |",
        ] {
            assert!(text.contains(expected), "{expected}\nin\n{text}");
        }
        assert!(!text.contains("did not come to its end"));
    }

    #[test]
    fn an_unfinished_guest_is_named() {
        let mut record = record("qemu", Vec::new());
        record.complete = false;
        let text = markdown(&record, &Summaries::of(&record), &[]);
        assert!(text.contains("did not come to its end"));
        assert!(!text.contains("### Targets"));
    }
}
