//! The steps of a session that the gateway counts: its recorder asks for each over its open connection, and none is taken
//! that was not charged.
//!
//! A step is charged to the same budget as the run's model requests, and is one record of the log like any decision. What
//! was charged stays charged, also if the recorder never hears of it: it asks once for each number, and a number that is
//! not higher than all before it ends the connection.

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::gateway::{CHARGE_MAX_BYTES, StepCharged};
use agentsandbox_api::step::CONCURRENT_STEPS;
use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::registration;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt};
use tracing::warn;

use crate::session::{Event, Session};

/// How long a step waits for model requests in flight, which may leave it the last of the budget.
const WAIT: Duration = Duration::from_secs(3);
/// How long a charge takes at most: the recorder waits for it 5 s.
const PATIENCE: Duration = Duration::from_secs(4);

const ONE_STEP: Counters = Counters {
    steps: 1,
    ..Counters::ZERO
};

/// The charges of one connection.
pub struct Charges {
    session: Arc<Session>,
    /// What has come and was not read yet.
    waiting: Vec<u8>,
    open: FuturesUnordered<BoxFuture<'static, StepCharged>>,
}

/// Something else came than a new charge.
struct Malformed;

impl Charges {
    /// Of the recorder of this run.
    pub fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            waiting: Vec::new(),
            open: FuturesUnordered::new(),
        }
    }

    /// The next answer; `None` if the connection has ended, or must. Nothing is lost if the caller stops waiting.
    pub async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Option<StepCharged> {
        loop {
            if self.begin().is_err() {
                warn!(
                    sandbox = self.session.run.sandbox,
                    "a recorder said something else than a new charge"
                );
                return None;
            }
            let mut piece = [0; 4 * CHARGE_MAX_BYTES];
            tokio::select! {
                Some(answer) = self.open.next(), if !self.open.is_empty() => return Some(answer),
                read = stream.read(&mut piece), if self.has_room() => match read {
                    Ok(length) if length > 0 => self.waiting.extend_from_slice(&piece[..length]),
                    _ => return None,
                },
            }
        }
    }

    /// Begins the charges that have come whole, as far as there is room.
    fn begin(&mut self) -> Result<(), Malformed> {
        while self.has_room() {
            let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') else {
                break;
            };
            let number = registration::parse_charge(&self.waiting[..end])
                .filter(|number| self.session.is_new_charge(*number))
                .ok_or(Malformed)?;
            self.waiting.drain(..=end);
            self.open.push(Box::pin(answer(self.session.clone(), number)));
        }
        if self.has_room() && self.waiting.len() > CHARGE_MAX_BYTES {
            return Err(Malformed);
        }
        Ok(())
    }

    /// Whether one more can be asked for: no recorder starts more steps at once.
    fn has_room(&self) -> bool {
        self.open.len() < CONCURRENT_STEPS
    }
}

async fn answer(session: Arc<Session>, number: u64) -> StepCharged {
    session.admit_step().await;
    let refused = charge(&session).await.err();
    StepCharged {
        charged: number,
        granted: refused.is_none(),
        reason: refused.map_or("", Deny::as_str).to_owned(),
        message: refused.map_or("", Deny::message).to_owned(),
    }
}

async fn charge(session: &Session) -> Result<(), Deny> {
    let event = Event::step();
    let reserved = session.account.reserve_within(WAIT, ONE_STEP, ONE_STEP);
    let decided = match tokio::time::timeout(PATIENCE, reserved).await {
        Ok(Ok(mut held)) => session.allow(&event).map(|()| held.spend(ONE_STEP)),
        Ok(Err(deny)) => Err(deny),
        Err(_) => Err(Deny::NotReady),
    };
    decided.inspect_err(|deny| session.deny(&event, *deny))
}
