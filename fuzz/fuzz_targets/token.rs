//! Tokens: of a run as proxy credentials and in the place of an API key, of a pod as JWT.
#![no_main]

use agentsandbox_egress::identity::TOKEN_MAX;
use agentsandbox_egress::pod_token::Unverified;
use agentsandbox_egress::token::{of_key, of_proxy};
use agentsandbox_fuzz::{bounded, fields};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::HeaderMap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let map = fields(data);
    for token in [of_proxy(&map), of_key(&map)].into_iter().flatten() {
        assert!((1..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()));
        let mut usual = HeaderMap::new();
        let basic = format!("Basic {}", STANDARD.encode(format!("run:{token}")));
        usual.insert("proxy-authorization", basic.parse().expect("a value"));
        usual.insert("x-api-key", token.parse().expect("a value"));
        assert_eq!(of_proxy(&usual).as_ref(), Some(&token));
        assert_eq!(of_key(&usual).as_ref(), Some(&token));
    }

    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(token) = bounded(data, 4 << 10, 32, || Unverified::parse(text)) else {
        return;
    };
    // One spelling for each signature, and all that is signed is what was sent.
    assert_eq!(
        format!("{}.{}", token.signed, URL_SAFE_NO_PAD.encode(&token.signature)),
        text
    );
    let Ok(claims) = token.claims() else { return };
    if claims.check("issuer", "gateway", 1_500).is_ok() {
        assert_eq!(claims.issuer, "issuer");
        assert!(claims.audiences.contains(&"gateway".to_owned()));
        assert!(claims.expires >= 1_500 - 30 && claims.begins.is_none_or(|begins| begins <= 1_500 + 30));
    }
});
