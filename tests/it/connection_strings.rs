//! The grammar of connection strings, on inputs that two official SDKs were tried with: where they disagree, the stricter one
//! applies.

use serde_json::Value;
use shared::event_hubs::connection_string::{ConnectionString, Credential};

/// Result for each input of the fixture, in its order: address and hub, or part of the error.
const EXPECTED: [Result<(&str, Option<&str>), &str>; 13] = [
    Ok(("https://contoso.servicebus.windows.net", None)),
    Ok(("https://contoso.servicebus.windows.net", Some("profiles"))),
    Ok(("https://contoso.servicebus.windows.net", Some("profiles"))),
    Err("`Endpoint` must be a URL"),
    Ok(("https://contoso.servicebus.windows.net", None)),
    Err("not both"),
    Err("`UseDevelopmentEmulator` can only be `true`"),
    Err("`SharedAccessKey` is missing"),
    Err("`Endpoint` is missing"),
    Err("`SharedAccessKey` occurs twice"),
    Err("`SharedAccessKeyName` of the connection string is empty"),
    Err("has no `=`"),
    Ok(("https://contoso.servicebus.windows.net", None)),
];

#[test]
fn connection_strings_on_which_sdks_disagree_are_read_strictly() {
    let inputs: Vec<Value> =
        serde_json::from_str(include_str!("../fixtures/eventhubs/connection_strings.json")).unwrap();
    assert_eq!(inputs.len(), EXPECTED.len());
    for (input, expected) in inputs.iter().zip(EXPECTED) {
        let text = input["input"].as_str().unwrap();
        match (ConnectionString::parse(text), expected) {
            (Ok(parsed), Ok((base_url, hub))) => {
                assert_eq!((parsed.base_url.as_str(), parsed.entity_path.as_deref()), (base_url, hub), "{text}");
                assert!(matches!(parsed.credential, Credential::Key { .. }), "{text}");
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{text}: {error}"),
            (parsed, expected) => panic!("{text}: {parsed:?}, expected {expected:?}"),
        }
    }
}
