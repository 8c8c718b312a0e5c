//! When a connection sends its next request: at once, or after a pause in which its user thinks.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::load::{Error, to_f64};

/// The part of a saturated proxy's requests per second at which others are compared with it.
const SHARE: f64 = 0.5;

/// The mean pause with which so many connections together ask for [`SHARE`] of this rate (requests per second).
pub fn think(connections: usize, rate: f64) -> Result<Duration, Error> {
    let seconds = to_f64(connections as u64) / (SHARE * rate);
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| "nothing was answered whose rate could be halved: measure for longer (--millis)".into())
}

/// The pauses of one connection, uniform between none and twice the mean. The same for each proxy: they follow from the
/// connection's number.
pub struct Pace {
    think: Duration,
    random: SplitMix64,
    begun: bool,
}

impl Pace {
    /// The pauses of the connection with this number, of this mean; zero is no pause at all.
    pub fn new(think: Duration, connection: u64) -> Self {
        Self {
            think,
            random: SplitMix64(connection),
            begun: false,
        }
    }

    /// Waits until it's time for the next request; false once the end has come.
    ///
    /// tokio's timers tick once in a millisecond: the requests that fall due between two ticks are sent together, and
    /// each pause is up to a millisecond longer. This is so for each proxy, and a request's time doesn't contain it.
    pub async fn next_request(&mut self, end: Instant) -> bool {
        let pause = self.pause();
        if !pause.is_zero() {
            sleep_until((Instant::now() + pause).min(end).into()).await;
        }
        Instant::now() < end
    }

    fn pause(&mut self) -> Duration {
        let uniform = self.random.fraction();
        // The first is what is left of a pause that began earlier (the residual time of a renewal process). Were it like
        // the others, few requests would come at the beginning and then too many.
        let part = if self.begun {
            uniform
        } else {
            1.0 - (1.0 - uniform).sqrt()
        };
        self.begun = true;
        self.think.mul_f64(2.0 * part)
    }
}

/// Steele, Lea and Flood's generator ("Fast Splittable Pseudorandom Number Generators", 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    /// From 0 to below 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        to_f64((mixed ^ (mixed >> 31)) >> 12) / to_f64(1 << 52)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINK: Duration = Duration::from_millis(25);

    #[test]
    fn the_connections_together_ask_for_half_of_the_rate() {
        assert_eq!(think(256, 20_480.0).unwrap(), THINK);
    }

    #[test]
    fn a_rate_of_nothing_is_an_error_and_no_endless_pause() {
        assert!(think(32, 0.0).is_err());
        assert!(think(32, f64::NAN).is_err());
    }

    #[test]
    fn the_load_is_the_same_from_the_beginning_to_the_end() {
        const CONNECTIONS: u32 = 4096;
        let mut requests = [0_u32; 8];
        for connection in 0..CONNECTIONS {
            let mut pace = Pace::new(THINK, connection.into());
            let mut due = pace.pause();
            while let Some(count) = requests.get_mut((due.as_nanos() / THINK.as_nanos()) as usize) {
                *count += 1;
                due += pace.pause();
            }
        }
        // One request of each connection in each mean pause.
        for count in requests {
            assert!(count.abs_diff(CONNECTIONS) < CONNECTIONS / 20, "{requests:?}");
        }
    }

    #[test]
    fn pauses_differ_between_connections_and_are_never_longer_than_twice_the_mean() {
        let pauses = |connection| {
            let mut pace = Pace::new(THINK, connection);
            std::array::from_fn::<_, 64, _>(|_| pace.pause())
        };
        assert_ne!(pauses(0), pauses(1));
        assert_eq!(pauses(1), pauses(1));
        assert!(pauses(0).iter().all(|pause| *pause < 2 * THINK));
    }

    #[tokio::test]
    async fn without_a_pause_the_next_request_is_due_at_once_until_the_end() {
        let mut pace = Pace::new(Duration::ZERO, 0);
        assert!(pace.next_request(Instant::now() + Duration::from_mins(1)).await);
        assert!(!pace.next_request(Instant::now()).await);
    }

    #[tokio::test]
    async fn a_pause_ends_with_the_measurement() {
        let mut pace = Pace::new(Duration::from_hours(1), 0);
        assert!(!pace.next_request(Instant::now() + Duration::from_millis(5)).await);
    }
}
