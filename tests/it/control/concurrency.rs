//! Concurrent changes of the same objects, and changes for which the function has too little time.

use super::*;

#[tokio::test]
async fn of_two_hundred_updates_with_one_etag_one_succeeds() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let flow = api.item(&path).await;
    let ends = [("source", "sourceConnections"), ("target", "targetConnections")];
    let [source, target] = ends.map(|(end, name)| format!("/{name}/{}", text(&flow[format!("{end}ConnectionIds")][0])));
    // All updates of one collection, and fewer of the others, which use the same code.
    for (path, count) in [(path, 200), (source, 50), (target, 50), (format!("/connections/{connection}"), 50)] {
        let etag = text(&api.item(&path).await["etag"]);
        let updates: Vec<_> = (0..count)
            .map(|n| {
                let (api, path, etag) = (api.clone(), path.clone(), etag.clone());
                tokio::spawn(async move {
                    let rename = json!([{ "op": "replace", "path": "/name", "value": format!("name {n}") }]);
                    (n, api.patch(&path, &etag, &rename).await)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for update in updates {
            let (n, response) = update.await.unwrap();
            match response.status {
                200 => winners.push((n, response.body)),
                _ => drop(response.expect(412)),
            }
        }
        assert_eq!(winners.len(), 1, "{path} {winners:?}");
        let item = api.item(&path).await;
        assert_eq!((&item["name"], &item["etag"]), (&json!(format!("name {}", winners[0].0)), &winners[0].1["etag"]));
    }
}

#[tokio::test]
async fn concurrent_changes_that_affect_many_flows_succeed_or_return_503() {
    const FLOWS: usize = 60;
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let mut api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({ "options": {} }), &connection, HUB).await;
    let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let again = json!({
        "name": "again", "flowSpec": flow["flowSpec"], "sourceConnectionIds": flow["sourceConnectionIds"],
        "targetConnectionIds": flow["targetConnectionIds"],
    });
    let mut last = String::new();
    for _ in 1..FLOWS {
        last = api.post("/flows", &again).await.id();
    }
    let source = format!("/sourceConnections/{}", text(&flow["sourceConnectionIds"][0]));
    let target = format!("/targetConnections/{}", text(&flow["targetConnectionIds"][0]));
    api = control_in(&cloud, &[("EMULATOR_HOSTS", &host(&hub))], Duration::from_secs(10));
    let together = async |path: &str, patch: &dyn Fn(usize) -> Value| {
        let patches = (0..4).map(|n| {
            let (api, path, patch) = (api.clone(), path.to_owned(), patch(n));
            tokio::spawn(async move { api.patch(&path, "*", &patch).await })
        });
        let mut statuses = Vec::new();
        for patched in patches.collect::<Vec<_>>() {
            statuses.push(patched.await.unwrap().status);
        }
        statuses
    };
    // Members that no flow item contains are written alone: all changes succeed.
    let item = format!("FLOW#{last}");
    let rename = |n: usize| json!([{ "op": "replace", "path": "/name", "value": format!("name {n}") }]);
    let senders = |n: usize| json!([{ "op": "add", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": format!("s{n}") }] }]);
    let version = async || {
        let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": item } }, "ConsistentRead": true });
        cloud.call(Service::DynamoDb, "GetItem", key).await["Item"]["version"]["N"].clone()
    };
    let before = version().await;
    assert_eq!(together(&source, &rename).await, [200; 4]);
    assert_eq!(together(&target, &rename).await, [200; 4]);
    assert_eq!(together(&source, &senders).await, [200; 4]);
    assert_eq!(version().await, before);
    // Members that all flow items contain are changed one after another, or the call returns 503.
    let options = |n: usize| json!([{ "op": "add", "path": "/params/options/partnerNumber", "value": 50 + n }]);
    let statuses = together(&source, &options).await;
    assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    let current = api.item(&source).await["params"]["options"]["partnerNumber"].to_string();
    assert!(attribute(&cloud, &item, "options").await.unwrap().contains(&current), "{current}");
}

#[tokio::test]
async fn a_change_that_takes_longer_than_the_function_may_run_returns_503() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let proxy = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
    let table = format!("http://{}", proxy.address());
    let variables = [("EMULATOR_HOSTS", host(&hub)), ("AWS_ENDPOINT_URL_DYNAMODB", table)];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let api = control_in(&cloud, &variables, Duration::from_secs(4));
    let path = format!("/connections/{}", api.connection(&hub).await);
    let rename = json!([{ "op": "replace", "path": "/name", "value": "late" }]);
    proxy.fail("DynamoDB_20120810.TransactWriteItems", AwsFault::Hang);
    for response in [api.patch(&path, "*", &rename).await, api.delete(&path).await] {
        assert!(text(&response.expect(503)["message"]).contains("send it again"));
    }
    proxy.recover("DynamoDB_20120810.TransactWriteItems");
    api.patch(&path, "*", &rename).await.expect(200);
    assert_eq!(api.item(&path).await["name"], "late");
}

#[tokio::test]
async fn a_flow_created_while_its_target_changes_uses_the_changed_target() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    for round in 0..8 {
        let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
        let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
        let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
        api.delete(&format!("/flows/{}", text(&created["id"]))).await;
        let again = json!({
            "name": "again", "flowSpec": spec(FLOW_TO_HUB),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        let path = format!("/targetConnections/{target}");
        let moved = json!([{ "op": "replace", "path": "/params/eventHubName", "value": "other" }]);
        let (created, patched) = tokio::join!(api.post("/flows", &again), api.patch(&path, "*", &moved));
        let id = text(&created.expect(201)["id"]);
        patched.expect(200);
        let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": format!("FLOW#{id}") } } });
        let item = cloud.call(Service::DynamoDb, "GetItem", key).await;
        assert_eq!(item["Item"]["hub"]["S"], "other", "round {round}");
    }
}
