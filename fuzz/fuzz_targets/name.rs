//! Host names, and the patterns of rules.
#![no_main]

use std::net::IpAddr;

use agentsandbox_egress::name::{HostName, HostPattern, NAME_MAX};
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (first, second) = text.split_once(' ').unwrap_or((text, text));
    let Ok(name) = bounded(data, 1 << 10, 4, || HostName::parse(first)) else {
        return;
    };
    assert_eq!(
        HostName::parse(name.as_str()).as_ref(),
        Ok(&name),
        "a name that is accepted is canonical"
    );
    assert!(name.as_str().len() <= NAME_MAX && name.as_str().eq_ignore_ascii_case(first));
    assert!(name.as_str().parse::<IpAddr>().is_err());
    assert!(
        !name
            .as_str()
            .bytes()
            .any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii_graphic())
    );
    let Ok(pattern) = second.parse::<HostPattern>() else {
        return;
    };
    assert_eq!(pattern.to_string().parse().as_ref(), Ok(&pattern));
    let of_pattern = pattern.name().as_str();
    if pattern.is_wildcard() {
        assert!(!pattern.matches(pattern.name()), "*.x is not x");
        if pattern.matches(&name) {
            assert!(name.as_str().ends_with(&format!(".{of_pattern}")));
        }
    } else {
        assert_eq!(pattern.matches(&name), name.as_str() == of_pattern);
    }
});
