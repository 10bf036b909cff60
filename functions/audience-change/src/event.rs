//! The incoming event, told as loosely as senders write it: how an empty optional field looks is not documented, and a
//! template engine may quote numbers.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use shared::Rejection;
use shared::json::{self, Members};

/// The eleven fields as they came; unknown ones are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fields<'a> {
    #[serde(borrow)]
    pub profile_id: Field<'a>,
    #[serde(borrow)]
    pub source_id: Field<'a>,
    #[serde(borrow)]
    pub partner_number: Field<'a>,
    #[serde(borrow)]
    pub call_type: Field<'a>,
    #[serde(borrow)]
    pub partner_ids: Field<'a>,
    #[serde(borrow)]
    pub profile_vars: Field<'a>,
    #[serde(borrow)]
    pub timestamp: Field<'a>,
    #[serde(borrow)]
    pub site_number: Field<'a>,
    #[serde(borrow)]
    pub source_name: Field<'a>,
    #[serde(borrow)]
    pub source_number: Field<'a>,
    #[serde(borrow)]
    pub data: Field<'a>,
}

/// A field's JSON text, or `None` when it is absent.
pub type Field<'a> = Option<&'a RawValue>;

/// The profile's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallType {
    New,
    Modified,
    Removed,
}

impl CallType {
    /// As it stands in the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Modified => "MODIFIED",
            Self::Removed => "REMOVED",
        }
    }

    /// As it stands in the event's type.
    pub fn in_event_type(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Modified => "modified",
            Self::Removed => "removed",
        }
    }
}

/// A field that is there and not empty. `null`, `""`, `{}` and `[]` all count as empty.
fn present(field: Field<'_>) -> Option<&str> {
    field.map(RawValue::get).filter(|json| {
        *json != "null" && *json != "\"\"" && {
            let inside = json.strip_prefix('{').and_then(|json| json.strip_suffix('}'));
            let inside = inside.or_else(|| json.strip_prefix('[').and_then(|json| json.strip_suffix(']')));
            inside.is_none_or(|inside| !inside.trim_ascii().is_empty())
        }
    })
}

/// A required field.
pub fn required<T>(name: &'static str, value: Option<T>) -> Result<T, Rejection> {
    value.ok_or_else(|| Rejection::unmappable(format!("{name}: missing or empty")))
}

/// Text.
pub fn text<'a>(name: &'static str, field: Field<'a>) -> Result<Option<Cow<'a, str>>, Rejection> {
    let Some(json) = present(field) else { return Ok(None) };
    json::text(json).map(Some).ok_or_else(|| Rejection::unmappable(format!("{name}: expected text")))
}

/// An integer, or decimal text of one. Fractions and exponents are refused.
pub fn integer(name: &'static str, field: Field<'_>) -> Result<Option<i64>, Rejection> {
    let Some(json) = present(field) else { return Ok(None) };
    let text = json::text(json).unwrap_or(json.into());
    decimal(&text)
        .map(Some)
        .ok_or_else(|| Rejection::unmappable(format!("{name}: expected an integer of at most 64 bits")))
}

fn decimal(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// An object's members.
pub fn members<'a>(name: &'static str, field: Field<'a>) -> Result<Members<'a>, Rejection> {
    let Some(json) = present(field) else { return Ok(Members::default()) };
    serde_json::from_str(json).map_err(|_| Rejection::unmappable(format!("{name}: expected an object")))
}

/// `callType`, compared exactly.
pub fn call_type(field: Field<'_>) -> Result<Option<CallType>, Rejection> {
    let known =
        |text: &str| [CallType::New, CallType::Modified, CallType::Removed].into_iter().find(|c| c.as_str() == text);
    match text("callType", field)? {
        None => Ok(None),
        Some(text) => {
            known(&text).map(Some).ok_or_else(|| Rejection::unmappable("callType: expected NEW, MODIFIED or REMOVED"))
        }
    }
}

/// The profile's ids, in either form that senders have.
#[derive(Debug)]
pub enum PartnerIds<'a> {
    /// Of the event's own partner number.
    OfEvent(Vec<Cow<'a, str>>),
    /// By partner number.
    ByNumber(Vec<(i64, Vec<Cow<'a, str>>)>),
}

/// `partnerIds`: an array of ids, or an object keyed by partner number whose values are an id or an array of ids.
pub fn partner_ids<'a>(field: Field<'a>) -> Result<PartnerIds<'a>, Rejection> {
    const SHAPE: &str = "partnerIds: expected an array of ids, or an object of them keyed by partner number";
    let Some(json) = present(field) else { return Ok(PartnerIds::OfEvent(Vec::new())) };
    if json.starts_with('[') {
        return Ok(PartnerIds::OfEvent(ids(json)?));
    }
    let Members(by_number) = serde_json::from_str::<Members<'a>>(json).map_err(|_| Rejection::unmappable(SHAPE))?;
    let by_number = by_number.into_iter().map(|(number, value)| {
        let number = decimal(&number).ok_or_else(|| Rejection::unmappable("partnerIds: a key is no partner number"))?;
        let ids = match present(Some(value)) {
            None => Vec::new(),
            Some(list) if list.starts_with('[') => ids(list)?,
            Some(one) => id(one)?.into_iter().collect(),
        };
        Ok((number, ids))
    });
    Ok(PartnerIds::ByNumber(by_number.collect::<Result<_, _>>()?))
}

fn ids(list: &str) -> Result<Vec<Cow<'_, str>>, Rejection> {
    let list: Vec<&RawValue> =
        serde_json::from_str(list).map_err(|_| Rejection::unmappable("partnerIds: expected an array of ids"))?;
    list.into_iter().filter_map(|one| id(one.get()).transpose()).collect()
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
