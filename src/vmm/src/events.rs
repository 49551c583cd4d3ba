//! What happens by itself in a VM process: from the machine's threads, from its migrations.

use std::sync::Arc;

use tokio::sync::mpsc;
use vmferry_engine::destination::{Arrived, DestinationEnd};
use vmferry_engine::source::SourceEnd;
use vmferry_guest::abi;
use vmferry_machine::{EventSink, MachineEvent};

/// Something has happened.
#[derive(Debug)]
pub(crate) enum Happened {
    /// The machine says something.
    Machine(MachineEvent),
    /// The machine's migration to elsewhere has ended.
    Left(Box<SourceEnd>),
    /// The guest has arrived and runs here.
    Arrived(Arrived),
    /// A reception has ended, whether or not a guest arrived.
    Received(DestinationEnd),
}

pub(crate) type Happenings = mpsc::UnboundedSender<Happened>;

/// A sink for a machine's events that never blocks its threads. They are few.
pub(crate) fn sink(to: Happenings) -> EventSink {
    Arc::new(move |event| drop(to.send(Happened::Machine(event))))
}

/// The verdicts of the vCPUs, put together.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// vCPUs that have yet to say.
    missing: u32,
    /// The first that was not content.
    wrong: Option<u32>,
}

impl Verdict {
    /// Waits for `vcpus` of them.
    pub(crate) fn expect(&mut self, vcpus: u32) {
        *self = Self {
            missing: vcpus,
            wrong: None,
        };
    }

    /// A vCPU has said `result`; in words, when it was the last.
    pub(crate) fn add(&mut self, result: u32) -> Option<String> {
        if result != abi::VERIFY_OK {
            self.wrong.get_or_insert(result);
        }
        self.missing = self.missing.saturating_sub(1);
        (self.missing == 0).then(|| match self.wrong {
            None => "OK".to_owned(),
            Some(abi::VERIFY_LEDGER) => "FAIL ledger".to_owned(),
            Some(abi::VERIFY_REGISTERS) => "FAIL registers".to_owned(),
            Some(abi::VERIFY_DISK) => "FAIL disk".to_owned(),
            Some(page) => format!("FAIL page {}", page - 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unhappy_vcpu_is_enough() {
        let mut verdict = Verdict::default();
        verdict.expect(3);
        assert_eq!(verdict.add(abi::VERIFY_OK), None);
        assert_eq!(verdict.add(8), None);
        assert_eq!(verdict.add(abi::VERIFY_OK), Some("FAIL page 7".to_owned()));
        verdict.expect(1);
        assert_eq!(verdict.add(abi::VERIFY_DISK), Some("FAIL disk".to_owned()));
        verdict.expect(1);
        assert_eq!(verdict.add(abi::VERIFY_OK), Some("OK".to_owned()));
    }
}
