//! The form of the tokens by which recorders show which pod they are: JWTs (RFC 7519) that the API server signs. Whether
//! a signature is right is for the caller to say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest token, in bytes. Those of the API server are about 1.2 KiB long.
pub const TOKEN_MAX: usize = 8 << 10;
/// Clocks differ by so many seconds at most.
const LEEWAY_SECONDS: i64 = 30;

/// A token in its parts, of which nothing is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified<'a> {
    /// The signature's algorithm, as the token says.
    pub algorithm: String,
    /// The key's id, as the token says.
    pub key: String,
    /// What is signed.
    pub signed: &'a str,
    /// The signature.
    pub signature: Vec<u8>,
    claims: &'a str,
}

/// What a token claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who signed it.
    pub issuer: String,
    /// For whom it is.
    pub audiences: Vec<String>,
    /// Seconds since 1970 at which it ends.
    pub expires: i64,
    /// Seconds since 1970 at which it begins, if said.
    pub begins: Option<i64>,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub pod_uid: String,
}

/// It is no JWT of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

#[derive(Deserialize)]
struct Body {
    iss: String,
    aud: Audience,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    pod: Pod,
}

#[derive(Deserialize)]
struct Pod {
    uid: String,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(token: &'a str) -> Result<Self, Malformed> {
        if token.len() > TOKEN_MAX {
            return Err(Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Malformed)?;
        let header: Header = part(header)?;
        Ok(Self {
            algorithm: header.alg,
            key: header.kid,
            signed,
            signature: decode(signature)?,
            claims,
        })
    }

    /// What it claims: to be asked once the signature is known to be right.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn claims(&self) -> Result<Claims, Malformed> {
        let body: Body = part(self.claims)?;
        Ok(Claims {
            issuer: body.iss,
            audiences: match body.aud {
                Audience::One(one) => vec![one],
                Audience::Several(several) => several,
            },
            expires: body.exp,
            begins: body.nbf,
            namespace: body.kubernetes.namespace,
            pod_uid: body.kubernetes.pod.uid,
        })
    }
}

impl Claims {
    /// Whether they are this issuer's, for this audience, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// What of them is wrong.
    pub fn check(&self, issuer: &str, audience: &str, now: i64) -> Result<(), &'static str> {
        if self.issuer != issuer {
            return Err("issuer");
        }
        if !self.audiences.iter().any(|one| one == audience) {
            return Err("audience");
        }
        if self.expires.saturating_add(LEEWAY_SECONDS) < now {
            return Err("expiry");
        }
        if self
            .begins
            .is_some_and(|from| from.saturating_sub(LEEWAY_SECONDS) > now)
        {
            return Err("begin");
        }
        Ok(())
    }
}

/// Base64 of URLs without padding (RFC 4648, section 5): one spelling for each value.
///
/// # Errors
/// [`Malformed`].
pub fn decode(text: &str) -> Result<Vec<u8>, Malformed> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, Malformed> {
    serde_json::from_slice(&decode(text)?).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(claims), part("signature"))
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(
            r#"{"alg":"ES256","kid":"k"}"#,
            r#"{"iss":"i","aud":"a","exp":2000,"nbf":1000,"kubernetes.io":{"namespace":"n","pod":{"uid":"u"}}}"#,
        );
        let token = Unverified::parse(&text).unwrap();
        assert_eq!((token.algorithm.as_str(), token.key.as_str()), ("ES256", "k"));
        assert_eq!(token.signature, b"signature");
        let claims = token.claims().unwrap();
        assert_eq!((claims.namespace.as_str(), claims.pod_uid.as_str()), ("n", "u"));
        assert_eq!(claims.check("i", "a", 1_500), Ok(()));
        assert_eq!(claims.check("j", "a", 1_500), Err("issuer"));
        assert_eq!(claims.check("i", "b", 1_500), Err("audience"));
        assert_eq!(claims.check("i", "a", 2_031), Err("expiry"));
        assert_eq!(claims.check("i", "a", 969), Err("begin"));
    }

    #[test]
    fn what_is_no_token_of_a_pod_is_refused() {
        let good = r#"{"alg":"ES256"}"#;
        for text in [
            "",
            ".",
            "..",
            "a.b.c",
            &"a".repeat(TOKEN_MAX + 1),
            &token("{}", "{}"),
        ] {
            assert!(Unverified::parse(text).is_err(), "{text:.40}");
        }
        for claims in [
            "{}",
            r#"{"iss":"i","aud":[],"exp":1,"kubernetes.io":{"namespace":"n"}}"#,
            r#"{"iss":"i","aud":"a","exp":1.5,"kubernetes.io":{"namespace":"n","pod":{"uid":"u"}}}"#,
        ] {
            assert!(
                Unverified::parse(&token(good, claims)).unwrap().claims().is_err(),
                "{claims}"
            );
        }
    }
}
