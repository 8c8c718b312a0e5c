//! One rule of `spec.egress.allow`.

use std::collections::BTreeSet;

use agentsandbox_api::policy::{EgressRule, TlsMode};
use ipnet::IpNet;

use super::{Field, parse_credential};
use crate::address;
use crate::deny::Deny;
use crate::name::HostPattern;
use crate::path::PathPattern;
use crate::rules::{Destination, Mode, Rule};

/// Compiles one rule of `spec.egress.allow`.
pub(super) fn compile(rule: &EgressRule, field: &mut Field<'_>) -> Option<Rule> {
    let before = field.count();
    let compiled = match (&rule.host, &rule.cidr) {
        (Some(host), None) => compile_host_rule(rule, host, field),
        (None, Some(cidr)) => compile_range_rule(rule, cidr, field),
        _ => {
            field.is("must have exactly one of host and cidr");
            None
        }
    };
    compiled.filter(|_| field.count() == before)
}

fn compile_host_rule(rule: &EgressRule, host: &str, field: &mut Field<'_>) -> Option<Rule> {
    let pattern = parse_pattern(host, field);
    let is_wildcard = host.starts_with("*.");
    let http_fields = [
        ("methods", !rule.methods.is_empty()),
        ("paths", !rule.paths.is_empty()),
        ("credential", rule.credential.is_some()),
        ("maxRequestBytes", rule.max_request_bytes.is_some()),
        ("upgrade", rule.upgrade),
    ];
    let sees_requests = http_fields.iter().any(|(_, is_set)| *is_set);
    let mode = match rule.tls {
        Some(TlsMode::None) => Mode::Plain,
        Some(TlsMode::Inspect) => Mode::Inspect,
        None if is_wildcard || sees_requests => Mode::Inspect,
        Some(TlsMode::Passthrough) | None => Mode::Passthrough,
    };
    if mode == Mode::Passthrough {
        for (name, _) in http_fields.iter().filter(|(_, is_set)| *is_set) {
            field.has(name, "needs tls: Inspect: passed-through TLS shows no request");
        }
    }
    if rule.credential.is_some() {
        if is_wildcard {
            field.has(
                "credential",
                "can't be used with a wildcard: name each host that gets it",
            );
        }
        if mode == Mode::Plain {
            field.has(
                "credential",
                "can't be used with tls: None: it would travel in the clear",
            );
        }
    }
    let default_port = if mode == Mode::Plain { 80 } else { 443 };
    let ports = parse_ports(&rule.ports, Some(default_port), field);
    let methods = parse_methods(&rule.methods, field);
    let paths = parse_paths(&rule.paths, field);
    let credential = rule
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, "credential", field));
    let max_request_bytes = parse_bytes("maxRequestBytes", rule.max_request_bytes, field);
    let max_bytes = parse_bytes("maxBytes", rule.max_bytes, field);
    Some(Rule {
        destination: Destination::Host(pattern?),
        ports,
        mode,
        methods,
        paths,
        credential,
        max_request_bytes,
        max_bytes,
        upgrade: rule.upgrade,
    })
}

fn compile_range_rule(rule: &EgressRule, cidr: &str, field: &mut Field<'_>) -> Option<Rule> {
    let host_fields = [
        ("tls", rule.tls.is_some()),
        ("methods", !rule.methods.is_empty()),
        ("paths", !rule.paths.is_empty()),
        ("credential", rule.credential.is_some()),
        ("maxRequestBytes", rule.max_request_bytes.is_some()),
        ("upgrade", rule.upgrade),
    ];
    let net = parse_range(cidr, field);
    let ports = parse_ports(&rule.ports, None, field);
    for (name, _) in host_fields.iter().filter(|(_, is_set)| *is_set) {
        field.has(name, "is for hosts: a cidr rule passes bytes");
    }
    let max_bytes = parse_bytes("maxBytes", rule.max_bytes, field);
    Some(Rule {
        destination: Destination::Range(net?),
        ports,
        mode: Mode::Address,
        methods: Vec::new(),
        paths: Vec::new(),
        credential: None,
        max_request_bytes: None,
        max_bytes,
        upgrade: false,
    })
}

fn parse_pattern(host: &str, field: &mut Field<'_>) -> Option<HostPattern> {
    match host.parse() {
        Ok(pattern) => Some(pattern),
        Err(deny) => {
            field.has("host", name_problem(host, deny));
            None
        }
    }
}

fn parse_range(cidr: &str, field: &mut Field<'_>) -> Option<IpNet> {
    let Ok(net) = cidr.parse::<IpNet>() else {
        field.has("cidr", "is no range such as 192.168.7.0/24");
        return None;
    };
    if net.trunc() != net {
        field.has(
            "cidr",
            &format!("has bits beyond its prefix: {} is the range", net.trunc()),
        );
        return None;
    }
    if let Some(why) = address::never_within(net) {
        field.has("cidr", &format!("holds addresses that no rule opens ({why})"));
        return None;
    }
    Some(net)
}

fn parse_ports(ports: &[i32], default: Option<u16>, field: &mut Field<'_>) -> Vec<u16> {
    let mut parsed = BTreeSet::new();
    for port in ports {
        match u16::try_from(*port) {
            Ok(port) if port > 0 => {
                parsed.insert(port);
            }
            _ => field.has("ports", &format!("has {port}, which is no port")),
        }
    }
    match default {
        Some(port) if ports.is_empty() => vec![port],
        None if ports.is_empty() => {
            field.has("ports", "is required with cidr");
            Vec::new()
        }
        _ => parsed.into_iter().collect(),
    }
}

fn parse_methods(methods: &[String], field: &mut Field<'_>) -> Vec<String> {
    for method in methods {
        let is_token =
            (1..=16).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_uppercase());
        if !is_token {
            field.has("methods", "has what is no method: capital letters only");
        } else if method == "CONNECT" || method == "TRACE" {
            field.has("methods", &format!("has {method}, which is never allowed"));
        }
    }
    methods.to_vec()
}

fn parse_paths(paths: &[String], field: &mut Field<'_>) -> Vec<PathPattern> {
    let mut parsed = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match PathPattern::parse(path) {
            Ok(pattern) => parsed.push(pattern),
            Err(_) if path.contains(['?', '#', '*']) => field.has(
                &format!("paths[{index}]"),
                "has a query, a fragment or a wildcard: a path that ends with / allows everything below it",
            ),
            Err(_) => field.has(
                &format!("paths[{index}]"),
                "is no path that requests can have: it must begin with /, without dot segments, //, ; or encoded slashes",
            ),
        }
    }
    parsed
}

fn parse_bytes(name: &str, bytes: Option<i64>, field: &mut Field<'_>) -> Option<u64> {
    let bytes = bytes?;
    let parsed = u64::try_from(bytes).ok();
    if parsed.is_none() {
        field.has(name, "is below 0");
    }
    parsed
}

fn name_problem(host: &str, deny: Deny) -> &'static str {
    if host.contains("://") {
        "is a URL: write the name alone"
    } else if host.split_once(':').is_some_and(|(name, port)| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty()
    }) {
        "has a port: write it in ports"
    } else if deny == Deny::AddressLiteral {
        "is an address: use cidr"
    } else if host.ends_with('.') {
        "ends with a dot: write it without"
    } else if host.contains('*') {
        "has a wildcard where none can be: *.example.org is one, for names below a domain"
    } else {
        "is no fully qualified host name"
    }
}
