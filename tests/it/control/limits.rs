//! Maximum sizes: of options, objects, transactions and pages.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn an_object_with_odd_members_or_deep_patches_can_be_deleted() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let odd = json!({
        "name": "odd", "connectionSpec": spec(PROFILE_STORE),
        "baseConnectionId": UNKNOWN_ID, "sourceConnectionIds": [UNKNOWN_ID], "targetConnectionIds": [UNKNOWN_ID],
    });
    let path = format!("/connections/{}", api.post("/connections", &odd).await.id());
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let add = |path: String, levels: usize| json!([{ "op": "add", "path": path, "value": nested(levels) }]);
    api.patch(&path, "*", &add("/x".to_owned(), 90)).await.expect(200);
    api.patch(&path, "*", &add(format!("/x{}/-", "/0".repeat(80)), 90)).await.expect(400);
    api.item(&path).await;
    let deleted = api.delete(&path).await;
    assert!(deleted.status < 300, "{deleted:?}");
    api.get(&path).await.expect(404);
}

#[tokio::test]
async fn options_that_are_too_large_return_400_and_objects_413() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let audiences = |count: usize| -> Vec<String> { (0..count).map(|n| format!("{n:036}")).collect() };
    let source = |count: usize| {
        json!({
            "name": "s", "connectionSpec": spec(PROFILE_STORE),
            "params": { "options": { "audiences": audiences(count) } },
        })
    };
    let message = text(&api.post("/sourceConnections", &source(1_100)).await.expect(400)["message"]);
    assert!(message.contains("42915 bytes") && message.contains("40000 at most"), "{message}");
    let params = source(900)["params"].clone();
    let created = api.flow(PROFILE_STORE, params, &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let selectors = |count: usize| -> Value {
        audiences(count).iter().map(|id| json!({ "type": "PLATFORM_SEGMENT", "value": { "id": id } })).collect()
    };
    let select = |count: usize| {
        json!([{ "op": "add", "path": "/transformations", "value": [
            { "name": "GeneralTransform", "params": { "segmentSelectors": { "selectors": selectors(count) } } },
        ] }])
    };
    api.patch(&path, "*", &select(900)).await.expect(200);
    let message = text(&api.patch(&path, "*", &select(1_100)).await.expect(400)["message"]);
    assert!(message.contains("42915 bytes"), "{message}");
    // Patches make objects larger.
    let grow = |n: usize| json!([{ "op": "add", "path": format!("/more{n}"), "value": "x".repeat(100_000) }]);
    let sizes = async |path: &str| {
        for n in 0..5 {
            let response = api.patch(path, "*", &grow(n)).await;
            if response.status != 200 {
                return (n, response.status);
            }
        }
        (5, 200)
    };
    assert_eq!(sizes(&path).await, (1, 413));
    api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    assert_eq!(sizes(&format!("/connections/{connection}")).await, (0, 413));
}

#[tokio::test]
async fn a_change_of_more_objects_than_one_transaction_holds_returns_409() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let audiences: Vec<String> = (0..1_000).map(|n| format!("{n:036}")).collect();
    let params = json!({ "options": { "audiences": audiences } });
    let created = api.flow(PROFILE_STORE, params, &connection, HUB).await;
    let first = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let again = json!({
        "name": "again", "flowSpec": first["flowSpec"], "sourceConnectionIds": first["sourceConnectionIds"],
        "targetConnectionIds": first["targetConnectionIds"],
    });
    let mut last = String::new();
    for _ in 1..80 {
        last = api.post("/flows", &again).await.id();
    }
    api.post("/flows", &again).await.expect(409);
    let source = format!("/sourceConnections/{}", text(&first["sourceConnectionIds"][0]));
    let split = json!([{ "op": "add", "path": "/params/options/split", "value": "membership" }]);
    api.patch(&source, "*", &split).await.expect(200);
    assert!(attribute(&cloud, &format!("FLOW#{last}"), "options").await.unwrap().contains("membership"));
    // A connection with so many large objects can change its key, but not its namespace.
    let other = api.connection(&hub).await;
    let target = json!({
        "name": "t", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": other,
        "params": { "eventHubName": HUB }, "note": "x".repeat(60_000),
    });
    for _ in 0..70 {
        api.post("/targetConnections?validate=false", &target).await.id();
    }
    let path = format!("/connections/{other}");
    let namespace =
        json!([{ "op": "replace", "path": "/auth/params/namespace", "value": format!("sb://{}", host(&hub)) }]);
    let problem = api.patch(&path, "*", &namespace).await.expect(409);
    assert!(text(&problem["errorMessage"]).contains("70 objects of 4"), "{problem}");
    let key = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": "another" }]);
    api.patch(&path, "*", &key).await.expect(200);
}

#[tokio::test]
async fn a_page_of_large_objects_stays_below_the_response_limit_of_lambda() {
    const COUNT: usize = 60;
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    // Each quotation mark is two bytes of JSON, and four bytes of the response.
    let body = json!({
        "name": "n", "connectionSpec": spec(PROFILE_STORE), "note": "\"".repeat(30_000),
    });
    for _ in 0..COUNT {
        api.post("/connections", &body).await.id();
    }
    let (mut next, mut ids, mut pages) = ("/connections".to_owned(), BTreeSet::new(), 0);
    while !next.is_empty() {
        let response =
            api.function.invoke(api.event("GET", &next, &Value::Null).to_string().into_bytes()).await.unwrap();
        assert!(response.len() < 6 * 1024 * 1024, "{} bytes", response.len());
        let response: Value = serde_json::from_slice(&response).unwrap();
        let page: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        ids.extend(page["items"].as_array().unwrap().iter().map(|item| text(&item["id"])));
        next = page["_links"]["next"]["href"].as_str().unwrap_or_default().to_owned();
        pages += 1;
    }
    assert_eq!((ids.len(), pages), (COUNT, 2));
    let names = api.get("/connections?property=name").await.expect(200);
    assert_eq!(names["items"].as_array().unwrap().len(), COUNT, "members that are not shown do not count");
}
