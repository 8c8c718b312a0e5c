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

/// A namespace whose providers have hosts of their own, by which their requests are counted outside.
struct Providers {
    harness: Harness,
    journal: Journal,
}

impl Providers {
    async fn start(test: &str) -> Self {
        let harness = Harness::start(test).await.unwrap();
        let journal = Journal::open(&harness);
        let providers = Self { harness, journal };
        let openai = ["openai", "odd", "busy", "down", "spare"].map(|name| providers.host(name));
        let anthropic = [providers.host("anthropic")];
        for (name, hosts) in [("openai", openai.as_slice()), ("anthropic", &anthropic)] {
            let key = format!("sk-real-{name}");
            let data = [
                ("key", key.as_str()),
                ("agentsandbox.dev.hosts", &hosts.join("\n")),
            ];
            providers.harness.secret(name, &data).await.unwrap();
        }
        providers
    }

    /// What a host begins with says how it answers.
    fn host(&self, name: &str) -> String {
        format!("{name}.{}.models.test", self.harness.namespace)
    }

    async fn allow(&self, models: Value) {
        let policy = policy(&json!([]), &models, json!({}));
        self.harness.policy("default", policy).await.unwrap();
    }

    /// Requests that reached a provider.
    fn requests_to(&self, name: &str) -> Vec<Value> {
        self.journal.requests_to(&self.host(name))
    }
}

#[tokio::test]
async fn a_providers_other_doors_stay_shut() {
    let providers = Providers::start("models-refused").await;
    let hosts = ["openai", "anthropic"].map(|name| providers.host(name));
    let [open, anthropic] = &hosts;
    providers
        .allow(json!([
            openai(open, &["tiny"], json!({})),
            {"provider": "Anthropic", "host": anthropic, "allow": ["small"],
             "credential": {"secretRef": {"name": "anthropic", "key": "key"}, "header": "x-api-key", "format": "{}"}},
        ]))
        .await;
    let run = providers
        .harness
        .script("models", "refused_models.py", &[open, anthropic], json!({}))
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
    let seen: Vec<String> = ["openai", "anthropic"]
        .iter()
        .flat_map(|name| providers.requests_to(name))
        .map(|line| line["path"].as_str().unwrap().to_owned())
        .collect();
    let allowed = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
    assert!(
        seen.iter().all(|path| allowed.contains(&path.as_str())),
        "{seen:?}"
    );
    assert_eq!(seen.len(), 5, "{seen:?}");
    providers.harness.finish().await.unwrap();
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
    let providers = Providers::start("models-odd").await;
    let host = providers.host("odd");
    providers.allow(json!([openai(&host, &odd, json!({}))])).await;
    let arguments = [
        host.as_str(),
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
    let run = providers
        .harness
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
    assert_eq!(providers.requests_to("odd").len(), 17);
    let seen = providers.journal.text();
    assert!(
        !seen.contains("redirected.test"),
        "a redirect was followed: {seen}"
    );
    // The gateway's own account of each: 4 words in and 40 out at least, or what 16 bytes a token make of them; never
    // more than was reserved.
    let log = providers.harness.gateway_log().await.unwrap();
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
    providers.harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_stream_without_end_ends_with_the_budget() {
    const LIMIT: i64 = 1_000_000;
    let providers = Providers::start("models-endless").await;
    let host = providers.host("odd");
    providers
        .allow(json!([openai(&host, &["endless"], json!({}))]))
        .await;
    providers
        .harness
        .start_script(
            "endless",
            "odd_models.py",
            &[&host, "endless:stream"],
            json!({"limits": {"egressBytes": LIMIT}}),
        )
        .await
        .unwrap();
    let status = providers.harness.finished("endless").await.unwrap();
    let result = status.result.unwrap();
    assert_eq!(
        result.reason,
        Some(Reason::EgressByteBudgetExceeded),
        "{result:?}"
    );
    let egress = status.egress.unwrap();
    assert_eq!(egress.exhausted, Some(Reason::EgressByteBudgetExceeded));
    assert!((LIMIT / 2..=LIMIT).contains(&egress.used.bytes), "{egress:?}");
    assert_eq!(providers.requests_to("odd").len(), 1);
    providers.harness.finish().await.unwrap();
}

#[tokio::test]
async fn requests_are_routed_and_fall_back() {
    let providers = Providers::start("models-routed").await;
    let [open, busy, down, spare] = ["openai", "busy", "down", "spare"].map(|name| providers.host(name));
    let target = |host: &str| json!({"host": host, "model": "small", "credential": {"secretRef": {"name": "openai", "key": "key"}}});
    providers
        .allow(json!([
            {"provider": "OpenAI", "host": open, "allow": ["routed"], "route": target(&spare)},
            openai(&open, &["tiny"], json!({})),
            openai(&busy, &["tiny"], json!({"fallbacks": [target(&down), target(&spare)]})),
        ]))
        .await;
    let run = providers
        .harness
        .script(
            "routed",
            "odd_models.py",
            &[&open, "routed", "tiny", "routed:stream"],
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
    assert_eq!(providers.requests_to("spare").len(), 2);
    assert_eq!(providers.requests_to("openai").len(), 1);
    assert_eq!(run.egress().used.tokens, 3 * 44);

    let run = providers
        .harness
        .script("falling", "odd_models.py", &[&busy, "tiny"], json!({}))
        .await
        .unwrap();
    assert_eq!(run.outcomes["tiny"], "200", "{}", run.log);
    for (name, before) in [("busy", 0), ("down", 0), ("spare", 2)] {
        let requests = providers.requests_to(name);
        assert_eq!(requests.len(), before + 1, "{name}");
        assert_eq!(
            header(&requests[before], "authorization"),
            ["Bearer sk-real-openai"]
        );
    }
    // Each attempt is a request that was made; those that were refused cost no tokens.
    let egress = run.egress();
    assert_eq!(
        (egress.used.tokens, egress.used.model_requests),
        (44, 3),
        "{egress:?}"
    );
    providers.harness.finish().await.unwrap();
}
