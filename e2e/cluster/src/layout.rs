//! Where things are: the cache of built programs, and the state folder of one cluster.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One cluster's names and folders.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The cluster's name.
    pub name: String,
    /// Everything the cluster writes.
    pub state: PathBuf,
}

impl Layout {
    /// The layout of a cluster of this name.
    pub fn new(name: &str) -> Result<Self> {
        let valid = (1..=8).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !valid {
            return Err(Error::Prerequisite(format!(
                "{name:?} is no name for a cluster: 1 to 8 of a-z and 0-9"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            state: Path::new("/var/lib/agent-sandbox").join(name),
        })
    }

    /// The cluster's network namespace, and its group in every cgroup hierarchy.
    #[must_use]
    pub fn netns(&self) -> String {
        format!("asb-{}", self.name)
    }

    /// Where the namespace is bound.
    #[must_use]
    pub fn netns_path(&self) -> String {
        format!("/run/netns/{}", self.netns())
    }

    /// The namespace that plays the outside world.
    #[must_use]
    pub fn outside_netns(&self) -> String {
        format!("asb-{}-out", self.name)
    }

    /// The cgroup below which all pods live.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("asb-{}", self.name)
    }

    /// Certificate (PEM) of the TLS authority of the outside world, once a program plays it.
    #[must_use]
    pub fn outside_authority(&self) -> PathBuf {
        self.file("outside-ca.pem")
    }

    /// A file or folder of the state folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Log of one part.
    #[must_use]
    pub fn log(&self, part: &str) -> PathBuf {
        self.state.join("log").join(format!("{part}.log"))
    }

    /// Kubeconfig of an administrator, for the host's network namespace.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("kubeconfig")
    }
}

/// The cache of built programs: `$AGENTSANDBOX_CACHE`, or `agent-sandbox` in the user's cache folder.
#[must_use]
pub fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("AGENTSANDBOX_CACHE") {
        return cache.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    base.unwrap_or_else(|| home.join(".cache")).join("agent-sandbox")
}

/// Cluster-wide addresses; each cluster has a network namespace of its own, so all use the same.
pub mod address {
    /// The node.
    pub const NODE: &str = "172.30.0.1";
    /// The host that plays the outside world.
    pub const OUTSIDE: &str = "172.30.0.10";
    /// Addresses that play the public Internet; the outside host has all of them.
    pub const PUBLIC: &str = "93.184.216.0/24";
    /// The metadata service that clouds have, played by the outside host.
    pub const METADATA: &str = "169.254.169.254";
    /// The API server's Service.
    pub const API_SERVICE: &str = "10.96.0.1";
    /// The DNS Service.
    pub const DNS_SERVICE: &str = "10.96.0.10";
    /// The pods.
    pub const PODS: &str = "10.244.0.0/24";
    /// The API server's port on the node.
    pub const API_PORT: u16 = 6443;
}
