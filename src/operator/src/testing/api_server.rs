//! An API server in memory: it lists, reads, creates, applies, patches and deletes what it was given, and writes down
//! what was asked. Its watches stay silent, so that stores hold what stood when they were filled.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::merge;

/// The server's address, objects and memory.
#[derive(Clone, Default)]
pub struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Objects by their path.
    objects: BTreeMap<String, Value>,
    /// Writes, as `verb path`.
    writes: Vec<String>,
    /// Paths whose writes are refused, with the message.
    refused: BTreeMap<String, String>,
    versions: u64,
}

impl ApiServer {
    /// Holds this object from the beginning.
    pub fn put(&self, path: &str, object: Value) {
        self.0.lock().unwrap().objects.insert(path.to_owned(), object);
    }

    /// The object at a path.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// Changes an object as somebody else would.
    pub fn change(&self, path: &str, change: Value) {
        let mut state = self.0.lock().unwrap();
        merge(state.objects.get_mut(path).unwrap(), change);
    }

    /// Refuses to write at a path from now on.
    pub fn refuse(&self, path: &str, message: &str) {
        let mut state = self.0.lock().unwrap();
        state.refused.insert(path.to_owned(), message.to_owned());
    }

    /// Takes what was written since the last look.
    pub fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().writes)
    }

    /// Serves on loopback until the test ends, and returns a client of it.
    pub async fn serve(&self) -> Client {
        let server = self.clone();
        let router = Router::new().fallback(
            move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
                server.answer(&method, &uri, &headers, &body)
            },
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Client::try_from(Config::new(url.parse().unwrap())).unwrap()
    }

    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Response {
        let mut state = self.0.lock().unwrap();
        let path = uri.path();
        if *method == Method::GET {
            let query = uri.query().unwrap_or_default();
            return if query.contains("watch=true") {
                silence()
            } else {
                state.read(path)
            };
        }
        let content_type = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let verb = match (method, content_type) {
            (&Method::POST, _) => "create",
            (&Method::PATCH, "application/apply-patch+yaml") => "apply",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, _) => "delete",
            _ => "other",
        };
        state.writes.push(format!("{verb} {path}"));
        if let Some(message) = state.refused.get(path) {
            return refusal(StatusCode::FORBIDDEN, "Forbidden", message);
        }
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match verb {
            "delete" => state.delete(path, &sent),
            "create" => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                state.write(&format!("{path}/{name}"), sent)
            }
            _ => state.write(path, sent),
        }
    }
}

impl State {
    fn read(&self, path: &str) -> Response {
        if let Some(object) = self.objects.get(path) {
            return answered(object);
        }
        // Plurals are lower-case words without dash; a name that is missing has one.
        if path.rsplit('/').next().is_some_and(|last| last.contains('-')) {
            return refusal(StatusCode::NOT_FOUND, "NotFound", "there is no such object");
        }
        let (group, plural) = path.rsplit_once('/').unwrap();
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(place, _)| place.starts_with(group) && place.rsplit('/').nth(1) == Some(plural))
            .map(|(_, object)| object)
            .collect();
        answered(
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
        )
    }

    /// Applies or merge-patches. Both put fields into what is there; a patch also takes nulls away.
    fn write(&mut self, path: &str, sent: Value) -> Response {
        self.versions += 1;
        let version = self.versions;
        let object = self.objects.entry(path.to_owned()).or_default();
        put_into(object, sent);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{version}").into();
        }
        if object["kind"] == "Service" {
            object["spec"]["clusterIPs"] = json!(["10.96.3.4"]);
        }
        answered(object)
    }

    fn delete(&mut self, path: &str, options: &Value) -> Response {
        let uid = &options["preconditions"]["uid"];
        match self.objects.get(path) {
            None => refusal(StatusCode::NOT_FOUND, "NotFound", "there is no such object"),
            Some(object) if object["metadata"]["uid"] != *uid => {
                refusal(StatusCode::CONFLICT, "Conflict", "another object has that name")
            }
            Some(_) => answered(&self.objects.remove(path).unwrap()),
        }
    }
}

fn put_into(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(&key);
        } else {
            put_into(&mut target[key.as_str()], value);
        }
    }
}

fn answered(object: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": message, "code": code.as_u16()});
    (code, status.to_string()).into_response()
}

/// A watch without an event.
fn silence() -> Response {
    Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>()).into_response()
}
