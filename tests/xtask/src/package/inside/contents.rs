//! Whether the package has all that belongs to it.

use anyhow::ensure;

use super::guest::{CALL, Guest};

/// What people and other programs look for, beside the manual pages of tcmuctl's commands.
const FILES: &[&str] = &[
    "/etc/dbus-1/system.d/tcmu-runner.conf",
    "/etc/tcmu/tcmu.conf",
    "/usr/bin/tcmu-runner",
    "/usr/bin/tcmuctl",
    "/usr/lib/systemd/system/tcmu-restore.service",
    "/usr/lib/systemd/system/tcmu-runner-offline.service",
    "/usr/lib/systemd/system/tcmu-runner.service",
    "/usr/lib/tmpfiles.d/tcmu-runner.conf",
    "/usr/share/bash-completion/completions/tcmu-runner",
    "/usr/share/bash-completion/completions/tcmuctl",
    "/usr/share/dbus-1/system-services/org.kernel.TCMUService1.service",
    "/usr/share/doc/tcmu-runner-rs/README.md",
    "/usr/share/doc/tcmu-runner-rs/changelog.Debian.gz",
    "/usr/share/doc/tcmu-runner-rs/copyright",
    "/usr/share/doc/tcmu-runner-rs/third-party-licenses.gz",
    "/usr/share/fish/vendor_completions.d/tcmu-runner.fish",
    "/usr/share/fish/vendor_completions.d/tcmuctl.fish",
    "/usr/share/man/man1/tcmuctl.1.gz",
    "/usr/share/man/man8/tcmu-runner.8.gz",
    "/usr/share/tcmu-runner/grafana/tcmu-runner.json",
    "/usr/share/zsh/vendor-completions/_tcmu-runner",
    "/usr/share/zsh/vendor-completions/_tcmuctl",
];

pub(super) fn are_complete(guest: &Guest) -> anyhow::Result<()> {
    let listed = guest.output("dpkg --listfiles tcmu-runner-rs")?;
    let listed: Vec<&str> = listed.lines().collect();
    for file in FILES {
        ensure!(listed.contains(file), "{file} is missing: {listed:#?}");
    }
    // Nothing is missing in the tree either: some packaging tools leave folders out.
    guest.sh("dpkg --verify tcmu-runner-rs")?;
    let commands = commands(&guest.output("tcmuctl --help")?);
    for known in ["create", "list", "restore", "doctor", "top", "drain"] {
        ensure!(
            commands.iter().any(|c| c == known),
            "no {known}: {commands:?}"
        );
    }
    for command in &commands {
        let page = format!("/usr/share/man/man1/tcmuctl-{command}.1.gz");
        ensure!(listed.contains(&&*page), "{page} is missing");
        guest.sh(&format!(
            "gzip --decompress --stdout {page} | grep -q '^.TH'"
        ))?;
        guest.sh(&format!(
            "grep -q -w '{command}' /usr/share/bash-completion/completions/tcmuctl"
        ))?;
    }
    guest.sh("grep 'On Debian systems' /usr/share/doc/tcmu-runner-rs/copyright")?;
    guest.sh(
        "gzip --decompress --stdout /usr/share/doc/tcmu-runner-rs/third-party-licenses.gz \
         | grep '^  io-uring [0-9.]*: MIT'",
    )?;
    for file in ["tcmu.conf", "dbus-1/system.d/tcmu-runner.conf"] {
        guest.sh(&format!(
            "dpkg-query --show --showformat '${{Conffiles}}\\n' tcmu-runner-rs | grep '{file}'"
        ))?;
    }
    guest.sh("dpkg-query --show --showformat '${Maintainer}\\n' tcmu-runner-rs")?;
    guest.sh("test -d /run/tcmu-runner && tcmu-runner --version && tcmuctl --version")?;
    guest.sh(
        "systemd-analyze verify --man=no tcmu-runner.service tcmu-runner-offline.service \
         tcmu-restore.service",
    )?;
    guest.sh(&format!("{CALL} | grep -c 'object path'"))
}

/// The commands in a help text.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn commands_are_found_in_a_help_text() {
        let help = "It does\n\nUsage: x\n\nCommands:\n  create  Create it\n  log-level  Show\n  \
                    help  Print\n\nOptions:\n  --json\n";
        assert_eq!(commands(help), ["create", "log-level"]);
    }
}
