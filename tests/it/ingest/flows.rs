//! Flows of the table, which the alias of the invocation names.

use local::poller::Poller;

use super::*;

#[tokio::test]
async fn the_alias_of_an_invocation_selects_the_flow() {
    let cloud = Cloud::start().await;
    let (here, there) = (inlet(None).await, inlet(Some(CLIENT)).await);
    cloud.secret("ims-b", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    let config = Config::default();
    let options = json!({
        "inletUrl": there.url(), "inletFlowId": config.flow_id, "format": "xdm", "schemaId": config.schema_id,
        "schemaContentType": "application/vnd.adobe.xed-full-notext+json; version=1.0", "datasetId": config.dataset_id,
        "orgId": config.org_id, "sandbox": config.sandbox, "batchMax": 10, "imsTokenUrl": there.token_url(),
        "imsSecretId": "ims-b",
    });
    let foreign = json!({ "inletUrl": "https://example.com/collection/a", "inletFlowId": "f" });
    for (id, kind, change) in [
        ("flow-b", "platform-ingest", json!({ "options": options.to_string() })),
        ("flow-c", "platform-ingest", json!({ "options": options.to_string(), "state": "disabled" })),
        ("flow-d", "profile-export", json!({})),
        ("flow-e", "platform-ingest", json!({ "options": foreign.to_string() })),
    ] {
        cloud.put_flow(id, kind, HUB, change).await;
    }
    let mut own = variables(&here, "xdm", &[]);
    own.retain(|(name, _)| *name != "EMULATOR_HOSTS");
    own.push(("EMULATOR_HOSTS", format!("{},{}", here.host(), there.host())));
    let function = in_cloud(&cloud, own);
    let batch = event(&[entities(0, 5, 7), entities(1, 1, 2)].concat());
    assert!(failures_of(&function, Some("flow-flow-b"), &batch).await.is_empty());
    assert_eq!((there.taken().len(), here.taken().len()), (3, 0));
    assert!(failures_of(&function, Some("live"), &batch).await.is_empty());
    assert!(failures(&function, &batch).await.is_empty());
    assert_eq!((there.taken().len(), here.taken().len()), (3, 6));
    for (alias, problem) in [
        ("flow-flow-c", "the flow is disabled"),
        ("flow-flow-d", "the flow is one of profile-export"),
        ("flow-flow-e", "`inletUrl`: expected https"),
        ("flow-unknown", "there is no such flow"),
    ] {
        assert_eq!(failures_of(&function, Some(alias), &batch).await, [of(0, 5), of(1, 1)], "{alias}");
        assert!(function.logs().iter().any(|line| line.contains(problem)), "{alias}");
    }
    assert_eq!((there.taken().len(), here.taken().len()), (3, 6));
    assert!(rejected(&cloud).await.is_empty());
}

#[tokio::test]
async fn a_disabled_flow_loses_no_record_while_its_mapping_is_still_polling() {
    let cloud = Cloud::start().await;
    let hub = filled_hub(5).await;
    let inlet = inlet(None).await;
    let config = Config::default();
    let options =
        json!({ "inletUrl": inlet.url(), "inletFlowId": config.flow_id, "sandbox": config.sandbox }).to_string();
    let put = async |state: &str| {
        cloud.put_flow("flow-a", "platform-ingest", HUB, json!({ "options": options, "state": state })).await;
    };
    let function = in_cloud(&cloud, vec![("EMULATOR_HOSTS", inlet.host())]);
    let mut poller = Poller::new(hub, HUB, function.clone(), Some("flow-flow-a"), 1000);
    put("disabled").await;
    for _ in 0..20 {
        assert_eq!(poller.poll().await, Polled::Batch { records: 5, again: 5 });
    }
    put("enabled").await;
    // A new instance: the current one may use its cached item for a minute.
    function.kill().await;
    drain(&mut poller).await;
    assert_eq!(inlet.taken().len(), 5);
    assert_eq!(poller.discarded(), []);
}
