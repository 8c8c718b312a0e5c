//! The windows of a policy's quota: a function of the time.

/// The window of a policy's quota that counts at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it began, in seconds since 1970; absent if the quota has no windows.
    pub start: Option<i64>,
    /// Whether what the status has counted belongs to an earlier one: count from 0.
    pub fresh: bool,
}

/// The window at `now`, given the one that the status has recorded. Windows begin at multiples of their length since
/// 1970, so that gateways need not agree on anything but the time.
///
/// A window never goes back: a gateway whose clock is behind counts in the window that another one has begun. A record
/// more than one window ahead is the work of a clock that was wrong; what it counted stays counted.
#[must_use]
pub fn window(now: i64, window_seconds: Option<i64>, recorded: Option<i64>) -> Window {
    let Some(length) = window_seconds.filter(|length| *length > 0) else {
        return Window {
            start: None,
            fresh: false,
        };
    };
    let start = now.saturating_sub(now.rem_euclid(length));
    match recorded {
        Some(recorded) if recorded < start => Window {
            start: Some(start),
            fresh: true,
        },
        Some(recorded) if recorded <= now.saturating_add(length) => Window {
            start: Some(recorded),
            fresh: false,
        },
        _ => Window {
            start: Some(start),
            fresh: false,
        },
    }
}
