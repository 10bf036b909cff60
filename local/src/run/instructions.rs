//! The commands that `local run` prints, to be pasted.

use serde_json::json;

use super::{ControlInfo, Info, REGION, UndeliveredQueues};
use crate::kinds::KINDS;

/// Commands that try out every part of the system.
pub(super) fn instructions(url: &str, info: &Info) -> String {
    let mut text = String::new();
    for kind in KINDS {
        let sample = format!("tests/fixtures/{}/{}", kind.name, kind.sample);
        let authorization =
            info.sender_token.as_ref().map(|token| format!(" -H 'authorization: Bearer {token}'")).unwrap_or_default();
        text.push_str(&format!(
            "\n{name}\n  webhook:     curl -i {url}/{name}{authorization} -H 'content-type: application/json' \
             --data @{sample}\n",
            name = kind.name,
        ));
        if let Some(queue_url) = info.queue_url(kind.name) {
            // Moto identifies the service by the scope of the signature.
            text.push_str(&format!(
                "  queue:       curl {queue_url} --aws-sigv4 aws:amz:{REGION}:sqs --user local:local \
                 -d Action=SendMessage --data-urlencode MessageBody@{sample}\n",
            ));
        }
        text.push_str(&format!("  hub:         curl {}/_emulator/hubs/{}/events\n", info.hub_url, kind.hub));
    }
    text.push_str(&format!("\ningest from {}\n  inlet:       curl {}\n", info.source.hub, info.source.records_url));
    if let Some(control) = &info.control {
        text.push_str(&format!("\ncontrol API (docs/control-api.md)\n{}", control.calls(url)));
    }
    if let Some(queues) = &info.undelivered {
        text.push_str(&format!("\nwhile a hub is down\n{}", outage_commands(info, queues)));
    }
    text.push_str("\nStop with Ctrl-C.\n");
    text
}

/// Commands that show parking, redelivery and rejected events.
pub(super) fn outage_commands(info: &Info, queues: &UndeliveredQueues) -> String {
    let faults = format!("{}/_emulator/faults", info.hub_url);
    let count = |queue_url: &str| {
        format!(
            "curl {queue_url} --aws-sigv4 aws:amz:{REGION}:sqs --user local:local -d Action=GetQueueAttributes \
             -d AttributeName.1=ApproximateNumberOfMessages -d AttributeName.2=ApproximateNumberOfMessagesNotVisible"
        )
    };
    let down = json!({ "action": "status", "status": 503, "times": 0 });
    format!(
        "  hubs down:   curl {faults} -H 'content-type: application/json' --data '{down}'\n  \
           hubs up:     curl -X DELETE {faults}\n  \
           parked:      {}\n  \
           rejected:    {}\n  \
           replay:      make replay ARGS=--dry-run\n",
        count(&queues.parking_queue_url),
        count(&queues.rejected_queue_url),
    )
}

impl ControlInfo {
    /// Commands that call the control API.
    fn calls(&self, url: &str) -> String {
        let Self { token, organisation, .. } = self;
        format!(
            "  token:       TOKEN={token}\n  \
               list flows:  curl {url}/flows -H \"authorization: Bearer $TOKEN\" -H 'x-api-key: local' \
             -H 'x-gw-ims-org-id: {organisation}'\n  \
               a flow's runs: the same with {url}/runs?property=flowId==FLOW_ID\n  \
               document:    curl {url}/openapi.json\n",
        )
    }
}
