//! What this operator has written and may not have been told of yet: the event of a write comes after the write, and
//! deciding by a store in between would write again, or end in a conflict.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::Resource;

/// How much is remembered at most. Of objects that are gone nobody asks any more; forgetting another costs one write.
const MOST: usize = 10_000;

/// Own writes, by the UID of their object.
#[derive(Debug, Default)]
pub struct OwnWrites {
    overwritten: Mutex<HashMap<String, String>>,
    deleted: Mutex<HashSet<String>>,
    ended: Mutex<HashSet<String>>,
}

impl OwnWrites {
    /// Remembers that a version of an object was overwritten.
    pub fn overwrote(&self, old: &impl Resource, new: &impl Resource) {
        let (old, new) = (old.meta(), new.meta());
        if let (Some(uid), Some(version)) = (&old.uid, &old.resource_version)
            && old.resource_version != new.resource_version
        {
            let mut overwritten = lock(&self.overwritten);
            if overwritten.len() >= MOST {
                overwritten.clear();
            }
            overwritten.insert(uid.clone(), version.clone());
        }
    }

    /// Whether a version from a store is one that was overwritten since. The write's own event is on its way.
    pub fn is_overwritten(&self, object: &impl Resource) -> bool {
        let meta = object.meta();
        let (Some(uid), Some(version)) = (&meta.uid, &meta.resource_version) else {
            return false;
        };
        let mut overwritten = lock(&self.overwritten);
        let is_old = overwritten.get(uid) == Some(version);
        if !is_old {
            overwritten.remove(uid);
        }
        is_old
    }

    /// Remembers that the API server took the deletion of an object.
    pub fn deleted(&self, uid: &str) {
        remember(&self.deleted, uid);
    }

    /// Whether the API server took the deletion of an object: it goes, even if a store still shows it untouched.
    #[must_use]
    pub fn is_deleted(&self, uid: &str) -> bool {
        lock(&self.deleted).contains(uid)
    }

    /// Remembers that the API server took the nearer deadline of a pod.
    pub fn ended(&self, uid: &str) {
        remember(&self.ended, uid);
    }

    /// Whether the API server took the nearer deadline of a pod.
    #[must_use]
    pub fn is_ended(&self, uid: &str) -> bool {
        lock(&self.ended).contains(uid)
    }
}

fn remember(uids: &Mutex<HashSet<String>>, uid: &str) {
    let mut uids = lock(uids);
    if uids.len() >= MOST {
        uids.clear();
    }
    uids.insert(uid.to_owned());
}

/// Nothing panics while it holds a lock, and each entry stands alone.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(version: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "a", "resourceVersion": version}})).unwrap()
    }

    #[test]
    fn a_version_is_old_until_another_is_seen() {
        let writes = OwnWrites::default();
        writes.overwrote(&pod("1"), &pod("2"));
        assert!(writes.is_overwritten(&pod("1")));
        assert!(writes.is_overwritten(&pod("1")));
        assert!(!writes.is_overwritten(&pod("2")));
        assert!(!writes.is_overwritten(&pod("1")), "a store does not go back");
    }

    #[test]
    fn a_write_that_changed_nothing_overwrote_nothing() {
        let writes = OwnWrites::default();
        writes.overwrote(&pod("1"), &pod("1"));
        assert!(!writes.is_overwritten(&pod("1")));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let writes = OwnWrites::default();
        for number in 0..=MOST {
            writes.deleted(&number.to_string());
        }
        assert!(writes.is_deleted(&MOST.to_string()));
        assert!(lock(&writes.deleted).len() <= MOST);
    }
}
