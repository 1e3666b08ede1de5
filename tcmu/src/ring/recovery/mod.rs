//! The in-flight table: what lets a new process go on where another was killed.
//!
//! A command ring does not tell which commands are outstanding once completions went out of order:
//! a response stands where another command's request was. So whatever is fetched is noted in a
//! [`Table`], a mapped file that outlives the process, and so is what the next publication ends.
//! [`Ring::with_table`](super::Ring::with_table) compares the table with the mailbox and goes on:
//! the ring is not reset, no command fails, and none is completed twice.
//!
//! # What is written when
//! The table has a record for every command id, with a *state*: FREE, IN_FLIGHT, or a number. And it
//! has the number *n* of the last publication that was begun, with the `cmd_tail` that it leads to
//! and the one before.
//!
//! 1. **Fetch.** The record of the command's id is written, while its state says that it is not in
//!    use; then the state becomes IN_FLIGHT. From here on the entry in the ring may be overwritten.
//! 2. **Completion.** The state becomes *n* + 1: the publication that will end the command. Then the
//!    response is written into the oldest entry that has none.
//! 3. **Publication.** The new tail is written beside the present one; then *n* becomes *n* + 1; then
//!    `cmd_tail` is stored.
//!
//! Nothing is to be done after a publication: states up to *n* mean the same as FREE as soon as the
//! tail is stored.
//!
//! # Why that is enough
//! A process that is killed stops between two of its instructions. All stores before that point
//! reach the memory, none after it do, so a successor sees the table and the ring as of one moment in
//! program order. Only the compiler must be kept from moving stores, which release stores and
//! compiler fences do. The kernel is not killed; it reads what lies before `cmd_tail` and writes
//! what lies behind `cmd_head`, at any time.
//!
//! Let *T* be `cmd_tail` as the successor finds it. It can only be the tail of publication *n* (then
//! that one took place: *p* = *n*) or the one before (then it did not: *p* = *n* - 1). The two
//! differ, because a publication that moves nothing is not made and a ring is never quite full. Any
//! other *T* is not this table's ring.
//!
//! **The outstanding commands that were fetched are the records with state IN_FLIGHT or a number
//! greater than *p*.** At each point where the process may have been killed:
//!
//! - *Before the state became IN_FLIGHT* the record counts as unused: it was so before, because the
//!   kernel gives an id to a new command only after it has consumed the old one's completion, which
//!   it sees only after the publication took place, so the old state is at most *p*. The entry in the
//!   ring is untouched, as only fetched entries are ever written to, and will be fetched.
//! - *After that* the record is whole, and nothing of it is written again until the id comes back.
//! - *Between completion and publication*: the state is *n* + 1, greater than *p* whichever *p* is.
//!   The command counts as outstanding and runs again. The kernel has not seen the response, which
//!   lies behind *T*, and a new response will overwrite it.
//! - *While the new tail is written*: its place is that of publication *n* - 1, which is compared with
//!   *T* only if *T* is not the tail of *n*. But it is: the last publication took place, or a
//!   predecessor's was begun anew under its old number, see below.
//! - *Between n becoming n + 1 and the store to `cmd_tail`*: *T* is the tail before, so *p* = *n* - 1,
//!   and what this publication would have ended is outstanding.
//! - *After the store to `cmd_tail`*, kicked or not: *p* = *n*, and what was published is not
//!   outstanding. The kernel may have consumed it or not; it will, since the successor kicks first of
//!   all. An id that the kernel uses again has its record written again by step 1.
//!
//! **The entries that were fetched are the first ones behind *T*, as many command entries as there
//! are outstanding fetched commands.** Each publication consumes as many entries as it ends commands,
//! and a response leaves an entry's length and opcode alone, so they can be walked over. Behind
//! them lies what was not fetched, intact. Padding and task management notices at the border are
//! fetched again, which does no harm.
//!
//! A successor that finds *p* = *n* - 1 begins publication *n* anew: it sets the states of all that is
//! outstanding back to IN_FLIGHT, and its own first publication has the number *p* + 1 = *n*. If it is
//! killed meanwhile, the next one finds the same as it did: IN_FLIGHT and *n* are both greater than *p*.
//!
//! # What runs again
//! The commands that are outstanding, in the order in which they were fetched. Their data are where
//! they were: the kernel keeps a command's part of the data area until it is completed.
//!
//! Reads, writes, flushes, unmaps, and all that do the same when done twice may simply run again. A
//! write *A* may have been done, and a later write *B* to the same blocks may have been done and
//! acknowledged, before *A* is done again over it. That is allowed because *A* was outstanding for
//! all the time that *B* was: had *A* been completed before *B* was sent, its completion would have
//! been published and *A* would not run again. And of two SIMPLE commands that are outstanding at the
//! same time either may take effect last (SAM-5, 8.6.2; TCMU hands no task attributes on, so all are
//! SIMPLE). An initiator that wants *B* to last sends it after *A* has ended. What happens is what its
//! own retry of *A* would do after a ring reset, less the error.
//!
//! A reader may so see the blocks change from *A* to *B* and back to *A*, as with that retry: what a
//! write does to its blocks is settled only when it ends.
//!
//! Commands that cannot simply run again note their *phase* ([`Phases`]) before the step that makes
//! the difference, and look at it when they run again. COMPARE AND WRITE notes that the blocks
//! were equal before it writes the first of them, and does not compare again. Such a command must
//! run before all others, as it holds its blocks already: see [`Interrupted::phase`].
//!
//! Completion order is kept: if *X* was completed before *Y*, no publication ends *Y* without *X*.
//! So what a command did while it excluded others from its blocks (COMPARE AND WRITE, ORWRITE) has
//! been published before or together with what came after it.
//!
//! # What it does not cover
//! A power failure or the kernel's end: neither ring nor /run survives. Kernels without out-of-order
//! completion: their rings have no table. A ring that someone else has reset or served: the table
//! does not match then, and the ring has to be reset.

mod error;
mod layout;
mod record;
mod table;

pub use self::error::Mismatch;
pub use self::table::{Interrupted, Notes, Owner, Phases, Table};
