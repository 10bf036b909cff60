//! Flows: what their functions do after a change, and how they are disabled.

use super::*;

#[tokio::test]
async fn a_flow_delivers_events_and_follows_each_change_of_its_objects() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "second"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({ "options": {} }), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let function = || cloud.function("audience-change", &hub, &[]);
    let long_lived = function();
    assert_eq!(send(&long_lived, &created, DOCUMENTED).await, delivered(1));
    assert_eq!(hub.events(HUB).len(), 1);
    let mut stranger = created.clone();
    stranger["senderAuth"] = json!([]);
    send(&function(), &stranger, DOCUMENTED).await.problem(401);

    // The credential is shown only once.
    let flow = api.item(&path).await;
    let source = format!("/sourceConnections/{}", text(&flow["sourceConnectionIds"][0]));
    assert_eq!(api.item(&source).await["params"]["senderAuth"], json!([{ "type": "bearer" }]));
    let again = json!({
        "name": "again", "flowSpec": flow["flowSpec"], "sourceConnectionIds": flow["sourceConnectionIds"],
        "targetConnectionIds": flow["targetConnectionIds"],
    });
    let again = api.post("/flows", &again).await.expect(201);
    assert_eq!(again["senderAuth"], json!([{ "type": "bearer" }]));
    api.delete(&format!("/flows/{}", text(&again["id"]))).await.expect(204);

    // The options must be valid for the kind.
    let options = |value: Value| json!([{ "op": "add", "path": "/params/options", "value": value }]);
    api.patch(&source, "*", &options(json!({ "unknown": 1 }))).await.expect(400);
    api.patch(&source, "*", &options(json!({ "partnerNumber": 44 }))).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await.body["status"], "filtered");
    api.patch(&source, "*", &options(json!({}))).await.expect(200);

    // A changed hub of the target is used.
    let target = format!("/targetConnections/{}", text(&flow["targetConnectionIds"][0]));
    let hub_name = json!([{ "op": "replace", "path": "/params/eventHubName", "value": "second" }]);
    api.patch(&target, "*", &hub_name).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await, delivered(1));
    assert_eq!(hub.events("second").len(), 1);

    // A new credential replaces the old one.
    let senders =
        json!([{ "op": "replace", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": "mine" }] }]);
    api.patch(&source, "*", &senders).await.expect(200);
    let mut known = created.clone();
    send(&function(), &known, DOCUMENTED).await.problem(401);
    known["senderAuth"] = json!([{ "type": "bearer", "secret": "mine" }]);
    assert_eq!(send(&function(), &known, DOCUMENTED).await, delivered(1));

    let disabled = api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    assert_eq!(disabled["id"], created["id"]);
    assert_eq!(api.item(&path).await["state"], "disabled");
    send(&function(), &known, DOCUMENTED).await.problem(409);
    // An instance with a cached item follows within a minute.
    let deadline = Instant::now() + Duration::from_secs(70);
    while send(&long_lived, &known, DOCUMENTED).await.status != 409 {
        assert!(Instant::now() < deadline, "a change takes effect within the cache time");
        sleep(Duration::from_secs(1)).await;
    }
    api.post(&format!("{path}/action?op=enable"), &Value::Null).await.expect(200);
    assert_eq!(send(&function(), &known, DOCUMENTED).await, delivered(1));
    api.delete(&path).await.expect(204);
    send(&function(), &known, DOCUMENTED).await.problem(404);
}

#[tokio::test]
async fn a_flow_with_options_that_are_no_longer_valid_can_be_disabled() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let before = api.item(&path).await;
    // An option that the kind's schema no longer has.
    let end = text(&before["sourceConnectionIds"][0]);
    let pk = tenant_key(&format!("/sourceConnections/{end}"));
    let mut document: Value = serde_json::from_str(&attribute(&cloud, &pk, "document").await.unwrap()).unwrap();
    document["params"]["options"] = json!({ "formerly": true });
    let update = json!({
        "TableName": TABLE, "Key": { "pk": { "S": pk } }, "UpdateExpression": "SET document = :d",
        "ExpressionAttributeValues": { ":d": { "S": document.to_string() } },
    });
    cloud.call(Service::DynamoDb, "UpdateItem", update).await;
    let function = || cloud.function("audience-change", &hub, &[]);
    let disabled = api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    send(&function(), &created, DOCUMENTED).await.problem(409);
    let mut after = api.item(&path).await;
    assert_eq!((&after["state"], &after["etag"]), (&json!("disabled"), &disabled["etag"]));
    assert!(after["updatedAt"].as_u64() >= before["updatedAt"].as_u64());
    for member in ["state", "etag", "version", "updatedAt", "lastOperation"] {
        after[member] = before[member].clone();
    }
    assert_eq!(after, before, "all other members are unchanged");
    api.post(&format!("{path}/action?op=enable"), &Value::Null).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await, delivered(1));
}
