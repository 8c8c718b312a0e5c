//! The TLS authority of the outside world, which sandboxes and the gateway are told to trust by the tests, and a
//! certificate for each name that is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Name of a caller that names none.
const UNNAMED: &str = "unnamed.example.test";
/// Most names whose configuration is kept.
const KEPT: usize = 1024;

/// An authority and the certificates that it has made.
pub struct Authority {
    certificate: String,
    params: CertificateParams,
    key: KeyPair,
    made: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

/// Why a certificate could not be made.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

impl Authority {
    /// A new authority with a key of its own.
    pub fn create() -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Authority of the outside world");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            params,
            key,
            made: Mutex::default(),
        })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// How a server of this name speaks TLS. Names that begin with `self-signed.`, `expired.` and `wrong-name.` show a
    /// certificate that nobody may believe; `h1.` and `raw.` offer no HTTP/2.
    pub fn server(&self, name: Option<&str>) -> Result<Arc<ServerConfig>, Error> {
        let name = name.unwrap_or(UNNAMED).to_ascii_lowercase();
        let kept = self
            .made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .cloned();
        if let Some(config) = kept {
            return Ok(config);
        }
        let config = Arc::new(self.make(&name)?);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() < KEPT {
            made.insert(name, Arc::clone(&config));
        }
        Ok(config)
    }

    fn make(&self, name: &str) -> Result<ServerConfig, Error> {
        let shown = if name.starts_with("wrong-name.") {
            "right-name.example.test"
        } else {
            name
        };
        let mut params = CertificateParams::new(vec![shown.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "outside");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if name.starts_with("expired.") {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = if name.starts_with("self-signed.") {
            params.self_signed(&key)?
        } else {
            params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?
        };
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = if name.starts_with("h1.") || name.starts_with("raw.") {
            vec![b"http/1.1".to_vec()]
        } else {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        };
        Ok(config)
    }
}
