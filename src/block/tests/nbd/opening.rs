//! Why a disk cannot be had, in words.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;

use vmferry_block::nbd;

use crate::peer::{ALL, Scripted};
use crate::servers::{Place, nbdkit};

fn refused(uri: &str, words: &[&str]) {
    let error = nbd::open(uri, false).unwrap_err();
    assert_eq!(error.disk, uri);
    for word in words {
        assert!(error.why.contains(word), "{error}");
    }
}

#[test]
fn nobody_listens() {
    let place = Place::new();
    refused(&place.uri(""), &["cannot reach", "check that it runs"]);
    let socket = place.at("socket");
    drop(UnixListener::bind(&socket).unwrap());
    refused(&place.uri(""), &["cannot reach", "refused"]);
    let address = place.address();
    refused(&format!("nbd://{address}/x"), &["cannot reach", &address]);
    refused("nbd://no-such-host.invalid/x", &["no-such-host.invalid"]);
}

#[test]
fn the_uri_is_wrong() {
    refused("nbd://host/x?queue=1", &["'queue'", "connections="]);
}

#[test]
fn an_export_that_is_not_there_is_named_with_those_that_are() {
    let place = Place::new();
    let arguments = [
        "--filter=exportname",
        "memory",
        "8M",
        "exportname-list=explicit",
    ];
    let names = ["exportname-strict=true", "exportname=one", "exportname=two"];
    let _server = nbdkit(&place, arguments.iter().chain(&names));
    refused(&place.uri("three"), &["three", "'one', 'two'"]);
    nbd::open(&place.uri("two"), false).unwrap();
}

#[test]
fn what_cannot_be_written_is_not_opened_for_writing() {
    let place = Place::new();
    let _server = nbdkit(&place, ["-r", "memory", "8M"]);
    refused(&place.uri(""), &["read-only"]);
    nbd::open(&place.uri(""), true).unwrap();
    let small = Scripted::new(511, ALL);
    refused(&small.uri(), &["511 bytes"]);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let place = Place::new();
    let server = nbdkit(&place, ["memory", "8M"]);
    server.stop();
    refused(&place.uri(""), &["its greeting", "stopped", "within 10 s"]);
    server.go_on();
    nbd::open(&place.uri(""), false).unwrap();
}

#[test]
fn what_is_no_nbd_server_is_told_apart() {
    let place = Place::new();
    let listener = UnixListener::bind(place.at("socket")).unwrap();
    let others = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"220 mail.example.org ESMTP ready\r\n")
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        drop(stream);
    });
    refused(&place.uri(""), &["does not greet as an NBD server"]);
    refused(&place.uri(""), &["closed the connection"]);
    others.join().unwrap();
}
