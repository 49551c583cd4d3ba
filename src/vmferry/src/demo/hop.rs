//! One move from host to host, watched from both ends.

use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use vmferry_engine::report::{MigrationReport, Moments, ReportOutcome};
use vmferry_machine::Beat;
use vmferry_machine::workload::monotonic_ns;
use vmferry_protocol::ids::Token;
use vmferry_vmm::api::{Answer, Event, MigrateOptions, Migrated, ReceiveOptions, Request};
use vmferry_vmm::client::ClientError;

use super::host::Host;
use super::show::Show;
use super::{DemoError, guest};
use crate::cli::DemoArgs;

/// What came of a hop.
#[derive(Debug)]
pub(super) struct Hop {
    pub(super) report: MigrationReport,
    /// The guest's work went backward: it woke up with older memory than it had.
    pub(super) backward: bool,
}

const SECOND_NS: u64 = 1_000_000_000;
/// Longer than anybody waits for a demo.
const NEVER: Duration = Duration::from_secs(1 << 30);
/// How long a destination may take to notice that nothing will come: its silence, and a little.
const UNTOLD: Duration = Duration::from_secs(15);

/// Moves the guest, if it can be moved.
pub(super) async fn hop(
    args: &DemoArgs,
    from: &mut Host,
    to: &mut Host,
    show: &Show,
) -> Result<Hop, DemoError> {
    let mut bits = [0; 16];
    OsRng
        .try_fill_bytes(&mut bits)
        .map_err(|e| DemoError::Random(e.to_string()))?;
    let token = Token::new(bits).to_hex();
    let config = guest::config(args);
    let receive = Request::Receive(ReceiveOptions {
        transport: args.transport.name().to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        tls: to.tls(),
        token: token.clone(),
        link_mbit: args.link_mbit,
        serial: config.serial,
        debugcon: config.debugcon,
    });
    let Answer::Listening { address } = to.call(receive).await? else {
        return Err(unexpected("to a request to receive"));
    };
    let migrate = Request::Migrate(MigrateOptions {
        transport: args.transport.name().to_owned(),
        to: address,
        server_name: to.name.clone(),
        tls: from.tls(),
        token,
        streams: args.streams,
        codec: args.codec.clone(),
        delta_cache_mib: args.delta_cache_mib,
        compressors: args.compressors,
        budget: None,
        tracker: args.tracker.clone(),
        group: args.group.clone(),
        throttle_pct: args.throttle,
        min_passes: args.min_passes,
        link_mbit: args.link_mbit,
        max_blackout_ms: args.max_blackout.as_secs_f64() * 1e3,
    });
    if let Err(error) = from.call(migrate).await {
        let _ = to.call(Request::Cancel).await;
        return Err(error.into());
    }
    let Migrated {
        mut report,
        start_ns,
        pause_ns,
    } = departure(from, &args.link_changes, show).await?;
    if report.outcome != ReportOutcome::Completed {
        // It may never have heard of the source; where it has, it has ended or soon will.
        let _ = to.call(Request::Cancel).await;
    }
    let (resumed_ns, extra) = if report.outcome == ReportOutcome::Completed {
        arrival(to, show).await?
    } else {
        // One that is prepared and was never told waits for an operator, and not the demo for it.
        tokio::time::timeout(UNTOLD, arrival(to, show))
            .await
            .unwrap_or(Ok((None, None)))?
    };
    report.peak_extra_rss_destination_bytes = extra;
    let mut backward = false;
    if let (ReportOutcome::Completed, Some(pause_ns), Some(resume_ns)) =
        (report.outcome, pause_ns, resumed_ns)
        && args.kernel.is_none()
    {
        // The first second after the move is part of what is measured.
        let end = resume_ns + SECOND_NS + SECOND_NS / 20;
        show.wait("the guest runs on");
        let rest = Duration::from_nanos(end.saturating_sub(monotonic_ns()));
        super::run_on(to, show, rest).await?;
        let moments = Moments {
            start_ns,
            pause_ns,
            resume_ns,
        };
        let before = beats(from, start_ns.saturating_sub(2 * SECOND_NS)).await?;
        let after = beats(to, 0).await?;
        backward = guest::fill_in(&mut report, before, after, moments).is_none();
    }
    Ok(Hop { report, backward })
}

fn unexpected(to: &str) -> DemoError {
    DemoError::Client(ClientError::Unexpected(to.to_owned()))
}

async fn beats(host: &mut Host, since_ns: u64) -> Result<Vec<Vec<Beat>>, DemoError> {
    match host.call(Request::Heartbeats { since_ns }).await? {
        Answer::Heartbeats(beats) => Ok(beats),
        _ => Err(unexpected("to a request for heartbeats")),
    }
}

/// Shows progress until the source says how it ended. Ctrl-C cancels.
async fn departure(
    from: &mut Host,
    link_changes: &[(u64, Duration)],
    show: &Show,
) -> Result<Migrated, DemoError> {
    let began = tokio::time::Instant::now();
    let mut changes = link_changes.iter();
    let mut change = changes.next();
    loop {
        let next = change.map_or(NEVER, |(_, at)| *at);
        let event = tokio::select! {
            event = from.event() => event?,
            () = tokio::time::sleep_until(began + next) => {
                if let Some(&(link_mbit, _)) = change {
                    // Too late, it changes nothing.
                    let _ = from.call(Request::Limit { link_mbit }).await;
                }
                change = changes.next();
                continue;
            }
            () = show.interrupted() => {
                show.step("cancelling: the guest goes on at the source");
                // Too late a cancel is answered by the migration's end.
                let _ = from.call(Request::Cancel).await;
                continue;
            }
        };
        match event {
            Event::Progress(line) => show.progress(&line),
            Event::Migrated(end) => return Ok(*end),
            // The migration fails by it, or ends before it has noticed: then this is why.
            Event::GuestEnded { crashed, detail } => {
                let how = if crashed { "crashed" } else { "stopped" };
                return Err(DemoError::GuestEnded { how, detail });
            }
            _ => {}
        }
    }
}

/// When the guest ran again at the destination, if it arrived; and the memory that took.
async fn arrival(to: &mut Host, show: &Show) -> Result<(Option<u64>, Option<u64>), DemoError> {
    super::until(to, show, |event| match event {
        Event::Received {
            completed,
            resumed_ns,
            peak_extra_rss_bytes,
            ..
        } => Some((resumed_ns.filter(|_| completed), Some(peak_extra_rss_bytes))),
        _ => None,
    })
    .await
}
