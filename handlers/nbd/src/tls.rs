//! TLS: whose certificates count, and the handshake. RFC 8446 and RFC 5246; of the NBD protocol,
//! `NBD_OPT_STARTTLS`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};
use tcmu_handler::{Config, Error, ErrorKind, Result};

use crate::address::{Address, Wish};
use crate::handshake::failed;

/// The names that qemu, nbdkit and libnbd give to the files in such a folder, all of them PEM.
const AUTHORITIES: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";

/// How a server proves who it is, and we to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// The folder with the certificates.
    certificates: PathBuf,
    /// Who must be named in the server's certificate.
    server: ServerName<'static>,
}

impl Tls {
    /// What the configuration asks for; `wish` is the URI's part of it.
    pub(crate) fn of(config: &Config, address: &Address, wish: &Wish) -> Result<Option<Self>> {
        let demanded = match config.option("tls") {
            None => wish.tls,
            Some("require") => true,
            Some("off") if wish.tls => {
                return Err(invalid("the option tls=off contradicts the URI's nbds"));
            }
            Some("off") => false,
            Some(other) => {
                return Err(invalid(format!(
                    "the option tls is require or off, not \"{other}\""
                )));
            }
        };
        let folder = one_of(config, "tls_certificates", &wish.certificates)?;
        let name = one_of(config, "tls_hostname", &wish.hostname)?;
        if !demanded {
            return match folder.or(name) {
                None => Ok(None),
                Some(_) => Err(invalid(
                    "the options tls_certificates and tls_hostname need tls=require, or an nbds URI",
                )),
            };
        }
        let folder = folder.ok_or_else(|| {
            invalid(format!(
                "TLS needs the option tls_certificates=FOLDER: a folder with {AUTHORITIES}, and \
                 {CERTIFICATE} and {KEY} if the server wants to know its clients"
            ))
        })?;
        let certificates = PathBuf::from(folder);
        if !certificates.is_absolute() {
            return Err(invalid(format!(
                "the option tls_certificates is the absolute path of a folder, not \"{folder}\""
            )));
        }
        config.check_path(&certificates)?;
        let name = match (name, address) {
            (Some(name), _) => name,
            (None, Address::Tcp { host, .. }) => host,
            (None, Address::Unix(_)) => {
                return Err(invalid(
                    "TLS through a Unix socket needs the option tls_hostname=NAME: who must be named \
                     in the server's certificate",
                ));
            }
        };
        let server = ServerName::try_from(name.to_owned()).map_err(|_| {
            invalid(format!(
                "\"{name}\" is no name that a certificate can be for: say one by the option tls_hostname"
            ))
        })?;
        Ok(Some(Self {
            certificates,
            server,
        }))
    }

    /// The client's side of a new connection, with the certificates as they are now.
    pub(crate) fn client(&self) -> Result<Box<ClientConnection>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(self.authorities()?);
        let config = match self.identity()? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
                invalid(format!(
                    "{CERTIFICATE} and {KEY} in {} do not go together",
                    self.certificates.display()
                ))
                .with_source(error)
            })?,
        };
        let client = ClientConnection::new(Arc::new(config), self.server.clone());
        client.map(Box::new).map_err(unusable)
    }

    /// Those whose signature makes a certificate good.
    fn authorities(&self) -> Result<RootCertStore> {
        let path = self.certificates.join(AUTHORITIES);
        let mut store = RootCertStore::empty();
        for certificate in certificates(&path)? {
            store.add(certificate).map_err(|error| {
                invalid(format!("{} has no usable certificate", path.display())).with_source(error)
            })?;
        }
        Ok(store)
    }

    /// Our own certificate and its key, if there are any.
    fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
        let [certificate, key] = [CERTIFICATE, KEY].map(|name| self.certificates.join(name));
        if !certificate.exists() && !key.exists() {
            return Ok(None);
        }
        let chain = certificates(&certificate)?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, error))?;
        Ok(Some((chain, key)))
    }
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|error| unreadable(path, error))?;
    match all.is_empty() {
        true => Err(invalid(format!("{} has no certificate", path.display()))),
        false => Ok(all),
    }
}

fn unreadable(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    use rustls::pki_types::pem::Error as Pem;
    let context = format!("reading {}", path.display());
    match error {
        Pem::Io(error) => Error::os(context, error),
        other => invalid(context).with_source(io::Error::other(other.to_string())),
    }
}

/// A value that the options and the URI can have, but not both.
fn one_of<'a>(
    config: &'a Config,
    key: &str,
    in_uri: &'a Option<String>,
) -> Result<Option<&'a str>> {
    match (config.option(key), in_uri.as_deref()) {
        (Some(_), Some(_)) => Err(invalid(format!(
            "the URI and the option {key} both say the same thing: leave one out"
        ))),
        (option, uri) => Ok(option.or(uri)),
    }
}

/// The handshake, as long as the stream has patience.
pub(crate) fn shake_hands(
    client: &mut ClientConnection,
    stream: &mut (impl Read + Write),
) -> Result<()> {
    while client.is_handshaking() {
        let moved = client.complete_io(stream);
        moved.map_err(|error| failed("the TLS handshake", error))?;
    }
    Ok(())
}

/// The error of the talk that follows the handshake. Servers look at a client's certificate when the
/// handshake has ended for the client (RFC 8446, section 4.4.2), and may end the connection without a word.
pub(crate) fn afterwards(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Gone => Error::new(
            ErrorKind::Gone,
            format!(
                "{error}, right after the TLS handshake: it may want {CERTIFICATE} and {KEY}, or others"
            ),
        ),
        _ => error,
    }
}

/// These bytes, encrypted, and behind them the end of what we say.
pub(crate) fn last_words(client: &mut ClientConnection, bytes: &[u8]) -> Vec<u8> {
    let mut encrypted = Vec::new();
    // Nothing is queued that they might not fit behind.
    let _ = client.writer().write_all(bytes);
    client.send_close_notify();
    while client.wants_write() {
        if client.write_tls(&mut encrypted).is_err() {
            break;
        }
    }
    encrypted
}

/// The error of TLS's that is behind one of a stream's.
pub(crate) fn cause(error: &io::Error) -> Option<Error> {
    let cause = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(refused(cause))
}

/// What went wrong with TLS, in words that say what to do.
pub(crate) fn refused(error: &rustls::Error) -> Error {
    use rustls::Error as Cause;
    let (kind, words) = match error {
        Cause::InvalidCertificate(why) => (ErrorKind::PermissionDenied, not_trusted(why)),
        Cause::AlertReceived(alert) => (
            ErrorKind::PermissionDenied,
            format!(
                "the server ends TLS with the alert {alert:?}: {CERTIFICATE} and {KEY} may be missing, or \
                 not be to its liking"
            ),
        ),
        Cause::InvalidMessage(_) | Cause::InappropriateMessage { .. } => (
            ErrorKind::Internal,
            format!("the server does not speak TLS as it should: {error}"),
        ),
        Cause::DecryptError => (
            ErrorKind::Internal,
            "TLS: what was received has been changed on its way".to_owned(),
        ),
        _ => (ErrorKind::Internal, format!("TLS: {error}")),
    };
    Error::new(kind, words)
}

fn not_trusted(why: &CertificateError) -> String {
    match why {
        // The second: by somebody else of the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("the server's certificate is signed by nobody in {AUTHORITIES}")
        }
        CertificateError::NotValidForName => {
            "the server's certificate is for another name: the option tls_hostname says which"
                .to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "the server's certificate is not for \"{}\", but for: {}. The option tls_hostname says whose \
             it must be",
            expected.to_str(),
            presented.join(", ")
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: are both clocks right?".to_owned()
        }
        other => format!("the server's certificate is not good: {other}"),
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, context)
}

fn unusable(error: rustls::Error) -> Error {
    Error::new(ErrorKind::Internal, "TLS cannot be used").with_source(error)
}
