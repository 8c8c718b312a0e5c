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
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'~'
            | b'!'
            | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'*'
            | b'+'
            | b','
            | b'='
            | b':'
            | b'@'
            | b'|'
            | b'['
            | b']' => {}
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
    /// [`Deny::PathMalformed`] if [`check`] refuses it, or it has a `*`: there are no wildcards, and who wrote one would
    /// wait for requests that no pattern matches.
    pub fn parse(text: &str) -> Result<Self, Deny> {
        check(text)?;
        if text.contains('*') {
            return Err(Deny::PathMalformed);
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_paths_pass() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/d-e_f~g",
            "/repos/org/name.git/info/refs",
            "/v1/chat/completions",
            "/simple/requests/",
            "/@scope/name",
            "/a...b/..c/d..",
            "/a/...",
            "/p(1)/it's/a+b=c,d!$&*:@",
            "/m%C3%BCnchen/%20/%3A",
            "/100%25",
            "/50%25-off",
            "/pages/[id].js",
            "/.well-known/x",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        assert_eq!(check(&format!("/{}", "a".repeat(PATH_MAX - 1))), Ok(()));
    }

    #[test]
    fn what_a_server_could_take_for_another_path_is_refused() {
        for path in [
            "",
            "a",
            "*",
            "http://example.org/",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/./a",
            "/..",
            "/../a",
            "/a/..",
            "/a/../b",
            "/a/.",
            "/a/./b",
            "/a/%2e%2e/b",
            "/a/.%2E/b",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a%00",
            "/a%0d%0a",
            "/a%7f",
            "/a%3bb",
            "/a%252e%252e/b",
            "/a%252fb",
            "/a\\b",
            "/a;b",
            "/a;jsessionid=1",
            "/a b",
            "/a\tb",
            "/a\r\nb",
            "/a\0",
            "/ä",
            "/a?b",
            "/a#b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/a\"b",
            "/a<b>",
            "/a`b",
            "/{a}",
            "/a^b",
        ] {
            assert_eq!(check(path), Err(Deny::PathMalformed), "{path:?}");
        }
        assert_eq!(
            check(&format!("/{}", "a".repeat(PATH_MAX))),
            Err(Deny::PathMalformed)
        );
    }

    #[test]
    fn a_pattern_ends_at_a_slash_or_is_the_whole_path() {
        for (pattern, path, matches) in [
            ("/a/", "/a/", true),
            ("/a/", "/a/b", true),
            ("/a/", "/a/b/c", true),
            ("/a/", "/a", false),
            ("/a/", "/ab", false),
            ("/a/", "/A/b", false),
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/a", "/ab", false),
            ("/a", "/a/b", false),
            ("/", "/", true),
            ("/", "/anything/else", true),
        ] {
            assert_eq!(
                PathPattern::parse(pattern).unwrap().matches(path),
                matches,
                "{pattern} {path}"
            );
        }
        for wrong in ["", "a/", "/a/*", "/a?b=c", "/a/../b", "/a;b/", "//"] {
            assert!(PathPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_split_at_its_first_question_mark() {
        assert_eq!(split("/a?b?c"), ("/a", Some("b?c")));
        assert_eq!(split("/a?"), ("/a", Some("")));
        assert_eq!(split("/a"), ("/a", None));
    }

    /// What servers make of a path: decoded once more than they should, backslashes turned, parameters cut, segments
    /// resolved.
    fn as_a_careless_server_reads(path: &str) -> String {
        let mut bytes = path.as_bytes().to_vec();
        for _ in 0..2 {
            let mut decoded = Vec::new();
            let mut at = 0;
            while at < bytes.len() {
                match (bytes[at], hex_pair(&bytes[at + 1..])) {
                    (b'%', Some(byte)) => {
                        decoded.push(byte);
                        at += 3;
                    }
                    (byte, _) => {
                        decoded.push(byte);
                        at += 1;
                    }
                }
            }
            bytes = decoded;
        }
        let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
        let mut segments: Vec<&str> = Vec::new();
        for segment in text.split('/').map(|segment| segment.split(';').next().unwrap()) {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                segment => segments.push(segment),
            }
        }
        format!("/{}", segments.join("/"))
    }

    proptest! {
        #[test]
        fn any_text_passes_or_is_refused(text in ".{0,200}") {
            let _ = check(&text);
            let _ = PathPattern::parse(&text);
        }

        #[test]
        fn what_passes_below_a_folder_stays_there_for_a_careless_server(tail in "([a-z.]|%2[0-9a-fA-F]|%5[cC]|%252[eEfF]|/|\\\\|;|%00){0,12}") {
            let path = format!("/allowed/{tail}");
            if check(&path).is_ok() {
                let read = as_a_careless_server_reads(&path);
                prop_assert!(read == "/allowed" || read.starts_with("/allowed/"), "{} reads {}", path, read);
            }
        }
    }
}
