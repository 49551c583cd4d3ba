//! TLS, with `nbdkit` and certificates made on the spot.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;
use vmferry_block::{Extent, nbd};

use crate::rig::Disk;
use crate::servers::{Place, Server, nbdkit};

/// An authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tests");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Puts the authority's certificate into `directory`, and one for `role` with these names.
    fn certify(&self, directory: &Path, role: &str, names: &[&str]) {
        std::fs::create_dir_all(directory).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write("ca-cert.pem", &self.0.pem());
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        write(&format!("{role}-cert.pem"), &certificate.pem());
        write(&format!("{role}-key.pem"), &key.serialize_pem());
    }
}

/// A place with certificates for both sides.
fn place() -> (Place, Authority) {
    let (place, authority) = (Place::new(), Authority::new());
    authority.certify(&place.at("server"), "server", &["localhost", "127.0.0.1"]);
    authority.certify(&place.at("client"), "client", &["client"]);
    (place, authority)
}

fn server(place: &Place) -> Server {
    place.image(64 << 20);
    nbdkit(place, arguments(place))
}

fn arguments(place: &Place) -> [String; 5] {
    [
        "--tls=require".to_owned(),
        "--tls-verify-peer".to_owned(),
        format!("--tls-certificates={}", place.at("server").display()),
        "file".to_owned(),
        place.at("disk.img").display().to_string(),
    ]
}

fn uri(place: &Place, certificates: PathBuf) -> String {
    let uri = place.uri("").replace("nbd+unix", "nbds+unix");
    format!("{uri}&tls-certificates={}", certificates.display())
}

#[test]
fn what_is_written_is_read() {
    let (place, _) = place();
    let running = server(&place);
    let mut disk = Disk::open(&uri(&place, place.at("client")));
    let extents: Vec<Extent> = (0..6)
        .map(|i| Extent::new(i * (10 << 20), 10 << 20))
        .collect();
    let ids: Vec<_> = extents.iter().map(|e| disk.write(*e, 1)).collect();
    for id in ids {
        disk.done(id);
    }
    for extent in &extents {
        disk.check(*extent, 1);
    }
    // Sessions that end are begun again.
    let ids: Vec<_> = extents.iter().map(|e| disk.write(*e, 2)).collect();
    running.end(Signal::KILL);
    let _again = nbdkit(&place, arguments(&place));
    for id in ids {
        disk.done(id);
    }
    for extent in &extents {
        disk.check(*extent, 2);
    }
}

#[test]
fn over_tcp_the_name_is_the_hosts() {
    let (place, authority) = place();
    place.image(8 << 20);
    let address = place.address();
    authority.certify(&place.at("server"), "server", &[&address]);
    let _server = place.nbdkit_at(&address, arguments(&place));
    let certificates = place.at("client").display().to_string();
    let mut disk = Disk::open(&format!(
        "nbds://{address}/?tls-certificates={certificates}"
    ));
    let extent = Extent::new(0, 1 << 20);
    let id = disk.write(extent, 1);
    disk.done(id);
    disk.check(extent, 1);
}

fn refused(uri: &str, words: &[&str]) {
    let why = nbd::open(uri, false).unwrap_err().to_string();
    for word in words {
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let (place, authority) = place();
    let _server = server(&place);
    refused(&place.uri(""), &["wants TLS", "nbds"]);
    let good = uri(&place, place.at("client"));
    refused(
        &format!("{good}&tls-hostname=other"),
        &["tls-hostname", "other"],
    );
    Authority::new().certify(&place.at("strange"), "client", &["client"]);
    refused(&uri(&place, place.at("strange")), &["ca-cert.pem"]);
    // Only the authority, where the server wants to know its clients.
    authority.certify(&place.at("bare"), "other", &["x"]);
    refused(&uri(&place, place.at("bare")), &["client-cert.pem"]);
    refused(
        &uri(&place, place.at("nowhere")),
        &["ca-cert.pem", "nowhere"],
    );
    let key = place.at("bare").join("client-key.pem");
    std::fs::write(key, "no key").unwrap();
    refused(&uri(&place, place.at("bare")), &["client-key.pem"]);
}

#[test]
fn a_server_without_tls_is_not_spoken_to() {
    let (place, _) = place();
    let _server = nbdkit(&place, ["--tls=off", "memory", "8M"]);
    let words = ["no TLS", "nbd instead of nbds"];
    refused(&uri(&place, place.at("client")), &words);
}
