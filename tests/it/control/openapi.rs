//! The API behind the gateway, compared with its OpenAPI document by Schemathesis.

use std::sync::Arc;

use local::tokens::Tokens;
use shared::clock::Clock;
use tokio::process::Command;

use super::*;
use crate::harness::virtual_environment;

/// Checks of Schemathesis: no 5xx, and no response that is not in the document.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

#[tokio::test]
async fn responses_conform_to_the_openapi_document() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let tokens = Arc::new(Tokens::new(Clock::system()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = local::gateway::control_router(api.function.clone(), tokens.clone());
    tokio::spawn(local::gateway::serve(listener, router));
    let http = shared::build_http_client(None).unwrap().client();
    let status = http.get(format!("{url}/flows")).send().await.unwrap().status();
    assert_eq!(status, 401, "the authorizer refuses it");
    let own = |target: &str| {
        http.get(format!("{url}{target}"))
            .bearer_auth(tokens.token().unwrap())
            .header("x-api-key", "key")
            .header("x-gw-ims-org-id", local::tokens::ORGANISATION)
    };
    for target in ["/flows/", "/connections/?limit=1"] {
        assert_eq!(own(target).send().await.unwrap().status(), 200, "{target}");
    }
    let mut schemathesis = Command::new(virtual_environment().join("bin/schemathesis"));
    schemathesis.args(["run", &format!("{url}/openapi.json"), "--no-color", "--seed", "1", "--max-examples", "8"]);
    schemathesis.args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful"]);
    schemathesis.args(["--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure"]);
    for header in [
        format!("authorization: Bearer {}", tokens.token().unwrap()),
        "x-api-key: key".to_owned(),
        format!("x-gw-ims-org-id: {}", local::tokens::ORGANISATION),
    ] {
        schemathesis.args(["-H", &header]);
    }
    let ran = schemathesis.current_dir(std::env::temp_dir()).kill_on_drop(true).output().await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}
