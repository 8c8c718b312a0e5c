//! Tables and laws of [`super`].

use proptest::prelude::*;

use super::*;
use crate::name::HostName;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (
                name.parse::<HeaderName>().unwrap(),
                value.parse::<HeaderValue>().unwrap(),
            )
        })
        .fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
}

fn names(map: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn usual_requests_pass() {
    let facts = |fields: &[(&str, &str)]| facts(Version::HTTP_11, "POST", &map(fields)).unwrap();
    assert_eq!(facts(&[("host", "a.example")]), Facts::default());
    assert_eq!(
        facts(&[("host", "a.example"), ("content-length", "12")]).content_length,
        Some(12)
    );
    assert_eq!(facts(&[("transfer-encoding", "Chunked")]).content_length, None);
    assert!(facts(&[("te", "trailers, deflate;q=0.5"), ("connection", "TE, close")]).trailers);
    assert!(facts(&[("range", "bytes=0-1")]).range);
    assert!(facts(&[("if-range", "x")]).range);
    assert!(facts(&[("content-encoding", "gzip")]).encoded);
    assert!(!facts(&[("content-encoding", "identity")]).encoded);
    assert!(facts(&[("content-encoding", "identity"), ("content-encoding", "br")]).encoded);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for fields in [
        &[("host", "a.example"), ("host", "b.example")][..],
        &[("host", "a.example"), ("host", "a.example")],
        &[("content-length", "1"), ("content-length", "1")],
        &[("content-length", "1"), ("content-length", "2")],
        &[("content-length", "1, 1")],
        &[("content-length", "+1")],
        &[("content-length", "-1")],
        &[("content-length", "0x1")],
        &[("content-length", "")],
        &[("content-length", "99999999999999999999")],
        &[("content-length", "1"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked, identity")],
        &[("transfer-encoding", "identity")],
        &[("transfer-encoding", "xchunked")],
        &[("transfer-encoding", "chunked\t")],
        &[("connection", "host")],
        &[("connection", "close, Content-Length")],
        &[("connection", "transfer-encoding")],
    ] {
        assert_eq!(
            facts(Version::HTTP_11, "POST", &map(fields)),
            Err(Deny::RequestMalformed),
            "{fields:?}"
        );
    }
    assert_eq!(
        facts(
            Version::HTTP_10,
            "POST",
            &map(&[("transfer-encoding", "chunked")])
        ),
        Err(Deny::RequestMalformed)
    );
}

#[test]
fn http2_has_no_fields_of_a_connection() {
    for field in [
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
    ] {
        assert!(
            facts(Version::HTTP_2, "GET", &map(&[field])).is_err(),
            "{field:?}"
        );
    }
    assert!(
        facts(Version::HTTP_2, "GET", &map(&[("te", "trailers")]))
            .unwrap()
            .trailers
    );
}

#[test]
fn an_upgrade_is_to_websocket_and_asked_for_in_full() {
    let usual = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
    assert!(facts(Version::HTTP_11, "GET", &map(&usual)).unwrap().upgrade);
    for (method, fields) in [
        ("GET", &[("upgrade", "websocket")][..]),
        ("GET", &[("connection", "upgrade"), ("upgrade", "h2c")]),
        ("GET", &[("connection", "upgrade"), ("upgrade", "websocket, h2c")]),
        ("GET", &[("connection", "upgrade"), ("upgrade", "TLS/1.0")]),
        ("POST", &[("connection", "upgrade"), ("upgrade", "websocket")]),
    ] {
        assert_eq!(
            facts(Version::HTTP_11, method, &map(fields)),
            Err(Deny::UpgradeNotAllowed),
            "{fields:?}"
        );
    }
    for extra in [
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
    ] {
        let fields = [&usual[..], &[extra]].concat();
        assert_eq!(
            facts(Version::HTTP_11, "GET", &map(&fields)),
            Err(Deny::RequestMalformed),
            "{extra:?}"
        );
    }
    assert_eq!(
        facts(Version::HTTP_10, "GET", &map(&usual)),
        Err(Deny::UpgradeNotAllowed)
    );
}

#[test]
fn header_blocks_are_bounded() {
    let mut many = HeaderMap::new();
    for at in 0..FIELDS_MAX {
        many.append(
            HeaderName::from_bytes(format!("x-{at}").as_bytes()).unwrap(),
            HeaderValue::from_static("1"),
        );
    }
    assert!(facts(Version::HTTP_11, "GET", &many).is_ok());
    many.append("x-0", HeaderValue::from_static("1"));
    assert_eq!(facts(Version::HTTP_11, "GET", &many), Err(Deny::RequestMalformed));
    let large = map(&[("x", &"a".repeat(BLOCK_MAX))]);
    assert_eq!(
        facts(Version::HTTP_11, "GET", &large),
        Err(Deny::RequestMalformed)
    );
}

#[test]
fn a_request_means_one_host() {
    let name = |text: &str, port| Ok((Host::Name(HostName::parse(text).unwrap()), port));
    for (version, uri, fields, meant) in [
        (
            Version::HTTP_11,
            None,
            &[("host", "A.example")][..],
            name("a.example", 443),
        ),
        (
            Version::HTTP_11,
            None,
            &[("host", "a.example:8443")],
            name("a.example", 8443),
        ),
        (
            Version::HTTP_11,
            Some("a.example"),
            &[("host", "a.example:443")],
            name("a.example", 443),
        ),
        (
            Version::HTTP_11,
            Some("a.example"),
            &[("host", "b.example")],
            Err(Deny::HostMismatch),
        ),
        (
            Version::HTTP_11,
            Some("a.example:80"),
            &[("host", "a.example")],
            Err(Deny::HostMismatch),
        ),
        (
            Version::HTTP_11,
            Some("a.example"),
            &[],
            Err(Deny::RequestMalformed),
        ),
        (Version::HTTP_11, None, &[], Err(Deny::RequestMalformed)),
        (Version::HTTP_11, None, &[("host", "")], Err(Deny::NameMalformed)),
        (
            Version::HTTP_11,
            None,
            &[("host", "a.example"), ("host", "a.example")],
            Err(Deny::RequestMalformed),
        ),
        (
            Version::HTTP_11,
            None,
            &[("host", "a.example@b.example")],
            Err(Deny::NameMalformed),
        ),
        (
            Version::HTTP_11,
            None,
            &[("host", "127.1")],
            Err(Deny::AddressLiteral),
        ),
        (Version::HTTP_10, Some("a.example"), &[], name("a.example", 443)),
        (Version::HTTP_10, None, &[], Err(Deny::RequestMalformed)),
        (Version::HTTP_2, Some("a.example"), &[], name("a.example", 443)),
        (
            Version::HTTP_2,
            Some("a.example"),
            &[("host", "b.example")],
            Err(Deny::HostMismatch),
        ),
        (
            Version::HTTP_2,
            None,
            &[("host", "a.example")],
            name("a.example", 443),
        ),
        (Version::HTTP_2, None, &[], Err(Deny::RequestMalformed)),
    ] {
        assert_eq!(
            authority(version, uri, &map(fields), 443),
            meant,
            "{uri:?} {fields:?}"
        );
    }
}

#[test]
fn what_belongs_to_the_connection_or_would_mislead_the_server_is_removed() {
    let mut headers = map(&[
        ("host", "a.example"),
        ("connection", "close, X-Secret-Hop"),
        ("x-secret-hop", "1"),
        ("keep-alive", "1"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "close"),
        ("proxy-anything", "1"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("upgrade", "websocket"),
        ("http2-settings", "x"),
        ("expect", "100-continue"),
        ("forwarded", "for=1"),
        ("via", "1.1 x"),
        ("x-forwarded-for", "1"),
        ("x-forwarded-host", "b.example"),
        ("x-forwarded-anything", "1"),
        ("x-real-ip", "1"),
        ("x-http-method-override", "DELETE"),
        ("x-http-method", "DELETE"),
        ("x-method-override", "DELETE"),
        ("x-original-url", "/admin"),
        ("x-rewrite-url", "/admin"),
        ("x_forwarded_for", "1"),
        ("x_http_method_override", "DELETE"),
        ("x_http-method_override", "DELETE"),
        ("content_length", "4"),
        ("transfer_encoding", "chunked"),
        ("proxy_authorization", "Basic x"),
        ("accept", "*/*"),
        ("my_field", "stays"),
        ("authorization", "Bearer mine"),
        ("cookie", "a=b"),
        ("content-length", "3"),
    ]);
    clean_request(&mut headers, None);
    assert_eq!(
        names(&headers),
        ["accept", "authorization", "content-length", "cookie", "my_field"]
    );
}

#[test]
fn what_connection_names_is_removed_before_a_credential_is_added() {
    let name = HeaderName::from_static("x-api-key");
    let mut headers = map(&[
        ("connection", "x-api-key"),
        ("x-api-key", "mine"),
        ("x-api-key", "other"),
        ("x_api_key", "third"),
    ]);
    clean_request(&mut headers, Some(&name));
    assert!(headers.is_empty());
    headers.insert(&name, HeaderValue::from_static("ours"));
    assert_eq!(headers.get_all(&name).iter().count(), 1);
}

#[test]
fn an_upgrade_is_written_anew() {
    let mut headers = map(&[
        ("connection", "keep-alive, upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "x"),
    ]);
    clean_request(&mut headers, None);
    set_upgrade(&mut headers);
    assert_eq!(
        headers,
        map(&[
            ("sec-websocket-key", "x"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket")
        ])
    );
}

#[test]
fn with_a_credential_parts_are_refused_and_answers_come_uncompressed() {
    let mut headers = map(&[("accept-encoding", "gzip, br"), ("accept-encoding", "zstd")]);
    let range = Facts {
        range: true,
        ..Facts::default()
    };
    assert_eq!(for_credential(&mut headers, &range), Err(Deny::RangeNotAllowed));
    assert_eq!(for_credential(&mut headers, &Facts::default()), Ok(()));
    assert_eq!(headers, map(&[("accept-encoding", "identity")]));
}

#[test]
fn answers_lose_what_belongs_to_the_connection_and_cookies_where_a_credential_was_added() {
    let answer = [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("transfer-encoding", "chunked"),
        ("alt-svc", "h3=\":443\""),
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
        ("accept-ranges", "bytes"),
        ("content-type", "text/plain"),
    ];
    let mut plain = map(&answer);
    clean_response(&mut plain, false);
    assert_eq!(names(&plain), ["accept-ranges", "content-type", "set-cookie"]);
    let mut credentialed = map(&answer);
    clean_response(&mut credentialed, true);
    assert_eq!(names(&credentialed), ["content-type"]);
}

/// Names that matter to framing and routing, in several forms, and any others.
fn any_fields() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        proptest::sample::select(vec![
            "host",
            "connection",
            "content-length",
            "transfer-encoding",
            "upgrade",
            "te",
            "x-forwarded-for",
            "cookie",
            "x-http-method-override",
            "proxy-authorization",
            "authorization",
            "range",
        ])
        .prop_map(str::to_owned),
        "[a-z_-]{1,12}",
    ];
    let value = prop_oneof![
        proptest::sample::select(vec![
            "chunked",
            "websocket",
            "upgrade",
            "close",
            "host",
            "7",
            "a.example",
            "content-length",
            "trailers",
            "authorization",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,20}",
    ];
    proptest::collection::vec((name, value), 0..12).prop_map(|fields| {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let parsed = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(&value),
            );
            if let (Ok(name), Ok(value)) = parsed {
                map.append(name, value);
            }
        }
        map
    })
}

proptest! {
    #[test]
    fn no_request_that_passes_has_two_framings(headers in any_fields(), http2: bool) {
        let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        if facts(version, "GET", &headers).is_ok() {
            let count = |name: HeaderName| headers.get_all(name).iter().count();
            prop_assert!(count(header::CONTENT_LENGTH) + count(header::TRANSFER_ENCODING) <= 1);
            prop_assert!(count(header::HOST) <= 1);
        }
    }

    #[test]
    fn a_cleaned_request_names_no_connection_host_or_proxy(headers in any_fields()) {
        let mut cleaned = headers.clone();
        let name = HeaderName::from_static("authorization");
        clean_request(&mut cleaned, Some(&name));
        for gone in ["connection", "host", "upgrade", "te", "transfer-encoding", "x-forwarded-for", "x-http-method-override", "proxy-authorization", "authorization"] {
            prop_assert!(!cleaned.contains_key(gone), "{}", gone);
        }
        // Nothing was added or changed, and cleaning again changes nothing.
        prop_assert!(cleaned.iter().all(|(name, value)| headers.get_all(name).iter().any(|before| before == value)));
        let mut again = cleaned.clone();
        clean_request(&mut again, Some(&name));
        prop_assert_eq!(again, cleaned);
    }
}
