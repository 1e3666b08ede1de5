//! A terminal to draw on again and again.

use std::io::{self, Stdout, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::Print;
use crossterm::{cursor, queue, terminal};
use signal_hook::consts::{SIGHUP, SIGTERM};

/// The terminal; as it was before when this is dropped.
pub(super) struct Screen {
    out: Stdout,
    /// A signal says to end; the terminal is given back then, too.
    stop: Arc<AtomicBool>,
}

/// How often it is looked for a signal.
const TICK: Duration = Duration::from_millis(200);

/// The size of a terminal that does not know its own, such as a serial console.
const USUAL_SIZE: (u16, u16) = (80, 24);

impl Screen {
    /// Takes the terminal.
    pub(super) fn take() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        terminal::enable_raw_mode()?;
        // From here on, dropping it gives the terminal back.
        let out = io::stdout();
        let mut screen = Self { out, stop };
        queue!(screen.out, terminal::EnterAlternateScreen, cursor::Hide)?;
        screen.out.flush()?;
        Ok(screen)
    }

    /// Shows a text, cut to the terminal's size.
    pub(super) fn draw(&mut self, text: &str) -> io::Result<()> {
        let (width, height) = match terminal::size()? {
            (0, _) | (_, 0) => USUAL_SIZE,
            size => size,
        };
        queue!(self.out, cursor::MoveTo(0, 0))?;
        for line in text.lines().take(height.into()) {
            let line: String = line.chars().take(width.into()).collect();
            let clear = terminal::Clear(terminal::ClearType::UntilNewLine);
            queue!(self.out, Print(line), clear, cursor::MoveToNextLine(1))?;
        }
        let lines = text.lines().count().min(height.into());
        if lines < height.into() {
            queue!(
                self.out,
                terminal::Clear(terminal::ClearType::FromCursorDown)
            )?;
        }
        self.out.flush()
    }

    /// Waits for a key until `deadline`, or for another size of the terminal.
    pub(super) fn wait(&self, deadline: Instant) -> io::Result<Option<Input>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !event::poll(left.min(TICK))? {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(Some(Input::Quit));
                }
                if left.is_zero() {
                    return Ok(None);
                }
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => return Ok(Some(input(key))),
                Event::Resize(..) => return Ok(Some(Input::Redraw)),
                _ => {}
            }
        }
    }
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Quit,
    Key(char),
    Redraw,
}

fn input(key: KeyEvent) -> Input {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if control => Input::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Input::Quit,
        KeyCode::Char(key) => Input::Key(key),
        _ => Input::Redraw,
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = queue!(self.out, terminal::LeaveAlternateScreen, cursor::Show);
        let _ = self.out.flush();
        let _ = terminal::disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood() {
        let key = |code, modifiers| input(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert_eq!(key(KeyCode::Char('q'), none), Input::Quit);
        assert_eq!(key(KeyCode::Esc, none), Input::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Input::Quit);
        assert_eq!(key(KeyCode::Char('c'), none), Input::Key('c'));
        assert_eq!(key(KeyCode::Up, none), Input::Redraw);
    }
}
