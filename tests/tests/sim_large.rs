//! A guest of 1 TiB.

use std::time::Duration;

use vmferry_protocol::source::Outcome;
use vmferry_protocol::{PageRange, RamLayout};
use vmferry_tests::sim::{Link, Scenario, Writes, run};

#[test]
fn a_guest_of_one_tib_arrives_whole() {
    let pages = (1u64 << 40) / 4096;
    let below_4g = 3 << 18;
    let regions = vec![
        PageRange::new(0, below_4g),
        PageRange::new(1 << 20, pages - below_4g),
    ];
    let scenario = Scenario {
        layout: RamLayout::try_from(regions).expect("two regions"),
        touched: pages,
        writes: Writes::Hot {
            pages: 4096,
            rate: 50_000,
        },
        slice: Duration::from_millis(5),
        streams: 8,
        window_pages: 4096,
        link: Link {
            latency: Duration::from_micros(50),
            bandwidth: 12_500_000_000,
        },
        encode: false,
        ..Scenario::default()
    };
    let report = run(&scenario).unwrap_or_else(|(v, trace)| panic!("{v}\n{trace}"));
    assert_eq!(report.source, Some(Outcome::Completed));
    assert_eq!(report.active, [false, true]);
    assert!(report.pages_sent >= pages);
    assert!(
        report.took > Duration::from_secs(60),
        "virtual time: {:?}",
        report.took
    );
}
