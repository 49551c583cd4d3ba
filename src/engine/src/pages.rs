//! The tasks at both ends of the page streams.

use std::sync::Arc;
use std::time::Duration;

use async_channel::Receiver;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use vmferry_protocol::ids::{ChunkId, MigrationId, Token};
use vmferry_protocol::wire::{
    PREAMBLE, WireError, check_preamble, encode_preamble, preamble_token,
};
use vmferry_transports::{PageReader, PageWriter};

use crate::apply::{ApplyError, RamWriter, Scratch, read_chunk};
use crate::compression::Link;
use crate::encode::Frame;

/// How long a stream may take to say what it is.
const PREAMBLE_WITHIN: Duration = Duration::from_secs(10);

/// Sends frames on one stream until there are no more; every stream takes the next that is there,
/// so a slow one holds up no other. Returns why it could not.
pub(crate) async fn send(
    mut stream: Box<dyn PageWriter>,
    preamble: [u8; PREAMBLE],
    frames: Receiver<Frame>,
    link: &Link,
) -> Result<(), String> {
    let failed = |e: vmferry_transports::TransportError| e.to_string();
    let preamble = [Bytes::copy_from_slice(&preamble)];
    stream.send(&preamble).await.map_err(failed)?;
    while let Ok(frame) = frames.recv().await {
        let bytes = frame.stats.bytes_wire;
        link.begin(bytes);
        stream
            .send(&[frame.head, frame.content])
            .await
            .map_err(failed)?;
        link.end(bytes);
    }
    Ok(())
}

/// The preambles of a connection's streams.
pub(crate) fn preambles(
    migration: MigrationId,
    token: &Token,
    streams: usize,
) -> Vec<[u8; PREAMBLE]> {
    (0..streams)
        .map(|n| encode_preamble(migration, token, n as u16))
        .collect()
}

/// What a page stream must belong to, and where its pages go.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) migration: MigrationId,
    pub(crate) ram: Arc<RamWriter>,
}

/// Why a page stream ended that should not have.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It is not of this migration, or has not said so; nothing came of it.
    Stranger(String),
    /// It was cut.
    Cut(String),
    /// It brought something that is wrong.
    Wrong(String),
}

/// Receives chunks from one stream until it ends. `admit` is asked when it has shown the token,
/// `applied` is told each chunk that is in RAM.
pub(crate) async fn receive<F: Future<Output = ()>>(
    mut stream: Box<dyn PageReader>,
    token: Token,
    mut admission: watch::Receiver<Option<Admission>>,
    admit: impl FnOnce() -> bool,
    applied: impl Fn(ChunkId) -> F,
) -> Result<(), Broken> {
    let mut preamble = [0; PREAMBLE];
    tokio::time::timeout(PREAMBLE_WITHIN, stream.read_exact(&mut preamble))
        .await
        .map_err(|_| Broken::Stranger("it said nothing".to_owned()))?
        .map_err(|e| Broken::Stranger(format!("it did not say what it is: {e}")))?;
    // At once, so that strangers take no place while there is no machine yet.
    if !preamble_token(&preamble).matches(&token) {
        return Err(Broken::Stranger(WireError::Preamble.to_string()));
    }
    if !admit() {
        return Err(Broken::Stranger("there are too many".to_owned()));
    }
    // Nothing more is read until there is a machine to put it in.
    let Ok(admitted) = admission.wait_for(Option::is_some).await.map(|a| a.clone()) else {
        return Ok(());
    };
    let Some(Admission { migration, ram }) = admitted else {
        return Ok(());
    };
    check_preamble(&preamble, migration, &token).map_err(|e| Broken::Stranger(e.to_string()))?;
    let mut scratch = Scratch::default();
    loop {
        match read_chunk(&mut stream, &ram, &mut scratch).await {
            Ok(Some(chunk)) => applied(chunk).await,
            Ok(None) => return Ok(()),
            Err(ApplyError::Cut(error)) => return Err(Broken::Cut(error.to_string())),
            Err(error) => return Err(Broken::Wrong(error.to_string())),
        }
    }
}
