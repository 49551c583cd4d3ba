//! A machine with something around its operations.

use std::fmt::Debug;
use std::sync::Arc;

use vmferry_machine::{Disks, Machine, MachineConfig, MachineError, MachineState, Recorder};
use vmferry_memory::GuestRam;
use vmferry_tracker::{DirtyTracker, TrackerError, TrackerKind};

/// An operation of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Machine::pause`].
    Pause,
    /// [`Machine::save`].
    Save,
    /// [`Machine::restore`].
    Restore,
    /// [`Machine::resume`].
    Resume,
    /// [`Machine::stop`], which cannot fail.
    Stop,
}

/// What is around them.
pub trait Around: Debug + Send + Sync {
    /// Has `operation` done, or not.
    ///
    /// # Errors
    /// That of `operation`, or one in its place.
    fn around(
        &self,
        op: Op,
        operation: &mut dyn FnMut() -> Result<(), MachineError>,
    ) -> Result<(), MachineError>;
}

/// `inner`, with that around it.
#[derive(Debug)]
pub struct Decorated<A> {
    /// The machine.
    pub inner: Arc<dyn Machine>,
    /// What is around it.
    pub around: A,
}

impl<A: Around> Machine for Decorated<A> {
    fn config(&self) -> &MachineConfig {
        self.inner.config()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.inner.ram()
    }

    fn cpu_features(&self) -> Vec<String> {
        self.inner.cpu_features()
    }

    fn disks(&self) -> &Arc<Disks> {
        self.inner.disks()
    }

    fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, TrackerError> {
        self.inner.tracker(kind)
    }

    fn state(&self) -> MachineState {
        self.inner.state()
    }

    fn boot(&self) -> Result<(), MachineError> {
        self.inner.boot()
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.around.around(Op::Resume, &mut || self.inner.resume())
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.around.around(Op::Pause, &mut || self.inner.pause())
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        let mut blob = Vec::new();
        self.around.around(Op::Save, &mut || {
            blob = self.inner.save()?;
            Ok(())
        })?;
        Ok(blob)
    }

    fn restore(&self, blob: &[u8]) -> Result<(), MachineError> {
        self.around
            .around(Op::Restore, &mut || self.inner.restore(blob))
    }

    fn workload(&self) -> Option<&Arc<Recorder>> {
        self.inner.workload()
    }

    fn stop(&self) {
        // Whatever is around it, a stop does not fail.
        let _ = self.around.around(Op::Stop, &mut || {
            self.inner.stop();
            Ok(())
        });
    }
}
