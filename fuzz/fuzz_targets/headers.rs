//! Header fields of requests and answers.
#![no_main]

use agentsandbox_egress::headers::{authority, clean_request, clean_response, facts, may_carry_a_credential};
use agentsandbox_fuzz::{bounded, fields};
use http::Version;
use http::header::HeaderName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else {
        return;
    };
    let version = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2][usize::from(kind % 3)];
    let method = if kind & 4 == 0 { "GET" } else { "POST" };
    let map = fields(rest);
    let facts = bounded(rest, 16 << 10, 64, || facts(version, method, &map));
    if let Ok(facts) = facts {
        assert!(map.get_all("host").iter().count() <= 1 && map.get_all("content-length").iter().count() <= 1);
        assert!(!facts.upgrade || (version == Version::HTTP_11 && method == "GET"));
        assert!(!(map.contains_key("transfer-encoding") && facts.content_length.is_some()));
    }
    let uri = (kind & 8 != 0).then_some("api.example.org:443");
    if let (Ok((host, port)), Some(_)) = (authority(version, uri, &map, 443), uri) {
        assert_eq!((host.to_string().as_str(), port), ("api.example.org", 443));
    }

    let credential = HeaderName::from_static("x-api-key");
    assert!(may_carry_a_credential(&credential));
    let mut cleaned = map.clone();
    clean_request(&mut cleaned, Some(&credential));
    for name in cleaned.keys() {
        let dashed = name.as_str().replace('_', "-");
        let unwanted = [
            "host",
            "connection",
            "upgrade",
            "te",
            "forwarded",
            "x-api-key",
            "x-http-method-override",
        ];
        assert!(!unwanted.contains(&dashed.as_str()), "{name}");
        assert!(
            !dashed.starts_with("proxy-") && !dashed.starts_with("x-forwarded"),
            "{name}"
        );
        assert_eq!(
            cleaned.get_all(name).iter().count(),
            map.get_all(name).iter().count(),
            "nothing is added"
        );
    }
    let mut again = cleaned.clone();
    clean_request(&mut again, Some(&credential));
    assert_eq!(again, cleaned, "what is clean stays as it is");

    let mut answer = map;
    clean_response(&mut answer, true);
    for name in [
        "connection",
        "set-cookie",
        "set-cookie2",
        "alt-svc",
        "accept-ranges",
        "upgrade",
    ] {
        assert!(!answer.contains_key(name));
    }
});
