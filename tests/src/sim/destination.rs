//! The destination's driver, simulated.

use std::time::Duration;

use vmferry_protocol::destination::{DestinationEvent, DestinationOutcome, DestinationOutput};
use vmferry_protocol::wire::{ChunkHeader, HEADER_PREFIX, checksum};

use super::check::{Violation, arrived_whole};
use super::guest::Memory;
use super::link::Direction;
use super::scenario::{PlantedBug, Side};
use super::world::{MIGRATION, Next, PageFrame, World};

impl World<'_> {
    pub(super) fn drive_destination(&mut self) -> Result<(), Violation> {
        while let Some(output) = self.destination.as_mut().and_then(|d| d.poll_output()) {
            self.carry_out_destination(output)?;
        }
        Ok(())
    }

    fn carry_out_destination(&mut self, output: DestinationOutput) -> Result<(), Violation> {
        let (costs, side) = (self.s.costs, Side::Destination);
        match output {
            DestinationOutput::Send(message) => {
                if let vmferry_protocol::message::Message::Prepared(_) = message
                    && self.bug(PlantedBug::ResumesWhenPrepared)
                {
                    self.rights.active[1] = true;
                }
                return self.send(Direction::ToSource, &message);
            }
            DestinationOutput::Admit { migration, streams } => {
                if migration != MIGRATION || streams != self.s.streams {
                    return Err(Violation::Order("streams of another migration".to_owned()));
                }
            }
            DestinationOutput::PrepareMachine(shape) => {
                self.machine = Some(Memory::new(&shape.ram));
                let done = Next::Destination(DestinationEvent::MachineReady);
                self.machine_step(side, costs.other, done);
            }
            DestinationOutput::RestoreState { blob } => {
                if blob.len() != self.s.state_bytes {
                    return Err(Violation::Order("another state than was saved".to_owned()));
                }
                let (took, jobs) = (costs.state, self.adopt_storage()?);
                let done = Next::Destination(DestinationEvent::StateRestored { took, jobs });
                self.machine_step(side, took, done);
            }
            DestinationOutput::Persist(persist) => self.persist(side, persist, Duration::ZERO),
            DestinationOutput::PersistLater { persist, after } => {
                self.persist(side, persist, after);
            }
            DestinationOutput::Settle(settlements) => self.settle_storage(&settlements)?,
            DestinationOutput::ResumeGuest { run } => self.resume_here(run)?,
            DestinationOutput::Arrived => {
                if let Some(at) = self.paused_at {
                    self.blackout = Some(self.now - at);
                }
            }
            DestinationOutput::Discard => {
                if self.rights.active[1] {
                    return Err(Violation::Order("a guest in use is discarded".to_owned()));
                }
                self.machine = None;
                self.discard_storage();
            }
            DestinationOutput::AwaitReconnect => self.awaiting = true,
            DestinationOutput::Finished(outcome) => {
                self.note(|| format!("destination: {outcome:?}"));
                let completed = outcome == DestinationOutcome::Completed;
                if completed != self.rights.active[1] {
                    return Err(Violation::Order(format!(
                        "{outcome:?}, but the guest is not so"
                    )));
                }
                if self.arrival.replace(outcome).is_some() {
                    return Err(Violation::Order(
                        "the destination finished twice".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    fn resume_here(&mut self, run: bool) -> Result<(), Violation> {
        self.note(|| format!("resumed at the destination, run {run}"));
        if self.runs && !self.bug(PlantedBug::DoesNotPause) {
            return Err(Violation::TwoOwners);
        }
        if run != self.ran_before() {
            return Err(Violation::RunState {
                before: self.s.run_state,
            });
        }
        let Some(machine) = &self.machine else {
            return Err(Violation::Order("there is no machine to resume".to_owned()));
        };
        arrived_whole(&self.guest.memory, machine)?;
        self.rights.active[1] = true;
        self.release_storage(Side::Destination)?;
        self.former_owner_may_be_gone()?;
        // Were it to fail from here on, that would be a crash of the guest at its new home.
        let took = self.s.costs.other;
        self.after(took, Next::Destination(DestinationEvent::Resumed { took }));
        Ok(())
    }

    pub(super) fn apply(&mut self, frame: &PageFrame) -> Result<(), Violation> {
        if let Some((head, content)) = &frame.bytes {
            self.decode(frame, head, content)?;
        }
        if let Some(machine) = &mut self.machine
            && self.s.faults.bug != Some(PlantedBug::AcknowledgesUnapplied)
        {
            machine.apply(&frame.ranges, &frame.newer);
        }
        self.arrived(frame.chunk);
        self.tell_destination(DestinationEvent::ChunksApplied(vec![frame.chunk]))
    }

    /// The frame through the real decoder.
    fn decode(&self, frame: &PageFrame, head: &[u8], content: &[u8]) -> Result<(), Violation> {
        let broken = |what: &str| Violation::Order(format!("a frame that {what}"));
        let prefix = head
            .first_chunk::<HEADER_PREFIX>()
            .ok_or_else(|| broken("is too short"))?;
        let body = &head[HEADER_PREFIX..];
        let (len, sum) = ChunkHeader::decode_prefix(*prefix).map_err(|e| broken(&e.to_string()))?;
        let header = ChunkHeader::decode(body, &self.s.layout)
            .map_err(|e| broken(&format!("is refused: {e}")))?;
        let pages: u64 = frame.ranges.iter().map(|r| r.count).sum();
        if len != body.len() || sum != checksum(body, content) {
            return Err(broken("was changed on the way"));
        }
        if header.chunk != frame.chunk || header.pages() != pages {
            return Err(broken("says something else than was sent"));
        }
        Ok(())
    }
}
