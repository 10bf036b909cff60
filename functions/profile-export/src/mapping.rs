//! Maps an exported profile to its messages: the same bytes, or the same bytes with fewer memberships.

use percent_encoding::utf8_percent_encode;
use serde_json::value::RawValue;
use shared::event_hubs::token::sas::ENCODED;
use shared::{Body, CloudEvent, Event, Kind, Mapped, Message, Rejection, canonical_digest, deterministic_id};

use crate::options::{Options, Split};
use crate::profile::{Membership, Namespace, Profile, Status};

pub const KIND: Kind<Options> = Kind { name: "profile-export", arrays: true, check: |_, _| Ok(()), map };

const EVENT_TYPE: &str = "com.adobe.experience.profile.exported";

/// Maximum size of the bodies of all messages of one profile, in bytes, so that they fit the function's memory.
const MAX_BYTES_OF_ALL_MESSAGES: usize = 8_000_000;

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    let (top, json) = event.read()?;
    let profile = Profile::of(&top)?;
    let passes = |membership: &Membership<'_>| {
        options.audiences.as_ref().is_none_or(|ids| ids.contains(membership.audience.as_ref()))
    };
    let all: usize = profile.namespaces.iter().map(|namespace| namespace.memberships.len()).sum();
    let passed: Vec<Passed<'_>> = profile
        .namespaces
        .iter()
        .map(|namespace| Passed {
            namespace,
            memberships: namespace.memberships.iter().filter(|one| passes(one)).collect(),
        })
        .filter(|passed| !passed.memberships.is_empty())
        .collect();
    let left: usize = passed.iter().map(|passed| passed.memberships.len()).sum();
    if all > 0 && left == 0 {
        return Ok(Mapped::filtered("no_named_audience"));
    }

    let subject = profile.subject(options.partition_by.as_ref());
    let source = format!("/profile-export/{}", utf8_percent_encode(event.flow, ENCODED));
    let message = |id: String, body: &str| {
        let event = CloudEvent { id, event_type: EVENT_TYPE, source: &source, time: None };
        Message::new(event, subject.clone().into(), Body::new(body))
    };
    let profile_id = canonical_digest(json);

    let memberships = || passed.iter().flat_map(|passed| &passed.memberships);
    let repeats = profile.membership_values.len();
    let beside = bytes_beside_memberships(json, &profile);
    let messages = match options.split {
        Split::Membership if left > 0 => {
            // Each message has brackets around its one namespace and its one membership.
            let bytes = passed.iter().map(|passed| {
                let texts = passed.memberships.iter().map(|one| one.text.len()).sum::<usize>();
                (passed.namespace.bytes_around() + 4) * passed.memberships.len() + texts
            });
            if too_large(left * beside, repeats, bytes.sum()) {
                return Err(Rejection::too_large(
                    "segmentMembership: one message per membership would make more than 8 MB",
                ));
            }
            let each = passed.iter().flat_map(|passed| passed.memberships.iter().map(|one| (passed.namespace, *one)));
            each.map(|(namespace, membership)| {
                let id = deterministic_id([profile_id.as_str(), &namespace.name, &membership.audience]);
                let alone = Passed { namespace, memberships: vec![membership] };
                message(id, &with_memberships(json, &profile, &reduced(&[alone])))
            })
            .collect()
        }
        _ if options.audiences.is_none() || all == 0 => vec![message(profile_id, json)],
        _ => {
            let reduced = reduced(&passed);
            if too_large(beside, repeats, reduced.len()) {
                return Err(Rejection::too_large("segmentMembership: its repetitions would make more than 8 MB"));
            }
            vec![message(profile_id, &with_memberships(json, &profile, &reduced))]
        }
    };
    let unknown = memberships().filter(|membership| membership.status == Status::Unknown);
    let notes = unknown.map(|_| "unknown_status").collect();
    Ok(Mapped { messages, notes })
}

/// Whether bodies with `beside` bytes in all beside their memberships, and `reduced` bytes of memberships in all for each place
/// of the member, are too large.
fn too_large(beside: usize, repeats: usize, reduced: usize) -> bool {
    reduced.saturating_mul(repeats).saturating_add(beside) > MAX_BYTES_OF_ALL_MESSAGES
}

/// Memberships of one namespace that go into a message.
struct Passed<'p> {
    namespace: &'p Namespace<'p>,
    memberships: Vec<&'p Membership<'p>>,
}

/// The value of `segmentMembership` with some of its memberships alone. What is kept keeps its bytes.
fn reduced(passed: &[Passed<'_>]) -> String {
    let namespaces: Vec<String> = passed
        .iter()
        .map(|Passed { namespace, memberships }| {
            let texts: Vec<&str> = memberships.iter().map(|membership| membership.text).collect();
            format!("{}{{{}}}{}", namespace.opening, texts.join(","), namespace.closing)
        })
        .collect();
    format!("{{{}}}", namespaces.join(","))
}

/// The profile with other memberships, in each place of a repeated member.
fn with_memberships(json: &str, profile: &Profile<'_>, reduced: &str) -> String {
    let mut out = String::with_capacity(bytes_beside_memberships(json, profile) + reduced.len());
    let mut copied = 0;
    for value in &profile.membership_values {
        let start = place_of(value, json);
        out.push_str(&json[copied..start]);
        out.push_str(reduced);
        copied = start + value.get().len();
    }
    out.push_str(&json[copied..]);
    out
}

/// What a message has beside its memberships.
fn bytes_beside_memberships(json: &str, profile: &Profile<'_>) -> usize {
    json.len() - profile.membership_values.iter().map(|value| value.get().len()).sum::<usize>()
}

/// Where a value stands in the text that it was borrowed from.
fn place_of(value: &RawValue, json: &str) -> usize {
    value.get().as_ptr() as usize - json.as_ptr() as usize
}
