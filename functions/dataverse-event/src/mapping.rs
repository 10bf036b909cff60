//! From the context to the message that Dataverse's own Event Hub endpoint would have written.

use std::borrow::Cow;

use percent_encoding::utf8_percent_encode;
use shared::sas::ENCODED;
use shared::{CloudEvent, Event, Kind, Mapped, Message, Rejection, deterministic_id};

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
    let context = Context::read(event.json)?;
    if !options.passes(&context) {
        return Ok(Mapped::filtered("no_step"));
    }
    let (body, trimmed) = body(event.json, &context, options)?;
    let size_exceeded = trimmed || context.came_trimmed(event.header(TRIMMED_HEADER).is_some());

    let event_type = format!("com.microsoft.dataverse.{}", context.message.to_lowercase());
    let source = format!("/dataverse-event/{}", utf8_percent_encode(&context.organization, ENCODED));
    let time = context.time().map(|date| date.rfc3339());
    let cloud_event = CloudEvent {
        id: id(&context),
        event_type: &event_type,
        source: source.trim_end_matches('/'),
        time: time.as_deref(),
    };
    let mut message = Message::new(cloud_event, context.subject(), body);
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
    Ok(Mapped { messages: vec![message], notes: if trimmed { vec!["trimmed"] } else { Vec::new() } })
}

/// The outgoing body, and whether members had to be removed for it.
fn body<'a>(json: &'a str, context: &Context<'a>, options: &Options) -> Result<(Cow<'a, str>, bool), Rejection> {
    let limit = options.max_bytes.unwrap_or(DEFAULT_MAX_BYTES);
    let too_large = || {
        Rejection::too_large(format!("the message would be larger than {limit} bytes (`maxBytes`) even when trimmed"))
    };
    match options.message_format {
        MessageFormat::Json if json.len() <= limit => Ok((json.into(), false)),
        MessageFormat::Json => {
            let body = trimmed(json, &context.members);
            if body.len() > limit { Err(too_large()) } else { Ok((body.into(), true)) }
        }
        MessageFormat::Xml => {
            let (body, trimmed) = match xml::write(json, Members::All, limit) {
                Err(Stop::TooLarge) => (xml::write(json, Members::WithoutTrimmable, limit), true),
                whole => (whole, false),
            };
            match body {
                Ok(body) => Ok((body.into(), trimmed)),
                Err(Stop::TooLarge) => Err(too_large()),
                Err(Stop::Unusable(detail)) => Err(Rejection::unmappable(detail)),
            }
        }
    }
}

/// Asynchronous: the system job, which is this event's alone. Synchronous: the request, which many events share.
fn id(context: &Context<'_>) -> String {
    if context.asynchronous && is_id(&context.operation) {
        return context.operation.clone().into_owned();
    }
    let Context { operation, step, row, message, depth, .. } = context;
    deterministic_id([operation.as_ref(), step, row, message, depth])
}
