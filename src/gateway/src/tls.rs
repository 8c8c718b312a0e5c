//! TLS with the world outside: always verified, against the public authorities and those of the configuration.

use std::sync::Arc;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why the authorities can't be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The PEM text can't be read.
    #[error("extra certificates: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// A certificate is no authority's.
    #[error("extra certificates: {0}")]
    Tls(#[from] rustls::Error),
}

/// How TLS is begun with destinations.
#[derive(Clone)]
pub struct Trust {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Trust {
    /// Trusts the public authorities and, beside them, those of the PEM text.
    pub fn new(extra_pem: &str) -> Result<Self, TrustError> {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        for certificate in CertificateDer::pem_slice_iter(extra_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A resumed session would tell a destination that two runs belong together.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            any: Arc::new(config),
            http1,
        })
    }

    /// Shakes hands with `host`; `http1` offers nothing but HTTP/1.1, for what can't be done over HTTP/2.
    ///
    /// # Errors
    /// [`Deny::UpstreamUntrusted`] for a certificate that is not valid for the name, [`Deny::UpstreamUnreachable`]
    /// otherwise.
    pub async fn connect(
        &self,
        stream: TcpStream,
        host: &HostName,
        http1: bool,
    ) -> Result<TlsStream<TcpStream>, Deny> {
        let config = if http1 { &self.http1 } else { &self.any };
        let name = ServerName::try_from(host.as_str().to_owned()).map_err(|_| Deny::NameMalformed)?;
        TlsConnector::from(config.clone())
            .connect(name, stream)
            .await
            .map_err(|error| {
                let is_untrusted = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                    .is_some_and(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)));
                if is_untrusted {
                    Deny::UpstreamUntrusted
                } else {
                    Deny::UpstreamUnreachable
                }
            })
    }
}
