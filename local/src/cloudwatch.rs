//! Puts what the functions write into CloudWatch Logs, as Lambda does it, without delaying the events.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use shared::aws::{Aws, AwsError, Service};
use shared::clock::Clock;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;

use crate::runner::{Observed, What};

/// Name of the only log stream: readers read the whole group.
const STREAM: &str = "local";
/// Maximum number of lines of one call, which accepts 1 MB.
const MAX_LINES: usize = 500;
/// Timeout of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a log group, and the stream that [`feed`] writes to.
pub async fn create(aws: &Aws, group: &str, deadline: Instant) -> Result<(), AwsError> {
    aws.call(Service::Logs, "CreateLogGroup", &json!({ "logGroupName": group }), deadline).await?;
    let stream = json!({ "logGroupName": group, "logStreamName": STREAM });
    aws.call(Service::Logs, "CreateLogStream", &stream, deadline).await.map(drop)
}

/// Passes on what is observed, and puts the lines into the group. Returns the new receiver and a future, which must be polled
/// as long as functions write lines.
pub fn feed(
    aws: Aws,
    group: &'static str,
    mut observed: UnboundedReceiver<Observed>,
) -> (UnboundedReceiver<Observed>, impl Future<Output = ()> + Send) {
    let (pass_on, passed_on) = mpsc::unbounded_channel();
    let (log, mut logged) = mpsc::unbounded_channel::<Value>();
    let collect = async move {
        let clock = Clock::system();
        let mut latest = 0;
        while let Some(observation) = observed.recv().await {
            if let What::Wrote(line) = &observation.what {
                // The lines of a call must be sorted by time.
                let now = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
                latest = latest.max(u64::try_from(now.as_millis()).unwrap_or_default());
                let _ = log.send(json!({ "timestamp": latest, "message": line }));
            }
            // The receiver may have been dropped.
            let _ = pass_on.send(observation);
        }
    };
    let put = async move {
        let mut lines = Vec::new();
        while logged.recv_many(&mut lines, MAX_LINES).await > 0 {
            let body =
                json!({ "logGroupName": group, "logStreamName": STREAM, "logEvents": std::mem::take(&mut lines) });
            if let Err(error) = aws.call(Service::Logs, "PutLogEvents", &body, Instant::now() + CALL_TIMEOUT).await {
                eprintln!("PutLogEvents failed; these lines are missing in CloudWatch Logs: {error}");
            }
        }
    };
    let feeding = async move {
        tokio::join!(collect, put);
    };
    (passed_on, feeding)
}
