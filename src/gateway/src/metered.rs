//! What a model's answer costs, learned while it passes; and paid for, whatever becomes of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::models::{Charge, Meter, UsageFilter};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::account::Held;
use crate::body::{AtEnd, BoxError, Carried};
use crate::exchange::Exchange;
use crate::quota::Share;
use crate::session::Session;

/// Leave to make one attempt.
pub struct Leave {
    /// Of the run's budget.
    pub run: Held,
    /// Of the policy's quota.
    pub quota: Share,
}

/// What is owed for one attempt. If it is dropped, all that it can have cost is charged.
pub struct Bill {
    session: Arc<Session>,
    exchange: Arc<Exchange>,
    leave: Option<Leave>,
    charge: Charge,
}

impl Bill {
    /// For an attempt that can cost `most`.
    pub fn new(exchange: &Arc<Exchange>, leave: Leave, most: Charge) -> Self {
        Self {
            session: exchange.session.clone(),
            exchange: exchange.clone(),
            leave: Some(leave),
            charge: most,
        }
    }

    /// It cost this.
    pub fn settle(mut self, charge: Charge) {
        self.charge = charge;
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        let Some(mut leave) = self.leave.take() else {
            return;
        };
        let spent = Counters {
            tokens: self.charge.tokens(),
            model_requests: 1,
            steps: 1,
            bytes: 0,
        };
        self.exchange.charged(self.charge);
        self.session.charged(self.charge);
        leave.run.spend(spent);
        leave.quota.spend(spent);
    }
}

/// What is still to be learned from an answer.
struct Running {
    meter: Meter,
    status: u16,
    bill: Bill,
}

impl Running {
    fn end(self, complete: bool) {
        let charge = self.meter.finish(self.status, complete);
        self.bill.settle(charge);
    }
}

/// A model's answer on its way to the sandbox, read along for what it cost. When the sandbox stops listening it is read
/// on for a while.
pub struct Metered {
    inner: Carried<Incoming>,
    filter: Option<UsageFilter>,
    /// What the filter has held back until the end.
    tail: Option<Bytes>,
    running: Option<Running>,
    drain: Duration,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if this.running.is_none() {
                return Poll::Ready(this.tail.take().map(|tail| Ok(Frame::data(tail))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(running) = &mut this.running {
                            running.meter.feed(&data);
                        }
                        let data = match &mut this.filter {
                            Some(filter) => Bytes::from(filter.feed(&data)),
                            None => data,
                        };
                        if !data.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => {
                    this.give_up();
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if let Some(running) = this.running.take() {
                        running.end(true);
                    }
                    this.tail = this
                        .filter
                        .take()
                        .map(|filter| Bytes::from(filter.finish()))
                        .filter(|tail| !tail.is_empty());
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.running.is_none() && self.tail.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.filter.is_some() || self.tail.is_some() {
            SizeHint::default()
        } else {
            self.inner.size_hint()
        }
    }
}

impl Metered {
    /// The body of an answer of this status, of which `filter` takes out what only the gateway has asked for.
    pub fn new(
        inner: Carried<Incoming>,
        filter: Option<UsageFilter>,
        meter: Meter,
        status: u16,
        bill: Bill,
        drain: Duration,
    ) -> Self {
        Self {
            inner,
            filter,
            tail: None,
            running: Some(Running { meter, status, bill }),
            drain,
        }
    }

    /// Nobody reads it any more: what it cost is still to be learned, if it goes on.
    fn give_up(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        if self.inner.is_complete() {
            running.end(true);
            return;
        }
        match self.inner.take() {
            Some((rest, at_end)) => {
                tokio::spawn(drained(rest, at_end, running, self.drain));
            }
            None => running.end(false),
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Reads the rest of an answer that nobody listens to.
async fn drained(mut rest: Incoming, at_end: Option<AtEnd>, mut running: Running, patience: Duration) {
    let read = async {
        while let Some(frame) = rest.frame().await {
            match frame {
                Ok(frame) => {
                    if let Some(data) = frame.data_ref() {
                        running.meter.feed(data);
                    }
                }
                Err(_) => return false,
            }
        }
        true
    };
    let complete = tokio::time::timeout(patience, read).await.unwrap_or(false);
    running.end(complete);
    if let Some(at_end) = at_end {
        at_end(complete);
    }
}
