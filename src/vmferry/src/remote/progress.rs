//! How a migration gets on, in words: pages sent against pages dirtied, pass by pass.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_service::model::MigrationProgress;

use super::units::{ms, plain, size};

/// The passes so far. What the guest dirties during a pass is what the next one begins with.
#[derive(Debug, Default)]
pub(super) struct Passes {
    pass: u32,
    sent: u64,
    began: Duration,
    dirtied_per_second: Option<f64>,
}

impl Passes {
    /// Takes news at the time `now`; a line where a pass has ended.
    pub(super) fn update(&mut self, p: &MigrationProgress, now: Duration) -> Option<String> {
        // Without more to go by: a pass that has ended has sent all its pages.
        let sent = |pass: u32| {
            p.passes
                .iter()
                .find(|known| known.pass == pass)
                .map(|k| k.pages_sent)
        };
        if p.pass <= self.pass {
            return None;
        }
        let follows = p.pass == self.pass + 1;
        let ended = (self.pass > 0).then_some((self.pass, sent(self.pass).unwrap_or(self.sent)));
        let took = now.saturating_sub(self.began);
        (self.pass, self.sent, self.began) = (p.pass, p.pages_total, now);
        let (pass, sent) = ended?;
        let ended = format!(
            "pass {pass}: {sent} pages sent in {}",
            ms(took.as_secs_f64() * 1e3)
        );
        if !follows {
            self.dirtied_per_second = None;
            return Some(ended);
        }
        let rate = p.pages_total as f64 / took.as_secs_f64().max(1e-3);
        self.dirtied_per_second = Some(rate);
        let dirtied = p.pages_total;
        Some(format!(
            "{ended}, {dirtied} dirtied meanwhile ({rate:.0} pages/s)"
        ))
    }

    /// The line that is shown now.
    pub(super) fn line(&self, p: &MigrationProgress) -> String {
        if p.phase == "settling" && p.jobs_unsettled > 0 {
            return format!(
                "settling · the guest runs at the destination · {} writes of the source are not \
                 settled",
                p.jobs_unsettled
            );
        }
        let mut parts = vec![
            plain(&p.phase).into_owned(),
            format!("pass {}", p.pass),
            format!(
                "{} of {} pages sent",
                p.pages_total.saturating_sub(p.pages_left),
                p.pages_total
            ),
        ];
        if let Some(rate) = self.dirtied_per_second {
            parts.push(format!("{rate:.0} pages/s dirtied"));
        }
        parts.push(format!("{}/s", size(p.bytes_per_second)));
        parts.push(format!("{} on the wire", size(p.bytes_wire as f64)));
        if let Some(mix) = mix(&p.bytes_by_codec) {
            parts.push(mix);
        }
        if let Some(blackout) = p.predicted_blackout_ms {
            parts.push(format!("blackout if now {}", ms(blackout)));
        }
        parts.push(format!("guest stalled {}", ms(p.stall_ms)));
        let waited = ms(p.run_delay_ms);
        parts.push(format!("vCPUs waited {waited} for a processor"));
        parts.join(" · ")
    }
}

/// What share of the bytes each codec has made; the largest three.
fn mix(codecs: &BTreeMap<String, u64>) -> Option<String> {
    let sum: f64 = codecs.values().map(|&bytes| bytes as f64).sum();
    let mut shares: Vec<_> = codecs.iter().filter(|&(_, &bytes)| bytes > 0).collect();
    shares.sort_by_key(|&(name, &bytes)| (std::cmp::Reverse(bytes), name));
    let shares: Vec<_> = shares
        .iter()
        .take(3)
        .map(|&(name, &bytes)| format!("{} {:.0} %", plain(name), bytes as f64 / sum * 100.0))
        .collect();
    (!shares.is_empty()).then(|| shares.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_service::model::PassProgress;

    fn progress(pass: u32, left: u64, total: u64) -> MigrationProgress {
        MigrationProgress {
            phase: "precopy".to_owned(),
            pass,
            pages_left: left,
            pages_total: total,
            bytes_per_second: f64::from(95 << 20),
            bytes_wire: 7 << 20,
            predicted_blackout_ms: Some(12.34),
            stall_ms: 0.5,
            run_delay_ms: 2.5,
            ..MigrationProgress::default()
        }
    }

    #[test]
    fn a_pass_that_ended_is_held_against_what_was_dirtied() {
        let mut passes = Passes::default();
        let second = Duration::from_secs(1);
        assert_eq!(passes.update(&progress(1, 9, 131_072), second), None);
        assert_eq!(passes.update(&progress(1, 4, 131_072), 2 * second), None);
        assert_eq!(
            passes
                .update(&progress(2, 8000, 8000), 5 * second)
                .as_deref(),
            Some("pass 1: 131072 pages sent in 4.0 s, 8000 dirtied meanwhile (2000 pages/s)")
        );
        let mut known = progress(3, 10, 10);
        known.passes.push(PassProgress {
            pass: 2,
            pages_dirtied: 8000,
            pages_sent: 7500,
        });
        assert_eq!(
            passes.update(&known, 6 * second).as_deref(),
            Some("pass 2: 7500 pages sent in 1.0 s, 10 dirtied meanwhile (10 pages/s)")
        );
        // Late news of a pass that is over.
        assert_eq!(passes.update(&progress(1, 0, 1), 6 * second), None);
        // Missed news: what was dirtied in between is not known.
        assert_eq!(
            passes.update(&progress(5, 9, 9), 8 * second).as_deref(),
            Some("pass 3: 10 pages sent in 2.0 s")
        );
    }

    #[test]
    fn the_line_has_units() {
        let mut passes = Passes::default();
        let mut now = progress(1, 5, 9);
        assert_eq!(
            passes.line(&now),
            "precopy · pass 1 · 4 of 9 pages sent · 95 MiB/s · 7 MiB on the wire · blackout if now \
             12.3 ms · guest stalled 0.5 ms · vCPUs waited 2.5 ms for a processor"
        );
        passes.dirtied_per_second = Some(2000.0);
        for (codec, bytes) in [
            ("lz4", 10),
            ("zstd", 60),
            ("raw", 20),
            ("delta", 10),
            ("x", 0),
        ] {
            now.bytes_by_codec.insert(codec.to_owned(), bytes);
        }
        let line = passes.line(&now);
        assert!(line.contains("2000 pages/s dirtied · "), "{line}");
        assert!(
            line.contains("zstd 60 %, raw 20 %, delta 10 % · "),
            "{line}"
        );
        now.phase = "settling".to_owned();
        now.jobs_unsettled = 3;
        assert!(
            passes
                .line(&now)
                .contains("3 writes of the source are not settled")
        );
    }
}
