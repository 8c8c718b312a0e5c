//! Paths of requests, and the patterns of rules.
#![no_main]

use agentsandbox_egress::path::{PATH_MAX, PathPattern, check, split};
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

/// As servers do that decode once, and then walk along the segments.
fn resolved(path: &str) -> Vec<u8> {
    let (bytes, mut at, mut out) = (path.as_bytes(), 0, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        let hex = path
            .get(at + 1..at + 3)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match hex {
            Some(decoded) if byte == b'%' => {
                out.push(decoded);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in out.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b".." => drop(segments.pop()),
            b"." => {}
            segment => segments.push(segment),
        }
    }
    segments.join(&b'/')
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (target, pattern) = text.split_once(' ').unwrap_or((text, "/repos/"));
    let (path, query) = split(target);
    assert_eq!(
        path.len() + query.map_or(0, |query| query.len() + 1),
        target.len()
    );
    if bounded(data, 0, 0, || check(path)).is_err() {
        return;
    }
    assert!(path.len() <= PATH_MAX && path.starts_with('/'));
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic()));
    let resolved = resolved(path);
    assert_eq!(
        resolved.split(|byte| *byte == b'/').count(),
        path.split('/').count(),
        "no server finds another depth"
    );
    let Ok(pattern) = PathPattern::parse(pattern) else {
        return;
    };
    if pattern.matches(path) {
        let prefix = match &pattern {
            PathPattern::Exact(exact) => exact,
            PathPattern::Below(prefix) => prefix,
        };
        assert!(
            resolved.starts_with(&self::resolved(prefix)),
            "what was matched is what a server serves"
        );
    }
});
