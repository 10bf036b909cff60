//! Metrics, alarms and the dashboard.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use shared::contract::metrics;

use super::*;

#[test]
fn every_reference_resolves_with_any_part_switched_on() {
    let topic = "arn:aws:sns:eu-central-1:123456789012:alarms";
    let alone = EVERYTHING.map(|switched_on| vec![switched_on]);
    for given in [vec![], EVERYTHING.to_vec(), vec![("AlarmTopicArn", topic)]].into_iter().chain(alone) {
        let stack = Stack::new(&given);
        let resources = stack.resources();
        for output in stack.template["Outputs"].as_object().unwrap().values().filter(|output| stack.has(output)) {
            stack.resolve(output);
        }
        let creates_topic = !given.iter().any(|(name, _)| *name == "AlarmTopicArn");
        assert_eq!(resources.contains_key("AlarmTopic"), creates_topic);
        let has_email = given.iter().any(|(name, _)| *name == "AlarmEmail");
        assert_eq!(resources.contains_key("AlarmSubscription"), has_email);
        for (name, alarm) in of_type(&resources, "AWS::CloudWatch::Alarm") {
            let expected = if creates_topic { "AlarmTopic" } else { topic };
            assert_eq!(alarm["AlarmActions"], json!([expected]), "{name}");
        }
        let dashboard = dashboard(&resources);
        let units = given.iter().find(|(name, _)| *name == "ThroughputUnits").map_or("1", |(_, units)| *units);
        let limit =
            dashboard.iter().find_map(|widget| widget["properties"]["annotations"]["horizontal"][0]["value"].as_u64());
        assert_eq!(limit, Some(units.parse::<u64>().unwrap() * 1000));
        // Every alarm is shown once.
        let shown: Vec<&str> =
            dashboard[0]["properties"]["alarms"].as_array().unwrap().iter().map(|arn| arn.as_str().unwrap()).collect();
        let existing: BTreeSet<String> =
            of_type(&resources, "AWS::CloudWatch::Alarm").map(|(name, _)| format!("{name}/Arn")).collect();
        assert_eq!(shown.len(), existing.len());
        assert_eq!(shown.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), existing);
    }
}

/// The SQS metrics in use, with their names from its developer guide: CloudWatch accepts any name, and shows no data for a wrong
/// one.
const SQS_METRICS: [&str; 9] = [
    "ApproximateAgeOfOldestMessage",
    "ApproximateAgeOfOldestMessageInQuietGroups",
    "ApproximateNumberOfMessagesDelayed",
    "ApproximateNumberOfMessagesDelayedInQuietGroups",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesNotVisibleInQuietGroups",
    "ApproximateNumberOfMessagesVisible",
    "ApproximateNumberOfMessagesVisibleInQuietGroups",
    "ApproximateNumberOfNoisyGroups",
];

#[test]
fn dashboard_and_alarms_use_only_metrics_that_exist() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let known: BTreeSet<&str> = metrics::METRICS.iter().map(|metric| metric.name).collect();
    let kinds: BTreeSet<String> = fs::read_dir(root().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let check = |place: &str, (namespace, name, dimensions): &(String, String, Vec<String>)| {
        let of = dimensions.get(1).map(String::as_str);
        let dimension = dimensions.first().map(String::as_str);
        match (namespace.as_str(), dimension) {
            (metrics::NAMESPACE, _) => {
                assert!(known.contains(name.as_str()), "{place}: no function produces {name}");
                assert!(of.is_none_or(|kind| kinds.contains(kind)), "{place}: {of:?} is not a kind");
            }
            ("AWS/SQS", Some("QueueName")) => {
                assert!(SQS_METRICS.contains(&name.as_str()), "{place}: SQS has no metric {name}");
                let queue = of.unwrap().strip_suffix("/QueueName").unwrap();
                assert_eq!(resources[queue]["Type"], "AWS::SQS::Queue", "{place}");
            }
            ("AWS/Lambda", Some("FunctionName")) => {
                assert_eq!(resources[of.unwrap()]["Type"], "AWS::Lambda::Function", "{place}");
            }
            ("AWS/ApiGateway", Some("ApiId")) => {
                assert_eq!(resources[of.unwrap()]["Type"], "AWS::ApiGatewayV2::Api", "{place}");
            }
            other => panic!("{place}: {other:?}"),
        }
    };
    let widgets = dashboard(&resources);
    let mut shown = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for widget in &widgets {
        let place = widget["properties"]["title"].as_str().unwrap();
        for metric in metrics_of(widget) {
            check(place, &metric);
            shown.insert(metric.1);
        }
        assert!(widget["type"] == "alarm" || widget["properties"]["region"] == "eu-central-1", "{place}");
        let side = |name: &str| widget[name].as_u64().unwrap();
        for x in side("x")..side("x") + side("width") {
            for y in side("y")..side("y") + side("height") {
                assert!(x < 24 && taken.insert((x, y)), "{place} overlaps another widget, or is outside the dashboard");
            }
        }
    }
    for metric in &known {
        assert!(shown.contains(*metric), "{metric} is not on the dashboard");
    }
    for (name, alarm) in of_type(&resources, "AWS::CloudWatch::Alarm") {
        let metrics = metrics_of_alarm(alarm);
        assert!(!metrics.is_empty() && metrics.len() <= 10, "CloudWatch accepts ten metrics: {name}");
        metrics.iter().for_each(|metric| check(name, metric));
        // An expression names existing queries, and the alarm evaluates one of them.
        let queries = alarm["Metrics"].as_array().map_or(&[][..], Vec::as_slice);
        let ids: BTreeSet<&str> = queries.iter().map(|query| query["Id"].as_str().unwrap()).collect();
        for expression in queries.iter().filter_map(|query| query["Expression"].as_str()) {
            let words = expression.split(|character: char| !character.is_ascii_alphanumeric());
            for word in words.filter(|word| word.starts_with(|first: char| first.is_ascii_lowercase())) {
                assert!(ids.contains(word), "{name}: {word}");
            }
        }
        let results = queries.iter().filter(|query| query["ReturnData"] != false).count();
        assert_eq!(results, usize::from(!queries.is_empty()), "{name}");
    }
}

#[test]
fn every_case_for_an_operator_has_an_alarm_and_every_alarm_is_explained() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let alarms: Vec<(&str, &Value)> = of_type(&resources, "AWS::CloudWatch::Alarm").collect();
    let watched: BTreeSet<(String, String)> = alarms
        .iter()
        .flat_map(|(_, alarm)| metrics_of_alarm(alarm))
        .map(|(_, name, dimensions)| (name, dimensions[1].clone()))
        .collect();
    let is_watched = |name: &str, of: &str| watched.contains(&(name.to_owned(), of.to_owned()));
    for (name, _) in of_type(&resources, "AWS::SQS::Queue").filter(|(name, _)| name.ends_with("DeadLetters")) {
        assert!(is_watched("ApproximateNumberOfMessagesVisible", &format!("{name}/QueueName")), "{name}");
    }
    // A consumer that does not run produces no dead letters: only the age shows it.
    for queue in queue_mappings(&resources).keys() {
        assert!(is_watched("ApproximateAgeOfOldestMessage", &format!("{queue}/QueueName")), "{queue}");
    }
    assert!(is_watched("OldestParkedAge", "redelivery"));
    // A record that the inlet does not accept waits in the hub for as long as the hub retains it.
    assert!(is_watched("OffsetLag", "PlatformIngest"));
    for (name, _) in of_type(&resources, "AWS::ApiGatewayV2::Api") {
        assert!(is_watched("5xx", name), "{name}");
    }
    let template = template();
    for (name, block) in functions(&template) {
        let kind = block["Properties"]["CodeUri"].as_str().unwrap().strip_prefix("functions/").unwrap();
        let events = block["Properties"]["Events"].to_string();
        let (is_kind, is_ingest) = (events.contains("\"Api\""), events.contains("SelfManagedKafka"));
        if is_kind || is_ingest {
            for metric in ["ErrorsTimeout", "ErrorsInvalidCredentials", "ErrorsOther"] {
                assert!(is_watched(metric, kind), "{metric} of {name}");
            }
        }
        assert!(!is_kind || is_watched("Throttled", kind) && is_watched("Errors5xx", kind), "{name}");
    }
    let runbook = read("docs/runbook.md");
    let (_, section) = runbook.split_once("\n## Alarms\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for (name, alarm) in alarms {
        assert_eq!(alarm["TreatMissingData"], "notBreaching", "{name}");
        assert!(alarm["AlarmDescription"].as_str().unwrap().ends_with("docs/runbook.md#alarms."), "{name}");
        assert!(section.contains(&format!("`{name}`")), "docs/runbook.md does not explain {name}");
    }
    let metrics_page = read("docs/metrics.md");
    let (_, section) = metrics_page.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for metric in metrics::METRICS {
        let line = section.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{}`", metric.name)));
        let line = line.unwrap_or_else(|| panic!("docs/metrics.md does not explain {}", metric.name));
        assert!(line.contains(&metric.unit.to_ascii_lowercase()), "{line}");
    }
    for parameter in stack.template["Parameters"].as_object().unwrap().keys() {
        let groups = [("Source", "`Source…`"), ("Inlet", "`Inlet…`"), ("Ims", "`Ims…`")];
        let group = groups.iter().find(|(start, _)| parameter.starts_with(start));
        let name = group.map_or(format!("`{parameter}`"), |(_, group)| (*group).to_owned());
        assert!(read("docs/deploy.md").contains(&name), "docs/deploy.md does not explain {parameter}");
    }
}

#[test]
fn the_queue_of_each_kind_has_an_age_alarm_with_its_parameter() {
    let stack = Stack::new(&[("AlarmQueueAge", "321")]);
    let resources = stack.resources();
    assert_eq!(stack.template["Parameters"]["AlarmQueueAge"]["Default"], 900);
    let alarms: Vec<&Value> = of_type(&resources, "AWS::CloudWatch::Alarm")
        .filter(|(name, _)| name.ends_with("QueueAgeAlarm"))
        .map(|(_, alarm)| alarm)
        .collect();
    assert_eq!(alarms.len(), queue_mappings(&resources).len() - 1, "the queue of redelivery has ParkedAgeAlarm");
    for alarm in alarms {
        assert_eq!(alarm["MetricName"], "ApproximateAgeOfOldestMessage");
        assert_eq!(alarm["ComparisonOperator"], "GreaterThanThreshold");
        assert_eq!(alarm["Threshold"], "321");
    }
}

#[test]
fn parking_has_alarms_for_the_in_flight_quota_and_for_healthy_hubs_that_wait() {
    let stack = Stack::new(&[]);
    let resources = stack.resources();
    for (name, metric, threshold) in [
        ("ParkingInFlightAlarm", "ApproximateNumberOfMessagesNotVisible", 60_000),
        ("ParkedQuietAgeAlarm", "ApproximateAgeOfOldestMessageInQuietGroups", 300),
    ] {
        let alarm = &resources[name]["Properties"];
        let queue = vec!["QueueName".to_owned(), "ParkingQueue/QueueName".to_owned()];
        assert_eq!(metrics_of_alarm(alarm), [("AWS/SQS".to_owned(), metric.to_owned(), queue)]);
        assert_eq!(alarm["ComparisonOperator"], "GreaterThanThreshold", "{name}");
        assert_eq!(alarm["Statistic"], "Maximum", "{name}");
        assert_eq!(alarm["Threshold"], threshold, "{name}");
    }
    let quiet = &resources["ParkedQuietAgeAlarm"]["Properties"];
    assert!(quiet["EvaluationPeriods"].as_u64().unwrap() >= 3, "fairness takes effect after some minutes");
    assert!(quiet.get("DatapointsToAlarm").is_none(), "every period has to breach");
    // The dashboard shows the same number with the quota and the threshold.
    let widgets = dashboard(&resources);
    let in_flight = widgets.iter().find(|widget| {
        let metrics = metrics_of(widget);
        metrics.iter().any(|(_, name, of)| {
            name == "ApproximateNumberOfMessagesNotVisible" && of.iter().any(|of| of == "ParkingQueue/QueueName")
        })
    });
    let lines = in_flight.unwrap()["properties"]["annotations"]["horizontal"].as_array().unwrap();
    assert_eq!(lines.iter().map(|line| line["value"].as_u64().unwrap()).collect::<Vec<_>>(), [120_000, 60_000]);
}
