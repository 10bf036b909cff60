//! The template, the folders, the sample events and the documentation agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use shared::contract::codec::pack;
use shared::contract::metrics;
use shared::contract::parked::unpacked;

use crate::harness::*;
use crate::stack::{Stack, TRANSLATED};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The template as SAM reads it, intrinsic functions in their long form.
fn template() -> Value {
    const PRINT: &str =
        "import json, sys; from samcli.yamlhelper import yaml_parse; print(json.dumps(yaml_parse(sys.stdin.read())))";
    let printed = Command::new(virtual_environment().join("bin/python"))
        .args(["-c", PRINT])
        .stdin(fs::File::open(root().join("template.yaml")).unwrap())
        .output()
        .expect("run `make setup` first");
    serde_json::from_slice(&printed.stdout).expect("the template is YAML")
}

fn functions(template: &Value) -> Vec<(&str, &Value)> {
    let resources = template["Resources"].as_object().unwrap();
    let functions = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::Serverless::Function");
    functions.map(|(name, resource)| (name.as_str(), resource)).collect()
}

/// What switches a part of the stack on, all at once.
const EVERYTHING: [(&str, &str); 7] = [
    ("TokenIssuer", "https://issuer.example.com"),
    ("SourceHub", "profiles"),
    ("InletUrl", "https://dcs.adobedc.net/collection/1"),
    ("SenderAuth", "none"),
    ("PublicUrl", "https://events.example.com"),
    ("AlarmEmail", "operator@example.com"),
    ("ThroughputUnits", "20"),
];

#[test]
fn every_reference_leads_somewhere_whatever_is_switched_on() {
    let topic = "arn:aws:sns:eu-central-1:123456789012:alarms";
    let alone = EVERYTHING.map(|switched_on| vec![switched_on]);
    for given in [vec![], EVERYTHING.to_vec(), vec![("AlarmTopicArn", topic)]].into_iter().chain(alone) {
        let stack = Stack::new(&given);
        let resources = stack.resources();
        for output in stack.template["Outputs"].as_object().unwrap().values().filter(|output| stack.has(output)) {
            stack.resolve(output);
        }
        let makes_topic = !given.iter().any(|(name, _)| *name == "AlarmTopicArn");
        assert_eq!(resources.contains_key("AlarmTopic"), makes_topic);
        let has_email = given.iter().any(|(name, _)| *name == "AlarmEmail");
        assert_eq!(resources.contains_key("AlarmSubscription"), has_email);
        for (name, alarm) in of_type(&resources, "AWS::CloudWatch::Alarm") {
            let expected = if makes_topic { "AlarmTopic" } else { topic };
            assert_eq!(alarm["AlarmActions"], json!([expected]), "{name}");
        }
        let dashboard = dashboard(&resources);
        let units = given.iter().find(|(name, _)| *name == "ThroughputUnits").map_or("1", |(_, units)| *units);
        let limit =
            dashboard.iter().find_map(|widget| widget["properties"]["annotations"]["horizontal"][0]["value"].as_u64());
        assert_eq!(limit, Some(units.parse::<u64>().unwrap() * 1000));
        // Alarms that are there are shown, each once.
        let shown: Vec<&str> =
            dashboard[0]["properties"]["alarms"].as_array().unwrap().iter().map(|arn| arn.as_str().unwrap()).collect();
        let there: BTreeSet<String> =
            of_type(&resources, "AWS::CloudWatch::Alarm").map(|(name, _)| format!("{name}/Arn")).collect();
        assert_eq!(shown.len(), there.len());
        assert_eq!(shown.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), there);
    }
}

/// The properties of the resources of one type.
fn of_type<'r>(resources: &'r BTreeMap<&str, Value>, sort: &str) -> impl Iterator<Item = (&'r str, &'r Value)> {
    let sort = sort.to_owned();
    resources
        .iter()
        .filter(move |(_, resource)| resource["Type"] == sort)
        .map(|(name, resource)| (*name, &resource["Properties"]))
}

/// The widgets of the dashboard.
fn dashboard(resources: &BTreeMap<&str, Value>) -> Vec<Value> {
    let body = resources["Dashboard"]["Properties"]["DashboardBody"].as_str().unwrap();
    let body: Value = serde_json::from_str(body).expect("the body is JSON when all is put in");
    body["widgets"].as_array().unwrap().clone()
}

/// Namespace, name and dimensions of each metric of a widget, `.` and `...` written out. A search's dimensions are empty.
fn metrics_of(widget: &Value) -> Vec<(String, String, Vec<String>)> {
    let mut metrics = Vec::new();
    let mut before: Vec<String> = Vec::new();
    for line in widget["properties"]["metrics"].as_array().into_iter().flatten() {
        let line = line.as_array().unwrap();
        if let Some(expression) = line[0]["expression"].as_str() {
            let namespace = expression.split_once('{').unwrap().1.split_once(',').unwrap().0;
            let (_, names) = expression.split_once("MetricName=").unwrap();
            let names = match names.strip_prefix('(') {
                Some(several) => several.split_once(')').unwrap().0,
                None => names.split([' ', '\'']).next().unwrap(),
            };
            let names = names.split(" OR ").map(|name| name.strip_prefix('"').unwrap().strip_suffix('"').unwrap());
            metrics.extend(names.map(|name| (namespace.to_owned(), name.to_owned(), Vec::new())));
            continue;
        }
        let given: Vec<&str> = line.iter().filter_map(Value::as_str).collect();
        let mut full: Vec<String> = Vec::new();
        for part in &given {
            match *part {
                "..." => full.extend_from_slice(&before[..before.len() + 1 - given.len()]),
                "." => full.push(before[full.len()].clone()),
                other => full.push(other.to_owned()),
            }
        }
        assert_eq!(full.len() % 2, 0, "{line:?}");
        metrics.push((full[0].clone(), full[1].clone(), full[2..].to_vec()));
        before = full;
    }
    metrics
}

/// Namespace, name and dimensions of each metric of an alarm.
fn metrics_of_alarm(alarm: &Value) -> Vec<(String, String, Vec<String>)> {
    let own = std::iter::once(alarm).filter(|alarm| alarm.get("MetricName").is_some());
    let several = alarm["Metrics"].as_array().into_iter().flatten().map(|query| &query["MetricStat"]["Metric"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    own.chain(several.filter(|metric| metric.is_object()))
        .map(|metric| {
            let dimensions = metric["Dimensions"].as_array().unwrap().iter();
            let dimensions = dimensions.flat_map(|dimension| [text(&dimension["Name"]), text(&dimension["Value"])]);
            (text(&metric["Namespace"]), text(&metric["MetricName"]), dimensions.collect())
        })
        .collect()
}

/// The metrics of SQS in use, as its developer guide spells them: CloudWatch accepts any name and shows nothing for a wrong one.
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
fn dashboard_and_alarms_watch_metrics_that_there_are() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let ours: BTreeSet<&str> = metrics::METRICS.iter().map(|metric| metric.name).collect();
    let kinds: BTreeSet<String> = fs::read_dir(root().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let check = |place: &str, (namespace, name, dimensions): &(String, String, Vec<String>)| {
        let of = dimensions.get(1).map(String::as_str);
        let dimension = dimensions.first().map(String::as_str);
        match (namespace.as_str(), dimension) {
            (metrics::NAMESPACE, _) => {
                assert!(ours.contains(name.as_str()), "{place}: no function makes {name}");
                assert!(of.is_none_or(|kind| kinds.contains(kind)), "{place}: {of:?} is no kind");
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
                assert!(x < 24 && taken.insert((x, y)), "{place} lies on another widget, or beside the dashboard");
            }
        }
    }
    for metric in &ours {
        assert!(shown.contains(*metric), "{metric} is not on the dashboard");
    }
    for (name, alarm) in of_type(&resources, "AWS::CloudWatch::Alarm") {
        let metrics = metrics_of_alarm(alarm);
        assert!(!metrics.is_empty() && metrics.len() <= 10, "CloudWatch takes ten metrics: {name}");
        metrics.iter().for_each(|metric| check(name, metric));
        // An expression names queries that there are, and one of them is what the alarm looks at.
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
fn whatever_needs_an_operator_has_its_alarm_and_every_alarm_says_what_to_do() {
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
        let (is_kind, is_way_back) = (events.contains("\"Api\""), events.contains("SelfManagedKafka"));
        if is_kind || is_way_back {
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
    let metrics = read("docs/metrics.md");
    let (_, section) = metrics.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for metric in metrics::METRICS {
        let line = section.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{}`", metric.name)));
        let line = line.unwrap_or_else(|| panic!("docs/metrics.md does not explain {}", metric.name));
        assert!(line.contains(&metric.unit.to_ascii_lowercase()), "{line}");
    }
    let deploy = read("docs/deploy.md");
    for parameter in stack.template["Parameters"].as_object().unwrap().keys() {
        let groups = [("Source", "`Source…`"), ("Inlet", "`Inlet…`"), ("Ims", "`Ims…`")];
        let group = groups.iter().find(|(start, _)| parameter.starts_with(start));
        let name = group.map_or(format!("`{parameter}`"), |(_, group)| (*group).to_owned());
        assert!(deploy.contains(&name), "docs/deploy.md does not explain {parameter}");
    }
}

#[test]
fn functions_are_traced_logs_end_and_the_apis_have_limits() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let mut traced = 0;
    for (name, function) in of_type(&resources, "AWS::Lambda::Function") {
        traced += 1;
        assert_eq!(function["TracingConfig"]["Mode"], "Active", "{name}");
        assert_eq!(function["LoggingConfig"]["LogGroup"], "FunctionLogs", "{name}");
        assert_eq!(function["Environment"]["Variables"]["METRICS_BY_FLOW"], "0", "{name}");
        let role = function["Role"].as_str().unwrap().strip_suffix("/Arn").unwrap();
        let role = &resources[role]["Properties"];
        let rights = if role["ManagedPolicyArns"] == json!(["FunctionBasics"]) {
            &resources["FunctionBasics"]["Properties"]["PolicyDocument"]
        } else {
            &role["Policies"][0]["PolicyDocument"]
        };
        for right in ["xray:PutTraceSegments", "xray:PutTelemetryRecords"] {
            assert!(rights.to_string().contains(right), "{name}: {right}");
        }
    }
    assert_eq!(traced, functions(&template()).len());
    for (name, group) in of_type(&resources, "AWS::Logs::LogGroup") {
        assert_eq!(group["RetentionInDays"], 30, "{name}");
    }
    let mut apis = 0;
    for (name, stage) in of_type(&resources, "AWS::ApiGatewayV2::Stage") {
        apis += 1;
        let format = stage["AccessLogSettings"]["Format"].as_str().unwrap();
        let format: Value = serde_json::from_str(format).expect("a line of the access log is JSON");
        assert_eq!(format["path"], "$context.path", "{name}");
        assert!(!format.to_string().to_lowercase().contains("query"), "{name}");
        let limits = &stage["DefaultRouteSettings"];
        assert!(limits["ThrottlingRateLimit"].is_u64() && limits["ThrottlingBurstLimit"].is_u64(), "{name}: {limits}");
    }
    assert_eq!(apis, 2);
    // Lambda drops lines below the level, and metrics are made of INFO lines.
    assert_eq!(template()["Parameters"]["LogLevel"]["AllowedValues"], json!(["TRACE", "DEBUG", "INFO"]));
}

#[test]
fn every_folder_has_its_block() {
    let template = template();
    let mut folders: Vec<String> = fs::read_dir(root().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort_unstable();
    let mut blocks = Vec::new();
    for (name, block) in functions(&template) {
        let uri = block["Properties"]["CodeUri"].as_str().unwrap();
        let folder = uri.strip_prefix("functions/").unwrap();
        let pascal: String = folder.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        assert_eq!(name, pascal);
        assert_eq!(block["Metadata"]["BuildMethod"], "rust-cargolambda");
        let manifest = read(&format!("{uri}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"{folder}\"")), "package, binary and folder have one name");
        assert!(!manifest.contains("[[bin]]"), "one binary per package, called like it");
        blocks.push(folder.to_owned());
    }
    blocks.sort_unstable();
    assert_eq!(blocks, folders);
}

#[test]
fn variables_of_the_template_are_documented() {
    let template = template();
    let configuration = read("docs/configuration.md");
    let mut variables: BTreeSet<&str> = BTreeSet::new();
    let globals = &template["Globals"]["Function"]["Environment"]["Variables"];
    variables.extend(globals.as_object().unwrap().keys().map(String::as_str));
    for (_, block) in functions(&template) {
        let own = block["Properties"]["Environment"]["Variables"].as_object();
        variables.extend(own.into_iter().flat_map(|own| own.keys().map(String::as_str)));
    }
    for variable in &variables {
        assert!(configuration.contains(&format!("`{variable}`")), "docs/configuration.md does not explain {variable}");
    }
    let environment: Value = serde_json::from_str(&read("events/env.json")).unwrap();
    let blocks: BTreeSet<&str> = functions(&template).iter().map(|(name, _)| *name).collect();
    for block in &blocks {
        // `sam local` would put in the names of the template's resources, which are no URLs.
        for variable in ["PARKING_QUEUE_URL", "REJECTED_QUEUE_URL"] {
            assert!(environment[block][variable].is_string(), "{variable} of {block} in events/env.json");
        }
    }
    for (function, own) in environment.as_object().unwrap() {
        assert!(blocks.contains(function.as_str()), "{function}");
        for variable in own.as_object().unwrap().keys() {
            assert!(variables.contains(variable.as_str()), "sam local ignores {variable}: the template lacks it");
        }
    }
    for parameter in template["Parameters"].as_object().unwrap() {
        assert!(parameter.1["Description"].as_str().is_some_and(|text| !text.is_empty()), "{}", parameter.0);
    }
}

#[test]
fn queues_give_back_what_failed() {
    let template = template();
    let timeout = template["Globals"]["Function"]["Timeout"].as_u64().unwrap();
    assert!(timeout < 30, "an HTTP API gives up after 30 s");
    let mut queues = 0;
    for (name, block) in functions(&template) {
        let events = block["Properties"]["Events"].as_object();
        for event in events.into_iter().flat_map(|events| events.values()).filter(|event| event["Type"] == "SQS") {
            queues += 1;
            let source = &event["Properties"];
            assert_eq!(source["FunctionResponseTypes"], serde_json::json!(["ReportBatchItemFailures"]), "{name}");
            let window = source["MaximumBatchingWindowInSeconds"].as_u64().unwrap_or(0);
            let queue = source["Queue"]["Fn::GetAtt"].clone();
            let queue = queue[0].as_str().or_else(|| queue.as_str()?.split('.').next()).unwrap();
            let queue = &template["Resources"][queue]["Properties"];
            assert!(queue["VisibilityTimeout"].as_u64().unwrap() >= 6 * timeout + window, "{name}");
            assert!(queue["RedrivePolicy"]["maxReceiveCount"].as_u64().unwrap() >= 5, "{name}");
        }
    }
    // The control API and the way back have no queue.
    assert_eq!(queues, functions(&template).len() - 2);
}

#[test]
fn the_translated_template_passes_cfn_lint() {
    let file = std::env::temp_dir().join(format!("translated-{}.json", std::process::id()));
    fs::write(&file, &*TRANSLATED).unwrap();
    // What SAM makes of a function with a condition says the condition again in all of its parts.
    let linted = Command::new(virtual_environment().join("bin/cfn-lint"))
        .args(["--ignore-checks", "W1028", "--"])
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn what_cannot_be_delivered_has_its_queues() {
    let template = template();
    let resources = &template["Resources"];
    let variables = &template["Globals"]["Function"]["Environment"]["Variables"];
    assert_eq!(variables["PARKING_QUEUE_URL"]["Ref"], "ParkingQueue");
    assert_eq!(variables["REJECTED_QUEUE_URL"]["Ref"], "RejectedQueue");
    assert_eq!(resources["ParkingQueue"]["Properties"]["RedrivePolicy"]["maxReceiveCount"], 100);
    let queues = resources.as_object().unwrap().iter().filter(|(_, resource)| resource["Type"] == "AWS::SQS::Queue");
    for (name, queue) in queues {
        assert_eq!(queue["Properties"]["MessageRetentionPeriod"], 14 * 24 * 3600, "{name}");
        assert_eq!(queue["Properties"]["SqsManagedSseEnabled"], true, "{name}");
    }
    let rights = |policy: &Value| policy["PolicyDocument"]["Statement"].to_string();
    let kinds = rights(&resources["FunctionBasics"]["Properties"]);
    assert!(kinds.contains("sqs:SendMessage") && kinds.contains("ParkingQueue") && kinds.contains("RejectedQueue"));
    let redelivery = rights(&resources["RedeliveryRole"]["Properties"]["Policies"][0]);
    assert!(!redelivery.contains("SenderAuth"));
}

/// The mappings from queues to functions, by the queue that they read.
fn queue_mappings(resources: &BTreeMap<&str, Value>) -> BTreeMap<String, Value> {
    of_type(resources, "AWS::Lambda::EventSourceMapping")
        .filter_map(|(_, mapping)| {
            let queue = mapping["EventSourceArn"].as_str()?.strip_suffix("/Arn")?;
            Some((queue.to_owned(), mapping.clone()))
        })
        .collect()
}

#[test]
fn redelivery_reads_batches_of_a_thousand_and_has_time_and_memory_for_them() {
    let stack = Stack::new(&[]);
    let resources = stack.resources();
    let mapping = &queue_mappings(&resources)["ParkingQueue"];
    assert_eq!(mapping["BatchSize"], 1000);
    assert_eq!(mapping["MaximumBatchingWindowInSeconds"], 1);
    assert_eq!(mapping["FunctionResponseTypes"], json!(["ReportBatchItemFailures"]));
    let function = &resources["Redelivery"]["Properties"];
    assert_eq!((&function["MemorySize"], &function["Timeout"]), (&json!(512), &json!(28)));
    let queue = &resources["ParkingQueue"]["Properties"];
    assert_eq!(queue["VisibilityTimeout"], 180);
    assert_eq!(queue["RedrivePolicy"]["maxReceiveCount"], 100);
    assert!(queue.get("FifoQueue").is_none(), "only standard queues have fair groups and a delay per message");
}

#[test]
fn parameters_of_parking_set_their_mapping_and_variable() {
    let given = [
        ("RedeliveryConcurrency", "7"),
        ("RedeliveryDelay", "8"),
        ("RedeliveryMaxDelay", "90"),
        ("ParkingMaxAge", "7200"),
        ("QueueConcurrency", "6"),
    ];
    let stack = Stack::new(&given);
    let resources = stack.resources();
    let variables = &resources["Redelivery"]["Properties"]["Environment"]["Variables"];
    assert_eq!(variables["REDELIVERY_CONCURRENCY"], "7");
    assert_eq!(variables["REDELIVERY_DELAY"], "8");
    assert_eq!(variables["REDELIVERY_MAX_DELAY"], "90");
    assert_eq!(variables["PARKING_MAX_AGE"], "7200");
    let mut mappings = queue_mappings(&resources);
    let parking = mappings.remove("ParkingQueue").unwrap();
    assert_eq!(parking["ScalingConfig"], json!({ "MaximumConcurrency": "7" }));
    assert_eq!(mappings.len(), 3, "one queue for each kind: {:?}", mappings.keys());
    for (queue, mapping) in mappings {
        assert_eq!(mapping["ScalingConfig"], json!({ "MaximumConcurrency": "6" }), "{queue}");
    }
}

#[test]
fn parameters_of_parking_accept_what_lambda_and_redelivery_accept() {
    let template = template();
    let parameters = &template["Parameters"];
    let deploy = read("docs/deploy.md");
    for (name, default, least, most) in [
        ("RedeliveryConcurrency", 20, 2, Some(1000)),
        ("QueueConcurrency", 50, 2, Some(1000)),
        ("RedeliveryDelay", 5, 1, Some(900)),
        ("RedeliveryMaxDelay", 30, 5, Some(900)),
        ("ParkingMaxAge", 14 * 24 * 3600, 3600, None),
    ] {
        let parameter = &parameters[name];
        assert_eq!(parameter["Type"], "Number", "{name}");
        assert_eq!(parameter["Default"], default, "{name}");
        assert_eq!(parameter["MinValue"], least, "{name}");
        assert_eq!(parameter.get("MaxValue").and_then(Value::as_i64), most, "{name}");
        let row = deploy.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
        assert!(row.split(" | ").last().unwrap().starts_with(&format!("`{default}`")), "{row}");
    }
    let default = |name: &str| parameters[name]["Default"].as_u64().unwrap();
    assert!(default("RedeliveryDelay") <= default("RedeliveryMaxDelay"), "redelivery does not start otherwise");
    // The usual quota is 1,000 concurrent executions, and webhooks need most of it.
    assert!(3 * default("QueueConcurrency") + default("RedeliveryConcurrency") <= 200);
    // Each concurrent execution may have a batch in flight, and SQS allows 120,000 messages.
    assert!(default("RedeliveryConcurrency") * 1000 < 60_000);
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
    assert_eq!(alarms.len(), queue_mappings(&resources).len() - 1, "redelivery's queue has ParkedAgeAlarm");
    for alarm in alarms {
        assert_eq!(alarm["MetricName"], "ApproximateAgeOfOldestMessage");
        assert_eq!(alarm["ComparisonOperator"], "GreaterThanThreshold");
        assert_eq!(alarm["Threshold"], "321");
    }
}

#[test]
fn the_age_of_source_records_is_unlimited_or_one_that_lambda_accepts() {
    const MATCH: &str = "import json, re, sys; pattern, *texts = json.load(sys.stdin); \
                         print(json.dumps([text for text in texts if re.search(pattern, text)]))";
    let template = template();
    let parameter = &template["Parameters"]["SourceMaximumAge"];
    assert_eq!(parameter["Default"], "-1");
    let valid = ["-1", "60", "99", "100", "86400", "599999", "604799", "604800"];
    let invalid = ["0", "59", "604801", "700000", "-2", "", "060", "1e5"];
    let mut given = vec![parameter["AllowedPattern"].as_str().unwrap()];
    given.extend(valid.iter().chain(&invalid));
    let mut python = Command::new(virtual_environment().join("bin/python"))
        .args(["-c", MATCH])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(python.stdin.take().unwrap(), &given).unwrap();
    let matching: Vec<String> = serde_json::from_slice(&python.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(matching, valid);
}

#[test]
fn every_queue_accepts_the_largest_message_that_the_code_sends() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let mut queues = 0;
    for (name, queue) in of_type(&resources, "AWS::SQS::Queue") {
        assert_eq!(queue["MaximumMessageSize"], shared::aws::sqs::MAX_BYTES, "{name}");
        queues += 1;
    }
    assert_eq!(queues, 9);
}

#[test]
fn every_queue_denies_requests_without_tls() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    let mut protected = Vec::new();
    for (name, policy) in of_type(&resources, "AWS::SQS::QueuePolicy") {
        let statement = json!({
            "Effect": "Deny", "Principal": "*", "Action": "sqs:*", "Resource": "*",
            "Condition": { "Bool": { "aws:SecureTransport": "false" } },
        });
        assert!(policy["PolicyDocument"]["Statement"].as_array().unwrap().contains(&statement), "{name}");
        protected.extend(policy["Queues"].as_array().unwrap().iter().map(|queue| queue.as_str().unwrap().to_owned()));
    }
    protected.sort_unstable();
    // A second policy of one queue would replace the first.
    let queues: Vec<&str> = of_type(&resources, "AWS::SQS::Queue").map(|(name, _)| name).collect();
    assert_eq!(protected, queues);
}

#[test]
fn redelivery_may_receive_hold_and_store_parked_messages_and_the_kinds_may_only_store_them() {
    let stack = Stack::new(&EVERYTHING);
    let resources = stack.resources();
    // The actions that the statements of a policy allow for a queue.
    let actions = |document: &Value, queue: &str| -> BTreeSet<String> {
        let one_or_many = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let statements = document["Statement"].as_array().unwrap().iter();
        let about_queue = statements.filter(|statement| one_or_many(&statement["Resource"]).contains(&queue.into()));
        let actions = about_queue.flat_map(|statement| one_or_many(&statement["Action"]));
        actions.map(|action| action.as_str().unwrap().to_owned()).collect()
    };
    let set = |actions: &[&str]| actions.iter().map(|action| format!("sqs:{action}")).collect::<BTreeSet<_>>();
    let redelivery = &resources["RedeliveryRole"]["Properties"]["Policies"][0]["PolicyDocument"];
    let all = ["ChangeMessageVisibility", "DeleteMessage", "GetQueueAttributes", "ReceiveMessage", "SendMessage"];
    assert_eq!(actions(redelivery, "ParkingQueue/Arn"), set(&all));
    assert_eq!(actions(redelivery, "RejectedQueue/Arn"), set(&["SendMessage"]));
    let kinds = &resources["FunctionBasics"]["Properties"]["PolicyDocument"];
    assert_eq!(actions(kinds, "ParkingQueue/Arn"), set(&["SendMessage"]));
    assert_eq!(actions(kinds, "RejectedQueue/Arn"), set(&["SendMessage"]));
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
    assert!(quiet["EvaluationPeriods"].as_u64().unwrap() >= 3, "fairness sets in after some minutes");
    assert!(quiet.get("DatapointsToAlarm").is_none(), "every period has to breach");
    // The dashboard shows the same number against the quota, and the threshold beside it.
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

#[test]
fn the_control_api_alone_has_an_authorizer_and_writes_flows() {
    let template = template();
    let resources = &template["Resources"];
    for (name, block) in functions(&template) {
        for (event, source) in block["Properties"]["Events"].as_object().into_iter().flatten() {
            let has_authorizer = source["Properties"]["Auth"]["Authorizer"] == "Tokens";
            assert_eq!(has_authorizer, name == "FlowService" && event != "Document", "{name} {event}");
        }
    }
    assert!(resources["Api"]["Properties"].get("Auth").is_none(), "webhooks have none");
    // Who gives no issuer has no control API, and nothing that asks for one.
    assert_eq!(template["Parameters"]["TokenIssuer"]["Default"], "");
    let without_issuer = &template["Conditions"]["HasControlApi"]["Fn::Not"][0]["Fn::Equals"];
    assert_eq!(*without_issuer, serde_json::json!([{ "Ref": "TokenIssuer" }, ""]));
    for name in ["FlowService", "FlowServiceRole", "ControlApi"] {
        assert_eq!(resources[name]["Condition"], "HasControlApi", "{name}");
    }
    assert_eq!(template["Outputs"]["ControlApiUrl"]["Condition"], "HasControlApi");
    for (name, resource) in resources.as_object().unwrap().iter().filter(|(name, _)| *name != "Dashboard") {
        let needs_issuer = ["TokenIssuer", "FlowService.", "\"FlowService\"", "ControlApi"];
        let text = resource.to_string();
        let is_ours = resource["Condition"] == "HasControlApi";
        assert!(is_ours || !needs_issuer.iter().any(|needed| text.contains(needed)), "{name}");
    }
    assert_eq!(template["Globals"]["Function"]["Environment"]["Variables"]["FLOWS_TABLE"]["Ref"], "FlowsTable");
    let kinds = resources["FunctionBasics"]["Properties"]["PolicyDocument"]["Statement"].to_string();
    let redelivery = resources["RedeliveryRole"]["Properties"]["Policies"][0].to_string();
    for rights in [&kinds, &redelivery] {
        assert!(rights.contains("dynamodb:GetItem") && rights.contains("/flows/"), "{rights}");
        assert!(!rights.contains("dynamodb:PutItem") && !rights.contains("CreateSecret"), "{rights}");
    }
    // Runs are read from where all functions log.
    assert_eq!(template["Globals"]["Function"]["LoggingConfig"]["LogGroup"]["Ref"], "FunctionLogs");
    let variables = &resources["FlowService"]["Properties"]["Environment"]["Variables"];
    assert_eq!(variables["LOG_GROUP"]["Ref"], "FunctionLogs");
    let control = resources["FlowServiceRole"]["Properties"]["Policies"][0].to_string();
    assert!(control.contains("logs:FilterLogEvents") && !kinds.contains("logs:FilterLogEvents"));
    // Flows from a hub change the function that serves them, and no other one.
    let statements = &resources["FlowServiceRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"];
    let of_lambda = statements.as_array().unwrap().iter().filter(|statement| statement.to_string().contains("lambda:"));
    for statement in of_lambda.filter(|statement| statement["Action"] != "lambda:ListEventSourceMappings") {
        let told = [&statement["Resource"], &statement["Condition"]["ArnLike"]["lambda:FunctionArn"]];
        assert!(told.iter().any(|arns| arns.to_string().matches("PlatformIngest").count() == 2), "{statement}");
    }
    assert_eq!(variables["PLATFORM_INGEST_FUNCTION"]["Ref"], "PlatformIngest");
    for always in ["PlatformIngest", "PlatformIngestRole"] {
        assert!(resources[always].get("Condition").is_none(), "{always}");
    }
    assert_eq!(resources["PlatformIngestHub"]["Condition"], "HasSource");
    // The table that tests and local runs use is the same one.
    let (ours, table) = (local::run::flows_table("flows"), &resources["FlowsTable"]["Properties"]);
    for member in ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"] {
        assert_eq!(ours[member], table[member], "{member}");
    }
}

#[tokio::test]
async fn sample_events_are_delivered() {
    let environment: Value = serde_json::from_str(&read("events/env.json")).unwrap();
    let mut samples = 0;
    for entry in fs::read_dir(root().join("events")).unwrap() {
        let path = entry.unwrap().path();
        let event: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap();
        let kind = file.split('-').take(2).collect::<Vec<_>>().join("-");
        if file == "env" {
            continue;
        }
        if kind == "redelivery-queue" {
            assert_eq!(redelivered(&event, &environment["Redelivery"]).await, 1);
            samples += 1;
            continue;
        }
        if kind == "platform-ingest" {
            assert_eq!(crate::ingest::ingested(&event, &environment["PlatformIngest"]).await, 2);
            samples += 1;
            continue;
        }
        let block: String = kind.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        let senders = environment[&block]["SENDER_AUTH"].as_str().unwrap();
        let system = start_kind(&kind, hub_config(), &[("SENDER_AUTH", senders)]).await;
        match (event.get("requestContext"), event.get("Records")) {
            (Some(_), _) => assert_eq!(system.answer(&event).await, delivered(1), "{}", path.display()),
            (_, Some(records)) => {
                assert!(system.failures(records.as_array().unwrap()).await.is_empty(), "{}", path.display());
            }
            _ => panic!("{file} is no event"),
        }
        samples += 1;
        assert!(system.stored() > 0, "{}", path.display());
    }
    assert_eq!(samples, 7);
}

/// How many messages reach the hub, once the parked envelope is for the hub of this test.
async fn redelivered(event: &Value, environment: &Value) -> usize {
    let record = &event["Records"][0];
    let mut envelope: Value = serde_json::from_str(&unpacked(record["body"].as_str().unwrap()).unwrap()).unwrap();
    let connection = environment["EVENT_HUBS_CONNECTION_STRING"].as_str().unwrap();
    assert!(connection.contains(&format!("sb://{};", envelope["host"].as_str().unwrap())), "sam local delivers it");
    assert!(!connection.contains("EntityPath"), "redelivery sends to the hubs of all kinds");
    let url = environment["PARKING_QUEUE_URL"].as_str().unwrap();
    let system = start_kind("redelivery", hub_config(), &[("PARKING_QUEUE_URL", url)]).await;
    envelope["host"] = system.hub.url().replace("http://", "").into();
    envelope["hub"] = HUB.into();
    let mut record = record.clone();
    record["body"] = pack(envelope.to_string().as_bytes()).into();
    assert!(system.failures(&[record]).await.is_empty());
    system.stored()
}
