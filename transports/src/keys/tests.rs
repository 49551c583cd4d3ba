use super::*;
use std::os::unix::fs::PermissionsExt;

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

fn why(error: &TransportError) -> String {
    error.to_string()
}

#[test]
fn an_authority_is_never_overwritten_and_its_key_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("deep/authority");
    Authority::new().unwrap().write_new_to(&at).unwrap();
    assert_eq!((mode(&at.join(CA)), mode(&at.join(CA_KEY))), (0o644, 0o600));
    let files = |at: &Path| [CA, CA_KEY].map(|file| fs::read(at.join(file)).unwrap());
    let before = files(&at);
    let again = Authority::new().unwrap().write_new_to(&at).unwrap_err();
    assert!(why(&again).contains("there already"), "{again}");
    assert_eq!(files(&at), before);
    // Nor half of it.
    fs::remove_file(at.join(CA)).unwrap();
    assert!(Authority::new().unwrap().write_new_to(&at).is_err());
    assert!(!at.join(CA).exists());
    assert_eq!(
        fs::read_dir(&at).unwrap().count(),
        1,
        "no temporary file stays"
    );
}

#[test]
fn a_loaded_authority_certifies_hosts_that_the_first_ones_trust() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::named("the authority of a test", 30).unwrap();
    first.write_new_to(dir.path()).unwrap();
    let loaded = Authority::load_from(dir.path()).unwrap();
    let host = loaded.issue("host-b").unwrap();
    host.identity().unwrap();
    let info = CertificateInfo::from_pem(host.certificate_pem()).unwrap();
    assert_eq!(info.issuer, "the authority of a test");
    let authority = CertificateInfo::from_pem(first.pem()).unwrap();
    assert_eq!(
        info.not_after, authority.not_after,
        "not longer than the authority"
    );
    // Another one's key does not belong to it.
    Authority::new()
        .unwrap()
        .write_to(&dir.path().join("other"))
        .unwrap();
    fs::copy(
        dir.path().join("other").join(CA_KEY),
        dir.path().join(CA_KEY),
    )
    .unwrap();
    let error = Authority::load_from(dir.path()).unwrap_err();
    assert!(why(&error).contains("belong together"), "{error}");
}

#[test]
fn certificates_say_whose_they_are_and_for_how_long() {
    let authority = Authority::new().unwrap();
    let of = |keys: &HostKeys| CertificateInfo::from_pem(keys.certificate_pem()).unwrap();
    let days = |info: &CertificateInfo| (info.not_after - info.not_before).whole_days();
    let ca = CertificateInfo::from_pem(authority.pem()).unwrap();
    assert!(ca.authority && !ca.server && !ca.client && ca.is_current());
    assert_eq!(days(&ca), i64::from(AUTHORITY_DAYS));
    let others = ["10.0.0.1", "fd00::1", "a.example"];
    let host = of(&authority.issue_for("host-a", &others).unwrap());
    assert!(!host.authority && host.server && host.client && host.is_current());
    assert_eq!(host.common_name, "host-a");
    assert_eq!(host.names, [&["host-a"], &others[..]].concat());
    assert_eq!(days(&host), i64::from(DAYS));
    let user = of(&authority.user("ann", 7).unwrap());
    assert!(!user.authority && !user.server && user.client);
    assert_eq!(user.common_name, "admin-ann");
    assert_eq!((user.names.len(), days(&user)), (0, 7));
    assert_ne!(host.serial, user.serial);
    authority.user("ann", 7).unwrap().identity().unwrap();
    let error = authority.host("admin-ann", &[], DAYS).unwrap_err();
    assert!(why(&error).contains("for users"), "{error}");
}

#[test]
fn a_hosts_files_are_kept_or_replaced_as_asked_and_another_authority_is_not_mixed_in() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let host = |name| authority.issue(name).unwrap();
    let files = host("a").write_beside(dir.path(), Existing::Keep).unwrap();
    assert_eq!((mode(&files.key), mode(&files.certificate)), (0o600, 0o644));
    TlsIdentity::from_files(&files.ca, &files.certificate, &files.key).unwrap();
    let error = host("a")
        .write_beside(dir.path(), Existing::Keep)
        .unwrap_err();
    assert!(why(&error).contains("a.pem: is there already"), "{error}");
    host("b").write_beside(dir.path(), Existing::Keep).unwrap();
    let before = fs::read(&files.certificate).unwrap();
    host("a")
        .write_beside(dir.path(), Existing::Replace)
        .unwrap();
    assert_ne!(fs::read(&files.certificate).unwrap(), before);
    TlsIdentity::from_files(&files.ca, &files.certificate, &files.key).unwrap();
    let error = Authority::new()
        .unwrap()
        .issue("c")
        .unwrap()
        .write_beside(dir.path(), Existing::Replace)
        .unwrap_err();
    assert!(why(&error).contains("another authority"), "{error}");
}

#[test]
fn what_is_no_certificate_is_refused_with_the_files_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.pem");
    let error = |content: &str| {
        fs::write(&file, content).unwrap();
        why(&CertificateInfo::all_from_file(&file).unwrap_err())
    };
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for content in ["", "words", garbage, &garbage.replace("AAAA", "=")] {
        assert!(error(content).contains("file.pem"), "{}", error(content));
    }
    assert!(CertificateInfo::from_der(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
    let key = KeyPair::generate().unwrap().serialize_pem();
    let error = error(&key);
    assert!(error.contains("no certificate in it"), "{error}");
}
