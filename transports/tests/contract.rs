//! What every transport keeps to, checked over all of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use bytes::Bytes;
use common::{Over, bounded, connect, content, drain, pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmferry_transports::{Control, MAX_STREAMS, TransportError};

macro_rules! over_all {
    ($($test:ident,)*) => {
        over_all!(@ memory Memory $($test)*);
        over_all!(@ tcp Tcp $($test)*);
        over_all!(@ quic Quic $($test)*);
    };
    (@ $module:ident $over:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::bounded(super::$test(super::Over::$over)).await;
                }
            )*
        }
    };
}

over_all! {
    control_goes_both_ways_in_odd_pieces,
    pages_arrive_whole,
    no_page_streams,
    as_many_page_streams_as_may_be,
    too_many_page_streams,
    last_words_arrive_though_the_reader_is_gone,
    last_words_arrive_while_the_reader_is_in_use,
    last_words_arrive_at_a_peer_that_keeps_talking,
    last_words_arrive_and_then_the_control_is_dropped,
    finishing_at_both_ends_at_once,
    dropping_control_ends_the_peers_reading,
    dropping_control_is_heard_though_pages_are_in_flight,
    a_page_stream_ends_with_its_writer,
    sending_to_nobody_fails,
    one_connection_after_the_other,
    connections_live_on_without_the_listener,
}

async fn write_in_pieces(mut control: Control, seed: u64, len: usize) -> Vec<u8> {
    let all = content(seed, len);
    let pieces = [1, 2, 7, 100, 1_000, 4_095, 65_537, 3];
    let expected = content(seed + 1, len);
    let Control { reader, writer } = &mut control;
    let write = async {
        let mut rest = &all[..];
        for piece in pieces.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(piece.min(rest.len()));
            writer.write_all(now).await.unwrap();
            writer.flush().await.unwrap();
            rest = later;
        }
    };
    let read = async {
        let mut got = vec![0; len];
        let mut done = 0;
        for piece in pieces.into_iter().rev().cycle() {
            let piece = piece.min(len - done);
            reader
                .read_exact(&mut got[done..done + piece])
                .await
                .unwrap();
            done += piece;
            if done == len {
                break;
            }
        }
        got
    };
    let (got, ()) = tokio::join!(read, write);
    assert!(got == expected || expected.is_empty() || seed % 2 == 1);
    control.writer.finish().await;
    got
}

async fn control_goes_both_ways_in_odd_pieces(over: Over) {
    const LEN: usize = 700_001;
    let (connector, mut listener) = pair(over).await;
    let (near, far, _) = connect(&*connector, &mut *listener, 0).await;
    let (at_near, at_far) = tokio::join!(
        write_in_pieces(near.control, 0, LEN),
        write_in_pieces(far, 1, LEN)
    );
    assert!(at_near == content(1, LEN));
    assert!(at_far == content(0, LEN));
}

async fn pages_arrive_whole(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (near, _control, readers) = connect(&*connector, &mut *listener, 4).await;
    let frames = |seed: u64| -> Vec<Bytes> {
        [0, 12, 300, 256 << 10, 1, 100_000, 0]
            .into_iter()
            .enumerate()
            .map(|(i, len)| content(seed * 100 + i as u64, len).into())
            .collect()
    };
    let writers = near.pages.into_iter().enumerate().map(|(i, mut page)| {
        tokio::spawn(async move {
            let frames = frames(i as u64);
            page.send(&[]).await.unwrap();
            for _ in 0..5 {
                page.send(&frames[..3]).await.unwrap();
                page.send(&frames[3..]).await.unwrap();
            }
            frames.concat().repeat(5)
        })
    });
    let writers: Vec<_> = writers.collect();
    let readers: Vec<_> = readers
        .into_iter()
        .map(|mut page| tokio::spawn(async move { drain(&mut page).await }))
        .collect();
    let mut sent = Vec::new();
    for writer in writers {
        sent.push(writer.await.unwrap());
    }
    let mut received = Vec::new();
    for reader in readers {
        let (bytes, well) = reader.await.unwrap();
        assert!(well);
        received.push(bytes);
    }
    // Streams may be accepted in any order.
    sent.sort();
    received.sort();
    assert!(sent == received);
}

async fn no_page_streams(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, mut far, _) = connect(&*connector, &mut *listener, 0).await;
    near.control.writer.write_all(b"abort").await.unwrap();
    let (_, said) = tokio::join!(near.control.writer.finish(), async {
        let said = drain(&mut far.reader).await;
        drop(far);
        said
    });
    assert_eq!(said, (b"abort".to_vec(), true));
}

async fn as_many_page_streams_as_may_be(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, _control, mut readers) = connect(&*connector, &mut *listener, MAX_STREAMS).await;
    for (i, page) in near.pages.iter_mut().enumerate() {
        page.send(&[vec![u8::try_from(i).unwrap()].into()])
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    for page in &mut readers {
        seen.push(page.read_u8().await.unwrap());
    }
    seen.sort_unstable();
    assert!(seen.into_iter().map(u16::from).eq(0..MAX_STREAMS));
}

async fn too_many_page_streams(over: Over) {
    let (connector, _listener) = pair(over).await;
    let error = connector.connect(MAX_STREAMS + 1).await.unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
}

async fn last_words_arrive_though_the_reader_is_gone(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, far, _) = connect(&*connector, &mut *listener, 0).await;
    // Never read at the other end.
    near.control
        .writer
        .write_all(&content(1, 50_000))
        .await
        .unwrap();
    near.control.writer.flush().await.unwrap();
    let words = content(2, 30_000);
    let Control { reader, mut writer } = far;
    drop(reader);
    writer.write_all(&words).await.unwrap();
    let (_, heard) = tokio::join!(writer.finish(), async {
        let heard = drain(&mut near.control.reader).await;
        drop(near);
        heard
    });
    assert!(heard == (words, true));
}

async fn last_words_arrive_while_the_reader_is_in_use(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, far, _) = connect(&*connector, &mut *listener, 0).await;
    let words = content(2, 30_000);
    let Control {
        mut reader,
        mut writer,
    } = far;
    writer.write_all(&words).await.unwrap();
    let answer = content(3, 20_000);
    let ((), answered, heard) = tokio::join!(
        writer.finish(),
        async move { drain(&mut reader).await.0 },
        async {
            let heard = drain(&mut near.control.reader).await;
            near.control.writer.write_all(&answer).await.unwrap();
            near.control.writer.finish().await;
            heard
        }
    );
    assert!(heard == (words, true));
    assert!(answered == answer);
}

async fn last_words_arrive_at_a_peer_that_keeps_talking(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (near, far, _) = connect(&*connector, &mut *listener, 0).await;
    let Control { reader, mut writer } = far;
    let mut talking = near.control.writer;
    let talker = tokio::spawn(async move {
        let noise = content(4, 10_000);
        while talking.write_all(&noise).await.is_ok() {}
    });
    let words = content(2, 30_000);
    writer.write_all(&words).await.unwrap();
    drop(reader);
    let mut listening = near.control.reader;
    let ((), heard) = tokio::join!(writer.finish(), drain(&mut listening));
    assert!(heard == (words, true));
    drop(listening);
    // The memory transport's pipe just fills up.
    talker.abort();
}

async fn last_words_arrive_and_then_the_control_is_dropped(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, far, _) = connect(&*connector, &mut *listener, 0).await;
    let words = content(5, 10_000);
    let Control { reader, mut writer } = far;
    writer.write_all(&words).await.unwrap();
    // Nobody reads until all is over at the end that spoke.
    writer.finish().await;
    drop(reader);
    let heard = drain(&mut near.control.reader).await;
    assert!(heard == (words, true));
}

async fn finishing_at_both_ends_at_once(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (near, far, _) = connect(&*connector, &mut *listener, 0).await;
    let side = async |mut control: Control, seed| {
        control
            .writer
            .write_all(&content(seed, 9_999))
            .await
            .unwrap();
        let ((), heard) = tokio::join!(control.writer.finish(), drain(&mut control.reader));
        heard
    };
    let (at_near, at_far) = tokio::join!(side(near.control, 6), side(far, 7));
    assert!(at_near == (content(7, 9_999), true));
    assert!(at_far == (content(6, 9_999), true));
}

async fn dropping_control_ends_the_peers_reading(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (near, mut far, _) = connect(&*connector, &mut *listener, 0).await;
    drop(near);
    drain(&mut far.reader).await;
    let (near, far, _) = connect(&*connector, &mut *listener, 0).await;
    drop(far);
    let mut control = near.control;
    drain(&mut control.reader).await;
}

/// A peer that goes must not be found out by its silence.
async fn dropping_control_is_heard_though_pages_are_in_flight(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, mut far, mut readers) = connect(&*connector, &mut *listener, 1).await;
    let frame = [Bytes::from(content(10, 1 << 20))];
    let mut page = near.pages.pop().unwrap();
    let sending = tokio::spawn(async move { while page.send(&frame).await.is_ok() {} });
    // Some has come, more is on its way, and nobody takes it.
    readers[0].read_exact(&mut [0; 1000]).await.unwrap();
    drop(near);
    if let Err(error) = far.reader.read_to_end(&mut Vec::new()).await {
        assert!(!error.to_string().contains("does not answer"), "{error}");
    }
    sending.abort();
}

async fn a_page_stream_ends_with_its_writer(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, _control, mut readers) = connect(&*connector, &mut *listener, 1).await;
    let mut page = near.pages.pop().unwrap();
    let sent = content(8, 150_000);
    page.send(&[sent.clone().into()]).await.unwrap();
    drop(page);
    let received = drain(&mut readers[0]).await;
    assert!(received == (sent, true));
}

async fn sending_to_nobody_fails(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, _control, readers) = connect(&*connector, &mut *listener, 1).await;
    drop(readers);
    let frame = [Bytes::from(content(9, 100_000))];
    let error = loop {
        if let Err(error) = near.pages[0].send(&frame).await {
            break error;
        }
    };
    assert!(matches!(error, TransportError::Lost(_)), "{error}");
    assert!(error.to_string().contains("closed"), "{error}");
}

async fn one_connection_after_the_other(over: Over) {
    let (connector, mut listener) = pair(over).await;
    for round in 0..4 {
        let (mut near, mut far, mut readers) =
            connect(&*connector, &mut *listener, round % 3).await;
        for page in &mut near.pages {
            page.send(&[Bytes::from_static(b"page")]).await.unwrap();
        }
        for page in &mut readers {
            let mut got = [0; 4];
            page.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"page");
        }
        near.control.writer.write_all(b"bye").await.unwrap();
        let ((), heard) = tokio::join!(near.control.writer.finish(), async {
            let heard = drain(&mut far.reader).await;
            drop(far);
            heard
        });
        assert_eq!(heard, (b"bye".to_vec(), true));
    }
}

async fn connections_live_on_without_the_listener(over: Over) {
    let (connector, mut listener) = pair(over).await;
    let (mut near, mut far, mut readers) = connect(&*connector, &mut *listener, 1).await;
    drop(listener);
    // Nobody new gets in.
    assert!(connector.connect(0).await.is_err());
    near.control.writer.write_all(b"still here").await.unwrap();
    near.control.writer.flush().await.unwrap();
    near.pages[0]
        .send(&[Bytes::from_static(b"so are we")])
        .await
        .unwrap();
    let (mut said, mut page) = ([0; 10], [0; 9]);
    far.reader.read_exact(&mut said).await.unwrap();
    readers[0].read_exact(&mut page).await.unwrap();
    assert_eq!((&said, &page), (b"still here", b"so are we"));
}
