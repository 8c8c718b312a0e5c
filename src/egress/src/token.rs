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
    let bearer = if headers.contains_key(AUTHORIZATION) {
        Some(scheme(single(headers.get_all(AUTHORIZATION).iter())?, "bearer")?)
    } else {
        None
    };
    let key = if headers.contains_key("x-api-key") {
        Some(single(headers.get_all("x-api-key").iter())?)
    } else {
        None
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn proxy_credentials_of_the_run_are_read() {
        let usual = basic(&format!("run:{TOKEN}"));
        assert_eq!(
            of_proxy(&map(&[("proxy-authorization", &usual)])),
            Some(TOKEN.to_owned())
        );
        assert_eq!(
            of_proxy(&map(&[(
                "proxy-authorization",
                &usual.replace("Basic", "basic ")
            )])),
            Some(TOKEN.to_owned())
        );
        for wrong in [
            basic(&format!("other:{TOKEN}")),
            basic(TOKEN),
            basic("run:"),
            basic("run:a b"),
            basic(&format!("run:{}", "a".repeat(1000))),
            format!("Bearer {TOKEN}"),
            "Basic !!!".to_owned(),
            "Basic".to_owned(),
            String::new(),
        ] {
            assert_eq!(
                of_proxy(&map(&[("proxy-authorization", &wrong)])),
                None,
                "{wrong}"
            );
        }
        assert_eq!(
            of_proxy(&map(&[
                ("proxy-authorization", &usual),
                ("proxy-authorization", &usual)
            ])),
            None
        );
        assert_eq!(of_proxy(&map(&[("authorization", &usual)])), None);
    }

    #[test]
    fn a_token_in_the_place_of_a_key_is_read() {
        let bearer = format!("Bearer {TOKEN}");
        for fields in [
            &[("authorization", bearer.as_str())][..],
            &[("x-api-key", TOKEN)],
            &[("authorization", &bearer), ("x-api-key", TOKEN)],
        ] {
            assert_eq!(of_key(&map(fields)), Some(TOKEN.to_owned()), "{fields:?}");
        }
        for fields in [
            &[][..],
            &[("authorization", TOKEN)],
            &[("authorization", "Basic x")],
            &[("authorization", &bearer), ("x-api-key", "other")],
            &[("authorization", "Basic x"), ("x-api-key", TOKEN)],
            &[("x-api-key", TOKEN), ("x-api-key", TOKEN)],
            &[("x-api-key", "")],
        ] {
            assert_eq!(of_key(&map(fields)), None, "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn any_field_is_read_or_not(text in "[ -~]{0,120}", decoded in "[ -~]{0,80}") {
            for value in [text, basic(&decoded)] {
                let map = map(&[("proxy-authorization", &value), ("authorization", &value), ("x-api-key", &value)]);
                let _ = of_key(&map);
                if let Some(token) = of_proxy(&map) {
                    prop_assert_eq!(basic(&format!("run:{token}")), value.trim());
                }
            }
        }
    }
}
