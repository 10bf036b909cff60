//! The incoming event, read as loosely as senders write it: how an empty optional field looks is not documented, and a
//! template engine may quote numbers.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use shared::Rejection;
use shared::json::{self, Members};

/// The eleven fields; unknown ones are ignored.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fields<'a> {
    #[serde(borrow)]
    pub profile_id: Scalar<'a>,
    #[serde(borrow)]
    pub source_id: Scalar<'a>,
    #[serde(borrow)]
    pub partner_number: Scalar<'a>,
    #[serde(borrow)]
    pub call_type: Scalar<'a>,
    #[serde(borrow)]
    pub partner_ids: Collection<'a>,
    #[serde(borrow)]
    pub profile_vars: Collection<'a>,
    #[serde(borrow)]
    pub timestamp: Scalar<'a>,
    #[serde(borrow)]
    pub site_number: Scalar<'a>,
    #[serde(borrow)]
    pub source_name: Scalar<'a>,
    #[serde(borrow)]
    pub source_number: Scalar<'a>,
    #[serde(borrow)]
    pub data: Collection<'a>,
}

/// A field that should hold text or a number.
#[derive(Debug, Default)]
pub enum Scalar<'a> {
    /// Not there, `null`, or empty: `""`, `{}`, `[]`.
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Integer(i64),
    /// Anything else.
    Unusable,
}

/// A field that should hold an array or an object.
#[derive(Debug, Default)]
pub enum Collection<'a> {
    /// Not there, `null`, or empty: `""`, `{}`, `[]`.
    #[default]
    Absent,
    Array(Vec<&'a RawValue>),
    Object(Members<'a>),
    /// Anything else.
    Unusable,
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("text or a number")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(if text.is_empty() { Scalar::Absent } else { Scalar::Text(text.into()) })
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(if text.is_empty() { Scalar::Absent } else { Scalar::Text(text.to_owned().into()) })
            }
            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Scalar::Integer(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(number.try_into().map_or(Scalar::Unusable, Scalar::Integer))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                // `-0` comes as a float.
                Ok(if number == 0.0 && number.is_sign_negative() { Scalar::Integer(0) } else { Scalar::Unusable })
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Scalar::Unusable)
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Scalar::Absent)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut scalar = Scalar::Absent;
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    scalar = Scalar::Unusable;
                }
                Ok(scalar)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut scalar = Scalar::Absent;
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    scalar = Scalar::Unusable;
                }
                Ok(scalar)
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Collection<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CollectionVisitor;
        impl<'de> Visitor<'de> for CollectionVisitor {
            type Value = Collection<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array or an object")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(if text.is_empty() { Collection::Absent } else { Collection::Unusable })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Collection::Unusable)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Collection::Unusable)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Collection::Unusable)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Collection::Unusable)
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Collection::Absent)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<Self::Value, A::Error> {
                let elements = Vec::deserialize(SeqAccessDeserializer::new(elements))?;
                Ok(if elements.is_empty() { Collection::Absent } else { Collection::Array(elements) })
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
                let members = Members::deserialize(MapAccessDeserializer::new(members))?;
                Ok(if members.0.is_empty() { Collection::Absent } else { Collection::Object(members) })
            }
        }
        deserializer.deserialize_any(CollectionVisitor)
    }
}

/// The profile's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallType {
    New,
    Modified,
    Removed,
}

impl CallType {
    /// The word that the message contains.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Modified => "MODIFIED",
            Self::Removed => "REMOVED",
        }
    }

    /// The event's type; a journey has no `sourceNumber`.
    pub fn event_type(self, is_audience: bool) -> &'static str {
        match (self, is_audience) {
            (Self::New, true) => "com.supermetrics.dataactivation.audience.new",
            (Self::Modified, true) => "com.supermetrics.dataactivation.audience.modified",
            (Self::Removed, true) => "com.supermetrics.dataactivation.audience.removed",
            (Self::New, false) => "com.supermetrics.dataactivation.journey.new",
            (Self::Modified, false) => "com.supermetrics.dataactivation.journey.modified",
            (Self::Removed, false) => "com.supermetrics.dataactivation.journey.removed",
        }
    }
}

/// A required field.
pub fn required<T>(name: &'static str, value: Option<T>) -> Result<T, Rejection> {
    value.ok_or_else(|| Rejection::unmappable(format!("{name}: missing or empty")))
}

impl<'a> Scalar<'a> {
    pub fn text(self, name: &'static str) -> Result<Option<Cow<'a, str>>, Rejection> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Integer(_) | Self::Unusable => Err(Rejection::unmappable(format!("{name}: expected text"))),
        }
    }

    /// An integer, or decimal text of one. Fractions and exponents are refused.
    pub fn integer(self, name: &'static str) -> Result<Option<i64>, Rejection> {
        let number = match self {
            Self::Absent => return Ok(None),
            Self::Integer(number) => Some(number),
            Self::Text(text) => decimal(&text),
            Self::Unusable => None,
        };
        number.map(Some).ok_or_else(|| Rejection::unmappable(format!("{name}: expected an integer of at most 64 bits")))
    }

    /// `callType`, compared exactly.
    pub fn call_type(self) -> Result<Option<CallType>, Rejection> {
        let Some(text) = self.text("callType")? else { return Ok(None) };
        [CallType::New, CallType::Modified, CallType::Removed]
            .into_iter()
            .find(|known| known.as_str() == text)
            .map(Some)
            .ok_or_else(|| Rejection::unmappable("callType: expected NEW, MODIFIED or REMOVED"))
    }
}

fn decimal(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// The profile's ids, in either form that senders have.
#[derive(Debug)]
pub enum PartnerIds<'a> {
    /// The ids of the event's own partner number.
    OfEvent(Vec<Cow<'a, str>>),
    /// Lists of ids by partner number.
    ByNumber(Vec<(i64, Vec<Cow<'a, str>>)>),
}

impl<'a> Collection<'a> {
    /// An object's members.
    pub fn members(self, name: &'static str) -> Result<Members<'a>, Rejection> {
        match self {
            Self::Absent => Ok(Members::default()),
            Self::Object(members) => Ok(members),
            Self::Array(_) | Self::Unusable => Err(Rejection::unmappable(format!("{name}: expected an object"))),
        }
    }

    /// `partnerIds`: an array of ids, or an object keyed by partner number whose values are an id or an array of ids.
    pub fn partner_ids(self) -> Result<PartnerIds<'a>, Rejection> {
        let Members(by_number) = match self {
            Self::Absent => return Ok(PartnerIds::OfEvent(Vec::new())),
            Self::Array(elements) => return Ok(PartnerIds::OfEvent(ids(elements)?)),
            Self::Object(by_number) => by_number,
            Self::Unusable => {
                return Err(Rejection::unmappable(
                    "partnerIds: expected an array of ids, or an object of them keyed by partner number",
                ));
            }
        };
        let by_number = by_number.into_iter().map(|(number, value)| {
            let number =
                decimal(&number).ok_or_else(|| Rejection::unmappable("partnerIds: a key is no partner number"))?;
            let ids = match serde_json::from_str(value.get()) {
                Ok(Collection::Absent) => Vec::new(),
                Ok(Collection::Array(elements)) => ids(elements)?,
                _ => id(value.get())?.into_iter().collect(),
            };
            Ok((number, ids))
        });
        Ok(PartnerIds::ByNumber(by_number.collect::<Result<_, _>>()?))
    }
}

fn ids(elements: Vec<&RawValue>) -> Result<Vec<Cow<'_, str>>, Rejection> {
    elements.into_iter().filter_map(|one| id(one.get()).transpose()).collect()
}

/// An id is text, or an integer taken as text. Empty text and `null` are no id.
fn id(json: &str) -> Result<Option<Cow<'_, str>>, Rejection> {
    if json == "null" {
        return Ok(None);
    }
    if let Some(text) = json::text(json) {
        return Ok((!text.is_empty()).then_some(text));
    }
    let digits = json.strip_prefix('-').unwrap_or(json);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Some(json.into()));
    }
    Err(Rejection::unmappable("partnerIds: an id is neither text nor an integer"))
}
