//! What can't be recorded does not happen.

use agentsandbox_api::sandbox::Limits as AskedLimits;
use agentsandbox_egress::budget::Counters;
use serde_json::json;

use crate::inspect::{ask, open};
use crate::models::{self, chat, post};
use crate::world::raw_echo;

#[tokio::test]
async fn nothing_is_dialled_that_can_not_be_recorded() {
    let policy =
        models::policy_with(json!({"egress": {"allow": [{"cidr": "198.51.100.0/24", "ports": [5432]}]}}));
    let (harness, sandbox, provider) = models::start(policy, AskedLimits::default()).await;
    let echo = raw_echo("").await;
    harness
        .network
        .route_address("198.51.100.7".parse().unwrap(), 5432, echo);
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    let (_tunnel, answer) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let dialled = harness.network.dialled.lock().unwrap().clone();
    assert_eq!(dialled.len(), 1, "the tunnel's: {dialled:?}");

    harness.break_log().await;
    let (_, answer) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("LogFull"),
        "{answer}"
    );
    let request = post(
        "/v1/chat/completions",
        "api.openai.test",
        &chat("good", json!({})),
    );
    let answer = ask(&mut stream, &request).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("LogFull"),
        "{answer}"
    );
    assert_eq!(*harness.network.dialled.lock().unwrap(), dialled);
    assert!(provider.requests.lock().unwrap().is_empty());
    let used = harness.gateway.session(sandbox.address).unwrap().account.used();
    assert_eq!(
        Counters { bytes: 0, ..used },
        Counters::ZERO,
        "nothing was asked for"
    );
}
