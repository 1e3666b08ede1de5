//! Sparse backstore in memory, for tests.
#![deny(missing_docs)]
