//! One move from host to host, watched from both ends.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use vmferry_engine::report::{MigrationReport, Moments, ReportOutcome};
use vmferry_machine::workload::monotonic_ns;
use vmferry_machine::{Beat, DiskStats};
use vmferry_protocol::ids::Token;
use vmferry_vmm::api::{
    Answer, Event, MigrateOptions, Migrated, ReceiveOptions, Request, WorkloadCommand,
};
use vmferry_vmm::client::ClientError;
use vmferry_vmm::random_bits;

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
    let token = random_bits().map_err(DemoError::Random)?;
    let token = Token::new(token).to_hex();
    let consoles = guest::config(args, None);
    let receive = Request::Receive(ReceiveOptions {
        transport: args.transport.name().to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        tls: to.tls(),
        token: token.clone(),
        link_mbit: args.link_mbit,
        migration: None,
        machine: None,
        come_within_s: None,
        serial: consoles.serial,
        debugcon: consoles.debugcon,
    });
    let Answer::Listening { address } = to.call(receive).await? else {
        return Err(unexpected("to a request to receive"));
    };
    let migrate = Request::Migrate(MigrateOptions {
        migration: None,
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
        traceparent: None,
    });
    if let Err(error) = from.call(migrate).await {
        let _ = to.call(Request::Cancel).await;
        return Err(error.into());
    }
    let mut watch = Watch::new(args, show);
    let Migrated {
        mut report,
        start_ns,
        pause_ns,
    } = watch.until_over(from, to).await?;
    let Watch {
        resumed_ns,
        received,
        measured,
        verdict,
        ..
    } = watch;
    if let Some(Received { io, extra }) = received {
        report.peak_extra_rss_destination_bytes = extra;
        if let (Some(there), Some(here)) = (io, &mut report.io) {
            here.reissued = there.reissued;
            here.errors = there.errors;
            here.fence_wait_ms = there.longest_fence_wait.as_secs_f64() * 1e3;
        }
    }
    let mut backward = false;
    if let (ReportOutcome::Completed, Some(pause_ns), Some(resume_ns), Some(measured)) =
        (report.outcome, pause_ns, resumed_ns, measured)
    {
        let moments = Moments {
            start_ns,
            pause_ns,
            resume_ns,
        };
        if let Some(io) = &mut report.io {
            io.first_after_resume_ms = guest::first_after(&measured.disk, resume_ns);
            io.verify_unsettled = verdict;
        }
        backward = guest::fill_in(&mut report, measured.before, measured.after, moments).is_none();
    }
    Ok(Hop { report, backward })
}

fn unexpected(to: &str) -> DemoError {
    DemoError::Client(ClientError::Unexpected(to.to_owned()))
}

async fn beats(host: &mut Host, request: Request) -> Result<Vec<Vec<Beat>>, DemoError> {
    match host.call(request).await? {
        Answer::Heartbeats(beats) => Ok(beats),
        _ => Err(unexpected("to a request for heartbeats")),
    }
}

/// What the guest's heartbeats were, around the move.
#[derive(Debug)]
struct Measured {
    before: Vec<Vec<Beat>>,
    after: Vec<Vec<Beat>>,
    disk: Vec<Vec<Beat>>,
}

/// What the destination says at its end.
#[derive(Debug)]
struct Received {
    io: Option<DiskStats>,
    extra: Option<u64>,
}

/// Both ends of a move, until it is over.
struct Watch<'a> {
    args: &'a DemoArgs,
    show: &'a Show,
    began_ns: u64,
    migrated: Option<Migrated>,
    /// When the guest ran at the destination.
    resumed_ns: Option<u64>,
    received: Option<Received>,
    measured: Option<Measured>,
    /// Writes of the source may still happen.
    unsettled: bool,
    /// The guest verifies meanwhile.
    asked: bool,
    verdict: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(args: &'a DemoArgs, show: &'a Show) -> Self {
        Self {
            args,
            show,
            began_ns: monotonic_ns(),
            migrated: None,
            resumed_ns: None,
            received: None,
            measured: None,
            unsettled: false,
            asked: false,
            verdict: None,
        }
    }

    /// Shows progress until both sides are done and the guest's first second at the destination is
    /// measured. Ctrl-C cancels.
    async fn until_over(&mut self, from: &mut Host, to: &mut Host) -> Result<Migrated, DemoError> {
        let began = Instant::now();
        let mut changes = self.args.link_changes.iter();
        let mut change = changes.next();
        let mut give_up = None;
        loop {
            if let Some(migrated) = self.over(give_up) {
                return Ok(migrated);
            }
            let next = change.map_or(NEVER, |(_, at)| *at);
            let measure_at = self.measure_at();
            tokio::select! {
                event = from.event() => self.source_says(event?)?,
                event = to.event() => self.destination_says(event?)?,
                () = sleep(measure_at.unwrap_or(NEVER)), if measure_at.is_some() => {
                    self.measure(from, to).await?;
                }
                () = sleep_until(began + next) => {
                    if let Some(&(link_mbit, _)) = change {
                        // Too late, it changes nothing.
                        let _ = from.call(Request::Limit { link_mbit }).await;
                    }
                    change = changes.next();
                }
                () = sleep_until(give_up.unwrap_or(began + NEVER)) => {}
                () = self.show.interrupted() => {
                    if self.resumed_ns.is_some() {
                        return Err(DemoError::Interrupted);
                    }
                    self.show.step("cancelling: the guest goes on at the source");
                    // Too late a cancel is answered by the migration's end.
                    let _ = from.call(Request::Cancel).await;
                }
            }
            let failed = |m: &Migrated| m.report.outcome != ReportOutcome::Completed;
            if give_up.is_none() && self.migrated.as_ref().is_some_and(failed) {
                // It may never have heard of the source; where it has, it has ended or soon will.
                // One that is prepared and was never told waits for an operator.
                let _ = to.call(Request::Cancel).await;
                give_up = Some(Instant::now() + UNTOLD);
            }
        }
    }

    /// The source's end, once there is nothing more to wait for.
    fn over(&mut self, give_up: Option<Instant>) -> Option<Migrated> {
        let told = self.received.is_some() || give_up.is_some_and(|at| at <= Instant::now());
        let measured = self.resumed_ns.is_none() || self.measured.is_some();
        match told && measured && (!self.asked || self.verdict.is_some()) {
            true => self.migrated.take(),
            false => None,
        }
    }

    /// How long to wait before the guest is measured: the first second after the move is part of
    /// that.
    fn measure_at(&self) -> Option<Duration> {
        let resumed_ns = self.resumed_ns.filter(|_| self.measured.is_none())?;
        let end = resumed_ns + SECOND_NS + SECOND_NS / 20;
        Some(Duration::from_nanos(end.saturating_sub(monotonic_ns())))
    }

    async fn measure(&mut self, from: &mut Host, to: &mut Host) -> Result<(), DemoError> {
        let since = |since_ns: u64| Request::Heartbeats { since_ns };
        let resumed_ns = self.resumed_ns.unwrap_or(0);
        self.measured = Some(Measured {
            before: beats(from, since(self.began_ns.saturating_sub(2 * SECOND_NS))).await?,
            after: beats(to, since(0)).await?,
            disk: beats(
                to,
                Request::DiskBeats {
                    since_ns: resumed_ns,
                },
            )
            .await?,
        });
        if self.unsettled && self.args.kernel.is_none() {
            self.show.wait("the guest verifies what is not waited for");
            to.call(Request::Workload(WorkloadCommand::Verify)).await?;
            self.asked = true;
        }
        Ok(())
    }

    fn source_says(&mut self, event: Event) -> Result<(), DemoError> {
        match event {
            Event::Progress(line) => {
                self.unsettled = line.jobs_unsettled > 0;
                self.show.progress(&line);
            }
            Event::Migrated(end) => {
                self.unsettled = false;
                self.migrated = Some(*end);
            }
            other => return ended(other),
        }
        Ok(())
    }

    fn destination_says(&mut self, event: Event) -> Result<(), DemoError> {
        match event {
            Event::Arrived { resumed_ns } => {
                self.show.step("the guest runs at the destination");
                self.resumed_ns = Some(resumed_ns);
            }
            Event::Verified { verdict } => self.verdict = Some(verdict),
            Event::Received {
                io,
                peak_extra_rss_bytes,
                ..
            } => {
                let extra = Some(peak_extra_rss_bytes);
                self.received = Some(Received { io, extra });
            }
            other => return ended(other),
        }
        Ok(())
    }
}

/// The migration fails by the guest's end, or ends before it has noticed: then this is why.
fn ended(event: Event) -> Result<(), DemoError> {
    match event {
        Event::GuestEnded { crashed, detail } => {
            let how = if crashed { "crashed" } else { "stopped" };
            Err(DemoError::GuestEnded { how, detail })
        }
        _ => Ok(()),
    }
}
