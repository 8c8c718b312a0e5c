//! Which cluster and namespace a command works on, as kubectl finds them.

use std::path::PathBuf;

use agentsandbox_client::{Error, Sandboxes, connect};
use clap::Args;
use kube::Client;

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
    pub async fn connect(&self) -> Result<Connected, Error> {
        let config = connect::config(self.kubeconfig.as_deref(), self.context.as_deref()).await?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Connected {
            client: connect::client(config)?,
            namespace,
        })
    }
}
