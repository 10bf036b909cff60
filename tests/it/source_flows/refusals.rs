//! Values with which a flow could not be served.

use super::*;

#[tokio::test]
async fn values_with_which_a_flow_cannot_be_served_return_400() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    for (member, value) in [
        ("inletUrl", json!("https://example.com/collection/a")),
        ("inletUrl", json!("http://dcs.adobedc.net/collection/a")),
        ("inletUrl", json!("https://dcs.adobedc.net/collection/batch/a")),
        ("inletUrl", json!("https://user@dcs.adobedc.net/collection/a")),
        ("imsTokenUrl", json!("https://example.com/ims/token/v3")),
        ("imsSecretId", json!("eventhubs-relay/flows/ims/other@AdobeOrg/client")),
        ("imsSecretId", json!("eventhubs-relay/flows/ims/acme@AdobeOrg/x/client")),
        ("inletFlowId", json!("a b")),
        ("batchMax", json!(0)),
        ("imsScope", json!(7)),
    ] {
        let refused = world.api.post("/targetConnections", &world.target(json!({ member: value }))).await.expect(400);
        assert!(text(&refused["message"]).contains(&format!("params.{member}")), "{refused}");
    }
    for group in ["a b", "readers$", "ä", &"x".repeat(201)] {
        let source = json!({
            "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "params": { "eventHubName": HUB, "consumerGroup": group },
        });
        let refused = world.api.post("/sourceConnections", &source).await.expect(400);
        assert!(text(&refused["message"]).contains("params.consumerGroup"), "{refused}");
    }
    // Raw records have no batches: only a flow with both connections shows the contradiction.
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({ "batchMax": 10 }))).await.id();
    world.create(&source, &target).await.expect(400);
    // A flow without an inlet is stored, and no function serves it.
    let mut without_inlet = world.target(json!({}));
    without_inlet["params"] = json!({ "dataSetId": "d" });
    let target = world.api.post("/targetConnections", &without_inlet).await.id();
    let created = world.create(&source, &target).await.expect(201);
    assert_eq!(created.get("consumerGroup"), None);
    assert!(world.lambda.calls().is_empty());
}

#[tokio::test]
async fn a_flow_whose_item_is_not_readable_is_neither_stopped_nor_deleted() {
    let world = World::start().await;
    let (_, id) = world.flow(json!({ "eventHubName": HUB })).await;
    let set = |state: &'static str| {
        json!({
            "TableName": TABLE, "Key": { "pk": { "S": format!("FLOW#{id}") } },
            "UpdateExpression": "SET #s = :s", "ExpressionAttributeNames": { "#s": "state" },
            "ExpressionAttributeValues": { ":s": { "S": state } },
        })
    };
    world.cloud.call(Service::DynamoDb, "UpdateItem", set("paused")).await;
    world.api.delete(&format!("/flows/{id}")).await.expect(503);
    assert!(world.mapping().is_object(), "its mapping is not removed");
    world.cloud.call(Service::DynamoDb, "UpdateItem", set("enabled")).await;
    world.api.delete(&format!("/flows/{id}")).await.expect(204);
    world.nothing_is_left().await;
}
