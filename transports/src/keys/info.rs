//! What a certificate says.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::failed;
use crate::TransportError;

/// What a certificate says. Whether that is true is for TLS to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its subject's common name: a host's name, or, for a user, one that begins with
    /// [`super::ADMIN`].
    pub common_name: String,
    /// Names and addresses of the host that it is for.
    pub names: Vec<String>,
    /// Common name of the authority that has made it.
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Since when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// Whether it is an authority's.
    pub authority: bool,
    /// Whether it is good for the end of a connection that is connected to.
    pub server: bool,
    /// Whether it is good for the end that connects.
    pub client: bool,
}

impl CertificateInfo {
    /// Of a certificate as TLS shows it.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, TransportError> {
        let bad = |e: &dyn std::error::Error| failed("a certificate", e);
        let (_, found) = X509Certificate::from_der(der).map_err(|e| bad(&e))?;
        let usage = found.extended_key_usage().map_err(|e| bad(&e))?;
        let usage = usage.map(|usage| usage.value);
        let authority = found.is_ca();
        let good = |of: fn(&x509_parser::extensions::ExtendedKeyUsage<'_>) -> bool| {
            !authority && usage.is_none_or(|usage| usage.any || of(usage))
        };
        let names = found.subject_alternative_name().map_err(|e| bad(&e))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        Ok(Self {
            common_name: common_name(found.subject()),
            names: names.iter().filter_map(name).collect(),
            issuer: common_name(found.issuer()),
            serial: found
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
            not_before: found.validity().not_before.to_datetime(),
            not_after: found.validity().not_after.to_datetime(),
            authority,
            server: good(|usage| usage.server_auth),
            client: good(|usage| usage.client_auth),
        })
    }

    /// Of the first certificate in PEM text.
    ///
    /// # Errors
    /// [`TransportError::Tls`] if there is none.
    pub fn from_pem(pem: &str) -> Result<Self, TransportError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| failed("a certificate", &e))?;
        Self::from_der(&der)
    }

    /// Of the first certificate in a PEM file.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn from_file(file: &Path) -> Result<Self, TransportError> {
        let mut all = Self::all_from_file(file)?;
        Ok(all.swap_remove(0))
    }

    /// Of all certificates in a PEM file: one at least.
    ///
    /// # Errors
    /// [`TransportError::Tls`] naming the file.
    pub fn all_from_file(file: &Path) -> Result<Vec<Self>, TransportError> {
        let name = file.display().to_string();
        let pem = fs::read(file).map_err(|e| failed(&name, &e))?;
        let all = CertificateDer::pem_slice_iter(&pem)
            .map(|der| Self::from_der(&der.map_err(|e| failed(&name, &e))?))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| match e {
                TransportError::Tls { why, .. } => TransportError::Tls {
                    what: name.clone(),
                    why,
                },
                e => e,
            })?;
        if all.is_empty() {
            return Err(TransportError::Tls {
                what: name,
                why: "there is no certificate in it (\"BEGIN CERTIFICATE\")".to_owned(),
            });
        }
        Ok(all)
    }

    /// Whether it is valid now, as far as time goes.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let now = OffsetDateTime::now_utc();
        (self.not_before..=self.not_after).contains(&now)
    }

    /// A point in time, as in `2026-01-31T12:00:00Z`.
    #[must_use]
    pub fn text(at: OffsetDateTime) -> String {
        at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
    }
}

fn common_name(name: &X509Name<'_>) -> String {
    let mut names = name.iter_common_name();
    let first = names.next().and_then(|name| name.as_str().ok());
    first.unwrap_or_default().to_owned()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = || <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from);
            v4().or_else(v6).map(|ip| ip.to_string())
        }
        _ => None,
    }
}
