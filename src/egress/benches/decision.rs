//! The decision core: from a peer's address and a request to a permit and its line in the log.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use agentsandbox_egress::identity::{Pod, Registry};
use agentsandbox_egress::name::HostName;
use agentsandbox_egress::record::{Action, Chain, Class, Record, RunIdentity};
use agentsandbox_egress::rules::{EgressPolicy, Scheme};
use agentsandbox_egress::{client_hello, dns};
use criterion::{Criterion, criterion_group, criterion_main};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

/// A policy of 32 rules, of which the last ones match.
fn policy() -> EgressPolicy {
    let mut rules: Vec<_> = (0..28)
        .map(|at| json!({"host": format!("host-{at}.example.org")}))
        .collect();
    rules.push(json!({"host": "*.pypi.example"}));
    rules.push(json!({"host": "packages.registry.example"}));
    rules.push(json!({"host": "*.github.example", "methods": ["GET"]}));
    rules.push(json!({
        "host": "api.github.example", "methods": ["GET", "POST"], "paths": ["/repos/", "/search/issues"],
        "tls": "Inspect", "maxRequestBytes": 1_000_000,
    }));
    let spec = serde_json::from_value(json!({"egress": {"allow": rules}})).expect("a policy");
    EgressPolicy::compile(&spec).expect("a policy that compiles")
}

/// A registry of 1,000 bound pods.
fn registry() -> Registry {
    let mut registry = Registry::default();
    for at in 0..1_000_u16 {
        let [high, low] = at.to_be_bytes();
        let address = IpAddr::from([10, 1, high, low]);
        let uid = format!("3b241101-e2bb-4255-8caf-4136c566{at:04}");
        registry.observe(Pod {
            uid: uid.clone(),
            namespace: "team-a".to_owned(),
            sandbox: format!("agent-{at}"),
            run_id: "run-1".to_owned(),
            policy: "default".to_owned(),
            addresses: vec![address],
            ..Pod::default()
        });
        registry.register(address, &uid, [0; 32]);
    }
    registry
}

fn decision(criterion: &mut Criterion) {
    let policy = policy();
    let registry = registry();
    let peer = IpAddr::from([10, 1, 1, 7]);
    let run = RunIdentity::of(&Arc::clone(registry.lookup(peer).expect("a bound pod")));
    let time: Timestamp = "2026-01-02T03:04:05.678Z".parse().expect("a time");
    let mut chain = Chain::default();

    criterion.bench_function("identity, connection, request and record", |bencher| {
        bencher.iter(|| {
            let bound = registry.lookup(black_box(peer)).expect("a bound pod");
            let host = HostName::parse(black_box("api.github.example")).expect("a name");
            let way = policy.connect(&host, 443).expect("a way");
            let path = black_box("/repos/agents/sandbox/issues");
            let permit = policy
                .request(Scheme::Https, &host, 443, "GET", path, false)
                .expect("a permit");
            let line = chain.line(
                Some(&run),
                &Record {
                    time,
                    class: Class::Request,
                    action: Action::Allow,
                    reason: None,
                    destination: host.as_str(),
                    port: Some(443),
                    method: Some("GET"),
                    path: Some(path),
                    rule: Some(permit.name()),
                    model: None,
                    end: None,
                },
            );
            black_box((bound, way, permit, line));
        });
    });

    criterion.bench_function("identity, connection and request", |bencher| {
        bencher.iter(|| {
            let bound = registry.lookup(black_box(peer)).expect("a bound pod");
            let host = HostName::parse(black_box("api.github.example")).expect("a name");
            let way = policy.connect(&host, 443);
            let path = black_box("/repos/agents/sandbox/issues");
            let permit = policy.request(Scheme::Https, &host, 443, "GET", path, false);
            black_box((bound, way, permit)).0.pod_uid.len()
        });
    });
}

fn parsers(criterion: &mut Criterion) {
    let hello = include_bytes!("../tests/data/openssl_3_client_hello.bin");
    criterion.bench_function("ClientHello", |bencher| {
        bencher.iter(|| client_hello::parse(black_box(hello)));
    });

    let policy = policy();
    let service = [IpAddr::from([10, 96, 0, 5])];
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06github\x07example\0\0\x01\0\x01";
    criterion.bench_function("DNS", |bencher| {
        bencher.iter(|| dns::decide(black_box(question), &policy, &service));
    });
}

criterion_group!(benches, decision, parsers);
criterion_main!(benches);
