//! The destination's `Arrival` actor: message → event into the core → outputs → messages.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, SpawnHandle, SyncArbiter,
};
use tokio::sync::{mpsc, oneshot};
use vmferry_journal::Journal;
use vmferry_machine::workload::monotonic_ns;
use vmferry_machine::{IoEvent, Machine};
use vmferry_memory::GuestRam;
use vmferry_protocol::destination::{
    Destination, DestinationConfig, DestinationEvent, DestinationOutcome, DestinationOutput,
};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::message::VmShape;
use vmferry_protocol::storage::{JobKey, Settlement};
use vmferry_transports::Listener;

use super::load::{self, Loaded};
use super::{Arrived, DestinationEnd, DestinationOptions, MakeMachine, misfits};
use crate::SOFTWARE;
use crate::actors::Settle;
use crate::actors::io_journal::{IoJournal, Write, Written};
use crate::actors::machine::{Do, Done, Hands, Make, What};
use crate::actors::reception::{Admit, CloseAll, HangUp, PageEvent, Reception};
use crate::actors::transport::{Say, TransportEvent};
use crate::apply::RamWriter;
use crate::background::Background;
use crate::clock::Clock;
use crate::meter::Meter;
use crate::pages::Admission;
use crate::report::timeline;

/// The RAM that the meter leaves out, once there is one.
type MeteredRam = Arc<Mutex<Weak<GuestRam>>>;

struct Team {
    hands: Addr<Hands>,
    journal: Addr<IoJournal>,
    reception: Addr<Reception>,
}

/// The actor.
pub(super) struct Arrival {
    core: Destination,
    clock: Clock,
    options: DestinationOptions,
    parts: Option<(Box<dyn Listener>, Arc<dyn Journal>)>,
    make: MakeMachine,
    team: Option<Team>,
    timer: Option<SpawnHandle>,
    migration: Option<MigrationId>,
    streams: u16,
    /// While pages come.
    load: Option<Background>,
    machine: Option<Arc<dyn Machine>>,
    /// A machine is being made.
    making: bool,
    /// How it ended, while a machine is still being made that nobody needs any more.
    outcome: Option<DestinationOutcome>,
    /// All pages have come: how page streams end does not matter any more.
    complete: bool,
    resumed_ns: u64,
    metered: MeteredRam,
    meter: Meter,
    arrivals: mpsc::UnboundedSender<Arrived>,
    end: Option<oneshot::Sender<DestinationEnd>>,
}

impl Arrival {
    pub(super) fn new(
        listener: Box<dyn Listener>,
        make: MakeMachine,
        journal: Arc<dyn Journal>,
        options: DestinationOptions,
        arrivals: mpsc::UnboundedSender<Arrived>,
        end: oneshot::Sender<DestinationEnd>,
    ) -> Self {
        let clock = Clock::start();
        let config = DestinationConfig {
            token: options.token,
            silence: options.silence,
            linger: options.linger,
            software: SOFTWARE.to_owned(),
        };
        let metered = MeteredRam::default();
        let of_meter = metered.clone();
        Self {
            core: Destination::new(config, clock.now()),
            clock,
            options,
            parts: Some((listener, journal)),
            make,
            team: None,
            timer: None,
            migration: None,
            streams: 0,
            load: None,
            machine: None,
            making: false,
            outcome: None,
            complete: false,
            resumed_ns: 0,
            meter: Meter::start(move || {
                of_meter
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .upgrade()
            }),
            metered,
            arrivals,
            end: Some(end),
        }
    }

    fn tell(&mut self, event: DestinationEvent, ctx: &mut Context<Self>) {
        self.core.handle_event(self.clock.now(), event);
        self.drive(ctx);
    }

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

    fn carry_out(&mut self, output: DestinationOutput, ctx: &mut Context<Self>) {
        let Some(team) = &self.team else {
            return;
        };
        match output {
            DestinationOutput::Send(message) => team.reception.do_send(Say(message)),
            // Page streams are let in when there is a machine to write to.
            DestinationOutput::Admit { migration, streams } => {
                (self.migration, self.streams) = (Some(migration), streams);
            }
            DestinationOutput::PrepareMachine(shape) => {
                self.making = true;
                let (make, addr) = (self.make.clone(), ctx.address());
                // vCPU threads inherit priority from the thread that makes them: not one of the
                // runtime's, which may step back for them.
                team.hands.do_send(Make(Box::new(move || {
                    let made = make(&shape).and_then(|machine| {
                        let wrong = misfits(&shape, &*machine);
                        if wrong.is_empty() {
                            Ok(machine)
                        } else {
                            Err(wrong.join("; "))
                        }
                    });
                    addr.do_send(Made { shape, made });
                })));
            }
            DestinationOutput::RestoreState { blob } => {
                self.complete = true;
                self.load = None;
                if let Some(machine) = self.machine.clone() {
                    team.hands.do_send(Do::Restore(machine, blob));
                }
            }
            DestinationOutput::Persist(persist) => team.journal.do_send(Write(persist)),
            DestinationOutput::PersistLater { persist, after } => {
                let journal = team.journal.clone();
                ctx.run_later(after, move |_, _| journal.do_send(Write(persist)));
            }
            DestinationOutput::Settle(settlements) => {
                if let Some(machine) = &self.machine {
                    machine.disks().settle(&settlements);
                }
            }
            DestinationOutput::ResumeGuest { run } => {
                if let Some(machine) = self.machine.clone() {
                    team.hands.do_send(Do::Resume(machine, run));
                }
            }
            DestinationOutput::Arrived => {
                // Its storage jobs are this actor's business until they are settled.
                if let Some(machine) = self.machine.clone() {
                    let resumed_ns = self.resumed_ns;
                    let _ = self.arrivals.send(Arrived {
                        machine,
                        resumed_ns,
                    });
                }
            }
            DestinationOutput::Discard => {
                // What the streams still bring goes nowhere: they hold the RAM until they end.
                if let Some(machine) = self.machine.take() {
                    team.hands.do_send(Do::Stop(machine));
                }
            }
            DestinationOutput::AwaitReconnect => team.reception.do_send(HangUp),
            DestinationOutput::Finished(outcome) => self.finish(outcome, ctx),
        }
    }

    fn finish(&mut self, outcome: DestinationOutcome, ctx: &mut Context<Self>) {
        if self.making {
            self.outcome = Some(outcome);
            return;
        }
        let (Some(team), Some(end)) = (self.team.take(), self.end.take()) else {
            return;
        };
        let io = self.machine.take().map(|machine| machine.disks().stats());
        let failure = match outcome {
            DestinationOutcome::Completed => None,
            DestinationOutcome::Aborted { detail } => Some(detail),
        };
        let closed = async move {
            let _ = team.reception.send(CloseAll).await;
            // A machine that is not wanted is gone, and so is its RAM: no stream holds it now.
            let _ = team.hands.send(Settle).await;
            let _ = team.journal.send(Settle).await;
        };
        let closing = actix::fut::wrap_future::<_, Self>(closed);
        ctx.spawn(actix::fut::ActorFutureExt::map(
            closing,
            move |(), this, ctx| {
                let _ = end.send(DestinationEnd {
                    failure,
                    io,
                    peak_extra_rss_bytes: this.meter.peak(),
                    timeline: Box::new(timeline::destination(&this.core, io, &this.clock)),
                });
                ctx.stop();
            },
        ));
    }
}

impl Actor for Arrival {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some((listener, journal)) = self.parts.take() {
            let addr = ctx.address();
            let (done, written) = (addr.clone().recipient(), addr.clone().recipient());
            let reception = Reception::new(
                listener,
                self.options.token,
                addr.clone().recipient(),
                addr.recipient(),
            );
            self.team = Some(Team {
                hands: SyncArbiter::start(1, move || Hands {
                    owner: done.clone(),
                }),
                journal: SyncArbiter::start(1, move || IoJournal {
                    journal: journal.clone(),
                    owner: written.clone(),
                }),
                reception: reception.start(),
            });
        }
        self.drive(ctx);
    }
}

/// A machine was made, or not.
#[derive(Message)]
#[rtype(result = "()")]
struct Made {
    shape: Box<VmShape>,
    made: Result<Arc<dyn Machine>, String>,
}

impl Handler<Made> for Arrival {
    type Result = ();

    fn handle(&mut self, Made { shape, made }: Made, ctx: &mut Context<Self>) {
        self.making = false;
        if let Some(outcome) = self.outcome.take() {
            if let (Ok(machine), Some(team)) = (made, &self.team) {
                team.hands.do_send(Do::Stop(machine));
            }
            return self.finish(outcome, ctx);
        }
        let event = match (made, self.migration, &self.team) {
            (Ok(machine), Some(migration), Some(team)) => {
                let ram = machine.ram().clone();
                *self.metered.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&ram);
                let ram = Arc::new(RamWriter::new(ram, shape.ram));
                team.reception.do_send(Admit(Admission { migration, ram }));
                let completed = ctx.address().recipient::<JobCompleted>();
                machine.disks().watch(Arc::new(move |event| {
                    if let IoEvent::Completed(key) = event {
                        completed.do_send(JobCompleted(key));
                    }
                }));
                self.machine = Some(machine);
                self.load = Some(load::watch(self.streams, ctx.address().recipient()));
                DestinationEvent::MachineReady
            }
            (Err(detail), _, _) => DestinationEvent::MachineRefused { detail },
            // It has ended.
            _ => return,
        };
        self.tell(event, ctx);
    }
}

impl Handler<TransportEvent> for Arrival {
    type Result = ();

    fn handle(&mut self, event: TransportEvent, ctx: &mut Context<Self>) {
        match event {
            TransportEvent::Connected => self.tell(DestinationEvent::Connected, ctx),
            TransportEvent::Lost(detail) => {
                self.tell(DestinationEvent::ConnectionLost { detail }, ctx);
            }
            TransportEvent::PagesBroken(detail) => {
                self.tell(DestinationEvent::Failed { detail }, ctx)
            }
            TransportEvent::Heard(message) => {
                self.core.handle_message(self.clock.now(), message);
                self.drive(ctx);
            }
        }
    }
}

impl Handler<Loaded> for Arrival {
    type Result = ();

    fn handle(&mut self, Loaded(load): Loaded, ctx: &mut Context<Self>) {
        self.tell(DestinationEvent::Load(load), ctx);
    }
}

impl Handler<PageEvent> for Arrival {
    type Result = ();

    fn handle(&mut self, event: PageEvent, ctx: &mut Context<Self>) {
        let event = match event {
            PageEvent::Applied(chunk) => DestinationEvent::ChunksApplied(vec![chunk]),
            PageEvent::Cut(_) | PageEvent::Wrong(_) if self.complete => return,
            PageEvent::Cut(detail) => DestinationEvent::Failed {
                detail: format!("a page stream was cut: {detail}"),
            },
            PageEvent::Wrong(detail) => DestinationEvent::Failed { detail },
        };
        self.tell(event, ctx);
    }
}

impl Handler<Done> for Arrival {
    type Result = ();

    fn handle(&mut self, Done { what, took, result }: Done, ctx: &mut Context<Self>) {
        let event = match (what, result) {
            (What::Restore(jobs), Ok(())) => DestinationEvent::StateRestored { took, jobs },
            (What::Resume, Ok(())) => {
                self.resumed_ns = monotonic_ns();
                DestinationEvent::Resumed { took }
            }
            (What::Restore(_), Err(detail)) => DestinationEvent::Failed {
                detail: format!("setting the machine's state failed: {detail}"),
            },
            (What::Resume, Err(detail)) => {
                // The guest is this host's and cannot run: its machine's state says why.
                tracing::error!(detail, "the guest arrived but cannot be resumed");
                DestinationEvent::Resumed { took }
            }
            _ => return,
        };
        self.tell(event, ctx);
    }
}

impl Handler<Written> for Arrival {
    type Result = ();

    fn handle(&mut self, Written(result): Written, ctx: &mut Context<Self>) {
        let event = match result {
            Ok((stored, took)) => DestinationEvent::Persisted { stored, took },
            Err(detail) => DestinationEvent::PersistFailed { detail },
        };
        self.tell(event, ctx);
    }
}

/// The guest has been told how a storage job ended that came with it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct JobCompleted(JobKey);

impl Handler<JobCompleted> for Arrival {
    type Result = ();

    fn handle(&mut self, JobCompleted(key): JobCompleted, ctx: &mut Context<Self>) {
        self.tell(DestinationEvent::JobsCompleted(vec![key]), ctx);
    }
}

/// An operator vouches for the source's storage jobs; how many that settles.
#[derive(Debug, Message)]
#[rtype(result = "Result<u64, String>")]
pub(super) struct SettleByOperator;

impl Handler<SettleByOperator> for Arrival {
    type Result = Result<u64, String>;

    fn handle(&mut self, _: SettleByOperator, ctx: &mut Context<Self>) -> Self::Result {
        let settled = self.core.settled_by_operator(self.clock.now());
        self.drive(ctx);
        settled.map_err(str::to_owned)
    }
}

/// The source's host tells which of its storage jobs have ended; of which that is on disk here.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<JobKey>, String>")]
pub(super) struct ToldSettled(pub(super) Vec<Settlement>);

impl Handler<ToldSettled> for Arrival {
    type Result = Result<Vec<JobKey>, String>;

    fn handle(
        &mut self,
        ToldSettled(settlements): ToldSettled,
        ctx: &mut Context<Self>,
    ) -> Self::Result {
        let known = self.core.told_otherwise(self.clock.now(), &settlements);
        self.drive(ctx);
        known.map_err(str::to_owned)
    }
}

/// An operator decides where the guest runs, in the place of a source that is gone.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), String>")]
pub(super) struct Decide {
    pub(super) here: bool,
}

impl Handler<Decide> for Arrival {
    type Result = Result<(), String>;

    fn handle(&mut self, Decide { here }: Decide, ctx: &mut Context<Self>) -> Self::Result {
        let decided = match here {
            true => self.core.taken_by_operator(),
            false => self.core.discarded_by_operator(),
        };
        self.drive(ctx);
        decided.map_err(str::to_owned)
    }
}

/// An operator cancels.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Cancel;

impl Handler<Cancel> for Arrival {
    type Result = ();

    fn handle(&mut self, _: Cancel, ctx: &mut Context<Self>) {
        self.tell(DestinationEvent::CancelRequested, ctx);
    }
}
