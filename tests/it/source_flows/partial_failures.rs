//! Creations and deletions that fail halfway.

use super::*;

#[tokio::test]
async fn a_creation_or_deletion_that_fails_halfway_is_undone_or_completed() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    for (operation, done) in [
        ("CreateAlias", false),
        ("CreateAlias", true),
        ("CreateEventSourceMapping", false),
        ("CreateEventSourceMapping", true),
    ] {
        world.fail(operation, UNAVAILABLE, ALWAYS, done);
        world.create(&source, &target).await.expect(503);
        world.lambda.clear_faults();
        world.nothing_is_left().await;
    }
    world.fail("CreateEventSourceMapping", (400, "InvalidParameterValueException"), 1, false);
    world.create(&source, &target).await.expect(400);
    world.nothing_is_left().await;
    // The table fails after the mapping was created.
    world.table.fail(TRANSACT, AwsFault::Unavailable);
    world.create(&source, &target).await.expect(503);
    world.table.recover(TRANSACT);
    world.nothing_is_left().await;
    // The table stores the items, and the response is lost.
    world.table.fail(TRANSACT, AwsFault::ResetAfter);
    let created = world.create(&source, &target).await.expect(201);
    world.table.recover(TRANSACT);
    let id = text(&created["id"]);
    world.api.item(&format!("/flows/{id}")).await;
    assert_eq!(world.lambda.aliases(), [format!("flow-{id}")]);
    assert_eq!(world.mapping()["State"], "Enabled");
    // Deletion fails at each step, and then succeeds.
    for (operation, done) in [
        ("DeleteEventSourceMapping", false),
        ("DeleteEventSourceMapping", true),
        ("DeleteAlias", false),
        ("DeleteAlias", true),
    ] {
        world.fail(operation, UNAVAILABLE, ALWAYS, done);
        // A retry finds that the resource is already gone.
        let status = world.api.delete(&format!("/flows/{id}")).await.status;
        world.lambda.clear_faults();
        assert!(status == 503 || (done && status == 204), "{operation}: {status}");
        if status == 503 {
            assert_eq!(attribute(&world.cloud, &format!("FLOW#{id}"), "state").await.unwrap(), "disabled");
        }
    }
    let response = world.api.delete(&format!("/flows/{id}")).await.status;
    assert!(matches!(response, 204 | 404), "{response}");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn the_next_call_removes_what_a_killed_call_left() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let abandon = async || {
        let mut held = world.table.hold(TRANSACT);
        tokio::select! {
            _ = world.create(&source, &target) => panic!("the call waits for the table"),
            () = held.came() => {}
        }
        assert_eq!((world.lambda.mappings().len(), world.groups().await.len()), (1, 1));
        // The instance was killed during the call: its request is not passed on.
        world.table.fail(TRANSACT, AwsFault::Reset);
        drop(held);
        sleep(Duration::from_millis(200)).await;
        world.table.recover(TRANSACT);
    };
    abandon().await;
    let refused = world.create(&source, &target).await.expect(409);
    assert!(text(&refused["errorMessage"]).contains("send it again in a minute"), "{refused}");
    world.age().await;
    let created = world.create(&source, &target).await.expect(201);
    assert_eq!(world.lambda.aliases(), [format!("flow-{}", text(&created["id"]))]);
    world.mapping();
    assert_eq!(world.groups().await.len(), 1);
    assert_eq!(world.api.delete(&format!("/flows/{}", text(&created["id"]))).await.status, 204);
    world.nothing_is_left().await;
    // The same if no later call needs that group.
    abandon().await;
    world.age().await;
    let other = world.source(&connection, json!({ "eventHubName": OTHER_HUB })).await;
    let created = world.create(&other, &target).await.expect(201);
    assert_eq!(world.lambda.aliases(), [format!("flow-{}", text(&created["id"]))]);
    assert_eq!((world.lambda.mappings().len(), world.groups().await.len()), (1, 1));
}
