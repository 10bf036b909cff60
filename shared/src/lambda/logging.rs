//! JSON lines on standard output, which Lambda hands to CloudWatch as they are.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::environment::Environment;

/// The crates that log.
const OURS: [&str; 4] = ["flow_service", "platform_ingest", "redelivery", "shared"];

/// Starts logging at `AWS_LAMBDA_LOG_LEVEL` (`TRACE` … `FATAL`, default `INFO`).
///
/// Only our own lines follow the level: the runtime's crate would print whole events at `TRACE`. A panic is reported by
/// its place alone, since its message may quote an event.
pub fn init(environment: &Environment) {
    let level = environment.get("AWS_LAMBDA_LOG_LEVEL").map_or(LevelFilter::INFO, |level| {
        match level.to_ascii_uppercase().as_str() {
            "TRACE" => LevelFilter::TRACE,
            "DEBUG" => LevelFilter::DEBUG,
            "WARN" => LevelFilter::WARN,
            "ERROR" | "FATAL" => LevelFilter::ERROR,
            _ => LevelFilter::INFO,
        }
    });
    let lines =
        tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
    let ours = Targets::new().with_targets(OURS.map(|name| (name, level))).with_default(level.min(LevelFilter::WARN));
    // A second start, in tests, leaves the first one's subscriber.
    let _ = tracing_subscriber::registry().with(lines).with(ours).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "the code panicked, which is a bug; the current event is not lost");
    }));
}
