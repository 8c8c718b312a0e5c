//! What providers answer, in documents and streams: what it costs.
#![no_main]

use std::sync::LazyLock;

use agentsandbox_egress::models::{Endpoint, Meter, Prepared, prepare};
use agentsandbox_fuzz::{POLICY, bounded, pieces};
use libfuzzer_sys::fuzz_target;

static REQUESTS: LazyLock<Vec<Prepared<'static>>> = LazyLock::new(|| {
    let message = r#"{"model":"m","messages":[{"role":"user","content":"Say hello."}],"max_tokens":500}"#;
    let response = r#"{"model":"m","input":"Say hello.","max_output_tokens":500}"#;
    let embedding = r#"{"model":"m","input":"hello"}"#;
    [
        (0, Endpoint::ChatCompletions, message),
        (0, Endpoint::Responses, response),
        (0, Endpoint::Embeddings, embedding),
        (1, Endpoint::Messages, message),
    ]
    .into_iter()
    .map(|(rule, endpoint, body)| {
        prepare(&[&POLICY.models()[rule]], &endpoint, body.as_bytes()).expect("a request")
    })
    .collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, answer)) = data.split_first() else {
        return;
    };
    let request = &REQUESTS[usize::from(kind % 4)];
    let content_type = [None, Some("application/json"), Some("text/event-stream")][usize::from(kind / 4 % 3)];
    let status = if kind & 0x40 == 0 { 200 } else { 500 };
    let complete = kind & 0x80 == 0;

    let mut meter = Meter::new(request, content_type);
    // Bounded memory, whatever comes.
    bounded(&[], 16 << 10, 0, || meter.feed(answer));
    let charge = meter.finish(status, complete);
    let mut in_pieces = Meter::new(request, content_type);
    for piece in pieces(answer) {
        in_pieces.feed(piece);
    }
    assert_eq!(
        in_pieces.finish(status, complete),
        charge,
        "the cut changes nothing"
    );

    assert!(charge.input >= 0 && charge.output >= 0 && charge.tokens() >= 0);
    let most = request.unanswered();
    if status == 200 {
        assert!(charge.tokens() > 0, "an answer is never free");
    }
    if !charge.estimated {
        // A count that is believed is one that can be.
        let ceiling = most.tokens().max(request.rule.context_tokens).saturating_mul(16);
        assert!(charge.input <= ceiling && charge.output <= ceiling);
    }
});
