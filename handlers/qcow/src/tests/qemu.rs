//! qemu's programs, which know what a qcow2 image is.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a program that must succeed.
fn succeed(command: &mut Command) {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs one of qemu's programs, when nobody else uses the image.
fn output(command: &mut Command) -> Output {
    loop {
        let output = command.output().unwrap_or_else(|error| {
            panic!("{command:?} (of the Debian package qemu-utils) cannot run: {error}")
        });
        // Another test's thread that starts a program holds our files, and so their locks, until
        // the program runs.
        let error = String::from_utf8_lossy(&output.stderr);
        if !error.contains("Failed to get") {
            return output;
        }
        std::thread::yield_now();
    }
}

/// Runs qemu-img in a folder.
pub(super) fn img_in(folder: &Path, args: &[&str]) {
    succeed(Command::new("qemu-img").args(args).current_dir(folder));
}

/// Runs commands of qemu-io on an image.
pub(super) fn io(path: &Path, commands: &[&str]) {
    let mut args = Vec::new();
    for command in commands {
        args.extend(["-c", command]);
    }
    args.extend(["-f", "qcow2", text(path)]);
    succeed(Command::new("qemu-io").args(args).current_dir(folder(path)));
}

/// Checks an image: it has no errors, and no leaks unless they are expected.
pub(super) fn check(path: &Path, leaks: bool) {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-f", "qcow2", text(path)]);
    let output = output(command.current_dir(folder(path)));
    let code = output.status.code();
    assert!(
        code == Some(0) || (leaks && code == Some(3)),
        "{}: qemu-img check ends with {code:?}: {}{}",
        path.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What qemu-img says of an image.
pub(super) fn info(path: &Path) -> String {
    let mut command = Command::new("qemu-img");
    let output = output(command.args(["info", "-f", "qcow2", text(path)]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The bytes of the virtual disk, as qemu sees them.
pub(super) fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw-copy");
    let args = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(path),
        text(&raw),
    ];
    img_in(folder(path), &args);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// The folder of an image. qemu looks for external data files in the folder that it runs in.
fn folder(path: &Path) -> &Path {
    path.parent().unwrap()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
