//! Which cluster and namespace a command works on, as kubectl finds them.

use std::path::PathBuf;

use agentsandbox_client::Sandboxes;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Options that every command with a cluster has.
#[derive(Args, Clone, Debug, Default)]
pub struct Connection {
    /// Namespace; that of the kubeconfig's context if absent.
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig; $KUBECONFIG or ~/.kube/config if absent, and in a pod its service account.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// No way to a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The kubeconfig.
    #[error("the kubeconfig can't be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a service account.
    #[error("no cluster is configured (set KUBECONFIG, or use --kubeconfig): {0}")]
    Nothing(#[from] kube::config::InferConfigError),
    /// The client.
    #[error("no client for this cluster: {0}")]
    Client(#[from] kube::Error),
}

/// A client, and the namespace to work in.
#[derive(Clone)]
pub struct Connected {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Connected {
    /// The sandboxes of the namespace.
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.client.clone(), &self.namespace)
    }
}

impl Connection {
    /// Connects.
    pub async fn connect(&self) -> Result<Connected, ConnectionError> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &self.kubeconfig {
            Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?,
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        };
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Connected {
            client: Client::try_from(config)?,
            namespace,
        })
    }
}
