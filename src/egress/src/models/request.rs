//! A model request, made ready to be sent.

use agentsandbox_api::policy::Provider;

use crate::deny::Deny;
use crate::rules::ModelRule;

use super::json::{self, Object, Value};
use super::meter::Charge;
use super::{
    Endpoint, MAX_REQUEST_BYTES, Refusal, UsageFilter, anthropic, openai_chat, openai_embeddings,
    openai_responses, shape,
};

/// Most output tokens that a request may name: above every model's limit, and far from an overflow.
pub(super) const MAX_OUTPUT_TOKENS: i64 = 10_000_000;

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
    pub(super) bounds: Bounds,
    drop_usage: bool,
    /// The members of the body but `model`, each after a comma.
    members: Vec<u8>,
}

/// What a request can cost, and what its answer is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Most input tokens.
    pub input: i64,
    /// Most output tokens.
    pub output: i64,
    /// Bytes of the request that are not documents.
    pub text_bytes: i64,
    /// The model's context window.
    pub context: i64,
}

/// What an endpoint's module says of a request.
pub(super) struct Terms {
    /// Most output tokens.
    pub output: i64,
    /// Input tokens that the provider adds to what is written.
    pub input: i64,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// Whether the stream's usage is not for the client.
    pub drop_usage: bool,
}

/// Makes a request ready: finds the rule that allows its model, checks every field, and writes it anew.
///
/// `rules` are those of the host, all of one provider; the first that allows the model counts.
pub fn prepare<'a>(
    rules: &[&'a ModelRule],
    endpoint: &Endpoint,
    body: &[u8],
) -> Result<Prepared<'a>, Refusal> {
    if endpoint.is_local() {
        return Err(Deny::EndpointNotMetered.into());
    }
    if body.len() > MAX_REQUEST_BYTES {
        return Err(Deny::RequestTooLarge.into());
    }
    let Value::Object(mut body) = json::parse(body).map_err(malformed)? else {
        return Err(malformed("not an object"));
    };
    let model = match body.remove("model") {
        Some(Value::Text(model)) => model.into_owned(),
        _ => return Err(malformed("model: not a string")),
    };
    let rule = *rules
        .iter()
        .find(|rule| rule.allow.contains(&model))
        .ok_or_else(|| Refusal::new(Deny::ModelNotAllowed, &model))?;
    let count = shape::check(&body, fields(endpoint, rule.provider), &rule.server_tools)?;
    let terms = settle(endpoint, &mut body, rule)?;

    let mut members = Vec::new();
    members.push(b',');
    body.write_members(&mut members);
    if members.len() == 1 {
        members.clear();
    }
    // A token is at least one byte of text, written out as JSON at least as long: the bytes bound the tokens. A
    // document's tokens have nothing to do with its bytes.
    let text_bytes = tokens(
        members
            .len()
            .saturating_add(model.len())
            .saturating_sub(count.media_bytes),
    );
    // What a tool of the provider's finds becomes input; it can't be more than the model can hold.
    let found = if count.server_tools > 0 {
        rule.context_tokens
    } else {
        0
    };
    let bounds = if *endpoint == Endpoint::CountTokens {
        // Costs nothing: https://docs.anthropic.com/en/docs/build-with-claude/token-counting
        Bounds::default()
    } else {
        Bounds {
            input: text_bytes
                .saturating_add(count.media.saturating_mul(rule.context_tokens))
                .saturating_add(count.overhead)
                .saturating_add(terms.input)
                .saturating_add(found),
            output: terms.output,
            text_bytes,
            context: rule.context_tokens,
        }
    };
    Ok(Prepared {
        rule,
        endpoint: endpoint.clone(),
        model,
        stream: terms.stream,
        reservation: bounds.input.saturating_add(bounds.output),
        bounds,
        drop_usage: terms.drop_usage,
        members,
    })
}

impl Prepared<'_> {
    /// The body to be sent, for the model of the target.
    #[must_use]
    pub fn body_for(&self, model: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.members.len() + model.len() + 16);
        body.extend_from_slice(b"{\"model\":");
        json::write_text(model, &mut body);
        body.extend_from_slice(&self.members);
        body.push(b'}');
        body
    }

    /// What the answer must pass on its way to the client: it takes out the usage that only the gateway has asked for.
    /// Absent if the client asked for it too, or the answer is not a stream of chat completions.
    #[must_use]
    pub fn filter(&self) -> Option<UsageFilter> {
        self.drop_usage.then(UsageFilter::default)
    }

    /// What an attempt costs that was sent and never answered: everything, because the provider may have done the work.
    #[must_use]
    pub fn unanswered(&self) -> Charge {
        Charge {
            input: self.bounds.input,
            output: self.bounds.output,
            estimated: self.reservation > 0,
        }
    }
}

fn fields(endpoint: &Endpoint, provider: Provider) -> &'static [shape::Fields] {
    match endpoint {
        Endpoint::ChatCompletions => openai_chat::fields(provider),
        Endpoint::Responses => openai_responses::fields(),
        Endpoint::Embeddings => openai_embeddings::fields(provider),
        Endpoint::Messages => anthropic::message_fields(),
        Endpoint::CountTokens => anthropic::count_fields(),
        Endpoint::Models | Endpoint::Model(_) => &[],
    }
}

fn settle(endpoint: &Endpoint, body: &mut Object<'_>, rule: &ModelRule) -> Result<Terms, Refusal> {
    match endpoint {
        Endpoint::ChatCompletions => openai_chat::settle(body, rule),
        Endpoint::Responses => openai_responses::settle(body, rule),
        Endpoint::Messages => anthropic::settle(body, rule),
        Endpoint::Embeddings | Endpoint::CountTokens | Endpoint::Models | Endpoint::Model(_) => {
            Ok(openai_embeddings::settle())
        }
    }
}

/// A number of tokens or bytes as it is counted.
pub(super) fn tokens(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// How long a value is when written.
pub(super) fn written_bytes(value: &Value<'_>) -> i64 {
    let mut out = Vec::new();
    value.write(&mut out);
    tokens(out.len())
}

/// A field that is true or false, false if absent.
pub(super) fn flag(body: &Object<'_>, name: &str) -> Result<bool, Refusal> {
    match body.get_set(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(malformed(format_args!("{name}: not true or false"))),
    }
}

/// A field that is a whole number within bounds, if it is set.
pub(super) fn limit(body: &Object<'_>, name: &str, least: i64, most: i64) -> Result<Option<i64>, Refusal> {
    body.get_set(name)
        .map(|value| {
            value
                .as_integer()
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| malformed(format_args!("{name}: not a whole number from {least} to {most}")))
        })
        .transpose()
}

/// A number of tokens in an object of the body, if it is set.
pub(super) fn inner_limit(body: &Object<'_>, object: &str, name: &str) -> Result<Option<i64>, Refusal> {
    match body.get_set(object) {
        Some(Value::Object(object)) => limit(object, name, 0, MAX_OUTPUT_TOKENS),
        _ => Ok(None),
    }
}

/// Most output tokens by the largest of these fields. If none is set, the field `missing` is set to `default`.
pub(super) fn most_output(
    body: &mut Object<'_>,
    names: &[&str],
    missing: &'static str,
    default: i64,
) -> Result<i64, Refusal> {
    let mut most = None;
    for name in names {
        most = most.max(limit(body, name, 0, MAX_OUTPUT_TOKENS)?);
    }
    if let Some(most) = most {
        return Ok(most);
    }
    for name in names {
        body.remove(name);
    }
    body.set(missing, Value::integer(default));
    Ok(default)
}

fn malformed(detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Deny::BodyMalformed, detail)
}
