//! `tcmuctl` as its users meet it: exit status, standard output, messages.
//!
//! The tree is one of plain folders. They cannot show what the kernel does on a change, so creating
//! for real is tested on a real kernel; here, creation gets as far as the first attribute.

mod commands;
mod machine;
mod saved;
