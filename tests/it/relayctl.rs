//! `relayctl parked`, as an operator runs it, against queues that have the names of a stack's queues.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::aws::Service;
use shared::contract::codec::pack;
use shared::contract::parked::Envelope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cloud::*;
use crate::harness::binary;

const STACK: &str = "relay";
const HOST: &str = "ns-1.servicebus.windows.net";
const BODY: &str = "a body that must not be shown";
const SUBJECT: &str = "a subject that must not be shown";
const SECRET: &str = "a secret id that must not be shown";

/// The parking queue of a stack and its dead letters.
struct Stack {
    cloud: Cloud,
    parking: String,
    dead_letters: String,
}

impl Stack {
    async fn start() -> Self {
        let cloud = Cloud::start().await;
        let dead_letters = cloud.queue("relay-ParkingDeadLetters-XYZ").await;
        let arn = format!("arn:aws:sqs:{REGION}:123456789012:relay-ParkingDeadLetters-XYZ");
        let redrive = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": "100" }).to_string();
        let attributes = json!({ "VisibilityTimeout": "600", "RedrivePolicy": redrive });
        let create = json!({ "QueueName": "relay-ParkingQueue-ABC", "Attributes": attributes });
        let created = cloud.call(Service::Sqs, "CreateQueue", create).await;
        Self { cloud, parking: created["QueueUrl"].as_str().unwrap().to_owned(), dead_letters }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("relayctl"));
        command.arg("parked").args(arguments).envs(self.cloud.variables()).stdin(Stdio::null());
        command
    }

    /// Runs `relayctl parked` with the stack's name.
    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.args(["--stack", STACK]);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// The JSON document of a command that succeeds.
    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn send(&self, queue: &str, body: &str) {
        self.cloud.call(Service::Sqs, "SendMessage", json!({ "QueueUrl": queue, "MessageBody": body })).await;
    }

    /// Receives and deletes all messages, which must all be visible. Returns their bodies.
    async fn take(&self, queue: &str) -> Vec<String> {
        let taken = self.cloud.take(queue).await;
        assert_eq!(self.count(queue).await, "0+0", "messages are hidden");
        let mut bodies: Vec<String> =
            taken.iter().map(|message| message["Body"].as_str().unwrap().to_owned()).collect();
        bodies.sort();
        bodies
    }

    /// Numbers of visible and of hidden messages.
    async fn count(&self, queue: &str) -> String {
        let ask = json!({ "QueueUrl": queue, "AttributeNames": ["All"] });
        let reported = self.cloud.call(Service::Sqs, "GetQueueAttributes", ask).await;
        let attribute = |name: &str| reported["Attributes"][name].as_str().unwrap().to_owned();
        format!("{}+{}", attribute("ApproximateNumberOfMessages"), attribute("ApproximateNumberOfMessagesNotVisible"))
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn problem(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An envelope with this number of messages. `change` replaces its members.
fn envelope(messages: usize, change: Value) -> String {
    let message = json!({ "id": "m", "subject": SUBJECT, "body": BODY, "properties": {} });
    let mut envelope = json!({
        "v": 1, "kind": "audience-change", "flow": "default", "hub": "profiles", "host": HOST, "secretId": SECRET,
        "firstSeen": "2026-01-01T00:00:00.000Z", "reason": "unavailable", "messages": vec![message; messages],
    });
    for (name, value) in change.as_object().unwrap() {
        envelope[name] = value.clone();
    }
    pack(envelope.to_string().as_bytes())
}

fn sorted(bodies: &[&String]) -> Vec<String> {
    let mut bodies: Vec<String> = bodies.iter().map(|body| (*body).clone()).collect();
    bodies.sort();
    bodies
}

#[tokio::test]
async fn list_counts_each_group_once_and_leaves_all_messages_visible() {
    let stack = Stack::start().await;
    let sent = [
        envelope(2, json!({})),
        envelope(3, json!({ "firstSeen": "2025-12-31T23:00:00+01:00" })),
        envelope(1, json!({ "flow": "crm\u{1b}[2J", "reason": "timeout" })),
    ];
    for body in &sent {
        stack.send(&stack.parking, body).await;
    }
    // More messages than one receive call returns.
    let many: Vec<String> =
        (0..25).map(|n| envelope(1, json!({ "hub": "others", "secretId": n.to_string() }))).collect();
    for body in &many {
        stack.send(&stack.parking, body).await;
    }
    let dead = [envelope(4, json!({})), "no envelope".to_owned(), envelope(1, json!({ "v": 2 }))];
    for body in &dead {
        stack.send(&stack.dead_letters, body).await;
    }

    let table = stack.run(&["list"]).await;
    assert!(table.status.success(), "{table:?}");
    let table = text(&table);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        "QUEUE HOST HUB KIND FLOW REASON ENVELOPES MESSAGES OLDEST",
        "parking ns-1.servicebus.windows.net profiles audience-change default unavailable 2 5 2025-12-31T22:00:00Z",
        "parking ns-1.servicebus.windows.net profiles audience-change crm\\u{1b}[2J timeout 1 1 2026-01-01T00:00:00Z",
        "parking ns-1.servicebus.windows.net others audience-change default unavailable 25 25 2026-01-01T00:00:00Z",
        "dead letters ns-1.servicebus.windows.net profiles audience-change default unavailable 1 4 2026-01-01T00:00:00Z",
        "parking: 28 envelopes looked at",
        "dead letters: 3 envelopes looked at",
    ] {
        let wanted: Vec<&str> = row.split(' ').collect();
        assert!(rows.contains(&wanted), "{row}: {table}");
    }
    assert_eq!(table.matches("\ndead letters  ").count(), 3, "two are unreadable: {table}");
    assert!(table.contains("version 2"), "{table}");
    assert!(![BODY, SUBJECT, SECRET, "\u{1b}"].iter().any(|text| table.contains(text)), "{table}");

    let listed = stack.json(&["list"]).await;
    assert_eq!(
        listed["groups"][3],
        json!({
            "queue": "dead-letters", "host": HOST, "hub": "profiles", "kind": "audience-change", "flow": "default",
            "reason": "unavailable", "envelopes": 1, "messages": 4, "oldestFirstSeen": "2026-01-01T00:00:00Z",
        })
    );
    assert_eq!((listed["action"].clone(), listed["dryRun"].clone()), (json!("list"), json!(false)));
    assert_eq!(listed["unreadable"].as_array().unwrap().len(), 2);
    let unreadable = listed["unreadable"][0].as_object().unwrap();
    assert_eq!(unreadable.keys().collect::<Vec<_>>(), ["messageId", "problem", "queue"]);
    assert_eq!(
        listed["queues"][0],
        json!({
            "queue": "parking", "url": stack.parking, "seen": 28, "notSeen": 0, "hidden": 0, "delayed": 0,
            "ended": "empty", "done": 0, "doneMessages": 0, "failed": 0, "problem": null,
        })
    );

    let all: Vec<&String> = sent.iter().chain(&many).collect();
    assert_eq!(stack.take(&stack.parking).await, sorted(&all));
    assert_eq!(stack.take(&stack.dead_letters).await, sorted(&dead.iter().collect::<Vec<_>>()));
}

#[tokio::test]
async fn each_filter_selects_by_its_own_member() {
    let stack = Stack::start().await;
    let now = shared::clock::Clock::system().rfc3339();
    let base = json!({ "firstSeen": now });
    let with = |name: &str, value: &str| {
        let mut change = base.clone();
        change[name] = value.into();
        envelope(1, change)
    };
    for body in [
        envelope(1, base.clone()),
        with("host", "127.0.0.1:5300"),
        with("hub", "others"),
        with("kind", "profile-export"),
        with("flow", "crm"),
        with("reason", "timeout"),
        with("firstSeen", "2026-01-01T00:00:00Z"),
        with("firstSeen", "yesterday"),
        "no envelope".to_owned(),
    ] {
        stack.send(&stack.parking, &body).await;
    }
    stack.send(&stack.dead_letters, &with("flow", "crm")).await;
    let cases: &[(&[&str], usize, usize)] = &[
        (&[], 9, 1),
        (&["--host", "127.0.0.1:5300"], 1, 0),
        (&["--hub", "others"], 1, 0),
        (&["--kind", "profile-export"], 1, 0),
        (&["--flow", "crm"], 2, 0),
        (&["--flow", "crm", "--parking"], 1, 0),
        (&["--flow", "crm", "--dead-letters"], 1, 0),
        (&["--flow", "crm", "--flow", "default", "--parking"], 8, 0),
        (&["--flow", "crm", "--reason", "timeout"], 0, 0),
        (&["--reason", "timeout"], 1, 0),
        (&["--older-than", "6h"], 1, 0),
        (&["--older-than", "0s", "--parking"], 7, 0),
        (&["--unreadable"], 0, 1),
    ];
    for (filter, envelopes, unreadable) in cases {
        let listed = stack.json(&[&["list"], *filter].concat()).await;
        let groups = listed["groups"].as_array().unwrap();
        let count: u64 = groups.iter().map(|group| group["envelopes"].as_u64().unwrap()).sum();
        assert_eq!(count, *envelopes as u64, "{filter:?}: {listed}");
        assert_eq!(listed["unreadable"].as_array().unwrap().len(), *unreadable, "{filter:?}: {listed}");
    }
    for wrong in ["6", "h", "-1h", "6 h", "99999999999999999999s", "1.5h"] {
        assert_eq!(stack.run(&["list", "--older-than", wrong]).await.status.code(), Some(2), "{wrong}");
    }
}

#[tokio::test]
async fn list_reports_hidden_messages_and_waits_for_them_on_request() {
    let stack = Stack::start().await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;
    let hide = json!({ "QueueUrl": stack.parking, "VisibilityTimeout": 4 });
    stack.cloud.call(Service::Sqs, "ReceiveMessage", hide).await;
    let delayed = json!({ "QueueUrl": stack.parking, "MessageBody": envelope(1, json!({})), "DelaySeconds": 5 });
    stack.cloud.call(Service::Sqs, "SendMessage", delayed).await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;

    let listed = stack.run(&["list", "--parking"]).await;
    let line = "parking: 1 envelope looked at; about 2 more could not be looked at (SQS reports 1 hidden, 1 delayed)";
    assert!(text(&listed).contains(line), "{}", text(&listed));

    let waited = stack.json(&["list", "--parking", "--wait", "60s"]).await;
    assert_eq!(waited["groups"][0]["envelopes"], 3);
    let queue = &waited["queues"][0];
    assert_eq!((&queue["seen"], &queue["notSeen"], &queue["ended"]), (&json!(3), &json!(0), &json!("empty")));

    stack.send(&stack.dead_letters, &envelope(1, json!({}))).await;
    let limited = stack.json(&["list", "--max", "2"]).await;
    assert_eq!(limited["queues"][1]["seen"], 1, "each queue has its own maximum");
    let queue = &limited["queues"][0];
    assert_eq!((&queue["seen"], &queue["notSeen"], &queue["ended"]), (&json!(2), &json!(1), &json!("max")));
    assert_eq!(stack.take(&stack.parking).await.len(), 3);
}

#[tokio::test]
async fn retry_moves_each_dead_letter_once_and_only_after_its_copy_is_stored() {
    let stack = Stack::start().await;
    let small = envelope(2, json!({ "flow": "crm" }));
    let other = envelope(1, json!({ "hub": "others" }));
    // Random text does not compress: the envelope is larger than this parking queue accepts.
    let noise: String = (0..4000).map(|_| fastrand::alphanumeric()).collect();
    let large = envelope(1, json!({ "secretId": noise }));
    let limit = json!({ "QueueUrl": stack.parking, "Attributes": { "MaximumMessageSize": "1024" } });
    stack.cloud.call(Service::Sqs, "SetQueueAttributes", limit).await;
    for body in [&small, &other, &large, &"no envelope".to_owned()] {
        stack.send(&stack.dead_letters, body).await;
    }

    let dry = stack.run(&["retry", "--dry-run", "--flow", "crm"]).await;
    assert!(dry.status.success(), "{dry:?}");
    let line = "dead letters: 4 envelopes looked at; 1 envelope with 2 messages would be sent to the parking queue";
    assert!(text(&dry).contains(line), "{}", text(&dry));
    assert_eq!(
        (stack.count(&stack.parking).await, stack.count(&stack.dead_letters).await),
        ("0+0".into(), "4+0".into())
    );

    let retried = stack.run(&["retry", "--flow", "crm"]).await;
    assert!(retried.status.success(), "{retried:?}");
    assert!(text(&retried).contains("1 envelope with 2 messages sent to the parking queue"), "{}", text(&retried));
    let parked = stack.cloud.take(&stack.parking).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0]["Body"], small.as_str());
    let digest: String = Sha256::digest(format!("{HOST}/profiles")).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(parked[0]["Attributes"]["MessageGroupId"], &digest[..32]);
    assert_eq!(stack.count(&stack.dead_letters).await, "3+0");

    let failed = stack.run(&["retry", "--flow", "default", "--json"]).await;
    assert_eq!(failed.status.code(), Some(1));
    let outcome: Value = serde_json::from_slice(&failed.stdout).unwrap();
    let queue = &outcome["queues"][1];
    assert_eq!((&queue["done"], &queue["failed"]), (&json!(1), &json!(1)), "{outcome}");
    assert!(queue["problem"].as_str().unwrap().contains("SendMessage"), "{outcome}");
    assert_eq!(stack.take(&stack.parking).await, [other]);

    // Unreadable messages stay too.
    assert_eq!(stack.run(&["retry", "--unreadable"]).await.status.code(), Some(1));
    assert_eq!(stack.take(&stack.dead_letters).await, sorted(&[&large, &"no envelope".to_owned()]));
}

#[tokio::test]
async fn retry_makes_parked_messages_visible() {
    let stack = Stack::start().await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;
    stack.send(&stack.parking, &envelope(1, json!({ "flow": "crm" }))).await;
    let retried = stack.run(&["retry", "--parking", "--flow", "crm"]).await;
    assert!(text(&retried).contains("parking: 2 envelopes looked at; 1 envelope with 1 message made visible"));
    assert_eq!(stack.take(&stack.parking).await.len(), 2);
}

#[tokio::test]
async fn drop_deletes_matching_messages_after_writing_them_to_a_file() {
    let stack = Stack::start().await;
    let file = std::env::temp_dir().join(format!("dropped-{}.jsonl", std::process::id()));
    let path = file.to_str().unwrap();
    let crm = envelope(2, json!({ "flow": "crm" }));
    let kept = envelope(1, json!({}));
    for body in [&crm, &kept] {
        stack.send(&stack.parking, body).await;
    }
    for body in [&crm, &"no envelope".to_owned()] {
        stack.send(&stack.dead_letters, body).await;
    }

    fs::write(&file, "the only copy of an earlier drop").unwrap();
    let dry = stack.run(&["drop", "--flow", "crm", "--to", path, "--dry-run", "--yes"]).await;
    assert!(dry.status.success(), "{dry:?}");
    assert!(text(&dry).contains("1 envelope with 2 messages would be deleted"), "{}", text(&dry));
    assert_eq!(
        (stack.count(&stack.parking).await, stack.count(&stack.dead_letters).await),
        ("2+0".into(), "2+0".into())
    );

    let refused = stack.run(&["drop", "--flow", "crm", "--to", path, "--yes"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(problem(&refused).contains("nothing was deleted"), "{}", problem(&refused));
    assert_eq!(fs::read_to_string(&file).unwrap(), "the only copy of an earlier drop");
    fs::remove_file(&file).unwrap();

    let dropped = stack.json(&["drop", "--flow", "crm", "--to", path, "--yes"]).await;
    let outcomes = dropped["queues"].as_array().unwrap().iter().map(|queue| (&queue["done"], &queue["doneMessages"]));
    assert_eq!(outcomes.collect::<Vec<_>>(), [(&json!(1), &json!(2)); 2]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(lines.len(), 2);
    let envelope = Envelope::parse(lines[0]).unwrap();
    assert_eq!((envelope.head.flow.as_ref(), envelope.messages().count()), ("crm", 2));
    assert_eq!(
        (stack.count(&stack.parking).await, stack.count(&stack.dead_letters).await),
        ("1+0".into(), "1+0".into())
    );

    fs::remove_file(&file).unwrap();
    stack.json(&["drop", "--all", "--to", path, "--yes"]).await;
    assert!(fs::read_to_string(&file).unwrap().ends_with("{\"unreadable\":\"no envelope\"}\n"));
    assert_eq!(
        (stack.count(&stack.parking).await, stack.count(&stack.dead_letters).await),
        ("0+0".into(), "0+0".into())
    );

    // A file without envelopes would only hide that nothing was dropped.
    fs::remove_file(&file).unwrap();
    stack.json(&["drop", "--all", "--to", path, "--yes"]).await;
    assert!(!file.exists());
}

#[tokio::test]
async fn drop_refuses_without_a_filter_and_without_confirmation() {
    let stack = Stack::start().await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;
    for (arguments, remedy) in [
        (&["drop", "--yes"][..], "--all"),
        (&["drop", "--parking", "--yes"], "--all"),
        (&["drop", "--flow", "default"], "--yes"),
        (&["drop", "--flow", "default", "--all", "--yes"], "--all"),
    ] {
        let refused = stack.run(arguments).await;
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(problem(&refused).contains(remedy), "{}", problem(&refused));
    }
    assert_eq!(stack.count(&stack.parking).await, "1+0");
}

#[tokio::test]
async fn an_interrupted_command_releases_its_messages_and_drops_none() {
    let stack = Stack::start().await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;
    let delayed = json!({ "QueueUrl": stack.parking, "MessageBody": "later", "DelaySeconds": 600 });
    stack.cloud.call(Service::Sqs, "SendMessage", delayed).await;
    for signal in ["INT", "TERM", "HUP"] {
        let mut command = stack.command(&["drop", "--all", "--yes", "--wait", "5m", "--stack", STACK]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the message is received", async || stack.count(&stack.parking).await == "0+1").await;
        assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(ended.status.code(), Some(1), "{signal}: {ended:?}");
        assert!(problem(&ended).contains("stopped by a signal"), "{}", problem(&ended));
        assert_eq!(stack.count(&stack.parking).await, "1+0", "{signal}");
    }
}

#[tokio::test]
async fn the_queues_are_found_by_stack_url_or_running_system() {
    let stack = Stack::start().await;
    stack.send(&stack.parking, &envelope(1, json!({}))).await;
    stack.send(&stack.dead_letters, &envelope(1, json!({}))).await;
    let run = async |mut command: Command| {
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), text(&output), problem(&output))
    };
    let both = |text: &str| text.contains("parking: 1 envelope") && text.contains("dead letters: 1 envelope");

    let (code, text, _) = run(stack.command(&["list", "--queue-url", &stack.parking])).await;
    assert!(code == Some(0) && both(&text), "{text}");

    // The credentials and the endpoint are the system's own, not those of the environment.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let info = json!({
        "hubUrl": "", "awsEndpoint": stack.cloud.endpoint(), "awsRegion": REGION, "parkingQueueUrl": stack.parking, "kinds": [],
    });
    let serving = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).await.unwrap();
        assert!(request[..length].starts_with(b"GET /_local/info HTTP/1.1\r\n"));
        let (body, head) = (info.to_string(), "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length:");
        connection.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    });
    let mut command = stack.command(&["list", "--local", &address]);
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let (code, text, errors) = run(command).await;
    assert!(code == Some(0) && both(&text), "{text} {errors}");
    serving.await.unwrap();
    let (code, _, errors) = run(stack.command(&["list", "--local", &address])).await;
    assert!(code == Some(1) && errors.contains("make run"), "{errors}");

    let (code, _, errors) = run(stack.command(&["list", "--stack", "other"])).await;
    assert!(code == Some(1) && errors.contains("`other-ParkingQueue-`") && errors.contains("--queue-url"), "{errors}");
    let (code, _, errors) = run(stack.command(&["list", "--dead-letters", "--queue-url", &stack.dead_letters])).await;
    assert!(code == Some(1) && errors.contains("no dead-letter queue"), "{errors}");
    let mut command = stack.command(&["list", "--stack", STACK]);
    command.env_remove("AWS_REGION").env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CONFIG_FILE", "/dev/null");
    let (code, _, errors) = run(command).await;
    assert!(code == Some(1) && errors.contains("--region"), "{errors}");
    stack.cloud.queue("relay-ParkingQueue-DEF").await;
    let (code, _, errors) = run(stack.command(&["list", "--stack", STACK])).await;
    assert!(code == Some(1) && errors.contains("several queues") && errors.contains(&stack.parking), "{errors}");
}

#[tokio::test]
async fn calls_of_aws_go_through_the_proxy_of_the_environment() {
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut command = Command::new(binary("relayctl"));
    command
        .args(["replay", "--region", REGION, "--dry-run"])
        .args(["--rejected-queue-url", "https://sqs.eu-central-1.amazonaws.com/123456789012/rejected"])
        .env_clear()
        .envs([("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("HTTPS_PROXY", &url)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let request = tokio::time::timeout(Duration::from_secs(20), async {
        let (mut connection, _) = proxy.accept().await.unwrap();
        let mut start = [0; 8];
        tokio::io::AsyncReadExt::read_exact(&mut connection, &mut start).await.unwrap();
        start
    });
    let request = request.await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(&request.expect("relayctl connects to the proxy"), b"CONNECT ");
}
