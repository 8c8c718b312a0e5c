//! What is wrong with policies, and what is not.

use serde_json::{Value, json};

use super::*;
use crate::rules::Mode;

fn problems(spec: &Value) -> Vec<String> {
    let spec: SandboxPolicySpec = serde_json::from_value(spec.clone()).unwrap();
    compile(&spec).err().unwrap_or_default()
}

/// The one problem of a policy with these rules, without the field before it.
#[track_caller]
fn assert_rule(rule: &Value, expected: &str) {
    let found = problems(&json!({"egress": {"allow": [rule]}}));
    if expected.is_empty() {
        assert_eq!(found, Vec::<String>::new(), "{rule}");
    } else {
        assert_eq!(found, [format!("spec.egress.allow[0]{expected}")], "{rule}");
    }
}

fn credential(header: &str) -> Value {
    json!({"secretRef": {"name": "s", "key": "k"}, "header": header, "format": "Bearer {}"})
}

fn model(host: &str, names: &[&str]) -> Value {
    json!({"provider": "OpenAI", "host": host, "allow": names})
}

#[test]
fn a_policy_without_rules_allows_nothing() {
    let empty = compile(&SandboxPolicySpec::default()).unwrap();
    assert!(empty.is_empty());
    assert_eq!(problems(&json!({"egress": {}})), Vec::<String>::new());
}

#[test]
fn hosts_are_names_or_wildcards() {
    for (host, expected) in [
        ("api.example.org", ""),
        ("*.example.org", ""),
        ("localhost", ".host is no fully qualified host name"),
        ("", ".host is no fully qualified host name"),
        (
            "*.org",
            ".host has a wildcard where none can be: *.example.org is one, for names below a domain",
        ),
        (
            "api.*.org",
            ".host has a wildcard where none can be: *.example.org is one, for names below a domain",
        ),
        (
            "*",
            ".host has a wildcard where none can be: *.example.org is one, for names below a domain",
        ),
        ("example.org.", ".host ends with a dot: write it without"),
        ("10.0.0.1", ".host is an address: use cidr"),
        ("0x7f.1", ".host is an address: use cidr"),
        ("::1", ".host is an address: use cidr"),
        ("[::1]", ".host is an address: use cidr"),
        ("example.org:443", ".host has a port: write it in ports"),
        ("https://example.org", ".host is a URL: write the name alone"),
        ("münchen.de", ".host is no fully qualified host name"),
    ] {
        assert_rule(&json!({"host": host}), expected);
    }
}

#[test]
fn a_rule_has_a_host_or_a_range() {
    assert_rule(&json!({}), " must have exactly one of host and cidr");
    assert_rule(
        &json!({"host": "a.example", "cidr": "10.1.0.0/16", "ports": [22]}),
        " must have exactly one of host and cidr",
    );
}

#[test]
fn ranges_are_canonical_and_open_nothing_special() {
    for (cidr, expected) in [
        ("10.1.0.0/16", ""),
        ("192.168.7.5/32", ""),
        ("93.184.216.0/24", ""),
        ("fd12:3456::/32", ""),
        (
            "10.1.2.3/16",
            ".cidr has bits beyond its prefix: 10.1.0.0/16 is the range",
        ),
        ("10.1.0.0", ".cidr is no range such as 192.168.7.0/24"),
        ("10.1.0.0/33", ".cidr is no range such as 192.168.7.0/24"),
        ("example.org/8", ".cidr is no range such as 192.168.7.0/24"),
        (
            "0.0.0.0/0",
            ".cidr holds addresses that no rule opens (this network)",
        ),
        (
            "127.0.0.1/32",
            ".cidr holds addresses that no rule opens (loopback)",
        ),
        (
            "169.254.0.0/16",
            ".cidr holds addresses that no rule opens (link-local, metadata)",
        ),
        (
            "168.63.129.16/32",
            ".cidr holds addresses that no rule opens (metadata)",
        ),
        (
            "160.0.0.0/4",
            ".cidr holds addresses that no rule opens (metadata)",
        ),
        (
            "224.0.0.0/8",
            ".cidr holds addresses that no rule opens (multicast)",
        ),
        ("::/0", ".cidr holds addresses that no rule opens (NAT64)"),
        (
            "::ffff:10.0.0.0/104",
            ".cidr holds addresses that no rule opens (unspecified, loopback, an IPv4 address in IPv6)",
        ),
        ("64:ff9b::/96", ".cidr holds addresses that no rule opens (NAT64)"),
        (
            "fe80::/10",
            ".cidr holds addresses that no rule opens (link-local)",
        ),
    ] {
        assert_rule(&json!({"cidr": cidr, "ports": [22]}), expected);
    }
}

#[test]
fn a_range_needs_ports_and_has_nothing_of_a_hosts() {
    assert_rule(&json!({"cidr": "10.1.0.0/16"}), ".ports is required with cidr");
    for (field, value) in [
        ("tls", json!("Passthrough")),
        ("methods", json!(["GET"])),
        ("paths", json!(["/a"])),
        ("credential", credential("Authorization")),
        ("maxRequestBytes", json!(1)),
        ("upgrade", json!(true)),
    ] {
        let mut rule = json!({"cidr": "10.1.0.0/16", "ports": [22]});
        rule[field] = value;
        assert_rule(&rule, &format!(".{field} is for hosts: a cidr rule passes bytes"));
    }
    assert_rule(&json!({"cidr": "10.1.0.0/16", "ports": [22], "maxBytes": 5}), "");
}

#[test]
fn ports_are_ports() {
    assert_rule(&json!({"host": "a.example", "ports": [1, 443, 65535, 443]}), "");
    for port in [0, -1, 65_536, 1_000_000] {
        assert_rule(
            &json!({"host": "a.example", "ports": [443, port]}),
            &format!(".ports has {port}, which is no port"),
        );
    }
    let spec = serde_json::from_value(json!({"egress": {"allow": [
        {"host": "a.example"}, {"host": "b.example", "tls": "None"}, {"host": "c.example", "ports": [9, 3, 9]},
    ]}}))
    .unwrap();
    let ports: Vec<_> = compile(&spec)
        .unwrap()
        .rules
        .into_iter()
        .map(|rule| rule.ports)
        .collect();
    assert_eq!(ports, [vec![443], vec![80], vec![3, 9]]);
}

#[test]
fn tls_is_inspected_where_a_rule_needs_it_or_a_wildcard_does_not_say() {
    let mode = |rule: Value| {
        let spec = serde_json::from_value(json!({"egress": {"allow": [rule]}})).unwrap();
        compile(&spec).unwrap().rules[0].mode
    };
    assert_eq!(mode(json!({"host": "a.example"})), Mode::Passthrough);
    assert_eq!(
        mode(json!({"host": "a.example", "maxBytes": 1})),
        Mode::Passthrough
    );
    assert_eq!(mode(json!({"host": "*.example.org"})), Mode::Inspect);
    assert_eq!(
        mode(json!({"host": "*.example.org", "tls": "Passthrough"})),
        Mode::Passthrough
    );
    assert_eq!(
        mode(json!({"host": "a.example", "tls": "Inspect"})),
        Mode::Inspect
    );
    assert_eq!(mode(json!({"host": "a.example", "tls": "None"})), Mode::Plain);
    for (field, value) in [
        ("methods", json!(["GET"])),
        ("paths", json!(["/a"])),
        ("credential", credential("Authorization")),
        ("maxRequestBytes", json!(1)),
        ("upgrade", json!(true)),
    ] {
        let mut rule = json!({"host": "a.example"});
        rule[field] = value;
        assert_eq!(mode(rule.clone()), Mode::Inspect, "{field}");
        rule["tls"] = json!("Passthrough");
        assert_rule(
            &rule,
            &format!(".{field} needs tls: Inspect: passed-through TLS shows no request"),
        );
    }
}

#[test]
fn credentials_go_to_one_host_by_https() {
    let rule =
        |host: &str, tls: Value| json!({"host": host, "tls": tls, "credential": credential("Authorization")});
    assert_rule(&rule("a.example", json!("Inspect")), "");
    assert_rule(
        &rule("*.a.example", json!("Inspect")),
        ".credential can't be used with a wildcard: name each host that gets it",
    );
    assert_rule(
        &rule("a.example", json!("None")),
        ".credential can't be used with tls: None: it would travel in the clear",
    );
    assert_rule(
        &json!({"host": "a.example", "credential": credential("Host")}),
        ".credential.header host frames or routes requests and can't carry a credential",
    );
    assert_rule(
        &json!({"host": "a.example", "credential": credential("Proxy-Authorization")}),
        ".credential.header proxy-authorization frames or routes requests and can't carry a credential",
    );
}

#[test]
fn methods_paths_and_sizes_are_usable() {
    for (rule, expected) in [
        (json!({"methods": ["GET", "PROPFIND"]}), ""),
        (
            json!({"methods": ["get"]}),
            ".methods has what is no method: capital letters only",
        ),
        (
            json!({"methods": [""]}),
            ".methods has what is no method: capital letters only",
        ),
        (
            json!({"methods": ["CONNECT"]}),
            ".methods has CONNECT, which is never allowed",
        ),
        (
            json!({"methods": ["TRACE"]}),
            ".methods has TRACE, which is never allowed",
        ),
        (json!({"paths": ["/a", "/b/"]}), ""),
        (
            json!({"paths": ["/a", "/b/*"]}),
            ".paths[1] has a query, a fragment or a wildcard: a path that ends with / allows everything below it",
        ),
        (
            json!({"paths": ["/a/../b"]}),
            ".paths[0] is no path that requests can have: it must begin with /, without dot segments, //, ; or encoded slashes",
        ),
        (json!({"maxRequestBytes": -1}), ".maxRequestBytes is below 0"),
        (json!({"maxBytes": -1}), ".maxBytes is below 0"),
        (json!({"maxRequestBytes": 0, "maxBytes": 0}), ""),
    ] {
        let mut rule = rule;
        rule["host"] = json!("a.example");
        assert_rule(&rule, expected);
    }
}

#[test]
fn rules_of_the_same_hosts_agree_on_tls() {
    let found = problems(&json!({"egress": {"allow": [
        {"host": "a.example", "ports": [443, 8443]},
        {"host": "A.example", "ports": [8443], "tls": "Inspect"},
        {"host": "a.example", "ports": [80], "tls": "None"},
        {"host": "*.a.example", "tls": "Inspect"},
    ]}}));
    assert_eq!(
        found,
        ["spec.egress.allow[1].tls treats a.example:8443 otherwise than spec.egress.allow[0]"]
    );
}

#[test]
fn a_credential_that_every_request_would_be_too_ambiguous_for_is_told() {
    let with = |rule: Value| {
        problems(&json!({"egress": {"allow": [
            {"host": "api.a.example", "methods": ["GET"], "paths": ["/v1/", "/x"], "credential": credential("Authorization")},
            rule,
        ]}}))
    };
    let expected = [
        "spec.egress.allow[0].credential can't be used: spec.egress.allow[1] matches the same requests, and exactly one may",
    ];
    for rule in [
        json!({"host": "*.a.example"}),
        json!({"host": "api.a.example", "tls": "Inspect", "ports": [443, 8443]}),
        json!({"host": "api.a.example", "methods": ["POST", "GET"], "paths": ["/"]}),
    ] {
        assert_eq!(with(rule.clone()), expected, "{rule}");
    }
    for rule in [
        json!({"host": "*.b.example"}),
        json!({"host": "api.a.example", "methods": ["POST"]}),
        json!({"host": "api.a.example", "paths": ["/v1/"]}),
        json!({"host": "api.a.example", "tls": "Inspect", "ports": [8443]}),
        json!({"host": "*.a.example", "tls": "Passthrough"}),
    ] {
        assert_eq!(with(rule.clone()), Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn every_problem_is_told_at_once_with_its_field() {
    let found = problems(&json!({
        "egress": {"allow": [
            {"host": "ok.example"},
            {"host": "10.0.0.1", "ports": [0], "methods": ["TRACE"], "paths": ["x"], "maxBytes": -1},
            {"cidr": "127.0.0.0/8", "tls": "None"},
        ]},
        "models": [{"provider": "OpenAI", "host": "nope", "allow": [], "defaultOutputTokens": 0, "contextTokens": 0}],
    }));
    let fields: Vec<_> = found
        .iter()
        .map(|problem| problem.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.egress.allow[1].host",
            "spec.egress.allow[1].ports",
            "spec.egress.allow[1].methods",
            "spec.egress.allow[1].paths[0]",
            "spec.egress.allow[1].maxBytes",
            "spec.egress.allow[2].cidr",
            "spec.egress.allow[2].ports",
            "spec.egress.allow[2].tls",
            "spec.models[0].host",
            "spec.models[0].allow",
            "spec.models[0].defaultOutputTokens",
            "spec.models[0].contextTokens",
        ]
    );
}

#[test]
fn a_models_host_is_in_no_rule() {
    let with = |host: &str, target: &str| {
        problems(&json!({
            "egress": {"allow": [{"host": "other.example"}, {"host": host, "tls": "Passthrough"}]},
            "models": [{"provider": "OpenAI", "host": "api.openai.example", "allow": ["gpt"], "fallbacks": [{"host": target}]}],
        }))
    };
    for (host, target, expected) in [
        ("a.example", "b.example", ""),
        ("openai.example", "b.example", ""),
        ("*.api.openai.example", "b.example", ""),
        (
            "api.openai.example",
            "b.example",
            "spec.models[0] asks api.openai.example, which spec.egress.allow[1] (api.openai.example) allows unmetered: a model's host can't be in both",
        ),
        (
            "*.openai.example",
            "b.example",
            "spec.models[0] asks api.openai.example, which spec.egress.allow[1] (*.openai.example) allows unmetered: a model's host can't be in both",
        ),
        (
            "b.example",
            "b.example",
            "spec.models[0] asks b.example, which spec.egress.allow[1] (b.example) allows unmetered: a model's host can't be in both",
        ),
    ] {
        let found = with(host, target);
        assert_eq!(found.concat(), expected, "{host} {target}");
    }
}

#[test]
fn a_model_is_named_once_at_a_host_and_a_host_has_one_provider() {
    assert_eq!(
        problems(
            &json!({"models": [model("a.example", &["x", "y"]), model("A.example", &["z", "x"]), model("b.example", &["x"])]})
        ),
        ["spec.models[1].allow has \"x\", which spec.models[0] allows at a.example already"]
    );
    assert_eq!(
        problems(&json!({"models": [model("a.example", &["x", "x"])]})),
        ["spec.models[0].allow has \"x\", which spec.models[0] allows at a.example already"]
    );
    let mut other = model("a.example", &["claude"]);
    other["provider"] = json!("Anthropic");
    assert_eq!(
        problems(&json!({"models": [model("a.example", &["x"]), other]})),
        ["spec.models[1].provider is another one than that of spec.models[0], which has the same host"]
    );
}

#[test]
fn routes_and_fallbacks_are_hosts_with_keys_of_their_own() {
    let with = |extra: Value| {
        let mut model = model("a.example", &["x"]);
        model
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        json!({"models": [model]})
    };
    for (extra, expected) in [
        (json!({"route": {"host": "b.example", "model": "y"}}), ""),
        (
            json!({"route": {"host": "1.2.3.4"}}),
            "spec.models[0].route.host is an address, or has a port: a model's host is a name, and asked at port 443",
        ),
        (
            json!({"route": {"host": "b.example", "model": "a b"}}),
            "spec.models[0].route.model is no name of a model",
        ),
        (
            json!({"fallbacks": [{"host": "b.example"}, {"host": "*.c.example"}]}),
            "spec.models[0].fallbacks[1].host has a wildcard: a model's host is one name",
        ),
        (
            json!({"fallbacks": [{"host": "b.example", "credential": credential("Cookie")}]}),
            "spec.models[0].fallbacks[0].credential.header cookie frames or routes requests and can't carry a credential",
        ),
        (
            json!({"credential": credential("Host")}),
            "spec.models[0].credential.header host frames or routes requests and can't carry a credential",
        ),
        (
            json!({"credential": credential("Authorization"), "route": {"host": "b.example"}}),
            "spec.models[0].credential is for host, which no request reaches: route has a credential of its own",
        ),
        (
            json!({"credential": credential("Authorization"), "route": {"host": "b.example"}, "fallbacks": [{"host": "a.example"}]}),
            "",
        ),
        (
            json!({"serverTools": ["web search"]}),
            "spec.models[0].serverTools has what is no type of a tool",
        ),
        (
            json!({"allow": ["gpt 4"]}),
            "spec.models[0].allow has what is no name of a model",
        ),
    ] {
        assert_eq!(problems(&with(extra.clone())).concat(), expected, "{extra}");
    }
}

#[test]
fn requests_to_a_model_go_to_its_route_first_and_each_host_gets_its_own_key() {
    let targets = |extra: Value| {
        let mut model = model("a.example", &["x"]);
        model
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let spec = serde_json::from_value(json!({"models": [model]})).unwrap();
        let compiled = compile(&spec).unwrap();
        compiled.models[0]
            .targets
            .iter()
            .map(|target| {
                let key = target
                    .credential
                    .as_ref()
                    .map(|credential| credential.header.to_string());
                (target.host.to_string(), target.model.clone(), key)
            })
            .collect::<Vec<_>>()
    };
    let target = |host: &str, model: Option<&str>, key: Option<&str>| {
        (host.to_owned(), model.map(str::to_owned), key.map(str::to_owned))
    };
    assert_eq!(targets(json!({})), [target("a.example", None, None)]);
    assert_eq!(
        targets(json!({"credential": credential("X-Key"), "fallbacks": [
            {"host": "b.example"}, {"host": "a.example", "model": "y"}, {"host": "c.example", "credential": credential("X-Other")},
        ]})),
        [
            target("a.example", None, Some("x-key")),
            target("b.example", None, None),
            target("a.example", Some("y"), Some("x-key")),
            target("c.example", None, Some("x-other")),
        ]
    );
    assert_eq!(
        targets(json!({"credential": credential("X-Key"), "route": {"host": "a.example", "model": "z"}})),
        [target("a.example", Some("z"), Some("x-key"))]
    );
    assert_eq!(
        targets(json!({"route": {"host": "b.example"}})),
        [target("b.example", None, None)]
    );
}
