//! The API accepts only options that the functions can read.

use shared::json::{Object, from_config};

use super::*;

#[tokio::test]
async fn options_that_the_api_accepts_are_readable_by_their_function() {
    type Reads = fn(&str) -> Result<(), String>;
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    let kinds: [(&str, Reads, &[&str]); 3] = [
        (
            DATA_ACTIVATION,
            |text| from_config::<Object<audience_change::Options>>(text).map(drop),
            &["partnerNumber", "profileVars", "sourceName", "data", "sources", "defaultCallType"],
        ),
        (
            PROFILE_STORE,
            |text| from_config::<Object<profile_export::Options>>(text).map(drop),
            &["audiences", "partitionBy", "split"],
        ),
        (
            DATAVERSE,
            |text| from_config::<Object<dataverse_event::Options>>(text).map(drop),
            &["messageFormat", "steps", "maxBytes", "userClaim"],
        ),
    ];
    let step = |message: &str| json!([{ "message": message }]);
    let values = [
        json!(null),
        json!(0),
        json!(-1),
        json!(42),
        json!(7.0),
        json!(1e30),
        json!(u64::MAX),
        json!(""),
        json!("\u{85}"),
        json!("journey"),
        json!("membership"),
        json!("xml"),
        json!("XML"),
        json!("userId"),
        json!([]),
        json!(["a"]),
        json!([""]),
        json!([null]),
        json!({}),
        json!({ "a": null }),
        json!({ "a": {} }),
        json!({ "a": { "sourceName": null, "data": { "x": 1 } } }),
        json!({ "a": { "unknown": 1 } }),
        step("Update"),
        step("\u{85}\u{feff}"),
        step("\u{a0}\u{85}\u{2003}"),
        json!([{ "message": "Update", "entity": null, "filteringAttributes": null }]),
        json!([{ "message": "Update", "entity": "\u{85}", "filteringAttributes": ["\u{85}"] }]),
        json!([{ "message": "Update", "filteringAttributes": [] }]),
        json!([["Update", null, null]]),
    ];
    let mut accepted = 0;
    for (sender, reads, names) in kinds {
        for (name, value) in names.iter().flat_map(|name| values.iter().map(move |value| (name, value))) {
            let options = json!({ *name: value });
            let source = json!({ "name": "s", "connectionSpec": spec(sender), "params": { "options": options } });
            let response = api.post("/sourceConnections", &source).await;
            if response.status != 201 {
                response.expect(400);
                continue;
            }
            accepted += 1;
            assert_eq!(reads(&options.to_string()), Ok(()), "{options}");
        }
    }
    assert!(accepted > 13, "each option has an accepted value: {accepted}");
}
