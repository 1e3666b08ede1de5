//! The licences of the crates that the programs contain: whoever passes the programs on passes these on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::cargo;

/// How the files begin in which crates have their licences.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// Another author's crate.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    /// An SPDX expression.
    license: String,
    folder: PathBuf,
}

/// Writes down what these packages of the workspace contain of others, and under which licences.
pub(super) fn write(packages: &[&str], path: &Path) -> anyhow::Result<()> {
    let host = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
    ];
    let output = cargo::command(&[&host[..], &[&target()?]].concat()).output();
    let output = output.context("cannot run cargo metadata")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {messages}");
    let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata's output")?;
    let crates = linked(&metadata, packages).context("cargo metadata's output is not as known")?;
    let text = notices(&crates)?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The platform that rustc builds for.
fn target() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = std::process::Command::new(rustc).arg("-vV").output();
    let said = String::from_utf8(output.context("cannot run rustc")?.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its platform")?.to_owned())
}

/// The crates of others that packages are linked with, or are built with macros of; `None` where the
/// metadata is not as known.
fn linked(metadata: &Value, packages: &[&str]) -> Option<BTreeSet<Crate>> {
    let by_id: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let needs: BTreeMap<&str, &Vec<Value>> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node["deps"].as_array()?)))
        .collect();
    let is_root = |package: &Value| {
        let name = package["name"].as_str();
        name.is_some_and(|name| packages.contains(&name)) && package["source"].is_null()
    };
    let mut ways: Vec<&str> = by_id
        .iter()
        .filter(|(_, package)| is_root(package))
        .map(|(id, _)| *id)
        .collect();
    let mut seen = BTreeSet::new();
    let mut crates = BTreeSet::new();
    while let Some(id) = ways.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = by_id.get(id)?;
        if !package["source"].is_null() {
            crates.insert(Crate {
                name: package["name"].as_str()?.to_owned(),
                version: package["version"].as_str()?.to_owned(),
                license: package["license"]
                    .as_str()
                    .unwrap_or("see below")
                    .to_owned(),
                folder: Path::new(package["manifest_path"].as_str()?)
                    .parent()?
                    .into(),
            });
        }
        for need in *needs.get(id)? {
            // Those for tests and build scripts have another kind.
            if need["dep_kinds"]
                .as_array()?
                .iter()
                .any(|kind| kind["kind"].is_null())
            {
                ways.push(need["pkg"].as_str()?);
            }
        }
    }
    Some(crates)
}

/// A list of the crates, and each text once.
fn notices(crates: &BTreeSet<Crate>) -> anyhow::Result<String> {
    let mut list = "The programs contain these crates of other authors:\n\n".to_owned();
    let mut texts = BTreeMap::<String, Vec<&str>>::new();
    for known in crates {
        let Crate {
            name,
            version,
            license,
            folder,
        } = known;
        writeln!(list, "  {name} {version}: {license}")?;
        let mut found = false;
        for entry in
            fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = entry?.path();
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_uppercase();
            if path.is_file() && NAMES.iter().any(|begin| file.starts_with(begin)) {
                let text =
                    fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                let whose = texts.entry(text).or_default();
                whose.push(name);
                whose.dedup();
                found = true;
            }
        }
        ensure!(
            found,
            "{name} {version} ({license}) has no file with its licence"
        );
    }
    for (text, whose) in texts {
        write!(
            list,
            "\n{}\n{}:\n\n{text}\n",
            "-".repeat(72),
            whose.join(", ")
        )?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(kind: Option<&str>) -> Value {
        json!([{ "kind": kind, "target": null }])
    }

    #[test]
    fn what_is_linked_is_listed_with_its_licence() {
        let folder = tempfile::tempdir().unwrap();
        let package = |name: &str, source: Option<&str>| {
            let own = folder.path().join(name);
            fs::create_dir(&own).unwrap();
            fs::write(own.join("License-MIT.txt"), "Be free.\n").unwrap();
            json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT",
                "source": source, "manifest_path": own.join("Cargo.toml") })
        };
        let metadata = json!({
            "packages": [
                package("ours", None), package("linked", Some("x")), package("deeper", Some("x")),
                package("test-only", Some("x")), package("elsewhere", Some("x")),
            ],
            "resolve": { "nodes": [
                { "id": "ours", "deps": [
                    { "pkg": "linked", "dep_kinds": kinds(None) },
                    { "pkg": "test-only", "dep_kinds": kinds(Some("dev")) },
                ] },
                { "id": "linked", "deps": [{ "pkg": "deeper", "dep_kinds": kinds(None) }] },
                { "id": "deeper", "deps": [] },
                { "id": "test-only", "deps": [] },
                { "id": "elsewhere", "deps": [] },
            ] },
        });
        let crates = linked(&metadata, &["ours"]).unwrap();
        let names: Vec<_> = crates.iter().map(|known| known.name.as_str()).collect();
        assert_eq!(names, ["deeper", "linked"]);
        let text = notices(&crates).unwrap();
        assert!(text.contains("\n  linked 1.0.0: MIT\n"), "{text}");
        assert!(text.contains("\ndeeper, linked:\n\nBe free.\n"), "{text}");
        assert_eq!(text.matches("Be free.").count(), 1);

        fs::remove_file(folder.path().join("deeper/License-MIT.txt")).unwrap();
        let error = notices(&crates).unwrap_err().to_string();
        assert!(error.contains("deeper 1.0.0 (MIT)"), "{error}");
    }
}
