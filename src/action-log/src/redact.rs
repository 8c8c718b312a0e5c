//! Secrets in arguments and paths, found by pattern and replaced by `[redacted]`.
//!
//! Patterns find what looks like a secret: a header, flag or name that says so, the user part of a URL, and the shapes
//! of well-known keys. What nothing marks as a secret stays. No rule looks at randomness, so that hashes and encoded
//! data stay readable.

mod assignment;
mod shape;

use std::borrow::Cow;
use std::ops::Range;

/// What stands in a secret's place.
pub const REDACTED: &str = "[redacted]";

/// A text without the secrets that it shows.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut spans = shape::spans(text);
    spans.extend(assignment::spans(text));
    replaced(text, spans)
}

/// Arguments without the secrets that they show, alone or by the argument before.
#[must_use]
pub fn redact_argv(argv: &[String]) -> Vec<String> {
    let mut redacted: Vec<String> = Vec::with_capacity(argv.len());
    for (at, argument) in argv.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", |at| argv[at].as_str());
        redacted.push(in_context(before, argument).unwrap_or_else(|| redact(argument).into_owned()));
    }
    redacted
}

/// What an argument becomes because of the one before it, or as a whole.
fn in_context(before: &str, argument: &str) -> Option<String> {
    if before == "-u" || before == "--user" || before == "-U" || before == "--proxy-user" {
        return user_and_password(argument);
    }
    let flag = before.strip_prefix('-');
    if let Some(name) = flag.map(|flag| flag.trim_start_matches('-'))
        && assignment::is_secret_name(name)
        && !argument.starts_with("--")
        && !assignment::is_reference(argument)
        && !argument.is_empty()
    {
        return Some(REDACTED.to_owned());
    }
    // A value of several words is one argument; but a script begins with an assignment as well.
    let is_script = flag.is_some_and(|flag| flag.ends_with(['c', 'e', 'S']));
    let (name, value) = argument.split_once('=')?;
    let whole = !is_script
        && assignment::is_secret_name(name.trim_start_matches('-'))
        && !value.is_empty()
        && !assignment::is_reference(value);
    whole.then(|| format!("{name}={REDACTED}"))
}

/// `user:password`; user and group are numbers or names of an image (`1000:1000`, `registry/name:tag`).
fn user_and_password(argument: &str) -> Option<String> {
    let (user, password) = argument.split_once(':')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if password.is_empty() || user.contains('/') || (is_number(user) && is_number(password)) {
        return None;
    }
    (!assignment::is_reference(password)).then(|| format!("{user}:{REDACTED}"))
}

fn replaced(text: &str, mut spans: Vec<Range<usize>>) -> Cow<'_, str> {
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    spans.sort_by_key(|span| span.start);
    let (mut redacted, mut end) = (String::with_capacity(text.len()), 0);
    for span in spans {
        // A span that begins in another one goes on with it.
        if span.start >= end {
            redacted.push_str(&text[end..span.start]);
            redacted.push_str(REDACTED);
        }
        end = end.max(span.end);
    }
    redacted.push_str(&text[end..]);
    Cow::Owned(redacted)
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
