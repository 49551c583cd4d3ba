//! What makes QUIC fast on a link between hosts, within bounded memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TransportConfig, VarInt,
};

use super::congestion::{Closing, Factory};
use crate::{LinkHint, MAX_STREAMS, TlsIdentity, TransportError};

/// What a silent peer gets before its connection counts as lost, in milliseconds.
const SILENCE_MS: u32 = 10_000;
/// The largest UDP payload.
const MAX_PAYLOAD: u16 = 65_527;
/// UDP payload in jumbo frames of 9000 bytes, IPv6 and options included.
const JUMBO_PAYLOAD: u16 = 8_952;
/// The smallest window, in bytes. It also suits loopback best: what is in flight stays in the
/// processor's cache and in the receiver's kernel buffer.
const MIN_WINDOW: u64 = 2 << 20;
/// The largest, and what any other link of unknown speed gets.
const MAX_WINDOW: u64 = 8 << 20;

/// Unacknowledged bytes in flight, of all streams together: twice the bandwidth-delay product, as
/// the round trip grows when the link is busy. Each end holds as much at most.
fn window(hint: LinkHint, loopback: bool) -> u64 {
    if hint.mbit == 0 || hint.rtt_ms == 0 {
        return if loopback { MIN_WINDOW } else { MAX_WINDOW };
    }
    // Mbit/s × ms = 1000 bits.
    let bytes = hint.mbit.saturating_mul(hint.rtt_ms).saturating_mul(125);
    bytes.saturating_mul(2).clamp(MIN_WINDOW, MAX_WINDOW)
}

/// The transport's settings with a peer at `peer`; `uni` and `bi` streams may be opened by it.
fn transport(
    hint: LinkHint,
    peer: IpAddr,
    uni: u32,
    bi: u32,
    closing: &Closing,
) -> TransportConfig {
    let loopback = peer.to_canonical().is_loopback();
    let window = window(hint, loopback);
    let credit = VarInt::from_u64(window).unwrap_or(VarInt::MAX);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(if loopback { MAX_PAYLOAD } else { JUMBO_PAYLOAD });
    let mut acks = AckFrequencyConfig::default();
    // Acknowledging every other packet of bulk data costs both ends time.
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(uni))
        .max_concurrent_bidi_streams(VarInt::from_u32(bi))
        .stream_receive_window(credit)
        .receive_window(credit)
        .send_window(window)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENCE_MS))))
        .keep_alive_interval(Some(Duration::from_millis(u64::from(SILENCE_MS) / 5)))
        .congestion_controller_factory(Arc::new(Factory::new(closing.clone())))
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks));
    if hint.rtt_ms > 0 {
        transport.initial_rtt(Duration::from_millis(hint.rtt_ms));
    }
    transport
}

/// What both ends' endpoints need.
pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Within the range that is allowed: the error cannot be.
    let _ = config.max_udp_payload_size(MAX_PAYLOAD);
    config
}

/// For a connection to `peer`.
pub(super) fn client(
    tls: &TlsIdentity,
    hint: LinkHint,
    peer: IpAddr,
    closing: &Closing,
) -> Result<ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls.client()).map_err(|e| unusable(&e))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(hint, peer, 0, 0, closing)));
    Ok(config)
}

/// For a connection from `peer`.
pub(super) fn server(
    tls: &TlsIdentity,
    hint: LinkHint,
    peer: IpAddr,
    closing: &Closing,
) -> Result<ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(tls.server()).map_err(|e| unusable(&e))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let transport = transport(hint, peer, MAX_STREAMS.into(), 1, closing);
    config
        .transport_config(Arc::new(transport))
        .migration(false)
        // What peers may store here before anybody has looked at them.
        .max_incoming(64)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(1 << 20);
    Ok(config)
}

fn unusable(error: &dyn std::error::Error) -> TransportError {
    TransportError::Tls {
        what: "QUIC".to_owned(),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_link_within_bounds() {
        let of = |mbit, rtt_ms| window(LinkHint { mbit, rtt_ms }, false);
        assert_eq!(of(0, 0), MAX_WINDOW);
        assert_eq!(of(10_000, 0), MAX_WINDOW);
        assert_eq!(of(100, 10), MIN_WINDOW);
        // 1 Gbit/s × 20 ms = 2.5 MB.
        assert_eq!(of(1_000, 20), 5_000_000);
        assert_eq!(of(u64::MAX, u64::MAX), MAX_WINDOW);
        assert_eq!(window(LinkHint::default(), true), MIN_WINDOW);
        let hint = LinkHint {
            mbit: 1_000,
            rtt_ms: 20,
        };
        assert_eq!(window(hint, true), window(hint, false));
    }
}
