//! Credentials: added on the way out, never to be seen from inside, for the run that may use them and for no other.

use std::collections::BTreeMap;
use std::fs;

use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::egress::{Journal, Run, header, policy};
use e2e::harness::{name_of, repository};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};

const VALUE: &str = "s3cr3t-value-of-the-gateway";
/// Parts of it, and what it looks like encoded: none may be seen either.
const TRACES: [&str; 3] = ["s3cr3t-value", "czNjcjN0LXZhbHVl", "of-the-gateway"];

/// Attempts of `credentials.py`.
const ATTEMPTS: &[(&str, &[&str])] = &[
    ("control", &["200"]),
    ("http/2", &["200 2"]),
    ("own value twice", &["200", "400 RequestMalformed"]),
    ("own value*", &["200"]),
    ("reflected*", &["200"]),
    // Nobody asked for a compressed answer, and the value could not be found in it.
    ("compressed*", &["502 EncodingNotAllowed"]),
    ("not compressed", &["200"]),
    ("range", &["403 RangeNotAllowed"]),
    ("if-range", &["403 RangeNotAllowed"]),
    ("redirect", &["302"]),
    ("cookie", &["None"]),
    ("path", &["200"]),
    ("other path", &["403 PathNotAllowed"]),
    ("own header name", &["200"]),
    ("two rules", &["403 CredentialAmbiguous"]),
    ("one of two rules", &["200"]),
    ("no consent", &["403 CredentialUnavailable"]),
    ("consent to another host", &["403 CredentialUnavailable"]),
    ("no secret", &["403 CredentialUnavailable"]),
    ("line break in the secret", &["403 CredentialUnavailable"]),
    ("plain http in a tunnel", &["closed", "40*"]),
    ("plain http*", &["403 SchemeNotAllowed", "403 PortNotAllowed"]),
    ("no token at the proxy", &["407 TokenRequired"]),
    ("no token, absolute form", &["407 TokenRequired"]),
    ("empty token", &["407 Token*"]),
    ("wrong token", &["407 TokenWrong"]),
    ("two tokens", &["407 Token*", "400 RequestMalformed"]),
    ("bearer at the proxy", &["407 Token*"]),
    ("other user", &["407 Token*"]),
    ("steered without token", &["407 TokenRequired"]),
    ("steered with wrong token", &["407 TokenWrong"]),
    ("steered with token*", &["200"]),
    ("steered, no credential, no token", &["200"]),
    ("another's token*", &["407 TokenWrong"]),
];

fn keyed(host: &str, secret: &str, more: Value) -> Value {
    let mut rule = json!({"host": host, "credential": {"secretRef": {"name": secret, "key": "key"}}});
    if let (Value::Object(rule), Value::Object(more)) = (&mut rule, more) {
        rule.extend(more);
    }
    rule
}

async fn namespace(test: &str) -> Harness {
    let harness = Harness::start(test).await.unwrap();
    let hosts = "keyed.example.test\npathed.example.test\ntwice.example.test\nnamed.example.test\nbroken.example.test\n";
    for (name, data) in [
        ("good", vec![("key", VALUE), ("agentsandbox.dev.hosts", hosts)]),
        ("silent", vec![("key", VALUE)]),
        (
            "elsewhere",
            vec![
                ("key", VALUE),
                (
                    "agentsandbox.dev.hosts",
                    "keyed.example.test.evil.test\n*.example.test\nexample.test",
                ),
            ],
        ),
        (
            "broken",
            vec![
                ("key", "one\r\nX-Injected: yes"),
                ("agentsandbox.dev.hosts", hosts),
            ],
        ),
    ] {
        harness.secret(name, &data).await.unwrap();
    }
    let named = json!({"secretRef": {"name": "good", "key": "key"}, "header": "X-Token", "format": "{}"});
    let allow = json!([
        {"host": "seen.example.test", "tls": "Inspect"},
        {"host": "plain.example.test", "tls": "None"},
        keyed("keyed.example.test", "good", json!({})),
        keyed("pathed.example.test", "good", json!({"paths": ["/allowed/"]})),
        {"host": "named.example.test", "credential": named},
        keyed("twice.example.test", "good", json!({"paths": ["/both/", "/one/"]})),
        {"host": "twice.example.test", "paths": ["/both/"]},
        keyed("unconsented.example.test", "silent", json!({})),
        keyed("elsewhere.example.test", "elsewhere", json!({})),
        keyed("missing.example.test", "missing", json!({})),
        keyed("broken.example.test", "broken", json!({})),
    ]);
    harness
        .policy("default", policy(&allow, &json!([]), json!({})))
        .await
        .unwrap();
    harness
}

/// The word after another one in a log.
fn word_after(log: &str, word: &str) -> String {
    let mut words = log.split_whitespace().skip_while(|found| *found != word);
    words.nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_credential_goes_to_its_host_and_is_seen_nowhere_else() {
    let harness = namespace("credentials").await;
    let journal = Journal::open(&harness);
    harness
        .start_script("other", "wait.py", &["60"], json!({}))
        .await
        .unwrap();
    let token = word_after(&harness.printed("other", "ADDRESS").await.unwrap(), "TOKEN");
    assert_eq!(token.len(), 64);
    let run = harness
        .script("credentials", "credentials.py", &[&token], json!({}))
        .await
        .unwrap();
    let differences = run.differences(ATTEMPTS);
    assert!(
        differences.is_empty() && !run.outcomes.is_empty(),
        "{differences:#?}\n{}",
        run.log
    );

    check_outside(&journal, &run, &token);
    check_inside(&harness, &run).await;
    harness.finish().await.unwrap();
}

/// The token that the script found in its environment, and printed.
fn own_token(run: &Run) -> &str {
    let mut lines = run.log.lines();
    lines.find_map(|line| line.strip_prefix("TOKEN ")).unwrap()
}

/// The credential must be at its hosts, once, whatever the sandbox itself sent there.
fn check_outside(journal: &Journal, run: &Run, other_token: &str) {
    let requests: Vec<Value> = journal
        .lines()
        .into_iter()
        .filter(|line| line["what"] == "request")
        .collect();
    let with_value: Vec<&Value> = requests
        .iter()
        .filter(|line| line.to_string().contains(VALUE))
        .collect();
    assert!(with_value.len() >= 12, "{}", with_value.len());
    for request in &with_value {
        let host = request["host"].as_str().unwrap();
        let (name, expected) = match host {
            "named.example.test" => ("x-token", VALUE.to_owned()),
            "keyed.example.test" | "pathed.example.test" | "twice.example.test" => {
                ("authorization", format!("Bearer {VALUE}"))
            }
            // Sent to a host that may not have it.
            _ => ("", String::new()),
        };
        assert_eq!(header(request, name), [expected], "{request}");
        assert_eq!(request["scheme"], "https");
        assert_eq!(header(request, "accept-encoding"), ["identity"], "{request}");
    }
    let own = own_token(run);
    for request in &requests {
        let text = request.to_string();
        assert!(
            !text.contains(own) && !text.contains(other_token),
            "a run's token got out: {text}"
        );
        assert!(
            !text.contains("Bearer mine") && !text.contains("X-Injected"),
            "{text}"
        );
        assert!(request["host"] != "evil.test", "a redirect was followed: {text}");
        assert!(
            request["host"] != "twice.example.test" || request["path"] != "/both/x",
            "{text}"
        );
    }
}

/// It must not be in anything that can be seen inside the cluster.
async fn check_inside(harness: &Harness, run: &Run) {
    let token = own_token(run);
    let sandbox =
        serde_json::to_string(&harness.api::<AgentSandbox>().get("credentials").await.unwrap()).unwrap();
    let pods = serde_json::to_string(
        &harness
            .api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items,
    )
    .unwrap();
    let gateway = harness.gateway_log().await.unwrap();
    let recorder = harness
        .log_of("credentials", "recorder")
        .await
        .unwrap_or_default();
    let maps = serde_json::to_string(
        &harness
            .api::<ConfigMap>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items,
    )
    .unwrap();
    for (place, text) in [
        ("the sandbox's output", &run.log),
        ("the object", &sandbox),
        ("the pods", &pods),
        ("the gateway's log", &gateway),
        ("the recorder's log", &recorder),
        ("the config maps", &maps),
    ] {
        for trace in TRACES {
            assert!(!text.contains(trace), "{trace} is in {place}");
        }
        assert!(
            place == "the sandbox's output" || !text.contains(token),
            "the run's token is in {place}"
        );
    }
    assert!(
        gateway.contains("keyed.example.test"),
        "the log names what was allowed"
    );
}

#[tokio::test]
async fn a_rotated_secret_is_used_without_a_restart() {
    let harness = namespace("rotation").await;
    harness
        .start_script("rotation", "rotation.py", &[], json!({}))
        .await
        .unwrap();
    harness.printed("rotation", "FIRST").await.unwrap();
    let before: Vec<String> = harness
        .gateway_pods()
        .await
        .unwrap()
        .iter()
        .map(name_of)
        .collect();
    let journal = Journal::open(&harness);
    let data = [
        ("key", "the-next-value"),
        ("agentsandbox.dev.hosts", "keyed.example.test"),
    ];
    harness.secret("good", &data).await.unwrap();
    let run = harness.ended_script("rotation").await.unwrap();
    let differences = run.differences(&[("rotated", &["yes"]), ("failures", &["0"])]);
    assert!(differences.is_empty(), "{differences:?}\n{}", run.log);
    assert!(journal.text().contains("Bearer the-next-value"));
    let after: Vec<String> = harness
        .gateway_pods()
        .await
        .unwrap()
        .iter()
        .map(name_of)
        .collect();
    assert_eq!(before, after, "the same gateway");
    harness.finish().await.unwrap();
}

/// Makes the next pod of the node get this address, if nobody takes it first.
fn next_address(harness: &Harness, address: &str) {
    let before: std::net::Ipv4Addr = address.parse().unwrap();
    let before = std::net::Ipv4Addr::from(u32::from(before) - 1);
    fs::write(
        harness.cluster.pod_addresses().join("last_reserved_ip.0"),
        before.to_string(),
    )
    .unwrap();
}

fn address_of(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone()
}

/// A pod that somebody dresses up as a sandbox, at the address of one, with the token of one.
async fn forged_pod_gets_nothing(harness: &Harness, address: &str, token: &str) {
    let forged = forged_pod(harness, token).await;
    let api = harness.api::<Pod>();
    // The cluster itself would refuse such a pod.
    harness.unbind("agentsandbox-pods").unwrap();
    let mut got = None;
    for _ in 0..5 {
        next_address(harness, address);
        let made = harness
            .eventually("a pod that is not refused", || async {
                match harness.create::<Pod>(forged.clone()).await {
                    Err(error) if error.to_string().contains("agentsandbox-pods") => Ok(None),
                    made => made.map(Some),
                }
            })
            .await;
        let name = name_of(&made.unwrap());
        let found = harness
            .eventually("an address", || async {
                Ok(api.get_opt(&name).await?.as_ref().and_then(address_of))
            })
            .await
            .unwrap();
        if found == address {
            got = Some(name);
            break;
        }
        delete_now(harness, &name).await;
    }
    harness.bind_again().unwrap();
    let name = got.expect("the forged pod got the address");
    let log = harness
        .eventually("the script's outcomes", || async {
            let log = api.logs(&name, &LogParams::default()).await.unwrap_or_default();
            Ok(log.contains("RESULT").then_some(log))
        })
        .await
        .unwrap();
    let outcomes = log.lines().find_map(|line| line.strip_prefix("RESULT ")).unwrap();
    let outcomes: BTreeMap<String, String> = serde_json::from_str(outcomes).unwrap();
    for (attempt, outcome) in &outcomes {
        let ended = ["closed", "silence", "000 0"].contains(&outcome.as_str());
        assert!(ended || outcome == "403 UnknownSandbox", "{attempt}: {outcome}");
    }
    assert!(outcomes.len() > 20, "{outcomes:?}");
    // It is the gateway that refuses: packets that are dropped on the way would be silence.
    assert!(
        outcomes
            .values()
            .any(|outcome| outcome == "closed" || outcome == "403 UnknownSandbox"),
        "{outcomes:?}"
    );
    assert!(!log.contains(VALUE));
    delete_now(harness, &name).await;
}

async fn delete_now(harness: &Harness, pod: &str) {
    let api = harness.api::<Pod>();
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    api.delete(pod, &now).await.unwrap();
    harness
        .eventually("the end of the pod", || async {
            Ok(api.get_opt(pod).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
}

async fn forged_pod(harness: &Harness, token: &str) -> Value {
    let read = |file: &str| fs::read_to_string(repository().join("e2e/tests/scripts").join(file)).unwrap();
    let data: BTreeMap<&str, String> = [
        ("attack.py", read("attack.py")),
        ("credentials.py", read("credentials.py")),
    ]
    .into();
    harness
        .create::<ConfigMap>(json!({"metadata": {"name": "scripts"}, "data": data}))
        .await
        .unwrap();
    let service = harness
        .kubectl(&[
            "get",
            "service",
            "agentsandbox-gateway",
            "-o=jsonpath={.spec.clusterIP}",
        ])
        .unwrap();
    json!({
        "metadata": {"name": "forged", "labels": {"agentsandbox.dev/sandbox": "first", "agentsandbox.dev/policy": "default"}},
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "agent", "image": e2e::egress::SDK_IMAGE, "imagePullPolicy": "Never",
                "command": ["python3", "/scripts/credentials.py", "none"],
                "env": [{"name": "HTTPS_PROXY", "value": format!("http://run:{token}@{service}:3128")}],
                "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
            "volumes": [{"name": "scripts", "configMap": {"name": "scripts"}}],
        },
    })
}

/// Starts a sandbox that tries another one's token, at a certain address; gives its name.
async fn sandbox_at(harness: &Harness, address: &str, token: &str) -> String {
    let mut got = None;
    for attempt in 0..5 {
        next_address(harness, address);
        let name = format!("second-{attempt}");
        harness
            .start_script(&name, "credentials.py", &[token], json!({}))
            .await
            .unwrap();
        let found = harness
            .eventually("an address", || async {
                Ok(harness.pods_of(&name).await?.first().and_then(address_of))
            })
            .await
            .unwrap();
        if found == address {
            got = Some(name);
            break;
        }
        let sandboxes = harness.api::<AgentSandbox>();
        sandboxes.delete(&name, &DeleteParams::default()).await.unwrap();
        harness.without_pods(&name).await.unwrap();
    }
    got.expect("a second sandbox got the address")
}

#[tokio::test]
async fn an_address_that_a_run_has_left_is_nobodys() {
    let harness = namespace("stale").await;
    harness
        .start_script("first", "wait.py", &["1"], json!({"ttlSecondsAfterFinished": 0}))
        .await
        .unwrap();
    let token = word_after(&harness.printed("first", "ADDRESS").await.unwrap(), "TOKEN");
    let address = address_of(&harness.pods_of("first").await.unwrap()[0]).unwrap();
    harness.finished("first").await.unwrap();
    harness.without_pods("first").await.unwrap();

    forged_pod_gets_nothing(&harness, &address, &token).await;

    // A real sandbox at that address, with the token of the one before.
    let second = sandbox_at(&harness, &address, &token).await;
    let run = harness.ended_script(&second).await.unwrap();
    for (attempt, outcome) in run
        .outcomes
        .iter()
        .filter(|(attempt, _)| attempt.starts_with("another's token"))
    {
        assert_eq!(outcome, "407 TokenWrong", "{attempt}");
    }
    assert_eq!(run.outcomes["control"], "200");
    harness.finish().await.unwrap();
}
