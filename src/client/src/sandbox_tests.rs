//! What the client asks of the API server, answered from a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use futures::TryStreamExt;

use crate::{Error, Sandbox, Sandboxes, Until};

const OBJECT: &str = "/apis/agentsandbox.dev/v1alpha1/namespaces/ns/agentsandboxes/job";

/// Requests that are due, each with part of its line and body, and its answer. One more than these fails the test.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<(String, u16, String)>>>);

impl Script {
    fn then(self, request: &str, status: u16, answer: &Value) -> Self {
        self.text(request, status, answer.to_string())
    }

    fn text(self, request: &str, status: u16, answer: String) -> Self {
        self.0
            .lock()
            .unwrap()
            .push_back((request.to_owned(), status, answer));
        self
    }

    fn client(&self) -> Client {
        let script = self.0.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let body = request.into_body().collect_bytes().await.unwrap();
                let asked = format!("{line} {}", String::from_utf8_lossy(&body));
                let due = script.lock().unwrap().pop_front();
                let (expected, status, answer) = due.unwrap_or_else(|| panic!("one request more: {asked}"));
                let is_due = expected.split(" … ").all(|part| asked.contains(part));
                assert!(is_due, "{asked} where {expected} is due");
                let response = Response::builder()
                    .status(status)
                    .body(Body::from(answer.into_bytes()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        Client::new(service, "ns")
    }

    async fn sandbox(&self) -> Sandbox {
        Sandboxes::new(self.client(), "ns").get("job").await.unwrap()
    }

    fn is_over(&self) {
        assert!(self.0.lock().unwrap().is_empty(), "{:?}", self.0.lock().unwrap());
    }
}

fn object(uid: &str, finished: bool) -> Value {
    let finished = if finished { "True" } else { "Unknown" };
    json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "job", "namespace": "ns", "uid": uid, "resourceVersion": "5"},
        "spec": {"image": "x", "command": ["y"]},
        "status": {"runId": "", "phase": "Running", "podName": "job-sb00000000", "conditions": [
            {"type": "Succeeded", "status": finished, "reason": "Completed", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Finished", "status": finished, "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    })
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no"})
}

#[tokio::test]
async fn every_change_names_the_object_that_is_meant() {
    let script = Script::default()
        .then(&format!("GET {OBJECT}"), 200, &object("1", false))
        .then(
            &format!("PATCH {OBJECT} … \"uid\":\"1\" … \"stop\":true"),
            200,
            &object("1", false),
        )
        .then(
            "PATCH … \"runId\":\"again\" … \"stop\":false",
            409,
            &refusal(409, "Conflict"),
        )
        .then(
            "DELETE … \"preconditions\":{\"uid\":\"1\"}",
            404,
            &refusal(404, "NotFound"),
        )
        .then(&format!("GET {OBJECT}"), 200, &object("2", false));
    let sandbox = script.sandbox().await;
    sandbox.stop().await.unwrap();
    assert!(matches!(sandbox.rerun("again").await, Err(Error::Deleted { .. })));
    assert!(matches!(sandbox.delete().await, Err(Error::NotFound { .. })));
    assert!(matches!(sandbox.object().await, Err(Error::Deleted { .. })));
    script.is_over();
}

#[tokio::test]
async fn a_sandbox_that_was_made_in_spite_of_an_error_is_taken_and_none_is_made_twice() {
    let wanted = || {
        crate::SandboxBuilder::new("x")
            .generate_name("job-")
            .command(["y"])
    };
    let script = Script::default()
        .then("POST … \"name\":\"job-", 504, &refusal(504, "Timeout"))
        .then("GET … agentsandboxes/job-", 200, &object("1", false))
        .then("POST … \"name\":\"job-", 504, &refusal(504, "Timeout"))
        .then("GET … agentsandboxes/job-", 404, &refusal(404, "NotFound"))
        .then("POST", 403, &refusal(403, "Forbidden"));
    let sandboxes = Sandboxes::new(script.client(), "ns");
    assert_eq!(sandboxes.create(wanted()).await.unwrap().name(), "job");
    for code in [504, 403] {
        let refused = sandboxes.create(wanted()).await.err().unwrap();
        assert_eq!(refused.api_code(), Some(code));
    }
    script.is_over();
}

#[tokio::test]
async fn a_step_that_cant_start_says_that_the_run_has_ended_unless_it_was_forbidden() {
    let script = |ended: bool, code: u16| {
        Script::default()
            .then("GET", 200, &object("1", false))
            .then("GET", 200, &object("1", ended))
            .then("/exec?", code, &refusal(code, "r"))
    };
    let start = async |script: Script| {
        let sandbox = script.sandbox().await;
        let error = sandbox.start_step(&crate::Step::new(["y"])).await.err().unwrap();
        script.is_over();
        error
    };
    let ended = start(script(true, 400).then("GET", 200, &object("1", true))).await;
    assert!(
        matches!(&ended, Error::RunEnded { reason, .. } if reason == "Completed"),
        "{ended:?}"
    );
    let running = start(script(false, 400).then("GET", 200, &object("1", false))).await;
    assert_eq!(running.api_code(), Some(400));
    assert_eq!(start(script(true, 403)).await.api_code(), Some(403));
}

#[tokio::test]
async fn a_wait_outlasts_a_watch_that_breaks_off_and_one_that_is_too_old() {
    let list = |finished: bool| {
        json!({"kind": "AgentSandboxList", "apiVersion": "agentsandbox.dev/v1alpha1",
            "metadata": {"resourceVersion": "5"}, "items": [object("1", finished)]})
    };
    let gone = json!({"type": "ERROR", "object": refusal(410, "Expired")});
    let script = Script::default()
        .then(&format!("GET {OBJECT}"), 200, &object("1", false))
        .then(&format!("GET {OBJECT}"), 200, &object("1", false))
        .then("fieldSelector=metadata.name", 200, &list(false))
        .text("watch=true", 200, String::new())
        .text("watch=true", 200, format!("{gone}\n"))
        .then("fieldSelector=metadata.name", 200, &list(true));
    let sandbox = script.sandbox().await;
    tokio::time::pause();
    let finished = sandbox
        .wait(Until::Finished, Some(Duration::from_hours(1)), |_| {})
        .await;
    assert!(finished.is_ok(), "{finished:?}");
    script.is_over();
}

#[tokio::test]
async fn a_wait_ends_with_its_time_and_with_a_right_that_is_missing() {
    let forbidden = refusal(403, "Forbidden");
    let script = Script::default()
        .then("GET", 200, &object("1", false))
        .then("GET", 200, &object("1", false))
        .then("fieldSelector", 403, &forbidden);
    let sandbox = script.sandbox().await;
    let refused = sandbox.wait(Until::Finished, None, |_| {}).await.unwrap_err();
    assert_eq!(refused.api_code(), Some(403));
    script.is_over();

    let script = Script::default()
        .then("GET", 200, &object("1", false))
        .then("GET", 200, &object("1", false))
        .then("fieldSelector", 500, &refusal(500, "InternalError"));
    let sandbox = script.sandbox().await;
    // Shorter than the pause before the list is asked for again.
    let late = sandbox
        .wait(Until::Finished, Some(Duration::from_millis(100)), |_| {})
        .await;
    let Err(Error::Timeout { last, .. }) = late else {
        panic!("{late:?}");
    };
    assert_eq!(last, "Running");
}

#[tokio::test]
async fn a_followed_log_goes_on_where_it_broke_and_no_record_comes_twice() {
    let record = |number: u64, activity: &str| {
        json!({"seq": number, "time": "t", "class": 6002, "activity": activity, "signal": 15, "reason": "Stopped"}).to_string()
            + "\n"
    };
    let (first, last) = (record(0, "signal"), record(1, "end"));
    let running = object("1", false);
    let script = Script::default()
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .then("/log? … container=recorder", 400, &refusal(400, "BadRequest"))
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .text("follow=true", 200, first.clone())
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .text(
            "/log? … container=recorder",
            200,
            ["no record\n", &first, &last].concat(),
        );
    let sandbox = script.sandbox().await;
    tokio::time::pause();
    let records: Vec<_> = sandbox.log(true, None).try_collect().await.unwrap();
    let numbers: Vec<u64> = records.iter().map(|record| record.sequence).collect();
    assert_eq!(numbers, [0, 1]);
    assert_eq!(records[1].line, last.trim_end());
    script.is_over();
}

#[tokio::test]
async fn followed_output_goes_on_where_it_broke_to_the_end_of_the_run() {
    let (running, ended) = (object("1", false), object("1", true));
    let script = Script::default()
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .then("GET", 200, &running)
        .text("/log? … container=agent", 200, "abc".to_owned())
        .then("GET", 200, &ended)
        .then("GET", 200, &ended)
        .text("/log? … container=agent", 200, "abcdef".to_owned());
    let sandbox = script.sandbox().await;
    tokio::time::pause();
    let mut output = Vec::new();
    assert_eq!(sandbox.output(true, &mut output).await.unwrap(), 6);
    assert_eq!(output, b"abcdef");
    script.is_over();
}
