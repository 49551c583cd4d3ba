//! How a vCPU thread is called out of KVM_RUN: a flag that KVM looks at before it enters the
//! guest, and a signal that takes it out. The flag first: then the signal cannot come too early.

use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::MachineError;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Kick {
    /// `immediate_exit` in the page that a vCPU shares with KVM.
    flag: NonNull<AtomicU8>,
    /// Kernel id of the thread that runs it; 0 where it has yet to start.
    thread: AtomicI32,
}

// SAFETY: `flag` points to an atomic in a mapping that lives as long as the vCPU it was made of,
// whose owner also owns this value.
unsafe impl Send for Kick {}
// SAFETY: as above; all access is atomic.
unsafe impl Sync for Kick {}

impl Kick {
    /// For `vcpu`, which must live as long as the new value: keep them together.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        let flag = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit);
        Self {
            flag: flag.cast(),
            thread: AtomicI32::new(0),
        }
    }

    /// Says that the calling thread is the one that runs the vCPU.
    pub(super) fn attach(&self) {
        // SAFETY: takes no arguments and cannot fail.
        let id = unsafe { libc::gettid() };
        self.thread.store(id, Ordering::Release);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the mapping is alive (see `of`); an AtomicU8 is laid out as the u8 that is there.
        unsafe { self.flag.as_ref() }
    }

    /// Has KVM_RUN return at once, now or the next time.
    pub(super) fn kick(&self) {
        self.flag().store(1, Ordering::Release);
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            // SAFETY: sends a signal that has a handler within this process. If the thread has
            // ended, there is nobody to receive it.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
        }
    }

    /// Lets KVM_RUN enter the guest again. To be called *before* looking at what is wanted: a
    /// kick that comes later is not lost, and one that came earlier has its wish seen.
    pub(super) fn clear(&self) {
        self.flag().swap(0, Ordering::AcqRel);
    }
}

extern "C" fn on_signal(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// Gives the signal a handler, once for the process: without one it would end it.
///
/// # Errors
/// [`MachineError::Threads`].
pub(super) fn install_handler() -> Result<(), MachineError> {
    static INSTALLED: OnceLock<Result<(), c_int>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), on_signal).map_err(|e| e.errno()))
        .map_err(|errno| {
            let error = std::io::Error::from_raw_os_error(errno);
            MachineError::Threads(format!("cannot handle signal {}: {error}", SIGRTMIN()))
        })
}
