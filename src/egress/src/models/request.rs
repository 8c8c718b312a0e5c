//! A model request, made ready to be sent.

use crate::deny::Deny;
use crate::rules::ModelRule;

use super::{Endpoint, Refusal, UsageFilter};

/// A request that may be sent, once its tokens are reserved.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    /// The rule that allows it.
    pub rule: &'a ModelRule,
    /// What is asked.
    pub endpoint: Endpoint,
    /// The model that the request names.
    pub model: String,
    /// Whether the answer is to be a stream of events.
    pub stream: bool,
    /// Most tokens that it can cost, input and output together.
    pub reservation: i64,
}

/// Makes a request ready: finds the rule that allows its model, checks every field, and writes it anew.
///
/// `rules` are those of the host, all of one provider.
pub fn prepare<'a>(rules: &[&'a ModelRule], endpoint: &Endpoint, body: &[u8]) -> Result<Prepared<'a>, Refusal> {
    let _ = (rules, body, endpoint);
    Err(Deny::EndpointNotMetered.into())
}

impl Prepared<'_> {
    /// The body to be sent, for the model of the target.
    #[must_use]
    pub fn body_for(&self, model: &str) -> Vec<u8> {
        model.as_bytes().to_vec()
    }

    /// What the answer must pass on its way to the client: it takes out the usage that only the gateway has asked for.
    /// Absent if the client asked for it too, or it is not a stream of chat completions.
    #[must_use]
    pub fn filter(&self) -> Option<UsageFilter> {
        None
    }

    /// What an attempt costs that was sent and never answered: everything, because the provider may have done the work.
    #[must_use]
    pub fn unanswered(&self) -> super::Charge {
        super::Charge {
            input: self.reservation,
            output: 0,
            estimated: true,
        }
    }
}
