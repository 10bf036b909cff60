//! From an exported profile to its messages: the same bytes, or the same bytes with fewer memberships.

use std::borrow::Cow;

use percent_encoding::utf8_percent_encode;
use serde_json::value::RawValue;
use shared::json::push_string;
use shared::sas::ENCODED;
use shared::{CloudEvent, Event, Kind, Mapped, Message, Rejection, deterministic_id, digest};

use crate::canonical::push_canonical;
use crate::options::{Options, Split};
use crate::profile::{Membership, Profile, Status};

pub const KIND: Kind<Options> = Kind { name: "profile-export", arrays: true, check: |_, _| Ok(()), map };

const EVENT_TYPE: &str = "com.adobe.experience.profile.exported";

/// What the messages of one profile may take, in bytes, so that they fit the function's memory.
const MAX_BYTES_OF_ALL_MEMBERSHIPS: usize = 8_000_000;

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    let profile = Profile::read(event.json)?;
    let passes = |membership: &Membership<'_>| {
        options.audiences.as_ref().is_none_or(|ids| ids.iter().any(|id| *id == membership.audience))
    };
    let all: usize = profile.namespaces.iter().map(|namespace| namespace.memberships.len()).sum();
    let passed: Vec<(&str, Vec<&Membership<'a>>)> = profile
        .namespaces
        .iter()
        .map(|namespace| (namespace.name.as_ref(), namespace.memberships.iter().filter(|one| passes(one)).collect()))
        .filter(|(_, memberships): &(_, Vec<_>)| !memberships.is_empty())
        .collect();
    let left: usize = passed.iter().map(|(_, memberships)| memberships.len()).sum();
    if all > 0 && left == 0 {
        return Ok(Mapped::filtered("no_named_audience"));
    }

    let subject = profile.subject(options.partition_by.as_deref().unwrap_or_default());
    let source = format!("/profile-export/{}", utf8_percent_encode(event.flow, ENCODED));
    let message = |id: String, body: Cow<'a, str>| {
        let event = CloudEvent { id, event_type: EVENT_TYPE, source: &source, time: None };
        Message::new(event, subject.clone().into(), body)
    };
    let mut canonical = Vec::with_capacity(event.json.len());
    push_canonical(&mut canonical, event.json);
    let profile_id = digest(&canonical);

    let messages = match options.split {
        Split::Membership if left > 0 => {
            let sizes = passed.iter().flat_map(|(_, memberships)| memberships).map(|one| one.value.get().len());
            let repeats = profile.membership_values.len();
            let bytes =
                bytes_beside_memberships(event.json, &profile).saturating_mul(left) + sizes.sum::<usize>() * repeats;
            if bytes > MAX_BYTES_OF_ALL_MEMBERSHIPS {
                return Err(Rejection::too_large(
                    "segmentMembership: one message per membership would make more than 8 MB",
                ));
            }
            let each =
                passed.iter().flat_map(|(namespace, memberships)| memberships.iter().map(|one| (*namespace, *one)));
            each.map(|(namespace, membership)| {
                let id = deterministic_id([profile_id.as_str(), namespace, &membership.audience]);
                message(id, with_memberships(event.json, &profile, &[(namespace, vec![membership])]).into())
            })
            .collect()
        }
        _ if left == all => vec![message(profile_id, event.json.into())],
        _ => vec![message(profile_id, with_memberships(event.json, &profile, &passed).into())],
    };
    let statuses = passed.iter().flat_map(|(_, memberships)| memberships).map(|membership| membership.status);
    let notes = statuses.filter(|status| *status == Status::Unknown).map(|_| "unknown_status").collect();
    Ok(Mapped { messages, notes })
}

/// The profile with `memberships` alone. Everything else keeps its bytes.
fn with_memberships(json: &str, profile: &Profile<'_>, memberships: &[(&str, Vec<&Membership<'_>>)]) -> String {
    let mut reduced = vec![b'{'];
    for (position, (namespace, memberships)) in memberships.iter().enumerate() {
        if position > 0 {
            reduced.push(b',');
        }
        push_string(&mut reduced, namespace);
        reduced.extend_from_slice(b":{");
        for (position, membership) in memberships.iter().enumerate() {
            if position > 0 {
                reduced.push(b',');
            }
            push_string(&mut reduced, &membership.audience);
            reduced.push(b':');
            reduced.extend_from_slice(membership.value.get().as_bytes());
        }
        reduced.push(b'}');
    }
    reduced.push(b'}');
    let mut out = Vec::with_capacity(bytes_beside_memberships(json, profile) + reduced.len());
    let mut copied = 0;
    for value in &profile.membership_values {
        let start = place_of(value, json);
        out.extend_from_slice(&json.as_bytes()[copied..start]);
        out.extend_from_slice(&reduced);
        copied = start + value.get().len();
    }
    out.extend_from_slice(&json.as_bytes()[copied..]);
    String::from_utf8(out).expect("whole JSON values in the place of others leave UTF-8")
}

/// What a message has beside its memberships.
fn bytes_beside_memberships(json: &str, profile: &Profile<'_>) -> usize {
    json.len() - profile.membership_values.iter().map(|value| value.get().len()).sum::<usize>()
}

/// Where a value stands in the text that it was borrowed from.
fn place_of(value: &RawValue, json: &str) -> usize {
    value.get().as_ptr() as usize - json.as_ptr() as usize
}
