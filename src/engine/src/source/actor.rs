//! The source's `Migration` actor: message → event into the core → outputs → messages.

use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, MessageResult, SpawnHandle,
    SyncArbiter,
};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{oneshot, watch};
use vmferry_journal::Journal;
use vmferry_machine::{HeldIo, IoEvent, Machine};
use vmferry_memory::GuestRam;
use vmferry_protocol::ids::Time;
use vmferry_protocol::message::VmShape;
use vmferry_protocol::policy::READ_BUDGET;
use vmferry_protocol::source::{Outcome, Source, SourceConfig, SourceEvent, SourceOutput};
use vmferry_protocol::storage::Settlement;
use vmferry_protocol::{PAGE_SIZE, RamLayout};
use vmferry_tracker::{DirtyTracker, PassFacts, Throttle};
use vmferry_transports::Connector;

use super::summary::{io_report, summarise};
use super::{Live as LiveProgress, SourceEnd, SourceOptions, Told};
use crate::SOFTWARE;
use crate::actors::Settle;
use crate::actors::compressor::{Compressor, Encode};
use crate::actors::io_journal::{Forget, IoJournal, Write, Written};
use crate::actors::machine::{Do, Done, Hands, What};
use crate::actors::tracker::{Harvest, Live, StopTracking, Tracker};
use crate::actors::transport::{Close, Connect, Say, Transport, TransportEvent};
use crate::buffers::Buffers;
use crate::clock::Clock;
use crate::compression::{Compression, Link};
use crate::encode::{Encoder, Frame};
use crate::fingerprints::{Fingerprints, KEY_BYTES};
use crate::meter::Meter;
use crate::processors::Watch;
use crate::processors::priority::Helpers;
use crate::processors::threads;

/// Costs of a switchover beside pages and round trips, as reckoned before any was measured.
const FIXED_COST: Duration = Duration::from_millis(3);
/// The guest stands still for at most so many times the blackout that is accepted, and a while.
const PAUSE_FACTOR: u32 = 4;
const PAUSE_AT_LEAST: Duration = Duration::from_secs(5);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The actors that it directs. They end when nobody can send to them any more.
struct Team {
    hands: Addr<Hands>,
    tracker: Addr<Tracker>,
    compressors: Addr<Compressor>,
    journal: Addr<IoJournal>,
    transport: Addr<Transport>,
}

/// The actor.
pub(crate) struct Migration {
    core: Source,
    clock: Clock,
    options: SourceOptions,
    parts: Option<Parts>,
    machine: Arc<dyn Machine>,
    tracker: Arc<dyn DirtyTracker>,
    connector_name: &'static str,
    team: Option<Team>,
    timer: Option<SpawnHandle>,
    meter: Meter,
    helpers: Helpers,
    sent: Option<Arc<Fingerprints>>,
    watch: Watch,
    compression: Arc<Compression>,
    run_delay_before: Duration,
    run_delay_at_pause: Option<Duration>,
    /// Storage IO at the pause, of a machine that has disks.
    held: Option<HeldIo>,
    progress: watch::Sender<Option<LiveProgress>>,
    end: Option<oneshot::Sender<SourceEnd>>,
}

fn fingerprints(ram: &GuestRam) -> Result<Fingerprints, String> {
    let mut key = [0; KEY_BYTES];
    OsRng
        .try_fill_bytes(&mut key)
        .map_err(|e| format!("no random numbers: {e}"))?;
    Ok(Fingerprints::new(ram, key))
}

/// What the team is made of, once the actor has an address.
struct Parts {
    connector: Arc<dyn Connector>,
    journal: Arc<dyn Journal>,
    tracker: Arc<dyn DirtyTracker>,
    layout: RamLayout,
    encoders: Vec<Encoder>,
}

impl Migration {
    #[expect(clippy::too_many_arguments, reason = "called once, by `start`")]
    pub(super) fn new(
        machine: Arc<dyn Machine>,
        connector: Arc<dyn Connector>,
        journal: Arc<dyn Journal>,
        tracker: Arc<dyn DirtyTracker>,
        shape: VmShape,
        options: SourceOptions,
        progress: watch::Sender<Option<LiveProgress>>,
        end: oneshot::Sender<SourceEnd>,
    ) -> Result<Self, String> {
        let ram = machine.ram().clone();
        let of_meter = Arc::downgrade(&ram);
        let meter = Meter::start(move || of_meter.upgrade());
        let buffers = Buffers::default();
        let sent = match tracker.compares_content() {
            true => Some(Arc::new(fingerprints(&ram)?)),
            false => None,
        };
        let compressors = options.compressors.max(1);
        let kept = usize::try_from(options.delta_cache_bytes).unwrap_or(usize::MAX);
        let clock = Clock::start();
        let link = Arc::new(Link::new(options.streams, clock));
        let compression = Arc::new(Compression::new(
            options.codec,
            link,
            compressors,
            kept,
            shape.vcpus,
        ));
        let encoders = (0..compressors).map(|_| {
            let (ram, tracker, compression) = (ram.clone(), tracker.clone(), compression.clone());
            Encoder::new(ram, tracker, compression, buffers.clone(), sent.clone())
        });
        let encoders = encoders.collect();
        let helpers = Helpers::default();
        let budget = options.budget.clone();
        let watch = Watch::start(compression.gate().clone(), helpers.clone(), budget);
        let layout = shape.ram.clone();
        let config = SourceConfig {
            migration: options.migration,
            token: options.token,
            streams: options.streams,
            shape,
            limits: options.limits,
            window_pages: (options.window_bytes / PAGE_SIZE).max(1),
            fixed_cost: FIXED_COST,
            silence: options.silence,
            pause_deadline: PAUSE_AT_LEAST.max(options.limits.max_blackout * PAUSE_FACTOR),
            can_throttle: tracker.can_throttle(),
            reconnect_for: options.reconnect_for,
            software: SOFTWARE.to_owned(),
            trace: options.trace,
        };
        Ok(Self {
            // It began when its clock did: all its times are from there.
            core: Source::new(config, Time::ZERO),
            clock,
            connector_name: connector.name(),
            tracker: tracker.clone(),
            parts: Some(Parts {
                connector,
                journal,
                tracker,
                layout,
                encoders,
            }),
            options,
            machine,
            team: None,
            timer: None,
            meter,
            watch,
            helpers,
            sent,
            compression,
            run_delay_before: threads::vcpus().waited,
            run_delay_at_pause: None,
            held: None,
            progress,
            end: Some(end),
        })
    }

    fn assemble(&self, parts: Parts, ctx: &Context<Self>) -> Team {
        let live = Live::new();
        let (frames, to_send) = async_channel::unbounded::<Frame>();
        let transport = Transport::new(
            parts.connector,
            self.options.migration,
            self.options.token,
            to_send,
            self.compression.link().clone(),
            ctx.address().recipient(),
        )
        .start();
        let told = ctx.address().recipient::<Told>();
        let notification_cost = self.options.notification_cost;
        let tracker = {
            let (owner, live, tracker) = (told.clone(), live.clone(), parts.tracker);
            SyncArbiter::start(1, move || Tracker {
                tracker: tracker.clone(),
                layout: parts.layout.clone(),
                live: live.clone(),
                notification_cost,
                owner: owner.clone(),
            })
        };
        let (helpers, compression) = (self.helpers.clone(), self.compression.clone());
        let threads = parts.encoders.len();
        let encoders = std::sync::Mutex::new(parts.encoders);
        let compressors = SyncArbiter::start(threads, move || {
            let mut left = encoders
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // Asked for once a thread: there is one for each.
            let encoder = left.pop().expect("an encoder for each thread");
            Compressor {
                encoder,
                live: live.clone(),
                helpers: helpers.clone(),
                compression: compression.clone(),
                frames: frames.clone(),
                owner: told.clone(),
                free_since: compression.link().now(),
            }
        });
        let (done, written) = (ctx.address().recipient(), ctx.address().recipient());
        let journal = parts.journal;
        Team {
            hands: SyncArbiter::start(1, move || Hands {
                owner: done.clone(),
            }),
            tracker,
            compressors,
            journal: SyncArbiter::start(1, move || IoJournal {
                journal: journal.clone(),
                owner: written.clone(),
            }),
            transport,
        }
    }

    fn tell(&mut self, event: SourceEvent, ctx: &mut Context<Self>) {
        self.core.handle_event(self.clock.now(), event);
        self.drive(ctx);
    }

    /// Carries out what the core wants, then sets its timer.
    fn drive(&mut self, ctx: &mut Context<Self>) {
        while let Some(output) = self.core.poll_output() {
            self.carry_out(output, ctx);
        }
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.core.poll_timeout() {
            let wait = at.saturating_sub(self.clock.now());
            self.timer = Some(ctx.run_later(wait, |this, ctx| {
                this.timer = None;
                this.core.handle_timeout(this.clock.now());
                this.drive(ctx);
            }));
        }
    }

    fn carry_out(&mut self, output: SourceOutput, ctx: &mut Context<Self>) {
        let Some(team) = &self.team else {
            return;
        };
        let machine = self.machine.clone();
        match output {
            SourceOutput::Send(message) => team.transport.do_send(Say(message)),
            SourceOutput::Harvest { pass } => {
                let facts = self.facts(pass);
                let last = self.run_delay_at_pause.is_some();
                team.tracker.do_send(Harvest { facts, last });
            }
            SourceOutput::SendChunk(chunk) => {
                // Should the pause be aborted, tracking ends.
                let last = self.run_delay_at_pause.is_some();
                team.compressors.do_send(Encode { chunk, last });
            }
            SourceOutput::Throttle { pages_per_second } => {
                let throttle = pages_per_second.map(|pages_per_second| Throttle {
                    pages_per_second,
                    most_pct: self.options.limits.throttle_pct,
                });
                // At once, not by the tracker's thread: the pause must not come before it.
                self.tracker.throttle(throttle);
            }
            SourceOutput::PeerLoad(load) => {
                self.compression.receiver(f64::from(load.wanted) / 1000.0);
            }
            SourceOutput::Pause => {
                // Now, and not while the guest stands still.
                self.run_delay_at_pause = Some(threads::vcpus().waited);
                self.helpers.hurry();
                self.watch.stop();
                team.hands.do_send(Do::Pause(machine));
            }
            SourceOutput::CancelIo => team.hands.do_send(Do::Hold(machine)),
            SourceOutput::SaveState => team.hands.do_send(Do::Save(machine)),
            SourceOutput::Persist(persist) => team.journal.do_send(Write(persist)),
            SourceOutput::ResumeGuest { run } => {
                // Helpers step back no more: nobody looks after them, and this migration is over.
                team.hands.do_send(Do::Resume(machine, run));
                // After the guest runs: it can take long, and the guest would wait for it.
                team.tracker.do_send(StopTracking);
            }
            SourceOutput::Reconnect { after } => team.transport.do_send(Connect {
                after,
                page_streams: 0,
            }),
            SourceOutput::ForgetVm => {
                team.tracker.do_send(StopTracking);
                team.hands.do_send(Do::Stop(machine));
                team.journal.do_send(Forget(self.options.migration));
            }
            SourceOutput::Finished(outcome) => self.finish(outcome, ctx),
        }
    }

    /// How long vCPUs have waited for a processor since the migration began, until the pause.
    fn run_delay(&self) -> Duration {
        self.run_delay_at_pause
            .unwrap_or_else(|| threads::vcpus().waited)
            .saturating_sub(self.run_delay_before)
    }

    /// How the last pass went, for a tracker that adapts to it.
    fn facts(&self, pass: u32) -> PassFacts {
        let threads = self.options.compressors.max(1) as u32;
        let last = self.core.stats().passes.last();
        let read = last.map_or(0, |p| p.pages_considered);
        let pages = u32::try_from(read.max(1)).unwrap_or(u32::MAX);
        // Not what readers waited for a processor: in the blackout they have them.
        let per_page = last.map_or(Duration::ZERO, |p| p.read_ran / pages / threads);
        PassFacts {
            pass,
            pages: 0,
            read,
            changed: last.map_or(0, |p| p.pages_data + p.pages_zero),
            per_page,
            budget: READ_BUDGET,
        }
    }

    fn finish(&mut self, outcome: Outcome, ctx: &mut Context<Self>) {
        let (Some(team), Some(end)) = (self.team.take(), self.end.take()) else {
            return;
        };
        let run_delay = self.run_delay();
        let mut report = summarise(
            &*self.machine,
            &self.options,
            self.connector_name,
            &outcome,
            self.core.stats(),
            (self.tracker.costs(), &self.compression.tally()),
            &self.clock,
        );
        let pause = self.core.stats().timeline.pause;
        let pause_ns = (!pause.is_zero()).then(|| self.clock.at_ns(pause));
        let start_ns = self.clock.at_ns(Duration::ZERO);
        let closed = async move {
            let _ = team.transport.send(Close).await;
            // What was asked of the others is done before this: the tracker is off, the machine
            // is stopped, its records are gone.
            let _ = team.tracker.send(StopTracking).await;
            let _ = team.hands.send(Settle).await;
            let _ = team.journal.send(Settle).await;
        };
        let closing = actix::fut::wrap_future::<_, Self>(closed);
        ctx.spawn(actix::fut::ActorFutureExt::map(
            closing,
            move |(), this, ctx| {
                report.peak_extra_rss_bytes = this.meter.peak();
                report.fingerprint_bytes = this.sent.as_ref().map_or(0, |sent| sent.bytes());
                report.vcpu_run_delay_ms = run_delay.as_secs_f64() * 1e3;
                report.io = this
                    .held
                    .as_ref()
                    .map(|held| io_report(held, this.core.stats()));
                let _ = end.send(SourceEnd {
                    outcome,
                    report,
                    start_ns,
                    pause_ns,
                });
                ctx.stop();
            },
        ));
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        // Compressors that wait for the link would wait for ever.
        self.compression.link().close();
    }
}

impl Actor for Migration {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let told = ctx.address().recipient::<Told>();
        self.machine.disks().watch(Arc::new(move |event| {
            if let IoEvent::Settled(settlement) = event {
                told.do_send(Told(SourceEvent::IoSettled(vec![settlement])));
            }
        }));
        if let Some(parts) = self.parts.take() {
            let team = self.assemble(parts, ctx);
            team.transport.do_send(Connect {
                after: Duration::ZERO,
                page_streams: self.options.streams,
            });
            self.team = Some(team);
        }
        ctx.run_interval(PROGRESS_EVERY, |this, _| {
            this.progress.send_replace(Some(LiveProgress {
                progress: this.core.progress(),
                costs: this.tracker.costs(),
                run_delay: this.run_delay(),
            }));
        });
        self.drive(ctx);
    }
}

impl Handler<Told> for Migration {
    type Result = ();

    fn handle(&mut self, Told(event): Told, ctx: &mut Context<Self>) {
        self.tell(event, ctx);
    }
}

impl Handler<TransportEvent> for Migration {
    type Result = ();

    fn handle(&mut self, event: TransportEvent, ctx: &mut Context<Self>) {
        match event {
            TransportEvent::Connected => self.tell(SourceEvent::Connected, ctx),
            TransportEvent::Lost(detail) => self.tell(SourceEvent::ConnectionLost { detail }, ctx),
            TransportEvent::PagesBroken(detail) => {
                let detail = format!("a page stream broke: {detail}");
                self.tell(SourceEvent::Failed { detail }, ctx);
            }
            TransportEvent::Heard(message) => {
                self.core.handle_message(self.clock.now(), message);
                self.drive(ctx);
            }
        }
    }
}

impl Handler<Done> for Migration {
    type Result = ();

    fn handle(&mut self, Done { what, result, .. }: Done, ctx: &mut Context<Self>) {
        let event = match (what, result) {
            (What::Pause, Ok(())) => SourceEvent::Paused,
            (What::Hold(held), Ok(())) => {
                let jobs = held.jobs.clone();
                self.held = (!self.machine.disks().is_empty()).then_some(held);
                SourceEvent::IoCancelled { jobs }
            }
            (What::Save(blob), Ok(())) => SourceEvent::StateSaved { blob },
            (What::Resume, Ok(())) => SourceEvent::Resumed,
            (What::Restore(_) | What::Stop, _) => return,
            (What::Resume, Err(detail)) => SourceEvent::ResumeFailed {
                detail: format!("resuming the guest failed: {detail}"),
            },
            (what, Err(detail)) => {
                let doing = match what {
                    What::Pause => "pausing the guest",
                    _ => "saving the machine's state",
                };
                let detail = format!("{doing} failed: {detail}");
                SourceEvent::Failed { detail }
            }
        };
        self.tell(event, ctx);
    }
}

impl Handler<Written> for Migration {
    type Result = ();

    fn handle(&mut self, Written(result): Written, ctx: &mut Context<Self>) {
        let event = match result {
            Ok((stored, _)) => SourceEvent::Persisted(stored),
            Err(detail) => SourceEvent::PersistFailed { detail },
        };
        self.tell(event, ctx);
    }
}

/// An operator cancels.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Cancel;

/// What has settled and is not confirmed.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Settlement>")]
pub(super) struct AskUnconfirmed;

impl Handler<AskUnconfirmed> for Migration {
    type Result = MessageResult<AskUnconfirmed>;

    fn handle(&mut self, _: AskUnconfirmed, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.core.unconfirmed())
    }
}

impl Handler<Cancel> for Migration {
    type Result = ();

    fn handle(&mut self, _: Cancel, ctx: &mut Context<Self>) {
        self.tell(SourceEvent::CancelRequested, ctx);
    }
}
