//! What a device is to do wrong, and when.

use super::model::Request;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Comes back twice; never; with another id, length or status.
    Twice,
    Dropped,
    OtherId,
    Length,
    NoStatus,
    BadStatus,
    /// A read that brings nothing, what was there before, or another block.
    NoData,
    StaleRead,
    OtherBlock,
    /// A write that does not happen, happens by half, or wrongly.
    LostWrite,
    TornWrite,
    FlippedBit,
    /// A write that happens once more after a newer one was acknowledged.
    LateWrite,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Per cent of requests that fail.
    pub(super) errors: u64,
    /// What is still to be done wrong, to a request of this kind.
    pub(super) fault: Option<(u32, Fault)>,
    /// It was done.
    pub(super) happened: bool,
    pub(super) dropped: Vec<Request>,
    /// The block that a write went wrong on, and whether a later write has made that good.
    spoiled: Option<usize>,
    pub(super) masked: bool,
    held: Option<(usize, Vec<u8>)>,
    late: Option<(usize, Vec<u8>)>,
}

impl Plan {
    pub(super) fn of(kind: u32, fault: Fault) -> Self {
        Self {
            fault: Some((kind, fault)),
            ..Self::default()
        }
    }

    fn due(&mut self, request: &Request, written: bool, which: &[Fault]) -> Option<Fault> {
        let (kind, fault) = self.fault?;
        // Of a block never written, any content is right.
        let telling = written || request.kind != 0;
        if request.kind != kind || !which.contains(&fault) || !telling {
            return None;
        }
        self.fault = None;
        self.happened = true;
        Some(fault)
    }

    /// What goes wrong as `request` takes effect.
    pub(super) fn effect(&mut self, request: &Request, written: bool) -> Option<Fault> {
        use Fault::{FlippedBit, LostWrite, OtherBlock, StaleRead, TornWrite};
        let which = [FlippedBit, LostWrite, OtherBlock, StaleRead, TornWrite];
        self.due(request, written, &which)
    }

    /// What goes wrong as `request` comes back.
    pub(super) fn completion(&mut self, request: &Request, written: bool) -> Option<Fault> {
        use Fault::{BadStatus, Dropped, Length, NoData, NoStatus, OtherId, Twice};
        let which = [BadStatus, Dropped, Length, NoData, NoStatus, OtherId, Twice];
        self.due(request, written, &which)
    }

    /// A write has taken effect, or was said to.
    pub(super) fn stored(&mut self, block: usize) {
        self.masked |= self.spoiled == Some(block);
        if self.happened && self.spoiled.is_none() {
            self.spoiled = Some(block);
        }
    }

    /// A write was acknowledged.
    pub(super) fn acknowledged(&mut self, block: usize, content: Vec<u8>) {
        if self.fault.map(|f| f.1) != Some(Fault::LateWrite) {
            return;
        }
        match self.held.take() {
            None => self.held = Some((block, content)),
            Some((held, old)) if held == block => {
                self.late = Some((held, old));
                self.spoiled = Some(held);
                self.fault = None;
                self.happened = true;
            }
            other => self.held = other,
        }
    }

    pub(super) fn late(&mut self) -> Option<(usize, Vec<u8>)> {
        self.late.take()
    }
}
