//! The bodies of requests as JSON Schema: they are checked by the very schemas that the OpenAPI document shows.

use serde_json::{Value, json};

use crate::errors::{ApiError, bad_request};
use crate::patch::MAX_OPERATIONS;
use crate::routes::Collection;

/// The name of a collection's body among the schemas.
pub fn body_name(collection: Collection) -> &'static str {
    match collection {
        Collection::Connections => "NewConnection",
        Collection::SourceConnections => "NewSourceConnection",
        Collection::TargetConnections => "NewTargetConnection",
        Collection::Flows => "NewFlow",
    }
}

fn name() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 255 })
}

/// `version` is not required by the schema, since its absence has an answer of its own.
fn spec() -> Value {
    json!({
        "type": "object",
        "properties": { "id": { "type": "string" }, "version": { "type": "string" } },
    })
}

pub fn body(collection: Collection) -> Value {
    let object = || json!({ "type": "object" });
    let mut properties = json!({ "name": name(), "description": { "type": "string", "maxLength": 4096 } });
    match collection {
        Collection::Flows => {
            let ids = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 1 });
            properties["flowSpec"] = spec();
            properties["sourceConnectionIds"] = ids.clone();
            properties["targetConnectionIds"] = ids;
            properties["transformations"] = json!({ "type": "array", "items": object(), "maxItems": 10 });
        }
        Collection::Connections => {
            properties["connectionSpec"] = spec();
            properties["auth"] = json!({
                "type": "object",
                "properties": { "specName": { "type": "string" }, "params": object() },
            });
        }
        Collection::SourceConnections | Collection::TargetConnections => {
            properties["connectionSpec"] = spec();
            properties["baseConnectionId"] = json!({ "type": "string" });
            properties["data"] = json!({ "type": "object", "properties": { "format": { "type": "string" } } });
            properties["params"] = object();
        }
    }
    let required = match collection {
        Collection::Flows => json!(["name", "sourceConnectionIds", "targetConnectionIds"]),
        _ => json!(["name"]),
    };
    json!({ "type": "object", "properties": properties, "required": required })
}

pub fn patch() -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_OPERATIONS,
        "items": {
            "type": "object",
            "properties": {
                "op": { "type": "string", "enum": ["add", "replace", "remove", "ADD", "REPLACE", "REMOVE"] },
                "path": { "type": "string", "pattern": "^/" },
                "value": true,
            },
            "required": ["op", "path"],
        },
    })
}

/// Checks a body. What is wrong is told by its place; no value is repeated.
pub fn check(schema: &Value, body: &Value) -> Result<(), ApiError> {
    let validator = jsonschema::validator_for(schema).expect("our schemas are schemas");
    match validator.iter_errors(body).next() {
        None => Ok(()),
        Some(error) => {
            let place = error.instance_path().to_string();
            bad_request(format!("{}: {}", if place.is_empty() { "the body" } else { &place }, error.masked()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_without_its_value() {
        let error = check(&body(Collection::Flows), &json!({ "name": ["topsecret"] })).unwrap_err();
        assert!(matches!(&error, ApiError::BadRequest(detail) if !detail.contains("topsecret")), "{error:?}");
        let kept = json!({ "name": "n", "auth": { "specName": "s", "params": {}, "x": 1 }, "more": null });
        assert_eq!(check(&body(Collection::Connections), &kept), Ok(()));
    }
}
