//! The line by which a recorder registers.
#![no_main]

use std::fmt::Write as _;

use agentsandbox_egress::registration::parse;
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(claim) = bounded(data, 4 << 10, 16, || parse(data)) else {
        return;
    };
    let mut sha = String::new();
    for byte in claim.run_token {
        write!(sha, "{byte:02x}").expect("a string takes everything");
    }
    let written = serde_json::json!({"podUid": claim.pod_uid, "token": claim.token, "runTokenSha256": sha});
    assert_eq!(parse(written.to_string().as_bytes()), Ok(claim));
});
