//! The documented sequences of calls, for a destination and for a source.

use super::*;

#[tokio::test]
async fn the_documented_sequence_for_a_destination_succeeds() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let values = credentials(&hub);
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let base = api.post("/connections", &body("1-connections.post.profile-store", &values)).await.id();
    let mut source = body("2-sourceConnections.post.profile-store", &values);
    source["baseConnectionId"] = base.as_str().into();
    let source = api.post("/sourceConnections", &source).await.id();
    let connection = api.post("/connections", &body("3-connections.post.eventhub", &values)).await.id();
    let mut target = body("4-targetConnections.post.eventhub", &values);
    target["baseConnectionId"] = connection.as_str().into();
    let target = api.post("/targetConnections", &target).await.id();
    let mut flow = body("5-flows.post", &values);
    flow["sourceConnectionIds"] = json!([source]);
    flow["targetConnectionIds"] = json!([target]);
    let created = api.post("/flows", &flow).await.expect(201);
    let path = format!("/flows/{}", text(&created["id"]));
    assert_eq!(created["webhookUrl"], format!("https://api.example.net/profile-export/{}", text(&created["id"])));
    let activate = body("6-flows.patch.activate", &values);
    let patched = api.patch(&path, &text(&created["etag"]), &activate).await.expect(200);
    assert_eq!(patched["id"], created["id"]);
    assert_ne!(patched["etag"], created["etag"]);

    let read = api.item(&path).await;
    assert_eq!(
        (&read["state"], &read["etag"], &read["version"]),
        (&json!("enabled"), &patched["etag"], &patched["etag"])
    );
    let selectors = |flow: &Value, list: &str| flow["transformations"][0]["params"][list]["selectors"].clone();
    assert_eq!(selectors(&read, "segmentSelectors")[0], activate[0]["value"]);
    assert_eq!(selectors(&read, "profileSelectors")[0], activate[1]["value"]);
    let inherited = &read["inheritedAttributes"]["targetConnections"][0];
    assert_eq!(inherited["connectionSpec"]["id"], EVENT_HUBS);
    assert_eq!(inherited["baseConnection"]["id"], connection.as_str());
    assert_eq!((&read["imsOrgId"], &read["sandboxName"]), (&json!(ORGANISATION), &json!(SANDBOX)));

    // Only the selected audience passes.
    let function = cloud.function("profile-export", &hub, &[]);
    let event = |audience: &str| {
        json!({
            "identityMap": { "ecid": [{ "id": "1" }] },
            "segmentMembership": { "ups": { audience: { "status": "realized" } } },
        })
        .to_string()
    };
    assert_eq!(send(&function, &created, &event(AUDIENCE_ID)).await, delivered(1));
    assert_eq!(send(&function, &created, &event("other")).await.body["status"], "filtered");

    // The selected audience is removed; the same etag is refused afterwards.
    let remove = body("7-flows.patch.remove-segment", &values);
    let etag = text(&patched["etag"]);
    api.patch(&path, &etag, &remove).await.expect(200);
    let current = text(&api.item(&path).await["etag"]);
    let stale = api.patch(&path, &etag, &remove).await.expect(412);
    let problem = format!("Supplied version=[{etag}] does not match the current version on entity=[{current}]");
    assert_eq!(stale, json!({ "errorMessage": problem, "errorDetails": problem }));
    api.patch(&path, current.trim_matches('"'), &remove).await.expect(412);
    assert_eq!(selectors(&api.item(&path).await, "segmentSelectors"), json!([]));

    // Deletion goes from the flow to the connections; objects in use stay.
    for in_use in
        [format!("/connections/{connection}"), format!("/connections/{base}"), format!("/sourceConnections/{source}")]
    {
        let problem = api.delete(&in_use).await.expect(409);
        assert!(text(&problem["errorMessage"]).contains("in use"));
    }
    for unused in [path.clone(), format!("/targetConnections/{target}"), format!("/connections/{connection}/")] {
        let response = api.delete(&unused).await;
        assert_eq!((response.status, &response.body), (204, &Value::Null), "{unused}");
        let missing = api.get(&unused).await.expect(404);
        let mut segments = unused.split('/').skip(1);
        let text = format!("{} not found with id = [{}]", segments.next().unwrap(), segments.next().unwrap());
        assert_eq!(missing, json!({ "errorMessage": text, "errorDetails": text }));
    }
    assert_eq!(
        api.post("/connections", &body("3-connections.post.kinesis", &values)).await.expect(400)["message"],
        "Please provide a valid spec id"
    );
}

#[tokio::test]
async fn the_documented_sequence_for_a_source_succeeds() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let values = credentials(&hub);
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for refused in ["connections.post.aad", "connections.post.aad-scoped"] {
        api.post("/connections", &body(refused, &values)).await.expect(400);
    }
    let scoped = api.post("/connections", &body("connections.post.sas-scoped", &values)).await.id();
    let connection = api.post("/connections", &body("connections.post.standard", &values)).await.id();
    let read = api.item(&format!("/connections/{connection}")).await;
    assert_eq!(read["auth"]["params"]["sasKey"], "********");
    let key = hub_config().keys[0].key.clone();
    assert!(!read.to_string().contains(&key));
    let hubs = |names: &[&str]| -> Value {
        let file = |name: &&str| json!({ "type": "file", "name": name, "path": format!("/{name}"), "canPreview": false, "canFetchSchema": false });
        names.iter().map(file).collect()
    };
    let explore = |id: &str| format!("/connections/{id}/explore?objectType=root");
    assert_eq!(api.get(&explore(&connection)).await.expect(200), hubs(&[HUB, "other"]));
    assert_eq!(api.get(&explore(&scoped)).await.expect(200), hubs(&[HUB]));
    assert_eq!(api.get(&format!("/connections/{connection}/test")).await.expect(200)["result"], true);

    let mut source = body("sourceConnections.post", &values);
    source["baseConnectionId"] = connection.as_str().into();
    let source = api.post("/sourceConnections", &source).await.id();
    let target = api.post("/targetConnections", &body("targetConnections.post", &values)).await.id();
    let mut flow = body("flows.post", &values);
    flow["sourceConnectionIds"] = json!([source]);
    flow["targetConnectionIds"] = json!([target]);
    let created = api.post("/flows", &flow).await.expect(201);
    let path = format!("/flows/{}", text(&created["id"]));
    let mapping = body("flows.patch.mapping", &values);
    api.patch(&path, &text(&created["etag"]), &mapping).await.expect(200);
    assert_eq!(api.item(&path).await["transformations"][0], mapping[0]["value"]);
    assert_eq!(
        api.get(&format!("/runs?property=flowId=={}", text(&created["id"]))).await.expect(200),
        json!({ "items": [] })
    );
    // No function serves this flow, so it has no item for one.
    let item = format!("FLOW#{}", text(&created["id"]));
    assert_eq!(attribute(&cloud, &item, "kind").await, None);
    let read = api.item(&format!("/sourceConnections/{source}")).await;
    let event_hubs = spec(EVENT_HUBS);
    assert_eq!(
        read["inheritedAttributes"],
        json!({ "baseConnection": { "id": connection, "connectionSpec": event_hubs } })
    );
    assert_eq!(api.item(&format!("/targetConnections/{target}")).await["inheritedAttributes"], json!({}));
    for op in ["disable", "enable"] {
        api.post(&format!("{path}/action?op={op}"), &Value::Null).await.expect(200);
        assert_eq!(api.item(&path).await["state"], format!("{op}d"));
        assert_eq!(attribute(&cloud, &item, "state").await, None);
    }
    // The connections must fit the flow spec.
    flow["flowSpec"]["id"] = FLOW_TO_HUB.into();
    api.post("/flows", &flow).await.expect(400);

    // Lists have filters.
    let count = async |target: &str| api.get(target).await.expect(200)["items"].as_array().unwrap().len();
    assert_eq!(count("/connections").await, 2);
    assert_eq!(count(&format!("/connections?property=id=={connection}")).await, 1);
    let spec_id = "inheritedAttributes.sourceConnections[].connectionSpec.id";
    assert_eq!(count(&format!("/flows?property={spec_id}=={EVENT_HUBS}")).await, 1);
    assert_eq!(count("/flows?property=state==disabled").await, 0);
    // A sandbox has one id.
    let sandbox = api.item(&path).await["sandboxId"].clone();
    assert_eq!((text(&sandbox).len(), &sandbox), (36, &read["sandboxId"]));
    let other = Caller { sandbox: OTHER_SANDBOX, ..api.clone() };
    let body = json!({ "name": "n", "connectionSpec": spec(PROFILE_STORE) });
    let id = other.post("/connections", &body).await.id();
    assert_ne!(other.item(&format!("/connections/{id}")).await["sandboxId"], sandbox);
    let page = api.get("/connections?limit=1&count=true").await.expect(200);
    assert_eq!((&page["items"][0]["id"], &page["count"]), (&json!(connection), &json!(2)), "newest first");
    let next = api.get(&text(&page["_links"]["next"]["href"])).await.expect(200);
    assert_eq!(next["items"][0]["id"], scoped.as_str());
    assert!(api.get("/connectionSpecs").await.expect(200)["items"].as_array().unwrap().len() >= 5);
    assert_eq!(api.item(&format!("/flowSpecs/{FLOW_FROM_HUB}")).await["version"], "1.0");
    for unused in [&path, &format!("/targetConnections/{target}"), &format!("/sourceConnections/{source}")] {
        assert_eq!(api.delete(unused).await.status, 204, "{unused}");
        api.get(unused).await.expect(404);
    }
    for kind in local::kinds::KINDS {
        let spec = api.item(&format!("/connectionSpecs/{}", kind.sender_spec)).await;
        assert_eq!(spec["attributes"]["kind"], kind.name, "every kind has its spec");
    }
}
