//! The report's plots: bars with the spread of the rounds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::plan::{Candidate, Job};
use crate::record::Record;
use crate::stats::{Spread, Summaries, Summary};

/// Colours that stay apart for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 10] = [
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(160, 82, 45),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
    RGBColor(0, 0, 0),
];

/// Pixels right of the plot for the candidates' names.
const LEGEND_WIDTH: u32 = 240;

/// What a plot shows.
struct Subject {
    file: &'static str,
    title: &'static str,
    unit: &'static str,
    shows: fn(Job) -> bool,
    value: fn(&Summary) -> Spread,
}

const SUBJECTS: [Subject; 4] = [
    Subject {
        file: "iops.svg",
        title: "4k requests per second",
        unit: "IOPS",
        shows: |job| job.block_kib == 4,
        value: |summary| summary.iops,
    },
    Subject {
        file: "throughput.svg",
        title: "Throughput of larger requests",
        unit: "MB/s",
        shows: |job| job.block_kib > 4,
        value: |summary| summary.mb_per_s,
    },
    Subject {
        file: "latency.svg",
        title: "99th percentile of the 4k latency",
        unit: "µs",
        shows: |job| job.block_kib == 4,
        value: |summary| summary.p99_us,
    },
    Subject {
        file: "cpu.svg",
        title: "CPU time of daemon and kernel threads per 4k request",
        unit: "µs",
        shows: |job| job.block_kib == 4,
        value: |summary| summary.target_us,
    },
];

/// Draws the plots into `folder` and returns their paths. A plot without a value is left out.
///
/// # Errors
/// A folder that cannot be written to.
pub fn plots(record: &Record, summaries: &Summaries, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut paths = Vec::new();
    for subject in &SUBJECTS {
        let jobs: Vec<Job> = record
            .plan
            .jobs
            .iter()
            .copied()
            .filter(|&job| (subject.shows)(job))
            .collect();
        let bars: Vec<Bar> = bars(subject, &jobs, &record.plan.candidates, summaries);
        if bars.is_empty() {
            continue;
        }
        let path = folder.join(subject.file);
        let subtitle = format!(
            "{}, Linux {}",
            record.machine.rig_kernel, record.machine.guest_kernel
        );
        draw(
            &path,
            subject,
            &subtitle,
            &jobs,
            &record.plan.candidates,
            &bars,
        )
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| path.display().to_string())?;
        paths.push(path);
    }
    Ok(paths)
}

struct Bar {
    /// Left and right edge; each job takes the width 1.
    left: f64,
    right: f64,
    candidate: Candidate,
    value: Spread,
}

fn bars(
    subject: &Subject,
    jobs: &[Job],
    candidates: &[Candidate],
    summaries: &Summaries,
) -> Vec<Bar> {
    let width = 0.84 / candidates.len().max(1) as f64;
    let mut bars = Vec::new();
    for (group, &job) in jobs.iter().enumerate() {
        for (place, &candidate) in candidates.iter().enumerate() {
            let Some((_, summary)) = summaries.best(candidate, job) else {
                continue;
            };
            let left = group as f64 + 0.08 + place as f64 * width;
            bars.push(Bar {
                left,
                right: left + width * 0.92,
                candidate,
                value: (subject.value)(&summary),
            });
        }
    }
    bars
}

fn colour(candidate: Candidate) -> RGBColor {
    let place = Candidate::ALL.iter().position(|&c| c == candidate);
    COLOURS[place.unwrap_or(0) % COLOURS.len()]
}

fn draw(
    path: &Path,
    subject: &Subject,
    subtitle: &str,
    jobs: &[Job],
    candidates: &[Candidate],
    bars: &[Bar],
) -> Result<(), Box<dyn std::error::Error>> {
    let width = 100 + 150 * jobs.len().max(4) as u32;
    let root = SVGBackend::new(path, (width + LEGEND_WIDTH, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plot, legend) = root.split_horizontally(width);
    let top = bars.iter().map(|bar| bar.value.max).fold(0.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&plot)
        .caption(
            format!("{} ({subtitle})", subject.title),
            ("sans-serif", 20),
        )
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..jobs.len() as f64, 0.0..top.max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .max_light_lines(0)
        .y_desc(subject.unit)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 15))
        .draw()?;
    let shown = candidates
        .iter()
        .filter(|&&candidate| bars.iter().any(|bar| bar.candidate == candidate));
    for (row, &candidate) in shown.enumerate() {
        let y = 60 + 24 * row as i32;
        legend.draw(&Rectangle::new(
            [(8, y), (22, y + 14)],
            colour(candidate).filled(),
        ))?;
        legend.draw_text(
            candidate.title(),
            &("sans-serif", 14).into_text_style(&legend),
            (30, y),
        )?;
    }
    chart.draw_series(bars.iter().map(|bar| {
        Rectangle::new(
            [(bar.left, 0.0), (bar.right, bar.value.median)],
            colour(bar.candidate).filled(),
        )
    }))?;
    chart.draw_series(bars.iter().map(|bar| {
        let middle = f64::midpoint(bar.left, bar.right);
        PathElement::new(
            vec![(middle, bar.value.min), (middle, bar.value.max)],
            BLACK,
        )
    }))?;
    for (group, job) in jobs.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
        let style = ("sans-serif", 14).into_font().into_text_style(&root).pos(
            plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Center,
                plotters::style::text_anchor::VPos::Top,
            ),
        );
        root.draw_text(&job.to_string(), &style, (x, y + 10))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Placement;
    use crate::stats::tests::{DEEP, record, sample};

    #[test]
    fn a_plot_names_its_jobs_and_candidates_and_empty_ones_are_left_out() {
        let record = record(
            "uml-built",
            vec![
                sample(Candidate::File, Placement::DaemonOn0, DEEP, 30_000),
                sample(Candidate::Loop, Placement::DaemonFree, DEEP, 10_000),
            ],
        );
        let folder = tempfile::tempdir().expect("temporary folder");
        let paths = plots(&record, &Summaries::of(&record), folder.path()).expect("drawn");
        let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["iops.svg", "latency.svg", "cpu.svg"]);
        let svg = std::fs::read_to_string(&paths[0]).expect("written");
        for text in [
            "4k randread qd32",
            "ours, file",
            "loop device",
            "IOPS",
            "uml-built",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("LIO fileio"), "it was not measured");
    }

    #[test]
    fn bars_do_not_overlap() {
        let samples = Candidate::RAW
            .iter()
            .map(|&c| sample(c, Placement::DaemonFree, DEEP, 1000))
            .collect();
        let record = record("uml-built", samples);
        let summaries = Summaries::of(&record);
        let bars = bars(&SUBJECTS[0], &[DEEP], &Candidate::RAW, &summaries);
        assert_eq!(bars.len(), Candidate::RAW.len());
        assert!(bars.windows(2).all(|pair| pair[0].right <= pair[1].left));
        assert!(bars.iter().all(|bar| bar.left >= 0.0 && bar.right <= 1.0));
    }
}
