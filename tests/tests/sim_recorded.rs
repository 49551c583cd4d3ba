//! The convergence policy against what real guests wrote (`recordings/README.md`).

use std::time::Duration;

use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::Outcome;
use vmferry_protocol::{PageRange, RamLayout};
use vmferry_tests::recording::Recording;
use vmferry_tests::sim::{Link, Report, Scenario, Writes, run};

const RECORDINGS: [(&str, &str); 4] = [
    ("dense", include_str!("../recordings/dense.txt")),
    ("sparse", include_str!("../recordings/sparse.txt")),
    ("readmostly", include_str!("../recordings/readmostly.txt")),
    ("dense-fast", include_str!("../recordings/dense-fast.txt")),
];

/// A tracker: pages that a notification covers, and what it costs the guest.
const TRACKERS: [(&str, u64, Duration); 2] = [
    ("groups", 512, Duration::from_micros(24)),
    ("pages", 1, Duration::from_nanos(2200)),
];

/// Bytes a second.
const LINKS: [u64; 3] = [12_500_000, 125_000_000, 1_250_000_000];
/// Passes that the policy is compared with.
const PASSES: std::ops::RangeInclusive<u32> = 1..=6;
/// How much more than the best number of passes the policy may cost the guest: it cannot know
/// what the guest will do.
const MORE: f64 = 1.25;
const AND: Duration = Duration::from_millis(2);

fn moved(scenario: &Scenario) -> Report {
    let report = run(scenario).unwrap_or_else(|(violation, trace)| panic!("{violation}\n{trace}"));
    assert_eq!(report.source, Some(Outcome::Completed));
    report
}

/// What the guest lost: by notifications, and in the blackout.
fn lost(report: &Report) -> Duration {
    let stats = report.stats.as_ref().expect("it completed");
    let stalled: Duration = stats.passes.iter().map(|p| p.stall).sum();
    stalled + report.blackout.expect("it completed")
}

#[test]
fn no_number_of_passes_would_have_cost_the_guest_much_less() {
    for (name, text) in RECORDINGS {
        let recording: &'static Recording = Box::leak(Box::new(text.parse().expect(name)));
        assert!(recording.intervals.iter().any(|i| !i.is_empty()), "{name}");
        let ram = vec![PageRange::new(0, recording.pages)];
        for (tracker, group_pages, notification) in TRACKERS {
            for bandwidth in LINKS {
                let with = |min_passes, max_passes| Scenario {
                    layout: RamLayout::try_from(ram.clone()).expect("one region"),
                    touched: recording.pages,
                    writes: Writes::Recorded(recording),
                    group_pages,
                    notification,
                    link: Link {
                        latency: Duration::from_micros(100),
                        bandwidth,
                    },
                    limits: Limits {
                        max_blackout: Duration::from_secs(30),
                        min_passes,
                        max_passes,
                        ..Limits::default()
                    },
                    pause_deadline: Duration::from_secs(60),
                    ..Scenario::default()
                };
                let own = lost(&moved(&with(1, Limits::default().max_passes)));
                let all = PASSES.map(|n| lost(&moved(&with(n, n))));
                let best = all.min().expect("some");
                assert!(
                    own <= best.mul_f64(MORE) + AND,
                    "{name}, {tracker}, {bandwidth} B/s: {own:?} lost, {best:?} with the best"
                );
            }
        }
    }
}
