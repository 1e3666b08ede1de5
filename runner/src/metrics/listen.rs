//! Where the figures can be fetched.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path that fits into a socket's address (`sun_path` of unix(7)), in bytes.
const LONGEST_PATH: usize = 107;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system, for root alone.
    Unix(PathBuf),
    /// A port that only this machine reaches.
    Loopback(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_absolute = Path::new(path).is_absolute() && !path.ends_with('/');
            if !is_absolute || path.len() > LONGEST_PATH {
                return Err(format!(
                    "\"{text}\": behind unix: stands an absolute path of at most {LONGEST_PATH} bytes"
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("\"{text}\" is neither unix:/PATH nor ADDRESS:PORT, such as 127.0.0.1:9361")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{} is no loopback address: the figures name LUNs and images, and are given to \
                 whoever asks. Listen at 127.0.0.1, [::1] or a unix socket, and let a proxy that \
                 knows who may ask pass them on",
                address.ip()
            ));
        }
        if address.port() == 0 {
            return Err(format!("\"{text}\" has no port"));
        }
        Ok(Self::Loopback(address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_ask() {
        for good in [
            "unix:/run/tcmu-runner/metrics.sock",
            "127.0.0.1:9361",
            "127.1.2.3:1",
            "[::1]:9361",
        ] {
            let listen: Listen = good.parse().unwrap();
            assert_eq!(listen.to_string(), good);
        }
        for (bad, why) in [
            ("0.0.0.0:9361", "0.0.0.0 is no loopback address"),
            ("[::]:9361", ":: is no loopback address"),
            ("192.0.2.1:9361", "192.0.2.1 is no loopback address"),
            ("[::ffff:127.0.0.1]:9361", "no loopback address"),
            ("localhost:9361", "neither"),
            ("127.0.0.1", "neither"),
            ("9361", "neither"),
            ("", "neither"),
            ("127.0.0.1:0", "no port"),
            ("unix:metrics.sock", "absolute path"),
            ("unix:", "absolute path"),
            ("unix:/run/", "absolute path"),
        ] {
            let error = bad.parse::<Listen>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(LONGEST_PATH));
        assert!(long.parse::<Listen>().unwrap_err().contains("107 bytes"));
    }
}
