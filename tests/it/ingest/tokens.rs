//! Access tokens, and the client secret that they are requested with.

use super::*;
use crate::peer::{Peer, respond};

#[tokio::test]
async fn tokens_are_cached_and_renewed_once() {
    let cloud = Cloud::start().await;
    let inlet = inlet(Some(CLIENT)).await;
    let secret = |secret: &str| json!({ "client_id": CLIENT.0, "client_secret": secret }).to_string();
    cloud.secret("ims", &secret(CLIENT.1)).await;
    let token_url = inlet.token_url();
    let own = variables(&inlet, "xdm", &[("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", &token_url)]);
    let function = in_cloud(&cloud, own);
    let records = |n: u64| event(&[entities(0, n, n + 2), entities(1, n, n + 2)].concat());
    assert!(failures(&function, &records(0)).await.is_empty());
    assert!(failures(&function, &records(2)).await.is_empty());
    assert_eq!(inlet.tokens_given(), 1, "one token for two invocations with two partitions each");

    inlet.revoke_tokens();
    assert!(failures(&function, &records(4)).await.is_empty());
    assert_eq!(inlet.tokens_given(), 2, "one renewal for both partitions");

    // The token and the client secret change at the same time.
    inlet.set_client_secret("another");
    cloud.change_secret("ims", &secret("another")).await;
    inlet.revoke_tokens();
    assert!(failures(&function, &records(6)).await.is_empty());

    // The inlet refuses a new token, or no token can be obtained: only an operator can fix that, and the records stay.
    inlet.script([lasting(respond_with(401))]);
    assert_eq!(failures(&function, &records(8)).await, [of(0, 8), of(1, 8)]);
    inlet.clear_faults();
    inlet.set_client_secret("a third");
    inlet.revoke_tokens();
    assert_eq!(failures(&function, &records(8)).await, [of(0, 8), of(1, 8)]);
    assert!(function.logs().iter().any(|line| line.contains("check IMS_SECRET_ID")));
    cloud.change_secret("ims", &secret("a third")).await;
    inlet.script([Fault { token: true, ..Fault::from(respond_with(503)) }]);
    assert!(failures(&function, &records(8)).await.is_empty());
    assert!(rejected(&cloud).await.is_empty());
    let logs = function.logs();
    for word in [CLIENT.1, "another", "a third"] {
        assert!(!logs.iter().any(|line| line.contains(word)), "no log shows a secret");
    }
}

#[tokio::test]
async fn records_wait_in_the_hub_until_the_client_secret_can_be_read() {
    let cloud = Cloud::start().await;
    let inlet = inlet(Some(CLIENT)).await;
    let token_url = inlet.token_url();
    let own = variables(&inlet, "xdm", &[("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", &token_url)]);
    let function = in_cloud(&cloud, own);
    let batch = event(&entities(0, 0, 2));
    for _ in 0..10 {
        assert_eq!(failures(&function, &batch).await, [of(0, 0)]);
    }
    let named = function.logs().iter().filter(|line| line.contains(r#""variable":"IMS_SECRET_ID""#)).count();
    assert_eq!(named, 1);
    cloud.secret("ims", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    crate::cloud::until("the secret is read again", async || failures(&function, &batch).await.is_empty()).await;
    assert_eq!((inlet.taken().len(), function.instances()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_with_any_form_of_lifetime_are_used() {
    const TAKEN: &str = r#"{"inletId":"abc","xactionId":"1:2:3","receivedTimeMs":1}"#;
    const SECRET: &str = r#"{"SecretString":"{\"client_id\":\"c\",\"client_secret\":\"s\"}"}"#;
    for (token, is_usable) in [
        (r#"{"access_token":"t","expires_in":86399}"#, true),
        (r#"{"access_token":"t","expires_in":"86399"}"#, true),
        (r#"{"access_token":"t","expires_in":86399.0}"#, true),
        (r#"{"access_token":"t"}"#, true),
        ("<html>sign in</html>", false),
        (r#"{"token":"t"}"#, false),
    ] {
        let peer = Peer::start(move |request| match request.line.split(' ').nth(1).unwrap() {
            "/ims/token/v3" => respond(200, token),
            "/" => respond(200, SECRET),
            _ => respond(200, TAKEN),
        })
        .await;
        let (host, base) = (peer.address.to_string(), format!("http://{}", peer.address));
        let (inlet_url, token_url) = (format!("{base}/collection/abc"), format!("{base}/ims/token/v3"));
        let function = function_of(
            "platform-ingest",
            &[
                ("INLET_URL", &inlet_url),
                ("EMULATOR_HOSTS", &host),
                ("INLET_FLOW_ID", "f"),
                ("IMS_SECRET_ID", "ims"),
                ("IMS_TOKEN_URL", &token_url),
                ("AWS_ENDPOINT_URL", &base),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "local"),
                ("AWS_SECRET_ACCESS_KEY", "local"),
            ],
        );
        for n in 0..2 {
            let failed = failures(&function, &event(&entities(0, n, n + 1))).await;
            assert_eq!(failed.is_empty(), is_usable, "{token}");
        }
        let tokens = peer.requests().iter().filter(|request| request.line.contains("token")).count();
        let (_, hints) = lines_and_hints(&function, 2).await;
        match is_usable {
            true => assert_eq!(tokens, 1, "{token}"),
            false => {
                assert!(hints.iter().all(|hint| hint.contains("check IMS_TOKEN_URL")), "{hints:?}");
                assert_eq!(hints.len(), 2);
            }
        }
    }
}
