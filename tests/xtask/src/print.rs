//! What people see: headings, commands, steps.

use anstyle::{AnsiColor, Style};

const HEADING: Style = AnsiColor::Cyan.on_default().bold();
const COMMAND: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Environment variable that asks for colours although the output is no terminal (a guest's never
/// is).
pub(crate) const COLOUR_VAR: &str = "CLICOLOR_FORCE";

/// Whether to print in colour.
pub(crate) fn in_colour() -> bool {
    let set = |var| std::env::var_os(var).is_some_and(|v| !v.is_empty() && v != "0");
    !set("NO_COLOR") && (set(COLOUR_VAR) || rustix::termios::isatty(std::io::stdout()))
}

fn styled(style: Style, text: &str) -> String {
    if in_colour() {
        format!("{style}{text}{style:#}")
    } else {
        text.to_owned()
    }
}

/// Begins a part of the output.
pub(crate) fn heading(text: &str) {
    println!("\n{}", styled(HEADING, &format!("== {text}")));
}

/// Shows a command before its output.
pub(crate) fn command(line: &str) {
    println!("{}", styled(COMMAND, &format!("$ {line}")));
}

/// Says what is going on.
pub(crate) fn note(text: &str) {
    println!("   {text}");
}

/// `text` in the colour of success or failure.
pub(crate) fn verdict(good: bool, text: &str) -> String {
    styled(if good { GOOD } else { BAD }, text)
}
