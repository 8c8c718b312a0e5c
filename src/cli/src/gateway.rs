//! The egress gateway's own log: its records of one run.

use agentsandbox_api::gateway::LABEL;
use futures::{AsyncBufReadExt, Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use crate::connection::Connected;
use crate::lines::Line;

/// The records of the run with this pod, since it was made, as each gateway wrote them. A log that breaks off ends.
pub async fn records(
    connected: &Connected,
    pod_uid: &str,
    since: Option<Timestamp>,
    follow: bool,
) -> Result<impl Stream<Item = Line> + Unpin + use<>, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(connected.client.clone(), &connected.namespace);
    let (label, value) = LABEL;
    let found = pods
        .list(&ListParams::default().labels(&format!("{label}={value}")))
        .await?;
    let parameters = LogParams {
        follow,
        since_time: since,
        ..LogParams::default()
    };
    let mut logs = Vec::new();
    for pod in found {
        let log = pods.log_stream(&pod.name_any(), &parameters).await?;
        let pod_uid = pod_uid.to_owned();
        let lines = log
            .lines()
            .into_stream()
            .take_while(|line| future::ready(line.is_ok()));
        logs.push(Box::pin(lines.filter_map(move |line| {
            future::ready(line.ok().and_then(|line| Line::of_gateway(&line, &pod_uid)))
        })));
    }
    Ok(stream::select_all(logs))
}
