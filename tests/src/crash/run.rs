//! One run: a migration, a fault, and what must hold then.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmferry_guest::abi::VERIFY_OK;
use vmferry_guest::pattern::mix;
use vmferry_journal::{Journal, SledJournal};
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::ownership::{Recovery, Role, recover};
use vmferry_transports::TransportError;
use vmferry_transports::keys::Authority;

use super::check::{self, Tally};
use super::lab::{GUARD, Lab};
use super::log::{self, Process};
use super::plan::{Case, DISK, Plan};
use super::relay::Relay;
use super::talk::{Command, Event, Kept, LeftAs, Order, Setup};
use super::{DESTINATION_HOST, SOURCE_HOST, Side, Victim};

/// The processes of a run: both sides, and the one that is started after a crash.
const SOURCE: Process = 0;
const DESTINATION: Process = 1;
const AGAIN: Process = 2;
/// A source gives a dead destination up after this, and one whose connection was cut never.
const RECONNECT_DEAD: Duration = Duration::from_millis(1500);
const RECONNECT_CUT: Duration = Duration::from_secs(60);
/// Between two looks at what nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Keys for both hosts, in a directory that all runs share.
#[derive(Debug)]
pub struct Keys(TempDir);

impl Keys {
    /// New ones.
    ///
    /// # Errors
    /// Of the file system.
    pub fn new() -> Result<Self, TransportError> {
        let dir = tempfile::tempdir().map_err(|e| TransportError::Tls {
            what: "a directory for keys".to_owned(),
            why: e.to_string(),
        })?;
        let authority = Authority::new()?;
        for host in [SOURCE_HOST, DESTINATION_HOST] {
            authority.issue(host)?.write_to(dir.path())?;
        }
        Ok(Self(dir))
    }
}

/// What became of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Where {
    /// It went on at the source.
    Source,
    /// It went on at the destination.
    Destination,
    /// It died with its process; another was booted at the source.
    BootedAtSource,
    /// It died with its process; another was booted at the destination.
    BootedAtDestination,
    /// Both journals say that the other host has to be asked.
    Undecided,
}

/// What was seen in a run in which all held that must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The point was reached, and the fault came there.
    pub reached: bool,
    /// What became of the guest.
    pub end: Where,
    /// The writes to its disk.
    pub tally: Tally,
}

/// Runs `case`; `program` is the VM process.
///
/// # Errors
/// In words: what did not hold, with all that the processes have said.
pub fn run(program: &Path, keys: &Keys, case: &Case) -> Result<Seen, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut run = Run::new(program, keys, dir.path(), case)?;
    let seen = run.begin().and_then(|()| run.carry_out());
    seen.map_err(|why| format!("{case:?}: {why}{}", run.lab.words()))
}

struct Run<'a> {
    case: &'a Case,
    plan: Plan,
    dir: PathBuf,
    keys: PathBuf,
    lab: Lab,
    relay: Option<Relay>,
    migration: MigrationId,
    left: Option<(LeftAs, String)>,
    received: Option<Option<String>>,
}

fn of(side: Side) -> Process {
    match side {
        Side::Source => SOURCE,
        Side::Destination => DESTINATION,
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

impl<'a> Run<'a> {
    fn new(program: &Path, keys: &Keys, dir: &Path, case: &'a Case) -> Result<Self, String> {
        let mut id = [0x5a; 16];
        id[..8].copy_from_slice(&mix(case.seed).to_le_bytes());
        let run = Self {
            case,
            plan: Plan::of(case),
            dir: dir.to_owned(),
            keys: keys.0.path().to_owned(),
            lab: Lab::new(program, dir),
            relay: None,
            migration: MigrationId(id),
            left: None,
            received: None,
        };
        File::create_new(run.image())
            .and_then(|image| image.set_len(DISK))
            .map_err(|e| format!("the image: {e}"))?;
        Ok(run)
    }

    fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    fn dir_of(&self, side: Side) -> PathBuf {
        self.dir.join(format!("{side:?}"))
    }

    fn start(&mut self, process: Process, side: Side) -> Result<Process, String> {
        let dir = self.dir_of(side);
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let reconnect = match self.case.victim {
            Victim::Connection => RECONNECT_CUT,
            Victim::Source | Victim::Destination => RECONNECT_DEAD,
        };
        self.lab.start(&Setup {
            side,
            process,
            dir,
            log: self.lab.log(),
            keys: self.keys.clone(),
            point: (process != AGAIN && self.case.point.side() == side).then_some(self.case.point),
            reconnect_ms: reconnect.as_millis() as u64,
        })
    }

    fn boot(&mut self, process: Process) -> Result<(), String> {
        let debug = self.dir.join(format!("debug-{process}"));
        let config = self.plan.machine(&self.image(), &debug);
        self.lab.say(process, &Command::Boot(Box::new(config)))?;
        self.works(process)?;
        self.advance(process)
    }

    fn works(&mut self, process: Process) -> Result<(), String> {
        let works = |e: &Event| (*e == Event::Works).then_some(());
        self.lab.wait(process, "the guest's work", works)
    }

    fn advance(&mut self, process: Process) -> Result<(), String> {
        self.lab.say(process, &Command::Advance)?;
        self.works(process)
    }

    /// A guest works at the source, and begins to move.
    fn begin(&mut self) -> Result<(), String> {
        self.start(SOURCE, Side::Source)?;
        self.start(DESTINATION, Side::Destination)?;
        self.boot(SOURCE)?;
        let token = "1".repeat(32);
        let receive = Command::Receive {
            token: token.clone(),
        };
        self.lab.say(DESTINATION, &receive)?;
        let listens = |e: &Event| match e {
            Event::Listening(at) => Some(*at),
            _ => None,
        };
        let at = self.lab.wait(DESTINATION, "its address", listens)?;
        let relay = Relay::start(at).map_err(|e| format!("no relay: {e}"))?;
        let order = Order {
            to: relay.address,
            token,
            migration: self.migration.to_string(),
            tracker: self.plan.tracker.to_owned(),
        };
        self.relay = Some(relay);
        self.lab.say(SOURCE, &Command::Migrate(order))
    }

    fn carry_out(&mut self) -> Result<Seen, String> {
        let reached = self.reach()?;
        if reached {
            self.fault()?;
        }
        let (end, tally) = match self.case.victim {
            Victim::Source if reached => self.without_source()?,
            Victim::Destination if reached => self.without_destination()?,
            _ => self.with_both(reached)?,
        };
        Ok(Seen {
            reached,
            end,
            tally,
        })
    }

    /// Waits until the process stands at the point; false where both sides have ended before.
    fn reach(&mut self) -> Result<bool, String> {
        enum Said {
            At,
            Left(LeftAs, String),
            Received(Option<String>),
        }
        while self.left.is_none() || self.received.is_none() {
            let said = self.lab.wait_any("the point", |_, event| match event {
                Event::At(_) => Some(Said::At),
                Event::Left(how, why) => Some(Said::Left(*how, why.clone())),
                Event::Received(why) => Some(Said::Received(why.clone())),
                _ => None,
            })?;
            match said {
                Said::At => return Ok(true),
                Said::Left(how, why) => self.left = Some((how, why)),
                Said::Received(why) => self.received = Some(why),
            }
        }
        Ok(false)
    }

    fn fault(&mut self) -> Result<(), String> {
        match self.case.victim {
            Victim::Source => self.lab.kill(SOURCE)?,
            Victim::Destination => self.lab.kill(DESTINATION)?,
            Victim::Connection => {
                if let Some(relay) = &self.relay {
                    relay.cut(self.plan.refuse);
                }
            }
        }
        let stands = of(self.case.point.side());
        if self.lab.lives(stands) {
            self.lab.say(stands, &Command::Go)?;
        }
        Ok(())
    }

    fn left(&mut self) -> Result<(LeftAs, String), String> {
        if let Some(left) = self.left.take() {
            return Ok(left);
        }
        let left = |e: &Event| match e {
            Event::Left(how, why) => Some((*how, why.clone())),
            _ => None,
        };
        self.lab.wait(SOURCE, "the migration's end", left)
    }

    fn received(&mut self) -> Result<Option<String>, String> {
        if let Some(received) = self.received.take() {
            return Ok(received);
        }
        let received = |e: &Event| match e {
            Event::Received(why) => Some(why.clone()),
            _ => None,
        };
        self.lab.wait(DESTINATION, "the reception's end", received)
    }

    fn arrived(&mut self) -> Result<(), String> {
        let arrived = |e: &Event| (*e == Event::Arrived).then_some(());
        self.lab.wait(DESTINATION, "the guest's arrival", arrived)
    }

    /// The source is gone: the guest is at the destination, or was discarded there, or waits
    /// there for a word that nobody will say.
    fn without_source(&mut self) -> Result<(Where, Tally), String> {
        if let Some(relay) = &self.relay {
            relay.wait_closed(GUARD)?;
        }
        let waits = match self.received.take() {
            Some(failure) => failure.is_none(),
            None => self.lab.wait_any("word of the guest", |_, event| match event {
                Event::Received(Some(_)) => Some(false),
                Event::Kept(Kept::Prepared) => Some(true),
                _ => None,
            })?,
        };
        // Once `owner` is on its way to disk nothing keeps the guest from coming.
        if waits && self.lab.status(DESTINATION)?.owner {
            self.arrived()?;
            return self.lives(DESTINATION);
        }
        let runs = self.lab.status(DESTINATION)?.running;
        ensure(!runs, || "the destination runs a guest that nobody gave it".into())?;
        self.lab.kill(DESTINATION)?;
        self.nobody()
    }

    /// The destination is gone: the guest goes on at the source, or has left it.
    fn without_destination(&mut self) -> Result<(Where, Tally), String> {
        let (left, why) = self.left()?;
        if left == LeftAs::Aborted {
            return self.lives(SOURCE);
        }
        let runs = self.lab.status(SOURCE)?.running;
        ensure(!runs, || format!("the source runs a guest that it gave away: {why}"))?;
        if left == LeftAs::Undecided {
            self.is_taken()?;
        }
        self.lab.kill(SOURCE)?;
        self.nobody()
    }

    fn with_both(&mut self, cut: bool) -> Result<(Where, Tally), String> {
        match self.left()? {
            (LeftAs::Completed, _) => {
                self.arrived()?;
                self.lives(DESTINATION)
            }
            (LeftAs::Aborted, why) if cut => {
                let failure = self.received()?;
                ensure(failure.is_some(), || format!("two guests: {why}"))?;
                self.lives(SOURCE)
            }
            (left, why) => Err(format!("{left:?}, though nothing was in the way: {why}")),
        }
    }

    /// The guest must live in `process`, and nowhere else.
    fn lives(&mut self, process: Process) -> Result<(Where, Tally), String> {
        let other = if process == SOURCE { DESTINATION } else { SOURCE };
        if self.lab.lives(other) {
            let runs = self.lab.status(other)?.running;
            ensure(!runs, || "both sides run a guest".into())?;
        }
        self.is_well(process)?;
        if self.lab.lives(other) {
            self.lab.exit(other)?;
        }
        self.may_move_on()?;
        self.lab.exit(process)?;
        let tally = self.is_quiet()?;
        let (here, end) = match process {
            SOURCE => (Role::Source, Where::Source),
            _ => (Role::Destination, Where::Destination),
        };
        let rights = [Role::Source, Role::Destination].map(|role| (role, self.right(role)));
        for (role, right) in rights {
            let right = right?;
            ensure((right == Recovery::Run) == (role == here), || {
                format!("the guest is at the {here:?}, and the journal of the {role:?} says {right:?}")
            })?;
        }
        Ok((end, tally))
    }

    /// The guest in `process` works, and finds RAM and disk as they must be; nobody else can have
    /// the disk.
    fn is_well(&mut self, process: Process) -> Result<(), String> {
        self.is_taken()?;
        self.advance(process)?;
        self.lab.say(process, &Command::Verify)?;
        let verified = |e: &Event| match e {
            Event::Verified(results) => Some(results.clone()),
            _ => None,
        };
        let results = self.lab.wait(process, "a verify", verified)?;
        ensure(results.iter().all(|r| *r == VERIFY_OK), || {
            format!("process {process} verifies {results:?}")
        })?;
        // Fences that only the journal knows are lifted by and by.
        let give_up_at = Instant::now() + GUARD;
        loop {
            let status = self.lab.status(process)?;
            ensure(status.running && status.errors == 0, || format!("{status:?}"))?;
            if status.fences == 0 {
                break;
            }
            ensure(Instant::now() < give_up_at, || format!("fences stay: {status:?}"))?;
            sleep(LOOK_EVERY);
        }
        self.advance(process)
    }

    /// Every process is gone, and the guest with them.
    fn nobody(&mut self) -> Result<(Where, Tally), String> {
        let tally = self.is_quiet()?;
        let source = self.right(Role::Source)?;
        let destination = self.right(Role::Destination)?;
        let (side, end) = match (source, destination) {
            (Recovery::Run, Recovery::AskPeer | Recovery::Drop) => {
                (Side::Source, Where::BootedAtSource)
            }
            (Recovery::AskPeer | Recovery::Drop, Recovery::Run) => {
                (Side::Destination, Where::BootedAtDestination)
            }
            (Recovery::AskPeer, Recovery::AskPeer) => return Ok((Where::Undecided, tally)),
            rights => return Err(format!("the journals say {rights:?}")),
        };
        self.start(AGAIN, side)?;
        self.boot(AGAIN)?;
        self.is_well(AGAIN)?;
        self.lab.exit(AGAIN)?;
        Ok((end, self.is_quiet()?))
    }

    fn open(&self, role: vmferry_block::Role) -> Result<(), vmferry_block::OpenError> {
        let mut disk = self.plan.disk(&self.image());
        disk.delay_ms = 0;
        vmferry_block::open(&disk, role).map(drop)
    }

    /// Waits until the disk can be had as `role`.
    fn can_be_had(&self, role: vmferry_block::Role) -> Result<(), String> {
        let give_up_at = Instant::now() + GUARD;
        while let Err(error) = self.open(role) {
            ensure(Instant::now() < give_up_at, || format!("nobody else is left: {error}"))?;
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The other side is gone: there can be another heir.
    fn may_move_on(&self) -> Result<(), String> {
        self.can_be_had(vmferry_block::Role::Heir)
    }

    /// Somebody has the disk.
    fn is_taken(&self) -> Result<(), String> {
        match self.open(vmferry_block::Role::Owner) {
            Err(e) if e.why.contains("machine") => Ok(()),
            Err(e) => Err(format!("the disk is refused for another reason: {e}")),
            Ok(()) => Err("the disk of a living guest could be had by another".to_owned()),
        }
    }

    /// Waits until nobody has the disk; it must hold what the log of writes says.
    fn is_quiet(&mut self) -> Result<Tally, String> {
        self.can_be_had(vmferry_block::Role::Owner)?;
        self.lab.is_quiet()?;
        let records = log::read(&self.lab.log())?;
        check::owners(&records)?;
        let image = std::fs::read(self.image()).map_err(|e| e.to_string())?;
        check::image(&records, &image)
    }

    /// What the journal of a process that is gone says.
    fn right(&mut self, role: Role) -> Result<Recovery, String> {
        let (side, process) = match role {
            Role::Source => (Side::Source, SOURCE),
            Role::Destination => (Side::Destination, DESTINATION),
        };
        let journal = SledJournal::open(&self.dir_of(side).join("journal"));
        let records = journal.and_then(|j| j.records());
        let records = records.map_err(|e| format!("{side:?}: {e}"))?;
        let over = self.lab.has_said(process, &Event::Kept(Kept::Released));
        if over && records.iter().all(|r| r.migration() != self.migration) {
            // It has no guest any more, and no records of it.
            return Ok(Recovery::Drop);
        }
        Ok(recover(role, self.migration, &records))
    }
}
