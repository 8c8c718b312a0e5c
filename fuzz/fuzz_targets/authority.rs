//! `host:port` of CONNECT, `Host` and `:authority`.
#![no_main]

use agentsandbox_egress::authority::{Host, parse};
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let default = (text.len() % 2 == 0).then_some(443);
    let Ok((host, port)) = bounded(data, 1 << 10, 4, || parse(text, default)) else {
        return;
    };
    assert_ne!(port, 0);
    // What was understood is written in one way, which is understood as the same.
    let written = match &host {
        Host::Address(address) if address.is_ipv6() => format!("[{address}]:{port}"),
        host => format!("{host}:{port}"),
    };
    assert_eq!(parse(&written, None), Ok((host, port)));
    // And it is what was written, but for capital letters and a port left out.
    let lower = text.to_ascii_lowercase();
    assert!(
        lower == written
            || Some(written.as_str()) == default.map(|port| format!("{lower}:{port}")).as_deref()
    );
});
