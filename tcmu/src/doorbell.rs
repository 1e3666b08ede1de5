//! How the two sides of a ring wake each other.

use std::io;
use std::os::fd::BorrowedFd;

/// The signal between the kernel and the server of a ring.
///
/// [`Uio`](crate::uio::Uio) is the real one; a test may put an eventfd in its place.
pub trait Doorbell: Send {
    /// The descriptor that becomes readable when the kernel has put commands into the ring.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Takes the kernel's signal back, so that the descriptor is readable only after the next
    /// one. Call it before looking into the ring: a command that arrives in between is then
    /// either seen or signalled again.
    ///
    /// # Errors
    /// EIO where the device is gone. That no signal was there is not an error.
    fn clear(&self) -> io::Result<()>;

    /// Tells the kernel that completed commands were published.
    ///
    /// One call serves all commands published before it.
    ///
    /// # Errors
    /// EIO where the device is gone.
    fn kick(&self) -> io::Result<()>;
}
