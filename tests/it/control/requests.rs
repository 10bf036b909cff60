//! The checks of a request, and their order.

use super::*;

#[tokio::test]
async fn requests_are_checked_in_the_documented_order() {
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    let mut event = api.event("POST", "/flows", &Value::Null);
    event["body"] = "{ // a comment\n}".into();
    let full = event["headers"].clone();
    let claims = event["requestContext"]["authorizer"].clone();
    event["headers"] = json!({});
    event["requestContext"]["authorizer"] = Value::Null;
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403010");
    event["headers"]["authorization"] = full["authorization"].clone();
    assert_eq!(api.invoke(&event).await.expect(401)["error_code"], "401013");
    event["requestContext"]["authorizer"] = claims;
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403000");
    event["headers"]["x-api-key"] = full["x-api-key"].clone();
    assert_eq!(api.invoke(&event).await.expect(400)["error_code"], "400003");
    event["headers"]["x-gw-ims-org-id"] = "stranger".into();
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403025");
    event["headers"]["x-gw-ims-org-id"] = full["x-gw-ims-org-id"].clone();
    assert_eq!(api.invoke(&event).await.expect(400)["detail"], "A valid content-type must be specified");
    event["headers"]["content-type"] = "application/json; charset=utf-8".into();
    assert!(text(&api.invoke(&event).await.expect(400)["detail"]).contains("no JSON"));
    let flow = |spec: Value| json!({ "name": "n", "sourceConnectionIds": [UNKNOWN_ID], "targetConnectionIds": [UNKNOWN_ID], "flowSpec": spec });
    api.post("/flows", &json!({ "flowSpec": spec("x") })).await.expect(400);
    assert_eq!(api.post("/flows", &flow(spec("x"))).await.expect(400)["message"], "Please provide a valid spec id");
    let unversioned = json!({ "id": FLOW_TO_HUB });
    assert_eq!(
        api.post("/flows", &flow(unversioned)).await.expect(422)["message"],
        "flowSpec.version 'version' is required for spec info"
    );
    let known = spec(FLOW_TO_HUB);
    assert!(text(&api.post("/flows", &flow(known)).await.expect(400)["message"]).contains("sourceConnectionIds"));
    let large = json!({ "name": "n", "description": "x".repeat(200_000) });
    api.post("/connections", &large).await.expect(413);
    for (method, target, status) in [("GET", "/search", 404), ("PUT", "/flows", 405), ("GET", "/runs/7", 404)] {
        api.call(method, target, &json!({})).await.expect(status);
    }
    let path = format!("/flows/{UNKNOWN_ID}");
    let rename = json!([{ "op": "replace", "path": "/name", "value": "b" }]);
    // The existence of the object is checked before the etag.
    api.call("PATCH", &path, &rename).await.expect(404);
    api.patch(&path, "\"x\"", &rename).await.expect(404);
    let existing = json!({ "name": "n", "connectionSpec": spec(DATAVERSE) });
    let existing = format!("/connections/{}", api.post("/connections", &existing).await.id());
    assert!(text(&api.call("PATCH", &existing, &rename).await.expect(400)["detail"]).contains("If-Match"));
    let tilde = json!([{ "op": "add", "path": "/x~y", "value": 1 }]);
    api.patch(&existing, "*", &tilde).await.expect(400);
    let precise = json!([{ "op": "add", "path": "/x", "value": 0 }]);
    let mut event = api.event("PATCH", &existing, &precise);
    event["headers"]["if-match"] = "*".into();
    event["body"] = r#"[{"op":"add","path":"/x","value":12345678901234567890123}]"#.into();
    assert!(text(&api.invoke(&event).await.expect(400)["detail"]).contains("digits"));
    assert!(api.item(&existing).await.get("x").is_none());
    api.post(&format!("{path}/action?op=pause"), &Value::Null).await.expect(400);
    api.post(&format!("{path}/action?op=ENABLE"), &Value::Null).await.expect(404);
    assert_eq!(api.get("/openapi.json").await.expect(200)["openapi"], "3.1.0");
}
