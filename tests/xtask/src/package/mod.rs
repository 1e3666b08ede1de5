//! `cargo xtask package`.

mod cargo_deb;
pub(crate) mod inside;
mod manual;
mod notices;
mod root;
mod test;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{cargo, print};

pub(crate) use self::test::test;

/// Build the Debian package
///
/// Builds the programs, writes their manual pages and shell completions, and packs all of it with the
/// units, the D-Bus files and the sample configuration. Prints the package's path. Its maintainer is
/// who the environment variables DEBFULLNAME and DEBEMAIL say. Beside it is one with what backtraces of
/// the programs need, tcmu-runner-rs-dbgsym (.ddeb). The first run installs cargo-deb into the
/// target folder. `cargo xtask test --full` tries it out too.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The package's version [default: the workspace's]
    #[arg(long, value_name = "VERSION")]
    deb_version: Option<String>,
    /// Try it out instead: boot a fresh Debian tree with its own systemd, and there install it, use
    /// it, restart and kill the service under I/O, upgrade and remove it, and install it over Debian's
    /// own tcmu-runner
    #[arg(long, conflicts_with = "deb_version")]
    test: bool,
}

/// The packages that the programs are of.
const PACKAGES: &[&str] = &["tcmu-runner", "tcmu-configfs"];

/// The programs, and the sections of their manual pages.
const PROGRAMS: &[(&str, &str)] = &[("tcmu-runner", "8"), ("tcmuctl", "1")];

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.test {
        test(|_| {})?;
        return Ok(ExitCode::SUCCESS);
    }
    build()?;
    let package = pack(options.deb_version.as_deref())?;
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs and what is made from them.
fn build() -> anyhow::Result<()> {
    print::heading("Building");
    cargo::build_release(PACKAGES)?;
    let folder = cargo::release_dir()?.join("package");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove the last package's files")?;
    }
    write_documents(&folder)?;
    let documents = folder.join("doc");
    fs::create_dir_all(&documents).context("cannot make the documents' folder")?;
    notices::write(PACKAGES, &documents.join("third-party-licenses"))?;
    manual::compress(&documents)
}

/// Packs what was built; returns the package's path.
fn pack(version: Option<&str>) -> anyhow::Result<PathBuf> {
    let cargo_deb = cargo_deb::ready()?;
    print::heading("Packing");
    let mut command = Command::new(cargo_deb);
    command
        .current_dir(cargo::workspace())
        .args(["--no-build", "--package", "tcmu-runner"]);
    if let Some(version) = version {
        command.args(["--deb-version", version]);
    }
    if let Some(maintainer) = maintainer() {
        command.args(["--maintainer", &maintainer]);
    }
    let output = command.output().context("cannot run cargo-deb")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo-deb failed: {messages}");
    let printed = String::from_utf8(output.stdout).context("cargo-deb's output")?;
    match printed.lines().last() {
        Some(path) => Ok(path.into()),
        None => bail!("cargo-deb named no package: {messages}"),
    }
}

/// Who answers for the package: whoever builds it for others says so as Debian's own tools want it.
fn maintainer() -> Option<String> {
    let [name, address] = ["DEBFULLNAME", "DEBEMAIL"].map(|name| std::env::var(name).ok());
    Some(format!("{} <{}>", name?, address?))
}

/// Has the programs write their manual pages and completions, in the folders that the package's
/// description names.
fn write_documents(folder: &Path) -> anyhow::Result<()> {
    for &(program, section) in PROGRAMS {
        let manual = folder.join(format!("man{section}"));
        fs::create_dir_all(&manual).context("cannot make the manual's folder")?;
        match program {
            // It has a page for each of its commands.
            "tcmuctl" => run_program(program, &["man", &manual.display().to_string()], None)?,
            _ => {
                let page = manual.join(format!("{program}.{section}"));
                run_program(program, &["--man"], Some(&page))?;
            }
        }
        manual::compress(&manual)?;
        for (shell, file) in [
            ("bash", program.to_owned()),
            ("zsh", format!("_{program}")),
            ("fish", format!("{program}.fish")),
        ] {
            let folder = folder.join(shell);
            fs::create_dir_all(&folder).context("cannot make the completions' folder")?;
            let option = match program {
                "tcmuctl" => "completions",
                _ => "--completions",
            };
            run_program(program, &[option, shell], Some(&folder.join(file)))?;
        }
    }
    Ok(())
}

fn run_program(program: &str, args: &[&str], into: Option<&Path>) -> anyhow::Result<()> {
    let mut command = Command::new(cargo::release_dir()?.join(program));
    command.args(args);
    if let Some(path) = into {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        command.stdout(file);
    }
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        status.success(),
        "`{program} {}` failed ({status})",
        args.join(" ")
    );
    Ok(())
}
