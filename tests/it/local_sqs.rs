//! The local SQS gives boto3 the same results as moto for the calls that both support.

use local::sqs::{Config, Sqs};
use tokio::net::TcpListener;

use crate::aws::boto3;
use crate::cloud::Cloud;

/// Script that prints the results of its calls, without values that differ from run to run.
const SCRIPT: &str = r#"
import boto3, json, time
from botocore.config import Config
from botocore.exceptions import ClientError

sqs = boto3.client("sqs", config=Config(retries={"total_max_attempts": 1}))
results = []

def shape(value, name=""):
    """The value without ids, handles, times and texts of errors."""
    if isinstance(value, dict):
        return {key: shape(inner, key) for key, inner in sorted(value.items()) if key != "ResponseMetadata"}
    if isinstance(value, list):
        return [shape(inner, name) for inner in value]
    if name in ("MessageId", "ReceiptHandle", "Message", "SenderId") or name.endswith("Timestamp"):
        return [type(value).__name__, bool(value)]
    if name in ("QueueUrl", "QueueUrls"):
        return value.split("/", 3)[3]
    return value

def call(name, operation, **parameters):
    try:
        answer = getattr(sqs, operation)(**parameters)
    except ClientError as error:
        results.append([name, error.response["Error"]["Code"]])
        return {}
    results.append([name, shape(answer)])
    return answer

def receive(name, url, **parameters):
    wanted = {"MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"], "MessageAttributeNames": ["All"]}
    messages = call(name, "receive_message", QueueUrl=url, **{**wanted, **parameters}).get("Messages", [])
    return [message["ReceiptHandle"] for message in messages]

url = call("create", "create_queue", QueueName="q", Attributes={"VisibilityTimeout": "600"})["QueueUrl"]
call("create the same", "create_queue", QueueName="q", Attributes={"VisibilityTimeout": "600"})
call("create another of that name", "create_queue", QueueName="q", Attributes={"VisibilityTimeout": "601"})
call("url", "get_queue_url", QueueName="q")
call("url of none", "get_queue_url", QueueName="none")
call("list", "list_queues", QueueNamePrefix="q")
call("list none", "list_queues", QueueNamePrefix="zzz")
asked = ["VisibilityTimeout", "MaximumMessageSize", "DelaySeconds", "ReceiveMessageWaitTimeSeconds", "QueueArn",
         "MessageRetentionPeriod", "ApproximateNumberOfMessages", "CreatedTimestamp"]
call("attributes", "get_queue_attributes", QueueUrl=url, AttributeNames=asked)
call("attributes of none", "get_queue_attributes", QueueUrl=url.replace("/q", "/none"), AttributeNames=asked)
call("attribute unknown", "get_queue_attributes", QueueUrl=url, AttributeNames=["Nothing"])
call("set attributes", "set_queue_attributes", QueueUrl=url, Attributes={"MaximumMessageSize": "262144"})
call("attributes that were set", "get_queue_attributes", QueueUrl=url, AttributeNames=["MaximumMessageSize"])

attributes = {"flow": {"StringValue": "crm", "DataType": "String"}, "bytes": {"BinaryValue": b"\0\1", "DataType": "Binary"}}
call("send", "send_message", QueueUrl=url, MessageBody="Ännchen", MessageAttributes=attributes, MessageGroupId="g")
call("send nothing to none", "send_message", QueueUrl=url.replace("/q", "/none"), MessageBody="a")
call("send too much", "send_message", QueueUrl=url, MessageBody="x" * 262145)
call("send too late", "send_message", QueueUrl=url, MessageBody="a", DelaySeconds=901)
entry = lambda number, **more: {"Id": f"e{number}", "MessageBody": f"body {number}", **more}
call("send three", "send_message_batch", QueueUrl=url, Entries=[entry(1), entry(2, MessageGroupId="g"), entry(3, DelaySeconds=901)])
call("send none", "send_message_batch", QueueUrl=url, Entries=[])
call("send eleven", "send_message_batch", QueueUrl=url, Entries=[entry(n) for n in range(11)])
call("send the same twice", "send_message_batch", QueueUrl=url, Entries=[entry(1), entry(1)])
call("send a bad id", "send_message_batch", QueueUrl=url, Entries=[{"Id": "a b", "MessageBody": "a"}])
call("send a batch too large", "send_message_batch", QueueUrl=url, Entries=[{"Id": f"e{n}", "MessageBody": "x" * 262144} for n in range(5)])

handles = receive("receive", url)
receive("nothing is left", url)
call("receive eleven", "receive_message", QueueUrl=url, MaxNumberOfMessages=11)
call("receive and wait too long", "receive_message", QueueUrl=url, WaitTimeSeconds=21)
counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
call("in flight", "get_queue_attributes", QueueUrl=url, AttributeNames=counts)
call("show one", "change_message_visibility", QueueUrl=url, ReceiptHandle=handles[0], VisibilityTimeout=0)
handles[0] = receive("received twice", url, MessageAttributeNames=["fl.*"])[0]
call("hide too long", "change_message_visibility", QueueUrl=url, ReceiptHandle=handles[0], VisibilityTimeout=43201)
call("hide another's", "change_message_visibility", QueueUrl=url, ReceiptHandle="nonsense", VisibilityTimeout=1)
call("show the rest", "change_message_visibility_batch", QueueUrl=url, Entries=[
    {"Id": "a", "ReceiptHandle": handles[1], "VisibilityTimeout": 0},
    {"Id": "b", "ReceiptHandle": "nonsense", "VisibilityTimeout": 0},
    {"Id": "c", "ReceiptHandle": handles[2], "VisibilityTimeout": 43201},
])
handles[1] = receive("one of them", url)[0]
call("delete one", "delete_message", QueueUrl=url, ReceiptHandle=handles[0])
call("delete it again", "delete_message", QueueUrl=url, ReceiptHandle=handles[0])
call("delete another's", "delete_message", QueueUrl=url, ReceiptHandle="nonsense")
call("delete some", "delete_message_batch", QueueUrl=url, Entries=[
    {"Id": "a", "ReceiptHandle": handles[1]}, {"Id": "b", "ReceiptHandle": "nonsense"}])
call("one is left", "get_queue_attributes", QueueUrl=url, AttributeNames=counts)

call("send later", "send_message", QueueUrl=url, MessageBody="later", DelaySeconds=1)
call("delayed", "get_queue_attributes", QueueUrl=url, AttributeNames=counts)
receive("not yet", url)
receive("a second later", url, WaitTimeSeconds=3)
call("purge", "purge_queue", QueueUrl=url)
call("purged", "get_queue_attributes", QueueUrl=url, AttributeNames=counts)

dead = call("create dead letters", "create_queue", QueueName="dead")["QueueUrl"]
arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "2"})
short = call("create short", "create_queue", QueueName="short", Attributes={"VisibilityTimeout": "0", "RedrivePolicy": policy})["QueueUrl"]
sent = call("send to it", "send_message", QueueUrl=short, MessageBody="a")["MessageId"]
for count in (1, 2, 3):
    receive(f"receive it, {count}", short)
moved = sqs.receive_message(QueueUrl=dead, MessageSystemAttributeNames=["All"])["Messages"]
results.append(["dead letters", [message["Body"] for message in moved], moved[0]["MessageId"] == sent])
call("delete the queue", "delete_queue", QueueUrl=short)
call("it is gone", "purge_queue", QueueUrl=short)
print(json.dumps(results, default=lambda value: value.hex() if isinstance(value, bytes) else str(value)))
"#;

#[tokio::test]
async fn boto3_gets_the_same_results_from_the_local_sqs_and_from_moto() {
    let cloud = Cloud::start().await;
    let sqs = Sqs::start(Config::default(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let results = async |endpoint: &str| {
        let endpoint = endpoint.to_owned();
        let results = tokio::task::spawn_blocking(move || boto3(&endpoint, SCRIPT)).await.unwrap();
        results.as_array().unwrap().clone()
    };
    let (local, moto) = tokio::join!(results(sqs.url()), results(cloud.endpoint()));
    assert!(local.len() > 40, "the script ran to its end");
    for (local, moto) in local.iter().zip(&moto) {
        assert_eq!(local, moto, "the local SQS on the left, moto on the right");
    }
    assert_eq!(local.len(), moto.len());
}
