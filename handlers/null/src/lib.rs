//! Backstore that stores nothing: the cost of the protocol alone.
#![deny(missing_docs)]
