//! The adversary's text, made safe to show and bounded by what it weighs in JSON.

/// Removes control characters (but newline and tab), terminal escapes and characters that turn the direction of
/// text; invalid UTF-8 is replaced.
pub fn sanitised(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => skip_escape(&mut characters),
            '\n' | '\t' => clean.push(character),
            _ if character.is_control() || turns_direction(character) => {}
            _ => clean.push(character),
        }
    }
    clean
}

/// Skips what follows an escape character: a control sequence up to its final byte, or a string up to its end.
fn skip_escape(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match characters.peek() {
        Some('[') => {
            characters.next();
            while characters
                .next_if(|c| ('\u{20}'..='\u{3f}').contains(c))
                .is_some()
            {}
            characters.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            characters.next();
            for next in characters.by_ref() {
                if next == '\u{7}' || next == '\u{1b}' {
                    break;
                }
            }
        }
        _ => {
            characters.next_if(|c| ('\u{20}'..='\u{7e}').contains(c));
        }
    }
}

fn turns_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// What a character weighs in a JSON string.
fn weight(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\t' | '\r' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    }
}

/// The beginning of a text that weighs at most `bytes` in JSON; `…` marks that there was more.
pub fn head(text: &str, bytes: usize) -> String {
    if text.chars().map(weight).sum::<usize>() <= bytes {
        return text.to_owned();
    }
    let mut room = bytes.saturating_sub('…'.len_utf8());
    let mut kept: String = text.chars().take_while(|c| fits(&mut room, weight(*c))).collect();
    if bytes >= '…'.len_utf8() {
        kept.push('…');
    }
    kept
}

/// The end of a text that weighs at most `bytes` in JSON, from the beginning of a line if there is one.
pub fn tail(text: &str, bytes: usize) -> String {
    let text = text.trim_end();
    let mut room = bytes;
    let kept: Vec<char> = text
        .chars()
        .rev()
        .take_while(|c| fits(&mut room, weight(*c)))
        .collect();
    let whole = kept.len() == text.chars().count();
    let kept: String = kept.into_iter().rev().collect();
    match kept.split_once('\n') {
        Some((_, lines)) if !whole && !lines.is_empty() => lines.to_owned(),
        _ => kept,
    }
}

fn fits(room: &mut usize, weight: usize) -> bool {
    let fits = *room >= weight;
    *room = if fits { *room - weight } else { 0 };
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &str) -> usize {
        serde_json::to_string(text).unwrap().len() - 2
    }

    #[test]
    fn escapes_and_direction_marks_are_removed() {
        assert_eq!(
            sanitised(b"a\x1b[31mred\x1b[0m\x00\x07b\n\tc"),
            "ared\u{0}b\n\tc".replace('\u{0}', "")
        );
        assert_eq!(sanitised("x\u{202e}y\u{2066}z".as_bytes()), "xyz");
        assert_eq!(sanitised(b"\x1b]0;title\x07after"), "after");
        assert_eq!(sanitised(b"ok\xff"), "ok\u{fffd}");
    }

    #[test]
    fn a_tail_begins_with_a_whole_line() {
        assert_eq!(tail("first line\nsecond\nthird\n", 12), "third");
        assert_eq!(tail("short\n", 100), "short");
    }

    proptest! {
        #[test]
        fn nothing_weighs_more_than_its_bound(bytes in proptest::collection::vec(any::<u8>(), 0..4000), bound in 0_usize..1500) {
            let clean = sanitised(&bytes);
            prop_assert!(escaped(&head(&clean, bound)) <= bound);
            prop_assert!(escaped(&tail(&clean, bound)) <= bound);
            let terrible = !clean.chars().all(|c| c == '\n' || c == '\t' || !c.is_control());
            prop_assert!(!terrible);
        }
    }
}
