//! The figures for Prometheus: text format 0.0.4 at `/metrics`, where the configuration says.
//!
//! A thread of its own waits for connections, and hands each to another one: none of them is one that
//! serves LUNs, and reading figures never makes a reactor wait.

mod exposition;
mod http;
mod listen;
mod server;

pub use self::listen::Listen;
pub(crate) use self::server::Server;
