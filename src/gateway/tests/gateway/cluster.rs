//! What is asked of an API server, and how its answers are taken: played on loopback.

use std::sync::{Arc, Mutex};

use agentsandbox_api::policy::PolicyEgressStatus;
use agentsandbox_api::sandbox::EgressStatus;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use kube::Client;
use sandbox_gateway::kube_sink::KubeSink;
use sandbox_gateway::sink::{RunKey, SinkError, StatusSink};
use sandbox_gateway::{keys, watch};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Harness, NAMESPACE, eventually, local};
use crate::world::{Answer, answer, boxed, http_server};

/// What the API server is asked, and what it says.
#[derive(Default)]
struct ApiServer {
    asked: Mutex<Vec<(String, String, Value)>>,
    /// Status and body of the next answers to writes and reads of one object.
    answers: Mutex<Vec<(u16, Value)>>,
    /// Events of the watches, by resource.
    watches: Mutex<Vec<(String, mpsc::UnboundedSender<String>)>>,
}

impl ApiServer {
    fn event(&self, resource: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        for (watched, sender) in self.watches.lock().unwrap().iter() {
            if watched == resource {
                let _ = sender.send(line.clone());
            }
        }
    }

    fn is_watched(&self, resource: &str) -> bool {
        self.watches
            .lock()
            .unwrap()
            .iter()
            .any(|(watched, _)| watched == resource)
    }
}

async fn serve(server: Arc<ApiServer>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let target = parts.uri.to_string();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let content = parts
        .headers
        .get("content-type")
        .map(|kind| kind.to_str().unwrap().to_owned());
    server.asked.lock().unwrap().push((
        format!("{} {target}", parts.method),
        content.unwrap_or_default(),
        body,
    ));
    let resource = parts.uri.path().rsplit('/').next().unwrap().to_owned();
    match resource.as_str() {
        "openid-configuration" => return answer(json!({"issuer": "https://issuer.example"}).to_string()),
        "jwks" => {
            let key = json!({"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"});
            return answer(json!({ "keys": [key] }).to_string());
        }
        _ => {}
    }
    if target.contains("watch=true") {
        let (sender, receiver) = mpsc::unbounded_channel::<String>();
        server.watches.lock().unwrap().push((resource, sender));
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            let line = receiver.recv().await?;
            Some((
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(line))),
                receiver,
            ))
        });
        return http::Response::new(boxed(StreamBody::new(stream)));
    }
    if ["sandboxpolicies", "agentsandboxes", "pods"].contains(&resource.as_str()) {
        let (kind, version) = if resource == "pods" {
            ("PodList", "v1")
        } else {
            ("List", "agentsandbox.dev/v1alpha1")
        };
        let items = objects(&resource);
        let list = json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items});
        return answer(list.to_string());
    }
    let (status, body) = server.answers.lock().unwrap().pop().unwrap_or((404, Value::Null));
    let mut response = answer(body.to_string());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn objects(resource: &str) -> Vec<Value> {
    let object = match resource {
        "sandboxpolicies" => policy(
            "watched",
            json!({"egress": {"allow": [{"host": "api.example.test"}]}}),
        ),
        "agentsandboxes" => sandbox(&Value::Null),
        _ => pod("Running"),
    };
    vec![object]
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "SandboxPolicy",
           "metadata": {"name": name, "namespace": NAMESPACE, "uid": "p1", "resourceVersion": "2"}, "spec": spec})
}

fn sandbox(egress: &Value) -> Value {
    json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
           "metadata": {"name": "one", "namespace": NAMESPACE, "uid": "s1", "resourceVersion": "7"},
           "spec": {"policyRef": {"name": "watched"}, "image": "i", "command": ["c"]}, "status": {"egress": egress}})
}

fn pod(phase: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
               "name": "one-x", "namespace": NAMESPACE, "uid": "uid-one", "resourceVersion": "3",
               "labels": {"agentsandbox.dev/sandbox": "one", "agentsandbox.dev/policy": "watched"},
               "ownerReferences": [{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": "one", "uid": "s1", "controller": true}]},
           "spec": {"containers": []}, "status": {"phase": phase, "podIPs": [{"ip": "127.0.0.11"}]}})
}

async fn start() -> (Arc<ApiServer>, Client) {
    let server = Arc::new(ApiServer::default());
    let serving = server.clone();
    let address = http_server(None, move |request| serve(serving.clone(), request)).await;
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (server, sandbox_gateway::run::client(config).unwrap())
}

#[tokio::test]
async fn watches_and_keys_make_the_gateway_ready_and_keep_it_current() {
    let (server, client) = start().await;
    let harness = Harness::start(json!({})).await;
    assert_eq!(
        harness.gateway.readiness.missing(),
        ["keys", "pods", "policies", "sandboxes"]
    );
    tokio::spawn(watch::run(harness.gateway.clone(), client.clone()));
    tokio::spawn(keys::run(harness.gateway.clone(), client));
    eventually(|| harness.gateway.readiness.missing().is_empty().then_some(()))
        .await
        .unwrap();
    assert!(harness.gateway.policy("watched").is_ok());
    // The test's own signer again, in place of the API server's.
    harness.gateway.keys.set(
        sandbox_gateway::jwks::testing::ISSUER.into(),
        harness.signer.jwks(),
    );
    harness.sink.create("one");
    let (bound, _recorder) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(bound.bound, "{bound:?}");

    for resource in ["sandboxpolicies", "agentsandboxes", "pods"] {
        eventually(|| server.is_watched(resource).then_some(()))
            .await
            .unwrap();
    }
    server.event(
        "sandboxpolicies",
        "MODIFIED",
        &policy("watched", json!({"egress": {"allow": [{"host": "bad name"}]}})),
    );
    eventually(|| harness.gateway.policy("watched").is_err().then_some(()))
        .await
        .unwrap();
    server.event("sandboxpolicies", "ADDED", &policy("other", json!({})));
    eventually(|| harness.gateway.policy("other").is_ok().then_some(()))
        .await
        .unwrap();
    server.event("sandboxpolicies", "DELETED", &policy("other", json!({})));
    eventually(|| harness.gateway.policy("other").is_err().then_some(()))
        .await
        .unwrap();
    assert!(harness.gateway.session(local(11)).is_ok());
    server.event("pods", "MODIFIED", &pod("Succeeded"));
    eventually(|| harness.gateway.session(local(11)).is_err().then_some(()))
        .await
        .unwrap();
    let asked = server.asked.lock().unwrap();
    let pods = asked.iter().find(|(line, ..)| line.contains("/pods?")).unwrap();
    assert!(
        pods.0.contains("labelSelector=agentsandbox.dev%2Fsandbox"),
        "{}",
        pods.0
    );
    assert!(
        asked.iter().all(|(line, ..)| line.starts_with("GET ")),
        "nothing was written"
    );
}

fn key() -> RunKey {
    RunKey {
        namespace: NAMESPACE.into(),
        sandbox: "one".into(),
        sandbox_uid: "s1".into(),
        pod_uid: "uid-one".into(),
    }
}

#[tokio::test]
async fn a_status_is_applied_by_version_uid_and_field_manager() {
    let (server, client) = start().await;
    let sink = KubeSink::new(&client, NAMESPACE);
    server
        .answers
        .lock()
        .unwrap()
        .push((200, sandbox(&json!({"podUid": "uid-one", "allowed": 3}))));
    let seen = sink.load_run(&key()).await.unwrap();
    assert_eq!((seen.version.as_str(), seen.status.unwrap().allowed), ("7", 3));

    server.answers.lock().unwrap().push((200, sandbox(&Value::Null)));
    let status = EgressStatus {
        pod_uid: Some("uid-one".into()),
        allowed: 4,
        ..EgressStatus::default()
    };
    assert_eq!(sink.store_run(&key(), &status, "7").await.unwrap(), "7");
    let (line, kind, body) = server.asked.lock().unwrap().last().cloned().unwrap();
    assert!(
        line.starts_with(
            "PATCH /apis/agentsandbox.dev/v1alpha1/namespaces/agents/agentsandboxes/one/status?"
        ),
        "{line}"
    );
    assert!(
        line.contains("fieldManager=agentsandbox-gateway") && line.contains("force=true"),
        "{line}"
    );
    assert_eq!(kind, "application/apply-patch+yaml");
    assert_eq!(
        body["metadata"],
        json!({"name": "one", "uid": "s1", "resourceVersion": "7"})
    );
    assert_eq!(body["status"]["egress"]["allowed"], 4);
    assert_eq!(
        body["status"].as_object().unwrap().len(),
        1,
        "nobody else's part: {body}"
    );
    assert!(body.get("spec").is_none());

    server
        .answers
        .lock()
        .unwrap()
        .push((200, policy("default", json!({}))));
    sink.store_policy("default", &PolicyEgressStatus::default(), "2")
        .await
        .unwrap();
    let (line, _, body) = server.asked.lock().unwrap().last().cloned().unwrap();
    assert!(line.contains("/sandboxpolicies/default/status?"), "{line}");
    assert_eq!(
        body["status"],
        json!({"egress": {"tokens": 0, "modelRequests": 0}})
    );
}

#[tokio::test]
async fn the_api_server_s_refusals_are_told_apart() {
    let (server, client) = start().await;
    let sink = KubeSink::new(&client, NAMESPACE);
    let failure = |code: u16, reason: &str| {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "m", "reason": reason, "code": code}),
        )
    };
    for (said, expected) in [
        (failure(409, "Conflict"), SinkError::Conflict),
        (failure(404, "NotFound"), SinkError::Gone),
        (failure(403, "Forbidden"), SinkError::Refused(String::new())),
        (failure(422, "Invalid"), SinkError::Refused(String::new())),
        (failure(500, "InternalError"), SinkError::Unknown(String::new())),
        (failure(504, "Timeout"), SinkError::Unknown(String::new())),
    ] {
        server.answers.lock().unwrap().push(said.clone());
        let error = sink
            .store_run(&key(), &EgressStatus::default(), "7")
            .await
            .unwrap_err();
        assert_eq!(
            std::mem::discriminant(&error),
            std::mem::discriminant(&expected),
            "{said:?}: {error}"
        );
    }
    assert_eq!(server.asked.lock().unwrap().len(), 6, "each is asked once");
    // Another sandbox of the same name is another sandbox.
    let mut other = sandbox(&Value::Null);
    other["metadata"]["uid"] = "s2".into();
    server.answers.lock().unwrap().push((200, other));
    assert_eq!(sink.load_run(&key()).await.unwrap_err(), SinkError::Gone);
}
