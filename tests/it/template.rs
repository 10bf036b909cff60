//! The template, the folders, the sample events and the README agree.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use shared::parking::{pack, unpack};

use crate::harness::*;

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
    let readme = read("README.md");
    let mut variables: BTreeSet<&str> = BTreeSet::new();
    let globals = &template["Globals"]["Function"]["Environment"]["Variables"];
    variables.extend(globals.as_object().unwrap().keys().map(String::as_str));
    for (_, block) in functions(&template) {
        let own = block["Properties"]["Environment"]["Variables"].as_object();
        variables.extend(own.into_iter().flat_map(|own| own.keys().map(String::as_str)));
    }
    for variable in &variables {
        assert!(readme.contains(&format!("`{variable}`")), "{variable} is not in the README");
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
    let translated = Command::new(virtual_environment().join("bin/python"))
        .arg(root().join("tests/translate_template.py"))
        .stdin(fs::File::open(root().join("template.yaml")).unwrap())
        .env("AWS_DEFAULT_REGION", "eu-central-1")
        .output()
        .unwrap();
    assert!(translated.status.success(), "{}", String::from_utf8_lossy(&translated.stderr));
    let file = std::env::temp_dir().join(format!("translated-{}.json", std::process::id()));
    fs::write(&file, translated.stdout).unwrap();
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
    let records = &resources["Redelivery"]["Properties"]["Events"]["Records"]["Properties"];
    assert_eq!(records["ScalingConfig"]["MaximumConcurrency"], 2);
    let rights = |policy: &Value| policy["PolicyDocument"]["Statement"].to_string();
    let kinds = rights(&resources["FunctionBasics"]["Properties"]);
    assert!(kinds.contains("sqs:SendMessage") && kinds.contains("ParkingQueue") && kinds.contains("RejectedQueue"));
    let redelivery = rights(&resources["RedeliveryRole"]["Properties"]["Policies"][0]);
    assert!(redelivery.contains("sqs:ChangeMessageVisibility") && !redelivery.contains("SenderAuth"));
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
    for (name, resource) in resources.as_object().unwrap() {
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
    // Flows from a hub change the function that serves them, and no other one.
    let statements = &resources["FlowServiceRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"];
    let of_lambda = statements.as_array().unwrap().iter().filter(|statement| statement.to_string().contains("lambda:"));
    for statement in of_lambda.filter(|statement| statement["Action"] != "lambda:ListEventSourceMappings") {
        let told = [&statement["Resource"], &statement["Condition"]["ArnLike"]["lambda:FunctionArn"]];
        assert!(told.iter().any(|arns| arns.to_string().matches("PlatformIngest").count() == 2), "{statement}");
    }
    let variables = &resources["FlowService"]["Properties"]["Environment"]["Variables"];
    assert_eq!(variables["PLATFORM_INGEST_FUNCTION"]["Ref"], "PlatformIngest");
    for always in ["PlatformIngest", "PlatformIngestRole", "PlatformIngestDeadLetters"] {
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
    let mut envelope: Value = serde_json::from_str(&unpack(record["body"].as_str().unwrap()).unwrap()).unwrap();
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
