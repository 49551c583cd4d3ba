//! What must hold after a fault, wherever the guest is.

use std::thread::sleep;
use std::time::{Duration, Instant};

use vmferry_guest::abi::VERIFY_OK;
use vmferry_journal::{Journal, SledJournal};
use vmferry_protocol::ownership::{Recovery, Role, recover};

use super::Side;
use super::check::{self, Tally};
use super::lab::GUARD;
use super::log::{self, Process};
use super::run::{AGAIN, DESTINATION, Run, SOURCE, Where, ensure};
use super::talk::{Command, Event, Kept};

/// Between two looks at what nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl Run<'_> {
    /// The guest must live in `process`, and nowhere else.
    pub(super) fn lives(&mut self, process: Process) -> Result<(Where, Tally), String> {
        let other = if process == SOURCE {
            DESTINATION
        } else {
            SOURCE
        };
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
                format!(
                    "the guest is at the {here:?}, and the journal of the {role:?} says {right:?}"
                )
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
            ensure(status.running && status.errors == 0, || {
                format!("{status:?}")
            })?;
            if status.fences == 0 {
                break;
            }
            ensure(Instant::now() < give_up_at, || {
                format!("fences stay: {status:?}")
            })?;
            sleep(LOOK_EVERY);
        }
        self.advance(process)
    }

    /// Every process is gone, and the guest with them.
    pub(super) fn nobody(&mut self) -> Result<(Where, Tally), String> {
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
            ensure(Instant::now() < give_up_at, || {
                format!("nobody else is left: {error}")
            })?;
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The other side is gone: there can be another heir.
    fn may_move_on(&self) -> Result<(), String> {
        self.can_be_had(vmferry_block::Role::Heir)
    }

    /// Somebody has the disk.
    pub(super) fn is_taken(&self) -> Result<(), String> {
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
