//! The members of a context that decide how it is mapped. Only MessageName and PrimaryEntityName are required.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashSet;

use serde_json::value::RawValue;
use shared::Rejection;
use shared::json::{Members, text};

use crate::trim::{always_has_parameters, lacks_trimmable};
use crate::value::{Date, Offset, ZERO_GUID, elements, pair};

/// Texts are empty where the context has none.
#[derive(Debug, Default)]
pub struct Context<'a> {
    pub message: Cow<'a, str>,
    pub table: Cow<'a, str>,
    pub row: Cow<'a, str>,
    pub organization: Cow<'a, str>,
    pub user: Cow<'a, str>,
    pub initiating_user: Cow<'a, str>,
    pub initiating_user_agent: Cow<'a, str>,
    pub asynchronous: bool,
    pub correlation: Cow<'a, str>,
    pub operation: Cow<'a, str>,
    /// The columns of `Target`; `None` without a Target, or with one that has no columns.
    pub columns: Option<Vec<(Cow<'a, str>, &'a str)>>,
    names_of_columns: OnceCell<Option<HashSet<String>>>,
    operation_created_on: Cow<'a, str>,
    pub members: Members<'a>,
}

impl<'a> Context<'a> {
    /// The context of these members.
    pub fn of(members: Members<'a>) -> Result<Self, Rejection> {
        let mut context = Self::default();
        let mut mode = None;
        // The last of several members with one name counts, as for most readers of JSON.
        for (name, value) in &members.0 {
            match name.as_ref() {
                "MessageName" => context.message = text_of("MessageName", value)?,
                "PrimaryEntityName" => context.table = text_of("PrimaryEntityName", value)?,
                "PrimaryEntityId" => context.row = text_of("PrimaryEntityId", value)?,
                "OrganizationName" => context.organization = text_of("OrganizationName", value)?,
                "UserId" => context.user = text_of("UserId", value)?,
                "InitiatingUserId" => context.initiating_user = text_of("InitiatingUserId", value)?,
                "InitiatingUserAgent" => context.initiating_user_agent = text_of("InitiatingUserAgent", value)?,
                "CorrelationId" => context.correlation = text_of("CorrelationId", value)?,
                "OperationId" => context.operation = text_of("OperationId", value)?,
                "OperationCreatedOn" => context.operation_created_on = text_of("OperationCreatedOn", value)?,
                "Mode" => mode = integer_of("Mode", value)?,
                "Depth" => drop(integer_of("Depth", value)?),
                "OwningExtension" => check_step(value)?,
                "InputParameters" => context.columns = columns_of_target(value)?,
                _ => {}
            }
        }
        for (name, text) in [("MessageName", &context.message), ("PrimaryEntityName", &context.table)] {
            if text.trim().is_empty() {
                return Err(Rejection::unmappable(format!("{name}: missing or empty")));
            }
        }
        context.asynchronous = mode == Some(1);
        context.members = members;
        Ok(context)
    }

    /// Whether Dataverse has removed members. `header` is whether the request said so; where the body has them all the
    /// same, it is believed.
    pub fn came_trimmed(&self, header: bool) -> bool {
        lacks_trimmable(&self.members) && (header || always_has_parameters(&self.message))
    }

    /// The row; where there is none, the chain of events.
    pub fn subject(&self) -> Cow<'a, str> {
        [&self.row, &self.correlation].into_iter().find(|id| is_id(id)).cloned().unwrap_or_default()
    }

    /// The names of `columns` in lower case, in a set that is built once for all steps that look at them.
    pub fn names_of_columns(&self) -> Option<&HashSet<String>> {
        let names = || Some(self.columns.as_ref()?.iter().map(|(name, _)| name.to_ascii_lowercase()).collect());
        self.names_of_columns.get_or_init(names).as_ref()
    }

    /// When it happened. OperationCreatedOn with an offset may be a local clock (or one labelled so), and is not trusted.
    pub fn time(&self) -> Option<Date> {
        let column = |wanted: &str| {
            let (_, value) = self.columns.as_ref()?.iter().rev().find(|(name, _)| name == wanted)?;
            Date::parse(&text(value)?)
        };
        let created = || Date::parse(&self.operation_created_on).filter(|date| date.offset != Offset::Other);
        column("modifiedon").or_else(|| column("createdon")).or_else(created)
    }
}

/// An id that names something.
pub fn is_id(id: &str) -> bool {
    !id.trim().is_empty() && id != ZERO_GUID
}

fn text_of<'a>(name: &'static str, value: &'a RawValue) -> Result<Cow<'a, str>, Rejection> {
    match value.get() {
        "null" => Ok(Cow::Borrowed("")),
        json => text(json).ok_or_else(|| Rejection::unmappable(format!("{name}: expected text"))),
    }
}

fn integer_of(name: &'static str, value: &RawValue) -> Result<Option<i64>, Rejection> {
    match value.get() {
        "null" => Ok(None),
        json => json.parse().map(Some).map_err(|_| Rejection::unmappable(format!("{name}: expected an integer"))),
    }
}

/// A step is null, or an object with an id that is text.
fn check_step(value: &RawValue) -> Result<(), Rejection> {
    if value.get() == "null" {
        return Ok(());
    }
    let Members(members) = serde_json::from_str::<Members<'_>>(value.get())
        .map_err(|_| Rejection::unmappable("OwningExtension: expected an object"))?;
    match members.into_iter().rev().find(|(name, _)| name == "Id") {
        Some((_, id)) => text_of("OwningExtension.Id", id).map(drop),
        None => Ok(()),
    }
}

type Pairs<'a> = Vec<(Cow<'a, str>, &'a str)>;

fn columns_of_target(parameters: &RawValue) -> Result<Option<Pairs<'_>>, Rejection> {
    if parameters.get() == "null" {
        return Ok(None);
    }
    let parameters = pairs("InputParameters", parameters.get())?;
    let Some((place, (_, target))) = parameters.iter().enumerate().rev().find(|(_, (key, _))| key == "Target") else {
        return Ok(None);
    };
    // A Target may be anything (an EntityReference, a custom action's own type): only one with columns is of use.
    let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(target) else { return Ok(None) };
    match members.into_iter().rev().find(|(name, _)| name == "Attributes") {
        Some((_, columns)) if columns.get() != "null" => {
            pairs(&format!("InputParameters[{place}].value.Attributes"), columns.get()).map(Some)
        }
        _ => Ok(None),
    }
}

fn pairs<'a>(place: &str, json: &'a str) -> Result<Pairs<'a>, Rejection> {
    let elements = elements(json)
        .ok_or_else(|| Rejection::unmappable(format!("{place}: expected an array of keys and values")))?;
    elements
        .into_iter()
        .enumerate()
        .map(|(at, element)| match pair(element.get()) {
            Some((Some(key), value)) if let Some(key) = text(key) => Ok((key, value.unwrap_or("null"))),
            _ => Err(Rejection::unmappable(format!("{place}[{at}]: expected an object with a key and a value"))),
        })
        .collect()
}
