//! The log line of an invocation as CloudWatch reads it, and the trace that continues in the hub.

use std::collections::BTreeMap;

use local::emulator::{Action, Emulator};
use local::runner::Function;
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::contract::metrics::{METRICS, NAMESPACE};

use crate::cloud::{Cloud, emulator, until};
use crate::harness::*;

/// The lines with that message, once there are `count` of them.
async fn lines(function: &Function, message: &str, count: usize) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let lines = function.logs();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    };
    until(message, async || read().len() >= count).await;
    let lines = read();
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// The dimension sets of a line, and the metrics that CloudWatch extracts from it. Asserts that the line meets the
/// specification.
fn metrics(line: &Value) -> (Value, BTreeMap<String, u64>) {
    // <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>
    let metadata = &line["_aws"];
    let now = Clock::system().unix_seconds();
    let written = metadata["Timestamp"].as_u64().unwrap();
    assert!((now - 600) * 1000 < written && written <= (now + 1) * 1000, "milliseconds since 1970: {written}");
    let directives = metadata["CloudWatchMetrics"].as_array().unwrap();
    assert_eq!(directives.len(), 1, "{line}");
    let directive = &directives[0];
    assert_eq!(directive["Namespace"], NAMESPACE);
    for set in directive["Dimensions"].as_array().unwrap() {
        let set = set.as_array().unwrap();
        assert!(!set.is_empty() && set.len() <= 30, "{line}");
        for dimension in set {
            let value = line[dimension.as_str().unwrap()].as_str().expect("a dimension is a text at the root");
            assert!(!value.is_empty() && value.len() <= 1024 && value.is_ascii(), "{line}");
        }
    }
    let definitions = directive["Metrics"].as_array().unwrap();
    assert!(!definitions.is_empty() && definitions.len() <= 100, "{line}");
    let mut values = BTreeMap::new();
    for definition in definitions {
        assert!(definition.as_object().unwrap().keys().all(|key| ["Name", "Unit"].contains(&key.as_str())), "{line}");
        let name = definition["Name"].as_str().unwrap();
        let known = METRICS.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is not listed"));
        assert_eq!(definition["Unit"], known.unit);
        assert!(
            ["Count", "Milliseconds", "Seconds", "None"].contains(&known.unit),
            "CloudWatch has no unit {}",
            known.unit
        );
        let value = line[name].as_f64().expect("a metric is a number at the root") as u64;
        assert!(values.insert(name.to_owned(), value).is_none(), "{name} twice in {line}");
    }
    (directive["Dimensions"].clone(), values)
}

/// The counts of a line, without times.
fn counts(line: &Value) -> BTreeMap<String, u64> {
    let (dimensions, mut values) = metrics(line);
    assert_eq!(dimensions, json!([["Kind"]]));
    values.retain(|name, _| !["SendLatency", "OldestParkedAge"].contains(&name.as_str()));
    values
}

fn expected(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// The counts of one webhook.
async fn counts_of_webhook(system: &System, event: &Value) -> BTreeMap<String, u64> {
    let before = lines_so_far(&system.function);
    system.response_to(event).await;
    counts(&lines(&system.function, "webhook answered", before + 1).await[before])
}

fn lines_so_far(function: &Function) -> usize {
    function.logs().iter().filter(|line| line.contains("\"webhook answered\"")).count()
}

/// `audience-change` with the queues and the table of `cloud`.
fn with_cloud(cloud: &Cloud, hub: &Emulator) -> System {
    System { function: cloud.function("audience-change", hub, &[]), hub: hub.clone() }
}

#[tokio::test]
async fn a_delivered_webhook_leaves_one_line_with_its_metrics() {
    let system = start(&[]).await;
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));
    let line = &lines(&system.function, "webhook answered", 1).await[0];
    assert_eq!(counts(line), expected(&[("Received", 1), ("Delivered", 1), ("Requests", 1)]));
    assert!(metrics(line).1.contains_key("SendLatency"));
    for (name, value) in [("Kind", "audience-change"), ("Flow", "default"), ("trigger", "webhook"), ("level", "INFO")] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!(line["status"], 200);
    assert!(line["request_id"].is_string() && line["duration_ms"].is_u64() && line["timestamp"].is_string(), "{line}");
    // An unauthenticated request produces no metric.
    let mut stranger = request(DOCUMENTED);
    stranger["headers"] = json!({});
    system.response_to(&stranger).await.problem(401);
    let line = &lines(&system.function, "webhook answered", 2).await[1];
    assert!(line["_aws"].is_null() && line["status"] == 401, "{line}");
}

#[tokio::test]
async fn filtered_and_rejected_events_are_counted_by_reason() {
    let system = start(&[("FLOW_OPTIONS", r#"{"partnerNumber":44}"#)]).await;
    let one = counts_of_webhook(&system, &request(DOCUMENTED)).await;
    assert_eq!(one, expected(&[("Received", 1), ("Filtered", 1)]));

    let cloud = Cloud::start().await;
    let system = with_cloud(&cloud, &emulator(&[HUB]).await);
    let wrong = r#"{"profileId":"c"}"#;
    let mut large: Value = serde_json::from_str(DOCUMENTED).unwrap();
    large["data"] = json!({ "a": "x".repeat(1_100_000) });
    for (body, reason, good) in [
        ("{".to_owned(), "RejectedUnreadable", 0),
        (wrong.to_owned(), "RejectedUnmappable", 0),
        (format!("[{DOCUMENTED},{wrong}]"), "RejectedUnmappable", 1),
        (large.to_string(), "RejectedTooLarge", 0),
    ] {
        let mut all = vec![("Received", 1 + good), ("Rejected", 1), (reason, 1)];
        if good > 0 {
            all.extend([("Delivered", good), ("Requests", 1)]);
        }
        assert_eq!(counts_of_webhook(&system, &request(&body)).await, expected(&all), "{reason}");
    }
    system.hub.script([status(400, None, "40000: no")]);
    let refused = [("Received", 1), ("Rejected", 1), ("RejectedRefused", 1), ("Requests", 1)];
    assert_eq!(counts_of_webhook(&system, &request(DOCUMENTED)).await, expected(&refused));

    // An unknown flow is a separate reason, and not a value of a dimension.
    let mut lost = record("a", DOCUMENTED);
    lost["messageAttributes"] = json!({ "flow": { "stringValue": "nowhere", "dataType": "String" } });
    lost["attributes"]["ApproximateReceiveCount"] = "2".into();
    assert!(system.failures(&[lost, record("b", DOCUMENTED)]).await.is_empty());
    let mut handled = lines(&system.function, "queue batch handled", 2).await;
    handled.sort_by_key(|line| line["Flow"].is_string());
    assert!(handled[0]["Flow"].is_null(), "{handled:?}");
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for line in &handled {
        counts(line).into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count);
    }
    assert_eq!(counts(&handled[0])["RejectedUnknownFlow"], 1);
    assert!(handled.iter().all(|line| line["lines"] == 2 && line["records.failed"] == 0), "{handled:?}");
    let both = [
        ("Received", 2),
        ("Rejected", 1),
        ("RejectedUnknownFlow", 1),
        ("Delivered", 1),
        ("Requests", 1),
        ("BatchSize", 2),
        ("Duplicates", 1),
    ];
    assert_eq!(sums, expected(&both));
}

#[tokio::test]
async fn retries_throttling_and_errors_of_the_hub_are_counted() {
    let system = start(&[]).await;
    system.hub.script([status(429, Some(0), "slow down")]);
    let passing = [("Received", 1), ("Delivered", 1), ("Requests", 2), ("Retries", 1), ("Throttled", 1)];
    assert_eq!(counts_of_webhook(&system, &request(DOCUMENTED)).await, expected(&passing));

    for (fault, class) in [
        (status(404, None, "40400: Endpoint not found."), "ErrorsOther"),
        (status(403, None, "Unauthorized access. 'Send' claim(s) are required."), "ErrorsInvalidCredentials"),
        (fault(Action::Hang), "ErrorsTimeout"),
    ] {
        system.hub.clear_faults();
        system.hub.script([lasting(fault)]);
        let mut lost = counts_of_webhook(&system, &request(DOCUMENTED)).await;
        // The number of attempts depends on the time that is left.
        lost.retain(|name, _| !["Requests", "Retries"].contains(&name.as_str()));
        let nowhere_to_park = expected(&[("Received", 1), (class, 1), ("Errors5xx", 1)]);
        assert_eq!(lost, nowhere_to_park, "{class}");
    }
}

#[tokio::test]
async fn a_stored_copy_of_an_invalid_event_is_counted_although_its_neighbour_is_not_delivered() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let function = cloud.function("audience-change", &hub, &[("PARKING_QUEUE_URL", "")]);
    let system = System { function, hub };
    system.hub.script([lasting(status(404, None, "40400"))]);
    let mixed = format!("[{},{{}}]", event_of("a"));
    let counted = counts_of_webhook(&system, &request(&mixed)).await;
    assert_eq!([counted["Rejected"], counted["RejectedUnmappable"], counted["Errors5xx"]], [1, 1, 1], "{counted:?}");
    assert_eq!(system.failures(&[record("m", &mixed)]).await, ["m"]);
    let line = &lines(&system.function, "queue batch handled", 1).await[0];
    assert_eq!(counts(line)["RejectedUnmappable"], 1, "{line}");
    assert_eq!(cloud.take(&cloud.rejected).await.len(), 2, "one copy of each attempt");
}

#[tokio::test]
async fn rejected_events_that_cannot_be_stored_are_not_counted_as_rejected() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let absent = cloud.rejected.replace(cloud.rejected.rsplit('/').next().unwrap(), "absent");
    let function = cloud.function("audience-change", &hub, &[("REJECTED_QUEUE_URL", &absent)]);
    let system = System { function, hub };
    let mixed = format!("[{},{{}}]", event_of("a"));
    let counted = counts_of_webhook(&system, &request(&mixed)).await;
    assert_eq!(counted, expected(&[("Received", 2), ("Errors5xx", 1)]));
    assert_eq!(system.failures(&[record("bad", "{}")]).await, ["bad"]);
    let line = &lines(&system.function, "queue batch handled", 1).await[0];
    assert_eq!(counts(line), expected(&[("Received", 1), ("BatchSize", 1)]));
    assert_eq!([&line["records.failed"], &line["lines"]], [1, 1]);
    // No sender retries a body that is invalid as a whole.
    let counted = counts_of_webhook(&system, &request("{}")).await;
    assert_eq!((counted["Rejected"], counted["RejectedUnmappable"]), (1, 1), "{counted:?}");
    assert_eq!(system.stored(), 0);
}

#[tokio::test]
async fn parked_messages_are_counted_when_they_are_parked_and_when_they_are_redelivered() {
    let cloud = Cloud::start().await;
    let system = with_cloud(&cloud, &emulator(&[HUB]).await);
    system.hub.script([lasting(status(404, None, "40400: Endpoint not found."))]);
    let two = format!("[{},{}]", event_of("a"), event_of("b"));
    let parked = counts_of_webhook(&system, &request(&two)).await;
    assert_eq!((parked["Received"], parked["Parked"], parked["ErrorsOther"]), (2, 2, 2), "{parked:?}");
    assert!(!parked.contains_key("Delivered") && !parked.contains_key("Errors5xx"), "{parked:?}");
    system.hub.clear_faults();
    let redelivery = cloud.redeliver(&system.hub);
    let line = &lines(&redelivery.function, "parked batch handled", 1).await[0];
    let counted = counts(line);
    assert_eq!((counted["Redelivered"], counted["BatchSize"]), (2, 1), "{counted:?}");
    assert!(!counted.contains_key("Delivered"), "only new events count as delivered: {counted:?}");
    assert!(metrics(line).1["OldestParkedAge"] < 600, "{line}");
    assert_eq!((&line["Kind"], &line["Flow"]), (&json!("redelivery"), &json!("default")));
    assert!((0.2..0.3).contains(&line["PaceUnits"].as_f64().unwrap()), "{line}");
}

#[tokio::test]
async fn held_and_gathered_messages_and_probes_of_a_failing_hub_are_counted() {
    let cloud = Cloud::start().await;
    let system = with_cloud(&cloud, &emulator(&[HUB]).await);
    system.hub.script([lasting(status(404, None, "40400: Endpoint not found."))]);
    for profile in ["a", "b"] {
        assert_eq!(system.post(&event_of(profile)).await.status, 202);
    }
    let redelivery = cloud.redeliver(&system.hub);
    let lines = lines(&redelivery.function, "parked batch handled", 3).await;
    let total = |name: &str| lines.iter().filter_map(|line| counts(line).get(name).copied()).sum::<u64>();
    assert_eq!(total("Gathered"), 2, "two envelopes were gathered into one, once: {lines:?}");
    assert!(total("Held") >= 3 && total("Requests") >= 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["HubsDown"] == 1), "{lines:?}");
    assert!(total("Probes") >= 1 && total("Probes") == total("ProbesFailed"), "{lines:?}");
}

#[tokio::test]
async fn the_flow_is_a_dimension_on_request() {
    for (by_flow, sets) in [("1", json!([["Kind"], ["Kind", "Flow"]])), ("0", json!([["Kind"]]))] {
        let system = start(&[("METRICS_BY_FLOW", by_flow)]).await;
        assert_eq!(system.post(DOCUMENTED).await, delivered(1));
        let line = &lines(&system.function, "webhook answered", 1).await[0];
        assert_eq!(metrics(line).0, sets);
        assert_eq!(line["Flow"], "default");
    }
    let refusal = init_failure(&[("METRICS_BY_FLOW", "yes")]).await;
    assert!(refusal.to_string().contains("METRICS_BY_FLOW"), "{refusal}");
}

#[tokio::test]
async fn metrics_do_not_depend_on_the_log_level() {
    let system = start(&[("AWS_LAMBDA_LOG_LEVEL", "ERROR")]).await;
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));
    assert_eq!(counts(&lines(&system.function, "webhook answered", 1).await[0])["Delivered"], 1);
}

#[tokio::test]
async fn a_valid_traceparent_of_the_caller_reaches_the_hub() {
    let system = start(&[]).await;
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let zeros = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
    let upper = good.to_uppercase();
    let short = &good[..good.len() - 1];
    let long = format!("{good}-more");
    for (given, arrives) in [
        (Some(good), true),
        (None, false),
        (Some(""), false),
        (Some("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), false),
        (Some("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"), false),
        (Some(zeros.as_str()), false),
        (Some(upper.as_str()), false),
        (Some(short), false),
        (Some(long.as_str()), false),
        (Some("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01"), false),
    ] {
        system.hub.clear();
        let mut event = request(DOCUMENTED);
        if let Some(given) = given {
            event["headers"]["traceparent"] = given.into();
        }
        assert_eq!(system.response_to(&event).await, delivered(1), "{given:?}");
        let stored = system.hub.events(HUB);
        let trace = stored[0].properties.get("Diagnostic-Id").and_then(Value::as_str);
        assert_eq!(trace, given.filter(|_| arrives), "{given:?}");
    }
}
