//! The only code that touches shared memory.
//!
//! The other side may change every byte at any time, so these rules hold here:
//!
//! - No reference to the memory ever exists, only raw pointers that live for one access.
//! - Callers name bytes by offset and length; each access is checked against the mapping's size.
//! - What is read is a copy. A caller that checks a value must check its copy and use that same
//!   copy: reading a second time may give something else.
//! - Words are loaded and stored as atomics, so that they never tear. Larger pieces are copied
//!   as bytes and may be torn while the other side writes: the ring's head and tail say whose turn
//!   it is, and nothing in this process relies on the other side honouring that.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// An access outside the mapping, or a word that is not naturally aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} are outside the {size} byte mapping, or not aligned")]
pub struct OutOfBounds {
    /// Where the access would have started, in bytes from the start of the mapping.
    pub offset: usize,
    /// How many bytes it would have touched.
    pub len: usize,
    /// The size of the mapping.
    pub size: usize,
}

/// A range of memory that is shared with the kernel, or plain memory used in its place.
///
/// Touching a page of a device's data area that no command owns raises SIGBUS: the segments of a
/// command may be used until it is completed, and not after that.
#[derive(Debug)]
pub struct Mapping {
    memory: MmapRaw,
    /// Burns down with what is written, and ends it.
    #[cfg(test)]
    fuse: Option<std::sync::Arc<tests::Fuse>>,
}

macro_rules! word {
    ($load:ident, $store:ident, $int:ty, $atomic:ty) => {
        #[doc = concat!("Loads the aligned `", stringify!($int), "` at `offset`, unordered.")]
        ///
        /// # Errors
        /// [`OutOfBounds`] also if `offset` is not a multiple of the word's size.
        #[inline]
        pub fn $load(&self, offset: usize) -> Result<$int, OutOfBounds> {
            let word = self.word::<$int>(offset)?;
            // SAFETY: `word` is aligned and inside the mapping, which lives as long as `self`.
            Ok(unsafe { <$atomic>::from_ptr(word) }.load(Ordering::Relaxed))
        }

        #[doc = concat!("Stores the aligned `", stringify!($int), "` at `offset`, unordered.")]
        ///
        /// # Errors
        /// [`OutOfBounds`] also if `offset` is not a multiple of the word's size.
        #[inline]
        pub fn $store(&self, offset: usize, value: $int) -> Result<(), OutOfBounds> {
            let word = self.word::<$int>(offset)?;
            #[cfg(test)]
            if self.is_burnt() {
                return Ok(());
            }
            // SAFETY: `word` is aligned and inside the mapping, which lives as long as `self`.
            unsafe { <$atomic>::from_ptr(word) }.store(value, Ordering::Relaxed);
            Ok(())
        }
    };
}

impl Mapping {
    /// Maps the first `len` bytes of `fd`, shared, for reading and writing.
    ///
    /// A uio device accepts exactly the size that it states in `maps/map0/size`.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` if `len` is 0.
    pub fn map(fd: impl AsFd, len: usize) -> io::Result<Self> {
        reject_empty(len)?;
        let memory = MmapOptions::new()
            .len(len)
            .map_raw(fd.as_fd().as_raw_fd())?;
        Ok(Self::new(memory))
    }

    /// Plain memory, zeroed and page-aligned: for buffers of our own and for tests.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidInput` if `len` is 0.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        reject_empty(len)?;
        let memory = MmapRaw::from(MmapMut::map_anon(len)?);
        Ok(Self::new(memory))
    }

    fn new(memory: MmapRaw) -> Self {
        Self {
            memory,
            #[cfg(test)]
            fuse: None,
        }
    }

    /// Puts plain memory in the place of what is mapped, at the same addresses.
    ///
    /// For a device that goes away while an operation that nobody can end still uses its memory:
    /// touching pages that the device has given up would be SIGBUS. What is written from now on
    /// reaches nobody, and what is read is zero at first.
    ///
    /// # Errors
    /// Those of mmap(2); nothing has changed then.
    pub fn let_go(&self) -> io::Result<()> {
        // SAFETY: the range is exactly the one that `memory` owns and unmaps in the end. It stays
        // readable and writable at the same addresses, and no reference to it exists.
        let replaced = unsafe {
            libc::mmap(
                self.as_ptr().cast(),
                self.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if replaced == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// The address of the first byte, for I/O engines that pass [`check`](Self::check)ed ranges
    /// to the kernel. Do not make references from it.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    /// Says whether `len` bytes at `offset` are inside the mapping.
    ///
    /// # Errors
    /// [`OutOfBounds`] if they are not.
    #[inline]
    pub fn check(&self, offset: usize, len: usize) -> Result<(), OutOfBounds> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(OutOfBounds {
                offset,
                len,
                size: self.len(),
            }),
        }
    }

    /// Copies bytes at `offset` out of the mapping.
    ///
    /// # Errors
    /// [`OutOfBounds`], and `to` is unchanged.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        let from = self.range(offset, to.len())?;
        // SAFETY: `from` is inside the mapping for `to.len()` bytes. `to` is a Rust slice and no
        // Rust reference to the mapping exists, so the two do not overlap. Other writers of this
        // memory are outside this process, or ordered by the ring's head and tail.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        // Keeps the compiler from reading the shared bytes again in place of the copy.
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies bytes into the mapping at `offset`.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is written.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let to = self.range(offset, from.len())?;
        #[cfg(test)]
        let from = self.unburnt(from);
        // SAFETY: `to` is inside the mapping for `from.len()` bytes. `from` is a Rust slice and no
        // Rust reference to the mapping exists, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Sets `len` bytes at `offset` to `byte`.
    ///
    /// # Errors
    /// [`OutOfBounds`], and nothing is written.
    #[inline]
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), OutOfBounds> {
        let to = self.range(offset, len)?;
        #[cfg(test)]
        if self.is_burnt() {
            return Ok(());
        }
        // SAFETY: `to` is inside the mapping for `len` bytes, and no Rust reference to it exists.
        unsafe { ptr::write_bytes(to, byte, len) };
        Ok(())
    }

    word!(load_u8, store_u8, u8, AtomicU8);
    word!(load_u16, store_u16, u16, AtomicU16);
    word!(load_u32, store_u32, u32, AtomicU32);
    word!(load_u64, store_u64, u64, AtomicU64);

    /// Loads the `u32` at `offset`; later reads see what the other side wrote before its release.
    ///
    /// # Errors
    /// [`OutOfBounds`] also if `offset` is not a multiple of 4.
    #[inline]
    pub fn load_acquire_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        let word = self.word::<u32>(offset)?;
        // SAFETY: `word` is aligned and inside the mapping, which lives as long as `self`.
        Ok(unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire))
    }

    /// Stores the `u32` at `offset`; the other side sees it after all that was written before.
    ///
    /// # Errors
    /// [`OutOfBounds`] also if `offset` is not a multiple of 4.
    #[inline]
    pub fn store_release_u32(&self, offset: usize, value: u32) -> Result<(), OutOfBounds> {
        let word = self.word::<u32>(offset)?;
        #[cfg(test)]
        if self.is_burnt() {
            return Ok(());
        }
        // SAFETY: `word` is aligned and inside the mapping, which lives as long as `self`.
        unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release);
        Ok(())
    }

    /// Stores the `u64` at `offset`; whoever sees it sees all that was written before.
    ///
    /// # Errors
    /// [`OutOfBounds`] also if `offset` is not a multiple of 8.
    #[inline]
    pub fn store_release_u64(&self, offset: usize, value: u64) -> Result<(), OutOfBounds> {
        let word = self.word::<u64>(offset)?;
        #[cfg(test)]
        if self.is_burnt() {
            return Ok(());
        }
        // SAFETY: `word` is aligned and inside the mapping, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn range(&self, offset: usize, len: usize) -> Result<*mut u8, OutOfBounds> {
        self.check(offset, len)?;
        Ok(self.as_ptr().wrapping_add(offset))
    }

    #[inline]
    fn word<T>(&self, offset: usize) -> Result<*mut T, OutOfBounds> {
        let word = self.range(offset, size_of::<T>())?.cast::<T>();
        if word.is_aligned() {
            Ok(word)
        } else {
            Err(OutOfBounds {
                offset,
                len: size_of::<T>(),
                size: self.len(),
            })
        }
    }
}

fn reject_empty(len: usize) -> io::Result<()> {
    if len == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a mapping cannot be empty",
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Kills a process, as far as memory is concerned: lets so many stores through and none after
    /// them. Bytes are stored eight at a time.
    #[derive(Debug)]
    pub(crate) struct Fuse {
        left: AtomicUsize,
    }

    impl Fuse {
        pub(crate) fn new(stores: usize) -> Arc<Self> {
            let left = AtomicUsize::new(stores);
            Arc::new(Self { left })
        }

        pub(crate) fn left(&self) -> usize {
            self.left.load(Ordering::Relaxed)
        }

        /// Burns the fuse down by so many stores; returns how many of them go through.
        fn burn(&self, stores: usize) -> usize {
            let through = self.left().min(stores);
            self.left.fetch_sub(through, Ordering::Relaxed);
            through
        }
    }

    impl Mapping {
        /// This mapping as one process uses it that the fuse kills.
        pub(crate) fn with_fuse(mut self, fuse: &Arc<Fuse>) -> Self {
            self.fuse = Some(Arc::clone(fuse));
            self
        }

        pub(super) fn is_burnt(&self) -> bool {
            self.fuse.as_ref().is_some_and(|fuse| fuse.burn(1) == 0)
        }

        pub(super) fn unburnt<'a>(&self, from: &'a [u8]) -> &'a [u8] {
            match &self.fuse {
                Some(fuse) => &from[..from.len().min(8 * fuse.burn(from.len().div_ceil(8)))],
                None => from,
            }
        }
    }

    fn page() -> Mapping {
        Mapping::anonymous(4096).unwrap()
    }

    #[test]
    fn ranges_must_end_inside_the_mapping() {
        let map = page();
        assert_eq!(map.check(0, 4096), Ok(()));
        assert_eq!(map.check(4096, 0), Ok(()));
        for (offset, len) in [
            (0, 4097),
            (4096, 1),
            (4097, 0),
            (1, usize::MAX),
            (usize::MAX, 1),
        ] {
            assert_eq!(
                map.check(offset, len),
                Err(OutOfBounds {
                    offset,
                    len,
                    size: 4096
                }),
                "{len} bytes at {offset}"
            );
        }
    }

    #[test]
    fn refused_accesses_change_nothing() {
        let map = page();
        let mut copy = [7; 8];
        map.read(4090, &mut copy).unwrap_err();
        assert_eq!(copy, [7; 8]);
        map.write(4090, &[1; 8]).unwrap_err();
        map.fill(4090, 8, 1).unwrap_err();
        map.store_u64(4092, u64::MAX).unwrap_err();
        let mut end = [0xff; 6];
        map.read(4090, &mut end).unwrap();
        assert_eq!(end, [0; 6]);
    }

    #[test]
    fn words_must_be_aligned() {
        let map = page();
        map.load_u16(1).unwrap_err();
        map.load_u32(2).unwrap_err();
        map.store_u64(4, 0).unwrap_err();
        map.load_acquire_u32(6).unwrap_err();
        map.store_release_u32(6, 1).unwrap_err();
        map.load_u8(1).unwrap();
    }

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let map = page();
        map.store_u16(2, 0x1234).unwrap();
        map.store_release_u32(4, 0xdead_beef).unwrap();
        let mut bytes = [0; 8];
        map.read(0, &mut bytes).unwrap();
        assert_eq!(bytes[2..4], 0x1234_u16.to_ne_bytes());
        assert_eq!(bytes[4..], 0xdead_beef_u32.to_ne_bytes());
        map.fill(4, 4, 0x55).unwrap();
        assert_eq!(map.load_acquire_u32(4), Ok(0x5555_5555));
    }

    #[test]
    fn two_mappings_of_a_file_share_their_bytes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let (one, two) = (
            Mapping::map(file.as_fd(), 8192).unwrap(),
            Mapping::map(file.as_fd(), 8192).unwrap(),
        );
        one.write(5000, b"shared").unwrap();
        let mut seen = [0; 6];
        two.read(5000, &mut seen).unwrap();
        assert_eq!(&seen, b"shared");
    }

    #[test]
    fn a_mapping_that_was_let_go_reaches_nobody() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let (one, two) = (
            Mapping::map(file.as_fd(), 8192).unwrap(),
            Mapping::map(file.as_fd(), 8192).unwrap(),
        );
        one.store_u32(4096, 1).unwrap();
        one.let_go().unwrap();
        assert_eq!(one.load_u32(4096), Ok(0));
        one.store_u32(4096, 2).unwrap();
        assert_eq!((one.load_u32(4096), two.load_u32(4096)), (Ok(2), Ok(1)));
        // The file may even be gone.
        file.set_len(0).unwrap();
        one.store_u32(0, 3).unwrap();
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        let error = Mapping::anonymous(0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
