//! Queues, the mappings that read them, and the parameters of parking.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

#[test]
fn queue_mappings_return_only_failed_records() {
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
    // The control API and platform-ingest have no queue.
    assert_eq!(queues, functions(&template).len() - 2);
}

#[test]
fn undelivered_messages_have_their_queues() {
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
    // A second policy of a queue would replace the first one.
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
