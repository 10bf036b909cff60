//! The two maps of an exported profile; everything else passes through unread.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;
use shared::Rejection;
use shared::json::{Members, member_texts, text};

use crate::options::Ranks;

/// A profile as far as it is looked at.
#[derive(Debug)]
pub struct Profile<'a> {
    /// The values of `segmentMembership`: one, or as many as the member is repeated, of which the last counts.
    pub membership_values: Vec<&'a RawValue>,
    pub namespaces: Vec<Namespace<'a>>,
    pub identities: Vec<Identities<'a>>,
}

/// The audiences of one namespace.
#[derive(Debug)]
pub struct Namespace<'a> {
    pub name: Cow<'a, str>,
    /// What stands in the body before its audiences, and behind them.
    pub opening: &'a str,
    pub closing: &'a str,
    pub memberships: Vec<Membership<'a>>,
}

impl Namespace<'_> {
    /// What its audiences stand between, in bytes.
    pub fn bytes_around(&self) -> usize {
        self.opening.len() + self.closing.len()
    }
}

/// The identities of one namespace; there may be none.
#[derive(Debug)]
pub struct Identities<'a> {
    pub namespace: Cow<'a, str>,
    pub ids: Vec<Cow<'a, str>>,
}

/// One audience that the profile is or was in.
#[derive(Debug)]
pub struct Membership<'a> {
    pub audience: Cow<'a, str>,
    /// The whole member as it stands in the body.
    pub text: &'a str,
    pub status: Status,
}

/// What a membership says. What it means to have `realized` one is the consumer's to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Realized,
    Existing,
    Exited,
    /// Passed on, and counted.
    Unknown,
}

const MEMBERSHIP: &str = "segmentMembership";
const IDENTITY: &str = "identityMap";

impl<'a> Profile<'a> {
    /// Reads both maps of an event's members. One of them may be missing; without both it is not a profile.
    pub fn of(top: &Members<'a>) -> Result<Self, Rejection> {
        let values = |name: &str| -> Vec<&'a RawValue> {
            top.0.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect()
        };
        let (membership_values, identity_values) = (values(MEMBERSHIP), values(IDENTITY));
        if membership_values.is_empty() && identity_values.is_empty() {
            return Err(Rejection::unmappable(
                "segmentMembership and identityMap are both missing; expected a profile",
            ));
        }
        let mut profile = Self { membership_values, namespaces: Vec::new(), identities: Vec::new() };
        if let Some(namespaces) = profile.membership_values.last() {
            profile.namespaces = memberships(namespaces)?;
        }
        if let Some(namespaces) = identity_values.last() {
            profile.identities = identities(namespaces)?;
        }
        Ok(profile)
    }

    /// `namespace:id` of the preferred identity, whatever the order of the body's members; empty when there is none.
    pub fn subject(&self, preferred: Option<&Ranks>) -> String {
        let with_ids = || self.identities.iter().filter(|identities| !identities.ids.is_empty());
        // The smallest spelling of a namespace counts if there are several, and its first id.
        let by_rank = |ranks: &Ranks| {
            with_ids()
                .filter_map(|identities| {
                    let rank = ranks.get(&identities.namespace.to_ascii_lowercase())?;
                    Some((rank, &identities.namespace, identities.ids.first()?))
                })
                .min_by(|(rank, namespace, _), (other, spelling, _)| (rank, namespace).cmp(&(other, spelling)))
                .map(|(_, namespace, id)| format!("{namespace}:{id}"))
        };
        let smallest =
            || with_ids().filter_map(|one| Some(format!("{}:{}", one.namespace, one.ids.iter().min()?))).min();
        preferred.and_then(by_rank).or_else(smallest).unwrap_or_default()
    }
}

fn memberships<'a>(namespaces: &'a RawValue) -> Result<Vec<Namespace<'a>>, Rejection> {
    let namespaces = object(namespaces, &|| MEMBERSHIP.to_owned())?;
    namespaces
        .into_iter()
        .map(|namespace| {
            let place = || format!("{MEMBERSHIP}.{}", shown(&namespace.name));
            let read = object(namespace.value, &place)?.into_iter().map(|audience| {
                let place = || format!("{}.{}", place(), shown(&audience.name));
                let members = object(audience.value, &place)?;
                let status = match members.iter().find(|member| member.name == "status") {
                    None => Status::Unknown,
                    Some(status) => match text(status.value.get()).as_deref() {
                        Some("realized") => Status::Realized,
                        Some("existing") => Status::Existing,
                        Some("exited") => Status::Exited,
                        Some(_) => Status::Unknown,
                        None => return Err(Rejection::unmappable(format!("{}.status: expected text", place()))),
                    },
                };
                Ok(Membership { audience: audience.name, text: audience.text, status })
            });
            let memberships = read.collect::<Result<Vec<_>, Rejection>>()?;
            let (opening, closing) = namespace.around_value();
            Ok(Namespace { opening, closing, name: namespace.name, memberships })
        })
        .collect()
}

fn identities<'a>(namespaces: &'a RawValue) -> Result<Vec<Identities<'a>>, Rejection> {
    let namespaces = object(namespaces, &|| IDENTITY.to_owned())?;
    let read = namespaces.into_iter().map(|Member { name: namespace, value: items, .. }| {
        let place = || format!("{IDENTITY}.{}", shown(&namespace));
        let items: Vec<&'a RawValue> = serde_json::from_str(items.get())
            .map_err(|_| Rejection::unmappable(format!("{}: expected an array of identities", place())))?;
        let ids = items.into_iter().enumerate().map(|(position, item)| {
            let members = object(item, &|| format!("{}[{position}]", place()))?;
            let id = members.iter().find(|member| member.name == "id").and_then(|id| text(id.value.get()));
            id.ok_or_else(|| Rejection::unmappable(format!("{}[{position}].id: expected text", place())))
        });
        let ids = ids.collect::<Result<_, _>>()?;
        Ok(Identities { namespace, ids })
    });
    read.collect()
}

/// A member and how it stands in the body.
struct Member<'a> {
    name: Cow<'a, str>,
    value: &'a RawValue,
    text: &'a str,
}

impl<'a> Member<'a> {
    /// What stands before the value and behind it.
    fn around_value(&self) -> (&'a str, &'a str) {
        let (opening, rest) = self.text.split_at(self.value.get().as_ptr() as usize - self.text.as_ptr() as usize);
        (opening, &rest[self.value.get().len()..])
    }
}

/// The members of an object. A repeated name keeps its last value, as in the id.
fn object<'a>(json: &'a RawValue, place: &dyn Fn() -> String) -> Result<Vec<Member<'a>>, Rejection> {
    let members = serde_json::from_str::<Members<'a>>(json.get())
        .map_err(|_| Rejection::unmappable(format!("{}: expected an object", place())))?;
    let texts = member_texts(json.get(), &members);
    if members.are_few_and_distinct() {
        let members = members.0.into_iter().zip(texts);
        return Ok(members.map(|((name, value), text)| Member { name, value, text }).collect());
    }
    let mut seen = HashSet::with_capacity(texts.len());
    let mut last: Vec<Member<'a>> = members
        .0
        .into_iter()
        .zip(texts)
        .rev()
        .filter(|((name, _), _)| seen.insert(name.clone()))
        .map(|((name, value), text)| Member { name, value, text })
        .collect();
    last.reverse();
    Ok(last)
}

/// A member's name as an error may show it: codes and ids as they are, other text not at all, since it may be personal.
fn shown(name: &str) -> &str {
    let is_code = name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if is_code { name } else { "…" }
}
