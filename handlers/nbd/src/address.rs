//! Where a server is.

use std::fmt;
use std::path::PathBuf;

use tcmu_handler::{Error, ErrorKind, Result};

use crate::protocol::PORT;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// What a URI can say beside the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) export: Option<String>,
    /// TLS is demanded.
    pub(crate) tls: bool,
    /// The folder with the certificates.
    pub(crate) certificates: Option<String>,
    /// Who must be named in the server's certificate.
    pub(crate) hostname: Option<String>,
}

impl Address {
    /// The server of a configuration's target, and what else the target says.
    pub(crate) fn parse(target: &str) -> Result<(Self, Wish)> {
        if let Some((scheme, rest)) = target.split_once("://") {
            return uri(scheme, rest);
        }
        let address = match target.strip_prefix("unix:") {
            Some(path) => socket(path)?,
            None if target.starts_with('/') => socket(target)?,
            None => tcp(target)?,
        };
        Ok((address, Wish::default()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidConfig, context)
}

fn socket(path: &str) -> Result<Address> {
    /// Of sun_path, with its last zero: unix(7).
    const LONGEST: usize = 108;
    let usable = path.starts_with('/') && path.len() < LONGEST && !path.contains('\0');
    match usable {
        true => Ok(Address::Unix(path.into())),
        false => Err(invalid(format!(
            "\"{path}\" is no absolute path of a Unix socket, of less than {LONGEST} bytes"
        ))),
    }
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn tcp(text: &str) -> Result<Address> {
    let wrong = || {
        invalid(format!(
            "\"{text}\" names no NBD server: write nbd/unix:/path/of/socket, nbd/host:port, or nbd/ \
             and an NBD URI"
        ))
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or_else(wrong)?;
            match behind.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if behind.is_empty() => (host, None),
                None => return Err(wrong()),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => PORT,
        Some(port) => port.parse().map_err(|_| wrong())?,
    };
    let names_a_host = |character: char| {
        character.is_alphanumeric() || matches!(character, '.' | '-' | '_' | ':' | '%')
    };
    if host.is_empty() || port == 0 || !host.chars().all(names_a_host) {
        return Err(wrong());
    }
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

/// An NBD URI: doc/uri.md of the NBD project. The parameters for TLS are libnbd's.
fn uri(scheme: &str, rest: &str) -> Result<(Address, Wish)> {
    let (is_unix, tls) = match scheme {
        "nbd" => (false, false),
        "nbds" => (false, true),
        "nbd+unix" => (true, false),
        "nbds+unix" => (true, true),
        other => return Err(invalid(format!("\"{other}://\" begins no NBD URI"))),
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = match place.split_once('/') {
        Some((authority, export)) => (authority, Some(decode(export)?)),
        None => (place, None),
    };
    let mut wish = Wish {
        export: export.filter(|export| !export.is_empty()),
        tls,
        ..Wish::default()
    };
    let mut path = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let place = match name {
            "socket" if is_unix => Some(&mut path),
            "tls-certificates" if tls => Some(&mut wish.certificates),
            "tls-hostname" if tls => Some(&mut wish.hostname),
            _ => None,
        };
        let place = place.filter(|place| place.is_none() && !value.is_empty());
        let place = place.ok_or_else(|| {
            invalid(format!(
                "parameter \"{name}\" in the NBD URI: there are socket with nbd+unix and nbds+unix, and \
                 tls-certificates and tls-hostname with nbds and nbds+unix, each with a value, and once"
            ))
        })?;
        *place = Some(decode(value)?);
    }
    let address = match (is_unix, path) {
        (true, Some(path)) if authority.is_empty() => socket(&path)?,
        (true, _) => {
            return Err(invalid(
                "an NBD URI of a Unix socket is nbd+unix:///EXPORT?socket=/path/of/socket"
                    .to_owned(),
            ));
        }
        (false, _) => tcp(authority)?,
    };
    Ok((address, wish))
}

/// Undoes the percent-encoding of RFC 3986, section 2.1.
fn decode(text: &str) -> Result<String> {
    let wrong = || invalid(format!("\"{text}\" is not encoded as a part of a URI"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        let value = digit(0).zip(digit(1)).map(|(high, low)| high << 4 | low);
        bytes.push(value.ok_or_else(wrong)? as u8);
        rest = behind;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn every_way_to_name_a_server_is_understood() {
        let unix = || Address::Unix("/run/x.sock".into());
        for (target, address, export) in [
            ("unix:/run/x.sock", unix(), None),
            ("/run/x.sock", unix(), None),
            ("nbd+unix:///?socket=/run/x.sock", unix(), None),
            (
                "nbd+unix:///a%20b?socket=%2Frun%2fx.sock",
                unix(),
                Some("a b"),
            ),
            ("server", host("server", PORT), None),
            ("server:1234", host("server", 1234), None),
            ("10.0.0.1:1", host("10.0.0.1", 1), None),
            ("[::1]", host("::1", PORT), None),
            ("[fe80::1%eth0]:99", host("fe80::1%eth0", 99), None),
            ("nbd://server", host("server", PORT), None),
            ("nbd://server:5/", host("server", 5), None),
            ("nbd://[::1]:5//disk", host("::1", 5), Some("/disk")),
        ] {
            let (found, wish) = Address::parse(target).unwrap();
            let expected = Wish {
                export: export.map(str::to_owned),
                ..Wish::default()
            };
            assert_eq!((&found, wish), (&address, expected), "{target}");
            // What is shown can be written.
            assert_eq!(Address::parse(&found.to_string()).unwrap().0, address);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("/{}", "x".repeat(107));
        for target in [
            "",
            ":10809",
            "server:",
            "server:0",
            "server:99999",
            "server:nbd",
            "a b",
            "user@server",
            "server/export",
            "[::1",
            "[::1]5",
            "unix:",
            "unix:relative",
            "nbd://",
            "nbd://user@server/",
            "nbd://server/?tls=x",
            "nbd://server/?socket=/x",
            "nbd+unix:///x",
            "nbd+unix://host/x?socket=/x",
            "nbd+unix:///?socket=/x&socket=/y",
            "nbd+unix:///?socket=relative",
            "nbd+unix:///%2?socket=/x",
            "nbd+unix:///%zz?socket=/x",
            "nbd+unix:///%ff?socket=/x",
            "nbd://server/?tls-hostname=x",
            "nbds://server/?tls-hostname=",
            "nbds://server/?tls-hostname=x&tls-hostname=x",
            "nbds://server/?tls-psk-file=/x",
            "nbds://server/?socket=/x",
            "http://server/",
            &long,
        ] {
            let error = Address::parse(target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{target}: {error}");
        }
    }

    #[test]
    fn uris_say_what_tls_needs() {
        let (address, wish) = Address::parse("nbds://server/disk").unwrap();
        assert_eq!(address, host("server", PORT));
        assert!(wish.tls && wish.certificates.is_none() && wish.hostname.is_none());
        let unix =
            "nbds+unix:///?tls-certificates=/etc/p%20ki&socket=/run/x.sock&tls-hostname=server";
        let (address, wish) = Address::parse(unix).unwrap();
        assert_eq!(address, Address::Unix("/run/x.sock".into()));
        let expected = Wish {
            export: None,
            tls: true,
            certificates: Some("/etc/p ki".to_owned()),
            hostname: Some("server".to_owned()),
        };
        assert_eq!(wish, expected);
    }
}
