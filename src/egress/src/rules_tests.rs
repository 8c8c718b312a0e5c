//! Tables and laws of [`super`].

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn compile(spec: &Value) -> EgressPolicy {
    EgressPolicy::compile(&serde_json::from_value(spec.clone()).unwrap()).unwrap()
}

fn allow(rules: &Value) -> EgressPolicy {
    compile(&json!({"egress": {"allow": rules}}))
}

fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

fn credential(secret: &str) -> Value {
    json!({"secretRef": {"name": secret, "key": "k"}})
}

/// Index of the rule that permits a GET over https at port 443, or why none does.
fn get(policy: &EgressPolicy, name: &str, path: &str) -> Result<usize, Deny> {
    index(policy.request(Scheme::Https, &host(name), 443, "GET", path, false))
}

fn index(permit: Result<Permit<'_>, Deny>) -> Result<usize, Deny> {
    permit.map(|permit| match permit {
        Permit::Rule { index, .. } => index,
        Permit::Model(model) => 1_000 + model.index,
    })
}

/// One policy with some of everything.
fn usual() -> EgressPolicy {
    compile(&json!({
        "egress": {"allow": [
            {"host": "github.com"},
            {"host": "api.github.com", "methods": ["GET"], "paths": ["/repos/"], "credential": credential("github")},
            {"host": "*.pypi.example"},
            {"host": "plain.example", "tls": "None", "ports": [80, 8080], "methods": ["GET", "HEAD"]},
            {"host": "ws.example", "upgrade": true},
            {"cidr": "10.1.0.0/16", "ports": [5432]},
            {"cidr": "10.1.2.0/24", "ports": [22, 5432]},
        ]},
        "models": [
            {"provider": "OpenAI", "host": "api.openai.example", "allow": ["a"], "credential": credential("openai"), "fallbacks": [{"host": "other.example", "credential": credential("other")}]},
            {"provider": "OpenAI", "host": "api.openai.example", "allow": ["b"]},
        ],
    }))
}

#[test]
fn a_connection_may_carry_what_its_rule_says() {
    let policy = usual();
    for (name, port, way) in [
        ("github.com", 443, Ok(Way::Passthrough { rule: 0 })),
        ("api.github.com", 443, Ok(Way::Inspect)),
        ("files.pypi.example", 443, Ok(Way::Inspect)),
        ("plain.example", 80, Ok(Way::Plain)),
        ("plain.example", 8080, Ok(Way::Plain)),
        ("ws.example", 443, Ok(Way::Inspect)),
        ("api.openai.example", 443, Ok(Way::Inspect)),
        ("github.com", 80, Err(Deny::PortNotAllowed)),
        ("github.com", 22, Err(Deny::PortNotAllowed)),
        ("plain.example", 443, Err(Deny::PortNotAllowed)),
        ("api.openai.example", 80, Err(Deny::PortNotAllowed)),
        ("pypi.example", 443, Err(Deny::HostNotAllowed)),
        ("evilgithub.com", 443, Err(Deny::HostNotAllowed)),
        ("www.github.com", 443, Err(Deny::HostNotAllowed)),
        ("other.example", 443, Err(Deny::HostNotAllowed)),
    ] {
        assert_eq!(policy.connect(&host(name), port), way, "{name}:{port}");
    }
}

#[test]
fn dns_answers_for_what_some_rule_names() {
    let policy = usual();
    for (name, known) in [
        ("github.com", true),
        ("a.b.pypi.example", true),
        ("api.openai.example", true),
        ("pypi.example", false),
        ("other.example", false),
        ("com.example", false),
    ] {
        assert_eq!(policy.names(&host(name)), known, "{name}");
    }
}

#[test]
fn an_address_is_reached_by_the_narrowest_range() {
    let policy = usual();
    let at = |text: &str, port| policy.connect_address(text.parse().unwrap(), port);
    assert_eq!(at("10.1.2.3", 5432), Ok(6));
    assert_eq!(at("10.1.3.3", 5432), Ok(5));
    assert_eq!(at("10.1.2.3", 22), Ok(6));
    assert_eq!(at("10.1.3.3", 22), Err(Deny::PortNotAllowed));
    assert_eq!(at("10.2.0.1", 5432), Err(Deny::AddressLiteral));
    assert_eq!(at("::ffff:10.1.2.3", 5432), Err(Deny::AddressLiteral));
    assert_eq!(policy.opened().len(), 2);
    assert_eq!(policy.opened_at(22), ["10.1.2.0/24".parse().unwrap()]);
    assert_eq!(policy.opened_at(443), []);
}

#[test]
fn a_refused_request_is_told_what_came_closest() {
    let policy = usual();
    for (request, expected) in [
        ("https api.github.com 443 GET /repos/a/b", Ok(1)),
        (
            "https api.github.com 443 POST /repos/a/b",
            Err(Deny::MethodNotAllowed),
        ),
        (
            "https api.github.com 443 get /repos/a/b",
            Err(Deny::MethodNotAllowed),
        ),
        ("https api.github.com 443 GET /user", Err(Deny::PathNotAllowed)),
        ("https api.github.com 443 GET /repos", Err(Deny::PathNotAllowed)),
        (
            "https api.github.com 443 GET /repos/../user",
            Err(Deny::PathMalformed),
        ),
        (
            "https api.github.com 443 GET /repos/a?b",
            Err(Deny::PathMalformed),
        ),
        (
            "https api.github.com 8443 GET /repos/a",
            Err(Deny::PortNotAllowed),
        ),
        (
            "http api.github.com 443 GET /repos/a",
            Err(Deny::SchemeNotAllowed),
        ),
        ("http api.github.com 80 GET /repos/a", Err(Deny::PortNotAllowed)),
        (
            "https+ws api.github.com 443 GET /repos/a",
            Err(Deny::UpgradeNotAllowed),
        ),
        ("https github.com 443 GET /", Err(Deny::SchemeNotAllowed)),
        ("https evil.example 443 GET /", Err(Deny::HostNotAllowed)),
        ("https files.pypi.example 443 DELETE /", Ok(2)),
        (
            "https files.pypi.example 443 TRACE /",
            Err(Deny::MethodNotAllowed),
        ),
        (
            "https files.pypi.example 443 CONNECT /",
            Err(Deny::MethodNotAllowed),
        ),
        ("http plain.example 8080 HEAD /", Ok(3)),
        ("https plain.example 8080 HEAD /", Err(Deny::SchemeNotAllowed)),
        ("http plain.example 80 POST /", Err(Deny::MethodNotAllowed)),
        ("https+ws ws.example 443 GET /chat", Ok(4)),
        ("https ws.example 443 GET /chat", Ok(4)),
        (
            "https api.openai.example 443 POST /v1/chat/completions",
            Ok(1_000),
        ),
        (
            "https+ws api.openai.example 443 GET /v1/realtime",
            Err(Deny::UpgradeNotAllowed),
        ),
        ("https api.openai.example 443 POST //v1", Err(Deny::PathMalformed)),
        (
            "http api.openai.example 443 POST /v1",
            Err(Deny::SchemeNotAllowed),
        ),
        ("http api.openai.example 80 POST /v1", Err(Deny::PortNotAllowed)),
    ] {
        let parts: Vec<&str> = request.split(' ').collect();
        let [scheme, name, port, method, path] = parts[..] else {
            panic!("{request}")
        };
        let is_https = scheme.starts_with("https");
        let scheme_asked = if is_https { Scheme::Https } else { Scheme::Http };
        let upgrade = scheme.ends_with("+ws");
        let found = policy.request(
            scheme_asked,
            &host(name),
            port.parse().unwrap(),
            method,
            path,
            upgrade,
        );
        assert_eq!(index(found), expected, "{request}");
    }
}

#[test]
fn the_narrowest_pattern_decides_how_tls_is_treated() {
    for rules in [
        json!([{"host": "*.x.example"}, {"host": "*.a.x.example", "tls": "Passthrough"}, {"host": "b.a.x.example", "tls": "Inspect"}]),
        json!([{"host": "b.a.x.example", "tls": "Inspect"}, {"host": "*.a.x.example", "tls": "Passthrough"}, {"host": "*.x.example"}]),
    ] {
        let policy = allow(&rules);
        let way = |name: &str| policy.connect(&host(name), 443).unwrap();
        assert_eq!(way("c.x.example"), Way::Inspect);
        assert_eq!(way("c.a.x.example"), Way::Passthrough { rule: 1 });
        assert_eq!(way("b.a.x.example"), Way::Inspect);
    }
}

#[test]
fn of_two_equal_passthrough_rules_the_lower_ceiling_counts() {
    for rules in [
        json!([{"host": "a.example", "maxBytes": 10}, {"host": "a.example", "maxBytes": 20}, {"host": "a.example"}]),
        json!([{"host": "a.example"}, {"host": "a.example", "maxBytes": 20}, {"host": "a.example", "maxBytes": 10}]),
    ] {
        let policy = allow(&rules);
        let Ok(Way::Passthrough { rule }) = policy.connect(&host("a.example"), 443) else {
            panic!()
        };
        assert_eq!(policy.rules()[rule].max_bytes, Some(10));
    }
}

#[test]
fn a_request_that_two_rules_match_has_no_credential_or_is_refused() {
    let policy = allow(&json!([
        {"host": "a.example", "paths": ["/v1/"], "credential": credential("one")},
        {"host": "a.example", "paths": ["/v1/public/", "/v2/"]},
        {"host": "a.example", "methods": ["GET"], "paths": ["/v2/x", "/v3"], "credential": credential("two")},
    ]));
    assert_eq!(get(&policy, "a.example", "/v1/x"), Ok(0));
    assert_eq!(
        get(&policy, "a.example", "/v1/public/x"),
        Err(Deny::CredentialAmbiguous)
    );
    assert_eq!(get(&policy, "a.example", "/v2/x"), Err(Deny::CredentialAmbiguous));
    assert_eq!(get(&policy, "a.example", "/v2/y"), Ok(1));
    assert_eq!(get(&policy, "a.example", "/v3"), Ok(2));
    let post =
        |path: &str| index(policy.request(Scheme::Https, &host("a.example"), 443, "POST", path, false));
    assert_eq!(post("/v2/x"), Ok(1));
    // An upgrade does not make two matches one.
    let upgraded = policy.request(
        Scheme::Https,
        &host("a.example"),
        443,
        "GET",
        "/v1/public/x",
        true,
    );
    assert_eq!(upgraded, Err(Deny::CredentialAmbiguous));
}

#[test]
fn of_several_rules_the_narrowest_bounds_a_request() {
    let policy = allow(&json!([
        {"host": "*.x.example", "maxRequestBytes": 1},
        {"host": "a.x.example", "tls": "Inspect", "maxRequestBytes": 2},
        {"host": "a.x.example", "paths": ["/up/"], "maxRequestBytes": 3},
        {"host": "a.x.example", "paths": ["/up/big/"], "maxRequestBytes": 4},
        {"host": "a.x.example", "paths": ["/up/big/one"], "maxRequestBytes": 5},
        {"host": "a.x.example", "paths": ["/up/big/one"], "maxRequestBytes": 6},
        {"host": "a.x.example", "methods": ["PUT"], "paths": ["/up/big/one"], "maxRequestBytes": 7},
    ]));
    for (name, method, path, bytes) in [
        ("b.x.example", "GET", "/up/", 1),
        ("a.x.example", "GET", "/", 2),
        ("a.x.example", "GET", "/up/x", 3),
        ("a.x.example", "GET", "/up/big/x", 4),
        ("a.x.example", "GET", "/up/big/one", 5),
        ("a.x.example", "PUT", "/up/big/one", 7),
    ] {
        let permit = policy.request(Scheme::Https, &host(name), 443, method, path, false);
        let Ok(Permit::Rule { rule, .. }) = permit else {
            panic!("{permit:?}")
        };
        assert_eq!(rule.max_request_bytes, Some(bytes), "{name} {method} {path}");
    }
}

#[test]
fn what_the_gateway_needs_for_a_policy_is_told() {
    let policy = usual();
    assert!(!policy.is_empty());
    assert_eq!(policy.secrets(), BTreeSet::from(["github", "openai", "other"]));
    let inspected: Vec<String> = policy.inspected().iter().map(ToString::to_string).collect();
    assert_eq!(
        inspected,
        [
            "api.github.com",
            "api.openai.example",
            "ws.example",
            "*.pypi.example"
        ]
    );
    assert_eq!(policy.models_at(&host("api.openai.example")).len(), 2);
    assert!(policy.models_at(&host("other.example")).is_empty());
}

#[test]
fn what_adds_a_credential_or_spends_a_budget_needs_the_token() {
    let policy = usual();
    let needs = |name: &str, path: &str| {
        let host = host(name);
        policy
            .request(Scheme::Https, &host, 443, "GET", path, false)
            .map(|permit| (permit.needs_token(), permit.name().to_string()))
    };
    assert_eq!(
        needs("api.github.com", "/repos/a"),
        Ok((true, "egress.allow[1]".to_owned()))
    );
    assert_eq!(
        needs("api.openai.example", "/v1/models"),
        Ok((true, "models[0]".to_owned()))
    );
    assert_eq!(
        needs("files.pypi.example", "/"),
        Ok((false, "egress.allow[2]".to_owned()))
    );
}

fn any_rule() -> impl Strategy<Value = Value> {
    let host = proptest::sample::select(vec!["a.x.org", "b.x.org", "*.x.org", "*.a.x.org", "c.a.x.org"]);
    let tls = proptest::sample::select(vec![
        Value::Null,
        json!("Passthrough"),
        json!("Inspect"),
        json!("None"),
    ]);
    let ports = proptest::sample::subsequence(vec![80, 443, 8443], 0..=2);
    let methods = proptest::sample::subsequence(vec!["GET", "POST"], 0..=2);
    let paths = proptest::sample::subsequence(vec!["/", "/a", "/a/", "/a/b"], 0..=2);
    let max = proptest::option::of(0..3_i64);
    (host, tls, ports, methods, paths, max.clone(), max, 0..6_u8).prop_map(
        |(host, tls, ports, methods, paths, max_request, max, flags)| {
            let mut rule = json!({
                "host": host, "tls": tls, "ports": ports, "methods": methods, "paths": paths,
                "maxRequestBytes": max_request, "maxBytes": max, "upgrade": flags == 1,
            });
            if flags == 2 {
                rule["credential"] = credential("s");
            }
            rule
        },
    )
}

/// Rules that compile together: those that would not are left out.
fn any_rules() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(any_rule(), 0..8).prop_map(|candidates| {
        let mut rules: Vec<Value> = Vec::new();
        for rule in candidates {
            rules.push(rule);
            let spec = serde_json::from_value(json!({"egress": {"allow": rules}})).unwrap();
            if EgressPolicy::compile(&spec).is_err() {
                rules.pop();
            }
        }
        rules
    })
}

const HOSTS: [&str; 6] = ["a.x.org", "b.x.org", "c.a.x.org", "d.x.org", "x.org", "evil.org"];
const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/a/../b"];

proptest! {
    #[test]
    fn the_order_of_rules_does_not_matter(rules in any_rules(), turn in 0..8_usize, reverse: bool) {
        let mut other = rules.clone();
        if !other.is_empty() {
            let turn = turn % other.len();
            other.rotate_left(turn);
        }
        if reverse {
            other.reverse();
        }
        let (one, other) = (allow(&json!(rules)), allow(&json!(other)));
        prop_assert_eq!(one.inspected(), other.inspected());
        let passed = |policy: &EgressPolicy, host: &HostName, port| policy.connect(host, port).map(|way| match way {
            Way::Passthrough { rule } => Some(policy.rules()[rule].max_bytes),
            Way::Inspect => Some(Some(u64::MAX)),
            Way::Plain => None,
        });
        for host in HOSTS.map(host) {
            prop_assert_eq!(one.names(&host), other.names(&host));
            for port in [80, 443, 8443, 22] {
                prop_assert_eq!(passed(&one, &host, port), passed(&other, &host, port));
                for (scheme, method, path, upgrade) in requests() {
                    let of = |permit: Result<Permit<'_>, Deny>| permit.map(|permit| match permit {
                        // Which of two rules with the same bounds it is makes no difference.
                        Permit::Rule { rule, .. } => (rule.credential.clone(), rule.max_request_bytes, rule.max_bytes),
                        Permit::Model(_) => unreachable!(),
                    });
                    prop_assert_eq!(
                        of(one.request(scheme, &host, port, method, path, upgrade)),
                        of(other.request(scheme, &host, port, method, path, upgrade))
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_permitted_is_written_in_the_rule_and_credentials_have_one_rule_only(rules in any_rules()) {
        let policy = allow(&json!(rules));
        for host in HOSTS.map(host) {
            for port in [80, 443, 8443, 22] {
                let connection = policy.connect(&host, port);
                for (scheme, method, path, upgrade) in requests() {
                    let matching: Vec<&Rule> = policy.rules().iter().filter(|rule| {
                        let Destination::Host(pattern) = &rule.destination else { return false };
                        pattern.matches(&host)
                            && rule.ports.contains(&port)
                            && rule.mode == (if scheme == Scheme::Https { Mode::Inspect } else { Mode::Plain })
                            && (rule.methods.iter().any(|allowed| allowed == method) || (rule.methods.is_empty() && method != "TRACE"))
                            && (rule.paths.is_empty() || rule.paths.iter().any(|pattern| pattern.matches(path)))
                    }).collect();
                    let is_ambiguous = matching.len() > 1 && matching.iter().any(|rule| rule.credential.is_some());
                    let is_upgradable = !upgrade || matching.iter().any(|rule| rule.upgrade);
                    match policy.request(scheme, &host, port, method, path, upgrade) {
                        Ok(Permit::Rule { index, rule }) => {
                            prop_assert!(matching.contains(&rule) && !is_ambiguous && is_upgradable && path::check(path).is_ok());
                            prop_assert_eq!(&policy.rules()[index], rule);
                            prop_assert!(!upgrade || rule.upgrade);
                            prop_assert!(rule.credential.is_none() || (scheme == Scheme::Https && matching.len() == 1));
                            prop_assert!(connection.is_ok() && policy.names(&host));
                        }
                        Ok(Permit::Model(_)) => unreachable!(),
                        Err(deny) => {
                            prop_assert!(matching.is_empty() || is_ambiguous || !is_upgradable || path::check(path).is_err(), "{}", deny);
                            prop_assert_eq!(deny == Deny::HostNotAllowed, !policy.names(&host) && path::check(path).is_ok());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn any_policy_compiles_or_names_its_problems(rules in proptest::collection::vec(any_text_rule(), 0..5), host in ".{0,20}", name in ".{0,20}") {
        let spec: SandboxPolicySpec = serde_json::from_value(json!({
            "egress": {"allow": rules},
            "models": [{"provider": "OpenAI", "host": host, "allow": [name]}],
        })).unwrap();
        if let Err(problems) = EgressPolicy::compile(&spec) {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.iter().all(|problem| problem.starts_with("spec.")));
        }
    }
}

fn requests() -> impl Iterator<Item = (Scheme, &'static str, &'static str, bool)> {
    [Scheme::Https, Scheme::Http].into_iter().flat_map(|scheme| {
        ["GET", "POST", "PUT", "TRACE"]
            .into_iter()
            .flat_map(move |method| {
                PATHS
                    .into_iter()
                    .flat_map(move |path| [false, true].map(|upgrade| (scheme, method, path, upgrade)))
            })
    })
}

fn any_text_rule() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![".{0,12}", "[a-z0-9.*:/-]{0,20}"];
    (text(), text(), text(), any::<i32>(), any::<i64>(), 0..4_u8).prop_map(|(host, other, path, port, bytes, which)| match which {
        0 => json!({"host": host, "paths": [path], "ports": [port], "methods": [other]}),
        1 => json!({"cidr": host, "ports": [port], "maxBytes": bytes}),
        2 => json!({"host": host, "cidr": other}),
        _ => json!({"host": host, "credential": {"secretRef": {"name": other, "key": path}, "header": other, "format": path}}),
    })
}
