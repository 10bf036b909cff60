//! Separation of tenants.

use super::*;

#[tokio::test]
async fn tenants_see_nothing_of_each_other() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let own = control(&cloud, &[&hub]);
    let by_text = control_with(&cloud, &[("EMULATOR_HOSTS", &host(&hub)), ("ORG_CLAIM_TYPE", "text")]);
    let connection = own.connection(&hub).await;
    let created = own.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let flow = own.item(&format!("/flows/{}", text(&created["id"]))).await;
    let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
    let others = [
        Caller { organisation: "other", ..own.clone() },
        Caller { sandbox: OTHER_SANDBOX, ..own.clone() },
        // An organisation whose name looks like part of a key in the table. A claim that is a list can't name it.
        Caller { organisation: "acme@AdobeOrg#prod#flows", ..by_text },
    ];
    for other in &others {
        for (collection, id) in [
            ("connections", &connection),
            ("sourceConnections", &source),
            ("targetConnections", &target),
            ("flows", &text(&created["id"])),
        ] {
            assert_eq!(other.get(&format!("/{collection}")).await.expect(200), json!({ "items": [] }));
            let path = format!("/{collection}/{id}");
            let missing = other.get(&path).await.expect(404);
            assert!(!missing.to_string().contains("etag"));
            let rename = json!([{ "op": "replace", "path": "/name", "value": "mine" }]);
            other.patch(&path, "*", &rename).await.expect(404);
            other.delete(&path).await.expect(404);
        }
        for suffix in ["test", "explore"] {
            other.get(&format!("/connections/{connection}/{suffix}")).await.expect(404);
        }
        let id = text(&created["id"]);
        other.post(&format!("/flows/{id}/action?op=disable"), &Value::Null).await.expect(404);
        let body = json!({
            "name": "n", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "params": { "eventHubName": HUB },
        });
        for ends in ["/sourceConnections", "/targetConnections"] {
            other.post(ends, &body).await.expect(400);
        }
        let body = json!({
            "name": "n", "flowSpec": spec(FLOW_TO_HUB),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        other.post("/flows", &body).await.expect(400);
    }
    assert_eq!(own.item(&format!("/flows/{}", text(&created["id"]))).await, flow, "the flow is unchanged");
}

#[tokio::test]
async fn a_claim_in_brackets_names_several_organisations_only_if_its_type_is_list() {
    let cloud = Cloud::start().await;
    // Empty is the default.
    for (claim_type, named, not_named) in [
        ("", vec!["acme@AdobeOrg"], vec!["[acme@AdobeOrg]", "[other acme@AdobeOrg]", "[[acme@AdobeOrg]]"]),
        ("text", vec!["acme@AdobeOrg"], vec!["[acme@AdobeOrg]", "[other acme@AdobeOrg]", "[[acme@AdobeOrg]]"]),
        ("list", vec!["[acme@AdobeOrg]", "[other acme@AdobeOrg]"], vec!["acme@AdobeOrg", "[[acme@AdobeOrg]]"]),
    ] {
        let api = control_with(&cloud, &[("ORG_CLAIM_TYPE", claim_type)]);
        let claims = named.into_iter().map(|claim| (claim, 200)).chain(not_named.into_iter().map(|claim| (claim, 403)));
        for (claim, expected) in claims {
            let mut event = api.event("GET", "/connections", &Value::Null);
            event["requestContext"]["authorizer"]["jwt"]["claims"]["org"] = claim.into();
            assert_eq!(api.invoke(&event).await.status, expected, "`{claim_type}`: {claim}");
        }
    }
}
