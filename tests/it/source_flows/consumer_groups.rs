//! Consumer groups: one flow has each, and only the holder of a key can claim one.

use local::emulator::ROOT_KEY_NAME;

use super::*;
use crate::control::{EVENT_HUBS_AUTH, OTHER_ORGANISATION, OTHER_SANDBOX};
use crate::peer::{Peer, respond};

#[tokio::test]
async fn a_consumer_group_serves_one_flow_of_one_tenant() {
    let world = World::start().await;
    let (source, id) = world.flow(json!({ "eventHubName": HUB, "consumerGroup": "readers" })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let connection = world.api.connection(&world.hub).await;
    let same = world.source(&connection, json!({ "eventHubName": HUB, "consumerGroup": "READERS" })).await;
    for source in [&source, &same] {
        let refused = world.create(source, &target).await.expect(409);
        assert!(text(&refused["errorMessage"]).contains("consumer group"), "{refused}");
    }
    // Another tenant cannot see or change the flow.
    let other = Caller { sandbox: OTHER_SANDBOX, ..world.api.clone() };
    for (path, op) in [("", "GET"), ("", "DELETE"), ("/action?op=disable", "POST")] {
        other.call(op, &format!("/flows/{id}{path}"), &Value::Null).await.expect(404);
    }
    let other_tenant = World { api: Caller { organisation: OTHER_ORGANISATION, ..world.api.clone() }, ..world };
    let secret = other_tenant.target(json!({}));
    let refused = other_tenant.api.post("/targetConnections", &secret).await.expect(400);
    assert!(text(&refused["message"]).contains("params.imsSecretId"), "the secret of another organisation: {refused}");
    let mut open = secret;
    for member in ["imsSecretId", "imsTokenUrl"] {
        open["params"].as_object_mut().unwrap().remove(member);
    }
    let target = other_tenant.api.post("/targetConnections", &open).await.id();
    let connection = other_tenant.api.connection(&other_tenant.hub).await;
    let source = other_tenant.source(&connection, json!({ "eventHubName": HUB, "consumerGroup": "readers" })).await;
    let refused = other_tenant.create(&source, &target).await.expect(409);
    assert!(!refused.to_string().contains(&id), "{refused}");
    assert_eq!((other_tenant.lambda.mappings().len(), other_tenant.lambda.aliases().len()), (1, 1));
    // The group of that name in another hub is free.
    let source =
        other_tenant.source(&connection, json!({ "eventHubName": OTHER_HUB, "consumerGroup": "readers" })).await;
    other_tenant.create(&source, &target).await.expect(201);
}

#[tokio::test]
async fn a_consumer_group_is_claimed_only_with_a_key_that_the_namespace_accepts() {
    let world = World::start().await;
    // An attacker has the name of the namespace, and invents a key.
    let attacker = World { api: Caller { organisation: OTHER_ORGANISATION, ..world.api.clone() }, ..world };
    let invented = json!({
        "name": "invented", "connectionSpec": spec(EVENT_HUBS),
        "auth": { "specName": EVENT_HUBS_AUTH, "params": {
            "sasKeyName": ROOT_KEY_NAME, "sasKey": "aW52ZW50ZWQ=", "namespace": host(&attacker.hub),
        } },
    });
    let connection = attacker.api.post("/connections?validate=false", &invented).await.id();
    let source = json!({
        "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
        "data": { "format": "json" }, "params": { "eventHubName": HUB },
    });
    let source = attacker.api.post("/sourceConnections?validate=false", &source).await.id();
    let mut target = attacker.target(json!({}));
    for member in ["imsSecretId", "imsTokenUrl"] {
        target["params"].as_object_mut().unwrap().remove(member);
    }
    let target = attacker.api.post("/targetConnections", &target).await.id();
    let refused = attacker.create(&source, &target).await.expect(400);
    assert!(text(&refused["message"]).contains("refuses the key"), "{refused}");
    attacker.nothing_is_left().await;

    // The holder of the key gets the default group, and the attacker does not learn about it.
    let owner = World { api: Caller { organisation: ORGANISATION, ..attacker.api.clone() }, ..attacker };
    let (own_source, own_flow) = owner.flow(json!({ "eventHubName": HUB })).await;
    let attacker = World { api: Caller { organisation: OTHER_ORGANISATION, ..owner.api.clone() }, ..owner };
    assert_eq!(attacker.create(&source, &target).await.expect(400), refused);

    // A change of the source or of the flow also claims a group.
    let owner = World { api: Caller { organisation: ORGANISATION, ..attacker.api.clone() }, ..attacker };
    let path = format!("/sourceConnections/{own_source}");
    let connection = text(&owner.api.item(&path).await["baseConnectionId"]);
    let key = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": "another" }]);
    owner.api.patch(&format!("/connections/{connection}"), "*", &key).await.expect(200);
    let group = json!([{ "op": "add", "path": "/params/consumerGroup", "value": "theirs" }]);
    let refused_key = |refused: Value| assert!(text(&refused["message"]).contains("refuses the key"), "{refused}");
    refused_key(owner.api.patch(&path, "*", &group).await.expect(400));
    let other = json!({
        "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
        "data": { "format": "json" }, "params": { "eventHubName": OTHER_HUB },
    });
    let other = owner.api.post("/sourceConnections?validate=false", &other).await.id();
    let by_flow = json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [other] }]);
    refused_key(owner.api.patch(&format!("/flows/{own_flow}"), "*", &by_flow).await.expect(400));
    assert_eq!(owner.groups().await, [format!("GROUP#{}#{HUB}#platform-ingest-{HUB}", host(&owner.hub))]);

    // An unreachable namespace does not accept the key either.
    owner.hub.shutdown().await;
    owner.api.patch(&path, "*", &group).await.expect(503);
}

#[tokio::test]
async fn a_refusal_that_says_nothing_of_the_key_gives_no_consumer_group() {
    let world = World::start().await;
    let mut refusals = Vec::new();
    for (status, detail) in [
        (401, "Ip has been prevented to connect to the endpoint."),
        (401, "LocalAuthDisabled: SAS authentication has been disabled for the namespace."),
        (403, "Ip has been prevented to connect to the endpoint."),
    ] {
        let body = format!("<Error><Code>{status}</Code><Detail>{detail}</Detail></Error>");
        refusals.push((status, Peer::start(move |_| respond(status, &body)).await));
    }
    let hosts: Vec<String> = refusals.iter().map(|(_, namespace)| namespace.address.to_string()).collect();
    let config = world.api.function.config();
    let mut environment = config.environment.clone();
    environment.push(("EMULATOR_HOSTS".to_owned(), format!("{},{}", hosts.join(","), world.inlet.host())));
    let function = Function::new(FunctionConfig { environment, ..config.clone() });
    let world = World { api: Caller { function, ..world.api.clone() }, ..world };
    for (status, namespace) in refusals {
        let connection = json!({
            "name": "connection", "connectionSpec": spec(EVENT_HUBS),
            "auth": { "specName": EVENT_HUBS_AUTH, "params": {
                "sasKeyName": ROOT_KEY_NAME, "sasKey": "aW52ZW50ZWQ=", "namespace": namespace.address.to_string(),
            } },
        });
        let connection = world.api.post("/connections?validate=false", &connection).await.id();
        let source = json!({
            "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "data": { "format": "json" }, "params": { "eventHubName": HUB },
        });
        let source = world.api.post("/sourceConnections?validate=false", &source).await.id();
        let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
        let refused = world.create(&source, &target).await.expect(400);
        assert!(
            text(&refused["message"])
                .contains(&format!("did not confirm the key of the source's connection (it responded with {status})")),
            "{refused}"
        );
        world.nothing_is_left().await;
    }
}
