//! A copy by vmferry's transports: `PageWriter` to `PageReader`.

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use vmferry_transports::keys::HostKeys;
use vmferry_transports::{Incoming, LinkHint, TransportKind, connector, listen};

use super::{Cost, Error, FRAME, HEADER, HOST, Load, Stopwatch, here, join};

/// Copies `load` over `kind`.
///
/// # Errors
/// Those of the transport.
pub async fn copy(kind: TransportKind, keys: &HostKeys, load: &Load) -> Result<Cost, Error> {
    let tls = keys.identity()?;
    let hint = LinkHint::default();
    let mut listener = listen(kind, here(), &tls, hint).await?;
    let connector = connector(kind, listener.local_addr()?, HOST, &tls, hint, None)?;
    let accept = async {
        let (mut control, mut pages) = (None, Vec::new());
        while control.is_none() || pages.len() < load.streams.into() {
            match listener.accept().await? {
                Incoming::Control(stream) => control = Some(stream),
                Incoming::Page(stream) => pages.push(stream),
            }
        }
        Ok::<_, Error>((control, pages))
    };
    let connect = async { Ok(connector.connect(load.streams).await?) };
    let (connection, (_control, readers)) = tokio::try_join!(connect, accept)?;

    let mut tasks = JoinSet::new();
    let watch = Stopwatch::start();
    for mut reader in readers {
        let frames = load.frames;
        tasks.spawn(async move {
            let mut frame = vec![0; HEADER + FRAME];
            for _ in 0..frames {
                reader.read_exact(&mut frame).await?;
            }
            Ok(())
        });
    }
    let mut writers = JoinSet::new();
    for mut writer in connection.pages {
        let (frames, frame) = (load.frames, load.frame());
        writers.spawn(async move {
            for _ in 0..frames {
                writer.send(&frame).await?;
            }
            Ok::<_, Error>(writer)
        });
    }
    join(tasks).await?;
    let cost = watch.stop();
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(cost)
}
