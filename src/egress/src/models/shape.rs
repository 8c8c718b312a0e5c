//! What a request may look like: the lists of allowed fields, as data, and the walk that checks a body against them.

use crate::deny::Deny;

use super::Refusal;
use super::json::{Object, Value};

/// What a value may be. `null` may stand for every value: SDKs write it for what is not set.
pub(super) enum Shape {
    /// A string, number or boolean.
    Scalar,
    /// A string.
    Text,
    /// Nothing but `null`: the field is known, and not allowed to be set.
    Unset,
    /// `false`.
    Off,
    /// Anything: a JSON schema, or the arguments of a tool. Nothing that a provider acts upon.
    Free,
    /// A list of such values.
    List(&'static Shape),
    /// A string, or such a value.
    TextOr(&'static Shape),
    /// A string, number or boolean, or such a value.
    ScalarOr(&'static Shape),
    /// An object with at most these fields.
    Fields(Fields),
    /// An object whose field says which fields it has.
    Tagged(&'static Tagged),
    /// An object with any names, and such values.
    Map(&'static Shape),
    /// An image that lies in the request itself, as a `data:` URL.
    DataUrl,
    /// A document (image, sound, file) that lies in the request itself, as base64 or a `data:` URL.
    Inline,
    /// Something that makes the provider act; allowed if the rule names one of these tools.
    Server(&'static [&'static str]),
}

/// Names of fields, and what they may be.
pub(super) type Fields = &'static [(&'static str, Shape)];

/// An object whose field says which fields it has.
pub(super) struct Tagged {
    /// That field.
    pub tag: &'static str,
    /// What it is taken for if absent.
    pub default: Option<&'static str>,
    /// The kinds. A name that ends with `*` has a date there, as Anthropic's tools do.
    pub kinds: &'static [(&'static str, Kind)],
    /// What another kind is.
    pub others: Others,
}

/// What an object of a kind that is not listed is.
pub(super) enum Others {
    /// Unknown, and refused.
    Unknown,
    /// A tool that the provider runs: allowed if the rule names it.
    Tools,
    /// The trace that such a tool has left in the conversation: allowed if the rule names one of its tools.
    Traces(&'static [(&'static str, &'static [&'static str])]),
}

/// One kind of such an object.
pub(super) struct Kind {
    /// Its fields, with the one that says the kind.
    pub fields: Fields,
    /// Tokens that the provider adds to the input for one of these, beyond what is written.
    pub overhead: i64,
}

impl Kind {
    /// A kind that costs what is written.
    pub const fn of(fields: Fields) -> Self {
        Self { fields, overhead: 0 }
    }
}

/// What the walk has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Inline documents.
    pub media: i64,
    /// Their bytes, as written.
    pub media_bytes: usize,
    /// Tokens that the provider adds, see [`Kind::overhead`].
    pub overhead: i64,
    /// Things that make the provider act.
    pub server_tools: usize,
}

/// Checks a body against its lists of fields. `server_tools` are the tools that the rule lets the provider run.
pub(super) fn check(
    object: &Object<'_>,
    lists: &[Fields],
    server_tools: &[String],
) -> Result<Count, Refusal> {
    let mut walk = Walk {
        server_tools,
        count: Count::default(),
    };
    walk.fields(object, lists)
        .map_err(|problem| Refusal::new(problem.deny, problem.text()))?;
    Ok(walk.count)
}

/// Whether a name of a list names a type: itself, or without the date at its end (`web_search`, for
/// `web_search_20250305`).
fn names_type(name: &str, kind: &str) -> bool {
    name == kind || name == family(kind)
}

/// A type's name without the date at its end.
fn family(kind: &str) -> &str {
    kind.rsplit_once('_')
        .filter(|(_, date)| date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(kind, |(family, _)| family)
}

/// What is wrong, and where: the names on the way, the innermost first.
struct Problem {
    deny: Deny,
    what: String,
    way: Vec<String>,
}

impl Problem {
    fn new(deny: Deny, what: impl Into<String>) -> Self {
        Self {
            deny,
            what: what.into(),
            way: Vec::new(),
        }
    }

    fn at(mut self, name: impl Into<String>) -> Self {
        self.way.push(name.into());
        self
    }

    fn text(self) -> String {
        let mut text = String::new();
        for name in self.way.iter().rev() {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
        if !self.what.is_empty() {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&self.what);
        }
        text
    }
}

struct Walk<'r> {
    server_tools: &'r [String],
    count: Count,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value<'_>, shape: &Shape) -> Result<(), Problem> {
        if *value == Value::Null {
            return Ok(());
        }
        match (shape, value) {
            (Shape::Free, _)
            | (Shape::Scalar | Shape::ScalarOr(_), Value::Text(_) | Value::Number(_) | Value::Bool(_))
            | (Shape::Text | Shape::TextOr(_), Value::Text(_))
            | (Shape::Off, Value::Bool(false)) => Ok(()),
            (Shape::Unset | Shape::Off, _) => Err(Problem::new(Deny::FieldNotAllowed, "")),
            (Shape::List(shape), Value::List(list)) => {
                list.iter().enumerate().try_for_each(|(index, value)| {
                    self.value(value, shape)
                        .map_err(|problem| problem.at(index.to_string()))
                })
            }
            (Shape::TextOr(shape) | Shape::ScalarOr(shape), _) => self.value(value, shape),
            (Shape::Fields(fields), Value::Object(object)) => self.fields(object, &[fields]),
            (Shape::Tagged(tagged), Value::Object(object)) => self.tagged(object, tagged),
            (Shape::Map(shape), Value::Object(object)) => object.iter().try_for_each(|(name, value)| {
                self.value(value, shape)
                    .map_err(|problem| problem.at(shorten(name)))
            }),
            (Shape::DataUrl, Value::Text(text)) => self.document(text, is_data_url(text)),
            (Shape::Inline, Value::Text(text)) => self.document(text, is_data_url(text) || is_base64(text)),
            (Shape::Server(tools), _) => self.server(tools),
            _ => Err(Problem::new(Deny::BodyMalformed, "not of the right type")),
        }
    }

    fn fields(&mut self, object: &Object<'_>, lists: &[Fields]) -> Result<(), Problem> {
        for (name, value) in object.iter() {
            let mut fields = lists.iter().copied().flatten();
            let Some((_, shape)) = fields.find(|(field, _)| *field == name) else {
                return Err(Problem::new(Deny::FieldNotAllowed, "").at(shorten(name)));
            };
            self.value(value, shape)
                .map_err(|problem| problem.at(shorten(name)))?;
        }
        Ok(())
    }

    fn tagged(&mut self, object: &Object<'_>, tagged: &Tagged) -> Result<(), Problem> {
        let kind = match object.get_set(tagged.tag) {
            Some(value) => value.as_text(),
            None => tagged.default,
        };
        let Some(kind) = kind else {
            return Err(Problem::new(Deny::BodyMalformed, "missing").at(tagged.tag));
        };
        let known = tagged.kinds.iter().find(|(name, _)| {
            name.strip_suffix("_*")
                .map_or(*name == kind, |family| names_type(family, kind))
        });
        if let Some((_, known)) = known {
            self.count.overhead = self.count.overhead.saturating_add(known.overhead);
            return self.fields(object, &[known.fields]);
        }
        let allowed = match tagged.others {
            Others::Unknown => {
                return Err(Problem::new(Deny::FieldNotAllowed, shorten(kind)).at(tagged.tag));
            }
            Others::Tools => self.server_tools.iter().any(|tool| names_type(tool, kind)),
            Others::Traces(traces) => traces
                .iter()
                .any(|(trace, tools)| *trace == kind && self.names_any(tools)),
        };
        if allowed {
            self.count.server_tools += 1;
            Ok(())
        } else {
            Err(Problem::new(Deny::ServerToolNotAllowed, shorten(kind)))
        }
    }

    /// Whether the rule names one of these tools, be it with a date.
    fn names_any(&self, tools: &[&str]) -> bool {
        self.server_tools.iter().any(|tool| tools.contains(&family(tool)))
    }

    /// Nothing but the document itself: neither a URL, which the provider would fetch, nor the id of a stored file.
    fn document(&mut self, text: &str, is_inline: bool) -> Result<(), Problem> {
        if is_inline {
            self.count.media = self.count.media.saturating_add(1);
            self.count.media_bytes = self.count.media_bytes.saturating_add(text.len());
            Ok(())
        } else {
            Err(Problem::new(
                Deny::FieldNotAllowed,
                "the document must lie in the request itself",
            ))
        }
    }

    fn server(&mut self, tools: &[&str]) -> Result<(), Problem> {
        if self.names_any(tools) {
            self.count.server_tools += 1;
            Ok(())
        } else {
            Err(Problem::new(Deny::ServerToolNotAllowed, ""))
        }
    }
}

/// A name as it may stand in a refusal.
fn shorten(name: &str) -> String {
    name.chars().take(48).collect()
}

fn is_data_url(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
}

/// Has no `:` and no `.`: no URL.
fn is_base64(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte))
}
