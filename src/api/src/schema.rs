//! Building blocks of both schemas: quantities, and the shorthand for "bounded list of bounded strings".

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A Kubernetes quantity as the user wrote it (`500m`, `1Gi`, `2`). It is kept verbatim, so that what Git says
/// and what the API server stores never differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(number) => Self(number.to_string()),
            IntOrString::String(text) => Self(text),
        })
    }
}

/// A time that an egress gateway wrote; none where it can't be read. The API server takes texts that are no time
/// (`+99:99` as its zone), and an object that can't be read keeps every other of its list from being read.
pub fn time_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let written = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(written).ok())
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 24,
            "x-kubernetes-validations": [{
                "rule": "isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))",
                "message": "must be a Kubernetes quantity above 0, such as 500m, 2 or 1Gi"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::PolicyEgressStatus;
    use crate::sandbox::EgressStatus;
    use serde_json::json;

    #[test]
    fn a_time_that_cannot_be_read_hides_nothing_else() {
        for (written, is_read) in [
            (json!("2026-01-01T00:00:00Z"), true),
            (json!("2026-01-01T00:00:00+99:99"), false),
            (json!("9999-12-31T23:59:59-23:59"), false),
            (json!(null), false),
        ] {
            let denial = json!({"destination": "x", "reason": "y", "count": 3, "lastTime": written});
            let egress: EgressStatus = serde_json::from_value(json!({"denials": [denial]})).unwrap();
            assert_eq!(egress.denials[0].last_time.is_some(), is_read, "{written}");
            assert_eq!(egress.denials[0].count, 3);
            let window = json!({"windowStart": written, "tokens": 7});
            let quota: PolicyEgressStatus = serde_json::from_value(window).unwrap();
            assert_eq!(quota.window_start.is_some(), is_read, "{written}");
            assert_eq!(quota.tokens, 7);
        }
        let without: PolicyEgressStatus = serde_json::from_value(json!({"tokens": 7})).unwrap();
        assert_eq!(without.window_start, None);
    }
}
