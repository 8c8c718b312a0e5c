//! A provider's stream on its way to the client, without the usage that only the gateway has asked for.
#![no_main]

use agentsandbox_egress::models::UsageFilter;
use agentsandbox_fuzz::{bounded, pieces};
use libfuzzer_sys::fuzz_target;

fn is_subsequence(part: &[u8], whole: &[u8]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|byte| whole.any(|other| other == byte))
}

fuzz_target!(|data: &[u8]| {
    let mut filter = UsageFilter::default();
    let mut out = bounded(data, 256 << 10, 512, || filter.feed(data));
    out.extend(filter.finish());
    assert!(is_subsequence(&out, data), "nothing is added");
    if !data.windows(5).any(|five| five == b"usage") && !data.contains(&b'\\') {
        assert_eq!(out, data, "what says nothing of usage passes as it is");
    }
    let (mut filter, mut cut) = (UsageFilter::default(), Vec::new());
    for piece in pieces(data) {
        cut.extend(filter.feed(piece));
    }
    cut.extend(filter.finish());
    assert_eq!(cut, out, "the cut changes nothing");
});
