//! Which pages a guest wrote, interval by interval: recorded from real guests by the bench
//! `record`, and written again by the simulator's guest.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use vmferry_protocol::PageRange;

/// Pages written, in intervals of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Pages of the guest's RAM, from 0.
    pub pages: u64,
    /// Length of an interval, in milliseconds.
    pub every_ms: u64,
    /// What was written in each: runs of pages, ascending.
    pub intervals: Vec<Vec<PageRange>>,
}

/// Text that is not a recording.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line} is not one of a recording: {text}")]
pub struct NotARecording {
    line: usize,
    text: String,
}

impl Recording {
    /// Pages written between two moments since the recording began, each in its place in time
    /// (those of an interval evenly); when it is over it begins anew.
    pub fn between(
        &self,
        from: Duration,
        to: Duration,
    ) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let every = Duration::from_millis(self.every_ms.max(1));
        let first = from.as_nanos() / every.as_nanos();
        let last = to.as_nanos() / every.as_nanos();
        let all = self.intervals.len().max(1) as u128;
        (first..=last).flat_map(move |n| {
            let runs = self.intervals.get((n % all) as usize);
            let runs = runs.map_or(&[][..], Vec::as_slice);
            let count = runs.iter().map(|r| r.count).sum::<u64>().max(1);
            let begins = every * u32::try_from(n).unwrap_or(u32::MAX);
            let pages = runs.iter().flat_map(PageRange::frames).zip(0u32..);
            pages
                .map(move |(gfn, k)| (begins + every * k / count as u32, gfn))
                .filter(move |(at, _)| (from..to).contains(at))
        })
    }
}

/// A line that says what it is, and one for each interval: `start+count`, or `start` for one page.
impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pages {} every-ms {}", self.pages, self.every_ms)?;
        for runs in &self.intervals {
            let words = runs.iter().map(|run| match run.count {
                1 => run.start.to_string(),
                n => format!("{}+{n}", run.start),
            });
            writeln!(f, "{}", words.collect::<Vec<_>>().join(" "))?;
        }
        Ok(())
    }
}

impl FromStr for Recording {
    type Err = NotARecording;

    fn from_str(text: &str) -> Result<Self, NotARecording> {
        let mut lines = text.lines().zip(1..);
        let not = |text: &str, line| NotARecording {
            line,
            text: text.chars().take(80).collect(),
        };
        let (head, at) = lines.next().unwrap_or(("", 1));
        let words: Vec<&str> = head.split(' ').collect();
        let ["pages", pages, "every-ms", every_ms] = words[..] else {
            return Err(not(head, at));
        };
        let number = |word: &str| word.parse::<u64>().ok();
        let (Some(pages), Some(every_ms)) = (number(pages), number(every_ms)) else {
            return Err(not(head, at));
        };
        let run = |word: &str| {
            let (start, count) = word.split_once('+').unwrap_or((word, "1"));
            let (start, count) = (number(start)?, number(count)?);
            let inside = start.checked_add(count).is_some_and(|end| end <= pages);
            (count > 0 && inside).then(|| PageRange::new(start, count))
        };
        let interval = |line: &str| {
            let words = line.split_ascii_whitespace();
            words.map(run).collect::<Option<Vec<_>>>()
        };
        let intervals = lines
            .map(|(line, at)| interval(line).ok_or_else(|| not(line, at)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pages,
            every_ms,
            intervals,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        Recording {
            pages: 100,
            every_ms: 10,
            intervals: vec![
                vec![PageRange::new(0, 3), PageRange::new(7, 1)],
                Vec::new(),
                vec![PageRange::new(98, 2)],
            ],
        }
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let text = recording().to_string();
        assert_eq!(text, "pages 100 every-ms 10\n0+3 7\n\n98+2\n");
        assert_eq!(text.parse(), Ok(recording()));
    }

    #[test]
    fn what_is_no_recording_is_refused_with_its_line() {
        let bad = |text: &str, line| {
            let error = text.parse::<Recording>().unwrap_err();
            assert_eq!(error.line, line, "{text}");
        };
        bad("", 1);
        bad("pages 1 every-ms x\n", 1);
        bad("pages 9 every-ms 1\n1\n9\n", 3);
        bad("pages 9 every-ms 1\n1+0\n", 2);
        bad("pages 9 every-ms 1\n1+18446744073709551615\n", 2);
    }

    #[test]
    fn pages_come_in_their_order_and_once_however_time_is_cut() {
        let us = Duration::from_micros;
        let recording = recording();
        let whole: Vec<_> = recording.between(us(0), us(60_000)).collect();
        let first = [
            (0, 0),
            (2500, 1),
            (5000, 2),
            (7500, 7),
            (20_000, 98),
            (25_000, 99),
        ];
        assert_eq!(whole[..6], first.map(|(at, gfn)| (us(at), gfn)));
        assert_eq!(whole[6], (us(30_000), 0));
        let cut = (0..60_000).step_by(700);
        let parts = cut.flat_map(|at| recording.between(us(at), us((at + 700).min(60_000))));
        assert_eq!(parts.collect::<Vec<_>>(), whole);
    }
}
