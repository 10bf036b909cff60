//! The metrics that the functions write and that alarms, dashboard, `GET /runs` and the console read: names and units.

use crate::kind::Reason;

/// CloudWatch's namespace of all metrics.
pub const NAMESPACE: &str = "EventHubsRelay";

/// A metric's name and CloudWatch's word for its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
}

const fn count(name: &'static str) -> Metric {
    Metric { name, unit: "Count" }
}

/// Events that were received.
pub const RECEIVED: Metric = count("Received");
/// Events that produce no message because of their flow's options.
pub const FILTERED: Metric = count("Filtered");
/// Events that can never be delivered; [`of_reason`] has the metrics by reason.
pub const REJECTED: Metric = count("Rejected");
/// Messages of new events that the hub accepted.
pub const DELIVERED: Metric = count("Delivered");
/// Messages stored for later.
pub const PARKED: Metric = count("Parked");
/// Parked messages that the hub accepted.
pub const REDELIVERED: Metric = count("Redelivered");
/// Messages of the parking queue that stay parked: hidden for a while, or stored again.
pub const HELD: Metric = count("Held");
/// Parked messages that were packed into fuller envelopes.
pub const GATHERED: Metric = count("Gathered");
/// Requests that test whether a failing hub responds again, and those of them that failed.
pub const PROBES: Metric = count("Probes");
pub const PROBES_FAILED: Metric = count("ProbesFailed");
/// Destinations that an instance of redelivery does not send to at the end of an invocation, because they failed.
pub const HUBS_DOWN: Metric = count("HubsDown");
/// Queue records that were delivered before: their messages may be in the hub twice.
pub const DUPLICATES: Metric = count("Duplicates");
/// Records of a queue's batch.
pub const BATCH_SIZE: Metric = count("BatchSize");
/// Requests to the hub, retries included, and the retries alone.
pub const REQUESTS: Metric = count("Requests");
pub const RETRIES: Metric = count("Retries");
/// Responses by which the hub throttled a request.
pub const THROTTLED: Metric = count("Throttled");
/// Messages that could not be delivered at once, by class.
pub const ERRORS_TIMEOUT: Metric = count("ErrorsTimeout");
pub const ERRORS_INVALID_CREDENTIALS: Metric = count("ErrorsInvalidCredentials");
pub const ERRORS_OTHER: Metric = count("ErrorsOther");
/// Webhooks that got a 5xx.
pub const ERRORS_5XX: Metric = count("Errors5xx");
/// Time from the first request to the last response.
pub const SEND_LATENCY: Metric = Metric { name: "SendLatency", unit: "Milliseconds" };
/// Throughput units at which an instance of redelivery sends to the slowest of its namespaces.
pub const PACE_UNITS: Metric = Metric { name: "PaceUnits", unit: "None" };
/// Time since the oldest message of a parked batch was parked for the first time.
pub const OLDEST_PARKED_AGE: Metric = Metric { name: "OldestParkedAge", unit: "Seconds" };

/// Every metric that a line can contain.
pub const METRICS: [Metric; 30] = [
    RECEIVED,
    FILTERED,
    REJECTED,
    of_reason(Reason::Unreadable),
    of_reason(Reason::Unmappable),
    of_reason(Reason::TooLarge),
    of_reason(Reason::UnknownFlow),
    of_reason(Reason::Bug),
    of_reason(Reason::Refused),
    of_reason(Reason::Expired),
    DELIVERED,
    PARKED,
    REDELIVERED,
    HELD,
    GATHERED,
    PROBES,
    PROBES_FAILED,
    HUBS_DOWN,
    DUPLICATES,
    BATCH_SIZE,
    REQUESTS,
    RETRIES,
    THROTTLED,
    ERRORS_TIMEOUT,
    ERRORS_INVALID_CREDENTIALS,
    ERRORS_OTHER,
    ERRORS_5XX,
    SEND_LATENCY,
    PACE_UNITS,
    OLDEST_PARKED_AGE,
];

/// Rejected events of one reason.
pub const fn of_reason(reason: Reason) -> Metric {
    count(match reason {
        Reason::Unreadable => "RejectedUnreadable",
        Reason::Unmappable => "RejectedUnmappable",
        Reason::TooLarge => "RejectedTooLarge",
        Reason::UnknownFlow => "RejectedUnknownFlow",
        Reason::Bug => "RejectedBug",
        Reason::Refused => "RejectedRefused",
        Reason::Expired => "RejectedExpired",
    })
}
