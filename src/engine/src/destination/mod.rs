//! A machine is received: [`start`] and the `Arrival` actor, which owns the destination's core.
//!
//! One source, one machine. However it ends, the machine is either the caller's, running (or
//! paused, as it was), or dropped.

mod actor;
mod load;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use tokio::sync::{mpsc, oneshot};
use vmferry_journal::Journal;
use vmferry_machine::{DiskStats, Machine, MachineConfig};
use vmferry_protocol::ids::Token;
use vmferry_protocol::message::VmShape;
use vmferry_protocol::storage::{JobKey, Settlement};
use vmferry_transports::Listener;

use crate::report::DestinationTimeline;
use actor::{Arrival, Cancel, Decide, SettleByOperator, ToldSettled};

/// How a machine is to be received.
#[derive(Clone, Debug)]
pub struct DestinationOptions {
    /// The one-time secret that the source must show.
    pub token: Token,
    /// The connection counts as lost after this silence.
    pub silence: Duration,
    /// How long to stay reachable for a source that has not heard that the guest arrived.
    pub linger: Duration,
}

impl DestinationOptions {
    /// Defaults.
    #[must_use]
    pub fn new(token: Token) -> Self {
        Self {
            token,
            silence: crate::source::SILENCE,
            linger: crate::source::RECONNECT_FOR,
        }
    }
}

/// Makes the empty machine for a shape that was offered, or says in words all that is wrong. May
/// block.
pub type MakeMachine = Arc<dyn Fn(&VmShape) -> Result<Arc<dyn Machine>, String> + Send + Sync>;

/// The guest runs here (or stays paused, as it was).
#[derive(Debug)]
pub struct Arrived {
    /// Its machine.
    pub machine: Arc<dyn Machine>,
    /// When its vCPUs ran again, in nanoseconds of CLOCK_MONOTONIC.
    pub resumed_ns: u64,
}

/// How it ended, when all is closed.
#[derive(Debug)]
pub struct DestinationEnd {
    /// Why nothing arrived, in words; none where the guest is here.
    pub failure: Option<String>,
    /// Storage IO of the machine, where one was made.
    pub io: Option<DiskStats>,
    /// Most memory used beyond the guest's RAM, in bytes.
    pub peak_extra_rss_bytes: u64,
    /// When things happened.
    pub timeline: Box<DestinationTimeline>,
}

/// A reception under way.
#[derive(Debug)]
pub struct DestinationHandle {
    /// The guest, when it arrives.
    pub arrived: mpsc::UnboundedReceiver<Arrived>,
    /// The end.
    pub ended: oneshot::Receiver<DestinationEnd>,
    addr: Addr<Arrival>,
}

/// An operator's hand on a reception.
#[derive(Clone, Debug)]
pub struct Operator(Addr<Arrival>);

impl Operator {
    /// Vouches that the source's host will write to the guest's disks no more, so that what waits
    /// for its writes goes on. Returns how many writes that are.
    ///
    /// # Errors
    /// In words, where that is not to be said, or the reception is over.
    pub async fn settle_storage(&self) -> Result<u64, String> {
        match self.0.send(SettleByOperator).await {
            Ok(settled) => settled,
            Err(_) => Err("the migration is over".to_owned()),
        }
    }

    /// The source's host tells which of its writes have ended. Returns those of which that is on
    /// disk here; the others are to be told again.
    ///
    /// # Errors
    /// In words, where the guest is not here; none of them where the reception is over.
    pub async fn told_settled(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Option<Vec<JobKey>>, String> {
        match self.0.send(ToldSettled(settlements)).await {
            Ok(known) => known.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Decides where the guest runs, in the place of a source that can be asked no more: here, as
    /// by its commit, or not here.
    ///
    /// # Errors
    /// In words, where that is not to be said, or the reception is over.
    pub async fn decide(&self, here: bool) -> Result<(), String> {
        match self.0.send(Decide { here }).await {
            Ok(decided) => decided,
            Err(_) => Err("the migration is over".to_owned()),
        }
    }

    /// Cancels, or asks the source to.
    pub fn cancel(&self) {
        self.0.do_send(Cancel);
    }
}

impl DestinationHandle {
    /// What can cancel it, and more.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator(self.addr.clone())
    }
}

/// The configuration that a shape carries.
///
/// # Errors
/// In words, where it is not one.
pub fn config_of(shape: &VmShape) -> Result<MachineConfig, String> {
    match postcard::take_from_bytes(&shape.config) {
        Ok((config, [])) => Ok(config),
        _ => Err("the machine's description cannot be read".to_owned()),
    }
}

/// All that does not fit between the shape offered and the machine made for it.
#[must_use]
pub fn misfits(shape: &VmShape, machine: &dyn Machine) -> Vec<String> {
    let mut wrong = Vec::new();
    if machine.config().vcpus != shape.vcpus {
        wrong.push("the number of vCPUs differs from the description's".to_owned());
    }
    if crate::source::layout_of(machine).as_ref() != Ok(&shape.ram) {
        wrong.push("RAM would lie elsewhere on this host".to_owned());
    }
    let here = machine.cpu_features();
    let missing: Vec<&str> = shape
        .cpu_features
        .iter()
        .filter(|f| !here.contains(f))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        wrong.push(format!(
            "this host's processor lacks what the guest has seen: {}",
            missing.join(", ")
        ));
    }
    wrong
}

/// Begins to wait for a source on `listener`. Inside an actix system with a tokio runtime of
/// several threads.
pub fn start(
    listener: Box<dyn Listener>,
    make: MakeMachine,
    journal: Arc<dyn Journal>,
    options: DestinationOptions,
) -> DestinationHandle {
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let addr = Arrival::new(listener, make, journal, options, arrivals, end).start();
    DestinationHandle {
        arrived,
        ended,
        addr,
    }
}
