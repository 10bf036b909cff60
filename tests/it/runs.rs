//! The runs of a flow: from the log lines of the functions, through CloudWatch Logs, to the control API.

use local::cloudwatch;
use local::emulator::Emulator;
use local::queue_source::{self, Mapping};
use local::runner::{Function, FunctionConfig, Observed};
use serde_json::{Value, json};
use shared::aws::Service;
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cloud::*;
use crate::control::*;
use crate::harness::{HUB, delivered, handled, lasting, status};

const GROUP: &str = "/aws/lambda/relay";

/// A cloud whose functions log to CloudWatch Logs, and the API that reads the logs.
struct Logged {
    cloud: Cloud,
    hub: Emulator,
    api: Caller,
    proxy: Proxy,
    observer: UnboundedSender<Observed>,
    feeding: JoinHandle<()>,
}

impl Logged {
    async fn start() -> Self {
        let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        cloudwatch::create(&cloud.aws, GROUP, deadline).await.unwrap();
        let (observer, observed) = unbounded_channel();
        let (_, feeding) = cloudwatch::feed(cloud.aws.clone(), GROUP, observed);
        let proxy = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
        let logs = format!("http://{}", proxy.address());
        let hosts = host(&hub);
        let api = control_with(
            &cloud,
            &[
                ("EMULATOR_HOSTS", hosts.as_str()),
                ("LOG_GROUP", GROUP),
                ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", logs.as_str()),
            ],
        );
        Self { cloud, hub, api, proxy, observer, feeding: tokio::spawn(feeding) }
    }

    fn function(&self, kind: &str, more: &[(&str, &str)]) -> Function {
        let function = self.cloud.function(kind, &self.hub, more);
        Function::new(FunctionConfig { observer: Some(self.observer.clone()), ..function.config().clone() })
    }

    /// A flow that passes only the audience `wanted`.
    async fn flow(&self) -> Value {
        let connection = self.api.connection(&self.hub).await;
        let params = json!({ "options": { "audiences": ["wanted"] }, "senderAuth": "generate" });
        self.api.flow(PROFILE_STORE, params, &connection, HUB).await
    }

    /// Waits until the flow's runs have these counts: events in, filtered; messages out, failed, waiting.
    async fn has(&self, flow: &Value, expected: [u64; 5]) -> Value {
        let mut page = Value::Null;
        until(&format!("{expected:?}"), async || {
            page = self.api.get(&runs(flow)).await.expect(200);
            counts(&page) == expected
        })
        .await;
        page
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.feeding.abort();
    }
}

fn runs(flow: &Value) -> String {
    format!("/runs?property=flowId=={}", text(&flow["id"]))
}

/// Sums of all runs: a new hour may have begun in the meantime.
fn counts(page: &Value) -> [u64; 5] {
    ["input", "filtered", "output", "failed", "waiting"].map(|name| {
        let of = |run: &Value| run["metrics"]["recordSummary"][format!("{name}RecordCount")].as_u64().unwrap();
        page["items"].as_array().unwrap().iter().map(of).sum()
    })
}

fn has_status(page: &Value, status: &str, job: &Value) -> bool {
    let summary = json!({ "status": status, "systemJob": job });
    page["items"].as_array().unwrap().iter().any(|run| run["metrics"]["statusSummary"] == summary)
}

fn event(profile: &str, audience: &str) -> String {
    json!({
        "identityMap": { "ecid": [{ "id": profile }] },
        "segmentMembership": { "ups": { audience: { "status": "realized" } } },
    })
    .to_string()
}

#[tokio::test]
async fn runs_count_the_outcomes_of_a_flows_events() {
    let system = Logged::start().await;
    let (flow, other) = (system.flow().await, system.flow().await);
    let sender = system.function("profile-export", &[]);
    assert_eq!(send(&sender, &flow, &event("1", "wanted")).await, delivered(1));
    assert_eq!(send(&sender, &flow, &event("2", "wanted")).await, delivered(1));
    assert_eq!(send(&sender, &flow, &event("3", "unwanted")).await, handled("filtered", 0));
    send(&sender, &flow, "no JSON").await.problem(400);
    assert_eq!(send(&sender, &other, "no JSON").await.status, 400);
    let mut stranger = flow.clone();
    stranger["senderAuth"][0]["secret"] = "wrong".into();
    assert_eq!(send(&sender, &stranger, &event("4", "wanted")).await.status, 401);

    let page = system.has(&flow, [4, 1, 2, 1, 0]).await;
    assert!(has_status(&page, "success", &json!({ "state": "Succeeded", "statecode": 3, "statuscode": 30 })), "{page}");
    let run = &page["items"][0];
    assert_eq!((&run["flowId"], &run["flowSpec"]["version"]), (&flow["id"], &json!("1.0")));
    let duration = &run["metrics"]["durationSummary"];
    assert!(duration["startedAtUTC"].as_u64().unwrap() <= duration["completedAtUTC"].as_u64().unwrap());
    let page = system.has(&other, [1, 0, 0, 1, 0]).await;
    assert!(has_status(&page, "failed", &json!({ "state": "Failed", "statecode": 3, "statuscode": 31 })), "{page}");

    // Waiting messages are not in the output; once redelivered, they count in the run in which they arrived.
    system.hub.script([lasting(status(503, None, "50004"))]);
    assert_eq!(send(&sender, &flow, &event("5", "wanted")).await.status, 202);
    for profile in ["6", "7"] {
        assert_eq!(send(&sender, &other, &event(profile, "wanted")).await.status, 202);
    }
    let page = system.has(&flow, [5, 1, 2, 1, 1]).await;
    assert!(
        has_status(&page, "inProgress", &json!({ "state": "Waiting", "statecode": 1, "statuscode": 10 })),
        "{page}"
    );
    system.has(&other, [3, 0, 0, 1, 2]).await;
    system.hub.clear_faults();
    let redelivery = system.function("redelivery", &[("REDELIVERY_DELAY", "1")]);
    let mapping = Mapping { batch_size: 50, ..Mapping::new(&system.cloud.parking, REGION) };
    let polled = tokio::spawn(queue_source::run(system.cloud.aws.clone(), redelivery, mapping));
    let page = system.has(&flow, [5, 1, 3, 1, 0]).await;
    assert!(!has_status(&page, "inProgress", &json!({ "state": "Waiting", "statecode": 1, "statuscode": 10 })));
    system.has(&other, [3, 0, 2, 1, 0]).await;
    polled.abort();
}

#[tokio::test]
async fn runs_of_flows_of_other_tenants_are_not_listed() {
    let system = Logged::start().await;
    let flow = system.flow().await;
    let none = json!({ "items": [] });
    assert_eq!(system.api.get(&runs(&flow)).await.expect(200), none, "the flow was never used");
    let id = text(&flow["id"]);
    let sender = system.function("profile-export", &[]);
    assert_eq!(send(&sender, &flow, &event("1", "wanted")).await, delivered(1));
    system.has(&flow, [1, 0, 1, 0, 0]).await;
    for stranger in [
        Caller { sandbox: OTHER_SANDBOX, ..system.api.clone() },
        Caller { organisation: OTHER_ORGANISATION, ..system.api.clone() },
    ] {
        assert_eq!(stranger.get(&runs(&flow)).await.expect(200), none);
    }
    assert_eq!(system.api.get(&format!("/runs?property=flowId=={UNKNOWN_ID}")).await.expect(200), none);

    // Lists of runs accept the parameters of other lists.
    let status = "metrics.statusSummary.status";
    let shown = format!("{}&property={status}==success&property={status}&count=true", runs(&flow));
    let expected = json!({ "items": [{ "metrics": { "statusSummary": { "status": "success" } } }], "count": 1 });
    assert_eq!(system.api.get(&shown).await.expect(200), expected);
    assert_eq!(system.api.get(&format!("{}&property={status}==failed", runs(&flow))).await.expect(200), none);
    for unusable in [
        "/runs".to_owned(),
        "/runs?property=id".to_owned(),
        format!("/runs?property=flowId!={id}"),
        format!("/runs?property=flowId=={id},{id}"),
        format!("/runs?property=flowId=={id}&property=flowId=={id}"),
        format!("{}&limit=0", runs(&flow)),
    ] {
        let problem = system.api.get(&unusable).await.expect(400);
        assert!(text(&problem["detail"]).contains("expected"), "{unusable}: {problem}");
    }
}

#[tokio::test]
async fn unavailable_logs_return_503_and_lines_of_others_are_ignored() {
    let system = Logged::start().await;
    let flow = system.flow().await;
    for fault in [AwsFault::Unavailable, AwsFault::Throttled, AwsFault::BreakOff] {
        system.proxy.fail("Logs_20140328.FilterLogEvents", fault);
        let problem = system.api.get(&runs(&flow)).await.expect(503);
        assert!(text(&problem["message"]).contains("try again"), "{problem}");
    }
    // Lines of other flows are ignored, and so are lines that no function of this project writes.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let lines = [
        json!({ "Kind": "profile-export", "Flow": "another", "Received": 1, "hub.problem": flow["id"] }).to_string(),
        json!({ "Kind": "profile-export", "Flow": flow["id"], "Received": "many" }).to_string(),
        format!("START {} not JSON", text(&flow["id"])),
    ];
    let events: Vec<Value> = lines.iter().map(|line| json!({ "timestamp": now, "message": line })).collect();
    let put = json!({ "logGroupName": GROUP, "logStreamName": "local", "logEvents": events });
    system.cloud.call(Service::Logs, "PutLogEvents", put).await;
    system.proxy.recover("Logs_20140328.FilterLogEvents");
    assert_eq!(system.api.get(&runs(&flow)).await.expect(200), json!({ "items": [] }));
}
