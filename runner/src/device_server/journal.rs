//! What a unit must not forget when its process ends.

use std::fmt::Debug;
use std::io;

/// Keeps one short text for a logical unit, beyond the end of the process and of the machine's power.
///
/// A FORMAT UNIT or SANITIZE that was interrupted has to go on, or to be seen to have failed: until it
/// has succeeded, the journal says what is to be done.
pub trait Journal: Debug + Send + Sync + 'static {
    /// The text that was kept last, if there is one. May block.
    ///
    /// # Errors
    /// If it cannot be told.
    fn load(&self) -> io::Result<Option<String>>;

    /// Keeps `text` in place of what was kept, or nothing; it is durable when this returns. May block.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn store(&self, text: Option<&str>) -> io::Result<()>;
}
