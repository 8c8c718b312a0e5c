//! How the isolation level that really holds is told from what was observed inside the pod.

use serde::{Deserialize, Serialize};

/// How strongly a sandbox is separated from its node, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum IsolationLevel {
    /// The node's own kernel, shared through namespaces, cgroups and seccomp.
    Container,
    /// A kernel in user space between the sandbox and the node's (gVisor).
    UserspaceKernel,
    /// A kernel of its own in a virtual machine (Kata Containers).
    MicroVM,
}

impl std::fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// What must hold before the user's command may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IsolationRequirement {
    /// The weakest level under which the command may start.
    pub minimum: IsolationLevel,
    /// Whether the runtime class's handler is one that the operator's configuration lists as a virtual machine.
    pub vm_handler: bool,
    /// The distinct kernel releases of the cluster's nodes.
    pub node_kernels: Vec<String>,
}

/// The level that holds for a pod that sees `kernel_release` as its kernel.
///
/// Where observation and expectation disagree, the weaker counts: a release that any node of the cluster also
/// has is taken for the node's own, and an unknown kernel is a virtual machine only under a handler known as one.
#[must_use]
pub fn observed_level(kernel_release: &str, requirement: &IsolationRequirement) -> IsolationLevel {
    if kernel_release.is_empty() || requirement.node_kernels.iter().any(|node| node == kernel_release) {
        IsolationLevel::Container
    } else if is_gvisor(kernel_release) {
        IsolationLevel::UserspaceKernel
    } else if requirement.vm_handler {
        IsolationLevel::MicroVM
    } else {
        IsolationLevel::Container
    }
}

/// gVisor ends its kernel release with its own name.
#[must_use]
pub fn is_gvisor(kernel_release: &str) -> bool {
    kernel_release.ends_with("-gvisor")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(vm_handler: bool) -> IsolationRequirement {
        IsolationRequirement {
            minimum: IsolationLevel::MicroVM,
            vm_handler,
            node_kernels: vec!["6.1.0-40-amd64".into(), "6.12.9".into()],
        }
    }

    #[test]
    fn the_weaker_of_observed_and_expected_counts() {
        use IsolationLevel::{Container, MicroVM, UserspaceKernel};
        let table = [
            ("6.12.9", true, Container),
            ("6.12.9", false, Container),
            ("4.19.0-gvisor", false, UserspaceKernel),
            ("4.19.0-gvisor", true, UserspaceKernel),
            ("6.18.15", true, MicroVM),
            ("6.18.15", false, Container),
            ("", true, Container),
        ];
        for (release, vm_handler, level) in table {
            assert_eq!(
                observed_level(release, &requirement(vm_handler)),
                level,
                "{release} {vm_handler}"
            );
        }
    }

    #[test]
    fn levels_are_ordered_from_weak_to_strong() {
        assert!(IsolationLevel::Container < IsolationLevel::UserspaceKernel);
        assert!(IsolationLevel::UserspaceKernel < IsolationLevel::MicroVM);
    }
}
