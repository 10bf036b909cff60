//! Keys and senders' credentials: where they are stored, how they are rotated, and where they are refused.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn after_two_concurrent_rotations_the_secret_matches_the_table() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let (api, proxy) = control_with_proxy(&cloud, &hub).await;
    let path = format!("/connections/{}", api.connection(&hub).await);
    let change = |name: &str| {
        json!([
            { "op": "replace", "path": "/auth/params/sasKeyName", "value": name },
            { "op": "replace", "path": "/auth/params/sasKey", "value": format!("key-of-{name}") },
        ])
    };
    for step in ["PutSecretValue", "UpdateSecretVersionStage"] {
        let mut held = proxy.hold(&format!("secretsmanager.{step}"));
        let (one, one_path, patch) = (api.clone(), path.clone(), change("one"));
        let one = tokio::spawn(async move { one.patch(&one_path, "*", &patch).await });
        held.came().await;
        api.patch(&path, "*", &change("two")).await.expect(200);
        drop(held);
        one.await.unwrap().expect(200);
        let name = text(&api.item(&path).await["auth"]["params"]["sasKeyName"]);
        let secret = current_secret(&cloud, &path).await;
        let expected = format!("SharedAccessKeyName={name};SharedAccessKey=key-of-{name};");
        assert!(secret.contains(&expected), "{step}: the table has {name}, the secret {secret}");
    }
}

#[tokio::test]
async fn repeating_a_change_that_failed_halfway_completes_it() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let (api, proxy) = control_with_proxy(&cloud, &hub).await;
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let source = text(&api.item(&format!("/flows/{}", text(&created["id"]))).await["sourceConnectionIds"][0]);
    let (connection, source) = (format!("/connections/{connection}"), format!("/sourceConnections/{source}"));
    for step in ["PutSecretValue", "UpdateSecretVersionStage"] {
        let step = format!("secretsmanager.{step}");
        let name = format!("after-{step}");
        let renamed = json!([{ "op": "replace", "path": "/auth/params/sasKeyName", "value": name }]);
        let senders =
            json!([{ "op": "add", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": name }] }]);
        for (path, patch) in [(&connection, &renamed), (&source, &senders)] {
            proxy.fail(&step, AwsFault::Unavailable);
            api.patch(path, "*", patch).await.expect(503);
            proxy.recover(&step);
            assert!(!current_secret(&cloud, path).await.contains(&name), "{step} {path}");
            api.patch(path, "*", patch).await.expect(200);
            assert!(current_secret(&cloud, path).await.contains(&name), "{step} {path}");
        }
    }
    // A test of the connection completes the change too: otherwise it would check a key that is not the current one.
    let key = hub_config().keys[0].clone();
    let good = json!([{ "op": "replace", "path": "/auth/params/sasKeyName", "value": key.name }]);
    proxy.fail("secretsmanager.UpdateSecretVersionStage", AwsFault::Unavailable);
    api.patch(&connection, "*", &good).await.expect(503);
    proxy.recover("secretsmanager.UpdateSecretVersionStage");
    assert_eq!(api.get(&format!("{connection}/test")).await.expect(200)["result"], true);
    assert!(current_secret(&cloud, &connection).await.contains(&format!("SharedAccessKeyName={};", key.name)));
    let mut known = created.clone();
    known["senderAuth"] = json!([{ "type": "bearer", "secret": "after-secretsmanager.UpdateSecretVersionStage" }]);
    let function = cloud.function("audience-change", &hub, &[]);
    assert_eq!(send(&function, &known, DOCUMENTED).await, delivered(1), "functions read the current secret");
}

/// Number of versions of the secret of an object.
async fn versions(cloud: &Cloud, path: &str) -> usize {
    let name = attribute(cloud, &tenant_key(path), "secretId").await.unwrap();
    let list = json!({ "SecretId": name, "IncludeDeprecated": true });
    cloud.call(Service::SecretsManager, "ListSecretVersionIds", list).await["Versions"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_secret_is_stored_once_per_successful_change_and_never_by_a_refused_one() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let source = text(&api.item(&format!("/flows/{}", text(&created["id"]))).await["sourceConnectionIds"][0]);
    let (connection, source) = (format!("/connections/{connection}"), format!("/sourceConnections/{source}"));
    // A new key with a scope without the target's hub; a new credential with invalid options.
    let scope = json!([
        { "op": "replace", "path": "/auth/params/sasKey", "value": "another" },
        { "op": "add", "path": "/auth/params/eventHubName", "value": "other" },
    ]);
    let senders = |secret: &str| json!([{ "type": "bearer", "secret": secret }]);
    let options = json!([
        { "op": "add", "path": "/params/senderAuth", "value": senders("mine") },
        { "op": "add", "path": "/params/options", "value": { "unknown": 1 } },
    ]);
    for (path, patch) in [(&connection, &scope), (&source, &options)] {
        for _ in 0..3 {
            api.patch(path, "*", patch).await.expect(400);
        }
        assert_eq!(versions(&cloud, path).await, 1, "{path}");
    }
    // Each of four concurrent changes stores its secret once, even if it has to start over.
    let patches = (0..4).map(|n| {
        let (api, path) = (api.clone(), source.clone());
        let patch = json!([{ "op": "add", "path": "/params/senderAuth", "value": senders(&format!("s{n}")) }]);
        tokio::spawn(async move { api.patch(&path, "*", &patch).await })
    });
    for patched in patches.collect::<Vec<_>>() {
        patched.await.unwrap().expect(200);
    }
    assert!(versions(&cloud, &source).await <= 5);
    // A hub's name is the same in any case.
    let scope = json!([{ "op": "add", "path": "/auth/params/eventHubName", "value": HUB.to_uppercase() }]);
    api.patch(&connection, "*", &scope).await.expect(200);
}

#[tokio::test]
async fn a_flow_that_gets_another_source_shows_its_credential_once() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATAVERSE, json!({}), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let source =
        json!({ "name": "new", "connectionSpec": spec(DATA_ACTIVATION), "params": { "senderAuth": "generate" } });
    let source = api.post("/sourceConnections", &source).await.id();
    let before = text(&api.item(&path).await["sourceConnectionIds"][0]);
    let lead = |to: &str| json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [to] }]);
    let changed = api.patch(&path, "*", &lead(&source)).await.expect(200);
    assert!(text(&changed["webhookUrl"]).contains("/audience-change/"));
    let function = cloud.function("audience-change", &hub, &[]);
    assert_eq!(send(&function, &changed, DOCUMENTED).await, delivered(1));
    // The credential is shown only once.
    api.patch(&path, "*", &lead(&before)).await.expect(200);
    let again = api.patch(&path, "*", &lead(&source)).await.expect(200);
    assert_eq!(again["senderAuth"], json!([{ "type": "bearer" }]));
    let rename = json!([{ "op": "replace", "path": "/name", "value": "n" }]);
    assert!(api.patch(&path, "*", &rename).await.expect(200).get("senderAuth").is_none());
}

#[tokio::test]
async fn credentials_outside_their_fields_return_400_with_their_place() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
    let key = hub_config().keys[0].clone();
    let event_hubs = spec(EVENT_HUBS);
    let bodies = [
        (
            "connections",
            &connection,
            json!({
                "name": "n", "connectionSpec": event_hubs, "auth": {
                    "specName": EVENT_HUBS_AUTH,
                    "params": { "sasKeyName": key.name, "sasKey": key.key, "namespace": host(&hub) },
                },
            }),
        ),
        ("sourceConnections", &source, json!({ "name": "n", "connectionSpec": spec(DATAVERSE) })),
        (
            "sourceConnections",
            &source,
            json!({
                "name": "n", "connectionSpec": event_hubs, "baseConnectionId": connection, "params": { "eventHubName": HUB },
            }),
        ),
        (
            "targetConnections",
            &target,
            json!({
                "name": "n", "connectionSpec": event_hubs, "baseConnectionId": connection, "params": { "eventHubName": HUB },
            }),
        ),
        (
            "flows",
            &text(&flow["id"]),
            json!({
                "name": "n", "flowSpec": flow["flowSpec"], "sourceConnectionIds": [source], "targetConnectionIds": [target],
            }),
        ),
    ];
    let secrets = [
        "senderAuth",
        "sasKey",
        "connectionString",
        "clientSecretValue",
        "secretKey",
        "SASKEY",
        "primaryKey",
        "secondaryKey",
        "primaryConnectionString",
        "secondaryConnectionString",
        "SharedAccessKey",
        "clientSecret",
    ];
    for (collection, id, body) in &bodies {
        api.post(&format!("/{collection}?validate=false"), body).await.expect(201);
        for name in secrets {
            for place in ["", "/params", "/more", "/transformations/0/params"] {
                let is_sender = *collection == "sourceConnections" && body["baseConnectionId"].is_null();
                if is_sender && (place, name) == ("/params", "senderAuth") {
                    continue;
                }
                let mut body = body.clone();
                let mut parent = &mut body;
                for step in place.split('/').skip(1) {
                    let next = if step == "0" { &mut parent[0] } else { &mut parent[step] };
                    if next.is_null() {
                        *next = if step == "transformations" { json!([{}]) } else { json!({}) };
                    }
                    parent = next;
                }
                parent[name] = "topsecret".into();
                let refused = api.post(&format!("/{collection}?validate=false"), &body).await.expect(400).to_string();
                assert!(refused.contains(&format!("{place}/{name}:")) && !refused.contains("topsecret"), "{refused}");
            }
            let patch = json!([{ "op": "add", "path": "/more", "value": [{ "x": { name: "topsecret" } }] }]);
            let refused = api.patch(&format!("/{collection}/{id}"), "*", &patch).await.expect(400).to_string();
            assert!(refused.contains(&format!("/more/0/x/{name}:")) && !refused.contains("topsecret"), "{refused}");
        }
    }
    // A connection string is recognised in a member of any name.
    for text in [
        "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret",
        "sb://x;sharedaccesssignature=topsecret",
        "SharedAccessSignature sr=x&sig=topsecret",
    ] {
        for (collection, id, body) in &bodies {
            let patch = json!([{ "op": "add", "path": "/more", "value": ["plain", { "x": text }] }]);
            let refused = api.patch(&format!("/{collection}/{id}"), "*", &patch).await.expect(400).to_string();
            assert!(refused.contains("/more/1/x:") && !refused.contains("topsecret"), "{refused}");
            let mut body = body.clone();
            body["more"] = json!({ text: 1 });
            let refused = api.post(&format!("/{collection}?validate=false"), &body).await.expect(400).to_string();
            assert!(refused.contains("/more:") && !refused.contains("topsecret"), "{refused}");
        }
    }
    let named = json!({ "name": "n", "connectionSpec": spec(DATAVERSE), "more": { "sharedAccessKeyName": "n" } });
    api.post("/connections", &named).await.expect(201);
    // A member whose name only looks like the path of the field.
    let odd = json!({ "name": "n", "connectionSpec": spec(DATAVERSE), "auth/params": { "sasKey": "topsecret" } });
    api.post("/connections", &odd).await.expect(400);
    let items = cloud.call(Service::DynamoDb, "Scan", json!({ "TableName": TABLE })).await;
    assert!(!items.to_string().contains("topsecret"));
}

#[tokio::test]
async fn keys_rotated_while_events_are_sent_lose_no_event() {
    const EVENTS: usize = 60;
    let cloud = Cloud::start().await;
    let (here, there) = (emulator(&["a"]).await, emulator(&["b"]).await);
    let key_name = hub_config().keys[0].name.clone();
    there.set_key(&key_name, "dGhlcmUgMQ==");
    let api = control(&cloud, &[&here, &there]);
    let connections = [api.connection(&here).await, api.connection(&there).await];
    let audience = api.flow(DATA_ACTIVATION, json!({}), &connections[0], "a").await;
    let dataverse = api.flow(DATAVERSE, json!({}), &connections[1], "b").await;
    let functions = [cloud.function("audience-change", &here, &[]), cloud.function("dataverse-event", &here, &[])];
    let _redelivery = cloud.redeliver(&here);
    let context = include_str!("../../fixtures/dataverse-event/create_lead_sync.json");
    let parsed: Value = serde_json::from_str(context).unwrap();
    let entity_id = text(&parsed["PrimaryEntityId"]);
    let sending = async {
        for n in 0..EVENTS {
            let subject = format!("00000000-0000-0000-0000-{n:012}");
            let (one, other) = (crate::harness::event_of(&subject), context.replace(&entity_id, &subject));
            let (one, other) =
                tokio::join!(send(&functions[0], &audience, &one), send(&functions[1], &dataverse, &other));
            for response in [one, other] {
                assert!([200, 202].contains(&response.status), "{response:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let rotating = async {
        for round in 0..3 {
            sleep(Duration::from_millis(900)).await;
            for (hub, connection) in [&here, &there].into_iter().zip(&connections) {
                let key = format!("key-{round}-{}", host(hub));
                hub.set_key(&key_name, &key);
                let patch = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": key }]);
                api.patch(&format!("/connections/{connection}"), "*", &patch).await.expect(200);
            }
        }
    };
    tokio::join!(sending, rotating);
    let subjects = |hub: &Emulator, name: &str| -> BTreeSet<String> {
        hub.events(name).iter().map(|event| text(&event.properties["cloudEvents:subject"])).collect()
    };
    until("all events", async || subjects(&here, "a").len() == EVENTS && subjects(&there, "b").len() == EVENTS).await;
    let kinds = |hub: &Emulator, name: &str| -> BTreeSet<String> {
        hub.events(name).iter().map(|event| text(&event.properties["cloudEvents:source"])[..10].to_owned()).collect()
    };
    assert_eq!(kinds(&here, "a"), BTreeSet::from(["/audience-".to_owned()]), "no event is in another hub");
    assert_eq!(kinds(&there, "b"), BTreeSet::from(["/dataverse".to_owned()]), "no event is in another hub");
}
