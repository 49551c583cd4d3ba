//! How fast the link takes bytes: measured by those who send, while they send.
//!
//! A sender that waits for its stream to take a frame is *busy*. Bytes taken in the time in which
//! at least one sender was busy are the link's throughput where it is what everybody waits for,
//! and where it is not, they show that: the senders' own speed comes out, which is more.

use std::time::Duration;

/// Busy time after which a measurement counts for 1/e: a link that changes is known in two of these.
const MEMORY: Duration = Duration::from_millis(60);

/// What buffers on the way take at once, however slow the link is: before more than this was taken,
/// nothing is known of it.
const BUFFERS: u64 = 2 << 20;
/// What is assumed until then, in bytes per second: 1 Gbit/s.
pub(super) const ASSUMED: f64 = 125e6;

/// Measures a link. Times are since any fixed moment, and do not go back.
#[derive(Clone, Debug, Default)]
pub struct LinkMeter {
    bytes: f64,
    busy: f64,
    /// Senders that are busy, what they send, and since when there is one.
    senders: u32,
    sending: u64,
    since: Duration,
    total: u64,
}

impl LinkMeter {
    /// A sender begins to send `bytes`.
    pub fn begin(&mut self, now: Duration, bytes: u64) {
        if self.senders == 0 {
            self.since = now;
        }
        self.senders += 1;
        self.sending += bytes;
    }

    /// The stream has taken them.
    pub fn end(&mut self, now: Duration, bytes: u64) {
        let took = now.saturating_sub(self.since).as_secs_f64();
        let fade = (-took / MEMORY.as_secs_f64()).exp();
        self.busy = self.busy * fade + took;
        self.bytes = self.bytes * fade + bytes as f64;
        self.since = now;
        self.senders = self.senders.saturating_sub(1);
        self.sending = self.sending.saturating_sub(bytes);
        self.total += bytes;
    }

    /// Bytes per second; none before the link can be told from the buffers before it, or is seen to
    /// be slower than anybody assumes. Where senders have waited for longer
    /// than they should have, what they wait for counts as if it came now.
    #[must_use]
    pub fn bytes_per_second(&self, now: Duration) -> Option<f64> {
        let known = (self.total >= BUFFERS && self.busy > 0.0).then(|| self.bytes / self.busy);
        if self.senders == 0 {
            return known;
        }
        let waited = now.saturating_sub(self.since).as_secs_f64();
        let fade = (-waited / MEMORY.as_secs_f64()).exp();
        let at_best = self.bytes * fade + self.sending as f64;
        let at_best = at_best / (self.busy * fade + waited).max(1e-6);
        match known {
            Some(known) => Some(known.min(at_best)),
            None => Some(at_best).filter(|at_best| *at_best < ASSUMED),
        }
    }

    /// Bytes taken in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends frames of 100,000 bytes one after the other over a link of `rate`, until `until`.
    fn send(meter: &mut LinkMeter, now: &mut Duration, rate: f64, until: Duration) {
        while *now < until {
            meter.begin(*now, 100_000);
            *now += Duration::from_secs_f64(100_000.0 / rate);
            meter.end(*now, 100_000);
            // A moment without anything to send is not the link's.
            *now += MS / 10;
        }
    }

    #[test]
    fn it_measures_the_time_in_which_somebody_waits() {
        let mut meter = LinkMeter::default();
        assert_eq!(meter.bytes_per_second(MS), None);
        let mut now = Duration::ZERO;
        send(&mut meter, &mut now, 125e6, MS * 300);
        let rate = meter.bytes_per_second(now).unwrap();
        assert!((rate / 125e6 - 1.0).abs() < 0.01, "{rate}");
    }

    /// A megabyte and a half at the speed of memory, then 100 Mbit/s.
    #[test]
    fn what_buffers_take_says_nothing_of_the_link() {
        let (mut meter, mut now) = (LinkMeter::default(), Duration::ZERO);
        send(&mut meter, &mut now, 4e9, MS * 2);
        assert!(meter.total() > 1_000_000 && meter.total() < BUFFERS);
        assert_eq!(meter.bytes_per_second(now), None);
        // But for one that stands still.
        let mut still = meter.clone();
        still.begin(now, 100_000);
        assert_eq!(still.bytes_per_second(now), None);
        assert!(still.bytes_per_second(now + MS * 300).unwrap() < 1e6);
        send(&mut meter, &mut now, 12.5e6, MS * 500);
        let rate = meter.bytes_per_second(now).unwrap();
        assert!(rate < 14e6, "{rate}");
    }

    #[test]
    fn two_senders_at_once_are_one_link() {
        let mut meter = LinkMeter::default();
        let mut now = Duration::ZERO;
        for _ in 0..200 {
            meter.begin(now, 50_000);
            meter.begin(now, 50_000);
            now += MS;
            meter.end(now, 50_000);
            meter.end(now, 50_000);
        }
        let rate = meter.bytes_per_second(now).unwrap();
        assert!((rate / 100e6 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn a_link_that_changes_is_known_within_200_ms() {
        let (mut meter, mut now) = (LinkMeter::default(), Duration::ZERO);
        send(&mut meter, &mut now, 125e6, MS * 500);
        send(&mut meter, &mut now, 6.25e6, MS * 700);
        let slow = meter.bytes_per_second(now).unwrap();
        assert!(slow < 2.0 * 6.25e6, "{slow}");
        send(&mut meter, &mut now, 125e6, MS * 900);
        let quick = meter.bytes_per_second(now).unwrap();
        assert!(quick > 0.8 * 125e6, "{quick}");
    }

    #[test]
    fn a_stream_that_takes_nothing_makes_the_link_slow_before_it_ends() {
        let (mut meter, mut now) = (LinkMeter::default(), Duration::ZERO);
        send(&mut meter, &mut now, 125e6, MS * 100);
        meter.begin(now, 100_000);
        let rate = meter.bytes_per_second(now + MS * 200).unwrap();
        assert!(rate < 2e6, "{rate}");
    }
}
