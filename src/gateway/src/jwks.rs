//! The tokens by which recorders show which pod they are: JWTs of the cluster's, verified against the API server's
//! published keys, without a request per token.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use agentsandbox_egress::pod_token::{Malformed, Unverified, decode};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// Most keys of the API server: it publishes those of one or two generations.
const MAX_KEYS: usize = 16;
/// Why a token shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no JWT of ours.
    #[error("the token is malformed")]
    Malformed,
    /// No published key has its id: the keys may have been rotated.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature is not that key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// It is for somebody else, from somebody else, or its time is over.
    #[error("the token's {0} is wrong")]
    Claim(&'static str),
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodToken {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub pod_uid: String,
}

/// The API server's keys.
#[derive(Default)]
pub struct Keys(RwLock<Option<KeySet>>);

struct KeySet {
    issuer: String,
    keys: HashMap<String, Key>,
}

enum Key {
    /// Modulus and exponent.
    Rs256(Vec<u8>, Vec<u8>),
    /// The uncompressed point.
    Es256(Vec<u8>),
}

/// A JSON Web Key Set (RFC 7517), as `/openid/v1/jwks` gives it.
#[derive(Deserialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

impl Keys {
    /// Takes the keys that the API server publishes, and the name by which it signs. Keys of other kinds are skipped.
    pub fn set(&self, issuer: String, jwks: Jwks) {
        let keys = jwks
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|key| Some((key.kid.clone(), key.usable()?)))
            .collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(KeySet { issuer, keys });
    }

    /// Whether there are keys.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().is_some_and(|set| !set.keys.is_empty())
    }

    /// Verifies a token for `audience` at `now` (seconds since 1970).
    pub fn verify(&self, token: &str, audience: &str, now: i64) -> Result<PodToken, TokenError> {
        let token = Unverified::parse(token)?;
        let set = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let set = set.as_ref().ok_or(TokenError::UnknownKey)?;
        let key = set.keys.get(&token.key).ok_or(TokenError::UnknownKey)?;
        key.verify(&token.algorithm, token.signed.as_bytes(), &token.signature)?;

        let claims = token.claims()?;
        claims
            .check(&set.issuer, audience, now)
            .map_err(TokenError::Claim)?;
        Ok(PodToken {
            namespace: claims.namespace,
            pod_uid: claims.pod_uid,
        })
    }
}

impl From<Malformed> for TokenError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Jwk {
    fn usable(&self) -> Option<Key> {
        match (self.kty.as_str(), self.crv.as_str()) {
            ("RSA", _) => Some(Key::Rs256(decode(&self.n).ok()?, decode(&self.e).ok()?)),
            ("EC", "P-256") => {
                let (x, y) = (decode(&self.x).ok()?, decode(&self.y).ok()?);
                (x.len() == 32 && y.len() == 32).then(|| Key::Es256([&[4], &x[..], &y[..]].concat()))
            }
            _ => None,
        }
    }
}

impl Key {
    /// The algorithm is the key's; a header that names another one is refused.
    fn verify(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        let verified = match (self, algorithm) {
            (Self::Rs256(n, e), "RS256") => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Self::Es256(point), "ES256") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            _ => return Err(TokenError::Malformed),
        };
        verified.map_err(|_| TokenError::Signature)
    }
}

/// Signs tokens as the API server does, for tests of this crate.
#[doc(hidden)]
pub mod testing {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::Jwks;

    /// The issuer of [`Signer`]'s tokens.
    pub const ISSUER: &str = "https://issuer.example";

    /// A key, and what can be done with it.
    pub struct Signer {
        pair: EcdsaKeyPair,
        random: SystemRandom,
    }

    impl Signer {
        /// A new key.
        ///
        /// # Panics
        /// Where the system gives no random numbers.
        #[must_use]
        #[allow(clippy::unwrap_used)] // for tests
        pub fn generate() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
            Self { pair, random }
        }

        /// The key as a key set, with the id `test`.
        ///
        /// # Panics
        /// Never.
        #[must_use]
        #[allow(clippy::unwrap_used)] // for tests
        pub fn jwks(&self) -> Jwks {
            let point = self.pair.public_key().as_ref();
            let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
            serde_json::from_value(serde_json::json!({"keys": [{
                "kty": "EC", "kid": "test", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..]),
            }]}))
            .unwrap()
        }

        /// A token with this header and these claims.
        ///
        /// # Panics
        /// Where the system gives no random numbers.
        #[must_use]
        #[allow(clippy::unwrap_used)] // for tests
        pub fn sign(&self, header: &serde_json::Value, claims: &serde_json::Value) -> String {
            let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = self.pair.sign(&self.random, signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }

        /// The token that a recorder in this pod has.
        #[must_use]
        pub fn pod_token(&self, namespace: &str, pod_uid: &str, expires: i64) -> String {
            self.sign(
                &serde_json::json!({"alg": "ES256", "kid": "test"}),
                &serde_json::json!({
                    "iss": ISSUER, "aud": [agentsandbox_api::gateway::AUDIENCE], "exp": expires, "nbf": 0,
                    "kubernetes.io": {"namespace": namespace, "pod": {"name": "p", "uid": pod_uid}},
                }),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::testing::{ISSUER, Signer};
    use super::*;

    fn keys(signer: &Signer) -> Keys {
        let keys = Keys::default();
        keys.set(ISSUER.to_owned(), signer.jwks());
        keys
    }

    fn claims() -> serde_json::Value {
        json!({"iss": ISSUER, "aud": ["gateway"], "exp": 2_000, "nbf": 1_000,
               "kubernetes.io": {"namespace": "agents", "pod": {"name": "p", "uid": "u-1"}}})
    }

    #[test]
    fn a_token_of_the_cluster_names_its_pod() {
        let signer = Signer::generate();
        let token = signer.sign(&json!({"alg": "ES256", "kid": "test"}), &claims());
        let expected = PodToken {
            namespace: "agents".into(),
            pod_uid: "u-1".into(),
        };
        assert_eq!(keys(&signer).verify(&token, "gateway", 1_500), Ok(expected));
    }

    #[test]
    fn wrong_claims_are_refused() {
        let signer = Signer::generate();
        let keys = keys(&signer);
        let change = |pointer: &str, value: serde_json::Value| {
            let mut claims = claims();
            *claims.pointer_mut(pointer).unwrap() = value;
            signer.sign(&json!({"alg": "ES256", "kid": "test"}), &claims)
        };
        for (token, now, error) in [
            (
                change("/iss", json!("https://evil.example")),
                1_500,
                TokenError::Claim("issuer"),
            ),
            (
                change("/aud", json!(["api"])),
                1_500,
                TokenError::Claim("audience"),
            ),
            (change("/aud", json!("api")), 1_500, TokenError::Claim("audience")),
            (change("/aud", json!([])), 1_500, TokenError::Claim("audience")),
            (change("/exp", json!(1_000)), 1_500, TokenError::Claim("expiry")),
            (change("/nbf", json!(1_600)), 1_500, TokenError::Claim("begin")),
            (
                change("/kubernetes.io", json!({"namespace": "agents"})),
                1_500,
                TokenError::Malformed,
            ),
        ] {
            assert_eq!(keys.verify(&token, "gateway", now), Err(error));
        }
    }

    #[test]
    fn forged_signatures_and_algorithms_are_refused() {
        let (signer, other) = (Signer::generate(), Signer::generate());
        let keys = keys(&signer);
        let forged = other.sign(&json!({"alg": "ES256", "kid": "test"}), &claims());
        assert_eq!(keys.verify(&forged, "gateway", 1_500), Err(TokenError::Signature));
        for algorithm in ["none", "HS256", "RS256", "ES384", ""] {
            let token = signer.sign(&json!({"alg": algorithm, "kid": "test"}), &claims());
            assert_eq!(
                keys.verify(&token, "gateway", 1_500),
                Err(TokenError::Malformed),
                "{algorithm}"
            );
        }
        let unknown = signer.sign(&json!({"alg": "ES256", "kid": "older"}), &claims());
        assert_eq!(
            keys.verify(&unknown, "gateway", 1_500),
            Err(TokenError::UnknownKey)
        );
        let good = signer.sign(&json!({"alg": "ES256", "kid": "test"}), &claims());
        let (unsigned, _) = good.rsplit_once('.').unwrap();
        for token in [
            format!("{unsigned}."),
            unsigned.to_owned(),
            String::new(),
            "a.b.c".into(),
            ".".repeat(9_000),
        ] {
            assert!(keys.verify(&token, "gateway", 1_500).is_err());
        }
    }

    #[test]
    fn without_keys_nothing_is_verified() {
        let keys = Keys::default();
        assert!(!keys.is_ready());
        let token = Signer::generate().sign(&json!({"alg": "ES256", "kid": "test"}), &claims());
        assert_eq!(keys.verify(&token, "gateway", 1_500), Err(TokenError::UnknownKey));
    }

    /// Signed once by OpenSSL, with a key that was thrown away.
    #[test]
    fn rs256_signatures_are_verified() {
        let key = json!({"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": "4dN9du2W3Am9QL-QUE-xDJEb3UwMBQxRe7DtGecMcS_rZaCd_IFUBpKmizPuRQ3zmtUoAw_yNSzXvO4h8WOeYc_bpc1MD9pjRxZfvQDnY8pTRzv43I85ItdDWYjW1Q7w-4of2y1WeKo4QH77LHJtztyrh_J7DNs0Knn-TahoQVB-Klfd31J--4_hTXcH2-nbWu-U6wVSe4OLlU4Ypp6q3_U9nK1hicVD6o57p4oTs9JNJCLpXSKzpn4JmqCU804lS8PUmsy7yy6zccqe4MV13hERgmOGaKPiITjNJXGrUHPuAyi3m3ozwpY4KxzhkEj1iYl5a3h2IhGSBzFaDm32Jw"});
        let token = "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInJzYSJ9.eyJpc3MiOiAiaHR0cHM6Ly9pc3N1ZXIuZXhhbXBsZSIsICJhdWQiOiBbImdhdGV3YXkiXSwgImV4cCI6IDIwMDAsICJuYmYiOiAxMDAwLCAia3ViZXJuZXRlcy5pbyI6IHsibmFtZXNwYWNlIjogImFnZW50cyIsICJwb2QiOiB7Im5hbWUiOiAicCIsICJ1aWQiOiAidS0xIn19fQ.SqMM9IAaoivkqvc_VhRfZve0JqPGj4WcEtX9ZTpDtYvtfRbgrOHpvTBo4N_UDlRSJDaxIB1Yu02CGh0Q5DS08sgcTfFxo_DCURXGzcq89Sjx5-z4OEIYHHmaaObYmu-xMCbQUql6ziNQyEytDTihLY1BkegQeCgJqtXRwzlvGCAgLudhpjB1CBFdtIfpSfB4NTyf9ZhWaPGqArpnqlXVZpPhVXSEwTzVSbuBYhfKU26dyQy7XkepYJ_ixDLDEHHsD3hEf9CP0O8-bYCgydUIwVZ8WsVhsi9R3oMHG1U8Qn6u-yDCUo-wMEqcXmrPHrGA3sYzuNFGqDAJFQP3ZFSVAA";
        let keys = Keys::default();
        keys.set(
            ISSUER.into(),
            serde_json::from_value(json!({ "keys": [key] })).unwrap(),
        );
        assert_eq!(keys.verify(token, "gateway", 1_500).unwrap().pod_uid, "u-1");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let forged = format!(
            "{header}.{}.{signature}",
            URL_SAFE_NO_PAD.encode(claims().to_string())
        );
        assert_eq!(keys.verify(&forged, "gateway", 1_500), Err(TokenError::Signature));
    }
}
