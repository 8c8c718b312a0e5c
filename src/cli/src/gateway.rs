//! The egress gateway's own log: its records of one run.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::time::Duration;

use agentsandbox_api::gateway::LABEL;
use futures::stream::{BoxStream, SelectAll};
use futures::{AsyncBufReadExt, Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use crate::connection::Connected;
use crate::lines::Line;
use crate::term::shown;

/// Between two looks for gateways that came since.
const LOOK: Duration = Duration::from_secs(1);

/// The records of the run with this pod, since it was made, as each gateway wrote them. With `follow` it never ends: a
/// gateway that replaces another is read as well, a log that breaks off is read again, and no record comes twice.
pub async fn records(
    connected: &Connected,
    pod_uid: &str,
    since: Option<Timestamp>,
    follow: bool,
) -> Result<impl Stream<Item = Line> + Unpin + use<>, kube::Error> {
    let mut reader = Reader {
        pods: Api::namespaced(connected.client.clone(), &connected.namespace),
        parameters: LogParams {
            follow,
            since_time: since,
            ..LogParams::default()
        },
        pod_uid: pod_uid.to_owned(),
        logs: SelectAll::new(),
        reading: BTreeSet::new(),
        given: HashSet::new(),
        hasher: RandomState::new(),
        next_look: Instant::now() + LOOK,
        troubled: false,
    };
    reader.look().await?;
    Ok(Box::pin(stream::unfold(reader, async |mut reader| {
        Some((reader.line().await?, reader))
    })))
}

/// What comes from a gateway's log.
enum Part {
    /// A line of the log of the pod with this UID.
    Line(String, String),
    /// The log of the pod with this UID has ended.
    End(String),
}

struct Reader {
    pods: Api<Pod>,
    parameters: LogParams,
    /// UID of the run's pod.
    pod_uid: String,
    logs: SelectAll<BoxStream<'static, Part>>,
    /// UIDs of the gateways' pods whose logs are open.
    reading: BTreeSet<String>,
    /// What was given already, as hashes: a log that is opened again begins anew. A record holds its number and the hash
    /// of the one before, so that no two are the same.
    given: HashSet<u64>,
    hasher: RandomState,
    next_look: Instant,
    /// Whether the last look found what can't be read.
    troubled: bool,
}

impl Reader {
    /// The run's next record.
    async fn line(&mut self) -> Option<Line> {
        loop {
            let part = tokio::select! {
                Some(part) = self.logs.next() => part,
                () = tokio::time::sleep_until(self.next_look), if self.parameters.follow => {
                    self.look_again().await;
                    continue;
                }
                else => return None,
            };
            match part {
                Part::End(gateway) => drop(self.reading.remove(&gateway)),
                Part::Line(gateway, text) => {
                    let line = Line::of_gateway(&text, &gateway, &self.pod_uid);
                    if let Some(line) = line.filter(|_| self.given.insert(self.hasher.hash_one(&text))) {
                        return Some(line);
                    }
                }
            }
        }
    }

    /// Opens the logs of gateways that aren't read yet. One that can't be read is told of, and keeps no other from it.
    async fn look(&mut self) -> Result<(), kube::Error> {
        let (label, value) = LABEL;
        let gateways = ListParams::default().labels(&format!("{label}={value}"));
        let mut trouble = None;
        for pod in self.pods.list(&gateways).await? {
            match self.open(&pod).await {
                // Its container is not there yet, or not any more.
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => {}
                Err(kube::Error::Api(status)) if status.is_forbidden() => {
                    return Err(kube::Error::Api(status));
                }
                Err(error) => trouble = Some(error),
                Ok(()) => {}
            }
        }
        self.tell(trouble.as_ref());
        Ok(())
    }

    /// Says what can't be read, once.
    fn tell(&mut self, trouble: Option<&kube::Error>) {
        if let Some(error) = trouble.filter(|_| !self.troubled) {
            let then = if self.parameters.follow {
                "it is asked for again"
            } else {
                "its records are left out"
            };
            let error = shown(&error.to_string());
            anstream::eprintln!("an egress gateway's log can't be read, {then}: {error}");
        }
        self.troubled = trouble.is_some();
    }

    async fn open(&mut self, pod: &Pod) -> Result<(), kube::Error> {
        let gateway = pod.uid().unwrap_or_default();
        if self.reading.contains(&gateway) {
            return Ok(());
        }
        let log = self.pods.log_stream(&pod.name_any(), &self.parameters).await?;
        self.reading.insert(gateway.clone());
        let follow = self.parameters.follow;
        let lines = log.lines().into_stream().inspect_err(move |error| {
            if !follow {
                anstream::eprintln!("the egress gateway's log broke off, records may be missing: {error}");
            }
        });
        let lines = lines.take_while(|line| future::ready(line.is_ok()));
        let of = gateway.clone();
        let parts =
            lines.filter_map(move |line| future::ready(line.ok().map(|line| Part::Line(of.clone(), line))));
        let end = stream::once(async move { Part::End(gateway) });
        self.logs.push(parts.chain(end).boxed());
        Ok(())
    }

    async fn look_again(&mut self) {
        if let Err(error) = self.look().await {
            self.tell(Some(&error));
        }
        self.next_look = Instant::now() + LOOK;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;
    use crate::fake_api;

    fn record(sequence: u64, destination: &str) -> String {
        let run = json!({"podUid": "run"});
        let record =
            json!({"seq": sequence, "time": "t", "run": run, "action": "allow", "destination": destination});
        format!("{record}\n")
    }

    /// The destinations of the first records, in their order.
    async fn read(follow: bool, records_wanted: usize, answer: impl fake_api::Answer) -> Vec<String> {
        let config = kube::Config::new(fake_api::serve(answer).parse().unwrap());
        let connected = Connected {
            client: kube::Client::try_from(config).unwrap(),
            namespace: "ns".to_owned(),
        };
        let records = records(&connected, "run", None, follow).await.unwrap();
        let texts = records.take(records_wanted).map(|line| line.text);
        texts.collect().await
    }

    fn gateways(names: &[&str]) -> fake_api::Answered {
        let pod = |name: &&str| json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}});
        let pods: Vec<_> = names.iter().map(pod).collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
        (200, list.to_string())
    }

    #[tokio::test]
    async fn a_gateway_that_replaces_another_is_followed_and_no_record_comes_twice() {
        let looks = AtomicUsize::new(0);
        let answer = move |request: &str| {
            if request.contains("/pods/old/log") {
                return (200, record(0, "a") + &record(1, "b"));
            }
            if request.contains("/pods/new/log") {
                // It was told only of the first record.
                return (200, record(1, "c") + &record(2, "d"));
            }
            match looks.fetch_add(1, Ordering::Relaxed) {
                0 => gateways(&["old"]),
                1 => (
                    500,
                    json!({"kind": "Status", "status": "Failure", "code": 500}).to_string(),
                ),
                _ => gateways(&["old", "new"]),
            }
        };
        assert_eq!(
            read(true, 4, answer).await,
            ["allow a", "allow b", "allow c", "allow d"]
        );
    }

    #[tokio::test]
    async fn a_gateway_whose_log_cant_be_read_hides_no_other() {
        let answer = |request: &str| {
            if request.contains("/pods/broken/log") {
                let status =
                    json!({"kind": "Status", "status": "Failure", "code": 500, "message": "no kubelet"});
                return (500, status.to_string());
            }
            if request.contains("/pods/ready/log") {
                return (200, record(0, "a"));
            }
            gateways(&["broken", "ready"])
        };
        assert_eq!(read(false, usize::MAX, answer).await, ["allow a"]);
    }

    #[tokio::test]
    async fn what_there_is_ends_and_a_gateway_without_a_log_hides_no_other() {
        let answer = |request: &str| {
            if request.contains("/pods/starting/log") {
                let status = json!({"kind": "Status", "status": "Failure", "code": 400, "message": "waiting to start"});
                return (400, status.to_string());
            }
            if request.contains("/pods/ready/log") {
                return (200, record(0, "a"));
            }
            gateways(&["starting", "ready"])
        };
        assert_eq!(read(false, usize::MAX, answer).await, ["allow a"]);
    }
}
