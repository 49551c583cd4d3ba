//! What a client needs for TLS, from the files that NBD's tools use.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::uri::TlsParameters;

/// Reads the files again each time: certificates are renewed.
pub(super) fn client(
    parameters: &TlsParameters,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let directory = &parameters.certificates;
    let authority = directory.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&authority)? {
        roots
            .add(certificate)
            .map_err(|e| format!("{} is no authority's: {e}", authority.display()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?
        .with_root_certificates(roots);
    let (own, key) = (
        directory.join("client-cert.pem"),
        directory.join("client-key.pem"),
    );
    let config = if own.exists() || key.exists() {
        let secret = PrivateKeyDer::from_pem_file(&key)
            .map_err(|e| format!("{} cannot be read as a PEM key: {e}", key.display()))?;
        builder
            .with_client_auth_cert(certificates(&own)?, secret)
            .map_err(|e| format!("{} and its key do not fit: {e}", own.display()))?
    } else {
        builder.with_no_client_auth()
    };
    let name = ServerName::try_from(parameters.hostname.clone()).map_err(|_| {
        format!(
            "'{}' is no name that a certificate bears: give tls-hostname=NAME",
            parameters.hostname
        )
    })?;
    Ok((Arc::new(config), name))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |e| format!("{} cannot be read as PEM certificates: {e}", file.display());
    let all = CertificateDer::pem_file_iter(file).map_err(wrong)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(wrong)?;
    if all.is_empty() {
        return Err(format!("there is no certificate in {}", file.display()));
    }
    Ok(all)
}

/// What a failed TLS handshake or a first refusal after it means.
pub(super) fn explain(error: &io::Error, parameters: &TlsParameters) -> String {
    let directory = parameters.certificates.display();
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => format!(
            "the server's certificate is not accepted ({why}): check that {directory}/ca-cert.pem \
             is its authority's, and that it bears the name '{}' (else give tls-hostname=NAME)",
            parameters.hostname
        ),
        Some(rustls::Error::AlertReceived(why)) => format!(
            "the server refuses TLS with us ({why:?}): check that client-cert.pem and \
             client-key.pem are in {directory} and of an authority that it accepts"
        ),
        Some(other) => format!("TLS: {other}"),
        None => format!("TLS has failed: {error}; check the server's log"),
    }
}
