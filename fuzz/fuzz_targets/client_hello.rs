//! The first bytes of a TLS connection.
#![no_main]

use agentsandbox_egress::client_hello::{HELLO_MAX, Hello, parse};
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = bounded(data, 4 << 10, 8, || parse(data));
    if let Hello::Complete {
        server_name: Some(name),
        ..
    } = &whole
    {
        assert!(name.is_ascii() && !name.is_empty());
        // Put together from the client's own bytes, which may be spread over records.
        assert!(name.len() < data.len());
    }
    if data.len() >= HELLO_MAX {
        assert_ne!(whole, Hello::Partial, "nobody is waited for without end");
    }
    // What has been decided stays decided, whatever comes behind; so a connection can be judged as soon as it can.
    for end in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        match parse(&data[..end]) {
            Hello::Partial => {}
            early => assert_eq!(early, whole),
        }
    }
});
