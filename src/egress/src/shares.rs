//! How much of the gateway each sandbox may hold: rates, and places. Time is passed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A token bucket: so many at once, so many a second after that.
#[derive(Clone, Debug)]
pub struct Bucket {
    burst: f64,
    per_second: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self {
            burst: burst.into(),
            per_second: per_second.into(),
            level: burst.into(),
            at: now,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes `count` at once, or none. More than the bucket holds can never be had.
    pub fn take_many(&mut self, count: u32, now: Instant) -> bool {
        self.refill(now);
        let count = f64::from(count);
        if self.level < count {
            return false;
        }
        self.level -= count;
        true
    }

    /// How long until `count` are there; `None` if they never will be.
    #[must_use]
    pub fn wait(&self, count: u32, now: Instant) -> Option<Duration> {
        let missing = f64::from(count) - self.level - self.per_second * since(self.at, now);
        if missing <= 0.0 {
            return Some(Duration::ZERO);
        }
        if f64::from(count) > self.burst || self.per_second <= 0.0 {
            return None;
        }
        Duration::try_from_secs_f64(missing / self.per_second).ok()
    }

    /// Whether nothing was taken lately: such a bucket can be forgotten.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.level + self.per_second * since(self.at, now) >= self.burst
    }

    fn refill(&mut self, now: Instant) {
        self.level = (self.level + self.per_second * since(self.at, now)).min(self.burst);
        // A clock that seems to go back gives nothing, and takes nothing.
        self.at = self.at.max(now);
    }
}

fn since(then: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}

/// Places for many holders, of which none can take what the others need.
///
/// Each may hold up to `each`. Once three quarters of all places are taken, only those get another one that hold less
/// than their equal part, so the last quarter is for those who have little.
#[derive(Debug)]
pub struct Places<K> {
    total: usize,
    each: usize,
    taken: usize,
    held: HashMap<K, usize>,
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// `total` places, of which one holder gets `each` at most.
    #[must_use]
    pub fn new(total: usize, each: usize) -> Self {
        Self {
            total,
            each,
            taken: 0,
            held: HashMap::new(),
        }
    }

    /// Takes a place, if the holder may have one more. It must be given back by [`Places::free`].
    pub fn take(&mut self, holder: &K) -> bool {
        let held = self.held(holder);
        let others = self.held.len() - usize::from(held > 0);
        let part = (self.total / (others + 1)).max(1);
        let is_scarce = self.taken >= self.total - self.total / 4;
        if held >= self.each || self.taken >= self.total || (is_scarce && held >= part) {
            return false;
        }
        self.taken += 1;
        *self.held.entry(holder.clone()).or_insert(0) += 1;
        true
    }

    /// Gives a place back. Does nothing for a holder that has none.
    pub fn free(&mut self, holder: &K) {
        let Some(held) = self.held.get_mut(holder) else {
            return;
        };
        *held -= 1;
        self.taken -= 1;
        if *held == 0 {
            self.held.remove(holder);
        }
    }

    /// How many places the holder has.
    #[must_use]
    pub fn held(&self, holder: &K) -> usize {
        self.held.get(holder).copied().unwrap_or_default()
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }
}
