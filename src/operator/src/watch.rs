//! Watches: each kind is watched once, pruned of what nobody needs, and fanned out by plain callbacks.
//!
//! Each watch backs off by itself, and its errors are counted and swallowed here: a controller's own back-off is
//! shared by all its triggers, so that one kind that can't be watched would starve the others.

use std::fmt::Debug;
use std::hash::Hash;

use agentsandbox_api::watched::Watched;
use futures::{Stream, StreamExt, TryStreamExt};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync;
use tracing::warn;

use crate::metrics::Metrics;

/// Becomes true once a store has been filled for the first time.
///
/// [`Store::wait_until_ready`] remembers only the last task that waits, and a controller waits for its own store: a
/// second waiter could leave it asleep.
#[derive(Clone)]
pub struct Synced(sync::watch::Receiver<bool>);

impl Synced {
    /// Waits for it; for ever if the watch is gone, as at the end of the program.
    pub async fn wait(&self) {
        if self.0.clone().wait_for(|synced| *synced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// An endless stream of touched objects, deleted ones included, kept in a store beside it.
pub fn watch<K>(
    kind: &'static str,
    api: Api<Watched<K>>,
    config: watcher::Config,
    metrics: Metrics,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> (Store<K>, Synced, impl Stream<Item = K> + Send)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    let (store, writer) = reflector::store();
    let (filled, synced) = sync::watch::channel(false);
    let stream = watcher(api, config)
        .default_backoff()
        .map_ok(Watched::event)
        .modify(prune)
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                filled.send_replace(true);
            }
        })
        .touched_objects()
        .filter_map(move |result| {
            let touched = match result {
                Ok(object) => Some(object),
                Err(error) => {
                    metrics.watch_error(kind);
                    warn!(kind, %error, "watch failed, trying again");
                    None
                }
            };
            std::future::ready(touched)
        });
    (store, Synced(synced), stream)
}

/// Drives a watch in the background, and calls back for each touched object.
pub fn drive<K: Send + 'static>(
    stream: impl Stream<Item = K> + Send + 'static,
    mut touched: impl FnMut(K) + Send + 'static,
) {
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(object) = stream.next().await {
            touched(object);
        }
    });
}
