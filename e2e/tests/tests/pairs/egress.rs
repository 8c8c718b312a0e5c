//! Programs that know nothing of the gateway reach what their policy allows.

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::EgressDenial;
use e2e::Harness;
use e2e::egress::{Journal, header, policy};
use serde_json::{Value, json};

/// Tokens that the calls in `models.py` cost, by the outside world's count.
const PYTHON_TOKENS: i64 = 16 + 16 + 7 + 8 + 3 + 16 + 16;
/// Those in `models.js`.
const NODE_TOKENS: i64 = 16 + 16 + 7 + 8 + 3 + 16 + 16;

fn credential(secret: &str, header: &str, format: &str) -> Value {
    json!({"secretRef": {"name": secret, "key": "key"}, "header": header, "format": format})
}

fn everyday() -> Value {
    policy(
        &json!([
            {"host": "seen.example.test", "tls": "Inspect"},
            {"host": "big.example.test", "tls": "Inspect"},
            {"host": "through.example.test"},
            {"host": "plain.example.test", "tls": "None"},
            {"host": "*.wild.example.test"},
            {"host": "pypi.packages.test", "methods": ["GET", "HEAD"]},
            {"host": "npm.packages.test", "methods": ["GET", "HEAD"]},
            {"host": "git.packages.test", "paths": ["/git/demo.git/info/refs", "/git/demo.git/git-upload-pack"]},
        ]),
        &json!([
            {"provider": "OpenAI", "host": "openai.models.test", "allow": ["tiny"],
             "credential": credential("openai", "Authorization", "Bearer {}")},
            {"provider": "Anthropic", "host": "anthropic.models.test", "allow": ["small"],
             "credential": credential("anthropic", "x-api-key", "{}")},
        ]),
        json!({}),
    )
}

async fn everyday_namespace(test: &str) -> Harness {
    let harness = Harness::start(test).await.unwrap();
    for (name, key) in [("openai", "sk-real-openai"), ("anthropic", "sk-real-anthropic")] {
        let host = format!("{name}.models.test");
        harness
            .secret(name, &[("key", key), ("agentsandbox.dev.hosts", &host)])
            .await
            .unwrap();
    }
    harness.policy("default", everyday()).await.unwrap();
    harness
}

#[tokio::test]
async fn programs_work_unchanged_with_proxy_variables_and_without() {
    let harness = everyday_namespace("programs").await;
    let journal = Journal::open(&harness);
    let more = json!({"resources": {"cpu": "900m", "memory": "1Gi"}});
    let run = harness
        .script("programs", "programs.py", &[], more)
        .await
        .unwrap();
    let differences = run.differences(&[("*", &["ok"])]);
    assert!(
        differences.is_empty() && !run.outcomes.is_empty(),
        "{}\n{}",
        differences.join("\n"),
        run.log
    );
    // Each SDK ran twice; their tokens are counted to the last one, and none was guessed.
    let egress = run.egress();
    assert_eq!(
        egress.used.tokens,
        2 * (PYTHON_TOKENS + NODE_TOKENS),
        "{egress:?}"
    );
    assert_eq!(egress.input_tokens + egress.output_tokens, egress.used.tokens);
    assert_eq!(egress.estimated_tokens, 0);
    // git asks a proxy without its credentials first, to learn how it wants them.
    let refused_git =
        |denial: &EgressDenial| denial.reason == "TokenRequired" && denial.destination == "git.packages.test";
    assert!(egress.denials.iter().all(refused_git), "{egress:?}");
    assert!(egress.used.bytes > 2 * (20_000_000 + 3_000_000), "{egress:?}");
    assert_eq!(run.status.result.unwrap().reason, Some(Reason::Completed));
    // The providers saw their own keys, and neither saw the run's token.
    for (host, name, key) in [
        ("openai.models.test", "authorization", "Bearer sk-real-openai"),
        ("anthropic.models.test", "x-api-key", "sk-real-anthropic"),
    ] {
        let requests = journal.requests_to(host);
        assert!(requests.len() >= 10, "{host}: {}", requests.len());
        for request in requests {
            assert_eq!(header(&request, name), [key], "{request}");
        }
    }
    harness.finish().await.unwrap();
}

/// On the node's own kernel as well: the roads are the same.
#[tokio::test]
async fn programs_work_in_plain_containers_too() {
    let harness = everyday_namespace("programs-runc").await;
    let mut spec = everyday();
    spec["isolation"] = json!({"runtimeClassName": "runc", "minimum": "Container"});
    harness.policy("runc", spec).await.unwrap();
    let more = json!({"policyRef": {"name": "runc"}});
    let programs = ["curl", "curl through", "git clone", "fetch", "python sdks"];
    let run = harness
        .script("programs", "programs.py", &programs, more)
        .await
        .unwrap();
    let differences = run.differences(&[("*", &["ok"])]);
    assert!(
        differences.is_empty() && !run.outcomes.is_empty(),
        "{}\n{}",
        differences.join("\n"),
        run.log
    );
    assert_eq!(run.egress().used.tokens, 2 * PYTHON_TOKENS);
    harness.finish().await.unwrap();
}
