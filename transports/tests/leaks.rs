//! Connections that have ended leave nothing behind. The only test of its process, as it counts
//! all of the process's descriptors.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use common::{Over, bounded, connect, drain, pair};
use tokio::io::AsyncWriteExt;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_given_back() {
    for over in [Over::Tcp, Over::Quic] {
        let (connector, mut listener) = pair(over).await;
        let before = descriptors();
        for round in 0..20 {
            let (mut near, mut far, readers) = connect(&*connector, &mut *listener, 3).await;
            assert!(descriptors() > before);
            if round % 2 == 0 {
                near.control.writer.write_all(b"bye").await.unwrap();
                let ((), (heard, well)) = tokio::join!(near.control.writer.finish(), async {
                    let heard = drain(&mut far.reader).await;
                    drop(far);
                    heard
                });
                assert!(well && heard == b"bye");
            }
            // The other half is cut off, with page streams in any state.
            drop(readers);
        }
        // QUIC keeps a socket until the other end must have heard that it is done.
        bounded(async {
            while descriptors() > before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        drop((connector, listener));
    }
}
