//! What becomes of operations when sessions end, with a server played by the test.

use std::sync::Arc;
use std::thread;

use vmferry_block::nbd::proto::flag;
use vmferry_block::{BlockBackend, Extent, JobEnd};

use crate::common::until;
use crate::peer::{ALL, Scripted};
use crate::rig::{Disk, pattern};

const SIZE: u64 = 128 << 20;
const A: Extent = Extent::new(0, 4096);
const B: Extent = Extent::new(1 << 20, 4096);
const ESHUTDOWN: u32 = 108;

#[test]
fn a_write_is_asked_again_when_the_server_has_closed() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let id = disk.write(A, 3);
    let asked = first.asked();
    assert_eq!(asked.payload, pattern(A, 3));
    drop(first);
    let mut second = server.session();
    let again = second.asked();
    assert_eq!((again.command, again.offset), (1, A.offset));
    assert_eq!(again.payload, asked.payload);
    second.reply(&again, 0, &[]);
    disk.done(id);
}

/// A server that says that it sends nothing more may still be writing.
#[test]
fn a_write_is_not_asked_again_before_the_server_has_closed_for_good() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let write = disk.write(A, 3);
    first.asked();
    first.half_close();
    first.parts();
    let mut second = server.session();
    // Had it been asked again, it would come first.
    let (read, buffers) = disk.read(B);
    let asked = second.asked();
    assert_eq!((asked.command, asked.offset), (0, B.offset));
    second.reply(&asked, 0, &pattern(B, 1));
    disk.done(read);
    let mut found = [0; 4096];
    buffers.copy_out(0, &mut found);
    assert_eq!(found[..], pattern(B, 1));
    drop(first);
    let again = second.asked();
    assert_eq!((again.command, again.offset), (1, A.offset));
    second.reply(&again, 0, &[]);
    disk.done(write);
}

#[test]
fn a_session_that_breaks_the_protocol_is_left_and_reads_are_asked_elsewhere() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let write = disk.write(A, 3);
    first.asked();
    let (read, _) = disk.read(B);
    first.asked();
    first.raw(&[7; 16]);
    first.parts();
    let mut second = server.session();
    let asked = second.asked();
    assert_eq!((asked.command, asked.offset), (0, B.offset));
    second.reply(&asked, 0, &pattern(B, 1));
    disk.done(read);
    drop(first);
    let again = second.asked();
    assert_eq!((again.command, again.offset), (1, A.offset));
    second.reply(&again, 28, &[]);
    assert_eq!(disk.wait(write), JobEnd::Failed(libc::ENOSPC));
}

#[test]
fn a_server_that_shuts_down_is_asked_again_later() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let (a, b) = (disk.write(A, 1), disk.write(B, 2));
    let (asked_a, asked_b) = (first.asked(), first.asked());
    first.reply(&asked_a, ESHUTDOWN, &[]);
    let mut second = server.session();
    let again = second.asked();
    assert_eq!(again.payload, asked_a.payload);
    second.reply(&again, 0, &[]);
    disk.done(a);
    // What it still answers counts.
    first.reply(&asked_b, 0, &[]);
    disk.done(b);
    first.parts();
    assert_eq!(first.next(), None);
}

#[test]
fn held_what_is_in_flight_is_unknown_when_the_server_has_closed() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let (write, (read, _)) = (disk.write(A, 1), disk.read(B));
    first.asked();
    first.asked();
    disk.backend().hold(true);
    disk.backend().cancel(write);
    first.half_close();
    assert_eq!(disk.wait(read), JobEnd::Unknown);
    first.parts();
    drop(first);
    assert_eq!(disk.wait(write), JobEnd::Unknown);
    // What comes now waits, and can be taken back.
    let later = disk.write(A, 2);
    disk.backend().cancel(later);
    assert_eq!(disk.wait(later), JobEnd::Cancelled);
    let kept = disk.write(A, 2);
    assert!(server.nobody_came());
    disk.backend().hold(false);
    let mut second = server.session();
    let asked = second.asked();
    assert_eq!(asked.payload, pattern(A, 2));
    second.reply(&asked, 0, &[]);
    disk.done(kept);
}

#[test]
fn hold_ends_what_waits_to_be_asked_again() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut first = server.session();
    let write = disk.write(A, 1);
    first.asked();
    server.vanish();
    drop(first);
    disk.backend().hold(true);
    assert_eq!(disk.wait(write), JobEnd::Unknown);
}

#[test]
fn an_export_that_has_shrunk_fails_until_it_has_grown() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    server.resize(SIZE - 512);
    drop(server.session());
    assert_eq!(server.session().bytes, SIZE - 512);
    let id = disk.write(A, 1);
    assert_eq!(disk.wait(id), JobEnd::Failed(libc::EIO));
    server.resize(SIZE);
    let session = std::iter::repeat_with(|| server.session()).find(|s| s.bytes == SIZE);
    let answers = thread::spawn(move || session.unwrap().answer_all());
    // The disk may not have heard yet.
    let mut ends = std::iter::repeat_with(|| {
        let id = disk.write(A, 1);
        disk.wait(id)
    });
    assert_eq!(
        ends.find(|end| *end != JobEnd::Failed(libc::EIO)),
        Some(JobEnd::Done)
    );
    disk.close();
    answers.join().unwrap();
}

#[test]
fn what_was_sent_cannot_be_taken_back_and_what_was_not_can() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut session = server.session();
    let sent = disk.write(A, 1);
    let asked = session.asked();
    disk.backend().cancel(sent);
    // Far more than a socket takes.
    let large = |i: u64| Extent::new(i * (16 << 20), 16 << 20);
    let ids = [1, 2, 3].map(|i| disk.write(large(i), 2));
    disk.backend().cancel(ids[2]);
    assert_eq!(disk.wait(ids[2]), JobEnd::Cancelled);
    assert_eq!(disk.reap(), []);
    session.reply(&asked, 0, &[]);
    disk.done(sent);
    for i in [1, 2] {
        let asked = session.asked();
        assert!(asked.offset == large(i).offset && asked.payload == pattern(large(i), 2));
        session.reply(&asked, 0, &[]);
    }
    disk.done(ids[0]);
    disk.done(ids[1]);
    let flush = disk.flush();
    let asked = session.asked();
    assert_eq!((asked.command, asked.len), (3, 0));
    session.reply(&asked, 0, &[]);
    disk.done(flush);
}

#[test]
fn large_operations_are_asked_in_parts_and_end_once() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut session = server.session();
    let extent = Extent::new(4096, 80 << 20);
    let (id, buffers) = disk.read(extent);
    let asked = [session.asked(), session.asked(), session.asked()];
    let lens = asked.each_ref().map(|a| u64::from(a.len));
    assert_eq!(lens, [32 << 20, 32 << 20, 16 << 20]);
    for asked in asked.iter().rev() {
        let part = Extent::new(asked.offset, asked.len.into());
        session.reply(asked, 0, &pattern(part, 7));
    }
    disk.done(id);
    let mut found = vec![0; 80 << 20];
    buffers.copy_out(0, &mut found);
    assert!(found == pattern(extent, 7));
    let id = disk.write(extent, 7);
    for error in [0, 28, 5] {
        let asked = session.asked();
        session.reply(&asked, error, &[]);
    }
    assert_eq!(disk.wait(id), JobEnd::Failed(libc::ENOSPC));
}

#[test]
fn a_reply_that_comes_twice_touches_nothing() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut session = server.session();
    let (id, buffers) = disk.read(A);
    let asked = session.asked();
    session.reply(&asked, 0, &pattern(A, 1));
    disk.done(id);
    session.reply(&asked, 0, &pattern(A, 2));
    session.parts();
    let mut found = [0; 4096];
    buffers.copy_out(0, &mut found);
    assert_eq!(found[..], pattern(A, 1));
    server.session();
}

#[test]
fn a_disk_that_is_dropped_sees_to_what_is_in_flight() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&server.uri());
    let mut session = server.session();
    let large = Extent::new(0, 16 << 20);
    disk.write(large, 1);
    disk.write(B, 2);
    let ram = Arc::downgrade(&disk.ram);
    // Its first bytes show that it is on its way; the second may be, or may be not.
    session.begins();
    disk.close();
    assert!(ram.strong_count() > 0, "memory is gone before it was sent");
    let asked = session.asked();
    assert!(asked.payload == pattern(large, 1));
    session.reply(&asked, 0, &[]);
    loop {
        match session.asked() {
            asked if asked.command == 1 => session.reply(&asked, 0, &[]),
            asked => break assert_eq!(asked.command, 2),
        }
    }
    assert_eq!(session.next(), None);
    until("memory is given back", || ram.strong_count() == 0);
}

#[test]
fn requests_go_to_the_connection_with_the_least_to_do() {
    let server = Scripted::new(SIZE, ALL | flag::CAN_MULTI_CONN);
    let mut disk = Disk::open(&server.uri());
    let sessions = [0; 4].map(|_| server.session());
    assert!(disk.backend().may_move().is_ok());
    let reads = [0; 12].map(|_| disk.read(A).0);
    let waits = sessions.into_iter().enumerate().map(|(i, mut session)| {
        thread::spawn(move || {
            // The last may not have been there yet, and the others get four.
            if i < 3 {
                let asked = [session.asked(), session.asked(), session.asked()];
                asked.iter().for_each(|a| session.reply(a, 0, &[0; 4096]));
            }
            session.answer_all();
        })
    });
    let waits: Vec<_> = waits.collect();
    for id in reads {
        disk.done(id);
    }
    disk.close();
    waits.into_iter().for_each(|wait| wait.join().unwrap());
}

#[test]
fn one_connection_unless_the_server_says_that_several_are_coherent() {
    let server = Scripted::new(SIZE, ALL);
    let mut disk = Disk::open(&format!("{}&connections=8", server.uri()));
    let session = server.session();
    let why = disk.backend().may_move().unwrap_err();
    assert!(
        why.contains("CAN_MULTI_CONN") && why.contains("--shared"),
        "{why}"
    );
    let answers = thread::spawn(move || session.answer_all());
    let id = disk.flush();
    disk.done(id);
    assert!(server.nobody_came());
    disk.close();
    answers.join().unwrap();
}
