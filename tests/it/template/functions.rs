//! Functions, their variables, their rights and the APIs in front of them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::json;

use super::*;

#[test]
fn functions_are_traced_logs_expire_and_apis_have_limits() {
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
    // Lambda drops lines below the level, and CloudWatch extracts metrics from INFO lines.
    assert_eq!(template()["Parameters"]["LogLevel"]["AllowedValues"], json!(["TRACE", "DEBUG", "INFO"]));
}

#[test]
fn every_folder_of_a_function_has_its_block() {
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
        assert!(!manifest.contains("[[bin]]"), "one binary per package, with the name of the package");
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
        // `sam local` would insert the names of the template's resources, which are not URLs.
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
fn the_translated_template_passes_cfn_lint() {
    let file = std::env::temp_dir().join(format!("translated-{}.json", std::process::id()));
    fs::write(&file, &*TRANSLATED).unwrap();
    // SAM repeats the condition of a function in every resource that it creates for the function.
    let linted = Command::new(virtual_environment().join("bin/cfn-lint"))
        .args(["--ignore-checks", "W1028", "--"])
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
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
    // Without an issuer, neither the control API nor any resource that refers to it is created.
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
        let is_conditional = resource["Condition"] == "HasControlApi";
        assert!(is_conditional || !needs_issuer.iter().any(|needed| text.contains(needed)), "{name}");
    }
    assert_eq!(template["Globals"]["Function"]["Environment"]["Variables"]["FLOWS_TABLE"]["Ref"], "FlowsTable");
    let kinds = resources["FunctionBasics"]["Properties"]["PolicyDocument"]["Statement"].to_string();
    let redelivery = resources["RedeliveryRole"]["Properties"]["Policies"][0].to_string();
    for rights in [&kinds, &redelivery] {
        assert!(rights.contains("dynamodb:GetItem") && rights.contains("/flows/"), "{rights}");
        assert!(!rights.contains("dynamodb:PutItem") && !rights.contains("CreateSecret"), "{rights}");
    }
    // The control API reads runs from the log group of all functions.
    assert_eq!(template["Globals"]["Function"]["LoggingConfig"]["LogGroup"]["Ref"], "FunctionLogs");
    let variables = &resources["FlowService"]["Properties"]["Environment"]["Variables"];
    assert_eq!(variables["LOG_GROUP"]["Ref"], "FunctionLogs");
    // Text in brackets may be a caller's own text: only an operator can say that it is a list.
    assert_eq!(template["Parameters"]["OrgClaimType"]["Default"], "text");
    assert_eq!(variables["ORG_CLAIM_TYPE"]["Ref"], "OrgClaimType");
    let control = resources["FlowServiceRole"]["Properties"]["Policies"][0].to_string();
    assert!(control.contains("logs:FilterLogEvents") && !kinds.contains("logs:FilterLogEvents"));
    // Flows from a hub may change only the function that serves them.
    let statements = &resources["FlowServiceRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"];
    let of_lambda = statements.as_array().unwrap().iter().filter(|statement| statement.to_string().contains("lambda:"));
    for statement in of_lambda.filter(|statement| statement["Action"] != "lambda:ListEventSourceMappings") {
        let arns = [&statement["Resource"], &statement["Condition"]["ArnLike"]["lambda:FunctionArn"]];
        assert!(arns.iter().any(|arns| arns.to_string().matches("PlatformIngest").count() == 2), "{statement}");
    }
    assert_eq!(variables["PLATFORM_INGEST_FUNCTION"]["Ref"], "PlatformIngest");
    for always in ["PlatformIngest", "PlatformIngestRole"] {
        assert!(resources[always].get("Condition").is_none(), "{always}");
    }
    assert_eq!(resources["PlatformIngestHub"]["Condition"], "HasSource");
    // Tests and local runs use the same table definition.
    let (local, table) = (local::run::flows_table("flows"), &resources["FlowsTable"]["Properties"]);
    for member in ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"] {
        assert_eq!(local[member], table[member], "{member}");
    }
}
