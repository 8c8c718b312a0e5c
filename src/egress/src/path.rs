//! Paths of requests, and the patterns of them that rules hold. The string that is matched is the string that is sent,
//! so everything is refused that a server could take for another path.

use crate::deny::Deny;

/// Longest path, in bytes.
pub const PATH_MAX: usize = 8 << 10;

/// Splits a request target into path and query; the query is without its `?`.
#[must_use]
pub fn split(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// Checks a path, without its query: absolute, at most [`PATH_MAX`] bytes of visible ASCII, no `.` or `..` segments, no
/// empty segments, no `\` or `;`, no encoded dot, slash, backslash, percent sign before a digit, or control character.
///
/// # Errors
/// [`Deny::PathMalformed`].
pub fn check(path: &str) -> Result<(), Deny> {
    is_unambiguous(path.as_bytes())
        .then_some(())
        .ok_or(Deny::PathMalformed)
}

fn is_unambiguous(path: &[u8]) -> bool {
    if path.first() != Some(&b'/') || path.len() > PATH_MAX {
        return false;
    }
    let mut segment_start = 1;
    let mut at = 1;
    while let Some(&byte) = path.get(at) {
        match byte {
            b'/' => {
                // An empty segment anywhere but at the very end is `//`.
                if at == segment_start || is_dots(&path[segment_start..at]) {
                    return false;
                }
                segment_start = at + 1;
            }
            b'%' => {
                let Some(decoded) = hex_pair(&path[at + 1..]) else {
                    return false;
                };
                if decoded < 0x20 || matches!(decoded, b'.' | b'/' | b'\\' | b';' | 0x7f) {
                    return false;
                }
                // `%252e` is `%2e` to a server that decodes twice.
                if decoded == b'%' && path.get(at + 3).is_some_and(u8::is_ascii_hexdigit) {
                    return false;
                }
                at += 2;
            }
            // The characters of RFC 3986 paths without `;`, and those that browsers send as they are.
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {}
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            | b'=' | b':' | b'@' | b'|' | b'[' | b']' => {}
            _ => return false,
        }
        at += 1;
    }
    !is_dots(&path[segment_start..])
}

fn is_dots(segment: &[u8]) -> bool {
    segment == b"." || segment == b".."
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Which paths a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathPattern {
    /// This path.
    Exact(Box<str>),
    /// This path, which ends with `/`, and everything below it.
    Below(Box<str>),
}

impl PathPattern {
    /// Reads a pattern: a path that ends with `/` stands for everything below it.
    ///
    /// # Errors
    /// [`Deny::PathMalformed`] if [`check`] refuses it.
    pub fn parse(text: &str) -> Result<Self, Deny> {
        check(text)?;
        Ok(if text.ends_with('/') {
            Self::Below(text.into())
        } else {
            Self::Exact(text.into())
        })
    }

    /// Whether the pattern speaks of `path`, which [`check`] has passed.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Below(prefix) => path.starts_with(&**prefix),
        }
    }
}
