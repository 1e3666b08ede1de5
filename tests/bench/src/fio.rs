//! fio's arguments and its JSON.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;

use crate::plan::{Candidate, EMPTY_WRITTEN_MIB, Image, Job, Run};

/// fio's arguments for `run` on the block device `device`; the JSON goes to `output`.
#[must_use]
pub fn arguments(run: Run, device: &Path, runtime_ms: u64, output: &Path) -> Vec<String> {
    let job = run.job;
    // tmpfs knows no other way to its files than the page cache.
    let direct = u8::from(run.candidate != Candidate::Bare);
    let mut arguments = vec![
        "--name=bench".to_owned(),
        format!("--filename={}", device.display()),
        "--ioengine=libaio".to_owned(),
        format!("--direct={direct}"),
        format!("--rw={}", job.pattern.fio()),
        format!("--bs={}k", job.block_kib),
        format!("--iodepth={}", job.depth),
        // Without a map of visited blocks fio itself costs less.
        "--norandommap".to_owned(),
        "--output-format=json".to_owned(),
        format!("--output={}", output.display()),
    ];
    match job.image {
        Image::Full => arguments.extend([
            "--time_based".to_owned(),
            format!("--runtime={runtime_ms}ms"),
        ]),
        Image::Empty => arguments.push(format!("--io_size={EMPTY_WRITTEN_MIB}m")),
    }
    arguments
}

/// What is taken from fio's JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Median completion latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the completion latency in microseconds.
    pub p99_us: f64,
    /// Requests completed.
    pub commands: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// CPU seconds that the job's process used.
    pub cpu_s: f64,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobOutput>,
}

#[derive(Deserialize)]
struct JobOutput {
    error: i32,
    job_runtime: f64,
    usr_cpu: f64,
    sys_cpu: f64,
    read: Side,
    write: Side,
}

#[derive(Deserialize)]
struct Side {
    io_bytes: u64,
    bw_bytes: f64,
    iops: f64,
    total_ios: u64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    percentile: Option<Percentiles>,
}

#[derive(Deserialize)]
struct Percentiles {
    #[serde(rename = "50.000000")]
    p50: f64,
    #[serde(rename = "99.000000")]
    p99: f64,
}

/// Reads fio's JSON for `job`. fio writes warnings before the JSON: they are skipped.
///
/// # Errors
/// Text that is no fio JSON, a job that ended with an error, and a job that did nothing.
pub fn parse(text: &str, job: Job) -> Result<Outcome> {
    let start = text.find('{').context("fio wrote no JSON")?;
    let output: Output =
        serde_json::from_str(&text[start..]).context("fio's JSON is not understood")?;
    let [only] = <[JobOutput; 1]>::try_from(output.jobs)
        .map_err(|jobs| anyhow::anyhow!("fio reports {} jobs instead of one", jobs.len()))?;
    if only.error != 0 {
        let error = std::io::Error::from_raw_os_error(only.error);
        bail!("fio's job ended with an error: {error}");
    }
    let side = if job.pattern.is_read() {
        only.read
    } else {
        only.write
    };
    if side.total_ios == 0 {
        bail!("fio completed no request");
    }
    let percentiles = side
        .clat_ns
        .percentile
        .context("fio reports no latency percentiles")?;
    Ok(Outcome {
        iops: side.iops,
        bytes_per_s: side.bw_bytes,
        p50_us: percentiles.p50 / 1000.0,
        p99_us: percentiles.p99 / 1000.0,
        commands: side.total_ios,
        bytes: side.io_bytes,
        cpu_s: (only.usr_cpu + only.sys_cpu) / 100.0 * only.job_runtime / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Pattern, Placement};

    const READ: Job = Job {
        block_kib: 4,
        depth: 32,
        pattern: Pattern::RandRead,
        image: Image::Full,
    };

    fn json(error: i32, ios: u64) -> String {
        format!(
            r#"fio: a warning
{{ "fio version": "fio-3.33", "jobs": [ {{
  "jobname": "bench", "error": {error}, "job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 15.5,
  "read": {{ "io_bytes": 81920, "bw_bytes": 40960, "iops": 10.5, "total_ios": {ios},
    "clat_ns": {{ "min": 1, "percentile": {{ "1.000000": 5, "50.000000": 12000, "99.000000": 99000 }} }} }},
  "write": {{ "io_bytes": 0, "bw_bytes": 0, "iops": 0.0, "total_ios": 0, "clat_ns": {{ "min": 0 }} }}
}} ] }}"#
        )
    }

    #[test]
    fn the_side_that_the_job_used_is_read() {
        let outcome = parse(&json(0, 20), READ).expect("good output");
        assert_eq!(
            outcome,
            Outcome {
                iops: 10.5,
                bytes_per_s: 40960.0,
                p50_us: 12.0,
                p99_us: 99.0,
                commands: 20,
                bytes: 81920,
                cpu_s: 0.51,
            }
        );
        let write = Job {
            pattern: Pattern::RandWrite,
            ..READ
        };
        assert!(parse(&json(0, 20), write).is_err(), "nothing was written");
    }

    #[test]
    fn failed_and_idle_jobs_are_errors() {
        let error = parse(&json(5, 20), READ).expect_err("EIO").to_string();
        assert!(error.contains("Input/output error"), "{error}");
        assert!(parse(&json(0, 0), READ).is_err());
        assert!(parse("", READ).is_err());
        assert!(parse("fio: unknown option", READ).is_err());
        assert!(parse(r#"{"jobs": []}"#, READ).is_err());
    }

    #[test]
    fn arguments_name_the_job() {
        let run = |candidate| Run {
            candidate,
            placement: Placement::AllFree,
            job: READ,
        };
        let arguments = |candidate| {
            arguments(
                run(candidate),
                Path::new("/dev/sda"),
                1500,
                Path::new("/run/o"),
            )
        };
        assert!(arguments(Candidate::Bare).contains(&"--direct=0".to_owned()));
        let arguments = arguments(Candidate::File);
        for expected in [
            "--direct=1",
            "--rw=randread",
            "--bs=4k",
            "--iodepth=32",
            "--runtime=1500ms",
            "--filename=/dev/sda",
            "--output=/run/o",
        ] {
            assert!(arguments.iter().any(|a| a == expected), "{expected}");
        }
    }
}
