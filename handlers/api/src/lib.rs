//! What a backstore of the TCMU runner implements.
#![deny(missing_docs)]
