//! Makes an authority and host certificates on the spot, for tests, demos and `vmferry keys`.
//!
//! It is not a certificate authority to run a company with: nothing is revoked, and new
//! certificates are made by hand before the old ones run out. Whoever has one brings files of their
//! own ([`TlsIdentity::from_files`]).

mod files;
mod info;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use time::{Duration, OffsetDateTime};

use crate::{TlsIdentity, TransportError};

pub use files::Existing;
pub use info::CertificateInfo;

/// What the common names of users' certificates begin with. No host is called so.
pub const ADMIN: &str = "admin-";
/// How long an authority is valid where nothing is said.
pub const AUTHORITY_DAYS: u32 = 3650;
/// How long a host's or a user's certificate is valid where nothing is said.
pub const DAYS: u32 = 365;
/// Certificates are valid from a little before they are made: clocks differ.
const CLOCKS_DIFFER: Duration = Duration::hours(1);
/// An authority's name where nothing is said.
const NAME: &str = "vmferry authority";

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// An authority that certifies hosts.
pub struct Authority {
    pem: String,
    not_after: OffsetDateTime,
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
        Self::named(NAME, AUTHORITY_DAYS)
    }

    /// As [`Authority::new`], with a name, and valid for so many days.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if no key can be made.
    pub fn named(name: &str, days: u32) -> Result<Self, TransportError> {
        let failed = |e| failed("a new authority", &e);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = authority(name);
        params.not_after = end(days);
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            pem,
            not_after: params.not_after,
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
        let pem = read(&ca)?;
        let info = CertificateInfo::from_file(&ca)?;
        let refused = |why: &str| TransportError::Tls {
            what: ca.display().to_string(),
            why: why.to_owned(),
        };
        if !info.authority {
            return Err(refused("it is no authority's certificate"));
        }
        if !info.is_current() {
            return Err(refused(
                "it has run out, or is not valid yet: make a new authority, and new certificates",
            ));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, secret)
            .map_err(|e| failed(&ca.display().to_string(), &e))?;
        let loaded = Self {
            pem,
            not_after: info.not_after,
            issuer,
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
        self.host(name, others, DAYS)
    }

    /// As [`Authority::issue_for`], valid for so many days; not for longer than the authority.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if a name cannot be one.
    pub fn host(&self, name: &str, others: &[&str], days: u32) -> Result<HostKeys, TransportError> {
        let names = [&[name], others].concat();
        if let Some(name) = names.iter().find(|name| name.starts_with(ADMIN)) {
            return Err(TransportError::Tls {
                what: format!("a certificate for {name:?}"),
                why: format!("a host with it would be a user: names in {ADMIN} are for users"),
            });
        }
        let both = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.sign(name, &names, &both, days)
    }

    /// A certificate for a user, good for the end that connects. Its common name is `admin-` and
    /// `name`.
    ///
    /// # Errors
    /// [`TransportError::Tls`]; not to be expected.
    pub fn user(&self, name: &str, days: u32) -> Result<HostKeys, TransportError> {
        let name = format!("{ADMIN}{name}");
        self.sign(&name, &[], &[ExtendedKeyUsagePurpose::ClientAuth], days)
    }

    fn sign(
        &self,
        name: &str,
        names: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
        days: u32,
    ) -> Result<HostKeys, TransportError> {
        let failed = |e| failed(&format!("a certificate for {name:?}"), &e);
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = named(name);
        params.not_before = begin();
        params.not_after = end(days).min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
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
        self.write(dir, Existing::Replace)
    }

    /// As [`Authority::write_to`], where neither file is there yet: an authority that is
    /// overwritten takes all hosts that it has certified with it.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn write_new_to(&self, dir: &Path) -> Result<(), TransportError> {
        self.write(dir, Existing::Keep)
    }

    fn write(&self, dir: &Path, existing: Existing) -> Result<(), TransportError> {
        files::make(dir)?;
        let (ca, key) = (dir.join(CA), dir.join(CA_KEY));
        files::may_write(&ca, existing)?;
        files::write(&key, &self.issuer.key().serialize_pem(), 0o600, existing)?;
        files::write(&ca, &self.pem, 0o644, existing)
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
        let files = self.files(dir);
        files::make(dir)?;
        files::write(&files.ca, &self.ca, 0o644, Existing::Replace)?;
        self.write_own(&files, Existing::Replace)?;
        Ok(files)
    }

    /// As [`HostKeys::write_to`]; the certificate and key that are there already are kept or
    /// replaced, and a `ca.pem` of another authority is always kept: an error.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn write_beside(&self, dir: &Path, existing: Existing) -> Result<KeyFiles, TransportError> {
        let files = self.files(dir);
        files::make(dir)?;
        files::may_write(&files.certificate, existing)?;
        files::may_write(&files.key, existing)?;
        match fs::read_to_string(&files.ca) {
            Ok(ca) if ca == self.ca => {}
            Ok(_) => {
                return Err(TransportError::Tls {
                    what: files.ca.display().to_string(),
                    why: "is there already, and of another authority; take another directory"
                        .to_owned(),
                });
            }
            Err(_) => files::write(&files.ca, &self.ca, 0o644, Existing::Keep)?,
        }
        self.write_own(&files, existing)?;
        Ok(files)
    }

    fn files(&self, dir: &Path) -> KeyFiles {
        KeyFiles {
            ca: dir.join(CA),
            certificate: dir.join(format!("{}.pem", self.name)),
            key: dir.join(format!("{}.key", self.name)),
        }
    }

    fn write_own(&self, files: &KeyFiles, existing: Existing) -> Result<(), TransportError> {
        files::write(&files.key, &self.key, 0o600, existing)?;
        files::write(&files.certificate, &self.certificate, 0o644, existing)
    }
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeys")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An authority's certificate, but for its key and its end.
fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.not_before = begin();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn begin() -> OffsetDateTime {
    OffsetDateTime::now_utc() - CLOCKS_DIFFER
}

fn end(days: u32) -> OffsetDateTime {
    OffsetDateTime::now_utc().saturating_add(Duration::days(days.into()))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn failed(what: &str, why: &dyn std::error::Error) -> TransportError {
    TransportError::Tls {
        what: what.to_owned(),
        why: why.to_string(),
    }
}
