//! Certificates for TLS, in folders as qemu, nbdkit and libnbd want them.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// Who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A server of this name or address.
    Server(&'a str),
    /// A server of this name or address, until the end of 2020.
    ExpiredServer(&'a str),
    /// A client of any name.
    Client,
}

impl Authority {
    /// A new one, whom nobody knows.
    #[allow(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        let mut about = CertificateParams::default();
        about.distinguished_name.push(DnType::CommonName, "tests");
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = about.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(about, key),
            certificate,
        }
    }

    /// A folder with the authority's own certificate (`ca-cert.pem`), and with a certificate and a key for
    /// each subject (`server-cert.pem` and so on).
    pub fn folder(&self, subjects: &[Subject<'_>]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca-cert.pem"), &self.certificate).unwrap();
        for subject in subjects {
            self.sign(*subject, folder.path());
        }
        folder
    }

    fn sign(&self, subject: Subject<'_>, folder: &Path) {
        let (role, name, purpose) = match subject {
            Subject::Server(name) | Subject::ExpiredServer(name) => {
                ("server", Some(name), ExtendedKeyUsagePurpose::ServerAuth)
            }
            Subject::Client => ("client", None, ExtendedKeyUsagePurpose::ClientAuth),
        };
        let names: Vec<String> = name.map(str::to_owned).into_iter().collect();
        let mut about = CertificateParams::new(names).unwrap();
        about.distinguished_name.push(DnType::CommonName, role);
        about.is_ca = IsCa::ExplicitNoCa;
        about.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        about.extended_key_usages = vec![purpose];
        if let Subject::ExpiredServer(_) = subject {
            about.not_before = date_time_ymd(2020, 1, 1);
            about.not_after = date_time_ymd(2020, 12, 31);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = about.signed_by(&key, &self.issuer).unwrap();
        let write = |kind: &str, pem: String| {
            fs::write(folder.join(format!("{role}-{kind}.pem")), pem).unwrap();
        };
        write("cert", certificate.pem());
        write("key", key.serialize_pem());
    }
}
