//! Secrets that the name before them gives away: `NAME=value`, `--name value`, `"name": "value"`, headers.

use std::ops::Range;

/// Names of headers that hold a secret, besides those that end in a secret word.
const HEADERS: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-auth-key",
];
/// Longest name that is looked at, in bytes.
const NAME_MAX: usize = 64;

/// Where secrets stand, in order.
pub fn spans(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let (mut spans, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let found = match bytes[at] {
            b'=' => after_equals(text, at),
            b':' => after_colon(text, at),
            b' ' => after_flag(text, at),
            _ => None,
        };
        match found {
            Some(span) => {
                at = span.end.max(at + 1);
                spans.push(span);
            }
            None => at += 1,
        }
    }
    spans
}

/// Whether a name says that what follows is a secret: by its last word. `maxTokens`, `TOKEN_LIMIT`, `password-file` and
/// `PWD` don't.
pub fn is_secret_name(name: &str) -> bool {
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(is_name) {
        return false;
    }
    let last_start = last_word(name);
    let (before, last) = (&name[..last_start], &name[last_start..]);
    let last = last.to_ascii_lowercase();
    let before = before.trim_end_matches(['_', '-']).to_ascii_lowercase();
    match last.as_str() {
        "key" => {
            let kinds = [
                "api",
                "access",
                "private",
                "secret",
                "auth",
                "encryption",
                "signing",
                "account",
                "master",
            ];
            kinds.iter().any(|kind| before.ends_with(kind))
                // An environment variable such as `OPENAI_KEY`.
                || (!before.is_empty() && before != "public" && before != "primary" && before != "foreign"
                    && name.contains('_') && name.bytes().all(|b| !b.is_ascii_lowercase()))
        }
        "credential" | "credentials" | "pwd" => !before.is_empty(),
        "pass" | "passwort" => true,
        word => [
            "password",
            "passwd",
            "passphrase",
            "secret",
            "token",
            "apikey",
            "secretkey",
            "accesskey",
            "authkey",
        ]
        .iter()
        .any(|ending| word.ends_with(ending)),
    }
}

/// Whether a value only names where the secret is: a variable or a command of a shell.
pub fn is_reference(value: &str) -> bool {
    let value = value.trim_matches(['"', '\'']);
    let Some(rest) = value.strip_prefix('$') else {
        return false;
    };
    let is_variable = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let braced = rest
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(is_variable);
    braced || is_variable(rest) || rest.starts_with('(')
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Where the last word of a name begins: after `_` or `-`, or at a capital after a small letter.
fn last_word(name: &str) -> usize {
    let bytes = name.as_bytes();
    (1..bytes.len())
        .rev()
        .find(|at| {
            matches!(bytes[at - 1], b'_' | b'-')
                || bytes[*at].is_ascii_uppercase() && bytes[at - 1].is_ascii_lowercase()
        })
        .unwrap_or(0)
}

/// The name that ends at `end`, without leading dashes.
fn name_before(text: &str, end: usize) -> &str {
    let bytes = text.as_bytes();
    let length = bytes[..end]
        .iter()
        .rev()
        .take(NAME_MAX + 1)
        .take_while(|byte| is_name(**byte))
        .count();
    text[end - length..end].trim_start_matches('-')
}

/// `NAME=value`, and `name = "value"`.
fn after_equals(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    if bytes.get(at + 1) == Some(&b'=') {
        return None;
    }
    let spaced = at > 0 && bytes[at - 1] == b' ';
    let end = if spaced { at - 1 } else { at };
    let start = if spaced && bytes.get(at + 1) == Some(&b' ') {
        at + 2
    } else {
        at + 1
    };
    if spaced && !matches!(bytes.get(start), Some(b'"' | b'\'')) {
        return None;
    }
    is_secret_name(unquoted_name(text, end)?).then(|| value(text, start, false))?
}

/// A header to the end of its line or of the quotes around it, and `"name": "value"`.
fn after_colon(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let start = at + 1 + usize::from(bytes.get(at + 1) == Some(&b' '));
    if at > 0 && matches!(bytes[at - 1], b'"' | b'\'') {
        let name = unquoted_name(text, at)?;
        return (is_secret_name(name) || is_header(name)).then(|| value(text, start, false))?;
    }
    is_header(name_before(text, at)).then(|| value(text, start, true))?
}

/// `--name value` in a script.
fn after_flag(text: &str, at: usize) -> Option<Range<usize>> {
    let name = name_before(text, at);
    let begin = at - name.len();
    let is_flag = text[..begin].ends_with('-') && is_secret_name(name) && !text[at + 1..].starts_with("--");
    is_flag.then(|| value(text, at + 1, false))?
}

fn is_header(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    HEADERS.contains(&lower.as_str()) || (lower.contains('-') && is_secret_name(&lower))
}

/// The name that ends at `end`, inside quotes or not.
fn unquoted_name(text: &str, end: usize) -> Option<&str> {
    let quoted = end > 0 && matches!(text.as_bytes()[end - 1], b'"' | b'\'');
    let end = if quoted { end - 1 } else { end };
    // JSON within a string has its quotes escaped.
    let end = if quoted && text[..end].ends_with('\\') {
        end - 1
    } else {
        end
    };
    let name = name_before(text, end);
    (!name.is_empty()).then_some(name)
}

/// The value from `start` on: up to its closing quote; else a word, or for a header what is left of the line and of the
/// quotes that it stands in.
fn value(text: &str, start: usize, whole_line: bool) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let escaped = bytes.get(start) == Some(&b'\\') && matches!(bytes.get(start + 1), Some(b'"' | b'\''));
    let start = start + usize::from(escaped);
    let first = *bytes.get(start)?;
    let (from, end) = if matches!(first, b'"' | b'\'') {
        (start + 1, closing(bytes, start + 1, first))
    } else {
        let ends = |c: char| {
            matches!(c, '"' | '\'' | '\n' | '\r')
                || !whole_line
                    && (c.is_whitespace() || matches!(c, '&' | ';' | '|' | '<' | '>' | ')' | '`' | ','))
        };
        let length = text[start..].find(ends);
        (start, length.map_or(text.len(), |length| start + length))
    };
    let end = if escaped && text[..end].ends_with('\\') {
        end - 1
    } else {
        end
    };
    let found = text.get(from..end)?;
    (!found.is_empty() && found != super::REDACTED && !is_reference(found)).then_some(from..end)
}

/// The quote that ends a value; one after a backslash does not, unless the value itself is in escaped quotes.
fn closing(bytes: &[u8], from: usize, quote: u8) -> usize {
    let in_escaped = from >= 2 && bytes[from - 2] == b'\\';
    (from..bytes.len())
        .find(|at| bytes[*at] == quote && (in_escaped || *at == from || bytes[at - 1] != b'\\'))
        .unwrap_or(bytes.len())
}
