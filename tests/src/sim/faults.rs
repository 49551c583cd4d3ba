//! Connections that come and go, processes that die, operators who change their minds.

use vmferry_protocol::destination::DestinationEvent;
use vmferry_protocol::source::SourceEvent;
use vmferry_protocol::wire::FrameDecoder;

use super::check::Violation;
use super::scenario::{Cut, CutKind, PlantedBug, Side, Trigger};
use super::world::{Next, World};

impl World<'_> {
    pub(super) fn connect(&mut self) -> Result<(), Violation> {
        let refused = match self.s.faults.cut {
            Some(cut) if self.cuts > 0 => cut.refused.is_none_or(|n| self.refused < n),
            _ => false,
        };
        if refused || !self.awaiting || self.destination.is_none() {
            self.refused += 1;
            let detail = "refused".to_owned();
            return self.tell_source(SourceEvent::ConnectionLost { detail });
        }
        self.note(|| "connected".to_owned());
        self.awaiting = false;
        self.decoders = [FrameDecoder::default(), FrameDecoder::default()];
        self.wire.connect(self.now);
        self.tell_destination(DestinationEvent::Connected)?;
        self.tell_source(SourceEvent::Connected)
    }

    /// Ends the connection.
    pub(super) fn cut(&mut self, cut: Cut) -> Result<(), Violation> {
        self.cuts += 1;
        if !self.wire.up {
            return Ok(());
        }
        self.note(|| format!("cut: {cut:?}"));
        self.wire.cut();
        if cut.kind == CutKind::Reset {
            let detail = || "reset".to_owned();
            let latency = self.wire.latency();
            let lost = SourceEvent::ConnectionLost { detail: detail() };
            self.after(latency, Next::Source(lost));
            let lost = DestinationEvent::ConnectionLost { detail: detail() };
            self.after(latency, Next::Destination(lost));
        }
        if self.bug(PlantedBug::ResumesOnLoss) {
            self.rights.active[0] = true;
        }
        Ok(())
    }

    pub(super) fn inject(&mut self) -> Result<(), Violation> {
        let faults = &self.s.faults;
        if let Some(cut) = faults.cut
            && self.cuts == 0
            && matches!(cut.at, Trigger::Step(n) if n <= self.steps)
        {
            self.cut(cut)?;
        }
        if let Some((side, n)) = faults.kill
            && n == self.steps
        {
            self.kill(side)?;
        }
        if let Some((side, n)) = faults.cancel
            && n == self.steps
        {
            self.steps += 1;
            self.note(|| format!("{side:?} is told to cancel"));
            match side {
                Side::Source => self.tell_source(SourceEvent::CancelRequested)?,
                Side::Destination => self.tell_destination(DestinationEvent::CancelRequested)?,
            }
        }
        Ok(())
    }

    /// The process is gone, with all that was not on disk; the peer sees the connection end.
    pub(super) fn kill(&mut self, side: Side) -> Result<(), Violation> {
        let detail = "the peer is gone".to_owned();
        let was_there = match side {
            Side::Source => self.source.take().is_some(),
            Side::Destination => self.destination.take().is_some(),
        };
        if !was_there {
            return Ok(());
        }
        self.note(|| format!("{side:?} is killed"));
        self.rights.active[side.index()] = false;
        self.former_owner_may_be_gone()?;
        let of_it = |next: &Next| match side {
            Side::Source => matches!(
                next,
                Next::Harvest { .. }
                    | Next::Read { .. }
                    | Next::Disk {
                        side: Side::Source,
                        ..
                    }
            ),
            Side::Destination => {
                matches!(
                    next,
                    Next::Apply { .. }
                        | Next::Disk {
                            side: Side::Destination,
                            ..
                        }
                )
            }
        };
        self.queue.retain(|_, next| !of_it(next));
        if !std::mem::replace(&mut self.wire.up, false) {
            return Ok(());
        }
        let next = match side {
            Side::Source => Next::Destination(DestinationEvent::ConnectionLost { detail }),
            Side::Destination => Next::Source(SourceEvent::ConnectionLost { detail }),
        };
        self.after(self.wire.latency(), next);
        Ok(())
    }
}
