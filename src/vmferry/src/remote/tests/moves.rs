//! `migrate` and `migrations`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use vmferry_service::model::{MigrationState as S, Preflight, Problem};

use super::*;
use crate::remote::api::RemoteError;
use crate::remote::fake::{ID, migration, problem, report};

const MOVE: &str = "migrate web-1 --to host-b --wait";

fn unreachable() -> RemoteError {
    let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    RemoteError::unreachable(&"unix:/s", true, &error)
}

#[tokio::test(start_paused = true)]
async fn a_migration_is_followed_to_its_report() {
    let fake = fake();
    fake.migrations.then(Ok(migration(S::Queued)));
    fake.reports.then(Ok(report("completed")));
    let ran = ran_while(&fake, MOVE, async |fake, _| {
        sleep(Duration::from_millis(10)).await;
        fake.happen(event(migration(S::Preflight)));
        fake.happen(event(with_pass(migration(S::Running), 1, 1000)));
        // Another one's.
        fake.happen(event(Migration {
            id: "f".repeat(32),
            ..migration(S::Failed)
        }));
        sleep(Duration::from_millis(500)).await;
        fake.happen(event(with_pass(migration(S::Running), 2, 100)));
        fake.happen(event(migration(S::Settling)));
        fake.happen(event(migration(S::Completed)));
    })
    .await;
    assert_eq!(ran.exit, Ok(Exit::Ok));
    assert_eq!(
        ran.err,
        "web-1: waits for its turn\n\
         web-1: both hosts look whether it can move to host-b\n\
         web-1: moves to host-b\n\
         precopy · pass 1 · 1000 of 1000 pages sent · 0 B/s · 0 B on the wire · guest stalled 0.0 \
         ms · vCPUs waited 0.0 ms for a processor\n\
         pass 1: 1000 pages sent in 500.0 ms, 100 dirtied meanwhile (200 pages/s)\n\
         web-1: runs at host-b; storage is still at work for this host\n\
         web-1: runs at host-b\n"
    );
    assert!(
        ran.out.starts_with(&format!("migration {ID}: completed\n")),
        "{}",
        ran.out
    );
    assert_eq!(fake.calls(), ["events", "migrate web-1 \"host-b\""]);
}

#[tokio::test(start_paused = true)]
async fn every_end_has_its_exit_code() {
    for (state, outcome, exit) in [
        (S::Failed, "failed", Exit::Failed),
        (S::Cancelled, "cancelled", Exit::Cancelled),
        (S::Undecided, "undecided", Exit::Undecided),
    ] {
        let fake = fake();
        fake.migrations
            .then(Ok(migration(S::Running)))
            .then(Ok(with_reason(migration(state), "the link\nbroke")));
        fake.reports.then(Ok(report(outcome)));
        let ran = ran(&fake, MOVE).await;
        assert_eq!(ran.exit, Ok(exit));
        assert!(ran.out.contains(&format!(": {outcome}")), "{ran:?}");
        let last = format!("vmferry: migration {outcome}: the link broke");
        assert_eq!(ran.err.lines().last(), Some(last.as_str()), "{ran:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_failed_before_it_began_has_no_report() {
    let fake = fake();
    fake.migrations
        .then(Ok(with_reason(migration(S::Failed), "host-b lacks avx2")));
    let ran = ran(&fake, MOVE).await;
    assert_eq!(ran.exit, Ok(Exit::Failed));
    assert_eq!(
        ran.out,
        format!("migration {ID}: failed · total – · blackout –\n")
    );
    assert!(
        ran.err
            .ends_with("vmferry: migration failed: host-b lacks avx2\n"),
        "{ran:?}"
    );
    assert!(!ran.err.contains("no report"), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_cancels_and_a_second_one_leaves() {
    let fake = fake();
    fake.migrations.then(Ok(migration(S::Running)));
    fake.cancels.then(Ok(migration(S::Running)));
    fake.reports.then(Ok(report("cancelled")));
    let cancelled = ran_while(&fake, MOVE, async |fake, ends| {
        sleep(Duration::from_secs(1)).await;
        ends.interrupt.send(()).unwrap();
        sleep(Duration::from_secs(1)).await;
        fake.happen(event(migration(S::Cancelled)));
    })
    .await;
    assert_eq!(cancelled.exit, Ok(Exit::Cancelled));
    assert!(
        cancelled
            .err
            .contains("asking to cancel the migration; Ctrl-C again")
    );
    assert!(fake.calls().contains(&format!("cancel {ID}")));

    let left = ran_while(&fake, MOVE, async |_, ends| {
        ends.interrupt.send(()).unwrap();
        ends.interrupt.send(()).unwrap();
    })
    .await;
    assert_eq!((left.exit, left.out.as_str()), (Ok(Exit::Left), ""));
    assert!(
        left.err
            .contains("left alone; follow it with `vmferry migrations show 0123456789ab")
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_cancelled_any_more_is_waited_for() {
    let fake = fake();
    fake.migrations.then(Ok(migration(S::Running)));
    fake.cancels
        .then(Err(problem(409, "the guest runs at host-b already")));
    fake.reports.then(Ok(report("completed")));
    let ran = ran_while(&fake, MOVE, async |fake, ends| {
        sleep(Duration::from_millis(10)).await;
        ends.interrupt.send(()).unwrap();
        sleep(Duration::from_millis(10)).await;
        fake.happen(event(migration(S::Completed)));
    })
    .await;
    assert_eq!(ran.exit, Ok(Exit::Ok));
    let said = "cannot be cancelled: the guest runs at host-b already; waiting for its end";
    assert!(ran.err.contains(said), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn events_that_were_missed_are_made_up_for_at_once() {
    let fake = fake();
    fake.migrations
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Completed)));
    fake.reports.then(Ok(report("completed")));
    let begin = tokio::time::Instant::now();
    let missed = ran_while(&fake, MOVE, async |fake, _| {
        sleep(Duration::from_millis(10)).await;
        fake.happen(Ok(Happening::Missed));
    })
    .await;
    assert_eq!(missed.exit, Ok(Exit::Ok));
    assert_eq!(begin.elapsed(), Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_is_opened_again_and_reading_goes_on_meanwhile() {
    let fake = fake();
    fake.migrations
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Completed)));
    fake.reports.then(Ok(report("completed")));
    let ran = ran_while(&fake, MOVE, async |fake, _| {
        sleep(Duration::from_millis(10)).await;
        fake.happen(Err(unreachable()));
        *fake.events.lock().unwrap() = None;
    })
    .await;
    assert_eq!(ran.exit, Ok(Exit::Ok));
    assert_eq!(fake.calls()[2..], ["events"]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_starts_anew_is_waited_for_and_one_that_stays_away_is_not() {
    let fake = fake();
    fake.migrations
        .then(Ok(migration(S::Running)))
        .then(Err(unreachable()))
        .then(Err(unreachable()))
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Completed)));
    fake.reports.then(Ok(report("completed")));
    let back = ran(&fake, MOVE).await;
    assert_eq!(back.exit, Ok(Exit::Ok));
    let said = back.err.matches("does not run any more").count();
    assert_eq!(said, 1, "{back:?}");
    assert!(
        back.err.contains("the host service answers again\n"),
        "{back:?}"
    );

    let fake = self::fake();
    fake.migrations
        .then(Ok(migration(S::Running)))
        .then(Err(unreachable()));
    let begin = tokio::time::Instant::now();
    let lost = ran(&fake, MOVE).await;
    assert_eq!((lost.exit, lost.out.as_str()), (Ok(Exit::Unknown), ""));
    assert!(
        lost.err.contains("vmferry: how it ended is not known"),
        "{}",
        lost.err
    );
    assert!(begin.elapsed() >= crate::remote::watch::PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn as_json_each_change_is_a_line_and_the_report_the_last() {
    let fake = fake();
    fake.migrations
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Running)))
        .then(Ok(migration(S::Completed)));
    fake.reports.then(Ok(report("completed")));
    let ran = ran(&fake, &format!("{MOVE} --json")).await;
    assert_eq!(ran.exit, Ok(Exit::Ok));
    let lines: Vec<Value> = ran
        .out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let kinds: Vec<_> = lines.iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["migration", "migration", "report"]);
    assert_eq!(lines[1]["value"]["state"], "completed");
    assert_eq!(lines[2]["value"]["outcome"], "completed");
}

#[tokio::test(start_paused = true)]
async fn without_waiting_the_id_is_what_is_printed() {
    let fake = fake();
    let begun = ran(&fake, "migrate web-1 --to host-b").await;
    assert_eq!((begun.exit, begun.out), (Ok(Exit::Ok), format!("{ID}\n")));
    assert!(begun.err.contains("migrations show 0123456789ab --wait"));

    fake.preflights.then(Ok(Preflight {
        problems: vec![Problem {
            area: "cpu".to_owned(),
            what: "no avx2".to_owned(),
            todo: "use another host".to_owned(),
        }],
        ..Preflight::default()
    }));
    let dry = ran(&fake, "migrate web-1 --to host-b --dry-run").await;
    assert_eq!(dry.exit, Ok(Exit::Failed));
    assert!(
        dry.out.contains("cpu: no avx2\n    use another host\n"),
        "{dry:?}"
    );
    let dry = ran(&fake, "migrate web-1 --to host-b --dry-run --json").await;
    let document: Preflight = serde_json::from_str(&dry.out).unwrap();
    assert_eq!(document.problems.len(), 1);
    assert_eq!(fake.calls().len(), 1, "a dry run begins nothing");
}

#[tokio::test(start_paused = true)]
async fn migrations_are_listed_and_found_by_the_beginning_of_their_id() {
    let fake = fake();
    let done = Migration {
        total_ms: Some(4200.0),
        blackout_ms: Some(12.34),
        ..migration(S::Completed)
    };
    let other = Migration {
        id: format!("01{}", "f".repeat(30)),
        ..with_reason(migration(S::Failed), "the link broke")
    };
    fake.remembered.then(Ok(vec![done.clone(), other]));
    fake.migrations.then(Ok(done));
    let list = ran(&fake, "migrations list").await;
    assert_eq!(
        list.out,
        "ID            VM     HOST       STATE      ASKED                 TOTAL  BLACKOUT  WHY\n\
         0123456789ab  web-1  to host-b  completed  2023-11-14 22:13:20Z  4.2 s   12.3 ms\n\
         01ffffffffff  web-1  to host-b  failed     2023-11-14 22:13:20Z      –         –  the link broke\n"
    );
    let show = ran(&fake, "migrations show 0123").await;
    assert_eq!(
        show.out,
        format!(
            "id        {ID}\nvm        web-1\nto        host-b\nstate     completed\nasked     \
             2023-11-14 22:13:20Z\ntotal     4.2 s\nblackout  12.3 ms\n"
        )
    );
    let several = ran(&fake, "migrations cancel 01").await;
    assert!(
        several
            .exit
            .unwrap_err()
            .contains("several migrations begin with 01")
    );
    let none = ran(&fake, "migrations report abc").await;
    assert!(
        none.exit
            .unwrap_err()
            .contains("no migration begins with abc")
    );
    assert_eq!(fake.calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_written_where_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let fake = fake();
    let words = format!("migrations trace {ID} --format otlp");
    let written = ran(&fake, &format!("{words} --out {}", file.display())).await;
    assert_eq!((written.exit, written.out.as_str()), (Ok(Exit::Ok), ""));
    let trace: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(trace["of"], ID);
    let printed = ran(&fake, &words).await;
    assert!(printed.out.contains("resourceSpans"), "{printed:?}");
    let jaeger = ran(&fake, &format!("migrations trace {ID}")).await;
    assert!(jaeger.out.contains("\"data\""), "{jaeger:?}");
    let nowhere = ran(&fake, &format!("{words} --out /nowhere/t")).await;
    let error = nowhere.exit.unwrap_err();
    assert!(
        error.starts_with("cannot write /nowhere/t: No such file"),
        "{error}"
    );
}
