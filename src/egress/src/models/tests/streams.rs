//! The filter of streams of chat completions.

use proptest::prelude::*;

use super::super::UsageFilter;

const USAGE: &str =
    r#"data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

fn filtered(pieces: &[&[u8]]) -> String {
    let mut filter = UsageFilter::default();
    let mut out = Vec::new();
    for piece in pieces {
        out.extend(filter.feed(piece));
    }
    out.extend(filter.finish());
    String::from_utf8(out).unwrap()
}

#[test]
fn the_chunk_of_nothing_but_usage_is_taken_out() {
    let first = r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":null}"#;
    for end in ["\n\n", "\r\n\r\n", "\r\r"] {
        let stream = format!("{first}{end}{USAGE}{end}data: [DONE]{end}");
        let expected = format!("{first}{end}data: [DONE]{end}");
        let found = filtered(&[stream.as_bytes()]);
        // Of the CR LF that ends the event the LF may stay, which is an empty line: no event.
        assert_eq!(found.replace(&format!("{end}\n"), end), expected, "{end:?}");
    }
}

#[test]
fn everything_else_passes_as_it_came() {
    for stream in [
        "",
        "\n\n",
        ": comment\n\n",
        "data: [DONE]\n\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"error\":{\"message\":\"x\"}}\n\n",
        "data: {\"choices\":[],\"usage\":{}",
        "event: x\r\nid: 1\r\ndata: a\r\ndata: b\r\n\r\n",
        "{\"error\":{\"message\":\"not a stream\"}}",
        "data\n\ndata:\n\ndatax: {\"choices\":[],\"usage\":{}}\n\n",
    ] {
        assert_eq!(filtered(&[stream.as_bytes()]), stream);
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(filtered(&bytes), stream);
    }
}

#[test]
fn an_event_passes_as_soon_as_it_is_there() {
    let mut filter = UsageFilter::default();
    assert_eq!(filter.feed(b"data: {\"choices\":[{}]}\n"), b"");
    assert_eq!(filter.feed(b"\ndata: {"), b"data: {\"choices\":[{}]}\n\n");
    assert_eq!(filter.feed(b"}\r\n\r"), b"data: {}\r\n\r");
    assert_eq!(filter.feed(b"\n"), b"\n");
    assert_eq!(filter.finish(), b"");
}

#[test]
fn an_event_without_end_is_not_held() {
    let mut filter = UsageFilter::default();
    let mut out = filter.feed(b"data: {\"choices\":[],\"usage\":{},\"x\":\"").len();
    for _ in 0..1_000 {
        out += filter.feed(&[b'x'; 1_000]).len();
    }
    assert!(out > 900_000, "{out}");
    let _ = filter.feed(b"\"}\n\n");
    // The next one is read again.
    assert_eq!(filter.feed(format!("{USAGE}\n\n").as_bytes()), b"");
}

proptest! {
    #[test]
    fn what_passes_does_not_depend_on_how_the_stream_is_cut(
        lines in prop::collection::vec(prop::sample::select(vec![
            USAGE, "", "", "", "data: {\"choices\":[{}]}", "data: [DONE]", ": x", "event: y", "data: {\"choices\":[],",
            "data: \"usage\":{}}",
        ]), 0..30),
        pieces in prop::collection::vec(1..60_usize, 0..60),
    ) {
        let stream = lines.join("\n");
        let mut rest = stream.as_bytes();
        let mut cut = Vec::new();
        for piece in pieces {
            let (piece, after) = rest.split_at(piece.min(rest.len()));
            cut.push(piece);
            rest = after;
        }
        cut.push(rest);
        let whole = filtered(&[stream.as_bytes()]);
        prop_assert_eq!(&filtered(&cut), &whole);
        // Nothing is added, and only whole events are missing.
        prop_assert!(whole.len() <= stream.len());
        if !stream.contains("usage") {
            prop_assert_eq!(whole, stream);
        }
    }

    #[test]
    fn any_bytes_pass_but_for_events_of_usage(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut filter = UsageFilter::default();
        let mut out = filter.feed(&bytes);
        out.extend(filter.finish());
        prop_assert_eq!(out, bytes);
    }
}
