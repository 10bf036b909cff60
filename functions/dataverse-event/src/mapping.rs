//! Maps a context to the message that Dataverse's own Event Hub endpoint would have written.

use std::borrow::Cow;

use percent_encoding::utf8_percent_encode;
use shared::event_hubs::token::sas::ENCODED;
use shared::{Body, CloudEvent, Event, Kind, Mapped, Message, Rejection, canonical_digest};

use crate::context::{Context, is_id};
use crate::options::{MessageFormat, Options, UserClaim};
use crate::trim::trimmed;
use crate::xml::{self, Members, Stop};

pub const KIND: Kind<Options> = Kind { name: "dataverse-event", arrays: false, check: Options::check, map };

/// Over this Dataverse's own endpoint removes members.
const DEFAULT_MAX_BYTES: usize = 192 * 1024;

/// Its presence says that members were removed; its value is not documented.
const TRIMMED_HEADER: &str = "x-ms-dynamics-msg-size-exceeded";

fn map<'a>(event: Event<'a>, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    let (members, json) = event.read()?;
    let context = Context::of(members)?;
    if !options.passes(&context) {
        return Ok(Mapped::filtered("no_step"));
    }
    let id = id(json, &context);
    let came_trimmed = context.came_trimmed(event.header(TRIMMED_HEADER).is_some());
    let limit = options.max_bytes.unwrap_or(DEFAULT_MAX_BYTES);
    if let Some(body) = body(json, &context, options, limit, Members::All)? {
        let message = message(&id, &context, options, &body, came_trimmed);
        if message.fits(event.max_bytes) {
            return Ok(Mapped { messages: vec![message], notes: Vec::new() });
        }
    }
    let body = body(json, &context, options, limit, Members::WithoutTrimmable)?.ok_or_else(|| {
        Rejection::too_large(format!("the message would be larger than {limit} bytes (`maxBytes`) even when trimmed"))
    })?;
    let message = message(&id, &context, options, &body, true);
    Ok(Mapped { messages: vec![message], notes: vec!["trimmed"] })
}

fn message<'a>(id: &str, context: &Context<'a>, options: &Options, body: &str, size_exceeded: bool) -> Message<'a> {
    let event_type = format!("com.microsoft.dataverse.{}", context.message.to_lowercase());
    let source = format!("/dataverse-event/{}", utf8_percent_encode(&context.organization, ENCODED));
    let time = context.time().and_then(|date| date.rfc3339());
    let cloud_event = CloudEvent {
        id: id.to_owned(),
        event_type: &event_type,
        source: source.trim_end_matches('/'),
        time: time.as_deref(),
    };
    let mut message = Message::new(cloud_event, context.subject(), Body::new(body));
    let asked = options.user_claim != UserClaim::None;
    for (claim, value) in [
        ("http://schemas.microsoft.com/xrm/2011/Claims/Organization", &context.organization),
        ("http://schemas.microsoft.com/xrm/2011/Claims/EntityLogicalName", &context.table),
        ("http://schemas.microsoft.com/xrm/2011/Claims/RequestName", &context.message),
        ("http://schemas.microsoft.com/xrm/2011/Claims/InitiatingUserAgent", &context.initiating_user_agent),
    ]
    .into_iter()
    .chain(
        [
            ("http://schemas.microsoft.com/xrm/2011/Claims/User", &context.user),
            ("http://schemas.microsoft.com/xrm/2011/Claims/InitiatingUser", &context.initiating_user),
        ]
        .into_iter()
        .filter(|_| asked),
    ) {
        if !value.is_empty() {
            message.properties.insert(claim, value.as_ref());
        }
    }
    if size_exceeded {
        message.properties.insert("http://schemas.microsoft.com/xrm/2011/Claims/MessageMaxSizeExceeded", true);
    }
    message
}

/// The outgoing body, unless it is larger than `limit`.
fn body<'a>(
    json: &'a str,
    context: &Context<'a>,
    options: &Options,
    limit: usize,
    members: Members,
) -> Result<Option<Cow<'a, str>>, Rejection> {
    let body = match (options.message_format, members) {
        (MessageFormat::Json, Members::All) => json.into(),
        (MessageFormat::Json, Members::WithoutTrimmable) => trimmed(json, &context.members).into(),
        (MessageFormat::Xml, members) => match xml::write(json, members, limit) {
            Ok(body) => body.into(),
            Err(Stop::TooLarge) => return Ok(None),
            Err(Stop::Unusable(detail)) => return Err(Rejection::unmappable(detail)),
        },
    };
    Ok(Some(body).filter(|body: &Cow<'_, str>| body.len() <= limit))
}

/// The id of the message: that of the system job if the context is asynchronous and names one, since the job belongs to this
/// event alone. A synchronous context names the request instead, which several events share, even events of one step and one
/// row (an update of ordinary columns and of the state runs the step twice): only the whole context distinguishes them. It is
/// taken as received, so the same delivery gets the same id whatever the options leave out.
fn id(json: &str, context: &Context<'_>) -> String {
    if context.asynchronous && is_id(&context.operation) {
        return context.operation.clone().into_owned();
    }
    canonical_digest(json)
}
