//! Models: what a provider must not be used for, where requests are routed, and what each costs.

use agentsandbox_api::reason::Reason;
use e2e::Harness;
use e2e::egress::{Journal, header, policy};
use serde_json::{Value, json};

fn openai(host: &str, allow: &[&str], more: Value) -> Value {
    let mut rule = json!({
        "provider": "OpenAI", "host": host, "allow": allow,
        "credential": {"secretRef": {"name": "openai", "key": "key"}},
    });
    if let (Value::Object(rule), Value::Object(more)) = (&mut rule, more) {
        rule.extend(more);
    }
    rule
}

async fn namespace(test: &str, models: Value, more: Value) -> Harness {
    let harness = Harness::start(test).await.unwrap();
    let hosts = "openai.models.test\nodd.models.test\nbusy.models.test\ndown.models.test\nspare.models.test";
    harness
        .secret(
            "openai",
            &[("key", "sk-real-openai"), ("agentsandbox.dev.hosts", hosts)],
        )
        .await
        .unwrap();
    harness
        .secret(
            "anthropic",
            &[
                ("key", "sk-real-anthropic"),
                ("agentsandbox.dev.hosts", "anthropic.models.test"),
            ],
        )
        .await
        .unwrap();
    harness
        .policy("default", policy(&json!([]), &models, more))
        .await
        .unwrap();
    harness
}

#[tokio::test]
async fn a_providers_other_doors_stay_shut() {
    let models = json!([
        openai("openai.models.test", &["tiny"], json!({})),
        {"provider": "Anthropic", "host": "anthropic.models.test", "allow": ["small"],
         "credential": {"secretRef": {"name": "anthropic", "key": "key"}, "header": "x-api-key", "format": "{}"}},
    ]);
    let harness = namespace("models-refused", models, json!({})).await;
    let journal = Journal::open(&harness);
    let run = harness
        .script("models", "refused_models.py", &[], json!({}))
        .await
        .unwrap();
    let differences = run.differences(&[
        ("control*", &["200"]),
        (
            "endpoint*",
            &[
                "403 EndpointNotMetered",
                "403 MethodNotAllowed",
                "403 UpgradeNotAllowed",
            ],
        ),
        ("model*", &["403 ModelNotAllowed"]),
        ("no model", &["400 *", "403 ModelNotAllowed"]),
        (
            "responses field*",
            &["400 FieldNotAllowed", "403 ServerToolNotAllowed"],
        ),
        (
            "chat field*",
            &["400 FieldNotAllowed", "403 ServerToolNotAllowed"],
        ),
        (
            "messages field*",
            &["400 FieldNotAllowed", "403 ServerToolNotAllowed"],
        ),
        ("body compressed", &["400 EncodingNotAllowed"]),
        ("body large output", &["400 *", "429 *"]),
        ("body many answers", &["400 *", "429 *"]),
        ("body*", &["400 *"]),
        ("websocket", &["403 *"]),
        ("no token", &["407 TokenRequired"]),
        ("own key", &["407 TokenWrong"]),
        ("plain http", &["403 SchemeNotAllowed", "403 PortNotAllowed"]),
    ]);
    assert!(
        differences.is_empty() && !run.outcomes.is_empty(),
        "{differences:#?}\n{}",
        run.log
    );
    // What the providers saw: the metered endpoints, as often as the controls asked for them.
    let seen: Vec<String> = journal
        .lines()
        .iter()
        .filter(|line| line["what"] == "request")
        .map(|line| line["path"].as_str().unwrap().to_owned())
        .collect();
    let allowed = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
    assert!(
        seen.iter().all(|path| allowed.contains(&path.as_str())),
        "{seen:?}"
    );
    assert_eq!(seen.len(), 5, "{seen:?}");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_provider_that_lies_about_its_tokens_gains_nothing() {
    let odd = [
        "no-usage",
        "negative-usage",
        "false-usage",
        "huge-usage",
        "text-usage",
        "cut",
        "cut-before-usage",
        "compressed",
        "broken",
        "too-many",
        "redirecting",
        "tiny",
    ];
    let models = json!([openai("odd.models.test", &odd, json!({}))]);
    let harness = namespace("models-odd", models, json!({})).await;
    let journal = Journal::open(&harness);
    let arguments = [
        "odd.models.test",
        "no-usage",
        "negative-usage",
        "false-usage",
        "huge-usage",
        "text-usage",
        "no-usage:stream",
        "negative-usage:stream",
        "false-usage:stream",
        "huge-usage:stream",
        "cut:stream",
        "cut-before-usage:stream",
        "compressed",
        "broken",
        "too-many",
        "redirecting",
        "tiny",
        "tiny:stream",
    ];
    let run = harness
        .script(
            "odd",
            "odd_models.py",
            &arguments,
            json!({"limits": {"runtimeSeconds": 200, "tokens": 1_000_000}}),
        )
        .await
        .unwrap();
    let differences = run.differences(&[
        ("broken", &["500*", "502*"]),
        ("too-many", &["429*"]),
        ("compressed", &["502 EncodingNotAllowed"]),
        ("redirecting", &["302"]),
        ("cut*", &["closed", "200"]),
        ("*", &["200"]),
    ]);
    assert!(
        differences.is_empty() && run.outcomes.len() == 17,
        "{differences:#?}\n{}",
        run.log
    );
    // Each reached its provider once, and a redirect was followed by nobody.
    assert_eq!(journal.requests_to("odd.models.test").len(), 17);
    assert!(!journal.text().contains("evil.test"), "{}", journal.text());
    // The gateway's own account of each: 4 words in and 40 out at least, or what 16 bytes a token make of them; never
    // more than was reserved.
    let log = harness.gateway_log().await.unwrap();
    let ends: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| record["class"] == 6003 && record["action"] == "end")
        .collect();
    assert_eq!(ends.len(), 17, "{log}");
    let mut sum = 0;
    for end in &ends {
        let tokens = |name: &str| end[name].as_i64().unwrap_or_default();
        let (input, output) = (tokens("inputTokens"), tokens("outputTokens"));
        let estimated = end["estimated"] == true;
        sum += input + output;
        let fits = match end["model"].as_str().unwrap() {
            "tiny" => (input, output, estimated) == (4, 40, false),
            "broken" | "too-many" | "redirecting" => (input, output) == (0, 0),
            "cut" | "cut-before-usage" => {
                (4..400).contains(&input) && (40..=200).contains(&output) && estimated
            }
            _ => (1..400).contains(&input) && (12..=200).contains(&output) && estimated,
        };
        assert!(fits, "{end}");
    }
    let egress = run.egress();
    assert_eq!(egress.used.tokens, sum, "{egress:?}");
    assert_eq!(egress.used.model_requests, 17);
    assert!(egress.estimated_tokens > 0 && egress.estimated_tokens < sum);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_stream_without_end_ends_with_the_budget() {
    const LIMIT: i64 = 1_000_000;
    let models = json!([openai("odd.models.test", &["endless"], json!({}))]);
    let harness = namespace("models-endless", models, json!({})).await;
    let journal = Journal::open(&harness);
    harness
        .start_script(
            "endless",
            "odd_models.py",
            &["odd.models.test", "endless:stream"],
            json!({"limits": {"egressBytes": LIMIT}}),
        )
        .await
        .unwrap();
    let status = harness.finished("endless").await.unwrap();
    let result = status.result.unwrap();
    assert_eq!(
        result.reason,
        Some(Reason::EgressByteBudgetExceeded),
        "{result:?}"
    );
    let egress = status.egress.unwrap();
    assert_eq!(egress.exhausted, Some(Reason::EgressByteBudgetExceeded));
    assert!((LIMIT / 2..=LIMIT).contains(&egress.used.bytes), "{egress:?}");
    assert_eq!(journal.requests_to("odd.models.test").len(), 1);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn requests_are_routed_and_fall_back() {
    let target = |host: &str| json!({"host": host, "model": "small", "credential": {"secretRef": {"name": "openai", "key": "key"}}});
    let models = json!([
        {"provider": "OpenAI", "host": "openai.models.test", "allow": ["routed"], "route": target("spare.models.test")},
        openai("openai.models.test", &["tiny"], json!({})),
        openai(
            "busy.models.test",
            &["tiny"],
            json!({"fallbacks": [target("down.models.test"), target("spare.models.test")]})
        ),
    ]);
    let harness = namespace("models-routed", models, json!({})).await;
    let journal = Journal::open(&harness);
    let run = harness
        .script(
            "routed",
            "odd_models.py",
            &["openai.models.test", "routed", "tiny", "routed:stream"],
            json!({}),
        )
        .await
        .unwrap();
    assert_eq!(
        run.differences(&[("*", &["200"])]),
        Vec::<String>::new(),
        "{}",
        run.log
    );
    assert_eq!(journal.requests_to("spare.models.test").len(), 2);
    assert_eq!(journal.requests_to("openai.models.test").len(), 1);
    assert_eq!(run.egress().used.tokens, 3 * 44);

    let journal = Journal::open(&harness);
    let run = harness
        .script(
            "falling",
            "odd_models.py",
            &["busy.models.test", "tiny"],
            json!({}),
        )
        .await
        .unwrap();
    assert_eq!(run.outcomes["tiny"], "200", "{}", run.log);
    for host in ["busy.models.test", "down.models.test", "spare.models.test"] {
        let requests = journal.requests_to(host);
        assert_eq!(requests.len(), 1, "{host}");
        assert_eq!(header(&requests[0], "authorization"), ["Bearer sk-real-openai"]);
    }
    // Each attempt is a request that was made; those that were refused cost no tokens.
    let egress = run.egress();
    assert_eq!(
        (egress.used.tokens, egress.used.model_requests),
        (44, 3),
        "{egress:?}"
    );
    harness.finish().await.unwrap();
}
