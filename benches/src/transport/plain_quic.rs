//! A copy by quinn alone, with windows and socket buffers for bulk data, and parts handed over
//! without a copy.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use tokio::task::JoinSet;
use vmferry_transports::keys::HostKeys;

use super::{Cost, Error, HOST, Load, Stopwatch, here, join, plain_tls};

/// Bytes in flight.
const WINDOW: u32 = 8 << 20;
/// The kernel's buffers.
const SOCKET: usize = 2 << 20;

fn socket(at: SocketAddr) -> Result<UdpSocket, Error> {
    let socket = UdpSocket::bind(at)?;
    let reference = socket2::SockRef::from(&socket);
    reference.set_recv_buffer_size(SOCKET)?;
    reference.set_send_buffer_size(SOCKET)?;
    Ok(socket)
}

/// Copies `load`, one connection; looks for packets of up to `mtu` bytes (quinn's own limit is
/// 1452).
///
/// # Errors
/// Those of QUIC.
pub async fn copy(keys: &HostKeys, load: &Load, mtu: u16) -> Result<Cost, Error> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into())
        .mtu_discovery_config(Some(discovery));
    let transport = Arc::new(transport);
    let (client, server) = plain_tls::configs(keys)?;
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport.clone());
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(transport);
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu.max(1472))?;

    let runtime = Arc::new(TokioRuntime);
    let listener = Endpoint::new(
        config.clone(),
        Some(server),
        socket(here())?,
        runtime.clone(),
    )?;
    let endpoint = Endpoint::new(config, None, socket(here())?, runtime)?;
    let connect = async {
        let connecting = endpoint.connect_with(client, listener.local_addr()?, HOST)?;
        Ok::<_, Error>(connecting.await?)
    };
    let accept = async {
        let arrived = listener.accept().await.ok_or("the endpoint has ended")?;
        Ok(arrived.await?)
    };
    let (near, far) = tokio::try_join!(connect, accept)?;

    let mut readers = JoinSet::new();
    let mut writers = JoinSet::new();
    let watch = Stopwatch::start();
    for _ in 0..load.streams {
        let (frames, frame) = (load.frames, load.frame());
        let near = near.clone();
        writers.spawn(async move {
            let mut writer = near.open_uni().await?;
            for _ in 0..frames {
                writer.write_all_chunks(&mut frame.clone()).await?;
            }
            writer.finish()?;
            Ok::<_, Error>(writer)
        });
        let (far, bytes) = (far.clone(), load.stream_bytes());
        readers.spawn(async move {
            let mut reader = far.accept_uni().await?;
            let mut buffer = vec![0; 256 << 10];
            let mut got = 0;
            while let Some(n) = reader.read(&mut buffer).await? {
                got += n;
            }
            if got == bytes {
                Ok(())
            } else {
                Err("the copy is not whole".into())
            }
        });
    }
    join(readers).await?;
    let cost = watch.stop();
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(cost)
}
