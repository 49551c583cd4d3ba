//! The demo's user while it runs: sees a line of progress on stderr, nothing on stdout; may press
//! Ctrl-C.

use std::io;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use vmferry_vmm::api::ProgressLine;

const MIB: f64 = (1 << 20) as f64;

/// The display, and Ctrl-C.
#[derive(Debug)]
pub(super) struct Show {
    bar: ProgressBar,
    /// One for the whole run, so that none is missed while nobody waits for it.
    interrupts: Mutex<Signal>,
    /// `kill` asks for the same.
    terminations: Mutex<Signal>,
}

impl Show {
    /// A display on stderr; where that is no terminal, only the steps are printed. From here on
    /// Ctrl-C is for [`Show::interrupted`]. Inside a tokio runtime.
    ///
    /// # Errors
    /// The error of listening for signals.
    pub(super) fn new() -> io::Result<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The template is fixed and known to be right; the default would do as well.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        let interrupts = Mutex::new(signal(SignalKind::interrupt())?);
        let terminations = Mutex::new(signal(SignalKind::terminate())?);
        Ok(Self {
            bar,
            interrupts,
            terminations,
        })
    }

    /// Resolves when Ctrl-C is pressed or the process is told to end, or was since it last resolved. Safe to drop halfway.
    pub(super) async fn interrupted(&self) {
        let wait = async |signal: &Mutex<Signal>| signal.lock().await.recv().await;
        tokio::select! {
            _ = wait(&self.interrupts) => {}
            _ = wait(&self.terminations) => {}
        }
    }

    /// Something has been done, or begins.
    pub(super) fn step(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// What is waited for.
    pub(super) fn wait(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// How a migration is getting on.
    pub(super) fn progress(&self, p: &ProgressLine) {
        self.bar.set_message(line(p));
        self.bar.tick();
    }

    /// Takes the display away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn line(p: &ProgressLine) -> String {
    if p.jobs_unsettled > 0 && p.phase == "settling" {
        return format!(
            "{} · the guest runs at the destination · {} writes of the source are not settled",
            p.phase, p.jobs_unsettled
        );
    }
    let predicted = p
        .predicted_blackout_ms
        .map_or_else(String::new, |ms| format!(" · blackout if now {ms:.1} ms"));
    format!(
        "{} · pass {} · {} of {} pages to go · {:.0} MiB/s · {:.0} MiB sent · guest stalled {:.1} \
         ms · vCPUs waited {:.1} ms for a processor{predicted}",
        p.phase,
        p.pass,
        p.pages_left,
        p.pages_total,
        p.bytes_per_second / MIB,
        p.bytes_wire as f64 / MIB,
        p.stall_ms,
        p.run_delay_ms,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_line_with_units() {
        let text = line(&ProgressLine {
            phase: "precopy".to_owned(),
            pass: 2,
            pages_left: 5,
            pages_total: 9,
            bytes_per_second: 3.0 * MIB,
            bytes_wire: 7 << 20,
            jobs_unsettled: 0,
            predicted_blackout_ms: Some(1.25),
            stall_ms: 0.5,
            run_delay_ms: 2.5,
            ..ProgressLine::default()
        });
        assert_eq!(
            text,
            "precopy · pass 2 · 5 of 9 pages to go · 3 MiB/s · 7 MiB sent · guest stalled 0.5 ms · \
             vCPUs waited 2.5 ms for a processor · blackout if now 1.2 ms"
        );
    }
}
