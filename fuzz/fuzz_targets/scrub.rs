//! Answers that may hold a credential's value.
#![no_main]

use agentsandbox_egress::scrub::Scrubber;
use agentsandbox_fuzz::{bounded, pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&length, rest)) = data.split_first() else {
        return;
    };
    let (value, answer) = rest.split_at(usize::from(length % 16).min(rest.len()));
    let mut scrubber = Scrubber::new(value);
    let mut out = Vec::new();
    bounded(data, 1 << 10, 8, || scrubber.feed(answer, &mut out));
    scrubber.finish(&mut out);
    assert_eq!(out.len(), answer.len(), "lengths stay as announced");
    if !value.is_empty() && !value.contains(&b'*') {
        assert!(
            !out.windows(value.len()).any(|window| window == value),
            "the value is gone"
        );
        assert_eq!(
            scrubber.found() > 0,
            answer.windows(value.len()).any(|window| window == value)
        );
    }
    let (mut scrubber, mut cut) = (Scrubber::new(value), Vec::new());
    for piece in pieces(answer) {
        scrubber.feed(piece, &mut cut);
        assert!(answer.len() + value.len() >= cut.len());
    }
    scrubber.finish(&mut cut);
    assert_eq!(cut, out, "the cut changes nothing");
});
