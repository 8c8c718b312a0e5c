//! Text from outside, made safe to show and bounded by what it weighs in JSON.

use std::borrow::Cow;

/// Marks that a text was longer.
pub const CUT: char = '…';

/// Text from outside as visible ASCII of at most `max` bytes: every other character becomes `?`, and what is cut off is
/// marked by `...`. Terminals and log viewers find nothing in it to act on. For names, which are ASCII by rights.
#[must_use]
pub fn plain(text: &str, max: usize) -> Cow<'_, str> {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte);
    if text.len() <= max && text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(max.min(text.len()));
    for character in text.chars() {
        if plain.len() >= max {
            plain.truncate(max.saturating_sub(3));
            plain.push_str("...");
            break;
        }
        plain.push(if character.is_ascii() && is_plain(character as u8) {
            character
        } else {
            '?'
        });
    }
    Cow::Owned(plain)
}

/// Text from outside of which every character can be seen, of at most `max` bytes in JSON: line ends, controls, escapes
/// of terminals, marks that turn the direction of text, combining and invisible characters are written out, such as
/// `\n` or `\u{202e}`. What is cut off is marked by [`CUT`]. For paths and arguments, where every character counts.
#[must_use]
pub fn visible(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max
        && text
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
    {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(max.min(text.len()));
    let mut weight = 0;
    // Where the text ends if it must make room for the mark.
    let mut end = 0;
    for character in text.chars() {
        let before = shown.len();
        if is_visible(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_debug());
        }
        weight += weighs(&shown[before..]);
        if weight > max {
            shown.truncate(end);
            if max >= CUT.len_utf8() {
                shown.push(CUT);
            }
            break;
        }
        if weight + CUT.len_utf8() <= max {
            end = shown.len();
        }
    }
    Cow::Owned(shown)
}

/// Whether a character shows itself, and nothing but itself: `escape_debug` escapes the others.
fn is_visible(character: char) -> bool {
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1
}

/// What a text weighs in JSON, without its quotes.
#[must_use]
pub fn weighs(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\t' | b'\r' | 8 | 12 => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_becomes_plain_and_short() {
        for (text, max, expected) in [
            ("plain text", 20, "plain text"),
            ("a\nb\r\0\u{1b}[31mc", 20, "a?b???[31mc"),
            ("gr\u{fc}n \u{202e}txt", 20, "gr?n ?txt"),
            ("0123456789", 10, "0123456789"),
            ("0123456789a", 10, "0123456..."),
            ("\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}", 10, "??????"),
            ("abc", 2, "..."),
            ("", 5, ""),
        ] {
            assert_eq!(plain(text, max), expected, "{text:?}");
        }
    }

    #[test]
    fn every_character_of_a_visible_text_can_be_seen() {
        for (text, max, expected) in [
            ("say \"hi\" c:\\x 'y'", 40, "say \"hi\" c:\\x 'y'"),
            ("grün 漢字", 40, "grün 漢字"),
            ("a\nb\t\u{1b}[2Jc\0", 40, "a\\nb\\t\\u{1b}[2Jc\\0"),
            (
                "exe.\u{202e}txt\u{200b}\u{2066}",
                60,
                "exe.\\u{202e}txt\\u{200b}\\u{2066}",
            ),
            (
                "e\u{301}\u{2028}\u{e0041}\u{feff}",
                60,
                "e\\u{301}\\u{2028}\\u{e0041}\\u{feff}",
            ),
            ("0123456789", 10, "0123456789"),
            ("0123456789a", 10, "0123456…"),
            ("\"\"\"\"\"\"", 10, "\"\"\"…"),
            ("漢字漢字", 10, "漢字…"),
            ("abcd", 2, ""),
        ] {
            assert_eq!(visible(text, max), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_heavier_than_its_bound_or_holds_what_acts(text in any::<String>(), noise in "[\\PC\"\\\\\u{0}-\u{20}\u{202e}]{0,200}", max in 3..300_usize) {
            for text in [&text, &noise] {
                prop_assert!(plain(text, max).len() <= max);
                let once = visible(text, max);
                prop_assert!(serde_json::to_string(&once).unwrap().len() - 2 <= max);
                prop_assert_eq!(serde_json::to_string(&once).unwrap().len() - 2, weighs(&once));
                prop_assert!(once.chars().all(is_visible));
            }
        }
    }
}
