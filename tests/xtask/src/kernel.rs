//! `cargo xtask kernel`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use tcmu_rig::Kernel;

use crate::{packages, print};

/// Make a kernel ready for the rig, once; later calls find it done
///
/// Kernels are kept in $XDG_CACHE_HOME/tcmu-runner/kernels (or ~/.cache/...), named by the source's
/// version and what our configuration is. Remove a folder there to have it made again.
///
///   uml        Debian's user-mode-linux package; 1 CPU. Installed, nothing to build.
///   uml-built  the newest Linux that Debian offers as source, built as User-mode Linux with what
///              LUNs need; several CPUs. About 5 minutes and 3 GB while it builds, 25 MB then.
///   qemu       Debian's own kernel, and qemu itself unless it is installed. Downloaded and unpacked
///              into the cache, not installed.
///   host       this machine's kernel: looks whether it will do.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Which kernel
    #[arg(long, default_value = "uml-built")]
    which: Kernel,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    prepare(options.which)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a kernel ready and says where it is.
pub(crate) fn prepare(kernel: Kernel) -> anyhow::Result<()> {
    let ready = kernel.is_ready()?;
    if !ready {
        packages::ensure(kernel.packages())?;
        print::heading(&format!("Making the kernel {kernel} ready"));
        packages::ensure_lists()?;
    }
    let started = Instant::now();
    let place = kernel.prepare(|step| {
        print::note(&format!("{:>4} s  {step}", started.elapsed().as_secs()));
    })?;
    print::note(&format!("the kernel {kernel} is ready: {place}"));
    Ok(())
}
