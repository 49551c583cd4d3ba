//! Makes an authority and host certificates on the spot, for tests, demos and `vmferry keys`.
//!
//! It is not a certificate authority to run a company with: nothing is revoked or renewed, and
//! certificates do not run out. Whoever has one brings files of their own
//! ([`TlsIdentity::from_files`]).

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{TlsIdentity, TransportError};

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// An authority that certifies hosts.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A host's certificate and key, with the authority's certificate.
#[derive(Clone)]
pub struct HostKeys {
    name: String,
    ca: String,
    certificate: String,
    key: String,
}

impl Authority {
    /// A new authority with a key of its own.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if no key can be made.
    pub fn new() -> Result<Self, TransportError> {
        let failed = |e| failed("a new authority", &e);
        let key = KeyPair::generate().map_err(failed)?;
        let params = authority();
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority that [`Authority::write_to`] has left in `dir`, to certify more hosts.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file and what is wrong with it.
    pub fn load_from(dir: &Path) -> Result<Self, TransportError> {
        let read = |file: &Path| {
            fs::read_to_string(file).map_err(|e| failed(&file.display().to_string(), &e))
        };
        let (ca, key) = (dir.join(CA), dir.join(CA_KEY));
        let secret =
            KeyPair::from_pem(&read(&key)?).map_err(|e| failed(&key.display().to_string(), &e))?;
        let loaded = Self {
            pem: read(&ca)?,
            issuer: Issuer::new(authority(), secret),
        };
        // Its name and key are all that an issuer needs; whether they are those of the certificate
        // shows when a certificate is used.
        loaded.issue("check")?.identity().map_err(|e| match e {
            TransportError::Tls { why, .. } => TransportError::Tls {
                what: format!("{} with {}", ca.display(), key.display()),
                why: format!("they do not belong together: {why}"),
            },
            e => e,
        })?;
        Ok(loaded)
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for the host called `name` (a DNS name or an address), good for both ends of
    /// a connection.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if the name cannot be one.
    pub fn issue(&self, name: &str) -> Result<HostKeys, TransportError> {
        self.issue_for(name, &[])
    }

    /// As [`Authority::issue`], for a host that goes by `others` too.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if a name cannot be one.
    pub fn issue_for(&self, name: &str, others: &[&str]) -> Result<HostKeys, TransportError> {
        let what = || format!("a certificate for {name:?}");
        let mut names = vec![name.to_owned()];
        names.extend(others.iter().map(|&other| other.to_owned()));
        let mut params = CertificateParams::new(names).map_err(|e| failed(&what(), &e))?;
        params.distinguished_name = named(name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().map_err(|e| failed(&what(), &e))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|e| failed(&what(), &e))?;
        Ok(HostKeys {
            name: name.to_owned(),
            ca: self.pem.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) to `dir`, which is made if need be. Hosts need
    /// only the first.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn write_to(&self, dir: &Path) -> Result<(), TransportError> {
        make(dir)?;
        write(&dir.join(CA), &self.pem, 0o644)?;
        write(&dir.join(CA_KEY), &self.issuer.key().serialize_pem(), 0o600)
    }
}

// By hand, here and below: a key must not get into a log.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Where a host's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The host's certificate.
    pub certificate: PathBuf,
    /// The host's key, readable by its owner only.
    pub key: PathBuf,
}

impl HostKeys {
    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca
    }

    /// The host's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The host's key, PEM (PKCS #8): a secret.
    pub fn key_pem(&self) -> &str {
        &self.key
    }

    /// What a transport needs, without going through files.
    ///
    /// # Errors
    /// As [`TlsIdentity::from_pem`]; not to be expected.
    pub fn identity(&self) -> Result<TlsIdentity, TransportError> {
        TlsIdentity::from_pem(&self.ca, &self.certificate, &self.key)
    }

    /// Writes `ca.pem`, `<name>.pem` and `<name>.key` (mode 0600) to `dir`, which is made if need
    /// be.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn write_to(&self, dir: &Path) -> Result<KeyFiles, TransportError> {
        make(dir)?;
        let files = KeyFiles {
            ca: dir.join(CA),
            certificate: dir.join(format!("{}.pem", self.name)),
            key: dir.join(format!("{}.key", self.name)),
        };
        write(&files.ca, &self.ca, 0o644)?;
        write(&files.certificate, &self.certificate, 0o644)?;
        write(&files.key, &self.key, 0o600)?;
        Ok(files)
    }
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeys")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An authority's certificate, but for its key.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("vmferry authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn make(dir: &Path) -> Result<(), TransportError> {
    fs::create_dir_all(dir).map_err(|e| failed(&dir.display().to_string(), &e))
}

fn write(at: &Path, content: &str, mode: u32) -> Result<(), TransportError> {
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(at)?;
        // An existing file keeps its mode when it is opened: set it before the content is there.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    put().map_err(|e| failed(&at.display().to_string(), &e))
}

fn failed(what: &str, why: &dyn std::error::Error) -> TransportError {
    TransportError::Tls {
        what: what.to_owned(),
        why: why.to_string(),
    }
}
