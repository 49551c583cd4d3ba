//! The simulation itself: what is to happen, in its order, and who is told.

use std::collections::BTreeMap;
use std::time::Duration;

use vmferry_protocol::destination::DestinationOutcome;
use vmferry_protocol::destination::{Destination, DestinationConfig, DestinationEvent};
use vmferry_protocol::ids::{ChunkId, MigrationId, Time, Token};
use vmferry_protocol::message::{Message, RunState};
use vmferry_protocol::ownership::Persist;
use vmferry_protocol::pending::Chunk;
use vmferry_protocol::source::{Outcome, Source, SourceConfig, SourceEvent, SourceStats};
use vmferry_protocol::storage::JobId;
use vmferry_protocol::wire::{FrameDecoder, encode};
use vmferry_protocol::{PageRange, PageSet};

use super::check::{Rights, Violation};
use super::guest::{Guest, Memory, Rng};
use super::link::{Direction, Wire};
use super::scenario::{DiskFault, Faults, PlantedBug, Scenario, Side, Trigger};
use super::storage::Storage;

pub(super) const MIGRATION: MigrationId = MigrationId([0x11; 16]);
pub(super) const TOKEN: Token = Token::new([0x22; 16]);
/// No simulated migration takes longer.
const LAST_MOMENT: Time = Duration::from_secs(100_000);
/// Calls at one moment after which time is taken to stand still.
const SPINNING: u32 = 10_000;

/// A frame of a page stream.
#[derive(Debug)]
pub(super) struct PageFrame {
    pub(super) chunk: ChunkId,
    pub(super) ranges: Vec<PageRange>,
    pub(super) newer: Vec<(u64, u32)>,
    /// Header and content as they travel, if they pass through the wire format.
    pub(super) bytes: Option<(Vec<u8>, Vec<u8>)>,
}

/// Something that is to happen.
#[derive(Debug)]
pub(super) enum Next {
    GuestSlice,
    Source(SourceEvent),
    Destination(DestinationEvent),
    /// The tracker is asked.
    Harvest {
        pass: u32,
    },
    /// The pages of a protected chunk are copied and sent.
    Read {
        chunk: Chunk,
        early: Option<Vec<(u64, u32)>>,
    },
    Control {
        epoch: u64,
        to: Direction,
        bytes: Vec<u8>,
    },
    Page {
        epoch: u64,
        frame: PageFrame,
    },
    Apply {
        frame: PageFrame,
    },
    Disk {
        side: Side,
        persist: Persist,
    },
    /// The storage has done what a side asked.
    Storage {
        side: Side,
        id: JobId,
    },
    Connect,
}

/// How a simulated migration ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the source said; none if it was killed or still waits.
    pub source: Option<Outcome>,
    /// What the destination said; none if it was killed or still waits.
    pub destination: Option<DestinationOutcome>,
    /// Who has the guest in use, source and destination.
    pub active: [bool; 2],
    /// Virtual time it took.
    pub took: Duration,
    /// Steps.
    pub steps: u64,
    /// Control messages by direction, by name.
    pub messages: [Vec<&'static str>; 2],
    /// What the source counted; none if it was killed.
    pub stats: Option<SourceStats>,
    /// Pages sent, repeats included.
    pub pages_sent: u64,
    /// Pages left out, as the destination had them.
    pub pages_unchanged: u64,
    /// From the pause until the guest runs again, wherever.
    pub blackout: Option<Duration>,
}

/// Runs one migration to its end.
///
/// # Errors
/// The first [`Violation`], with what happened last.
pub fn run(scenario: &Scenario) -> Result<Report, (Violation, String)> {
    let mut first = World::new(scenario);
    let report = first.finish()?;
    let aborted = matches!(report.source, Some(Outcome::Aborted { .. }));
    if !scenario.again || !aborted {
        return Ok(report);
    }
    let calm = Scenario {
        faults: Faults::default(),
        again: false,
        ..scenario.clone()
    };
    let mut second = World::new(&calm);
    second.guest = first.guest;
    second.runs = first.runs;
    second.finish()
}

/// Everything.
pub(super) struct World<'a> {
    pub(super) s: &'a Scenario,
    pub(super) now: Time,
    pub(super) queue: BTreeMap<(Time, u64), Next>,
    order: u64,
    pub(super) source: Option<Source>,
    pub(super) destination: Option<Destination>,
    pub(super) wire: Wire,
    pub(super) guest: Guest,
    /// The guest's vCPUs run at the source.
    pub(super) runs: bool,
    /// RAM at the destination.
    pub(super) machine: Option<Memory>,
    pub(super) rights: Rights,
    pub(super) storage: Storage,
    pub(super) rng: Rng,
    pub(super) on_their_way: PageSet,
    pub(super) in_flight: BTreeMap<ChunkId, Vec<PageRange>>,
    pub(super) awaiting: bool,
    pub(super) refused: u32,
    pub(super) cuts: u32,
    pub(super) steps: u64,
    records: [u64; 2],
    machine_steps: [u64; 2],
    messages: [Vec<&'static str>; 2],
    pub(super) decoders: [FrameDecoder; 2],
    pub(super) outcome: Option<Outcome>,
    pub(super) arrival: Option<DestinationOutcome>,
    pub(super) stats: Option<SourceStats>,
    pub(super) harvests: u32,
    pub(super) pages_sent: u64,
    pub(super) pages_unchanged: u64,
    /// Versions last sent, where contents are compared.
    pub(super) sent: BTreeMap<u64, u32>,
    pub(super) paused_at: Option<Time>,
    pub(super) blackout: Option<Duration>,
    trace: Vec<String>,
}

impl<'a> World<'a> {
    fn new(s: &'a Scenario) -> Self {
        let source = SourceConfig {
            migration: MIGRATION,
            token: TOKEN,
            streams: s.streams,
            shape: s.shape(),
            limits: s.limits,
            window_pages: s.window_pages,
            fixed_cost: Duration::from_millis(5),
            can_throttle: s.can_throttle,
            silence: s.silence,
            pause_deadline: s.pause_deadline,
            reconnect_for: s.reconnect_for,
            software: "simulated source".to_owned(),
            trace: None,
        };
        let destination = DestinationConfig {
            token: TOKEN,
            silence: s.silence,
            linger: s.reconnect_for,
            software: "simulated destination".to_owned(),
        };
        let running = s.run_state == RunState::Running;
        let mut world = Self {
            s,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            order: 0,
            source: Some(Source::new(source, Time::ZERO)),
            destination: Some(Destination::new(destination, Time::ZERO)),
            wire: Wire::new(s.link, s.streams),
            guest: Guest::new(&s.layout, s.touched, s.group_pages, s.seed),
            runs: running,
            machine: None,
            rights: Rights {
                active: [true, false],
                ..Rights::default()
            },
            storage: Storage::default(),
            rng: Rng::new(s.seed ^ 0x5eed),
            on_their_way: PageSet::new(&s.layout),
            in_flight: BTreeMap::new(),
            awaiting: true,
            refused: 0,
            cuts: 0,
            steps: 0,
            records: [0; 2],
            machine_steps: [0; 2],
            messages: [Vec::new(), Vec::new()],
            decoders: [FrameDecoder::default(), FrameDecoder::default()],
            outcome: None,
            arrival: None,
            stats: None,
            harvests: 0,
            pages_sent: 0,
            pages_unchanged: 0,
            sent: BTreeMap::new(),
            paused_at: None,
            blackout: None,
            trace: Vec::new(),
        };
        world.after(s.link.latency, Next::Connect);
        world.after(s.slice, Next::GuestSlice);
        world
    }

    pub(super) fn at(&mut self, time: Time, next: Next) {
        self.order += 1;
        self.queue.insert((time, self.order), next);
    }

    pub(super) fn after(&mut self, wait: Duration, next: Next) {
        self.at(self.now + wait, next);
    }

    pub(super) fn bug(&self, bug: PlantedBug) -> bool {
        self.s.faults.bug == Some(bug)
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>12.6} {}", self.now.as_secs_f64(), what());
        self.trace.push(line);
        if self.trace.len() > 400 {
            self.trace.drain(..200);
        }
    }

    fn finish(&mut self) -> Result<Report, (Violation, String)> {
        self.run().map_err(|violation| {
            let from = self.trace.len().saturating_sub(30);
            (violation, self.trace[from..].join("\n"))
        })
    }

    fn run(&mut self) -> Result<Report, Violation> {
        let mut same_moment = 0;
        while !self.is_over() {
            let timers = [
                self.source.as_ref().and_then(Source::poll_timeout),
                self.destination
                    .as_ref()
                    .and_then(Destination::poll_timeout),
            ];
            let timer = timers.iter().flatten().min().copied();
            let head = self.queue.first_key_value().map(|(k, _)| k.0);
            // The guest alone does not keep a migration alive.
            let guest_alone = self.queue.values().all(|n| matches!(n, Next::GuestSlice));
            if timer.is_none() && guest_alone {
                break;
            }
            let before = self.now;
            if timer.is_some_and(|t| head.is_none_or(|h| t < h)) {
                self.now = self.now.max(timer.unwrap_or_default());
                self.timeouts(timers)?;
            } else if let Some((key, next)) = self.queue.pop_first() {
                self.now = self.now.max(key.0);
                self.happen(next)?;
            }
            same_moment = if self.now == before {
                same_moment + 1
            } else {
                0
            };
            if same_moment > SPINNING || self.now > LAST_MOMENT {
                return Err(Violation::Endless(format!("at {:?}", self.now)));
            }
            self.rights.check()?;
            self.inject()?;
        }
        self.finish_storage()?;
        self.at_rest()?;
        let stats = self.source.as_ref().map(|s| s.stats().clone());
        Ok(Report {
            source: self.outcome.clone(),
            destination: self.arrival.clone(),
            active: self.rights.active,
            took: self.now,
            steps: self.steps,
            messages: self.messages.clone(),
            stats: self.stats.take().or(stats),
            pages_sent: self.pages_sent,
            pages_unchanged: self.pages_unchanged,
            blackout: self.blackout,
        })
    }

    fn is_over(&self) -> bool {
        let source = self.source.is_none() || self.outcome.is_some();
        let destination = self.destination.is_none() || self.arrival.is_some();
        source && destination
    }

    fn timeouts(&mut self, timers: [Option<Time>; 2]) -> Result<(), Violation> {
        let due = |t: Option<Time>, now| t.is_some_and(|t| t <= now);
        if due(timers[0], self.now)
            && let Some(source) = &mut self.source
        {
            source.handle_timeout(self.now);
            self.drive_source()?;
        }
        if due(timers[1], self.now)
            && let Some(destination) = &mut self.destination
        {
            destination.handle_timeout(self.now);
            self.drive_destination()?;
        }
        Ok(())
    }

    pub(super) fn tell_source(&mut self, event: SourceEvent) -> Result<(), Violation> {
        if let Some(source) = &mut self.source {
            source.handle_event(self.now, event);
            self.drive_source()?;
        }
        Ok(())
    }

    pub(super) fn tell_destination(&mut self, event: DestinationEvent) -> Result<(), Violation> {
        if let Some(destination) = &mut self.destination {
            destination.handle_event(self.now, event);
            self.drive_destination()?;
        }
        Ok(())
    }

    fn happen(&mut self, next: Next) -> Result<(), Violation> {
        if !matches!(next, Next::GuestSlice) {
            self.steps += 1;
        }
        match next {
            Next::GuestSlice => {
                if self.runs {
                    let nanos = self.s.slice.as_nanos() as u64;
                    self.guest.run(self.s.writes, &self.s.layout, nanos);
                }
                if self.source.is_some() {
                    self.after(self.s.slice, Next::GuestSlice);
                }
                Ok(())
            }
            Next::Source(event) => self.tell_source(event),
            Next::Destination(event) => self.tell_destination(event),
            Next::Harvest { pass } => self.harvest(pass),
            Next::Read { chunk, early } => self.read_and_send(chunk, early),
            Next::Control { epoch, to, bytes } => self.control_arrives(epoch, to, &bytes),
            Next::Page { epoch, frame } => {
                if epoch == self.wire.epoch && self.wire.up {
                    self.after(self.s.costs.apply, Next::Apply { frame });
                }
                Ok(())
            }
            Next::Apply { frame } => self.apply(&frame),
            Next::Disk { side, persist } => self.disk(side, persist),
            Next::Storage { side, id } => self.storage_ends(side, id),
            Next::Connect => self.connect(),
        }
    }

    pub(super) fn send(&mut self, to: Direction, message: &Message) -> Result<(), Violation> {
        let i = to.index();
        let n = self.messages[i].len() as u64;
        self.messages[i].push(message.name());
        self.note(|| format!("{to:?} {}", message.name()));
        if let Some(cut) = self.s.faults.cut
            && cut.at == Trigger::Message(to, n)
        {
            return self.cut(cut);
        }
        if !self.wire.up {
            return Ok(());
        }
        let bytes = encode(message).map_err(|e| Violation::Order(e.to_string()))?;
        let at = self.wire.control(self.now, to, bytes.len() as u64);
        let epoch = self.wire.epoch;
        if self.s.faults.duplicate == Some((to, n)) {
            let again = Next::Control {
                epoch,
                to,
                bytes: bytes.clone(),
            };
            self.at(at + Duration::from_micros(1), again);
        }
        self.at(at, Next::Control { epoch, to, bytes });
        Ok(())
    }

    fn control_arrives(
        &mut self,
        epoch: u64,
        to: Direction,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        if epoch != self.wire.epoch || !self.wire.up {
            return Ok(());
        }
        let decoder = &mut self.decoders[to.index()];
        decoder.feed(bytes);
        let refused = |e| Violation::Order(format!("a message that cannot be decoded: {e}"));
        while let Some(message) = self.decoders[to.index()].next_message().map_err(refused)? {
            match (to, &mut self.source, &mut self.destination) {
                (Direction::ToSource, Some(source), _) => {
                    source.handle_message(self.now, message);
                    self.drive_source()?;
                }
                (Direction::ToDestination, _, Some(destination)) => {
                    destination.handle_message(self.now, message);
                    self.drive_destination()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn disk(&mut self, side: Side, persist: Persist) -> Result<(), Violation> {
        let i = side.index();
        let n = self.records[i];
        self.records[i] += 1;
        let fault = match self.s.faults.disk {
            Some((s, k, fault)) if s == side && k == n => Some(fault),
            _ => None,
        };
        let disk = &mut self.rights.disks[i];
        let stored = persist.store(|records| {
            if fault != Some(DiskFault::Fails) {
                disk.extend(records);
            }
            fault.map_or(Ok(()), |_| Err("the disk is full".to_owned()))
        });
        let took = self.s.costs.persist;
        // Told in a step of its own, so that a kill finds the record written and nobody told.
        let next = match (side, stored) {
            (Side::Source, Ok(stored)) => Next::Source(SourceEvent::Persisted(stored)),
            (Side::Source, Err(detail)) => Next::Source(SourceEvent::PersistFailed { detail }),
            (Side::Destination, Ok(stored)) => {
                Next::Destination(DestinationEvent::Persisted { stored, took })
            }
            (Side::Destination, Err(detail)) => {
                Next::Destination(DestinationEvent::PersistFailed { detail })
            }
        };
        self.after(Duration::ZERO, next);
        Ok(())
    }

    pub(super) fn persist(&mut self, side: Side, persist: Persist, wait: Duration) {
        let late = wait + self.s.costs.persist;
        if !self.bug(PlantedBug::TellsBeforeStored) {
            return self.after(late, Next::Disk { side, persist });
        }
        let records = persist.records().to_vec();
        let Ok(stored) = persist.store(|_| Ok::<(), ()>(())) else {
            return;
        };
        let took = Duration::ZERO;
        self.note(|| format!("{records:?} are said to be stored"));
        let next = match side {
            Side::Source => Next::Source(SourceEvent::Persisted(stored)),
            Side::Destination => Next::Destination(DestinationEvent::Persisted { stored, took }),
        };
        self.after(Duration::ZERO, next);
    }

    /// A step of a machine takes its time; here it may also fail.
    pub(super) fn machine_step(&mut self, side: Side, takes: Duration, done: Next) {
        let n = self.machine_steps[side.index()];
        self.machine_steps[side.index()] += 1;
        let detail = "a machine that fails".to_owned();
        let next = match (self.s.faults.machine == Some((side, n)), side) {
            (false, _) => done,
            (true, Side::Source) if matches!(done, Next::Source(SourceEvent::Resumed)) => {
                Next::Source(SourceEvent::ResumeFailed { detail })
            }
            (true, Side::Source) => Next::Source(SourceEvent::Failed { detail }),
            (true, Side::Destination) => Next::Destination(DestinationEvent::Failed { detail }),
        };
        self.after(takes, next);
    }

    /// Nothing more happens: is the guest where it should be, and as it was?
    fn at_rest(&self) -> Result<(), Violation> {
        self.rights.check()?;
        self.storage_at_rest()?;
        if self.rights.active[0] && self.source.is_some() {
            let running = self.s.run_state == RunState::Running;
            if self.runs != running {
                return Err(Violation::RunState {
                    before: self.s.run_state,
                });
            }
        }
        let both_alive = self.source.is_some() && self.destination.is_some();
        let undecided = matches!(self.outcome, Some(Outcome::Undecided { .. }));
        if both_alive && !undecided && self.rights.active == [false, false] {
            return Err(Violation::Endless(
                "the guest runs nowhere, and nobody is at it".to_owned(),
            ));
        }
        Ok(())
    }
}
