//! Maps an event of Data Activation to the messages that the product's own Azure connector documents: compact JSON, all eleven
//! fields, in order, one message for each partner id.
//!
//! This event:
//!
//! ```json
//! {"profileId": "p-1", "sourceId": "dc0beb89", "partnerNumber": 7, "callType": "NEW", "partnerIds": ["a", "b"],
//!  "profileVars": {}, "timestamp": 1714557600000, "siteNumber": "12", "sourceName": "Buyers", "data": {}}
//! ```
//!
//! becomes two messages, for `a` and `b`, of subject `p-1`. The first one's body:
//!
//! ```json
//! {"profileId":"p-1","sourceId":"dc0beb89","partnerNumber":7,"callType":"NEW","partnerIds":["a"],"profileVars":{},
//!  "timestamp":1714557600000,"siteNumber":12,"sourceName":"Buyers","sourceNumber":null,"data":{}}
//! ```
//!
//! `map` has three steps: [`Change::read`] reads the fields, [`ids`] chooses the ids, [`Change::messages`] builds the messages.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use percent_encoding::utf8_percent_encode;
use serde_json::value::RawValue;
use shared::event_hubs::token::sas::ENCODED;
use shared::json::{Members, Object, escaped_len};
use shared::{Body, CloudEvent, Event, JsonWriter, Kind, Mapped, Message, Rejection, deterministic_id, rfc3339};

use crate::event::{CallType, Fields, PartnerIds, required};
use crate::options::{OWN_PARTNER_NUMBER, Options};

pub const KIND: Kind<Options> = Kind { name: "audience-change", arrays: true, check: |_, _| Ok(()), map };

/// Number of milliseconds below which a timestamp may be in seconds, from a hand-made template. It is sent unchanged, and counted.
const PROBABLY_SECONDS: i64 = 100_000_000_000;

/// Maximum size of the bodies of all messages of one event, in bytes, so that they fit the function's memory.
const MAX_BYTES_OF_ALL_IDS: usize = 8_000_000;

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    let (fields, json): (Fields<'a>, _) = event.read()?;
    let change = Change::read(fields, options)?;
    if change.ids.is_empty() {
        return Ok(Mapped::filtered("no_id_of_partner_number"));
    }
    let messages = change.messages(json.len())?;
    let notes = if change.timestamp < PROBABLY_SECONDS { vec!["timestamp_may_be_seconds"] } else { Vec::new() };
    Ok(Mapped { messages, notes })
}

/// An event with what the options add.
struct Change<'a> {
    profile_id: Cow<'a, str>,
    source_id: Cow<'a, str>,
    partner_number: i64,
    call_type: CallType,
    /// The ids of that partner number; each becomes a message.
    ids: Vec<Cow<'a, str>>,
    profile_vars: Members<'a>,
    /// Milliseconds since 1970.
    timestamp: i64,
    site_number: i64,
    source_name: Cow<'a, str>,
    /// `None` for an audience; a journey has one.
    source_number: Option<i64>,
    data: Members<'a>,
}

impl<'a> Change<'a> {
    /// Reads the fields of an event, and adds what the options say about its source.
    fn read(fields: Fields<'a>, options: &'a Options) -> Result<Self, Rejection> {
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
        let ids = ids(fields.partner_ids.partner_ids()?, event_number, partner_number);
        Ok(Self {
            profile_id,
            source_id,
            partner_number,
            call_type,
            ids,
            profile_vars,
            timestamp,
            site_number,
            source_name,
            source_number,
            data,
        })
    }

    /// One message for each id. Takes the length of the event, from which the capacity of a body is estimated.
    fn messages(&self, event_len: usize) -> Result<Vec<Message<'a>>, Rejection> {
        let mut digits = [itoa::Buffer::new(); 3];
        let [partner, time, site] = &mut digits;
        let numbers = Numbers {
            partner: partner.format(self.partner_number),
            timestamp: time.format(self.timestamp),
            site: site.format(self.site_number),
        };
        let event_type = self.call_type.event_type(self.source_number.is_some());
        let mut source = String::with_capacity(64);
        source.extend(["/audience-change/", numbers.site, "/"]);
        source.extend(utf8_percent_encode(&self.source_id, ENCODED));
        let time = rfc3339(self.timestamp);
        // One body for each id, equal but for the id: their sizes are known before they are written.
        let mut capacity = event_len * 3 / 2;
        if self.ids.len() > 1 {
            let without_id = self.body("", numbers, 0);
            let all_ids = self.ids.iter().map(|id| escaped_len(id)).sum::<usize>();
            let size = without_id.to_text().len().saturating_mul(self.ids.len()).saturating_add(all_ids);
            if size > MAX_BYTES_OF_ALL_IDS {
                return Err(Rejection::too_large("partnerIds: the messages of all ids would be larger than 8 MB"));
            }
            capacity = without_id.len();
        }
        let message = |partner_id: &Cow<'a, str>| {
            let id = deterministic_id([
                numbers.site,
                &self.source_id,
                &self.profile_id,
                numbers.partner,
                partner_id,
                self.call_type.as_str(),
                numbers.timestamp,
            ]);
            let attributes = CloudEvent { id, event_type, source: &source, time: time.as_deref() };
            let body = self.body(partner_id, numbers, capacity + 2 * partner_id.len());
            Message::new(attributes, self.profile_id.clone(), body)
        };
        Ok(self.ids.iter().map(message).collect())
    }

    /// The documented message for one id.
    fn body(&self, partner_id: &str, numbers: Numbers<'_>, capacity: usize) -> Body {
        Body::of_json(capacity, |out| {
            out.escaped(r#"{\"profileId\":"#);
            out.string(&self.profile_id);
            out.escaped(r#",\"sourceId\":"#);
            out.string(&self.source_id);
            out.escaped(r#",\"partnerNumber\":"#);
            out.escaped(numbers.partner);
            out.escaped(r#",\"callType\":"#);
            out.string(self.call_type.as_str());
            out.escaped(r#",\"partnerIds\":["#);
            out.string(partner_id);
            out.escaped(r#"],\"profileVars\":"#);
            write_members(out, &self.profile_vars);
            out.escaped(r#",\"timestamp\":"#);
            out.escaped(numbers.timestamp);
            out.escaped(r#",\"siteNumber\":"#);
            out.escaped(numbers.site);
            out.escaped(r#",\"sourceName\":"#);
            out.string(&self.source_name);
            out.escaped(r#",\"sourceNumber\":"#);
            match self.source_number {
                Some(number) => out.escaped(&number.to_string()),
                None => out.escaped("null"),
            }
            out.escaped(r#",\"data\":"#);
            write_members(out, &self.data);
            out.escaped("}");
        })
    }
}

/// Numbers of an event as text: each is written several times.
#[derive(Clone, Copy)]
struct Numbers<'n> {
    partner: &'n str,
    timestamp: &'n str,
    site: &'n str,
}

/// The ids to send: those of `partner_number`, if it is not the product's own. A plain list has the event's own number.
fn ids<'a>(ids: PartnerIds<'a>, event_number: Option<i64>, partner_number: i64) -> Vec<Cow<'a, str>> {
    match ids {
        _ if partner_number == OWN_PARTNER_NUMBER => Vec::new(),
        PartnerIds::OfEvent(_) if event_number.is_some_and(|number| number != partner_number) => Vec::new(),
        PartnerIds::OfEvent(ids) => ids,
        PartnerIds::ByNumber(lists) => {
            lists.into_iter().filter(|(number, _)| *number == partner_number).flat_map(|(_, ids)| ids).collect()
        }
    }
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

/// Writes an object whose values keep their bytes.
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
