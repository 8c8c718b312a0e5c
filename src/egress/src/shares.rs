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
/// Each may hold up to a fixed number, and fewer as the free ones become fewer: another place is had only by a holder
/// with less than are free (the dynamic threshold of Choudhury and Hahne, «Dynamic queue length thresholds for
/// shared-memory packet switches», 1998). One alone comes to half of all, `n` that take what they can to `1/(n + 1)` each;
/// so some are always free for a newcomer, whatever the others do.
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
        if held >= self.each || held >= self.total - self.taken {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_after() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10, start);
        assert!(bucket.take(start) && bucket.take(start) && bucket.take(start));
        assert!(!bucket.take(start));
        assert_eq!(bucket.wait(1, start), Some(Duration::from_millis(100)));
        assert!(!bucket.take(after(start, 99)));
        assert!(bucket.take(after(start, 101)));
        assert!(!bucket.is_full(after(start, 101)));
        assert!(bucket.is_full(after(start, 60_000)));
        let later = after(start, 60_000);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn a_bucket_gives_all_that_is_asked_for_or_none() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5, 1, start);
        assert!(!bucket.take_many(6, start));
        assert!(bucket.take_many(5, start));
        assert_eq!(bucket.wait(6, start), None);
        assert_eq!(bucket.wait(5, start), Some(Duration::from_secs(5)));
        assert_eq!(Bucket::new(0, 0, start).wait(1, start), None);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let start = after(Instant::now(), 10_000);
        let mut bucket = Bucket::new(1, 1, start);
        assert!(bucket.take(start));
        let earlier = start.checked_sub(Duration::from_secs(5)).unwrap();
        assert!(!bucket.take(earlier));
        assert!(!bucket.take(after(start, 900)));
        assert!(bucket.take(after(start, 1_100)));
    }

    #[test]
    fn one_that_takes_all_it_can_leaves_room_for_others() {
        let mut places = Places::new(1_000, 10_000);
        let hog = (0..5_000).filter(|_| places.take(&"hog")).count();
        assert_eq!(hog, 500);
        let second = (0..5_000).filter(|_| places.take(&"second")).count();
        assert_eq!(second, 250);
        assert!(places.take(&"newcomer"));
        assert!(!places.take(&"hog"));
    }

    #[test]
    fn nobody_holds_more_than_the_fixed_number() {
        let mut places = Places::new(1_000, 3);
        assert_eq!((0..10).filter(|_| places.take(&1)).count(), 3);
        places.free(&1);
        assert_eq!(places.held(&1), 2);
        assert!(places.take(&1));
    }

    #[test]
    fn a_place_given_back_twice_counts_once() {
        let mut places = Places::new(10, 10);
        assert!(places.take(&1));
        places.free(&1);
        places.free(&1);
        places.free(&2);
        assert_eq!((places.taken(), places.held(&1)), (0, 0));
    }

    proptest! {
        #[test]
        fn no_span_of_time_gives_more_than_burst_and_rate(burst in 0..50_u32, rate in 0..100_u32, steps in proptest::collection::vec((0..500_u64, 0..20_u32), 0..60)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(burst, rate, start);
            let (mut millis, mut given) = (0, 0);
            for (pause, tries) in steps {
                millis += pause;
                given += (0..tries).filter(|_| bucket.take(after(start, millis))).count();
            }
            let most = f64::from(burst) + f64::from(rate) * Duration::from_millis(millis).as_secs_f64();
            prop_assert!(f64::from(u32::try_from(given).unwrap()) <= most + 1e-6);
        }

        #[test]
        fn what_is_waited_for_is_there(burst in 1..50_u32, rate in 1..100_u32, taken in 0..50_u32, count in 1..50_u32) {
            let start = Instant::now();
            let mut bucket = Bucket::new(burst, rate, start);
            bucket.take_many(taken.min(burst), start);
            match bucket.wait(count, start) {
                Some(wait) => prop_assert!(bucket.take_many(count, start + wait + Duration::from_micros(1))),
                None => prop_assert!(count > burst),
            }
        }

        #[test]
        fn places_add_up_and_newcomers_always_find_one(total in 2..200_usize, each in 1..50_usize, steps in proptest::collection::vec((0..20_u8, any::<bool>()), 0..400)) {
            let mut places = Places::new(total, each);
            for (holder, takes) in steps {
                if takes {
                    let is_new = places.held(&holder) == 0;
                    let is_room = places.taken() < total;
                    let took = places.take(&holder);
                    prop_assert!(!is_new || took == is_room);
                } else {
                    places.free(&holder);
                }
                let sum: usize = (0..20).map(|holder| places.held(&holder)).sum();
                prop_assert_eq!(sum, places.taken());
                prop_assert!(sum <= total && (0..20).all(|holder| places.held(&holder) <= each));
            }
        }
    }
}
