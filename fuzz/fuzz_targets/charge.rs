//! The line by which a recorder has a step charged.
#![no_main]

use agentsandbox_api::gateway::CHARGE_MAX_BYTES;
use agentsandbox_egress::registration::parse_charge;
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(number) = bounded(data, 4 << 10, 16, || parse_charge(data)) else {
        return;
    };
    assert!(data.len() <= CHARGE_MAX_BYTES);
    let written = format!("{{\"charge\":{number}}}");
    assert_eq!(parse_charge(written.as_bytes()), Some(number));
});
