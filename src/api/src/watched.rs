//! Objects as a watch shows them, whoever wrote them.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::Value;

/// An object without its managed fields, which are not even read.
///
/// Their times are whatever a writer of the object says, and the API server stores them beyond the year 9999 too
/// (`9999-12-31T23:59:59-12:00`), where no parser of RFC 3339 follows. Who may write a single network policy would end the
/// watch of all of them with it.
#[derive(Clone, Debug)]
pub struct Watched<K>(pub K);

impl<K> Watched<K> {
    /// The event with the object itself.
    pub fn event(event: Event<Self>) -> Event<K> {
        match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::InitApply(Self(object)) => Event::InitApply(object),
            Event::Apply(Self(object)) => Event::Apply(object),
            Event::Delete(Self(object)) => Event::Delete(object),
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Watched<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        K::deserialize(object).map(Self).map_err(D::Error::custom)
    }
}

impl<K: Resource> Resource for Watched<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use serde_json::json;

    use super::*;

    #[test]
    fn managed_fields_are_not_read() {
        for time in [
            "10000-01-01T11:59:59Z",
            "-001-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ] {
            let object =
                json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time}]}});
            let Watched(read) = serde_json::from_value::<Watched<NetworkPolicy>>(object).unwrap();
            assert_eq!(read.metadata.name.as_deref(), Some("a"));
            assert_eq!(read.metadata.managed_fields, None);
        }
    }

    #[test]
    fn what_is_no_such_object_is_an_error() {
        for text in ["[]", "1", r#"{"metadata": 1}"#, r#"{"metadata": {"name": 1}}"#] {
            assert!(
                serde_json::from_str::<Watched<NetworkPolicy>>(text).is_err(),
                "{text}"
            );
        }
    }
}
