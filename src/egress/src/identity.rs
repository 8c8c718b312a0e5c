//! Which run an address belongs to.
//!
//! The gateway tells the registry what its watch of pods shows and what recorders register; the registry binds an
//! address to a run while exactly one living pod has it and exactly one token was registered for that pod. Where two
//! claim one thing, nobody gets it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::deny::Deny;

/// A SHA-256.
pub type Sha = [u8; 32];

/// Longest token that is looked at, in bytes. A run's token has 64.
pub const TOKEN_MAX: usize = 256;

/// Most addresses of one pod.
const ADDRESSES_MAX: usize = 4;

/// A sandbox pod as the watch shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// The sandbox whose run it is (label).
    pub sandbox: String,
    /// The run (annotation).
    pub run_id: String,
    /// The policy of the run (label).
    pub policy: String,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares its node's network: such a pod has no address of its own.
    pub host_network: bool,
    /// Whether it has ended (phase `Succeeded` or `Failed`) or is being deleted.
    pub ended: bool,
}

/// A run that is bound to an address.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Namespace of the sandbox.
    pub namespace: String,
    /// The sandbox.
    pub sandbox: String,
    /// UID of the run's pod.
    pub pod_uid: String,
    /// The run.
    pub run_id: String,
    /// Its policy.
    pub policy: String,
    token_sha256: Sha,
}

impl Run {
    /// Whether `token` is this run's.
    ///
    /// # Errors
    /// [`Deny::TokenWrong`].
    pub fn check_token(&self, token: &str) -> Result<(), Deny> {
        if token.len() > TOKEN_MAX {
            return Err(Deny::TokenWrong);
        }
        // Hashes are compared to the end: how long that takes says nothing, and of the token itself it could not anyway.
        let hash: Sha = Sha256::digest(token.as_bytes()).into();
        let difference = hash
            .iter()
            .zip(&self.token_sha256)
            .fold(0, |difference, (one, other)| difference | (one ^ other));
        if difference == 0 {
            Ok(())
        } else {
            Err(Deny::TokenWrong)
        }
    }
}

/// What came of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The address is bound to the run.
    Bound(Arc<Run>),
    /// Not yet: the recorder should try again.
    Retry(&'static str),
    /// Not, and trying again is no use.
    Refused(&'static str),
}

/// All sandbox pods of the namespace, and what was registered for them.
#[derive(Debug, Default)]
pub struct Registry {
    pods: HashMap<String, Entry>,
    /// UIDs of the living pods at each address.
    at: HashMap<IpAddr, Vec<String>>,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    run: Option<Arc<Run>>,
    /// Two tokens were registered for the pod, or it changed what it is: it stays unbound for ever.
    voided: bool,
}

impl Registry {
    /// The watch shows a pod, for the first time or anew. Returns the runs that lost their address by it: what they have
    /// open must be closed.
    pub fn observe(&mut self, mut pod: Pod) -> Vec<Arc<Run>> {
        pod.addresses = pod
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .take(ADDRESSES_MAX)
            .collect();
        pod.addresses.sort_unstable();
        pod.addresses.dedup();
        if !pod.is_reachable() {
            pod.addresses.clear();
        }
        let before = self.bound_beside(&pod);
        self.unlink(&pod.uid);
        for address in &pod.addresses {
            self.at.entry(*address).or_default().push(pod.uid.clone());
        }
        if let Some(entry) = self.pods.get_mut(&pod.uid) {
            entry.voided |= entry.pod.is_another_run(&pod);
            if entry.pod.addresses != pod.addresses {
                entry.run = None;
            }
            entry.pod = pod;
        } else {
            let entry = Entry {
                pod,
                run: None,
                voided: false,
            };
            self.pods.insert(entry.pod.uid.clone(), entry);
        }
        self.no_longer_bound(before)
    }

    /// The watch shows that a pod is gone. Returns the runs that lost their address by it.
    pub fn forget(&mut self, uid: &str) -> Vec<Arc<Run>> {
        self.unlink(uid);
        self.pods
            .remove(uid)
            .and_then(|entry| entry.run)
            .into_iter()
            .collect()
    }

    /// UIDs of all pods that are known; for comparing with a new list of the watch.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// A recorder registers from `peer`; its service-account token has been verified and names the pod `pod_uid`. A
    /// repeated registration with the same token changes nothing. Returns, too, the runs that lost their address by it.
    pub fn register(&mut self, peer: IpAddr, pod_uid: &str, token_sha256: Sha) -> (Outcome, Vec<Arc<Run>>) {
        let peer = peer.to_canonical();
        let Some(entry) = self.pods.get_mut(pod_uid) else {
            return (Outcome::Retry("the pod is not known yet"), Vec::new());
        };
        if entry.pod.host_network {
            return (Outcome::Refused("the pod has no network of its own"), Vec::new());
        }
        if entry.pod.ended {
            return (Outcome::Refused("the pod has ended"), Vec::new());
        }
        if entry.pod.addresses.is_empty() {
            return (Outcome::Retry("the pod's address is not known yet"), Vec::new());
        }
        if !entry.pod.addresses.contains(&peer) {
            return (Outcome::Refused("the pod has another address"), Vec::new());
        }
        if entry.voided {
            return (Outcome::Refused("the pod's registration is void"), Vec::new());
        }
        let run = match &entry.run {
            Some(run) if run.token_sha256 == token_sha256 => Arc::clone(run),
            Some(_) => {
                // Two claim to be this pod's recorder, and nothing tells which one is.
                entry.voided = true;
                let lost = entry.run.take().into_iter().collect();
                return (Outcome::Refused("another token was registered for the pod"), lost);
            }
            None => {
                let run = Arc::new(entry.pod.run(token_sha256));
                entry.run = Some(Arc::clone(&run));
                run
            }
        };
        if self.lookup(peer).is_ok() {
            (Outcome::Bound(run), Vec::new())
        } else {
            (Outcome::Retry("another pod has the address still"), Vec::new())
        }
    }

    /// The run that is bound to an address.
    ///
    /// # Errors
    /// [`Deny::UnknownSandbox`] if none is, or if more than one living pod has the address.
    pub fn lookup(&self, peer: IpAddr) -> Result<&Arc<Run>, Deny> {
        let uids = self
            .at
            .get(&peer.to_canonical())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let [uid] = uids else {
            return Err(Deny::UnknownSandbox);
        };
        self.pods
            .get(uid)
            .filter(|entry| !entry.voided)
            .and_then(|entry| entry.run.as_ref())
            .ok_or(Deny::UnknownSandbox)
    }

    /// The pod at an address, bound or not, if it is the only one: for a log that names who was refused.
    #[must_use]
    pub fn pod_at(&self, peer: IpAddr) -> Option<&Pod> {
        match self.at.get(&peer.to_canonical())?.as_slice() {
            [uid] => self.pods.get(uid).map(|entry| &entry.pod),
            _ => None,
        }
    }

    /// Runs that are bound now and could be touched by what the watch shows of `pod`: its own, and those at its addresses.
    fn bound_beside(&self, pod: &Pod) -> Vec<(IpAddr, Arc<Run>)> {
        let known = self
            .pods
            .get(&pod.uid)
            .map(|entry| entry.pod.addresses.as_slice())
            .unwrap_or_default();
        known
            .iter()
            .chain(&pod.addresses)
            .filter_map(|address| Some((*address, Arc::clone(self.lookup(*address).ok()?))))
            .collect()
    }

    fn no_longer_bound(&self, before: Vec<(IpAddr, Arc<Run>)>) -> Vec<Arc<Run>> {
        let mut lost: Vec<Arc<Run>> = Vec::new();
        for (address, run) in before {
            let is_bound = self.lookup(address).is_ok_and(|now| Arc::ptr_eq(now, &run));
            if !is_bound && !lost.iter().any(|known| Arc::ptr_eq(known, &run)) {
                lost.push(run);
            }
        }
        lost
    }

    fn unlink(&mut self, uid: &str) {
        let Some(entry) = self.pods.get(uid) else { return };
        for address in &entry.pod.addresses {
            if let Some(uids) = self.at.get_mut(address) {
                uids.retain(|other| other != uid);
                if uids.is_empty() {
                    self.at.remove(address);
                }
            }
        }
    }
}

impl Pod {
    fn is_reachable(&self) -> bool {
        !self.host_network && !self.ended
    }

    /// Whether the same pod claims to be another run's now: somebody changed its labels.
    fn is_another_run(&self, now: &Self) -> bool {
        (&self.namespace, &self.sandbox, &self.run_id, &self.policy)
            != (&now.namespace, &now.sandbox, &now.run_id, &now.policy)
    }

    fn run(&self, token_sha256: Sha) -> Run {
        Run {
            namespace: self.namespace.clone(),
            sandbox: self.sandbox.clone(),
            pod_uid: self.uid.clone(),
            run_id: self.run_id.clone(),
            policy: self.policy.clone(),
            token_sha256,
        }
    }
}

/// Reads a SHA-256 in small hexadecimal digits.
#[must_use]
pub fn parse_sha256(text: &str) -> Option<Sha> {
    let bytes = text.as_bytes();
    let is_hex = bytes.len() == 64 && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_hex {
        return None;
    }
    let mut sha = [0; 32];
    for (byte, pair) in sha.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(sha)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
