//! One run: a migration, a fault, and what must hold then.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use vmferry_guest::pattern::mix;
use vmferry_protocol::ids::MigrationId;
use vmferry_transports::TransportError;
use vmferry_transports::keys::Authority;

use super::check::Tally;
use super::lab::{GUARD, Lab};
use super::log::Process;
use super::plan::{Case, DISK, Plan};
use super::relay::Relay;
use super::talk::{Command, Event, Kept, LeftAs, Order, Setup};
use super::{DESTINATION_HOST, SOURCE_HOST, Side, Victim};

/// The processes of a run: both sides, and the one that is started after a crash.
pub(super) const SOURCE: Process = 0;
pub(super) const DESTINATION: Process = 1;
pub(super) const AGAIN: Process = 2;
/// A source gives a dead destination up after this, and one whose connection was cut never.
const RECONNECT_DEAD: Duration = Duration::from_millis(1500);
const RECONNECT_CUT: Duration = Duration::from_secs(60);

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

/// A run under way.
pub(super) struct Run<'a> {
    case: &'a Case,
    pub(super) plan: Plan,
    dir: PathBuf,
    keys: PathBuf,
    pub(super) lab: Lab,
    relay: Option<Relay>,
    pub(super) migration: MigrationId,
    left: Option<(LeftAs, String)>,
    received: Option<Option<String>>,
}

fn of(side: Side) -> Process {
    match side {
        Side::Source => SOURCE,
        Side::Destination => DESTINATION,
    }
}

pub(super) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
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

    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    pub(super) fn dir_of(&self, side: Side) -> PathBuf {
        self.dir.join(format!("{side:?}"))
    }

    pub(super) fn start(&mut self, process: Process, side: Side) -> Result<Process, String> {
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
            delay_ms: self.plan.delay_there_ms,
        })
    }

    pub(super) fn boot(&mut self, process: Process) -> Result<(), String> {
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

    pub(super) fn advance(&mut self, process: Process) -> Result<(), String> {
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
            None => self
                .lab
                .wait_any("word of the guest", |_, event| match event {
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
        ensure(!runs, || {
            "the destination runs a guest that nobody gave it".into()
        })?;
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
        ensure(!runs, || {
            format!("the source runs a guest that it gave away: {why}")
        })?;
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
}
