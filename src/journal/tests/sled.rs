#![allow(clippy::unwrap_used)] // Tests and their helpers.
//! The journal on a real disk: order, another life, a killed writer, two openers.

use std::process::{Command, Stdio};

use vmferry_journal::{Journal, JournalError, MemoryJournal, SledJournal};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::Record;

const A: MigrationId = MigrationId([1; 16]);
const B: MigrationId = MigrationId([2; 16]);

fn contract(journal: &dyn Journal) {
    let all = [
        Record::Prepared(A),
        Record::Relinquished(B),
        Record::Owner(A),
    ];
    journal.append(&all[..1]).unwrap();
    journal.append(&all[1..]).unwrap();
    journal.append(&[]).unwrap();
    assert_eq!(journal.records().unwrap(), all);
    journal.forget(A).unwrap();
    assert_eq!(journal.records().unwrap(), [Record::Relinquished(B)]);
    journal.append(&[Record::Released(B)]).unwrap();
    let left = [Record::Relinquished(B), Record::Released(B)];
    assert_eq!(journal.records().unwrap(), left);
}

#[test]
fn the_journal_and_its_twin_keep_the_same_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&SledJournal::open(&dir.path().join("j")).unwrap());
    contract(&MemoryJournal::default());
}

#[test]
fn records_are_there_in_another_life() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..5 {
        let journal = SledJournal::open(dir.path()).unwrap();
        assert_eq!(journal.records().unwrap().len(), n);
        journal.append(&[Record::Prepared(A)]).unwrap();
    }
}

#[test]
fn a_second_opener_is_told_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SledJournal::open(dir.path()).unwrap();
    let second = SledJournal::open(dir.path()).unwrap_err();
    assert!(matches!(second, JournalError::Open { .. }), "{second}");
    assert!(
        second.to_string().contains("it is open already"),
        "{second}"
    );
}

#[test]
fn a_failing_twin_says_so() {
    let journal = MemoryJournal::default();
    journal.set_failing(true);
    assert!(journal.append(&[Record::Prepared(A)]).is_err());
    assert_eq!(journal.records().unwrap(), []);
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn writer_to_be_killed() {
    let Ok(dir) = std::env::var("VMFERRY_JOURNAL_VICTIM") else {
        return;
    };
    let journal = SledJournal::open(dir.as_ref()).unwrap();
    for n in 0..=u64::MAX {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        journal
            .append(&[Record::Prepared(MigrationId(id))])
            .unwrap();
        // The record is on disk: say so.
        println!("flushed {n}");
    }
}

#[test]
fn what_was_flushed_survives_a_kill() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer_to_be_killed", "--exact", "--nocapture"])
            .env("VMFERRY_JOURNAL_VICTIM", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut flushed = 0;
        for line in lines.map_while(Result::ok) {
            if line.contains("flushed") {
                flushed += 1;
                if flushed == 20 + round * 7 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let records = SledJournal::open(dir.path()).unwrap().records().unwrap();
        assert!(records.len() >= before + flushed, "{round}: {flushed}");
        before = records.len();
    }
}
