//! The bandwidth limit: its arithmetic on invented clocks, and a transport that keeps to it on a
//! paused one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{accept, bounded};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use vmferry_transports::limit::Bucket;
use vmferry_transports::{Bandwidth, Connector, memory};

fn mbit(mbit: u64) -> Bandwidth {
    Bandwidth::from_mbit(mbit).unwrap()
}

/// Sends `bytes` in pieces as fast as the bucket lets pass; returns when each had gone.
fn send(bucket: &mut Bucket, from: Duration, mut bytes: u64) -> Vec<(Duration, u64)> {
    let mut now = from;
    let mut gone = Vec::new();
    while bytes > 0 {
        let piece = bytes.min(bucket.piece());
        now += bucket.take(now, piece);
        gone.push((now, piece));
        bytes -= piece;
    }
    gone
}

#[test]
fn a_steady_sender_gets_the_limit_and_no_more() {
    for speed in [1, 10, 100, 1_000, 10_000, 100_000] {
        let mut bucket = Bucket::new(mbit(speed));
        // A minute's worth.
        let bytes = speed * 1_000_000 / 8 * 60;
        let end = send(&mut bucket, Duration::ZERO, bytes).last().unwrap().0;
        let off = end.abs_diff(Duration::from_secs(60));
        assert!(
            off < Duration::from_micros(1),
            "{speed} Mbit/s: off by {off:?}"
        );
    }
}

#[test]
fn no_window_of_time_holds_more_than_rate_and_burst() {
    let limit = mbit(200);
    let mut bucket = Bucket::new(limit);
    let mut gone = Vec::new();
    // Busy, then idle for odd times.
    let mut now = Duration::from_millis(3);
    for round in 1..40u64 {
        let sent = send(&mut bucket, now, round * 37_511 % 900_000);
        now = sent.last().unwrap().0 + Duration::from_micros(round * round * 91 % 50_000);
        gone.extend(sent);
    }
    for (i, (from, _)) in gone.iter().enumerate() {
        let mut bytes = 0;
        for (at, piece) in &gone[i..] {
            bytes += piece;
            let time = *at - *from;
            let may = limit.bits_per_second() as u128 * time.as_nanos() / 8_000_000_000;
            // The first piece of a window was earned before it.
            let may = may + u128::from(bucket.burst() + bucket.piece()) + 1;
            assert!(u128::from(bytes) <= may, "{bytes} bytes within {time:?}");
        }
    }
}

#[test]
fn a_long_pause_saves_one_burst() {
    let mut bucket = Bucket::new(mbit(100));
    let now = Duration::from_secs(3_600);
    assert_eq!(bucket.take(now, bucket.burst()), Duration::ZERO);
    let second = Duration::from_secs(1);
    assert_eq!(bucket.take(now, 12_500_000), second);
    // Taken, so the next waits for both.
    assert_eq!(bucket.take(now, 12_500_000), 2 * second);
}

#[test]
fn bursts_are_short() {
    for (speed, burst) in [(1, 64 << 10), (1_000, 250_000), (100_000, 2 << 20)] {
        let bucket = Bucket::new(mbit(speed));
        assert_eq!(bucket.burst(), burst);
        assert!(bucket.piece() <= bucket.burst() / 2 && bucket.piece() >= 16 << 10);
    }
}

#[test]
fn extremes_do_not_overflow() {
    let mut bucket = Bucket::new(Bandwidth::from_bits_per_second(u64::MAX).unwrap());
    bucket.take(Duration::MAX, u64::MAX);
    bucket.take(Duration::ZERO, u64::MAX);
    let mut bucket = Bucket::new(Bandwidth::from_bits_per_second(1).unwrap());
    bucket.take(Duration::ZERO, u64::MAX);
    bucket.take(Duration::MAX, u64::MAX);
    assert_eq!(Bandwidth::from_mbit(0), None);
    assert_eq!(mbit(5).to_string(), "5 Mbit/s");
    assert_eq!(
        Bandwidth::from_bits_per_second(1_500).unwrap().to_string(),
        "1500 bit/s"
    );
}

/// On a paused clock, which moves only when everybody sleeps.
#[tokio::test(start_paused = true)]
async fn all_page_streams_share_the_limit() {
    const STREAMS: u16 = 4;
    const EACH: usize = 5 << 20;
    let (connector, mut listener) = memory::pair(Some(mbit(80)));
    let (connection, (_control, readers)) =
        tokio::join!(connector.connect(STREAMS), accept(&mut listener, STREAMS));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut page in connection.unwrap().pages {
        tasks.spawn(async move {
            let part = Bytes::from(vec![0; EACH / 4]);
            page.send(&[part.clone(), part.clone()]).await.unwrap();
            page.send(&[part.clone(), part]).await.unwrap();
            drop(page);
        });
    }
    for mut page in readers {
        tasks.spawn(async move {
            assert_eq!(page.read_to_end(&mut Vec::new()).await.unwrap(), EACH);
        });
    }
    bounded(tasks.join_all()).await;
    // 20 MiB at 10 MB/s, to the tick of tokio's clock.
    let took = start.elapsed();
    let right = Duration::from_secs_f64(f64::from(STREAMS) * EACH as f64 / 10e6);
    assert!(took.abs_diff(right) < Duration::from_millis(3), "{took:?}");
}
