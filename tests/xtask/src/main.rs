//! `cargo xtask`: the commands of this project.

fn main() {}
