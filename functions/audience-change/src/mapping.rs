//! From the event to the messages that the product's Azure connector documents: compact JSON, all eleven fields, in order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use percent_encoding::utf8_percent_encode;
use serde_json::value::RawValue;
use shared::event_hubs::token::sas::ENCODED;
use shared::json::{Members, Object, escaped_len, explain, unreadable_place};
use shared::{Body, CloudEvent, Event, JsonWriter, Kind, Mapped, Message, Rejection, deterministic_id, rfc3339};

use crate::event::{CallType, Fields, PartnerIds, required};
use crate::options::{OWN_PARTNER_NUMBER, Options};

pub const KIND: Kind<Options> = Kind { name: "audience-change", arrays: true, check: |_, _| Ok(()), map };

/// Milliseconds below this may be seconds from a hand-made template: kept as sent, and counted.
const PROBABLY_SECONDS: i64 = 100_000_000_000;

/// Maximum size of the bodies of all messages of one event, in bytes, so that they fit the function's memory.
const MAX_BYTES_OF_ALL_IDS: usize = 8_000_000;

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    if !event.json.starts_with('{') {
        return Err(Rejection::unmappable("expected a JSON object"));
    }
    let fields: Fields<'a> = serde_json::from_str(event.json).map_err(|error| {
        Rejection::unmappable(match unreadable_place::<Fields<'_>>(event.json) {
            Some(place) if !error.is_data() => format!("{place}: a value that can't be read"),
            _ => explain(&error),
        })
    })?;
    let profile_id = required("profileId", fields.profile_id.text("profileId")?)?;
    let source_id = required("sourceId", fields.source_id.text("sourceId")?)?;
    let call_type = required("callType", fields.call_type.call_type()?.or(options.default_call_type))?;
    let timestamp = required("timestamp", fields.timestamp.integer("timestamp")?)?;
    let site_number = required("siteNumber", fields.site_number.integer("siteNumber")?)?;
    let event_number = fields.partner_number.integer("partnerNumber")?;
    let partner_number = required("partnerNumber", options.partner_number.or(event_number))?;
    let source_number = fields.source_number.integer("sourceNumber")?.filter(|number| *number != 0);
    let source = options.sources.get(source_id.as_ref()).map(|Object(source)| source);
    let source_name = fields
        .source_name
        .text("sourceName")?
        .or_else(|| source.and_then(|source| source.source_name.as_deref()).map(Cow::from))
        .or_else(|| options.source_name.as_deref().map(Cow::from))
        .unwrap_or_default();
    let mut profile_vars = fields.profile_vars.members("profileVars")?;
    if let Some(names) = &options.profile_vars {
        profile_vars.0.retain(|(name, _)| names.contains(name.as_ref()));
    }
    let configured = options.data.iter().chain(source.iter().flat_map(|source| &source.data));
    let data = merged(configured, fields.data.members("data")?);

    let ids = match fields.partner_ids.partner_ids()? {
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

    let event_type = call_type.event_type(source_number.is_some());
    let mut digits = [itoa::Buffer::new(); 3];
    let [partner_text, timestamp_text, site_text] = {
        let [partner, time, site] = &mut digits;
        [partner.format(partner_number), time.format(timestamp), site.format(site_number)]
    };
    let mut ce_source = String::with_capacity(64);
    ce_source.extend(["/audience-change/", site_text, "/"]);
    ce_source.extend(utf8_percent_encode(&source_id, ENCODED));
    let time = rfc3339(timestamp);
    let body_with = |partner_id: &str, capacity: usize| {
        let body = Documented {
            profile_id: &profile_id,
            source_id: &source_id,
            partner_number: partner_text,
            call_type,
            partner_id,
            profile_vars: &profile_vars,
            timestamp: timestamp_text,
            site_number: site_text,
            source_name: &source_name,
            source_number,
            data: &data,
        };
        Body::of_json(capacity, |out| body.write(out))
    };
    // One body for each id, equal but for the id: their sizes are known before they are made.
    let mut capacity = event.json.len() * 3 / 2;
    if ids.len() > 1 {
        let without_id = body_with("", 0);
        let ids_of_all = ids.iter().map(|id| escaped_len(id)).sum::<usize>();
        if without_id.to_text().len().saturating_mul(ids.len()).saturating_add(ids_of_all) > MAX_BYTES_OF_ALL_IDS {
            return Err(Rejection::too_large("partnerIds: the messages of all ids would be larger than 8 MB"));
        }
        capacity = without_id.len();
    }
    let messages = ids.into_iter().map(|partner_id| {
        let id = deterministic_id([
            site_text,
            &source_id,
            &profile_id,
            partner_text,
            &partner_id,
            call_type.as_str(),
            timestamp_text,
        ]);
        let attributes = CloudEvent { id, event_type, source: &ce_source, time: time.as_deref() };
        let body = body_with(&partner_id, capacity + 2 * partner_id.len());
        Message::new(attributes, profile_id.clone(), body)
    });
    let messages = messages.collect();
    let notes = if timestamp < PROBABLY_SECONDS { vec!["timestamp_may_be_seconds"] } else { Vec::new() };
    Ok(Mapped { messages, notes })
}

/// The configured members and the event's own; a later one takes the place of an earlier one of its name.
fn merged<'a>(configured: impl Iterator<Item = (&'a String, &'a Box<RawValue>)>, own: Members<'a>) -> Members<'a> {
    let mut configured = configured.map(|(name, value)| (Cow::from(name), value.as_ref())).peekable();
    if configured.peek().is_none() && own.are_few_and_distinct() {
        return own;
    }
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

/// The documented message.
struct Documented<'m> {
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

impl Documented<'_> {
    fn write(&self, out: &mut JsonWriter<'_>) {
        out.escaped(r#"{\"profileId\":"#);
        out.string(self.profile_id);
        out.escaped(r#",\"sourceId\":"#);
        out.string(self.source_id);
        out.escaped(r#",\"partnerNumber\":"#);
        out.escaped(self.partner_number);
        out.escaped(r#",\"callType\":"#);
        out.string(self.call_type.as_str());
        out.escaped(r#",\"partnerIds\":["#);
        out.string(self.partner_id);
        out.escaped(r#"],\"profileVars\":"#);
        write_members(out, self.profile_vars);
        out.escaped(r#",\"timestamp\":"#);
        out.escaped(self.timestamp);
        out.escaped(r#",\"siteNumber\":"#);
        out.escaped(self.site_number);
        out.escaped(r#",\"sourceName\":"#);
        out.string(self.source_name);
        out.escaped(r#",\"sourceNumber\":"#);
        match self.source_number {
            Some(number) => out.escaped(&number.to_string()),
            None => out.escaped("null"),
        }
        out.escaped(r#",\"data\":"#);
        write_members(out, self.data);
        out.escaped("}");
    }
}

/// Values keep their bytes.
fn write_members(out: &mut JsonWriter<'_>, members: &Members<'_>) {
    out.escaped("{");
    for (position, (name, value)) in members.0.iter().enumerate() {
        if position > 0 {
            out.escaped(",");
        }
        out.string(name);
        out.escaped(":");
        out.json(value.get());
    }
    out.escaped("}");
}
