//! A flow and what it refers to become the item that the data plane reads.

use serde_json::{Value, json};
use shared::contract::flow_item::FlowItem;

use crate::connections::{Credentials, check_options, hub_of, options_of, partitioning_of};
use crate::errors::{ApiError, unusable};
use crate::namespace::Hosts;
use crate::specs::{FlowSpec, PROFILE_EXPORT, connection_spec, options_schema};
use crate::store::Entity;
use crate::tenant::Tenant;

/// A flow to a hub, with all that it is made of.
pub struct Ends<'a> {
    pub source: &'a Entity,
    pub target: &'a Entity,
    /// The target's base connection.
    pub connection: &'a Entity,
}

/// Whether both ends fit the flow spec.
pub fn check_ends(spec: &FlowSpec, source: &Entity, target: &Entity) -> Result<(), ApiError> {
    if !spec.sources.contains(&source.spec_id()) {
        return unusable("sourceConnectionIds: the flow spec takes no source of that connection spec");
    }
    if !spec.targets.contains(&target.spec_id()) {
        return unusable("targetConnectionIds: the flow spec takes no target of that connection spec");
    }
    Ok(())
}

pub fn item(
    flow: &Entity,
    ends: &Ends<'_>,
    tenant: &Tenant,
    hosts: &Hosts,
    max_bytes: u64,
) -> Result<FlowItem, ApiError> {
    let Some(kind) = connection_spec(ends.source.spec_id()).and_then(|spec| spec.kind) else {
        return unusable("sourceConnectionIds: no sender");
    };
    let mut options = options_of(ends.source, kind)?;
    let audiences = audiences(flow)?;
    // Of the kinds only the one that filters by them has such an option.
    if kind == PROFILE_EXPORT && !audiences.is_empty() {
        debug_assert!(options_schema(kind)["properties"].get("audiences").is_some());
        options.insert("audiences".to_owned(), audiences.into());
    }
    check_options(kind, &options, max_bytes)?;
    let credentials = Credentials::of(ends.connection, hosts)?;
    let Some(secret) = &ends.connection.secret else { return unusable("the connection has no key") };
    Ok(FlowItem {
        id: flow.id.clone(),
        kind: kind.name.to_owned(),
        enabled: flow.is_enabled(),
        options: Some(Value::Object(options).to_string()),
        auth_secret_id: ends.source.secret.as_ref().map(|secret| secret.name.clone()),
        connection_secret_id: secret.name.clone(),
        host: Some(credentials.host.name),
        hub: hub_of(ends.target, credentials.hub.as_deref())?,
        partitioning: Some(partitioning_of(ends.target)?),
        tenant: Some(tenant.key()),
        reading: None,
    })
}

/// What the items of flows have of a connection, source or target connection.
pub fn seen(of: &Entity) -> Value {
    let auth = &of.member("auth")["params"];
    let mut params = of.member("params").clone();
    if let Some(params) = params.as_object_mut() {
        params.remove("senderAuth");
    }
    let secret = of.secret.as_ref().map(|secret| &secret.name);
    json!([auth["namespace"], auth["eventHubName"], params, of.member("data"), secret])
}

/// The ids of the segment selectors, each once.
fn audiences(flow: &Entity) -> Result<Vec<String>, ApiError> {
    let mut ids = Vec::new();
    let transformations = match flow.member("transformations") {
        Value::Null => return Ok(ids),
        Value::Array(transformations) => transformations,
        _ => return unusable("transformations: expected an array"),
    };
    for (place, transformation) in transformations.iter().enumerate() {
        let selectors = match &transformation["params"]["segmentSelectors"]["selectors"] {
            Value::Null => continue,
            Value::Array(selectors) => selectors,
            _ => {
                return unusable(format!("transformations/{place}: segmentSelectors.selectors: expected an array"));
            }
        };
        for selector in selectors {
            match selector["value"]["id"].as_str() {
                Some(id) if !id.is_empty() && !ids.iter().any(|known| known == id) => ids.push(id.to_owned()),
                Some(id) if !id.is_empty() => {}
                _ => return unusable(format!("transformations/{place}: a segment selector has no value.id")),
            }
        }
    }
    Ok(ids)
}

/// How others tell of a connection that they inherit from.
pub fn reference(connection: &Entity) -> Value {
    json!({ "id": connection.id, "connectionSpec": connection.member("connectionSpec") })
}

/// What reads of a flow tell about its ends.
pub fn inherited(sources: &[(&Entity, Option<&Entity>)], targets: &[(&Entity, Option<&Entity>)]) -> Value {
    let tell = |(end, base): &(&Entity, Option<&Entity>)| {
        let mut told = reference(end);
        if let Some(base) = base {
            told["baseConnection"] = reference(base);
        }
        told
    };
    json!({
        "sourceConnections": sources.iter().map(tell).collect::<Vec<_>>(),
        "targetConnections": targets.iter().map(tell).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Collection;
    use crate::secrets::SecretVersion;
    use crate::specs::{DATAVERSE, EVENT_HUBS, PROFILE_STORE};

    fn entity(collection: Collection, document: Value) -> Entity {
        Entity {
            collection,
            id: "i".to_owned(),
            document: document.as_object().unwrap().clone(),
            secret: Some(SecretVersion { name: format!("secret of {}", collection.name()), version: "1".to_owned() }),
            used_by: Vec::new(),
            is_unseen: false,
        }
    }

    fn of(flow: Value, source: Value, target: Value) -> Result<FlowItem, ApiError> {
        let connection = json!({
            "auth": { "params": { "sasKeyName": "n", "sasKey": "********", "namespace": "contoso" } },
        });
        let ends = Ends {
            source: &entity(Collection::SourceConnections, source),
            target: &entity(Collection::TargetConnections, target),
            connection: &entity(Collection::Connections, connection),
        };
        let tenant = Tenant { organisation: "o".to_owned(), sandbox: "prod".to_owned() };
        item(&entity(Collection::Flows, flow), &ends, &tenant, &Hosts::new(None, None).unwrap(), 1_000_000)
    }

    #[test]
    fn selected_segments_become_audiences() {
        let selectors = json!([{ "value": { "id": "a" } }, { "value": { "id": "b" } }, { "value": { "id": "a" } }]);
        let flow = json!({
            "state": "enabled", "transformations": [{ "params": { "segmentSelectors": { "selectors": selectors } } }],
        });
        let target = json!({ "connectionSpec": { "id": EVENT_HUBS }, "params": { "eventHubName": "h" } });
        let source =
            json!({ "connectionSpec": { "id": PROFILE_STORE }, "params": { "options": { "split": "membership" } } });
        let item = of(flow.clone(), source, target.clone()).unwrap();
        assert_eq!(
            (item.kind.as_str(), item.host.as_deref()),
            ("profile-export", Some("contoso.servicebus.windows.net"))
        );
        assert_eq!(item.options.as_deref(), Some(r#"{"audiences":["a","b"],"split":"membership"}"#));
        assert_eq!((item.hub.as_str(), item.partitioning.as_deref()), ("h", Some("keys:16")));
        // Other kinds know no audiences.
        let source = json!({ "connectionSpec": { "id": DATAVERSE }, "data": { "format": "xml" } });
        assert_eq!(of(flow, source, target).unwrap().options.as_deref(), Some(r#"{"messageFormat":"xml"}"#));
    }

    #[test]
    fn what_the_data_plane_could_not_read_is_refused() {
        let target = json!({ "params": { "eventHubName": "h" } });
        let source =
            |options: Value| json!({ "connectionSpec": { "id": DATAVERSE }, "params": { "options": options } });
        for (flow, source, target) in [
            (json!({}), source(json!({ "unknown": 1 })), target.clone()),
            (json!({}), source(json!({ "maxBytes": 2_000_000 })), target.clone()),
            (json!({}), source(json!({ "steps": [] })), target.clone()),
            (json!({}), source(json!({ "steps": [{ "message": " " }] })), target.clone()),
            (json!({}), source(json!({ "steps": [{ "message": "\u{85}" }] })), target.clone()),
            (
                json!({}),
                source(json!({ "steps": [{ "message": "Update", "filteringAttributes": ["\u{85} "] }] })),
                target.clone(),
            ),
            (json!({}), source(json!({ "maxBytes": 5.0 })), target.clone()),
            (json!({}), source(json!({ "maxBytes": 1e30 })), target.clone()),
            (json!({}), source(json!({})), json!({ "params": {} })),
            (json!({}), source(json!({})), json!({ "params": { "eventHubName": "h", "partitioning": "keys:0" } })),
            (
                json!({ "transformations": [{ "params": { "segmentSelectors": { "selectors": [{}] } } }] }),
                source(json!({})),
                target,
            ),
        ] {
            assert_eq!(of(flow, source, target).unwrap_err().status(), 400);
        }
    }
}
