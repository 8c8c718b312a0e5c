//! What the operator knows of its cluster beside the watched objects: the addresses that its probes aim at.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::config::Config;

/// Addresses that must be closed to every sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Service address and port of the API server.
    pub api_server: (IpAddr, u16),
    /// Service address of the cluster's DNS, if there is one.
    pub cluster_dns: Option<IpAddr>,
    /// Service addresses of the operator's canary, IPv4 and IPv6 where the cluster has both.
    pub canary: Vec<IpAddr>,
    /// Port of the canary.
    pub canary_port: u16,
}

/// The cluster lacks something that the probe needs.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A Service could not be read.
    #[error(
        "Service {namespace}/{name} can't be read: {source}; the manifests give the operator the Role for it"
    )]
    Read {
        /// Namespace of the Service.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A Service has no address.
    #[error("Service {namespace}/{name} has no cluster address; make it of type ClusterIP")]
    NoAddress {
        /// Namespace of the Service.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Facts {
    /// Reads the Services. Without a canary or an API server's address no probe could prove anything, so both must
    /// be there; the DNS may be absent.
    pub async fn read(client: &Client, config: &Config) -> Result<Self, FactsError> {
        let api_server = match (
            std::env::var("KUBERNETES_SERVICE_HOST"),
            std::env::var("KUBERNETES_SERVICE_PORT"),
        ) {
            (Ok(host), Ok(port)) if host.parse::<IpAddr>().is_ok() => {
                (host.parse().ok(), port.parse().unwrap_or(443))
            }
            _ => (
                addresses(client, "default", "kubernetes").await?.first().copied(),
                443,
            ),
        };
        let (Some(api_server), port) = api_server else {
            return Err(FactsError::NoAddress {
                namespace: "default".into(),
                name: "kubernetes".into(),
            });
        };
        let cluster_dns = match config.cluster_dns {
            Some(address) => Some(address),
            None => match addresses(client, "kube-system", "kube-dns").await {
                Ok(found) => found.first().copied(),
                Err(FactsError::Read { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_not_found()) => {
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let canary = addresses(client, &config.namespace, &config.canary_service).await?;
        if canary.is_empty() {
            return Err(FactsError::NoAddress {
                namespace: config.namespace.clone(),
                name: config.canary_service.clone(),
            });
        }
        Ok(Self {
            api_server: (api_server, port),
            cluster_dns,
            canary,
            canary_port: config.canary_port,
        })
    }
}

async fn addresses(client: &Client, namespace: &str, name: &str) -> Result<Vec<IpAddr>, FactsError> {
    let service = Api::<Service>::namespaced(client.clone(), namespace)
        .get(name)
        .await
        .map_err(|source| FactsError::Read {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        })?;
    let spec = service.spec.unwrap_or_default();
    Ok(spec
        .cluster_ips
        .unwrap_or_default()
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect())
}
