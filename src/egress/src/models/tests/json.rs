//! Strict JSON.

use proptest::prelude::*;

use super::super::json::{MAX_DEPTH, MAX_VALUES, Value, parse};

fn written(value: &Value<'_>) -> String {
    let mut out = Vec::new();
    value.write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn documents_are_written_as_they_were_read_but_for_white_space_and_needless_escapes() {
    for (text, expected) in [
        ("null", "null"),
        (" true\n", "true"),
        ("[]", "[]"),
        ("{ }", "{}"),
        (
            r#"{"b": [1, -2.50, 1E+9, 0, -0], "a": false}"#,
            r#"{"b":[1,-2.50,1E+9,0,-0],"a":false}"#,
        ),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        (r#""\u00e9\u4f60\ud83d\ude00\/""#, "\"é你😀/\""),
        (r#""\"\\\b\f\n\r\t\u001b""#, r#""\"\\\u0008\u000c\n\r\t\u001b""#),
        ("\"\u{7f}\u{2028}\"", "\"\u{7f}\u{2028}\""),
    ] {
        assert_eq!(written(&parse(text.as_bytes()).unwrap()), expected, "{text}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_or_is_no_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "{'a':1}",
        "{a:1}",
        "[1 2]",
        "{\"a\" 1}",
        "nul",
        "True",
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "0x1",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"a\nb\"",
        "{} {}",
        "{}x",
        "/**/{}",
        "\u{feff}{}",
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"x":{"tools":1,"b":2,"tools":3}}"#,
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(parse(b"\"\xff\"").is_err());
    assert!(parse(b"\"\xed\xa0\x80\"").is_err());
}

#[test]
fn duplicates_are_found_among_many_members_too() {
    let text = (0..2_000).fold(String::from("{"), |text, index| {
        text + &format!("\"k{index}\":0,")
    });
    assert!(parse(format!("{text}\"z\":0}}").as_bytes()).is_ok());
    assert!(parse(format!("{text}\"k1999\":0}}").as_bytes()).is_err());
    assert!(parse(format!("{text}\"k\\u0030\":0}}").as_bytes()).is_err());
}

#[test]
fn depth_and_number_of_values_are_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(parse(nested(MAX_DEPTH + 1).as_bytes()), Err("too deep"));
    assert_eq!(parse("[".repeat(1 << 20).as_bytes()), Err("too deep"));
    let objects = format!(
        "{}1{}",
        "{\"a\":".repeat(MAX_DEPTH + 1),
        "}".repeat(MAX_DEPTH + 1)
    );
    assert_eq!(parse(objects.as_bytes()), Err("too deep"));
    let many = |count: usize| format!("[{}0]", "0,".repeat(count - 2));
    assert!(parse(many(MAX_VALUES).as_bytes()).is_ok());
    assert_eq!(parse(many(MAX_VALUES + 1).as_bytes()), Err("too many values"));
    assert!(parse("9".repeat(65).as_bytes()).is_err());
}

/// JSON as `serde_json` writes it, with no name twice.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        "[\\x00-\\x20\"\\\\/\u{80}\u{2028}😀]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..24)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_means_what_was_read(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let read = parse(text.as_bytes()).unwrap();
        let again: serde_json::Value = serde_json::from_str(&written(&read)).unwrap();
        prop_assert_eq!(&again, &serde_json::from_str::<serde_json::Value>(&text).unwrap());
        prop_assert_eq!(written(&parse(written(&read).as_bytes()).unwrap()), written(&read));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn what_another_parser_refuses_is_refused_here(text in r#"[\[\]{}:,"\\0-9eE+.untrfalse \-]{0,24}"#) {
        if parse(text.as_bytes()).is_ok() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn a_changed_byte_is_read_or_refused(value in any_json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&value).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = parse(&bytes) {
            let theirs = serde_json::from_slice::<serde_json::Value>(&bytes);
            if let Ok(theirs) = theirs {
                let ours: serde_json::Value = serde_json::from_str(&written(&read)).unwrap();
                prop_assert_eq!(ours, theirs);
            }
        }
    }
}
