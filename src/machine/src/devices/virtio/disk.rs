//! One disk as others hold it: its registers, and the way to its worker.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmferry_block::{BlockBackend, DiskSpec, Role};
use vmferry_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use super::disks::Watch;
use super::mmio::{Effect, QUEUE_NOTIFY, Registers};
use super::offer::Offer;
use super::shared::Shared;
use super::state::{SavedDisk, Unchecked};
use super::worker::{Adoption, Command, Worker};
use crate::lock;

/// The worker needs little; backends run on its stack.
const STACK_BYTES: usize = 512 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) name: String,
    offer: Arc<Offer>,
    registers: Mutex<Registers>,
    ram: Arc<GuestRam>,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// None once it was retired.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Disk {
    /// Starts the worker of disk `index`.
    ///
    /// # Errors
    /// Of the kernel, with what was asked of it.
    pub(super) fn start(
        index: u16,
        spec: &DiskSpec,
        backend: Box<dyn BlockBackend>,
        (ram, watch, role): (&Arc<GuestRam>, &Arc<Watch>, Role),
    ) -> std::io::Result<Self> {
        let offer = Arc::new(Offer::new(backend.geometry(), spec));
        let shared = Arc::new(Shared::new()?);
        let parts = (ram.clone(), offer.clone(), shared.clone(), watch.clone());
        let worker = Worker::new(index, parts, backend, role)?;
        let (commands, received) = channel();
        let thread = thread::Builder::new()
            .name(format!("disk{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || worker.run(&received))?;
        Ok(Self {
            name: format!("disk {index} ({})", spec.source),
            offer,
            registers: Mutex::new(Registers::new(spec.queues)),
            ram: ram.clone(),
            shared,
            commands,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has the worker do `what`; its answer comes within microseconds, or never where the worker
    /// is gone.
    pub(super) fn ask<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Receiver<R> {
        let (answer, answered) = channel();
        let command = move |worker: &mut Worker| {
            let result = what(worker);
            worker.act();
            // Nobody need wait for it.
            let _ = answer.send(result);
        };
        if self.commands.send(Box::new(command)).is_ok() {
            let _ = self.shared.wake.write(1);
        }
        answered
    }

    /// A read of registers.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        let live = self.shared.live(registers.status);
        registers.read(offset, data, &self.offer, live);
    }

    /// A write of registers.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        if offset == QUEUE_NOTIFY {
            let _ = self.shared.kick.write(1);
            return;
        }
        // Held until it is done: effects come in the order of the writes.
        let mut registers = lock(&self.registers);
        match registers.write(offset, data, &self.offer) {
            Effect::None => {}
            Effect::Notify => drop(self.shared.kick.write(1)),
            Effect::Acknowledge(seen) => self.shared.acknowledge(seen),
            Effect::Start => {
                let queues = registers.queues.clone();
                let event_idx = registers.has(VIRTIO_RING_F_EVENT_IDX);
                let _ = self.ask(move |w| w.start(&queues, event_idx)).recv();
            }
            Effect::StopQueue(queue) => {
                let _ = self.ask(move |w| w.stop_queue(usize::from(queue))).recv();
            }
            Effect::Reset => {
                let _ = self.ask(Worker::stop_all).recv();
                self.shared.set_broken(false);
                self.shared.set_interrupts(0);
            }
        }
    }

    /// What travels.
    ///
    /// # Errors
    /// In words.
    pub(super) fn save(&self) -> Result<SavedDisk, String> {
        let registers = lock(&self.registers);
        let snapshot = self.ask(Worker::snapshot).recv();
        let snapshot = snapshot.map_err(|_| gone())??;
        Ok(SavedDisk::new(
            &registers,
            &self.shared,
            &self.offer,
            snapshot,
        ))
    }

    /// Checks what has come from another host.
    ///
    /// # Errors
    /// In words.
    pub(super) fn check<'a>(
        &self,
        saved: &'a SavedDisk,
    ) -> Result<(&'a SavedDisk, Adoption), String> {
        let unchecked = Unchecked {
            saved,
            ram: &self.ram,
            offer: &self.offer,
            queues: lock(&self.registers).queues.len(),
        };
        Ok((saved, Adoption::try_from(unchecked)?))
    }

    /// Takes what was checked.
    ///
    /// # Errors
    /// In words.
    pub(super) fn adopt(&self, (saved, adoption): (&SavedDisk, Adoption)) -> Result<(), String> {
        let mut registers = lock(&self.registers);
        self.ask(move |w| w.adopt(adoption))
            .recv()
            .map_err(|_| gone())??;
        *registers = saved.registers.clone();
        self.shared.set_broken(saved.broken);
        self.shared.set_interrupts(saved.interrupts);
        Ok(())
    }

    /// What KVM has to know: written to interrupt the guest; written by the guest's notification;
    /// number of queues.
    pub(super) fn lines(&self) -> (&EventFd, &EventFd, usize) {
        let queues = lock(&self.registers).queues.len();
        (&self.shared.irq, &self.shared.kick, queues)
    }

    /// Ends the worker, at once where nothing is in flight; otherwise it ends by itself.
    pub(super) fn retire(&self) {
        let Some(thread) = lock(&self.thread).take() else {
            return;
        };
        // One that is gone has ended, too.
        let idle = self.ask(Worker::retire).recv().unwrap_or(true);
        if idle {
            // A panic has nothing to add.
            let _ = thread.join();
        } else {
            tracing::info!(
                disk = self.name,
                "storage is still at work for a machine that is gone; the disk stays open until \
                 it is done"
            );
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.retire();
    }
}

fn gone() -> String {
    "its worker has ended: see the log".to_owned()
}
