//! Requeues spread by ±10 %, so that objects made together do not come due together.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// `duration` within ±10 %.
#[must_use]
pub fn jittered(duration: Duration) -> Duration {
    // RandomState is seeded by the operating system for each value: random enough to spread load.
    let percent = 90 + u32::try_from(RandomState::new().hash_one(0_u8) % 21).unwrap_or(10);
    duration.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_ten_percent() {
        for _ in 0..1_000 {
            let spread = jittered(Duration::from_secs(100));
            assert!((Duration::from_secs(90)..=Duration::from_secs(110)).contains(&spread));
        }
    }
}
