//! Boots a real kernel and runs a program in it.
#![deny(missing_docs)]
