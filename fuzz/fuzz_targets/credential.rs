//! A Secret's list of the hosts to which it may be sent.
#![no_main]

use agentsandbox_egress::credential::{CONSENT_MAX, consent};
use agentsandbox_egress::name::HostName;
use agentsandbox_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let host = HostName::parse("api.example.org").expect("a name");
    if bounded(data, 4 << 10, 16, || consent(data, &host)).is_ok() {
        assert!(data.len() <= CONSENT_MAX);
        let text = String::from_utf8_lossy(data).to_ascii_lowercase();
        assert!(
            text.split(|character: char| !character.is_ascii_graphic() || character == ',')
                .any(|word| word == "api.example.org")
        );
    }
});
