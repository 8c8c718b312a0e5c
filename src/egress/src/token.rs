//! Where a request carries the run's token: as proxy credentials, or in the place of an API key.

use agentsandbox_api::gateway::PROXY_USER;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};

use crate::identity::TOKEN_MAX;

/// The token in `Proxy-Authorization: Basic`, of user [`PROXY_USER`]; `None` if there is none, or more than one.
#[must_use]
pub fn of_proxy(headers: &HeaderMap) -> Option<String> {
    let encoded = single(headers.get_all(PROXY_AUTHORIZATION).iter())?;
    let encoded = scheme(encoded, "basic")?;
    if encoded.len() > TOKEN_MAX * 2 {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, token) = text.split_once(':')?;
    (user == PROXY_USER && is_token(token)).then(|| token.to_owned())
}

/// The token in the place of an API key: `Authorization: Bearer` or `x-api-key`. If both are there they must agree.
#[must_use]
pub fn of_key(headers: &HeaderMap) -> Option<String> {
    let bearer = match headers.contains_key(AUTHORIZATION) {
        true => Some(scheme(single(headers.get_all(AUTHORIZATION).iter())?, "bearer")?),
        false => None,
    };
    let key = match headers.contains_key("x-api-key") {
        true => Some(single(headers.get_all("x-api-key").iter())?),
        false => None,
    };
    let token = match (bearer, key) {
        (Some(bearer), Some(key)) if bearer != key => return None,
        (Some(token), _) | (None, Some(token)) => token,
        (None, None) => return None,
    };
    is_token(token).then(|| token.to_owned())
}

fn single<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Option<&'a str> {
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// What follows the name of an authentication scheme.
fn scheme<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    let (scheme, rest) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case(name).then(|| rest.trim())
}

fn is_token(text: &str) -> bool {
    (1..=TOKEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
