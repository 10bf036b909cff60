//! The template, the folders, the sample events and the documentation agree.

mod dashboard;
mod functions;
mod queues;
mod samples;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::harness::*;
use crate::stack::{Stack, TRANSLATED};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The template as SAM reads it, with intrinsic functions in their long form.
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

/// Parameters that switch on all optional parts of the stack.
const EVERYTHING: [(&str, &str); 7] = [
    ("TokenIssuer", "https://issuer.example.com"),
    ("SourceHub", "profiles"),
    ("InletUrl", "https://dcs.adobedc.net/collection/1"),
    ("SenderAuth", "none"),
    ("PublicUrl", "https://events.example.com"),
    ("AlarmEmail", "operator@example.com"),
    ("ThroughputUnits", "20"),
];

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
    let body: Value = serde_json::from_str(body).expect("the body is JSON once all values are inserted");
    body["widgets"].as_array().unwrap().clone()
}

/// Namespace, name and dimensions of each metric of a widget, with `.` and `...` expanded. The dimensions of a search are empty.
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

/// The mappings from queues to functions, by queue.
fn queue_mappings(resources: &BTreeMap<&str, Value>) -> BTreeMap<String, Value> {
    of_type(resources, "AWS::Lambda::EventSourceMapping")
        .filter_map(|(_, mapping)| {
            let queue = mapping["EventSourceArn"].as_str()?.strip_suffix("/Arn")?;
            Some((queue.to_owned(), mapping.clone()))
        })
        .collect()
}
