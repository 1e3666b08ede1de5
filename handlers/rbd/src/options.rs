//! What a configuration string asks for.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tcmu_handler::{Config, Error, ErrorKind, Result};

pub(crate) const HELP: &str = "\
rbd/POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]: an image of a Ceph cluster; needs librbd1
;conf=FILE            the cluster's configuration; unless given, where Ceph looks (/etc/ceph/ceph.conf)
;id=NAME              the user, such as admin for client.admin, which is the default
;osd_op_timeout=30    how many seconds the cluster has for one operation; from 1 to 3600
;lock=write|open      take the image's exclusive lock with the first write and hand it over when asked
                      to (the default), or when it is opened and keep it
;readonly=on|off      only read; a snapshot is never written to";

const KNOWN: &[&str] = &["conf", "id", "osd_op_timeout", "lock", "readonly"];

/// In seconds. Ceph's own default, no limit, would let requests hang for ever.
const DEFAULT_LIMIT: u64 = 30;

/// targetcli's D-Bus calls give up after 25 s.
const LONGEST_CONNECT: Duration = Duration::from_secs(10);

/// When the exclusive lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockPolicy {
    /// With the first write; it is handed over to who asks for it.
    OnWrite,
    /// At once; it is kept.
    OnOpen,
}

/// An image, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) pool: CString,
    /// Empty for the pool's own.
    pub(crate) namespace: CString,
    pub(crate) image: CString,
    pub(crate) snapshot: Option<CString>,
    pub(crate) conf: Option<PathBuf>,
    /// Without `client.`.
    pub(crate) user: Option<CString>,
    pub(crate) operation_limit: Duration,
    pub(crate) lock: LockPolicy,
    pub(crate) read_only: bool,
}

impl Options {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        config.allow_options(KNOWN)?;
        let target = config.target();
        let parts: Vec<&str> = target.split('/').collect();
        let (pool, namespace, image) = match parts[..] {
            [pool, image] => (pool, "", image),
            [pool, namespace, image] if !namespace.is_empty() => (pool, namespace, image),
            _ => return Err(no_image(target)),
        };
        let (image, snapshot) = match image.split_once('@') {
            Some((image, snapshot)) => (image, Some(snapshot)),
            None => (image, None),
        };
        if pool.is_empty() || image.is_empty() || snapshot == Some("") {
            return Err(no_image(target));
        }
        let conf = config.option("conf").map(Path::new);
        if let Some(conf) = conf {
            if !conf.is_absolute() {
                return Err(invalid(format!(
                    "conf={} is not an absolute path",
                    conf.display()
                )));
            }
            config.check_path(conf)?;
        }
        let user = config.option("id").map(|user| {
            if user.is_empty() || user.starts_with("client.") {
                return Err(invalid(format!(
                    "id={user} is not a user: write id=admin for client.admin"
                )));
            }
            c_string(user)
        });
        let lock = match config.option("lock") {
            None | Some("write") => LockPolicy::OnWrite,
            Some("open") => LockPolicy::OnOpen,
            Some(other) => return Err(invalid(format!("lock is write or open, not \"{other}\""))),
        };
        let seconds = config.number("osd_op_timeout", 1..=3600)?;
        let read_only = config.switch("readonly")?.unwrap_or(false) || snapshot.is_some();
        if read_only && lock == LockPolicy::OnOpen {
            return Err(invalid(
                "lock=open is for images that are written to, and this one is only read".to_owned(),
            ));
        }
        Ok(Self {
            pool: c_string(pool)?,
            namespace: c_string(namespace)?,
            image: c_string(image)?,
            snapshot: snapshot.map(c_string).transpose()?,
            conf: conf.map(Path::to_owned),
            user: user.transpose()?,
            operation_limit: Duration::from_secs(seconds.unwrap_or(DEFAULT_LIMIT)),
            lock,
            read_only,
        })
    }

    /// How long the monitors have for a new client. Whoever sets up a LUN waits meanwhile.
    pub(crate) fn connect_limit(&self) -> Duration {
        self.operation_limit.min(LONGEST_CONNECT)
    }

    /// The user's full name.
    pub(crate) fn client(&self) -> String {
        let user = self.user.as_deref();
        format!(
            "client.{}",
            user.map_or("admin".into(), |user| user.to_string_lossy())
        )
    }

    /// The image's name, as the program `rbd` takes it.
    pub(crate) fn name(&self) -> String {
        let mut name = self.pool.to_string_lossy().into_owned();
        if !self.namespace.is_empty() {
            name = format!("{name}/{}", self.namespace.to_string_lossy());
        }
        name = format!("{name}/{}", self.image.to_string_lossy());
        match &self.snapshot {
            Some(snapshot) => format!("{name}@{}", snapshot.to_string_lossy()),
            None => name,
        }
    }
}

fn no_image(target: &str) -> Error {
    invalid(format!(
        "\"{target}\" is not POOL/IMAGE, POOL/NAMESPACE/IMAGE, or one of them with @SNAPSHOT"
    ))
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidConfig, what)
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| invalid(format!("\"{}\" has a NUL", text.escape_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options> {
        Options::new(&text.parse().unwrap())
    }

    #[test]
    fn an_image_has_a_pool_and_maybe_a_namespace_and_a_snapshot() {
        let plain = options("rbd/disk").unwrap();
        assert_eq!(
            (plain.pool.as_c_str(), plain.image.as_c_str()),
            (c"rbd", c"disk")
        );
        assert!(plain.namespace.is_empty() && plain.snapshot.is_none() && !plain.read_only);
        assert_eq!(plain.client(), "client.admin");
        assert_eq!(plain.operation_limit, Duration::from_secs(30));

        let full = options("p/n/i@s;id=iscsi;osd_op_timeout=60;conf=/etc/ceph/b.conf").unwrap();
        assert_eq!(full.name(), "p/n/i@s");
        assert_eq!(full.client(), "client.iscsi");
        assert!(full.read_only, "a snapshot is");
        assert_eq!(full.conf.as_deref(), Some(Path::new("/etc/ceph/b.conf")));
        assert_eq!(full.operation_limit, Duration::from_secs(60));
        assert_eq!(options("p/i;lock=open").unwrap().lock, LockPolicy::OnOpen);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for target in [
            "", "rbd", "rbd/", "/disk", "a//b", "a/b/c/d", "a/b@", "a/b/", "a/@s",
        ] {
            let error = options(target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{target}");
            assert!(
                error.to_string().contains("POOL/IMAGE"),
                "{target}: {error}"
            );
        }
    }

    #[test]
    fn options_are_known_by_name_and_value() {
        for (text, says) in [
            ("a/b;osd_op_timeot=3", "unknown option \"osd_op_timeot\""),
            ("a/b;osd_op_timeout=0", "from 1 to 3600"),
            ("a/b;osd_op_timeout=-3", "from 1 to 3600"),
            ("a/b;osd_op_timeout=soon", "from 1 to 3600"),
            ("a/b;id=client.admin", "write id=admin"),
            ("a/b;id=", "write id=admin"),
            ("a/b;lock=maybe", "write or open"),
            ("a/b@s;lock=open", "only read"),
            ("a/b;readonly=on;lock=open", "only read"),
            ("a/b;conf=ceph.conf", "not an absolute path"),
            ("a/b\0c", "NUL"),
        ] {
            let error = options(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }
}
