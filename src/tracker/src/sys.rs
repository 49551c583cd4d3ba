//! The kernel calls that no crate wraps: KVM_CLEAR_DIRTY_LOG, KVM_RESET_DIRTY_RINGS, userfaultfd.
//!
//! Layouts from include/uapi/linux/kvm.h and include/uapi/linux/userfaultfd.h.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use kvm_ioctls::VmFd;

const fn ioc(direction: u64, class: u64, number: u64, size: usize) -> libc::c_ulong {
    (direction << 30 | (size as u64) << 16 | class << 8 | number) as libc::c_ulong
}
const READ_WRITE: u64 = 3;
const READ: u64 = 2;
const NONE: u64 = 0;

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    num_pages: u32,
    first_page: u64,
    bitmap: u64,
}

const KVM_CLEAR_DIRTY_LOG: libc::c_ulong = ioc(READ_WRITE, 0xae, 0xc0, size_of::<ClearDirtyLog>());

/// Clears and write-protects the pages whose bits are set. `first_page` (relative to the slot) is
/// a multiple of 64, and so is `num_pages` unless it ends the slot; `bits` covers `num_pages`.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    num_pages: u32,
    bits: &[u64],
) -> io::Result<()> {
    if (bits.len() as u64) * 64 < u64::from(num_pages) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let arg = ClearDirtyLog {
        slot,
        num_pages,
        first_page,
        bitmap: bits.as_ptr() as u64,
    };
    // SAFETY: `arg` and the bitmap it points to outlive the call; the length was checked.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const arg) })
}

const KVM_RESET_DIRTY_RINGS: libc::c_ulong = ioc(NONE, 0xae, 0xc7, 0);

/// Has KVM take the entries that were given back, and protect their pages; how many it took.
/// A signal would interrupt it halfway: the calling thread gets none meanwhile.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> io::Result<u64> {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are filled by these calls before they are read, and outlive them; they
    // change what the calling thread has blocked.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    // SAFETY: takes no argument; what it does to the guest's pages is for KVM's users to know.
    let rc = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) };
    let answer = check(rc);
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    answer.map(|()| rc as u64)
}

/// Faults are resolved by the kernel, which only notes them.
pub(crate) const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// Write-protect faults are told to whoever reads the descriptor.
pub(crate) const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// They say which thread it was.
pub(crate) const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
/// A descriptor that anybody may open: accesses of the kernel are not told.
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
/// Messages taken from the descriptor by one read.
pub(crate) const MESSAGES_A_READ: usize = 16;
const USERFAULTFD_IOC_NEW: libc::c_ulong = ioc(NONE, 0xaa, 0x00, 0);

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}
/// `struct uffd_msg`, of which only page faults are used here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}
#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}
#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}
#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}
const UFFDIO_API: libc::c_ulong = ioc(READ_WRITE, 0xaa, 0x3f, size_of::<UffdioApi>());
const UFFDIO_REGISTER: libc::c_ulong = ioc(READ_WRITE, 0xaa, 0x00, size_of::<UffdioRegister>());
const UFFDIO_UNREGISTER: libc::c_ulong = ioc(READ, 0xaa, 0x01, size_of::<UffdioRange>());
const UFFDIO_WRITEPROTECT: libc::c_ulong =
    ioc(READ_WRITE, 0xaa, 0x06, size_of::<UffdioWriteprotect>());

/// A userfaultfd with the features asked for.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Uffd {
    /// Opens by the system call, or by /dev/userfaultfd where that is what is permitted. Kernel
    /// accesses (KVM's) must be handled too, so user-mode-only descriptors do not do.
    pub(crate) fn open(features: u64) -> io::Result<Self> {
        Self::with(Self::descriptor(0)?, features)
    }

    /// As [`Self::open`], for features with which the kernel answers faults by itself: then it does
    /// so for its own accesses too, and a descriptor will do that anybody may open.
    pub(crate) fn open_unanswered(features: u64) -> io::Result<Self> {
        match Self::descriptor(0) {
            Ok(full) => Self::with(full, features),
            Err(_) => Self::open_user_mode(features),
        }
    }

    /// The descriptor that anybody may open.
    pub(crate) fn open_user_mode(features: u64) -> io::Result<Self> {
        Self::with(Self::descriptor(UFFD_USER_MODE_ONLY)?, features)
    }

    fn descriptor(more: libc::c_int) -> io::Result<OwnedFd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | more;
        // SAFETY: takes no pointers.
        let rc = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let raw = if rc >= 0 {
            rc as libc::c_int
        } else {
            let refused = io::Error::last_os_error();
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/userfaultfd")
                .map_err(|_| refused)?;
            // SAFETY: takes flags by value.
            let rc = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
            check(rc)?;
            rc
        };
        // SAFETY: a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    fn with(fd: OwnedFd, features: u64) -> io::Result<Self> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        // SAFETY: `api` outlives the call and has the size in the request number.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Self { fd })
    }

    pub(crate) fn register_wp(&self, start: usize, len: usize) -> io::Result<()> {
        let mut arg = UffdioRegister {
            range: UffdioRange {
                start: start as u64,
                len: len as u64,
            },
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: `arg` outlives the call; registering changes no memory content.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut arg) })
    }

    pub(crate) fn unregister(&self, start: usize, len: usize) -> io::Result<()> {
        let arg = UffdioRange {
            start: start as u64,
            len: len as u64,
        };
        // SAFETY: `arg` outlives the call; unregistering changes no memory content.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER, &raw const arg) })
    }

    pub(crate) fn write_protect(&self, start: usize, len: usize) -> io::Result<()> {
        self.set_protection(start, len, UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Takes the protection off, and wakes whoever waits for it.
    pub(crate) fn release(&self, start: usize, len: usize) -> io::Result<()> {
        self.set_protection(start, len, 0)
    }

    /// Calls `fault` with the address of each write fault that is waiting, and the thread that
    /// waits; none is fine.
    pub(crate) fn read_faults(&self, mut fault: impl FnMut(usize, u32)) -> io::Result<()> {
        let mut messages = [UffdMsg::default(); MESSAGES_A_READ];
        let size = size_of_val(&messages);
        // SAFETY: the kernel writes whole messages into an array of that size.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), size) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        for message in messages.iter().take(n as usize / size_of::<UffdMsg>()) {
            let is_write = message.flags & UFFD_PAGEFAULT_FLAG_WP != 0;
            if message.event == UFFD_EVENT_PAGEFAULT && is_write {
                fault(message.address as usize, message.thread as u32);
            }
        }
        Ok(())
    }

    fn set_protection(&self, start: usize, len: usize, mode: u64) -> io::Result<()> {
        let mut arg = UffdioWriteprotect {
            range: UffdioRange {
                start: start as u64,
                len: len as u64,
            },
            mode,
        };
        loop {
            // SAFETY: `arg` outlives the call; protection changes no memory content.
            let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut arg) };
            match check(rc) {
                // The address space is changing under the call (man ioctl_userfaultfd): again.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::hint::spin_loop(),
                other => return other,
            }
        }
    }
}

/// Waits until `faults` or `other` can be read (which of them), or for `at_most`.
pub(crate) fn wait_readable(
    faults: &Uffd,
    other: &impl AsRawFd,
    at_most: Option<Duration>,
) -> io::Result<(bool, bool)> {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [entry(faults.as_raw_fd()), entry(other.as_raw_fd())];
    let timeout = at_most.map(|d| libc::timespec {
        tv_sec: d.as_secs() as libc::time_t,
        tv_nsec: i64::from(d.subsec_nanos()),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    let n = fds.len() as libc::nfds_t;
    // SAFETY: `fds` and the timeout outlive the call, and the length is given.
    let rc = unsafe { libc::ppoll(fds.as_mut_ptr(), n, timeout, std::ptr::null()) };
    match check(rc) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok((false, false)),
        Err(e) => Err(e),
        Ok(()) => Ok((fds[0].revents != 0, fds[1].revents != 0)),
    }
}

/// Has the calling thread run before ordinary ones, where that is permitted.
pub(crate) fn raise_priority() {
    let lowest_real_time = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter outlives the call; it changes the calling thread's scheduling only.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const lowest_real_time) };
}
