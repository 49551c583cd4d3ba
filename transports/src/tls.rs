//! A host's certificate, key and authority, and what TLS makes of them.
//!
//! TLS 1.3 only, certificates on both sides, one application protocol, no resumption: a connection
//! lasts a whole migration, so there is nothing to gain from one.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{TransportError, explain};

/// The application protocol that both ends must name.
pub(crate) const ALPN: &[u8] = b"vmferry/1";

/// Who this host is and whom it trusts. Cheap to clone; never prints its key.
#[derive(Clone)]
pub struct TlsIdentity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl TlsIdentity {
    /// From PEM files: the authority's certificate (or several), this host's certificate (followed
    /// by intermediate ones, if any) and its key.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file, what is wrong with it and what to do.
    pub fn from_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let read = |file: &Path| {
            fs::read(file).map_err(|e| {
                wrong(
                    &file.display().to_string(),
                    format!("{e}; `vmferry keys` makes a set of files"),
                )
            })
        };
        Self::build(
            (&ca.display().to_string(), &read(ca)?),
            (&certificate.display().to_string(), &read(certificate)?),
            (&key.display().to_string(), &read(key)?),
        )
    }

    /// From PEM text, as [`TlsIdentity::from_files`].
    ///
    /// # Errors
    /// [`TransportError::Tls`] saying which of the three is wrong, and how.
    pub fn from_pem(ca: &str, certificate: &str, key: &str) -> Result<Self, TransportError> {
        Self::build(
            ("the authority's certificate", ca.as_bytes()),
            ("the host's certificate", certificate.as_bytes()),
            ("the host's key", key.as_bytes()),
        )
    }

    fn build(
        ca: (&str, &[u8]),
        certificate: (&str, &[u8]),
        key: (&str, &[u8]),
    ) -> Result<Self, TransportError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca.0, ca.1)? {
            roots
                .add(root)
                .map_err(|e| wrong(ca.0, format!("not a usable authority: {e}")))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(certificate.0, certificate.1)?;
        let secret = PrivateKeyDer::from_pem_slice(key.1).map_err(|e| match e {
            pem::Error::NoItemsFound => wrong(
                key.0,
                "there is no private key in it (\"BEGIN PRIVATE KEY\"): is it the right file, and not encrypted?"
                    .to_owned(),
            ),
            e => wrong(key.0, format!("not PEM: {e}")),
        })?;

        let provider = Arc::new(provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| wrong(ca.0, format!("not a usable authority: {e}")))?;
        // A host that the own authority does not know would be refused by every peer: say so now.
        if let Some((own, others)) = chain.split_first() {
            verifier
                .verify_client_cert(own, others, UnixTime::now())
                .map_err(|e| {
                    wrong(
                        certificate.0,
                        format!(
                            "{} does not vouch for it ({}); all hosts need certificates of the same authority",
                            ca.0,
                            explain::certificate(&e)
                        ),
                    )
                })?;
        }

        let bad_key = |e: rustls::Error| match e {
            rustls::Error::InconsistentKeys(_) => wrong(
                key.0,
                format!(
                    "it is not the key of {}: take the pair that was made together",
                    certificate.0
                ),
            ),
            e => wrong(key.0, format!("not a usable key: {e}")),
        };
        let versions = &[&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|e| wrong("TLS 1.3", e.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), secret.clone_key())
            .map_err(bad_key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|e| wrong("TLS 1.3", e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(bad_key)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// What a client of another protocol than migration needs: the same identity and trust, with
    /// `alpn` as application protocols.
    #[must_use]
    pub fn client_config(&self, alpn: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.client);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    /// What a server of another protocol than migration needs: the same identity and trust
    /// (clients show a certificate, TLS 1.3 only), with `alpn` as application protocols.
    #[must_use]
    pub fn server_config(&self, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = ServerConfig::clone(&self.server);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// Checks a name before it is used: a wrong one is the user's mistake, not the network's.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, TransportError> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        wrong(
            &format!("server name {name:?}"),
            "neither a DNS name nor an address".to_owned(),
        )
    })
}

/// Ring, the quickest cipher of this processor first: the client's order decides.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites = if has_aes() {
        vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ]
    } else {
        vec![
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ]
    };
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(what, format!("not PEM: {e}")))?;
    if found.is_empty() {
        return Err(wrong(
            what,
            "there is no certificate in it (\"BEGIN CERTIFICATE\"): is it the right file?"
                .to_owned(),
        ));
    }
    Ok(found)
}

fn wrong(what: &str, why: String) -> TransportError {
    TransportError::Tls {
        what: what.to_owned(),
        why,
    }
}
