//! Bodies, paths and queries of model requests.
#![no_main]

use agentsandbox_api::policy::Provider;
use agentsandbox_egress::models::{Endpoint, endpoint, prepare, query};
use agentsandbox_fuzz::{POLICY, bounded};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else {
        return;
    };
    let (rule, at) = [
        (0, Endpoint::ChatCompletions),
        (0, Endpoint::Responses),
        (0, Endpoint::Embeddings),
        (1, Endpoint::Messages),
        (1, Endpoint::CountTokens),
        (2, Endpoint::ChatCompletions),
        (2, Endpoint::Embeddings),
    ][usize::from(kind % 7)]
    .clone();
    let rule = &POLICY.models()[rule];
    if let Ok(text) = std::str::from_utf8(body) {
        let (path, asked) = text
            .split_once('?')
            .map_or((text, None), |(path, query)| (path, Some(query)));
        for provider in [Provider::OpenAI, Provider::Anthropic, Provider::OpenAICompatible] {
            if let Ok(found) = endpoint(provider, "POST", path) {
                assert!(!found.is_local(), "what the gateway answers itself is only read");
            }
            if let Ok(found) = endpoint(provider, "GET", path) {
                assert!(found.is_local());
            }
            if let Ok(Some(sent)) = query(provider, &at, asked) {
                assert_eq!((sent, provider), ("beta=true", Provider::Anthropic));
            }
        }
    }
    let Ok(prepared) = bounded(body, 64 << 10, 512, || prepare(&[rule], &at, body)) else {
        return;
    };
    assert!(prepared.reservation >= 0);
    assert!(rule.allow.contains(&prepared.model));
    if at != Endpoint::CountTokens {
        assert!(
            prepared.reservation > 0,
            "every request that costs is reserved for"
        );
    }
    let sent = prepared.body_for("m");
    // Two parsers find the same in it, and what was checked once is not changed by a second check.
    let read: Value = serde_json::from_slice(&sent).expect("what is sent is JSON");
    assert_eq!(read["model"], "m");
    if matches!(at, Endpoint::Responses) || read.get("store").is_some() {
        assert_eq!(read["store"], false);
    }
    let again = prepare(&[rule], &at, &sent).expect("what was accepted is accepted again");
    assert_eq!(again.body_for("m"), sent);
    assert_eq!(again.reservation, prepared.reservation);
    assert_eq!(again.stream, prepared.stream);
});
