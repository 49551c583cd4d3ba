//! Transports between two VM processes: QUIC, TCP with TLS, in-memory.
