//! What must be refused, tried for real from inside sandboxes: one sandbox per theme, with many attempts each. A row of
//! a table is an attempt and what it may come to; what got out would stand in the journal of the outside world.

use e2e::Harness;
use e2e::egress::{Journal, Run, policy};
use serde_json::{Value, json};

/// The rules that the scripts try to get around.
fn strict() -> Value {
    policy(
        &json!([
            {"host": "seen.example.test", "methods": ["GET", "POST"], "paths": ["/echo", "/below/"], "maxRequestBytes": 1000},
            {"host": "through.example.test"},
            {"host": "plain.example.test", "tls": "None"},
            {"host": "*.wild.example.test"},
            {"host": "*.addr.example.test", "ports": [443]},
            {"host": "*.addr.example.test", "ports": [8443], "tls": "Passthrough"},
            {"host": "rebind.example.test", "tls": "Inspect"},
            {"host": "to-metadata.example.test", "tls": "Inspect"},
            {"host": "to-cluster.example.test", "tls": "Inspect"},
            {"host": "nowhere.example.test", "tls": "Inspect"},
            {"host": "failing.example.test", "tls": "Inspect"},
            {"host": "raw.example.test", "tls": "Inspect"},
            {"host": "raw.capped.example.test", "tls": "Inspect", "maxBytes": 1_000_000},
            {"host": "big.example.test", "tls": "Inspect"},
            {"host": "self-signed.example.test", "tls": "Inspect"},
            {"host": "expired.example.test", "tls": "Inspect"},
            {"host": "wrong-name.example.test", "tls": "Inspect"},
            {"cidr": "10.20.0.0/16", "ports": [443]},
            {"cidr": "93.184.216.0/24", "ports": [9000]},
        ]),
        &json!([]),
        json!({}),
    )
}

/// Runs a script under [`strict`] and compares; also gives back what reached the outside.
async fn refused(script: &str, arguments: &[&str], table: &[(&str, &[&str])]) -> (Run, Journal) {
    let name = script.trim_end_matches(".py").replace('_', "-");
    let harness = Harness::start(&name).await.unwrap();
    harness.policy("default", strict()).await.unwrap();
    let journal = Journal::open(&harness);
    let run = harness.script(&name, script, arguments, json!({})).await.unwrap();
    let differences = run.differences(table);
    assert!(
        differences.is_empty(),
        "{} of {}:\n{}\n{}",
        differences.len(),
        run.outcomes.len(),
        differences.join("\n"),
        if run.outcomes.is_empty() { &run.log } else { "" }
    );
    harness.finish().await.unwrap();
    (run, journal)
}

#[tokio::test]
async fn a_name_that_no_rule_allows_is_refused_on_every_road() {
    let (run, journal) = refused(
        "refused_names.py",
        &[],
        &[
            ("control dns", &["NOERROR gateway"]),
            ("control*", &["200"]),
            ("proxy unlisted", &["403 HostNotAllowed"]),
            ("absolute unlisted", &["403 HostNotAllowed"]),
            ("steered-http unlisted", &["403 HostNotAllowed"]),
            ("steered-tls unlisted", &["closed"]),
            ("dns unlisted", &["REFUSED"]),
            ("refusal in full", &["HostNotAllowed evil.test default"]),
            ("spelling*", &["400*", "403 *"]),
            ("port 22", &["403 PortNotAllowed"]),
            (
                "port 80 of https",
                &["403 PortNotAllowed", "403 SchemeNotAllowed"],
            ),
            ("port*", &["400 *", "403 *"]),
            ("no port", &["400 *", "403 *"]),
            (
                "plain http where https*",
                &["403 SchemeNotAllowed", "403 PortNotAllowed"],
            ),
            ("https in absolute form", &["400 *", "403 *"]),
            ("other scheme", &["400 *", "403 *"]),
            ("absolute form, other Host", &["400 *", "421 HostMismatch"]),
            (
                "absolute form on the steered port",
                &["400 *", "421 HostMismatch", "403 *"],
            ),
            ("socks*", &["400*", "closed"]),
            ("tls to the proxy port", &["closed"]),
            ("gateway port*", &["silence", "refused", "closed"]),
            ("quic*", &["silence", "refused"]),
            ("direct*", &["silence"]),
            ("cluster dns", &["silence"]),
        ],
    )
    .await;
    let seen = journal.text();
    assert!(!seen.contains("evil"), "{seen}");
    let egress = run.egress();
    assert!(egress.denied >= 30 && egress.allowed >= 5, "{egress:?}");
    assert!(
        egress.denials.iter().all(|denial| denial.count > 0) && egress.denials.len() == 16,
        "{egress:?}"
    );
}

#[tokio::test]
async fn no_name_and_no_spelling_leads_to_an_address_that_no_rule_opens() {
    let (run, journal) = refused(
        "refused_addresses.py",
        &[],
        &[
            ("literal*", &["400*", "403 *"]),
            ("absolute*", &["400*", "403 *"]),
            ("steered literal", &["400 *", "403 *"]),
            ("cidr control", &["200"]),
            ("cidr spelling*", &["400 *", "403 *"]),
            ("cidr*", &["403 *"]),
            ("name control", &["200"]),
            ("name good-and-1*", &["403 AddressForbidden"]),
            ("through good-and-1*", &["403 AddressForbidden"]),
            // Without an address of that family of its own, the gateway asks for none where a name has one of the other;
            // it dials what it has checked.
            ("name good-and-*", &["403 AddressForbidden", "200"]),
            ("through good-and-*", &["403 AddressForbidden", "200"]),
            ("name*", &["403 AddressForbidden"]),
            ("through*", &["403 AddressForbidden", "closed"]),
            ("alias*", &["403 AddressForbidden"]),
            ("no such name", &["502 UpstreamUnreachable"]),
            ("failing name", &["502 UpstreamUnreachable"]),
            ("rebinding outcomes", &["AddressForbidden,public"]),
            ("rebinding, fewest of an outcome", &["enough"]),
        ],
    )
    .await;
    // The outside world also has the metadata service's address, and its own inside the nodes' network: nobody came.
    for line in journal.lines() {
        let address = line["address"].as_str().unwrap_or("93.184.216.1");
        assert!(address.starts_with("93.184.216."), "{line}");
    }
    assert!(!journal.requests_to("rebind.example.test").is_empty());
    assert!(run.egress().denied > 100);
}

#[tokio::test]
async fn tls_that_hides_or_changes_the_name_is_refused() {
    const ENDED: &[&str] = &["closed", "alert"];
    let (_, journal) = refused(
        "refused_tls.py",
        &[],
        &[
            ("control hello*", &["handshake"]),
            ("control*", &["200"]),
            ("no name*", ENDED),
            ("ech*", ENDED),
            ("unlisted name*", ENDED),
            ("large hello*", ENDED),
            ("no tls*", &["closed", "40*"]),
            ("sslv2*", ENDED),
            ("garbage*", ENDED),
            ("other allowed name*", ENDED),
            ("Host SEEN*", &["400 *", "421 HostMismatch"]),
            ("Host *", &["400 *", "421 HostMismatch"]),
            ("second request*", &["200, 421 HostMismatch"]),
            ("absolute form inside*", &["400 *", "421 HostMismatch"]),
            ("h2 control", &["200, 200"]),
            ("h2 other authority*", &["200, 421"]),
            ("h2 other allowed authority", &["200, 421"]),
            ("h2 steered, other authority", &["200, 421"]),
            ("h2 other host header", &["200, 421", "200, 400", "200, reset"]),
            ("h2 other scheme", &["200, 4*", "200, reset"]),
            ("h2 other path", &["200, 403"]),
            ("h2 other method", &["200, 403"]),
            ("h2 trace", &["200, 4*", "200, reset"]),
            (
                "h2*",
                &["200, 4*", "200, reset", "200, closed", "200, terminated"],
            ),
            ("another wildcard name*", &["421 HostMismatch"]),
            ("upstream*", &["502 UpstreamUntrusted"]),
        ],
    )
    .await;
    assert!(!journal.text().contains("evil"), "{}", journal.text());
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    const MALFORMED: &[&str] = &[
        "400 *", "400", "403 *", "closed", "421 *", "431*", "413*", "405*", "501*",
    ];
    let mark = "f3c1";
    let (_, journal) = refused(
        "refused_http.py",
        &[mark],
        &[
            ("control*", &["200"]),
            ("path not listed*", &["403 PathNotAllowed"]),
            ("path prefix*", &["403 PathNotAllowed"]),
            // What follows the sign is not sent on.
            ("path fragment*", &["200", "400 *"]),
            ("path encoded twice*", &["200", "400 PathMalformed"]),
            ("path*", &["400 *", "400", "closed"]),
            ("method,*", &["403 MethodNotAllowed"]),
            ("lower case method*", &["400 *", "403 MethodNotAllowed"]),
            ("large body*", &["413 RequestTooLarge"]),
            ("upgrade, *", &["403 UpgradeNotAllowed", "403 PathNotAllowed"]),
            ("upgrade to h2c*", &["403 UpgradeNotAllowed"]),
            // What a client of gRPC needs, made anew by the gateway.
            ("headers that arrived", &["te"]),
            ("token that arrived", &["False"]),
            ("slow head*", &["ended"]),
            ("slow body*", &["ended"]),
            ("unread answer*", &["200, 5000000"]),
            // An answer that breaks off ends the connection. Whatever came, the next two requests get their own answers.
            ("upstream /ok", &["200, 200, 200"]),
            ("upstream /endless-header", &["502 UpstreamUnreachable, 200, 200"]),
            (
                "upstream /endless-interim",
                &["502 UpstreamUnreachable, 200, 200"],
            ),
            ("upstream /endless-trailers", &["closed, 200, 200"]),
            ("upstream /endless-body", &["cut at the ceiling"]),
            ("what a spent ceiling leaves", &["429 EgressByteBudgetExceeded"]),
            ("upstream /slow-header", &["504 UpstreamTimeout, 200, 200"]),
            ("upstream /no-answer", &["504 UpstreamTimeout, 200, 200"]),
            ("upstream /stalled-body", &["beginning, cut"]),
            ("upstream /both-lengths", &["200, 200, 200"]),
            ("upstream /two-lengths", &["502 UpstreamUnreachable, 200, 200"]),
            ("upstream /odd-coding", &["200, 200, 200"]),
            ("upstream /bad-chunk", &["closed, 200, 200"]),
            ("upstream /short-body", &["closed, 200, 200"]),
            ("upstream /garbage", &["502 UpstreamUnreachable, 200, 200"]),
            ("upstream /switching", &["502 UpstreamUnreachable, 200, 200"]),
            ("upstream /unasked", &["200, 200, 200"]),
            ("upstream /bare-lf", &["200, 200, 200"]),
            ("upstream /folded", &["502 UpstreamUnreachable, 200, 200"]),
            ("*", MALFORMED),
        ],
    )
    .await;
    let seen = journal.text();
    for never in [
        "smuggled-f3c1",
        "evil",
        "\"DELETE\"",
        "TRACE",
        "/other",
        "%2e",
        "/below/../",
        "#y",
    ] {
        assert!(!seen.contains(never), "{never} reached the outside");
    }
}

#[tokio::test]
async fn dns_is_no_way_out() {
    let mark = "m4rk3d";
    let (run, journal) = refused(
        "refused_dns.py",
        &[mark],
        &[
            ("control*", &["NOERROR gateway"]),
            ("upper case*", &["NOERROR gateway"]),
            ("wildcard*", &["NOERROR gateway"]),
            ("AAAA of an allowed name*", &["NOERROR"]),
            ("HTTPS of an allowed name*", &["NOERROR"]),
            ("data below a wildcard*", &["NOERROR gateway", "REFUSED"]),
            ("long name*", &["REFUSED", "FORMERR"]),
            ("two messages on one connection", &["NOERROR gateway, REFUSED"]),
            ("a length without its message", &["closed"]),
            ("frame of*", &["closed", "FORMERR", "REFUSED", "silence"]),
            ("two questions*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("no question*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("an answer*", &["FORMERR", "REFUSED", "silence", "closed"]),
            (
                "an update*",
                &["FORMERR", "REFUSED", "NOTIMP", "silence", "closed"],
            ),
            (
                "a notify*",
                &["FORMERR", "REFUSED", "NOTIMP", "silence", "closed"],
            ),
            ("a name that loops*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("half a question*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("garbage*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("two bytes*", &["FORMERR", "REFUSED", "silence", "closed"]),
            ("*", &["REFUSED"]),
        ],
    )
    .await;
    // No look-up of a sandbox ever leaves the gateway: it knows the answer, which is its own address.
    let seen = journal.text();
    assert!(!seen.contains(mark), "{seen}");
    assert!(!seen.contains("evil"), "{seen}");
    assert!(run.egress().denied > 30);
}
