//! A copy by tokio-rustls alone, with the settings it comes with.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use vmferry_transports::keys::HostKeys;

use super::{Cost, Error, FRAME, HEADER, HOST, Load, Stopwatch, here, join};

/// Certificates on both sides.
///
/// # Errors
/// Not to be expected.
pub fn configs(keys: &HostKeys) -> Result<(ClientConfig, ServerConfig), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(keys.ca_pem().as_bytes())?)?;
    let roots = Arc::new(roots);
    let chain = vec![CertificateDer::from_pem_slice(
        keys.certificate_pem().as_bytes(),
    )?];
    let key = PrivateKeyDer::from_pem_slice(keys.key_pem().as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    client.alpn_protocols = vec![b"bench".to_vec()];
    server.alpn_protocols = vec![b"bench".to_vec()];
    Ok((client, server))
}

/// Copies `load`, a connection per stream.
///
/// # Errors
/// Those of TCP and TLS.
pub async fn copy(keys: &HostKeys, load: &Load) -> Result<Cost, Error> {
    let (client, server) = configs(keys)?;
    let connector = TlsConnector::from(Arc::new(client));
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind(here()).await?;
    let to = listener.local_addr()?;
    let mut ends = Vec::new();
    for _ in 0..load.streams {
        let connect = async {
            let socket = TcpStream::connect(to).await?;
            socket.set_nodelay(true)?;
            Ok::<_, Error>(
                connector
                    .connect(ServerName::try_from(HOST)?, socket)
                    .await?,
            )
        };
        let accept = async {
            let (socket, _) = listener.accept().await?;
            Ok(acceptor.accept(socket).await?)
        };
        ends.push(tokio::try_join!(connect, accept)?);
    }

    let mut readers = JoinSet::new();
    let mut writers = JoinSet::new();
    let watch = Stopwatch::start();
    for (mut writer, mut reader) in ends {
        let (frames, frame) = (load.frames, load.frame());
        readers.spawn(async move {
            let mut frame = vec![0; HEADER + FRAME];
            for _ in 0..frames {
                reader.read_exact(&mut frame).await?;
            }
            Ok(())
        });
        writers.spawn(async move {
            for _ in 0..frames {
                for part in &frame {
                    writer.write_all(part).await?;
                }
                writer.flush().await?;
            }
            Ok::<_, Error>(writer)
        });
    }
    join(readers).await?;
    let cost = watch.stop();
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(cost)
}
