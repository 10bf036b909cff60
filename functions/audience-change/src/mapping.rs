//! From the event to the messages that the product's Azure connector documents: compact JSON, all eleven fields, in order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use percent_encoding::utf8_percent_encode;
use serde_json::value::RawValue;
use shared::json::{Members, Object, explain, push_string};
use shared::sas::ENCODED;
use shared::{CloudEvent, Event, Kind, Mapped, Message, Rejection, deterministic_id};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};

use crate::event::{self, CallType, Fields, PartnerIds, required};
use crate::options::{OWN_PARTNER_NUMBER, Options};

pub const KIND: Kind<Options> = Kind { name: "audience-change", arrays: true, check: |_, _| Ok(()), map };

/// Milliseconds below this may be seconds from a hand-made template: kept as sent, and counted.
const PROBABLY_SECONDS: i64 = 100_000_000_000;

/// What the messages of one event may take, in bytes, so that they fit the function's memory.
const MAX_BYTES_OF_ALL_IDS: usize = 8_000_000;

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    if !event.json.starts_with('{') {
        return Err(Rejection::unmappable("expected a JSON object"));
    }
    let fields: Fields<'a> =
        serde_json::from_str(event.json).map_err(|error| Rejection::unmappable(explain(&error)))?;
    let profile_id = required("profileId", event::text("profileId", fields.profile_id)?)?;
    let source_id = required("sourceId", event::text("sourceId", fields.source_id)?)?;
    let call_type = required("callType", event::call_type(fields.call_type)?.or(options.default_call_type))?;
    let timestamp = required("timestamp", event::integer("timestamp", fields.timestamp)?)?;
    let site_number = required("siteNumber", event::integer("siteNumber", fields.site_number)?)?;
    let event_number = event::integer("partnerNumber", fields.partner_number)?;
    let partner_number = required("partnerNumber", options.partner_number.or(event_number))?;
    let source_number = event::integer("sourceNumber", fields.source_number)?.filter(|number| *number != 0);
    let source = options.sources.get(source_id.as_ref()).map(|Object(source)| source);
    let source_name = event::text("sourceName", fields.source_name)?
        .or_else(|| source.and_then(|source| source.source_name.as_deref()).map(Cow::from))
        .or_else(|| options.source_name.as_deref().map(Cow::from))
        .unwrap_or_default();
    let mut profile_vars = event::members("profileVars", fields.profile_vars)?;
    if let Some(names) = &options.profile_vars {
        profile_vars.0.retain(|(name, _)| names.iter().any(|passed| passed == name));
    }
    let configured = options.data.iter().chain(source.iter().flat_map(|source| &source.data));
    let data = merged(configured, event::members("data", fields.data)?);

    let ids = match event::partner_ids(fields.partner_ids)? {
        _ if partner_number == OWN_PARTNER_NUMBER => Vec::new(),
        PartnerIds::OfEvent(_) if event_number.is_some_and(|number| number != partner_number) => Vec::new(),
        PartnerIds::OfEvent(ids) => ids,
        PartnerIds::ByNumber(lists) => {
            lists.into_iter().filter(|(number, _)| *number == partner_number).flat_map(|(_, ids)| ids).collect()
        }
    };
    if ids.is_empty() {
        return Ok(Mapped::filtered("no_id_of_partner_number"));
    }

    // Each id makes a message with the whole body.
    if ids.len().saturating_mul(event.json.len()) > MAX_BYTES_OF_ALL_IDS {
        return Err(Rejection::too_large("partnerIds: the messages of all ids would be larger than 8 MB"));
    }

    let origin = if source_number.is_some() { "audience" } else { "journey" };
    let event_type = format!("com.supermetrics.dataactivation.{origin}.{}", call_type.in_event_type());
    let ce_source = format!("/audience-change/{site_number}/{}", utf8_percent_encode(&source_id, ENCODED));
    let time = rfc3339(timestamp);
    let [partner_text, timestamp_text, site_text] = [partner_number, timestamp, site_number].map(|n| n.to_string());
    let messages = ids.into_iter().map(|partner_id| {
        let id = deterministic_id([
            site_text.as_str(),
            &source_id,
            &profile_id,
            &partner_text,
            &partner_id,
            call_type.as_str(),
            &timestamp_text,
        ]);
        let body = Body {
            profile_id: &profile_id,
            source_id: &source_id,
            partner_number: &partner_text,
            call_type,
            partner_id: &partner_id,
            profile_vars: &profile_vars,
            timestamp: &timestamp_text,
            site_number: &site_text,
            source_name: &source_name,
            source_number,
            data: &data,
        };
        let event = CloudEvent { id, event_type: &event_type, source: &ce_source, time: time.as_deref() };
        Message::new(event, profile_id.clone(), body.to_json())
    });
    let messages = messages.collect();
    let notes = if timestamp < PROBABLY_SECONDS { vec!["timestamp_may_be_seconds"] } else { Vec::new() };
    Ok(Mapped { messages, notes })
}

/// The configured members and the event's own; a later one takes the place of an earlier one of its name.
fn merged<'a>(configured: impl Iterator<Item = (&'a String, &'a Box<RawValue>)>, own: Members<'a>) -> Members<'a> {
    let configured = configured.map(|(name, value)| (Cow::from(name), value.as_ref()));
    let mut members: Vec<(Cow<'a, str>, &'a RawValue)> = Vec::with_capacity(own.0.len());
    let mut places: HashMap<Cow<'a, str>, usize> = HashMap::with_capacity(own.0.len());
    for (name, value) in configured.chain(own.0) {
        match places.entry(name) {
            Entry::Occupied(place) => members[*place.get()].1 = value,
            Entry::Vacant(place) => {
                members.push((place.key().clone(), value));
                place.insert(members.len() - 1);
            }
        }
    }
    Members(members)
}

/// The form of ISO 8601 that RFC 3339 is, with three digits of fraction.
const MILLISECONDS: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: std::num::NonZeroU8::new(3) }).encode();

/// RFC 3339 in UTC with milliseconds; `None` for years that it can't spell.
fn rfc3339(milliseconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()?;
    time.format(&Iso8601::<MILLISECONDS>).ok()
}

/// The documented message.
struct Body<'m> {
    profile_id: &'m str,
    source_id: &'m str,
    partner_number: &'m str,
    call_type: CallType,
    partner_id: &'m str,
    profile_vars: &'m Members<'m>,
    timestamp: &'m str,
    site_number: &'m str,
    source_name: &'m str,
    source_number: Option<i64>,
    data: &'m Members<'m>,
}

impl Body<'_> {
    fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"{\"profileId\":");
        push_string(&mut out, self.profile_id);
        out.extend_from_slice(b",\"sourceId\":");
        push_string(&mut out, self.source_id);
        out.extend_from_slice(b",\"partnerNumber\":");
        out.extend_from_slice(self.partner_number.as_bytes());
        out.extend_from_slice(b",\"callType\":");
        push_string(&mut out, self.call_type.as_str());
        out.extend_from_slice(b",\"partnerIds\":[");
        push_string(&mut out, self.partner_id);
        out.extend_from_slice(b"],\"profileVars\":");
        push_members(&mut out, self.profile_vars);
        out.extend_from_slice(b",\"timestamp\":");
        out.extend_from_slice(self.timestamp.as_bytes());
        out.extend_from_slice(b",\"siteNumber\":");
        out.extend_from_slice(self.site_number.as_bytes());
        out.extend_from_slice(b",\"sourceName\":");
        push_string(&mut out, self.source_name);
        out.extend_from_slice(b",\"sourceNumber\":");
        match self.source_number {
            Some(number) => out.extend_from_slice(number.to_string().as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"data\":");
        push_members(&mut out, self.data);
        out.push(b'}');
        String::from_utf8(out).expect("JSON built from text is UTF-8")
    }
}

/// Values keep their bytes.
fn push_members(out: &mut Vec<u8>, members: &Members<'_>) {
    out.push(b'{');
    for (position, (name, value)) in members.0.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        push_string(out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
}
