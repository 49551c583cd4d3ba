//! What a user sees on stderr while something is waited for.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

/// Steps stay, the status is replaced by the next one.
pub(super) trait Display: Send {
    /// Something has happened.
    fn step(&mut self, text: &str);
    /// How it is getting on.
    fn status(&mut self, text: &str);
    /// Takes the status away.
    fn end(&mut self);
}

/// A moving line where stderr is a terminal, plain lines elsewhere.
pub(super) fn on_stderr() -> Box<dyn Display> {
    if io::stderr().is_terminal() {
        Box::new(Bar::new())
    } else {
        Box::new(Plain::new(Box::new(io::stderr())))
    }
}

/// A line that moves.
struct Bar {
    bar: ProgressBar,
    moves: bool,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The template is fixed and known to be right; the default would do as well.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        Self { bar, moves: false }
    }
}

impl Display for Bar {
    fn step(&mut self, text: &str) {
        self.bar.suspend(|| line(&mut io::stderr(), text));
    }

    fn status(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
        if !std::mem::replace(&mut self.moves, true) {
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Where nobody looks on, the status is only worth a line now and then.
const EVERY: Duration = Duration::from_secs(5);

/// Lines one after the other.
pub(super) struct Plain {
    write: Box<dyn Write + Send>,
    last: Option<Instant>,
}

impl Plain {
    pub(super) fn new(write: Box<dyn Write + Send>) -> Self {
        Self { write, last: None }
    }
}

impl Display for Plain {
    fn step(&mut self, text: &str) {
        line(&mut self.write, text);
    }

    fn status(&mut self, text: &str) {
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last >= EVERY) {
            self.last = Some(now);
            line(&mut self.write, text);
        }
    }

    fn end(&mut self) {}
}

/// Nobody can be told that stderr does not take a line.
fn line(write: &mut dyn Write, text: &str) {
    let _ = writeln!(write, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::fake::Paper;

    #[tokio::test(start_paused = true)]
    async fn plain_lines_do_not_flood_a_log() {
        let paper = Paper::default();
        let mut plain = Plain::new(Box::new(paper.clone()));
        plain.step("begins");
        for second in 0..11 {
            plain.status(&format!("{second} s"));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        plain.step("ends");
        plain.end();
        assert_eq!(paper.text(), "begins\n0 s\n5 s\n10 s\nends\n");
    }
}
