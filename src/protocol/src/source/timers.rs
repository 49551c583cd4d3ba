//! What the source does when time passes: pings, and everything that must not last for ever.

use std::time::Duration;

use crate::ids::Time;
use crate::message::AbortCode;

use super::{Outcome, Source, State};

const PING_EVERY: Duration = Duration::from_secs(1);
/// At least so many pings go within the silence after which a connection counts as lost.
const PINGS_A_SILENCE: u32 = 4;
/// Pages that nobody acknowledges for so many silences are not on their way any more: a page
/// stream can fail where the control stream does not.
const STALLED: u32 = 3;

impl Source {
    /// When [`Self::handle_timeout`] wants to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let mut at = None;
        let mut earliest = |t: Time| at = Some(at.map_or(t, |a: Time| a.min(t)));
        if self.connected {
            earliest(self.last_ping + self.ping_every());
            earliest(self.last_heard + self.config.silence);
        }
        if let Some(stalled) = self.stalled_at() {
            earliest(stalled);
        }
        if let Some(deadline) = self.pause_deadline() {
            earliest(deadline);
        }
        if let State::Handover { give_up_at, .. } | State::Telling { give_up_at, .. } = self.state {
            earliest(give_up_at);
        }
        if let Some(ends) = self.settling_ends_at() {
            earliest(ends);
        }
        if self.state == State::Finished {
            None
        } else {
            at
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.state == State::Finished {
            return;
        }
        if self.connected && now >= self.last_heard + self.config.silence {
            let detail = format!(
                "the destination has been silent for {} s",
                self.config.silence.as_secs_f64()
            );
            return self.connection_lost(now, detail);
        }
        if self.connected && now >= self.last_ping + self.ping_every() {
            self.ping(now);
        }
        if self.stalled_at().is_some_and(|t| now >= t) {
            let detail = format!(
                "no page has arrived for {} s, though the destination can be heard",
                (self.config.silence * STALLED).as_secs_f64()
            );
            return self.fail(now, AbortCode::Failed, detail);
        }
        if self.pause_deadline().is_some_and(|t| now >= t) {
            let detail = format!(
                "the switchover did not end within {} ms",
                self.config.pause_deadline.as_millis()
            );
            return self.fail(now, AbortCode::Failed, detail);
        }
        self.end_settling_at(now);
        if let State::Handover { give_up_at, .. } = self.state
            && now >= give_up_at
        {
            let detail =
                "the destination was committed to but has not confirmed: find out whether \
                          the guest runs there before doing anything here"
                    .to_owned();
            self.finish(Outcome::Undecided { detail });
        }
        if let State::Telling {
            give_up_at,
            outcome,
            ..
        } = &self.state
            && now >= *give_up_at
        {
            let outcome = outcome.clone();
            self.finish(outcome);
        }
    }

    fn ping_every(&self) -> Duration {
        PING_EVERY.min(self.config.silence / PINGS_A_SILENCE)
    }

    /// While the guest stands still, the deadline of the pause comes first.
    fn stalled_at(&self) -> Option<Time> {
        (self.state == State::Sending).then(|| self.last_progress + self.config.silence * STALLED)
    }
}
