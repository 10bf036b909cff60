//! JSON Patch (RFC 6902) with the three operations that the interface has: all of a patch is applied, or nothing.

use serde_json::{Map, Value};

use crate::errors::{ApiError, bad_request, unusable};

/// More operations in one patch are refused.
pub const MAX_OPERATIONS: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub path: Vec<String>,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Add(Value),
    Replace(Value),
    Remove,
}

/// Members that only the service itself writes, and those that stay as they were created.
const FIXED: &[&str] = &[
    "id",
    "etag",
    "version",
    "createdAt",
    "updatedAt",
    "createdBy",
    "updatedBy",
    "createdClient",
    "updatedClient",
    "sandboxId",
    "sandboxName",
    "imsOrgId",
    "connectionSpec",
    "flowSpec",
    "baseConnectionId",
    "state",
    "inheritedAttributes",
    "lastOperation",
    "lastRunDetails",
    "runs",
];

/// Reads a patch and checks what can be checked without the object. `remove` may carry a value, which is ignored.
pub fn parse(body: &Value) -> Result<Vec<Operation>, ApiError> {
    let Some(operations) = body.as_array() else { return bad_request("expected an array of JSON Patch operations") };
    if operations.is_empty() || operations.len() > MAX_OPERATIONS {
        return bad_request(format!("expected 1 to {MAX_OPERATIONS} operations"));
    }
    operations.iter().enumerate().map(|(place, operation)| parse_one(place, operation)).collect()
}

fn parse_one(place: usize, operation: &Value) -> Result<Operation, ApiError> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let Some(op) = text("op") else { return bad_request(format!("operation {place}: `op` is missing")) };
    let Some(path) = text("path") else { return bad_request(format!("operation {place}: `path` is missing")) };
    let value = || match operation.get("value") {
        Some(value) => Ok(value.clone()),
        None => bad_request(format!("operation {place}: `value` is missing")),
    };
    let change = match op.to_ascii_lowercase().as_str() {
        "add" => Change::Add(value()?),
        "replace" => Change::Replace(value()?),
        "remove" => Change::Remove,
        _ => return bad_request(format!("operation {place}: expected add, replace or remove")),
    };
    let Some(pointer) = path.strip_prefix('/') else {
        return bad_request(format!("operation {place}: `path` must begin with a slash and name a member"));
    };
    // RFC 6901: `~` stands only before 0 or 1.
    if pointer.split('~').skip(1).any(|after| !after.starts_with(['0', '1'])) {
        return bad_request(format!("operation {place}: `path` has a `~` without 0 or 1 after it"));
    }
    let path: Vec<String> = pointer.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
    let first = path[0].as_str();
    // Of `auth` only the parameters: another type of authentication is another connection.
    let fixed = FIXED.contains(&first) || (first == "auth" && path.get(1).is_none_or(|second| second != "params"));
    if fixed {
        return bad_request(format!("operation {place}: `/{first}` can't be changed"));
    }
    if first == "name" && change == Change::Remove {
        return bad_request(format!("operation {place}: `/name` can't be removed"));
    }
    Ok(Operation { path, change })
}

/// What is deeper could be written, and not be read again.
const MAX_DEPTH: usize = 100;

/// Levels of nesting. A value of a request has no more than its parser takes.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Applies the operations in their order.
pub fn apply(document: &Map<String, Value>, operations: &[Operation]) -> Result<Map<String, Value>, ApiError> {
    let mut root = Value::Object(document.clone());
    for (place, operation) in operations.iter().enumerate() {
        let added = match &operation.change {
            Change::Add(value) | Change::Replace(value) => depth(value),
            Change::Remove => 0,
        };
        if operation.path.len() + added > MAX_DEPTH {
            return bad_request(format!(
                "operation {place}: the object would be nested deeper than {MAX_DEPTH} levels"
            ));
        }
        if apply_one(&mut root, operation).is_none() {
            return unusable(format!("operation {place}: the object has no such place"));
        }
    }
    match root {
        Value::Object(document) => Ok(document),
        _ => unusable("the patch leaves no object"),
    }
}

fn apply_one(root: &mut Value, operation: &Operation) -> Option<()> {
    let (last, parents) = operation.path.split_last()?;
    let mut parent = root;
    for token in parents {
        parent = match parent {
            Value::Object(members) => members.get_mut(token)?,
            Value::Array(elements) => {
                let index = index(token)?;
                elements.get_mut(index)?
            }
            _ => return None,
        };
    }
    match (parent, &operation.change) {
        (Value::Object(members), Change::Add(value)) => drop(members.insert(last.clone(), value.clone())),
        (Value::Object(members), Change::Replace(value)) => *members.get_mut(last)? = value.clone(),
        (Value::Object(members), Change::Remove) => drop(members.remove(last)?),
        (Value::Array(elements), Change::Add(value)) => {
            let index = if last == "-" { elements.len() } else { index(last)? };
            (index <= elements.len()).then(|| elements.insert(index, value.clone()))?;
        }
        (Value::Array(elements), Change::Replace(value)) => *elements.get_mut(index(last)?)? = value.clone(),
        (Value::Array(elements), Change::Remove) => {
            let index = index(last)?;
            (index < elements.len()).then(|| elements.remove(index))?;
        }
        _ => return None,
    }
    Some(())
}

/// Digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    plain.then(|| token.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(document: Value, patch: Value) -> Result<Value, ApiError> {
        apply(document.as_object().unwrap(), &parse(&patch)?).map(Value::Object)
    }

    #[test]
    fn operations_are_applied_in_order() {
        let document = json!({ "name": "a", "list": [1, 2, 3], "x": { "a/b": { "c~d": 0 } } });
        for (patch, expected) in [
            (json!([{ "op": "REPLACE", "path": "/name", "value": "b" }]), json!({ "name": "b" })),
            (json!([{ "op": "add", "path": "/list/-", "value": 4 }]), json!({ "list": [1, 2, 3, 4] })),
            (json!([{ "op": "add", "path": "/list/0", "value": 0 }]), json!({ "list": [0, 1, 2, 3] })),
            // The first and the third: each operation sees what the ones before it left.
            (
                json!([{ "op": "remove", "path": "/list/0", "value": {} }, { "op": "remove", "path": "/list/1" }]),
                json!({ "list": [2] }),
            ),
            (json!([{ "op": "replace", "path": "/x/a~1b/c~0d", "value": 1 }]), json!({ "x": { "a/b": { "c~d": 1 } } })),
        ] {
            let mut whole = document.clone();
            whole.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
            assert_eq!(patched(document.clone(), patch), Ok(whole));
        }
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        let document = json!({ "name": "a", "list": [1], "auth": { "specName": "s", "params": {} } });
        for patch in [
            json!({}),
            json!([]),
            json!([{ "op": "test", "path": "/name", "value": "a" }]),
            json!([{ "op": "move", "path": "/name", "from": "/list" }]),
            json!([{ "op": "add", "path": "/name" }]),
            json!([{ "op": "add", "path": "", "value": {} }]),
            json!([{ "op": "replace", "path": "/id", "value": "x" }]),
            json!([{ "op": "replace", "path": "/connectionSpec/version", "value": "2" }]),
            json!([{ "op": "replace", "path": "/auth", "value": {} }]),
            json!([{ "op": "replace", "path": "/auth/specName", "value": "x" }]),
            json!([{ "op": "remove", "path": "/name" }]),
            json!([{ "op": "remove", "path": "/nothing" }]),
            json!([{ "op": "replace", "path": "/list/1", "value": 1 }]),
            json!([{ "op": "add", "path": "/list/2", "value": 1 }]),
            json!([{ "op": "remove", "path": "/list/00" }]),
            json!([{ "op": "add", "path": "/x~", "value": 1 }]),
            json!([{ "op": "add", "path": "/x~2", "value": 1 }]),
            json!([{ "op": "add", "path": "/x~/0", "value": 1 }]),
            json!([{ "op": "add", "path": "/name/x", "value": 1 }]),
        ] {
            assert_eq!(patched(document.clone(), patch.clone()).unwrap_err().status(), 400, "{patch}");
        }
        assert!(patched(document, json!([{ "op": "replace", "path": "/auth/params", "value": {} }])).is_ok());
    }
}
