//! Serves TCMU LUNs: reactors, the SCSI device server, the daemon.
#![deny(missing_docs)]
