//! Guest memory that an operation reads or writes.

use std::fmt;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmferry_memory::GuestRam;

/// Runs of guest memory, in the order of the disk's bytes. Keeps the RAM mapped: the kernel may
/// write there until the operation has ended, whatever became of the machine.
#[derive(Clone)]
pub struct Buffers {
    ram: Option<Arc<GuestRam>>,
    runs: Vec<Run>,
    len: u64,
}

/// Guest-physical address and length of a run that lies in one region, and where it is mapped.
#[derive(Clone, Copy, Debug)]
struct Run {
    gpa: u64,
    hva: usize,
    len: usize,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} bytes in {})", self.len, self.runs.len())
    }
}

impl Buffers {
    /// No memory.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            ram: None,
            runs: Vec::new(),
            len: 0,
        }
    }

    /// The runs of `ram` at these guest-physical addresses with these lengths.
    ///
    /// # Errors
    /// The first address that is not RAM for its whole length.
    pub fn new(
        ram: &Arc<GuestRam>,
        runs: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<Self, u64> {
        let (mut checked, mut total) = (Vec::new(), 0);
        for (gpa, len) in runs.into_iter().filter(|(_, len)| *len > 0) {
            let len = len as usize;
            let slice = ram
                .guest_memory()
                .get_slice(GuestAddress(gpa), len)
                .map_err(|_| gpa)?;
            checked.push(Run {
                gpa,
                hva: slice.ptr_guard().as_ptr() as usize,
                len,
            });
            total += len as u64;
        }
        Ok(Self {
            ram: Some(ram.clone()),
            runs: checked,
            len: total,
        })
    }

    /// Bytes of all runs.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The runs as the kernel takes them: valid for as long as this lives. The guest may write
    /// there too, any time: nothing in Rust may be made to point there.
    #[must_use]
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let iovec = |run: &Run| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(run.hva),
            iov_len: run.len,
        };
        self.runs.iter().map(iovec).collect()
    }

    /// Copies the bytes from `from` on, of all runs one after another, into `out`; fills it or
    /// goes to the end. Returns how many.
    pub fn copy_out(&self, from: u64, out: &mut [u8]) -> usize {
        self.each(from, out.len(), |slice, at| {
            slice.copy_to(&mut out[at..at + slice.len()]);
        })
    }

    /// Copies `data` over the bytes from `from` on, up to the end. Returns how many.
    pub fn copy_in(&self, from: u64, data: &[u8]) -> usize {
        self.each(from, data.len(), |slice, at| {
            slice.copy_from(&data[at..at + slice.len()]);
        })
    }

    /// The kernel has written there, behind the back of everybody who tracks writes: to be called
    /// before anybody is told of the operation's end. DMA into a page that was protected meanwhile
    /// raises no fault.
    pub fn note_written(&self) {
        self.each(0, usize::MAX, |slice, _| {
            slice.bitmap().mark_dirty(0, slice.len());
        });
    }

    fn each(
        &self,
        from: u64,
        most: usize,
        mut with: impl FnMut(
            VolatileSlice<'_, vm_memory::bitmap::BS<'_, vm_memory::bitmap::AtomicBitmap>>,
            usize,
        ),
    ) -> usize {
        let Some(ram) = &self.ram else {
            return 0;
        };
        let (mut skip, mut done) = (usize::try_from(from).unwrap_or(usize::MAX), 0);
        for run in &self.runs {
            if skip >= run.len {
                skip -= run.len;
                continue;
            }
            let len = (run.len - skip).min(most - done);
            let at = GuestAddress(run.gpa + skip as u64);
            // Checked when it was made; RAM does not change.
            if let Ok(slice) = ram.guest_memory().get_slice(at, len)
                && len > 0
            {
                with(slice, done);
            }
            (skip, done) = (0, done + len);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_all_runs_and_are_noted() {
        let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
        let buffers = Buffers::new(&ram, [(4000, 200), (0, 0), (20480, 50)]).unwrap();
        assert_eq!((buffers.len(), buffers.iovecs().len()), (250, 2));
        let data: Vec<u8> = (0..250).map(|i| i as u8).collect();
        assert_eq!(buffers.copy_in(0, &data[..100]), 100);
        assert_eq!(buffers.copy_in(100, &data[100..]), 150);
        let mut back = [0; 300];
        assert_eq!(buffers.copy_out(10, &mut back), 240);
        assert_eq!(back[..240], data[10..]);
        let noted = || {
            let mut pages = Vec::new();
            ram.take_vmm_writes(|run| pages.extend(run.frames()));
            pages
        };
        assert_eq!(noted(), [0, 1, 5]);
        buffers.note_written();
        assert_eq!(noted(), [0, 1, 5]);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
        assert_eq!(
            Buffers::new(&ram, [(0, 1), (4 << 20, 1)]).unwrap_err(),
            4 << 20
        );
        assert!(Buffers::new(&ram, [((4 << 20) - 1, 2)]).is_err());
        assert!(Buffers::new(&ram, [(u64::MAX, 2)]).is_err());
    }
}
