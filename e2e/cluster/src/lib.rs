//! A real single-node Kubernetes on a bare Linux machine: API server, kubelet, containerd, gVisor, a NetworkPolicy
//! engine that denies, cluster DNS. Everything lives in one network namespace and one state folder.

mod command;
pub mod down;
mod error;
pub mod forward;
pub mod image;
mod layout;
mod network;
pub mod outside;
pub mod packages;
mod parts;
mod pki;
mod process;
pub mod tools;
pub mod up;

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

pub use error::{Error, Result};
pub use layout::{Layout, address, cache};
pub use parts::END_ORDER as PARTS;
pub use process::{Started, find as find_process};

/// A running cluster, for tests and tools.
#[derive(Clone, Debug)]
pub struct Cluster {
    layout: Layout,
    programs: tools::Programs,
}

impl Cluster {
    /// The cluster of this name, which must be up.
    pub fn attach(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        if !layout.kubeconfig().exists() {
            return Err(Error::Prerequisite(format!(
                "cluster {name:?} is not up: run `cluster --name {name} up`"
            )));
        }
        Ok(Self {
            layout,
            programs: tools::Programs::find()?,
        })
    }

    /// Kubeconfig of its administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// A `kubectl` command for it, to be given arguments.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.programs.kubectl());
        command.arg("--kubeconfig").arg(self.layout.kubeconfig());
        command.env("KUBECACHEDIR", self.layout.file("kubectl-cache"));
        command
    }

    /// Path of `kubectl`.
    #[must_use]
    pub fn kubectl_path(&self) -> PathBuf {
        self.programs.kubectl()
    }

    /// Where the node keeps a pod's volumes that begin empty, each by its name.
    #[must_use]
    pub fn volumes_of(&self, pod_uid: &str) -> PathBuf {
        let pods = self.layout.file("kubelet/pods");
        pods.join(pod_uid).join("volumes/kubernetes.io~empty-dir")
    }

    /// The API server's audit log: one JSON object a line for each write.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.layout.file("audit.log")
    }

    /// Certificate (PEM) of the TLS authority of the outside world, once a program plays it.
    #[must_use]
    pub fn outside_authority(&self) -> PathBuf {
        self.layout.outside_authority()
    }

    /// What the program that plays the outside world has printed.
    #[must_use]
    pub fn outside_log(&self) -> PathBuf {
        self.layout.log("outside")
    }

    /// Where the CNI plugin remembers which pod has which address.
    #[must_use]
    pub fn pod_addresses(&self) -> PathBuf {
        self.layout.file("cni-addresses/pods")
    }

    /// Name of its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.layout.name
    }

    /// Imports OCI archives.
    pub fn load(&self, archives: &[PathBuf]) -> Result<()> {
        up::import(&self.layout, &self.programs, archives)
    }

    /// Ends one part at once, as a crash would.
    pub fn stop(&self, part: &str) {
        up::stop(&self.layout, part);
    }

    /// Stops one part as it stands, until [`Self::resume`].
    pub fn pause(&self, part: &str) {
        up::signal(&self.layout, part, Signal::SIGSTOP);
    }

    /// Lets a part go on.
    pub fn resume(&self, part: &str) {
        up::signal(&self.layout, part, Signal::SIGCONT);
    }

    /// Starts one part (again).
    pub fn restart(&self, part: &str) -> Result<()> {
        up::restart(&self.layout, part)
    }
}
