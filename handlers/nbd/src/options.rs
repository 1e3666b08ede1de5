//! What the configuration string asks for.

use std::time::Duration;

use tcmu_handler::{Config, Error, ErrorKind, Result};

use crate::address::Address;
use crate::protocol::MAX_STRING;
use crate::tls::Tls;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) address: Address,
    /// The export's name; the server's default export has none.
    pub(crate) export: String,
    /// All is encrypted so, if it is.
    pub(crate) tls: Option<Tls>,
    /// How many connections there are, from 1 on.
    pub(crate) connections: usize,
    /// How long connecting may take, with the handshake.
    pub(crate) connect_timeout: Duration,
    /// How long a server with something to do may be silent; for ever if not said.
    pub(crate) timeout: Option<Duration>,
    /// How long a server that has gone is waited for.
    pub(crate) reconnect: Duration,
    /// The server forgets nothing that it has acknowledged when it ends.
    pub(crate) durable_cache: bool,
    /// Take no writes.
    pub(crate) read_only: bool,
}

/// The most connections to one export.
const MAX_CONNECTIONS: u64 = 16;

impl Options {
    pub(crate) fn of(config: &Config) -> Result<Self> {
        config.allow_options(&[
            "export",
            "connections",
            "connect_timeout",
            "timeout",
            "reconnect",
            "server_cache",
            "readonly",
            "tls",
            "tls_certificates",
            "tls_hostname",
        ])?;
        let (address, wish) = Address::parse(config.target())?;
        if let Address::Unix(path) = &address {
            config.check_path(path)?;
        }
        let tls = Tls::of(config, &address, &wish)?;
        let export = match (wish.export, config.option("export")) {
            (Some(_), Some(_)) => {
                return Err(invalid("the URI and the option export both name an export"));
            }
            (Some(name), None) => name,
            (None, name) => name.unwrap_or_default().to_owned(),
        };
        if export.len() > MAX_STRING || export.contains('\0') {
            return Err(invalid(
                "the export's name is no string of at most 4096 bytes",
            ));
        }
        let durable_cache = match config.option("server_cache") {
            None | Some("volatile") => false,
            Some("durable") => true,
            Some(other) => {
                return Err(invalid(format!(
                    "the option server_cache is volatile or durable, not \"{other}\""
                )));
            }
        };
        let seconds = |key, default, range| {
            let number = config.number(key, range)?;
            Ok::<_, Error>(Duration::from_secs(number.unwrap_or(default)))
        };
        let timeout = seconds("timeout", 60, 0..=3600)?;
        let connections = config.number("connections", 1..=MAX_CONNECTIONS)?;
        Ok(Self {
            address,
            export,
            tls,
            connections: connections.unwrap_or(1) as usize,
            connect_timeout: seconds("connect_timeout", 10, 1..=300)?,
            timeout: (timeout > Duration::ZERO).then_some(timeout),
            reconnect: seconds("reconnect", 60, 0..=86400)?,
            durable_cache,
            read_only: config.switch("readonly")?.unwrap_or(false),
        })
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &str) -> Result<Options> {
        Options::of(&config.parse()?)
    }

    #[test]
    fn takes_what_the_help_says() {
        let plain = of("unix:/run/x").unwrap();
        assert_eq!(
            plain,
            Options {
                address: Address::Unix("/run/x".into()),
                export: String::new(),
                tls: None,
                connections: 1,
                connect_timeout: Duration::from_secs(10),
                timeout: Some(Duration::from_secs(60)),
                reconnect: Duration::from_secs(60),
                durable_cache: false,
                read_only: false,
            }
        );
        assert_eq!(of("unix:/run/x;tls=off").unwrap(), plain);
        let all = "unix:/run/x;export=a b;connections=4;connect_timeout=3;timeout=0;reconnect=0;\
                   server_cache=durable;readonly=on";
        assert_eq!(
            of(all).unwrap(),
            Options {
                export: "a b".to_owned(),
                connections: 4,
                connect_timeout: Duration::from_secs(3),
                timeout: None,
                reconnect: Duration::ZERO,
                durable_cache: true,
                read_only: true,
                ..plain
            }
        );
        assert_eq!(of("nbd://host/disk").unwrap().export, "disk");
    }

    #[test]
    fn tls_is_asked_for_in_several_ways() {
        let tls = |config: &str| of(config).unwrap().tls.unwrap();
        let by_options = tls("host;tls=require;tls_certificates=/pki");
        assert_eq!(tls("nbds://host/;tls_certificates=/pki"), by_options);
        assert_eq!(tls("nbds://host/?tls-certificates=/pki"), by_options);
        let name = ";tls_hostname=host";
        let elsewhere = format!("unix:/x;tls=require;tls_certificates=/pki{name}");
        assert_eq!(tls(&elsewhere), by_options);
        assert_ne!(tls("other;tls=require;tls_certificates=/pki"), by_options);
        let address = "[::1]:99;tls=require;tls_certificates=/pki";
        assert_ne!(tls(address), by_options);
    }

    #[test]
    fn refuses_everything_else() {
        for config in [
            "host;tls=on;tls_certificates=/pki",
            "host;tls=require",
            "host;tls=require;tls_certificates=pki",
            "host;tls_certificates=/pki",
            "host;tls=off;tls_hostname=host",
            "a_b%;tls=require;tls_certificates=/pki",
            "unix:/x;tls=require;tls_certificates=/pki",
            "nbds://host/;tls=off;tls_certificates=/pki",
            "nbds://host/?tls-certificates=/pki;tls_certificates=/pki",
            "unix:/x;connections=0",
            "unix:/x;connections=17",
            "unix:/x;timeout=-1",
            "unix:/x;connect_timeout=0",
            "unix:/x;reconnect=ever",
            "unix:/x;server_cache=none",
            "unix:/x;readonly=maybe",
            "nbd://host/disk;export=disk",
            &format!("unix:/x;export={}", "x".repeat(4097)),
        ] {
            let error = of(config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{config}: {error}");
        }
        let error = of("unix:/x;speed=11").unwrap_err();
        assert!(error.to_string().contains("\"speed\""), "{error}");
    }
}
