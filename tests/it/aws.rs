//! AWS calls: their signatures are accepted by a service that checks them, AWS's own SDK reads what they wrote, and
//! incomplete responses are handled.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use shared::aws::sqs::{Outgoing, Queue, Stored};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::environment::Environment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::cloud::*;
use crate::harness::*;

/// Runs a script with boto3. Returns the JSON that it prints.
pub fn boto3(endpoint: &str, script: &str) -> Value {
    let output = Command::new(virtual_environment().join("bin/python"))
        .args(["-c", script])
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", "local")
        .env("AWS_SECRET_ACCESS_KEY", "local")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn signed_calls_pass_the_checks_of_aws_and_boto3_reads_their_messages() {
    const USERS: &str = r#"
import boto3, json
iam, keys = boto3.client("iam"), {}
for name, actions in [("relay", ["sqs:*", "secretsmanager:GetSecretValue", "dynamodb:GetItem"]), ("stranger", ["s3:*"])]:
    iam.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    keys[name] = [key["AccessKeyId"], key["SecretAccessKey"]]
print(json.dumps(keys))
"#;
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("flow-a", "audience-change", &hub, HUB, json!({})).await;
    let endpoint = cloud.endpoint().to_owned();
    let keys = boto3(&endpoint, USERS);
    let http = shared::build_http_client(None).unwrap().client();
    let switched = http.post(format!("{endpoint}/moto-api/reset-auth")).body("0").send().await.unwrap();
    assert!(switched.status().is_success());

    let key = |user: &str, part: usize| keys[user][part].as_str().unwrap().to_owned();
    let function = |id: &str, secret: &str| {
        cloud.function("audience-change", &hub, &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)])
    };
    let mut to_flow = request(DOCUMENTED);
    to_flow["rawPath"] = "/flow-a".into();
    let relay = function(&key("relay", 0), &key("relay", 1));
    assert_eq!(response_of(&relay, &to_flow).await, delivered(1), "the table and two secrets were read");
    hub.script([lasting(status(404, None, "40400"))]);
    assert_eq!(response_of(&relay, &to_flow).await.status, 202);
    response_of(&relay, &request("{")).await.problem(400);
    for (id, secret) in [(key("relay", 0), key("stranger", 1)), (key("stranger", 0), key("stranger", 1))] {
        response_of(&function(&id, &secret), &request(DOCUMENTED)).await.problem(503);
        response_of(&function(&id, &secret), &to_flow).await.problem(503);
    }

    let read = format!(
        r#"
import base64, boto3, gzip, json
sqs = boto3.client("sqs", aws_access_key_id="{id}", aws_secret_access_key="{secret}")
body = lambda url: [m["Body"] for m in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])]
unpack = lambda text: gzip.decompress(base64.b64decode(text)).decode()
[parked], [rejected] = body("{parking}"), [json.loads(text) for text in body("{rejected}")]
print(json.dumps([json.loads(unpack(parked)), rejected["reason"], unpack(rejected["body"])]))
"#,
        id = key("relay", 0),
        secret = key("relay", 1),
        parking = cloud.parking,
        rejected = cloud.rejected,
    );
    let written = boto3(&endpoint, &read);
    assert_eq!((&written[0]["flow"], &written[0]["secretId"]), (&json!("flow-a"), &json!("connection-flow-a")));
    assert_eq!((&written[1], &written[2]), (&json!("unreadable"), &json!("{")));
}

/// A queue service that returns these raw responses, one per connection, and the requests that it received.
async fn service(responses: Vec<String>) -> (Queue, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        for response in responses {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                stream.read_buf(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                if body.len() >= length.parse().unwrap() {
                    break body.to_owned();
                }
            };
            heard.lock().unwrap().push(serde_json::from_str(&body).unwrap());
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    let environment = Environment::from_fn(move |name| match name {
        "AWS_ENDPOINT_URL_SQS" => Some(endpoint.clone()),
        "AWS_REGION" => Some(REGION.to_owned()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("local".to_owned()),
        _ => None,
    });
    let aws = Aws::new(shared::build_http_client(None).unwrap(), environment, Clock::system());
    (Queue::new(aws, "http://queue".to_owned()), asked)
}

fn http_response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn ids_of(request: &Value) -> Vec<&str> {
    request["Entries"].as_array().unwrap().iter().map(|entry| entry["Id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn failed_entries_of_a_batch_are_sent_again() {
    let some = json!({
        "Successful": [{ "Id": "0" }],
        "Failed": [{ "Id": "1", "SenderFault": false }, { "Id": "2", "SenderFault": true, "Code": "InvalidMessageContents" }],
    });
    let rest = json!({ "Successful": [{ "Id": "1" }, { "Id": "3" }] });
    let (queue, asked) =
        service(vec![http_response("200 OK", &some.to_string()), http_response("200 OK", &rest.to_string())]).await;
    let bodies: Vec<String> = (0..4).map(|n| n.to_string()).collect();
    let messages: Vec<Outgoing<'_>> = bodies.iter().map(|body| Outgoing::new(body)).collect();
    let stored = queue.send(&messages, Instant::now() + Duration::from_secs(10)).await;
    assert_eq!(stored, [Stored::Yes, Stored::Yes, Stored::No, Stored::Yes]);
    let asked = asked.lock().unwrap();
    assert_eq!(asked.iter().map(ids_of).collect::<Vec<_>>(), [vec!["0", "1", "2", "3"], vec!["1", "3"]]);
}

#[tokio::test]
async fn a_truncated_response_counts_as_a_failed_attempt() {
    let whole = http_response("200 OK", r#"{"Successful":[{"Id":"0"}]}"#);
    let broken = whole[..whole.len() - 5].to_owned();
    let send = async |responses: Vec<String>| {
        let (queue, asked) = service(responses).await;
        let stored = queue.send(&[Outgoing::new("a")], Instant::now() + Duration::from_secs(10)).await;
        let attempts = asked.lock().unwrap().len();
        (stored, attempts)
    };
    assert_eq!(send(vec![broken.clone(), whole.clone()]).await, (vec![Stored::Yes], 2));
    assert_eq!(send(vec![broken.clone(), broken.clone(), broken]).await, (vec![Stored::No], 3));
    assert_eq!(send(vec![http_response("503 Service Unavailable", ""), whole.clone()]).await, (vec![Stored::Yes], 2));
    let refused = http_response("400 Bad Request", r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist"}"#);
    assert_eq!(send(vec![refused, whole]).await, (vec![Stored::No], 1), "what a retry can't resolve is not retried");
    for odd in ["{}", "", "[]"] {
        let odd = http_response("200 OK", odd);
        assert_eq!(
            send(vec![odd.clone(), odd.clone(), odd]).await.0,
            [Stored::No],
            "only what the response names is stored"
        );
    }
}

#[tokio::test]
async fn a_cached_flow_is_used_while_its_table_does_not_respond() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let cloud = Cloud::start().await;
    let seconds = Arc::new(AtomicU64::new(1_700_000_000));
    let now = seconds.clone();
    let clock = Clock::from_fn(move || std::time::UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed)));
    let table = shared::flow::table::FlowTable::new(cloud.aws.clone(), TABLE.to_owned(), clock);
    let item = async |id: &str| table.item(id, Instant::now() + Duration::from_secs(2)).await;
    let later = |more: u64| seconds.fetch_add(more, Ordering::Relaxed);

    assert!(item("crm").await.unwrap().is_none());
    cloud.put_flow("crm", "audience-change", "a", json!({})).await;
    assert!(item("crm").await.unwrap().is_none(), "an absence is cached too");
    later(10);
    let first = item("crm").await.unwrap().unwrap();
    cloud.put_flow("crm", "audience-change", "b", json!({})).await;
    later(59);
    assert_eq!(item("crm").await.unwrap().unwrap().hub, "a");
    later(1);
    assert_eq!(item("crm").await.unwrap().unwrap().hub, "b");
    assert_eq!(first.hub, "a");
    cloud.put_flow("odd", "audience-change", "b", json!({ "partitioning": "keys" })).await;
    let error = item("odd").await.unwrap_err().to_string();
    assert!(error.contains("odd") && error.contains("`partitioning`"), "{error}");

    drop(cloud);
    later(3_600);
    assert_eq!(item("crm").await.unwrap().unwrap().hub, "b", "the cached item, while the table does not respond");
    assert!(item("new").await.unwrap_err().to_string().contains("GetItem"));
}

/// Script that prints the URL to which boto3 sends a call, for each region, service and combination of FIPS and dual-stack. Some
/// partitions have no dual-stack endpoints.
const ENDPOINTS: &str = r#"
import boto3, botocore, json, os
from botocore.config import Config
from botocore.exceptions import EndpointVariantError
os.environ.pop("AWS_ENDPOINT_URL")
calls = {"dynamodb": "list_tables", "logs": "describe_log_groups", "secretsmanager": "list_secrets", "sqs": "list_queues"}

class Sent(Exception):
    pass

def url(service, region, fips, dual_stack):
    config = Config(use_fips_endpoint=fips, use_dualstack_endpoint=dual_stack)
    try:
        client = boto3.client(service, region_name=region, config=config)
    except EndpointVariantError:
        return None
    found = []
    def stop(request, **_):
        found.append(request.url)
        raise Sent()
    client.meta.events.register("before-send", stop)
    try:
        getattr(client, calls[service])()
    except Sent:
        pass
    if not fips and not dual_stack:
        assert found == [client.meta.endpoint_url + "/"]
    return found[0]

with open(os.path.join(os.path.dirname(botocore.__file__), "data", "partitions.json")) as file:
    partitions = json.load(file)["partitions"]
regions = [region for partition in partitions for region in partition["regions"] if not region.endswith("-global")]
variants = [(False, False), (True, False), (False, True), (True, True)]
print(json.dumps([[r, s, *(url(s, r, *v) for v in variants)] for r in regions for s in calls]))
"#;

#[test]
fn endpoints_equal_those_of_boto3_in_every_partition() {
    let found = boto3("http://127.0.0.1:9", ENDPOINTS);
    let endpoint = |service: Service, region: &str, variables: &[(&'static str, &'static str)]| {
        let (region, variables) = (region.to_owned(), variables.to_vec());
        let environment = Environment::from_fn(move |name| match name {
            "AWS_REGION" => Some(region.clone()),
            _ => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        });
        Aws::new(shared::build_http_client(None).unwrap(), environment, Clock::system()).endpoint(service).unwrap()
    };
    let (fips, dual_stack) = (("AWS_USE_FIPS_ENDPOINT", "true"), ("AWS_USE_DUALSTACK_ENDPOINT", "true"));
    let found = found.as_array().unwrap();
    assert!(found.len() > 100);
    for row in found {
        let (region, name) = (row[0].as_str().unwrap(), row[1].as_str().unwrap());
        let service = match name {
            "dynamodb" => Service::DynamoDb,
            "logs" => Service::Logs,
            "secretsmanager" => Service::SecretsManager,
            _ => Service::Sqs,
        };
        for (place, variables) in [&[][..], &[fips], &[dual_stack], &[fips, dual_stack]].into_iter().enumerate() {
            if let Some(url) = row[2 + place].as_str() {
                assert_eq!(endpoint(service, region, variables), url);
            }
        }
    }
    assert_eq!(endpoint(Service::Sqs, "xx-new-1", &[]), "https://sqs.xx-new-1.amazonaws.com/");
    let own = ("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9/");
    assert_eq!(endpoint(Service::Sqs, "eusc-de-east-1", &[own]), "http://127.0.0.1:9/");
    assert_eq!(endpoint(Service::Logs, "eusc-de-east-1", &[own]), "https://logs.eusc-de-east-1.amazonaws.eu/");
}
