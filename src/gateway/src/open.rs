//! What a run has open, so that it can be closed when its policy no longer allows it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentsandbox_egress::credential::Credential;
use agentsandbox_egress::name::HostName;
use agentsandbox_egress::rules::{EgressPolicy, Permit, Scheme, Target, Way};
use tokio_util::sync::CancellationToken;

/// Something that was allowed and goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A connection to a name.
    Host {
        /// The name.
        host: HostName,
        /// The port.
        port: u16,
        /// How it is treated.
        way: WayKind,
    },
    /// A connection to an address.
    Address {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// A request, or the WebSocket that came of it.
    Request {
        /// Through TLS or not.
        scheme: Scheme,
        /// The host.
        host: HostName,
        /// The port.
        port: u16,
        /// The method.
        method: String,
        /// The path, without its query.
        path: String,
        /// Whether it is a WebSocket.
        upgrade: bool,
        /// What was added to it.
        credential: Option<Credential>,
    },
    /// A request to a model.
    Model {
        /// The host that was asked.
        host: HostName,
        /// The model that was asked for.
        model: String,
        /// Where it goes, and with which key.
        target: Target,
        /// Tools of the provider's that it may ask for.
        server_tools: Vec<String>,
    },
}

/// [`Way`] without the rule: another rule of the same kind allows the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayKind {
    /// TLS, passed on.
    Passthrough,
    /// TLS, ended here.
    Inspect,
    /// Plain HTTP.
    Plain,
}

impl From<Way> for WayKind {
    fn from(way: Way) -> Self {
        match way {
            Way::Passthrough { .. } => Self::Passthrough,
            Way::Inspect => Self::Inspect,
            Way::Plain => Self::Plain,
        }
    }
}

impl Allowed {
    /// Whether a policy still allows it, in the same way.
    #[must_use]
    pub fn still(&self, rules: &EgressPolicy) -> bool {
        match self {
            Self::Host { host, port, way } => rules
                .connect(host, *port)
                .is_ok_and(|now| WayKind::from(now) == *way),
            Self::Address { address, port } => rules.connect_address(*address, *port).is_ok(),
            Self::Request {
                scheme,
                host,
                port,
                method,
                path,
                upgrade,
                credential,
            } => match rules.request(*scheme, host, *port, method, path, *upgrade) {
                Ok(Permit::Rule { rule, .. }) => rule.credential == *credential,
                Ok(Permit::Model(_)) | Err(_) => false,
            },
            Self::Model {
                host,
                model,
                target,
                server_tools,
            } => rules
                .models_at(host)
                .iter()
                .find(|rule| rule.allow.contains(model))
                .is_some_and(|rule| {
                    rule.targets.contains(target)
                        && server_tools.iter().all(|tool| rule.server_tools.contains(tool))
                }),
        }
    }
}

/// All that one run has open.
#[derive(Debug, Default)]
pub struct OpenSet {
    emptied: tokio::sync::Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    allowed: Allowed,
    cancel: CancellationToken,
    /// Where it was connected to.
    reached: Option<SocketAddr>,
}

/// One thing that is open, until it is dropped.
#[derive(Debug)]
pub struct OpenGuard {
    set: Arc<OpenSet>,
    id: u64,
    /// Cancelled when it must be closed.
    pub cancel: CancellationToken,
}

impl OpenSet {
    /// Remembers something, as a part of `parent`, whose end is its end.
    pub fn insert(self: &Arc<Self>, allowed: Allowed, parent: &CancellationToken) -> OpenGuard {
        let cancel = parent.child_token();
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let entry = Entry {
            allowed,
            cancel: cancel.clone(),
            reached: None,
        };
        inner.open.insert(id, entry);
        drop(inner);
        OpenGuard {
            set: self.clone(),
            id,
            cancel,
        }
    }

    /// Closes everything that `rules` do not allow any more, or that is connected to where it may not go by them;
    /// everything, without rules.
    pub fn recheck(
        &self,
        rules: Option<&EgressPolicy>,
        may_reach: impl Fn(&EgressPolicy, SocketAddr) -> bool,
    ) {
        for entry in self.inner().open.values() {
            let goes_on = rules.is_some_and(|rules| {
                entry.allowed.still(rules) && entry.reached.is_none_or(|address| may_reach(rules, address))
            });
            if !goes_on {
                entry.cancel.cancel();
            }
        }
    }

    /// How much is open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().open.len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until nothing is open.
    pub async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenGuard {
    /// Whether `rules` allow it.
    #[must_use]
    pub fn is_allowed(&self, rules: &EgressPolicy) -> bool {
        let inner = self.set.inner();
        inner
            .open
            .get(&self.id)
            .is_some_and(|entry| entry.allowed.still(rules))
    }

    /// It is connected to this address.
    pub fn reached(&self, address: SocketAddr) {
        if let Some(entry) = self.set.inner().open.get_mut(&self.id) {
            entry.reached = Some(address);
        }
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let mut inner = self.set.inner();
        inner.open.remove(&self.id);
        if inner.open.is_empty() {
            // Room for hundreds of tunnels is not kept for a run that has none.
            inner.open = HashMap::new();
            self.set.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use agentsandbox_api::policy::{Egress, EgressRule, SandboxPolicySpec};

    use super::*;

    fn rules(hosts: &[(&str, &[&str])]) -> EgressPolicy {
        let allow = hosts.iter().map(|(host, paths)| EgressRule {
            host: Some((*host).to_owned()),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..EgressRule::default()
        });
        let spec = SandboxPolicySpec {
            egress: Some(Egress {
                allow: allow.collect(),
            }),
            ..SandboxPolicySpec::default()
        };
        EgressPolicy::compile(&spec).unwrap()
    }

    fn host(name: &str, way: WayKind) -> Allowed {
        Allowed::Host {
            host: name.parse().unwrap(),
            port: 443,
            way,
        }
    }

    #[test]
    fn a_tightened_policy_closes_what_it_no_longer_allows_and_nothing_else() {
        let set = Arc::new(OpenSet::default());
        let run = CancellationToken::new();
        let kept = set.insert(host("a.example", WayKind::Passthrough), &run);
        let gone = set.insert(host("b.example", WayKind::Passthrough), &run);
        let changed = set.insert(host("c.example", WayKind::Passthrough), &run);
        let tightened = rules(&[("a.example", &[]), ("c.example", &["/x"])]);
        set.recheck(Some(&tightened), |_, _| true);
        assert!(!kept.cancel.is_cancelled());
        assert!(gone.cancel.is_cancelled());
        assert!(changed.cancel.is_cancelled(), "it would be inspected now");
        set.recheck(None, |_, _| true);
        assert!(kept.cancel.is_cancelled());
    }

    #[test]
    fn what_is_connected_to_where_it_may_no_longer_go_is_closed() {
        let set = Arc::new(OpenSet::default());
        let run = CancellationToken::new();
        let [kept, gone, nowhere] = ["10.0.0.1:443", "10.0.0.2:443", ""].map(|address| {
            let open = set.insert(host("a.example", WayKind::Passthrough), &run);
            if let Ok(address) = address.parse() {
                open.reached(address);
            }
            open
        });
        let forbidden: SocketAddr = "10.0.0.2:443".parse().unwrap();
        set.recheck(Some(&rules(&[("a.example", &[])])), |_, address| {
            address != forbidden
        });
        assert!(gone.cancel.is_cancelled());
        assert!(!kept.cancel.is_cancelled() && !nowhere.cancel.is_cancelled());
    }

    #[test]
    fn a_request_in_flight_is_closed_when_its_path_is_no_longer_allowed() {
        let request = Allowed::Request {
            scheme: Scheme::Https,
            host: "a.example".parse().unwrap(),
            port: 443,
            method: "GET".into(),
            path: "/files/1".into(),
            upgrade: false,
            credential: None,
        };
        assert!(request.still(&rules(&[("a.example", &["/files/"])])));
        assert!(!request.still(&rules(&[("a.example", &["/other/"])])));
    }

    #[test]
    fn a_model_request_is_closed_when_its_model_target_key_or_tools_are_no_longer_allowed() {
        let policy = |model: serde_json::Value| {
            let spec = serde_json::json!({"models": [model]});
            EgressPolicy::compile(&serde_json::from_value(spec).unwrap()).unwrap()
        };
        let model = serde_json::json!({
            "provider": "OpenAI", "host": "a.example", "allow": ["m", "n"], "serverTools": ["web_search"],
            "credential": {"secretRef": {"name": "keys", "key": "a"}}, "fallbacks": [{"host": "b.example"}],
        });
        let rules = policy(model.clone());
        let host: HostName = "a.example".parse().unwrap();
        let requests = rules.models_at(&host)[0]
            .targets
            .iter()
            .map(|target| Allowed::Model {
                host: host.clone(),
                model: "m".to_owned(),
                target: target.clone(),
                server_tools: vec!["web_search".to_owned()],
            });
        let requests: Vec<Allowed> = requests.collect();
        for (field, value, expected) in [
            ("allow", serde_json::json!(["m"]), [true, true]),
            ("allow", serde_json::json!(["n"]), [false, false]),
            ("fallbacks", serde_json::json!([]), [true, false]),
            ("route", serde_json::json!({"host": "a.example"}), [true, true]),
            (
                "credential",
                serde_json::json!({"secretRef": {"name": "keys", "key": "b"}}),
                [false, true],
            ),
            ("serverTools", serde_json::json!([]), [false, false]),
        ] {
            let mut model = model.clone();
            model[field] = value;
            let rules = policy(model);
            let still: Vec<bool> = requests.iter().map(|request| request.still(&rules)).collect();
            assert_eq!(still, expected, "{field}");
        }
    }

    #[test]
    fn what_has_ended_is_forgotten_and_a_run_s_end_ends_all() {
        let set = Arc::new(OpenSet::default());
        let run = CancellationToken::new();
        let first = set.insert(host("a.example", WayKind::Passthrough), &run);
        let second = set.insert(host("a.example", WayKind::Passthrough), &run);
        drop(first);
        assert_eq!(set.len(), 1);
        run.cancel();
        assert!(second.cancel.is_cancelled());
        drop(second);
        assert!(set.is_empty());
    }
}
