//! Memory of ours that the kernel reads or writes in place of the guest's.

/// Zeros at first, aligned as was asked for. Its bytes do not move with it.
#[derive(Debug)]
pub(super) struct Aligned {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes at a multiple of `align`, a power of two.
    pub(super) fn new(len: usize, align: usize) -> Self {
        let storage = vec![0; len + align];
        let address = storage.as_ptr() as usize;
        Self {
            start: address.next_multiple_of(align) - address,
            len,
            storage,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }

    /// For the kernel to write to. Nobody else may look before it is done.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes_mut().as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_as_long_as_asked_for() {
        for (len, align) in [(512, 512), (100, 4096), (4096, 4096), (1, 1)] {
            let mut buffer = Aligned::new(len, align);
            assert_eq!(buffer.as_mut_ptr() as usize % align, 0);
            assert_eq!(buffer.bytes_mut().len(), len);
        }
    }
}
