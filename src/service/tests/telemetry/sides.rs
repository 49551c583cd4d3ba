//! Real migrations, and what both sides report on them.

use std::sync::{Arc, OnceLock};

use vmferry_block::MemoryDisk;
use vmferry_codecs::CodecChoice;
use vmferry_engine::source::SourceOperator;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::trace::TraceParent;
use vmferry_service::telemetry::{MigrationRecord, PreflightTimes, Story, migration_context};
use vmferry_tests::engine::{Ended, Guest, Plan, Script, Step, begin, guard};

/// Requests that the completed migration's guest has in flight at its pause.
const DEPTH: usize = 8;

/// Whoever asks for the migration that completes.
pub(crate) const CALLER: TraceParent = TraceParent {
    trace_id: [0xca; 16],
    span_id: [0x11; 8],
    flags: TraceParent::SAMPLED,
};

/// Both sides of a migration.
pub(crate) struct Sides {
    pub(crate) source: MigrationRecord,
    pub(crate) destination: MigrationRecord,
}

impl Sides {
    fn new(migration: MigrationId, caller: Option<TraceParent>, ended: &Ended) -> Self {
        let timeline = &ended.destination.timeline;
        if let Some(id) = &timeline.migration_id {
            assert_eq!(*id, migration.to_string());
        }
        let report = &ended.source.report;
        let began = report.timeline.began_unix_us;
        let source = MigrationRecord {
            migration,
            vm: "web-1".to_owned(),
            host: "host-a".to_owned(),
            peer: "host-b".to_owned(),
            parent: caller,
            clock_ahead_ms: Some(0.25),
            preflight: Some(PreflightTimes {
                began_unix_us: began - 2_000,
                ended_unix_us: began - 500,
                ..PreflightTimes::default()
            }),
            story: Story::Source(Box::new(report.clone())),
        };
        let destination = MigrationRecord {
            host: source.peer.clone(),
            peer: source.host.clone(),
            // As its VM process says: nobody else has told it.
            parent: timeline.traceparent.as_ref().map(|t| t.parse().unwrap()),
            clock_ahead_ms: None,
            preflight: None,
            story: Story::Destination {
                timeline: timeline.clone(),
                failure: ended.destination.failure.clone(),
            },
            ..source.clone()
        };
        Self {
            source,
            destination,
        }
    }
}

/// A migration that completes, with reads to be issued again and writes to be settled, on behalf
/// of [`CALLER`].
pub(crate) async fn completed() -> Sides {
    let disk = MemoryDisk::new(1 << 20);
    let work = "disk-depth=8 disk-mib=1 disk-write=50 disk-flush=0";
    let guest = Guest::on_disk(&disk, work).await;
    disk.stall(true);
    let waiting = disk.clone();
    let stalled = tokio::task::spawn_blocking(move || waiting.wait_stalled(DEPTH));
    let stalled = guard("a stalled queue", stalled).await.unwrap();
    assert!(stalled.iter().any(|s| s.kind.changes_disk()), "{stalled:?}");
    disk.stall(false);
    disk.refuse_cancel(true);
    let plan = Plan {
        disk: Some(disk.clone()),
        codec: CodecChoice::Auto,
        trace: Some(|id| migration_context(id, Some(&CALLER))),
        ..Plan::default()
    };
    let mut under = begin(&guest, &plan).await;
    let migration = under.migration;
    let there = under.arrive().await;
    disk.release_all();
    let ended = under.end().await;
    assert!(ended.completed(), "{}", ended.why_source());
    let sides = Sides::new(migration, Some(CALLER), &ended);
    there.machine.stop();
    sides
}

/// One that is cancelled in its first pass. The source tells of no trace.
pub(crate) async fn cancelled() -> Sides {
    let guest = Guest::small().await;
    let cancel: Arc<OnceLock<SourceOperator>> = Arc::default();
    let on_time = cancel.clone();
    let script = Script::new(move |said, _| {
        if said.name == "PassBegin" {
            on_time.get().unwrap().cancel();
        }
        // The pass does not end before that is heard.
        match said.name {
            "Ack" => Step::Hold,
            _ => Step::Pass,
        }
    });
    let under = begin(&guest, &Plan::scripted(&script)).await;
    let _ = cancel.set(under.source.operator());
    let migration = under.migration;
    let ended = under.end().await;
    assert_eq!(ended.why_source(), "cancelled");
    let sides = Sides::new(migration, None, &ended);
    guest.machine.stop();
    sides
}

/// One whose connection is cut while the guest is paused.
pub(crate) async fn failed() -> Sides {
    let guest = Guest::small().await;
    let script = Script::new(|said, _| match said.name {
        "State" => Step::Cut,
        _ => Step::Pass,
    });
    let plan = Plan {
        trace: Some(|id| migration_context(id, None)),
        ..Plan::scripted(&script)
    };
    let under = begin(&guest, &plan).await;
    let migration = under.migration;
    let ended = under.end().await;
    assert!(!ended.completed());
    let sides = Sides::new(migration, None, &ended);
    guest.machine.stop();
    sides
}
