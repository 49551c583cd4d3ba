//! Migrations that nothing disturbs: every transport, machine and codec.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use vmferry_codecs::{CodecChoice, CodecSpec};
use vmferry_journal::{Journal, SledJournal};
use vmferry_machine::{MachineKind, MachineState};
use vmferry_protocol::ownership::Record;
use vmferry_tests::engine::{Guest, Leaks, Over, Plan, Script, Way, begin, has_kvm, run, settle};

const CODECS: [CodecChoice; 5] = [
    CodecChoice::Fixed(CodecSpec::Raw),
    CodecChoice::Fixed(CodecSpec::Lz4),
    CodecChoice::Fixed(CodecSpec::Zstd(1)),
    CodecChoice::Fixed(CodecSpec::Brotli(1)),
    CodecChoice::Auto,
];

/// One guest, moved once by every transport with every codec.
async fn every_way(kind: MachineKind, vcpus: u32) {
    let workload = "workload=dense ws-mib=4 fill-mib=12 rate=20000 seed=3";
    let mut guest = Guest::boot(kind, vcpus, workload).await;
    for over in Over::ALL {
        for codec in CODECS {
            let plan = Plan {
                over,
                codec,
                ..Plan::default()
            };
            let ended = begin(&guest, &plan).await.end().await;
            assert!(
                ended.completed(),
                "{over:?}, {codec}: {}",
                ended.why_source()
            );
            let report = &ended.source.report;
            assert!(report.pages_zero > 0 && report.bytes_wire > 0);
            let name = codec.to_string();
            let name = name.split(':').next().unwrap();
            let used = match codec {
                CodecChoice::Auto => report.passes.iter().any(|p| !p.choices.is_empty()),
                CodecChoice::Fixed(_) => report.bytes_by_codec.contains_key(name),
            };
            assert!(used, "{report:?}");
            guest = settle(guest, ended).await;
        }
    }
}

#[test]
fn a_process_machine_moves_by_every_transport_with_every_codec() {
    run(every_way(MachineKind::Process, 2));
}

#[test]
fn kvm_a_machine_moves_by_every_transport_with_every_codec() {
    if has_kvm() {
        run(every_way(MachineKind::Kvm, 1));
    }
}

#[test]
fn a_paused_guest_stays_paused() {
    run(async {
        let guest = Guest::small().await;
        guest.machine.pause().unwrap();
        let ended = begin(&guest, &Plan::default()).await.end().await;
        assert!(ended.completed(), "{}", ended.why_source());
        let mut there = ended.arrived.unwrap();
        assert_eq!(there.machine.state(), MachineState::Paused);
        assert_eq!(guest.machine.state(), MachineState::Stopped);
        there.machine.resume().unwrap();
        there.verify().await;
    });
}

#[test]
fn what_the_guest_never_touched_is_neither_sent_nor_made() {
    run(async {
        let guest = Guest::small().await;
        let ended = begin(&guest, &Plan::default()).await.end().await;
        let report = &ended.source.report;
        let touched = {
            let mut pages = 0;
            guest
                .machine
                .ram()
                .populated(|run| pages += run.count)
                .unwrap();
            pages
        };
        assert!(touched * 4096 < guest.machine.ram().bytes() / 2);
        assert_eq!(report.passes[0].pages_considered, touched);
        let there = settle(guest, ended).await;
        let mut made = 0;
        there
            .machine
            .ram()
            .populated(|run| made += run.count)
            .unwrap();
        // A huge page exists as a whole where one page of it was written.
        assert!(made <= touched + 512, "{made} pages made of {touched}");
    });
}

#[test]
fn the_records_of_a_migration_are_on_disk_and_go_where_they_mean_nothing_any_more() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let open = |name| Arc::new(SledJournal::open(&dir.path().join(name)).unwrap());
        let (here, there) = (open("source"), open("destination"));
        let guest = Guest::small().await;
        let plan = Plan {
            journals: [here.clone(), there.clone()],
            over: Over::Tcp,
            ..Plan::default()
        };
        let under = begin(&guest, &plan).await;
        let id = under.migration;
        let ended = under.end().await;
        settle(guest, ended).await;
        assert_eq!(here.records().unwrap(), []);
        let expected = [Record::Prepared(id), Record::Owner(id)];
        assert_eq!(there.records().unwrap(), expected);
    });
}

#[test]
fn nothing_is_left_behind() {
    run(async {
        for over in Over::ALL {
            // The first brings things that stay, like the host's keys.
            settle_once(over).await;
            let leaks = Leaks::count();
            settle_once(over).await;
            leaks.none().await;
        }
    });
}

async fn settle_once(over: Over) {
    let script = Script::clean();
    let plan = Plan {
        over,
        ..Plan::scripted(&script)
    };
    let guest = Guest::small().await;
    let ended = begin(&guest, &plan).await.end().await;
    assert!(ended.completed(), "{}", ended.why_source());
    assert!(script.has(Way::Out, "Bye") && script.connections() == 1);
    settle(guest, ended).await;
}
