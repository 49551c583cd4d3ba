//! The model: what can happen, and what must hold after every step.
//!
//! Blocks hold the number of the write that wrote them last. For each block the model knows which
//! numbers it may hold: those of writes that were issued and are not yet told to be done, and
//! those that were done, unless a write that was issued after that is done too. Nothing else: a
//! disk that holds another number has lost an acknowledged write, or got a stale one. When a guest
//! has died and another is booted, what the first had in flight counts as done.

use std::collections::{BTreeMap, BTreeSet};

use vmferry_block::table::{Action, HandedOver, Table};
use vmferry_block::{Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Record, open_fences};

const BLOCKS: u64 = 4;
const BLOCK: u64 = 4096;
const M: MigrationId = MigrationId([9; 16]);

/// What a driver can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Takes unsettled jobs for cancelled ones.
    NoFence,
    /// Says that it is prepared before its journal is on disk.
    PreparedBeforeFlush,
    /// Issues unsettled jobs again at once; others keep off.
    ReissuesUnsettled,
}

/// How often things have come to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) handovers: u32,
    pub(crate) unsettled: u32,
    pub(crate) kept_back: u32,
    pub(crate) aborts: u32,
    pub(crate) crashes: u32,
    pub(crate) reboots: u32,
    /// Writes of a source that landed when the guest ran elsewhere.
    pub(crate) late: u32,
}

impl Seen {
    pub(crate) const NONE: Self = Self {
        handovers: 0,
        unsettled: 0,
        kept_back: 0,
        aborts: 0,
        crashes: 0,
        reboots: 0,
        late: 0,
    };

    pub(crate) fn add(&mut self, other: &Self) {
        self.handovers += other.handovers;
        self.unsettled += other.unsettled;
        self.kept_back += other.kept_back;
        self.aborts += other.aborts;
        self.crashes += other.crashes;
        self.reboots += other.reboots;
        self.late += other.late;
    }
}

/// The device's own of a job: the number of the write.
type Tag = u32;

#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: JobKind,
    extent: Extent,
    number: u32,
    /// The disk has done it; nobody has been told.
    done: bool,
}

#[derive(Debug, Default)]
struct Host {
    table: Table<Tag>,
    alive: bool,
    /// What the storage has from this host; it stays when the host dies.
    storage: BTreeMap<JobId, Operation>,
    journal: Vec<Record>,
    /// Written, but not on disk.
    unflushed: Vec<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest is at the source.
    Before,
    /// It is paused, its jobs are handed over.
    HandedOver,
    /// The destination has adopted them; its journal may not be on disk.
    Adopted,
    /// It says that it is prepared.
    Prepared,
    /// The guest is at the destination.
    There,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    issued: u64,
    done: Option<u64>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    bug: Option<Bug>,
    source: Host,
    destination: Host,
    phase: Phase,
    /// The guest lives at the host of `phase`.
    guest: bool,
    handed_over: Vec<HandedOver<Tag>>,
    /// Settlements that the source keeps and has yet to send.
    settlements: Vec<Settlement>,
    /// Those that it has sent: kept until the destination has them on disk, and says so.
    unacknowledged: Vec<Settlement>,
    disk: [u32; BLOCKS as usize],
    may_hold: Vec<BTreeSet<u32>>,
    writes: BTreeMap<u32, Write>,
    told: BTreeSet<(bool, JobId)>,
    now: u64,
    pub(crate) seen: Seen,
}

const fn key(job: JobId) -> JobKey {
    JobKey { disk: 0, job }
}

impl World {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        let host = || Host {
            alive: true,
            ..Host::default()
        };
        Self {
            bug,
            source: host(),
            destination: host(),
            phase: Phase::Before,
            guest: true,
            handed_over: Vec::new(),
            settlements: Vec::new(),
            unacknowledged: Vec::new(),
            disk: [0; BLOCKS as usize],
            may_hold: vec![BTreeSet::from([0]); BLOCKS as usize],
            writes: BTreeMap::from([(
                0,
                Write {
                    issued: 0,
                    done: Some(0),
                },
            )]),
            told: BTreeSet::new(),
            now: 0,
            seen: Seen::NONE,
        }
    }

    fn there(&self) -> bool {
        self.phase == Phase::There
    }

    fn host(&mut self, there: bool) -> &mut Host {
        if there {
            &mut self.destination
        } else {
            &mut self.source
        }
    }

    /// One step, of those that `choice` can mean here.
    pub(crate) fn step(&mut self, choice: u16) -> Result<(), String> {
        self.now += 1;
        let arg = u64::from(choice >> 5);
        match choice & 31 {
            0..=6 => self.issue(arg),
            7 | 30 => self.reboot()?,
            8..=10 => self.storage_does(false, arg),
            // Where the guest is: elsewhere a crash ends most schedules early.
            11 if arg & 1 == 0 && self.there() => self.crash(true),
            12..=14 => self.storage_does(true, arg),
            15..=17 => self.storage_tells(false, arg)?,
            18..=20 => self.storage_tells(true, arg)?,
            21..=25 => self.advance(arg)?,
            26 => self.abort()?,
            27 | 28 => self.deliver_settlement()?,
            29 if arg & 3 == 0 => self.crash(arg & 4 == 0),
            31 => self.storage_proves()?,
            _ => {}
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        for (block, (held, may)) in self.disk.iter().zip(&self.may_hold).enumerate() {
            if !may.contains(held) {
                return Err(format!(
                    "block {block} holds write {held}, may hold {may:?}"
                ));
            }
        }
        Ok(())
    }

    /// The guest asks for something.
    fn issue(&mut self, arg: u64) {
        let there = self.there();
        let runs = matches!(self.phase, Phase::Before | Phase::There);
        if !(self.guest && runs && self.host(there).alive) {
            return;
        }
        let first = arg % BLOCKS;
        let blocks = 1 + (arg >> 2) % (BLOCKS - first).min(2);
        let (kind, extent) = match (arg >> 4) % 8 {
            0 => (JobKind::Flush, Extent::default()),
            1 => (JobKind::Read, Extent::new(first * BLOCK, blocks * BLOCK)),
            _ => (JobKind::Write, Extent::new(first * BLOCK, blocks * BLOCK)),
        };
        let mut number = 0;
        if kind == JobKind::Write {
            number = self.writes.len() as u32;
            let issued = self.now;
            self.writes.insert(number, Write { issued, done: None });
            for block in first..first + blocks {
                self.may_hold[block as usize].insert(number);
            }
        }
        self.host(there).table.request(kind, extent, number);
        let host = self.host(there);
        let kept_back = host.table.kept_back();
        self.seen.kept_back += u32::from(kept_back > 0);
        self.act(there);
    }

    /// The disk does something that it was asked.
    fn storage_does(&mut self, there: bool, arg: u64) {
        let host = self.host(there);
        let open: Vec<JobId> = host
            .storage
            .iter()
            .filter(|(_, o)| !o.done)
            .map(|(id, _)| *id)
            .collect();
        let Some(id) = pick(&open, arg) else {
            return;
        };
        let Some(operation) = host.storage.get_mut(&id) else {
            return;
        };
        operation.done = true;
        let operation = *operation;
        if operation.kind == JobKind::Write {
            let first = operation.extent.offset / BLOCK;
            for block in first..operation.extent.end() / BLOCK {
                self.disk[block as usize] = operation.number;
            }
            self.seen.late += u32::from(!there && self.there());
        }
    }

    /// And says so; or it has failed, and says that.
    fn storage_tells(&mut self, there: bool, arg: u64) -> Result<(), String> {
        let fails = arg & 15 == 0;
        let host = self.host(there);
        let done: Vec<JobId> = host
            .storage
            .iter()
            .filter(|(_, o)| o.done || fails)
            .map(|(id, _)| *id)
            .collect();
        let Some(id) = pick(&done, arg >> 4) else {
            return Ok(());
        };
        let Some(operation) = host.storage.remove(&id) else {
            return Ok(());
        };
        let end = match operation.done {
            true => JobEnd::Done,
            false => JobEnd::Failed(5),
        };
        if host.alive {
            host.table.finished(id, end);
            self.act(there);
        }
        Ok(())
    }

    /// The migration takes its next step.
    fn advance(&mut self, arg: u64) -> Result<(), String> {
        match self.phase {
            Phase::Before if self.guest && self.source.alive && self.destination.alive => {
                self.source.table.hold();
                self.cancel(arg);
                self.handed_over = self.source.table.hand_over();
                self.seen.handovers += 1;
                let unsettled = |j: &&HandedOver<Tag>| j.fate == Fate::Unsettled;
                self.seen.unsettled += self.handed_over.iter().filter(unsettled).count() as u32;
                self.phase = Phase::HandedOver;
            }
            Phase::HandedOver if self.both_alive() => self.adopt()?,
            Phase::Adopted if self.both_alive() => {
                if self.bug != Some(Bug::PreparedBeforeFlush) {
                    self.flush();
                }
                self.phase = Phase::Prepared;
            }
            // Relinquished, committed, owner: a crash in between is an operator's, or the journal's
            // alone, and changes nothing of what is in flight.
            Phase::Prepared if self.both_alive() => {
                if self.bug != Some(Bug::PreparedBeforeFlush) {
                    self.destination.unflushed.push(Record::Owner(M));
                    self.flush();
                }
                self.phase = Phase::There;
                self.destination.table.release();
                if self.bug == Some(Bug::ReissuesUnsettled) {
                    self.reissue_unsettled();
                }
                self.act(true);
            }
            Phase::There if arg.is_multiple_of(4) => self.flush(),
            _ => {}
        }
        Ok(())
    }

    fn both_alive(&self) -> bool {
        self.source.alive && self.destination.alive
    }

    fn flush(&mut self) {
        let host = &mut self.destination;
        if host.alive {
            host.journal.append(&mut host.unflushed);
            self.unacknowledged.clear();
        }
    }

    /// What the table wants cancelled; the storage gives back what it has not done, or not.
    fn cancel(&mut self, arg: u64) {
        while let Some(action) = self.source.table.poll() {
            if let Action::Cancel(id) = action
                && self.source.storage.get(&id).is_some_and(|o| !o.done)
                && arg >> (id.0 % 8) & 1 == 1
            {
                self.source.storage.remove(&id);
                self.source.table.finished(id, JobEnd::Cancelled);
            }
        }
    }

    fn adopt(&mut self) -> Result<(), String> {
        let mut jobs = self.handed_over.clone();
        if self.bug == Some(Bug::NoFence) {
            for job in &mut jobs {
                job.fate = Fate::Cancelled;
            }
        }
        for job in &jobs {
            let record = JobRecord {
                key: key(job.id),
                kind: job.kind,
                extent: job.extent,
                fate: job.fate,
            };
            self.destination.unflushed.push(Record::Handed(M, record));
        }
        self.destination.unflushed.push(Record::Prepared(M));
        let next = self.source.table.next_id();
        self.destination.table = Table::default();
        let adopted = self.destination.table.adopt(next, jobs);
        self.phase = Phase::Adopted;
        adopted.map_err(|e| e.to_string())
    }

    fn reissue_unsettled(&mut self) {
        let fences: Vec<(JobId, Extent)> = {
            let fences = self.destination.table.fences();
            fences.iter().map(|(id, extent)| (*id, *extent)).collect()
        };
        for (id, extent) in fences {
            let number = self
                .handed_over
                .iter()
                .find(|j| j.id == id)
                .map_or(0, |j| j.tag);
            let kind = JobKind::Write;
            self.destination.storage.insert(
                id,
                Operation {
                    kind,
                    extent,
                    number,
                    done: false,
                },
            );
            self.destination.table.settled(id, JobEnd::Unknown);
        }
    }

    /// The migration is given up, as long as that can be.
    fn abort(&mut self) -> Result<(), String> {
        let can = matches!(
            self.phase,
            Phase::HandedOver | Phase::Adopted | Phase::Prepared
        );
        if can && self.source.alive && self.guest {
            self.seen.aborts += 1;
            self.destination.unflushed.push(Record::Discarded(M));
            self.flush();
            self.destination.table = Table::default();
            // The guest was not told of what is on its way, and will not be by these.
            self.settlements.clear();
            self.phase = Phase::Before;
            self.source.table.release();
            self.act(false);
            // One migration is enough for a schedule: its records have one meaning.
            self.destination.alive = false;
        }
        Ok(())
    }

    fn deliver_settlement(&mut self) -> Result<(), String> {
        let listens = matches!(self.phase, Phase::Prepared | Phase::There);
        if listens && self.destination.alive && !self.settlements.is_empty() {
            let settlement = self.settlements.remove(0);
            self.unacknowledged.push(settlement);
            self.destination
                .table
                .settled(settlement.key.job, settlement.end);
            self.destination
                .unflushed
                .push(Record::Settled(M, settlement));
            self.act(true);
        }
        Ok(())
    }

    /// A process dies, with its table, and the guest if it was there; what the storage has stays.
    fn crash(&mut self, there: bool) {
        let before_handover = self.phase != Phase::There;
        let host = self.host(there);
        if !host.alive {
            return;
        }
        host.alive = false;
        host.table = Table::default();
        host.unflushed.clear();
        if there {
            // The source tells again whatever was not acknowledged.
            self.settlements.append(&mut self.unacknowledged);
        } else {
            self.settlements.clear();
            self.unacknowledged.clear();
        }
        if before_handover != there {
            self.guest = false;
        }
        self.seen.crashes += 1;
    }

    /// The guest has died; another is booted from the disk where it was, when that host has
    /// nothing in flight any more, with fences for what the journal knows of.
    fn reboot(&mut self) -> Result<(), String> {
        let there = self.there();
        if self.guest || !matches!(self.phase, Phase::Before | Phase::There) {
            return Ok(());
        }
        let next = JobId(self.now << 20);
        let host = self.host(there);
        if host.alive || !host.storage.is_empty() {
            return Ok(());
        }
        host.alive = true;
        host.table = Table::default();
        let fences = open_fences(&host.journal);
        for (_, job) in &fences {
            host.table.fence(job.key.job, job.extent);
        }
        // Numbers go on from wherever they were.
        host.table.fence(next, Extent::default());
        host.table.settled(next, JobEnd::Unknown);
        // What the dead guest had in flight is over, for the next one: it may have happened, but
        // nothing of it may come after a write that is asked for from now on and is done.
        for write in self.writes.values_mut() {
            write.done.get_or_insert(self.now);
        }
        self.guest = true;
        self.seen.reboots += 1;
        self.act(there);
        Ok(())
    }

    /// The source has let go of the disk, and the storage says so.
    fn storage_proves(&mut self) -> Result<(), String> {
        if self.there()
            && self.destination.alive
            && !self.source.alive
            && self.source.storage.is_empty()
        {
            let fences: Vec<JobId> = self.destination.table.fences().keys().copied().collect();
            for id in fences {
                self.destination.table.settled(id, JobEnd::Unknown);
                let key = key(id);
                let end = JobEnd::Unknown;
                let settled = Record::Settled(M, Settlement { key, end });
                self.destination.unflushed.push(settled);
            }
            self.act(true);
        }
        Ok(())
    }

    /// Does what the table of a host says.
    fn act(&mut self, there: bool) {
        while let Some(action) = self.host(there).table.poll() {
            match action {
                Action::Submit(id) => {
                    let host = self.host(there);
                    if let Some((kind, extent, number)) = host.table.job(id) {
                        let operation = Operation {
                            kind,
                            extent,
                            number: *number,
                            done: false,
                        };
                        host.storage.insert(id, operation);
                    }
                }
                Action::Cancel(_) => {}
                Action::Complete { id, tag, end, .. } => self.completed(there, id, tag, end),
                Action::Settled { id, end } => {
                    let key = key(id);
                    self.settlements.push(Settlement { key, end });
                }
            }
        }
    }

    /// The guest is told; a write that is done hides all that were done before it was issued.
    fn completed(&mut self, there: bool, id: JobId, number: Tag, end: JobEnd) {
        assert!(self.told.insert((there, id)), "{id:?} is completed twice");
        assert!(
            !(there && self.told.contains(&(false, id))),
            "{id:?} is completed on both hosts"
        );
        let Some(write) = self.writes.get_mut(&number) else {
            return;
        };
        if end != JobEnd::Done || write.done.is_some() {
            return;
        }
        write.done = Some(self.now);
        let issued = write.issued;
        let writes = &self.writes;
        for may in &mut self.may_hold {
            if may.contains(&number) {
                let hidden = |n: &u32| writes[n].done.is_some_and(|done| done < issued);
                may.retain(|n| *n == number || !hidden(n));
            }
        }
    }

    /// Everything goes on until nothing is in flight; a guest that lives is told of all its jobs.
    pub(crate) fn come_to_rest(&mut self) -> Result<(), String> {
        if matches!(
            self.phase,
            Phase::HandedOver | Phase::Adopted | Phase::Prepared
        ) {
            self.abort()?;
        }
        for _ in 0..10_000 {
            self.now += 1;
            let busy = !self.source.storage.is_empty() || !self.destination.storage.is_empty();
            if !busy && self.settlements.is_empty() {
                break;
            }
            for there in [false, true] {
                self.storage_does(there, 0);
                self.storage_tells(there, 1)?;
            }
            if self.there() && self.destination.alive {
                self.deliver_settlement()?;
            } else {
                self.settlements.clear();
            }
            self.check()?;
        }
        self.storage_proves()?;
        for _ in 0..1000 {
            self.storage_does(true, 0);
            self.storage_tells(true, 1)?;
        }
        self.check()?;
        let there = self.there();
        let runs = matches!(self.phase, Phase::Before | Phase::There);
        let (guest, host) = (self.guest, self.host(there));
        if guest && runs && host.alive && !host.table.is_empty() {
            return Err(format!("the guest still waits for {:?}", host.table));
        }
        Ok(())
    }
}

fn pick(from: &[JobId], arg: u64) -> Option<JobId> {
    let n = from.len() as u64;
    (n > 0).then(|| from[(arg % n) as usize])
}
