//! Connections: checked at creation, tested, explored, and moved to another namespace.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_connection_that_cannot_work_returns_400_when_it_is_created() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let key = hub_config().keys[0].clone();
    let with = |params: Value| {
        json!({
            "name": "c", "connectionSpec": spec(EVENT_HUBS),
            "auth": { "specName": EVENT_HUBS_AUTH, "params": params },
        })
    };
    let good = json!({ "sasKeyName": key.name, "sasKey": key.key, "namespace": host(&hub) });
    let changed = |name: &str, value: &str| {
        let mut params = good.clone();
        params[name] = value.into();
        with(params)
    };
    for (body, problem) in [
        (changed("sasKey", "d3Jvbmc="), "wrong key"),
        (changed("sasKeyName", "nobody"), "wrong key"),
        (changed("eventHubName", "nowhere"), "no such event hub"),
        (changed("namespace", "evil.example"), "not an Event Hubs namespace"),
        (changed("namespace", "127.0.0.1:1"), "not an Event Hubs namespace"),
        (changed("sasKey", "********"), "mask"),
    ] {
        let message = text(&api.post("/connections", &body).await.expect(400)["message"]);
        assert!(message.contains(problem), "{message}");
    }
    let wrong = api.post("/connections?validate=false", &changed("sasKey", "d3Jvbmc=")).await.id();
    let test = api.get(&format!("/connections/{wrong}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    api.get(&format!("/connections/{wrong}/explore")).await.expect(403);
    // An unreachable namespace is refused only with validate=true.
    let gone = emulator(&[HUB]).await;
    let elsewhere = control(&cloud, &[&gone]);
    gone.shutdown().await;
    let body = changed("namespace", &host(&gone));
    elsewhere.post("/connections?validate=true", &body).await.expect(400);
    let id = elsewhere.post("/connections", &body).await.id();
    assert_eq!(elsewhere.get(&format!("/connections/{id}/test")).await.expect(200)["result"], false);
    elsewhere.get(&format!("/connections/{id}/explore")).await.expect(400);

    // A patch may replace the key, but not with a mask, and not the type.
    let path = format!("/connections/{wrong}");
    let params = |value: Value| json!([{ "op": "replace", "path": "/auth/params", "value": value }]);
    api.patch(&path, "*", &params(json!({ "sasKeyName": key.name, "sasKey": "********", "namespace": host(&hub) })))
        .await
        .expect(400);
    api.patch(&path, "*", &params(json!({ "sasKeyName": key.name, "namespace": host(&hub) }))).await.expect(400);
    api.patch(&path, "*", &json!([{ "op": "replace", "path": "/auth/specName", "value": "x" }])).await.expect(400);
    api.patch(&path, "*", &params(good.clone())).await.expect(200);
    assert_eq!(api.get(&format!("{path}/test")).await.expect(200)["result"], true);
    // No log line and no item contains the key.
    for function in [&api.function, &elsewhere.function] {
        assert!(!function.logs().join("\n").contains(&key.key));
    }
    let items = cloud.call(Service::DynamoDb, "Scan", json!({ "TableName": TABLE })).await;
    assert!(!items.to_string().contains(&key.key));
}

#[tokio::test]
async fn moving_a_connection_updates_the_items_of_its_flows() {
    let (cloud, old, new) = (Cloud::start().await, emulator(&[HUB]).await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&old, &new]);
    let connection = api.connection(&old).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let disabled = api.flow(DATAVERSE, json!({}), &connection, HUB).await;
    let action = format!("/flows/{}/action?op=disable", text(&disabled["id"]));
    api.post(&action, &Value::Null).await.expect(200);
    let path = format!("/connections/{connection}");
    let string = |hub: &Emulator| hub.connection_string(&hub_config().keys[0].name, None);
    let moves = [
        (&new, json!([{ "op": "replace", "path": "/auth/params/namespace", "value": host(&new) }])),
        (&old, json!([{ "op": "replace", "path": "/auth/params", "value": { "connectionString": string(&old) } }])),
        (&new, json!([{ "op": "add", "path": "/auth/params/namespace", "value": format!("sb://{}/", host(&new)) }])),
        // The same namespace in another form.
        (&new, json!([{ "op": "replace", "path": "/auth/params/namespace", "value": host(&new) }])),
    ];
    for (to, patch) in moves {
        api.patch(&path, "*", &patch).await.expect(200);
        let secret = attribute(&cloud, &tenant_key(&path), "secretId").await;
        for (flow, state) in [(&created, "enabled"), (&disabled, "disabled")] {
            let item = format!("FLOW#{}", text(&flow["id"]));
            assert_eq!(attribute(&cloud, &item, "host").await, Some(host(to)), "{patch}");
            assert_eq!(attribute(&cloud, &item, "connectionSecretId").await, secret, "{patch}");
            assert_eq!(attribute(&cloud, &item, "state").await.as_deref(), Some(state));
        }
        assert!(current_secret(&cloud, &path).await.contains(&format!("sb://{}/", host(to))), "{patch}");
    }
    let function = cloud.function("audience-change", &old, &[]);
    assert_eq!(send(&function, &created, DOCUMENTED).await, delivered(1));
    assert_eq!((old.events(HUB).len(), new.events(HUB).len()), (0, 1));
    let scope = json!([{ "op": "add", "path": "/auth/params/eventHubName", "value": "another" }]);
    api.patch(&path, "*", &scope).await.expect(400);
}

#[tokio::test]
async fn a_connection_string_replaces_the_parameters_of_a_connection() {
    let (cloud, old, new) = (Cloud::start().await, emulator(&[HUB]).await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&old, &new]);
    let path = format!("/connections/{}", api.connection(&old).await);
    for hub in [&old, &new] {
        let string = hub.connection_string(&hub_config().keys[0].name, None);
        let patch = json!([{ "op": "add", "path": "/auth/params/connectionString", "value": string }]);
        api.patch(&path, "*", &patch).await.expect(200);
        assert!(current_secret(&cloud, &path).await.contains(&host(hub)));
        let params = api.item(&path).await["auth"]["params"].clone();
        assert_eq!((&params["namespace"], &params["sasKey"]), (&json!(host(hub)), &json!("********")));
    }
    // A parameter in the same patch that contradicts the connection string is refused.
    let string = new.connection_string(&hub_config().keys[0].name, None);
    let patch = json!([
        { "op": "add", "path": "/auth/params/connectionString", "value": string },
        { "op": "replace", "path": "/auth/params/sasKeyName", "value": "another" },
    ]);
    api.patch(&path, "*", &patch).await.expect(400);
}

#[tokio::test]
async fn a_connection_test_reports_a_namespace_or_a_secret_that_became_unusable() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let path = format!("/connections/{}", api.connection(&hub).await);
    // The namespace is no longer allowed.
    let test = control(&cloud, &[]).get(&format!("{path}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    assert!(text(&test["detail"]).contains("namespace"), "{test}");
    let name = attribute(&cloud, &tenant_key(&path), "secretId").await.unwrap();
    cloud.call(Service::SecretsManager, "DeleteSecret", json!({ "SecretId": name })).await;
    let test = api.get(&format!("{path}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    assert!(text(&test["detail"]).contains("restore it"), "{test}");
}

/// A namespace that returns the same full page of hubs for every request.
async fn same_page_namespace() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let entries: String = (0..100).map(|n| format!("<entry><title>hub-{n}</title></entry>")).collect();
    let feed = format!("<feed xmlns=\"http://www.w3.org/2005/Atom\">{entries}</feed>");
    let response = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{feed}", feed.len());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    host
}

#[tokio::test]
async fn a_hub_on_any_page_of_the_namespace_is_found() {
    let names: Vec<String> = (0..250).map(|n| format!("hub-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (cloud, hub, stubborn) = (Cloud::start().await, emulator(&names).await, same_page_namespace().await);
    let api = control_with(&cloud, &[("EMULATOR_HOSTS", &format!("{},{stubborn}", host(&hub)))]);
    let key = hub_config().keys[0].clone();
    let with = |host: &str, hub: &str| {
        json!({
            "name": "c", "connectionSpec": spec(EVENT_HUBS),
            "auth": {
                "specName": EVENT_HUBS_AUTH,
                "params": { "sasKeyName": key.name, "sasKey": key.key, "namespace": host, "eventHubName": hub },
            },
        })
    };
    api.post("/connections", &with(&host(&hub), "hub-249")).await.id();
    api.post("/connections", &with(&host(&hub), "hub-250")).await.expect(400);
    let connection = api.connection(&hub).await;
    let explored = api.get(&format!("/connections/{connection}/explore?objectType=root")).await.expect(200);
    let listed: Vec<&str> = explored.as_array().unwrap().iter().map(|hub| hub["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
    // A hub of the full page is found; of any other hub nothing is known.
    let known = api.post("/connections", &with(&stubborn, "hub-7")).await.expect(201);
    assert!(known.get("detail").is_none(), "{known}");
    let created = api.post("/connections", &with(&stubborn, "unlisted")).await.expect(201);
    let test = api.get(&format!("/connections/{}/test", text(&created["id"]))).await.expect(200);
    assert_eq!(test["result"], true);
    for reported in [&created, &test] {
        assert!(text(&reported["detail"]).contains("more event hubs than it lists"), "{reported}");
    }
    let mut body = with(&stubborn, "hub-7");
    body["auth"]["params"].as_object_mut().unwrap().remove("eventHubName");
    let wide = api.post("/connections", &body).await.id();
    let target = json!({
        "name": "t", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": wide,
        "params": { "eventHubName": "unlisted" },
    });
    let target = api.post("/targetConnections", &target).await.expect(201);
    assert!(text(&target["detail"]).contains("more event hubs than it lists"), "{target}");
    let explored = api.get(&format!("/connections/{wide}/explore")).await.expect(200);
    assert_eq!(explored.as_array().unwrap().len(), 100, "the only page");
}
