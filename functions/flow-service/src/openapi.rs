//! The OpenAPI 3.1 document, made of the table of routes and the schemas that bodies are checked by.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::errors::ApiError;
use crate::routes::{Collection, Operation, ROUTES};
use crate::schemas;
use crate::specs::{CONNECTION_SPECS, DATA_ACTIVATION, DATA_LAKE, FLOW_SPECS, PROFILE_STORE, VERSION};

pub fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_default();
        path.insert(route.method.to_lowercase(), operation(route.operation, route.path));
    }
    let mut components = Map::new();
    for collection in Collection::ALL {
        components.insert(schemas::body_name(collection).to_owned(), schemas::body(collection));
    }
    components.insert("JsonPatch".to_owned(), schemas::patch());
    components.extend(answers());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "eventhubs-relay control API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Connections, source and target connections and flows, in the shapes of Adobe's Flow Service.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
            "schemas": components,
        },
    })
}

/// The name of what a collection has among the schemas, and of a page of it.
fn item_names(collection: Collection) -> (&'static str, &'static str) {
    match collection {
        Collection::Connections => ("Connection", "Connections"),
        Collection::SourceConnections => ("SourceConnection", "SourceConnections"),
        Collection::TargetConnections => ("TargetConnection", "TargetConnections"),
        Collection::Flows => ("Flow", "Flows"),
    }
}

/// An object as it is read. A list may be asked for some of its members only, so that none is required.
fn item(collection: Collection) -> Value {
    let (text, time) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let uuid = json!({ "type": "string", "format": "uuid" });
    let etag = json!({ "type": "string", "pattern": "^\".*\"$" });
    let mut item = schemas::body(collection);
    let by_service = [
        ("id", &uuid),
        ("etag", &etag),
        ("version", &etag),
        ("createdAt", &time),
        ("updatedAt", &time),
        ("createdBy", &text),
        ("updatedBy", &text),
        ("createdClient", &text),
        ("updatedClient", &text),
        ("imsOrgId", &text),
        ("sandboxName", &text),
        ("sandboxId", &uuid),
    ];
    for (name, schema) in by_service {
        item["properties"][name] = schema.clone();
    }
    item["properties"]["state"] = json!({ "type": "string", "enum": ["enabled", "disabled"] });
    if collection != Collection::Connections {
        item["properties"]["inheritedAttributes"] = json!({ "type": "object" });
    }
    if collection == Collection::Flows {
        item["properties"]["lastOperation"] = json!({ "type": "object" });
        item["properties"]["runs"] = text;
    }
    if let Some(item) = item.as_object_mut() {
        item.remove("required");
    }
    item
}

/// A page of what a schema describes.
fn items(item: Value) -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": "object",
        "properties": {
            "items": { "type": "array", "items": item },
            "_links": {
                "type": "object",
                "properties": { "next": { "type": "object", "properties": { "href": text }, "required": ["href"] } },
            },
            "count": { "type": "integer", "minimum": 0 },
        },
        "required": ["items"],
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn answers() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let reference = json!({
        "type": "object",
        "properties": { "id": { "type": "string", "format": "uuid" }, "etag": { "type": "string", "pattern": "^\".*\"$" } },
        "required": ["id", "etag"],
    });
    let mut new_connection = reference.clone();
    new_connection["properties"]["detail"] = text.clone();
    let mut new_flow = reference.clone();
    new_flow["properties"]["webhookUrl"] = text.clone();
    new_flow["properties"]["consumerGroup"] = text.clone();
    new_flow["properties"]["senderAuth"] = json!({ "type": "array", "items": { "type": "object" } });
    let error = json!({
        "description": "One of three shapes, by the case.",
        "anyOf": [
            { "type": "object", "properties": { "error_code": text, "message": text }, "required": ["message"] },
            {
                "type": "object",
                "properties": { "errorMessage": text, "errorDetails": text },
                "required": ["errorMessage", "errorDetails"],
            },
            {
                "type": "object",
                "properties": { "type": text, "status": { "type": "integer" }, "title": text, "detail": text },
                "required": ["type", "status", "title", "detail"],
            },
        ],
    });
    let test = json!({
        "type": "object",
        "properties": { "result": { "type": "boolean" }, "detail": text },
        "required": ["result"],
    });
    let tree = json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "type": text, "name": text, "path": text,
                "canPreview": { "type": "boolean" }, "canFetchSchema": { "type": "boolean" },
            },
            "required": ["type", "name", "path", "canPreview", "canFetchSchema"],
        },
    });
    [
        ("Items", items(json!({ "type": "object" }))),
        ("Runs", runs()),
        ("Reference", reference),
        ("CreatedConnection", new_connection),
        ("FlowReference", new_flow),
        ("Error", error),
        ("TestResult", test),
        ("Explored", tree),
        ("OpenApi", json!({ "type": "object" })),
    ]
    .into_iter()
    .chain(Collection::ALL.into_iter().flat_map(|collection| {
        let (one, page) = item_names(collection);
        [(one, item(collection)), (page, items(self::reference(one)))]
    }))
    .map(|(name, schema)| (name.to_owned(), schema))
    .collect()
}

fn runs() -> Value {
    let (count, time) = (json!({ "type": "integer", "minimum": 0 }), json!({ "type": "integer", "minimum": 0 }));
    let object = |properties: Value, required: Value| json!({ "type": "object", "properties": properties, "required": required });
    let job =
        json!({ "state": { "enum": ["Waiting", "Succeeded", "Failed"] }, "statecode": count, "statuscode": count });
    let status = json!({
        "status": { "enum": ["inProgress", "success", "failed"] },
        "systemJob": object(job, json!(["state", "statecode", "statuscode"])),
    });
    let records = json!({
        "inputRecordCount": count, "filteredRecordCount": count, "outputRecordCount": count, "failedRecordCount": count,
        "waitingRecordCount": count,
    });
    let metrics = json!({
        "durationSummary": { "type": "object", "properties": { "startedAtUTC": time, "completedAtUTC": time } },
        "recordSummary": { "type": "object", "properties": records },
        "statusSummary": { "type": "object", "properties": status },
    });
    let run = json!({
        "id": { "type": "string", "format": "uuid" }, "flowId": { "type": "string", "format": "uuid" },
        "flowSpec": { "type": "object" }, "createdAt": time, "updatedAt": time,
        "metrics": { "type": "object", "properties": metrics },
    });
    json!({
        "allOf": [{ "$ref": "#/components/schemas/Items" }],
        "type": "object",
        "properties": {
            // What `property` leaves out is missing.
            "items": { "type": "array", "items": { "type": "object", "properties": run } },
            "truncated": { "const": true, "description": "Not all lines were read: earlier runs are missing" },
        },
    })
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

/// What an operation is called, does, takes and gives.
struct Told {
    id: String,
    summary: String,
    body: Option<&'static str>,
    success: (u16, Option<&'static str>),
    failures: &'static [u16],
    parameters: Vec<Value>,
}

fn operation(operation: Operation, path: &str) -> Value {
    if operation == Operation::OpenApi {
        return json!({
            "operationId": "getOpenApi",
            "summary": "This document",
            "security": [],
            "responses": { "200": { "description": "OpenAPI 3.1", "content": content("OpenApi") } },
        });
    }
    let told = told(operation);
    let mut parameters = vec![
        header("x-api-key", true, "Any key: the token decides"),
        header("x-gw-ims-org-id", true, "The organisation; the token must name it"),
        header("x-sandbox-name", false, "The sandbox; `prod` when it is left out"),
    ];
    if path.contains("{id}") {
        parameters.push(
            json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }),
        );
    }
    parameters.extend(told.parameters);
    let mut responses = Map::new();
    let (status, schema) = told.success;
    let mut success = json!({ "description": "Done" });
    if let Some(schema) = schema {
        success["content"] = content(schema);
    }
    if let Operation::Create(collection) = operation {
        success["headers"] = json!({ "Location": { "schema": { "type": "string" } } });
        success["links"] = links(collection);
    }
    responses.insert(status.to_string(), success);
    // The gateway's and the headers' own, then those of the operation.
    for status in [400, 401, 403, 503].iter().chain(told.failures) {
        responses
            .insert(status.to_string(), json!({ "description": description(*status), "content": content("Error") }));
    }
    responses["401"]["content"]["application/json"]["examples"] = json!({
        "authorizer": { "summary": "The gateway's, in AWS", "value": { "message": "Unauthorized" } },
        "function": { "summary": "Ours, behind a gateway without one", "value": ApiError::TokenInvalid.body() },
    });
    let mut described = json!({
        "operationId": told.id, "summary": told.summary, "parameters": parameters, "responses": responses,
    });
    if let Some(body) = told.body {
        described["requestBody"] = json!({ "required": true, "content": content(body) });
        if let Some(example) = example(operation) {
            described["requestBody"]["content"]["application/json"]["example"] = example;
        }
    }
    described
}

/// What can be done with a new object.
fn links(collection: Collection) -> Value {
    let mut operations = vec![Operation::Read(collection), Operation::Patch(collection), Operation::Delete(collection)];
    match collection {
        Collection::Connections => operations.extend([Operation::Test, Operation::Explore]),
        Collection::Flows => operations.push(Operation::Action),
        Collection::SourceConnections | Collection::TargetConnections => {}
    }
    let link = |operation| {
        let id = told(operation).id;
        (id.clone(), json!({ "operationId": id, "parameters": { "id": "$response.body#/id" } }))
    };
    Value::Object(operations.into_iter().map(link).collect())
}

/// Bodies that can be sent as they are.
fn example(operation: Operation) -> Option<Value> {
    let spec = |id: &str| json!({ "id": id, "version": VERSION });
    Some(match operation {
        Operation::Create(Collection::Connections) => {
            json!({ "name": "Experience Platform", "connectionSpec": spec(PROFILE_STORE) })
        }
        Operation::Create(Collection::SourceConnections) => json!({
            "name": "our CDP", "connectionSpec": spec(DATA_ACTIVATION), "data": { "format": "json" },
            "params": { "options": { "partnerNumber": 33 }, "senderAuth": "generate" },
        }),
        Operation::Create(Collection::TargetConnections) => json!({
            "name": "Data Lake", "connectionSpec": spec(DATA_LAKE),
            "data": {
                "format": "parquet_xdm",
                "schema": { "id": "https://ns.adobe.com/acme/schemas/1", "version": "application/vnd.adobe.xed-full+json;version=1" },
            },
            "params": { "dataSetId": "5f7187bac6d00f194fb937c0" },
        }),
        Operation::Patch(_) => json!([{ "op": "replace", "path": "/name", "value": "winter" }]),
        _ => return None,
    })
}

fn description(status: u16) -> &'static str {
    match status {
        400 => "A header, the query or the body can't be used",
        401 => "The token is missing or not valid",
        403 => "A token or key is missing, the token does not name the organisation, or a right is missing",
        404 => "No such object",
        409 => "In use",
        412 => "If-Match is not the current etag",
        413 => "The body is too large",
        422 => "The version of the spec is missing",
        429 => "Its credential was changed too often",
        _ => "The store, or what else is needed of AWS, does not answer now",
    }
}

fn header(name: &str, required: bool, description: &str) -> Value {
    json!({
        "name": name, "in": "header", "required": required, "description": description,
        "schema": { "type": "string", "minLength": 1 },
    })
}

fn if_match(required: bool) -> Value {
    let mut if_match = header("If-Match", required, "The etag as it was given, quotes included; `*` for any");
    if_match["example"] = "*".into();
    if_match
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn told(operation: Operation) -> Told {
    let pascal = |name: &str| name[..1].to_uppercase() + &name[1..];
    let told = |id: &str, summary: &str, success: (u16, Option<&'static str>), failures: &'static [u16]| Told {
        id: id.to_owned(),
        summary: summary.to_owned(),
        body: None,
        success,
        failures,
        parameters: Vec::new(),
    };
    let list = || {
        vec![
            query("limit", "At most", json!({ "type": "integer", "minimum": 1, "maximum": 100 })),
            query("orderby", "`name`, `-createdAt`, …; newest first by default", json!({ "type": "string" })),
            query(
                "property",
                "A filter such as `state==enabled`, or a member to show; all must hold",
                json!({
                    "type": "array", "items": { "type": "string" }, "maxItems": 20,
                }),
            ),
            query("continuationToken", "Of `_links.next.href`", json!({ "type": "string" })),
            query("count", "Whether to count", json!({ "type": "boolean" })),
        ]
    };
    match operation {
        Operation::Create(collection) => {
            let success = if collection == Collection::Flows { "FlowReference" } else { "CreatedConnection" };
            let id = format!("create{}", pascal(collection.name()));
            let mut told = told(&id, "Create", (201, Some(success)), &[409, 413, 422, 429]);
            told.body = Some(schemas::body_name(collection));
            if collection != Collection::Flows {
                told.parameters.push(query(
                    "validate",
                    "false: don't ask the namespace; true: it must answer",
                    json!({ "type": "boolean" }),
                ));
            }
            told
        }
        Operation::List(collection) => Told {
            parameters: list(),
            ..told(&format!("list{}", pascal(collection.name())), "List", (200, Some(item_names(collection).1)), &[])
        },
        Operation::Read(collection) => told(
            &format!("get{}", pascal(collection.name())),
            "Read one",
            (200, Some(item_names(collection).1)),
            &[404],
        ),
        Operation::Patch(collection) => {
            let id = format!("patch{}", pascal(collection.name()));
            let success = if collection == Collection::Flows { "FlowReference" } else { "Reference" };
            let mut told = told(&id, "Change", (200, Some(success)), &[404, 409, 412, 413, 429]);
            told.body = Some("JsonPatch");
            told.parameters.push(if_match(true));
            told
        }
        Operation::Delete(collection) => {
            let id = format!("delete{}", pascal(collection.name()));
            Told { parameters: vec![if_match(false)], ..told(&id, "Delete", (204, None), &[404, 409, 412]) }
        }
        Operation::Test => told("testConnection", "Try the key", (200, Some("TestResult")), &[404]),
        Operation::Explore => Told {
            parameters: vec![query("objectType", "What to list", json!({ "type": "string", "enum": ["root"] }))],
            ..told("exploreConnection", "List the event hubs", (200, Some("Explored")), &[404])
        },
        Operation::Action => {
            let mut op = query("op", "enable or disable", json!({ "type": "string", "enum": ["enable", "disable"] }));
            op["required"] = true.into();
            Told {
                parameters: vec![op, if_match(false)],
                ..told("actOnFlow", "Enable or disable", (200, Some("Reference")), &[404, 409, 412, 413])
            }
        }
        Operation::ConnectionSpecs => told("listConnectionSpecs", "List the specs", (200, Some("Items")), &[]),
        Operation::ConnectionSpec => Told {
            parameters: Vec::new(),
            ..told("getConnectionSpec", &specs(CONNECTION_SPECS.iter().map(|s| s.id)), (200, Some("Items")), &[])
        },
        Operation::FlowSpecs => told("listFlowSpecs", "List the specs", (200, Some("Items")), &[]),
        Operation::FlowSpec => told("getFlowSpec", &specs(FLOW_SPECS.iter().map(|s| s.id)), (200, Some("Items")), &[]),
        Operation::Runs => {
            let mut parameters = list();
            for parameter in &mut parameters {
                if parameter["name"] == "property" {
                    parameter["required"] = true.into();
                    parameter["description"] = "`flowId==<id>`, and further filters, or a member to show".into();
                }
            }
            Told {
                parameters,
                ..told(
                    "listRuns",
                    "A flow's last 24 hours, one run for each hour with events",
                    (200, Some("Runs")),
                    &[],
                )
            }
        }
        Operation::OpenApi => told("getOpenApi", "This document", (200, Some("OpenApi")), &[]),
    }
}

fn specs(ids: impl Iterator<Item = &'static str>) -> String {
    format!("Read one of {}", ids.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_authorizers_answer_is_one_of_the_document() {
        let document = document();
        let schema = jsonschema::validator_for(&document["components"]["schemas"]["Error"]).unwrap();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let answer = &operation["responses"]["401"]["content"]["application/json"];
                let Some(examples) = answer["examples"].as_object() else {
                    assert_eq!(path, "/openapi.json", "{method}");
                    continue;
                };
                let mut told: Vec<&Value> = examples.values().map(|example| &example["value"]).collect();
                told.sort_by_key(|told| told.to_string());
                let expected = [
                    json!({ "error_code": "401013", "message": "Oauth token is not valid" }),
                    json!({ "message": "Unauthorized" }),
                ];
                assert!(told.iter().all(|told| schema.is_valid(told)));
                assert_eq!(told, expected.iter().collect::<Vec<_>>(), "{method} {path}");
            }
        }
    }

    #[test]
    fn what_changes_an_object_may_name_its_etag() {
        let document = document();
        for (method, path, required) in [
            ("patch", "/connections/{id}", true),
            ("delete", "/targetConnections/{id}", false),
            ("post", "/flows/{id}/action", false),
        ] {
            let parameters = document["paths"][path][method]["parameters"].as_array().unwrap();
            let if_match = parameters.iter().find(|parameter| parameter["name"] == "If-Match").unwrap();
            assert_eq!(if_match["required"], required, "{method} {path}");
        }
        let read =
            &document["paths"]["/flows/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(read["$ref"], "#/components/schemas/Flows");
        let flow = jsonschema::validator_for(&document["components"]["schemas"]["Flow"]).unwrap();
        assert!(flow.is_valid(&json!({ "id": "226fb2e1-db69-4760-b67e-9e671e05abfc", "state": "enabled" })));
        for wrong in [json!({ "state": "on" }), json!({ "sourceConnectionIds": "x" }), json!({ "etag": "unquoted" })] {
            assert!(!flow.is_valid(&wrong), "{wrong}");
        }
    }

    /// `UPDATE_SCHEMAS=1 cargo test -p flow-service` writes the file anew.
    #[test]
    fn the_published_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let generated = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), generated, "{} is old", path.display());
    }
}
