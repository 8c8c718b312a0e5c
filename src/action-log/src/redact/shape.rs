//! Secrets that are known by their own shape.

use std::ops::Range;

/// Beginnings of keys, and how many characters follow at least. Where a text ends early it may have been cut off in the
/// middle of a key: there a beginning and a few characters are enough.
const KEYS: &[(&str, usize)] = &[
    // AWS access key ids. The secret key has no shape of its own.
    ("AKIA", 16),
    ("ASIA", 16),
    // GitHub.
    ("ghp_", 30),
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 22),
    // GitLab.
    ("glpat-", 20),
    ("gldt-", 20),
    ("glrt-", 20),
    ("glcbt-", 20),
    ("glptt-", 20),
    // Slack.
    ("xoxa-", 10),
    ("xoxb-", 10),
    ("xoxe-", 10),
    ("xoxp-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("xapp-", 10),
    // OpenAI, Anthropic, OpenRouter; and those of Groq, xAI, Hugging Face.
    ("sk-", 20),
    ("gsk_", 20),
    ("xai-", 30),
    ("hf_", 30),
    // Google API keys, OAuth tokens and client secrets.
    ("AIza", 35),
    ("ya29.", 20),
    ("GOCSPX-", 20),
    // Stripe.
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("sk_test_", 16),
    // npm, PyPI, Docker Hub, DigitalOcean.
    ("npm_", 36),
    ("pypi-", 30),
    ("dckr_pat_", 20),
    ("dop_v1_", 40),
];
/// So many characters after a beginning, where the text ends.
const CUT_KEY: usize = 6;
/// So much of a key, or of a web token's header, is looked at to tell whether it is one, in bytes.
const NEAR: usize = 1 << 10;

/// Where secrets stand, in no order.
pub fn spans(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    keys(text, &mut spans);
    users_of_urls(text, &mut spans);
    private_keys(text, &mut spans);
    bearers(text, &mut spans);
    spans
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The end of the token characters from `at` on.
fn token_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..]
        .iter()
        .position(|byte| !is_token(*byte))
        .map_or(bytes.len(), |length| at + length)
}

/// Keys by their beginning, and JSON web tokens.
fn keys(text: &str, spans: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        // A key begins where no letter or digit stands before it.
        let begins = bytes[at].is_ascii_alphabetic() && (at == 0 || !bytes[at - 1].is_ascii_alphanumeric());
        match begins.then(|| key_at(bytes, at).or_else(|| web_token_at(bytes, at))) {
            Some(Some(end)) => {
                spans.push(at..end);
                at = end;
            }
            _ => at += 1,
        }
    }
}

fn key_at(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let (beginning, length) = KEYS
        .iter()
        .find(|(beginning, _)| rest.starts_with(beginning.as_bytes()))?;
    let body = &rest[beginning.len()..];
    // What decides is near: a text of beginnings alone is not read again and again.
    let near = body.len().min(NEAR);
    let near = body[..near].iter().take_while(|byte| is_token(**byte)).count();
    let enough = if near == body.len() && *beginning != "sk-" {
        CUT_KEY.min(*length)
    } else {
        *length
    };
    // A long name of words is no key.
    let has_digit = body[..near].iter().any(u8::is_ascii_digit);
    (near >= enough && has_digit).then(|| token_end(bytes, at + beginning.len()))
}

/// Header and payload of a JSON web token are objects: in base64 both begin with `eyJ`.
fn web_token_at(bytes: &[u8], at: usize) -> Option<usize> {
    let begins = |at: usize| bytes.get(at..).is_some_and(|rest| rest.starts_with(b"eyJ"));
    if !begins(at) {
        return None;
    }
    let header = at
        + bytes[at..]
            .iter()
            .take(NEAR)
            .take_while(|byte| is_token(**byte))
            .count();
    if bytes.get(header) != Some(&b'.') || !begins(header + 1) {
        return None;
    }
    let payload = token_end(bytes, header + 1);
    if bytes.get(payload) == Some(&b'.') {
        Some(token_end(bytes, payload + 1))
    } else {
        Some(payload)
    }
}

/// What stands before the `@` of a URL; a user alone, such as that of `ssh://git@host`, is no secret.
fn users_of_urls(text: &str, spans: &mut Vec<Range<usize>>) {
    for (at, _) in text.match_indices("://") {
        let from = at + 3;
        let rest = &text[from..];
        let length = rest
            .find(|c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>') || c.is_whitespace())
            .unwrap_or(rest.len());
        let Some(user) = rest[..length].rfind('@').filter(|length| *length > 0) else {
            continue;
        };
        let is_name = !rest[..user].contains(':') && text[..at].ends_with("ssh");
        if !is_name && !super::assignment::is_reference(&rest[..user]) {
            spans.push(from..from + user);
        }
    }
}

/// PEM private keys, up to their end or that of the text.
fn private_keys(text: &str, spans: &mut Vec<Range<usize>>) {
    const END: &str = "PRIVATE KEY-----";
    let mut from = 0;
    while let Some(begin) = text[from..].find("-----BEGIN ").map(|at| from + at) {
        let label = begin + "-----BEGIN ".len();
        let Some(body) = text[label..]
            .find("-----")
            .filter(|length| text[label..label + length].ends_with("PRIVATE KEY"))
            .map(|length| label + length + 5)
        else {
            from = label;
            continue;
        };
        let end = text[body..]
            .find(END)
            .map_or(text.len(), |at| body + at + END.len());
        spans.push(begin..end);
        from = end;
    }
}

/// `Bearer TOKEN`. The word is an ordinary one too: a token is long or has a digit.
fn bearers(text: &str, spans: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(at) = text[from..].find(['b', 'B']).map(|at| from + at) {
        from = at + 1;
        let Some(word) = bytes.get(at..at + 7) else {
            return;
        };
        if !word.eq_ignore_ascii_case(b"bearer ") || at > 0 && bytes[at - 1].is_ascii_alphanumeric() {
            continue;
        }
        let start = at + 7;
        let end = text[start..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';'))
            .map_or(text.len(), |length| start + length);
        let token = &text[start..end];
        let is_token =
            token.len() >= 20 || token.len() >= 6 && token.bytes().any(|byte| byte.is_ascii_digit());
        if is_token && !super::assignment::is_reference(token) {
            spans.push(start..end);
            from = end;
        }
    }
}
