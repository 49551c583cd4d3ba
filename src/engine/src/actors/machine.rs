//! `Hands`: does to the machine what takes its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_machine::{HeldIo, Machine, MachineError};
use vmferry_protocol::errors::chain;
use vmferry_protocol::storage::JobRecord;

use super::Settle;

/// What is done to a machine.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum Do {
    /// Stop its vCPUs.
    Pause(Arc<dyn Machine>),
    /// Cancel its storage IO, without waiting for any storage.
    Hold(Arc<dyn Machine>),
    /// Let its storage IO go on, and its vCPUs, if asked to; else they stay as they are.
    Resume(Arc<dyn Machine>, bool),
    /// Save its state.
    Save(Arc<dyn Machine>),
    /// Set a state.
    Restore(Arc<dyn Machine>, Vec<u8>),
    /// End it: it is somebody else's.
    Stop(Arc<dyn Machine>),
}

/// What was done, and how long it took.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Done {
    pub(crate) what: What,
    pub(crate) took: Duration,
    pub(crate) result: Result<(), String>,
}

/// The operation that was done.
#[derive(Debug)]
pub(crate) enum What {
    Pause,
    /// What had not ended.
    Hold(HeldIo),
    Resume,
    /// The state.
    Save(Vec<u8>),
    /// Storage jobs that came with the state.
    Restore(Vec<JobRecord>),
    Stop,
}

/// The machine's thread.
#[derive(Debug)]
pub(crate) struct Hands {
    pub(crate) owner: Recipient<Done>,
}

impl Actor for Hands {
    type Context = SyncContext<Self>;
}

impl Handler<Do> for Hands {
    type Result = ();

    fn handle(&mut self, what: Do, _: &mut SyncContext<Self>) {
        let began = Instant::now();
        let (what, result) = match what {
            Do::Pause(machine) => (What::Pause, machine.pause()),
            Do::Hold(machine) => (What::Hold(machine.disks().hold()), Ok(())),
            Do::Resume(machine, run) => (What::Resume, resume(&machine, run)),
            Do::Save(machine) => match machine.save() {
                Ok(blob) => (What::Save(blob), Ok(())),
                Err(error) => (What::Save(Vec::new()), Err(error)),
            },
            Do::Restore(machine, blob) => {
                let restored = machine.restore(&blob);
                (What::Restore(machine.disks().adopted()), restored)
            }
            Do::Stop(machine) => {
                machine.stop();
                (What::Stop, Ok(()))
            }
        };
        self.owner.do_send(Done {
            what,
            took: began.elapsed(),
            result: result.map_err(|e| chain(&e)),
        });
    }
}

/// Make a machine, and tell of it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Make(pub(crate) Box<dyn FnOnce() + Send>);

impl Handler<Make> for Hands {
    type Result = ();

    fn handle(&mut self, Make(make): Make, _: &mut SyncContext<Self>) {
        make();
    }
}

fn resume(machine: &Arc<dyn Machine>, run: bool) -> Result<(), MachineError> {
    if run {
        return machine.resume();
    }
    machine.disks().release();
    Ok(())
}

impl Handler<Settle> for Hands {
    type Result = ();

    fn handle(&mut self, _: Settle, _: &mut SyncContext<Self>) {}
}
