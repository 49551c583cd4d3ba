//! What the built-in workload tells its machine, whichever sort of machine that is.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmferry_guest::abi;

use crate::lock;

/// One heartbeat of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Arrival at the VM process, in nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Work done by the vCPU since its start, in units of the workload.
    pub work: u64,
}

/// Heartbeats kept for each vCPU: about two minutes.
const KEPT: usize = 128 * 1024;

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` outlives the call, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Heartbeats of one sort.
#[derive(Debug, Default)]
struct Beats {
    kept: Mutex<VecDeque<Beat>>,
    /// Work so far, beyond the 32 bits that a heartbeat carries.
    work: Mutex<u64>,
}

impl Beats {
    fn add(&self, low: u32) {
        let work = {
            let mut work = lock(&self.work);
            // The guest says what it likes: no number of its may be too much.
            *work = work.wrapping_add(u64::from(low.wrapping_sub(*work as u32)));
            *work
        };
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Beat {
            time_ns: monotonic_ns(),
            work,
        });
    }

    fn all(&self) -> Vec<Beat> {
        lock(&self.kept).iter().copied().collect()
    }
}

#[derive(Debug, Default)]
struct Vcpu {
    beats: Beats,
    disk: Beats,
    command: AtomicU32,
}

/// Keeps heartbeats, and hands commands to the workload.
#[derive(Debug)]
pub struct Recorder {
    vcpus: Vec<Vcpu>,
    /// vCPUs that have yet to say that they are ready.
    unready: AtomicU32,
}

/// What of a [`Recorder`] travels with its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecorderState {
    /// Work of each vCPU.
    pub work: Vec<u64>,
    /// Disk requests completed by each vCPU.
    pub disk: Vec<u64>,
    /// Command that each vCPU has yet to take.
    pub commands: Vec<u32>,
    /// vCPUs that have yet to say that they are ready.
    pub unready: u32,
}

impl Recorder {
    /// For `vcpus` vCPUs that have yet to begin.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        Self {
            vcpus: (0..vcpus).map(|_| Vcpu::default()).collect(),
            unready: AtomicU32::new(vcpus),
        }
    }

    /// A heartbeat of `vcpu` with the low 32 bits of its work.
    pub fn beat(&self, vcpu: u32, low: u32) {
        if let Some(v) = self.vcpus.get(vcpu as usize) {
            v.beats.add(low);
        }
    }

    /// A heartbeat of the disk IO of `vcpu` with the low 32 bits of its requests completed.
    pub fn disk_beat(&self, vcpu: u32, low: u32) {
        if let Some(v) = self.vcpus.get(vcpu as usize) {
            v.disk.add(low);
        }
    }

    /// A vCPU is ready; true when it was the last.
    pub fn ready(&self) -> bool {
        let left = |n: u32| n.checked_sub(1);
        self.unready
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, left)
            == Ok(1)
    }

    /// Whether every vCPU has said that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.unready.load(Ordering::Acquire) == 0
    }

    /// Takes the command that waits for `vcpu`.
    pub fn take_command(&self, vcpu: u32) -> u32 {
        self.vcpus
            .get(vcpu as usize)
            .map_or(abi::COMMAND_NONE, |v| {
                v.command.swap(abi::COMMAND_NONE, Ordering::AcqRel)
            })
    }

    /// Has every vCPU verify its share of RAM, and of the disk what no request is in flight for.
    pub fn verify(&self) {
        self.command(abi::COMMAND_VERIFY);
    }

    /// Has every vCPU wait for all its disk requests, however long, and verify its share of RAM
    /// and of the disk.
    pub fn verify_settled(&self) {
        self.command(abi::COMMAND_VERIFY_SETTLED);
    }

    fn command(&self, command: u32) {
        for v in &self.vcpus {
            v.command.store(command, Ordering::Release);
        }
    }

    /// The heartbeats kept, by vCPU, in order of time.
    #[must_use]
    pub fn beats(&self) -> Vec<Vec<Beat>> {
        self.vcpus.iter().map(|v| v.beats.all()).collect()
    }

    /// The heartbeats of disk IO kept, by vCPU, in order of time; their work is requests
    /// completed.
    #[must_use]
    pub fn disk_beats(&self) -> Vec<Vec<Beat>> {
        self.vcpus.iter().map(|v| v.disk.all()).collect()
    }

    /// What travels with the machine. Taken while the vCPUs stand still.
    #[must_use]
    pub fn save(&self) -> RecorderState {
        RecorderState {
            work: self.vcpus.iter().map(|v| *lock(&v.beats.work)).collect(),
            disk: self.vcpus.iter().map(|v| *lock(&v.disk.work)).collect(),
            commands: self
                .vcpus
                .iter()
                .map(|v| v.command.load(Ordering::Acquire))
                .collect(),
            unready: self.unready.load(Ordering::Acquire),
        }
    }

    /// Sets what has travelled with the machine.
    ///
    /// # Errors
    /// In words, where it does not fit the number of vCPUs.
    pub fn restore(&self, state: &RecorderState) -> Result<(), String> {
        let n = self.vcpus.len();
        let lengths = [state.work.len(), state.disk.len(), state.commands.len()];
        if lengths != [n; 3] || state.unready as usize > n {
            return Err("the workload's records do not fit the number of vCPUs".to_owned());
        }
        for (i, v) in self.vcpus.iter().enumerate() {
            *lock(&v.beats.work) = state.work[i];
            *lock(&v.disk.work) = state.disk[i];
            v.command.store(state.commands[i], Ordering::Release);
        }
        self.unready.store(state.unready, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_on_past_the_32_bits_of_a_heartbeat() {
        let recorder = Recorder::new(1);
        for low in [0xffff_fff0, 0x10, 0x20] {
            recorder.beat(0, low);
        }
        recorder.disk_beat(0, 7);
        let work: Vec<u64> = recorder.beats()[0].iter().map(|b| b.work).collect();
        assert_eq!(work, [0xffff_fff0, 0x1_0000_0010, 0x1_0000_0020]);
        let other = Recorder::new(1);
        other.restore(&recorder.save()).unwrap();
        other.beat(0, 0x30);
        assert_eq!(other.beats()[0][0].work, 0x1_0000_0030);
        other.disk_beat(0, 9);
        assert_eq!(other.disk_beats()[0][0].work, 9);
        assert!(Recorder::new(2).restore(&recorder.save()).is_err());
    }

    #[test]
    fn commands_are_taken_once_and_the_last_to_be_ready_is_noticed() {
        let recorder = Recorder::new(2);
        recorder.verify();
        assert_eq!(recorder.take_command(1), abi::COMMAND_VERIFY);
        assert_eq!(recorder.take_command(1), abi::COMMAND_NONE);
        recorder.verify_settled();
        assert_eq!(recorder.take_command(0), abi::COMMAND_VERIFY_SETTLED);
        assert!(!recorder.ready() && !recorder.is_ready());
        assert!(recorder.ready() && recorder.is_ready());
        assert!(!recorder.ready());
    }
}
