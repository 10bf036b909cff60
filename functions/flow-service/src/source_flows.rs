//! Flows from a hub into a streaming inlet: what their items say, and that Lambda follows the items.
//!
//! The item of a flow is what should be; alias and source mapping are made from it, and can be made again at any time. A
//! flow's consumer group is taken before anything is made and let go after all is gone, so that what was left half done is
//! found by its group.

use std::time::{Duration, UNIX_EPOCH};

use reqwest::Url;
use serde_json::{Map, Value};
use shared::clock::Clock;
use shared::contract::flow_item::{FlowItem, LATEST, Reading};
use shared::contract::inlet::{Format, INLET_DOMAIN, InletOptions, KIND, MAX_BATCH, TOKEN_DOMAIN, option};

use crate::connections::{Credentials, hub_of};
use crate::errors::{ApiError, unusable};
use crate::groups::{Claim, Groups, Served, key};
use crate::lambda::{Lambda, Source};
use crate::namespace::Hosts;
use crate::secrets::Secrets;
use crate::specs::{DATA_LAKE, EVENT_HUBS};
use crate::store::Entity;
use crate::tenant::Tenant;

/// No legal name for Lambda's sources.
const DEFAULT_GROUP: &str = "$Default";
const MAX_GROUP: usize = 200;
const KAFKA_PORT: u16 = 9093;
/// Longer than any request goes on.
const ABANDONED: Duration = Duration::from_secs(60);

/// The members of a target connection that stand for the function's options of the same names.
const OPTIONS: [&str; 6] =
    [option::URL, option::FLOW_ID, option::BATCH_MAX, option::IMS_SECRET_ID, option::IMS_TOKEN_URL, option::IMS_SCOPE];

/// What a flow from a hub is made of.
pub struct SourceEnds<'a> {
    pub source: &'a Entity,
    /// The source's base connection.
    pub connection: &'a Entity,
    pub target: &'a Entity,
}

/// Whether the target says which inlet its flows feed. Without it they are only kept.
pub fn has_inlet(target: &Entity) -> bool {
    target.member("params").get(option::URL).is_some()
}

/// Checks the source or target connection of a flow from a hub, as far as it stands alone.
pub fn check(end: &Entity, is_target: bool, tenant: &Tenant, hosts: &Hosts, secrets: &Secrets) -> Result<(), ApiError> {
    match end.spec_id() {
        EVENT_HUBS if !is_target => match end.member("params").get("consumerGroup").and_then(Value::as_str) {
            None | Some(DEFAULT_GROUP) => Ok(()),
            Some(group) => check_group(group),
        },
        DATA_LAKE if has_inlet(end) => inlet(end, tenant, hosts, secrets).map(drop),
        DATA_LAKE => match OPTIONS.into_iter().find(|name| end.member("params").get(*name).is_some()) {
            Some(name) => unusable(format!("params.{name}: is of no use without params.inletUrl")),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_group(group: &str) -> Result<(), ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/*:_+=.@".contains(&byte);
    if group.is_empty() || group.len() > MAX_GROUP || !group.bytes().all(plain) {
        return unusable(format!(
            "params.consumerGroup: expected {MAX_GROUP} letters, digits and -/*:_+=.@ at most, or {DEFAULT_GROUP}"
        ));
    }
    Ok(())
}

/// The function's options that a target connection gives: those of its own, checked.
fn inlet(target: &Entity, tenant: &Tenant, hosts: &Hosts, secrets: &Secrets) -> Result<InletOptions, ApiError> {
    let params = target.member("params");
    let mut options = Map::new();
    for name in OPTIONS {
        let Some(value) = params.get(name) else { continue };
        let problem = match (name, value.as_str()) {
            (option::BATCH_MAX, _) => (!value.as_u64().is_some_and(|most| (1..=MAX_BATCH as u64).contains(&most)))
                .then(|| format!("expected a number from 1 to {MAX_BATCH}")),
            (_, None | Some("")) => Some("expected text".to_owned()),
            (option::URL, Some(text)) => inlet_problem(text, hosts),
            (option::IMS_TOKEN_URL, Some(text)) => url(text, TOKEN_DOMAIN, hosts).err(),
            (option::IMS_SECRET_ID, Some(text)) => {
                // Whoever is of the organisation may use its clients, and nobody else.
                let prefix = format!("{}ims/{}/", secrets.prefix(), tenant.organisation);
                let name = text.strip_prefix(&prefix).unwrap_or_default();
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=.@-".contains(&byte);
                let is_ours = !name.is_empty() && name.bytes().all(plain);
                (!is_ours).then(|| format!("expected the name of a secret, {prefix} and one word"))
            }
            (option::FLOW_ID, Some(text)) if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Some("expected letters, digits and marks without spaces".to_owned())
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return unusable(format!("params.{name}: {problem}"));
        }
        options.insert(name.to_owned(), value.clone());
    }
    if !options.contains_key(option::IMS_SECRET_ID)
        && let Some(name) =
            [option::IMS_TOKEN_URL, option::IMS_SCOPE].into_iter().find(|name| options.contains_key(*name))
    {
        return unusable(format!("params.{name}: is of no use without params.imsSecretId"));
    }
    Ok(serde_json::from_value(Value::Object(options)).expect("each option was checked"))
}

fn inlet_problem(text: &str, hosts: &Hosts) -> Option<String> {
    let url = match url(text, INLET_DOMAIN, hosts) {
        Ok(url) => url,
        Err(problem) => return Some(problem),
    };
    let segments: Vec<&str> = url.path().trim_end_matches('/').split('/').collect();
    let is_inlet = matches!(segments[..], ["", "collection", inlet] if !inlet.is_empty() && inlet != "batch");
    (!is_inlet).then(|| "expected the path /collection/{inlet}".to_owned())
}

/// A URL without credentials, query or fragment: https and a host of `domain`, or http and a host that a local setting names.
fn url(text: &str, domain: &str, hosts: &Hosts) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    let is_bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !is_bare || url.password().is_some() {
        return Err("expected a URL without credentials, query and fragment".to_owned());
    }
    let host = url.host_str().unwrap_or_default();
    let is_adobes = url.scheme() == "https" && host.ends_with(domain) && url.port().is_none();
    let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}")).unwrap_or_default();
    let is_local = url.scheme() == "http" && hosts.is_emulator(&with_port);
    if is_adobes || is_local { Ok(url) } else { Err(format!("expected https and a host that ends in {domain}")) }
}

/// Without its last part: the secret's ARN, which is to be asked for.
fn item(
    flow: &Entity,
    ends: &SourceEnds<'_>,
    tenant: &Tenant,
    hosts: &Hosts,
    secrets: &Secrets,
    function: &str,
) -> Result<FlowItem, ApiError> {
    let params = ends.source.member("params");
    let credentials = Credentials::of(ends.connection, hosts)?;
    let hub = hub_of(ends.source, credentials.hub.as_deref())?;
    let group = match params.get("consumerGroup").and_then(Value::as_str) {
        Some(group) if group != DEFAULT_GROUP => group.to_owned(),
        // Of this deployment and hub alone, since groups are of the namespace.
        _ => format!("{function}-{hub}"),
    };
    check_group(&group)?;
    let mut options = inlet(ends.target, tenant, hosts, secrets)?;
    if options.inlet_url.is_none() {
        return unusable("targetConnectionIds: the flow is served, and the target has no params.inletUrl");
    }
    options.inlet_flow_id.get_or_insert_with(|| flow.id.clone());
    options.sandbox = Some(tenant.sandbox.clone());
    let is_xdm = params.get("dataType").and_then(Value::as_str) == Some("xdm");
    if is_xdm {
        let (schema, dataset) = (&ends.target.member("data")["schema"], &ends.target.member("params")["dataSetId"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        options = InletOptions {
            format: Some(Format::Xdm),
            schema_id: text(&schema["id"]),
            schema_content_type: text(&schema["version"]),
            dataset_id: text(dataset),
            org_id: Some(tenant.organisation.clone()),
            ..options
        };
    } else if options.batch_max.is_some_and(|most| most != 1) {
        return unusable("params.batchMax: raw records are sent singly; leave it out, or read xdm");
    }
    Ok(FlowItem {
        id: flow.id.clone(),
        kind: KIND.to_owned(),
        enabled: flow.is_enabled(),
        options: Some(options.to_json()),
        auth_secret_id: None,
        connection_secret_id: String::new(),
        host: Some(credentials.host.name),
        hub,
        partitioning: Some("none".to_owned()),
        tenant: Some(tenant.key()),
        reading: Some(Reading { group, latest: params.get("reset").is_some_and(|reset| reset == LATEST) }),
    })
}

/// The key of the consumer group that an item says.
pub fn group_key(item: &FlowItem) -> String {
    let group = item.reading.as_ref().map_or("", |reading| reading.group.as_str());
    key(item.host.as_deref().unwrap_or_default(), &item.hub, group)
}

/// Makes Lambda follow the items.
pub struct SourceFlows {
    lambda: Lambda,
    groups: Groups,
    clock: Clock,
}

impl SourceFlows {
    pub fn new(lambda: Lambda, groups: Groups, clock: Clock) -> Self {
        Self { lambda, groups, clock }
    }

    /// The item of a flow, as its ends say it.
    pub async fn item(
        &self,
        flow: &Entity,
        ends: &SourceEnds<'_>,
        tenant: &Tenant,
        hosts: &Hosts,
        secrets: &Secrets,
    ) -> Result<FlowItem, ApiError> {
        let mut item = item(flow, ends, tenant, hosts, secrets, self.lambda.function_name())?;
        let Some(secret) = &ends.connection.secret else { return unusable("the connection has no key") };
        // Lambda's sources know secrets by their ARN.
        item.connection_secret_id = secrets.arn(&secret.name).await?;
        Ok(item)
    }

    pub async fn served(&self, flow: &str) -> Result<Option<Served>, ApiError> {
        self.groups.served(flow).await
    }

    /// Takes the group, and makes alias and mapping of a flow that is not written yet. What fails leaves nothing.
    pub async fn begin(&self, item: &FlowItem) -> Result<Claim, ApiError> {
        self.finish_abandoned().await;
        let claim = self.take(group_key(item), &item.id, None).await?;
        let served = Served { enabled: true, ..Served::of(item).expect("the item is of a flow from a hub") };
        if let Err(error) = self.lambda.follow(&item.id, &source(&served)).await {
            self.finish_or_tell(&claim).await;
            return Err(error);
        }
        Ok(claim)
    }

    /// After a flow was written.
    pub async fn settle(&self, claim: &Claim) {
        // Else the next one who finds it does that.
        if self.groups.settle(claim).await.is_err() {
            tracing::warn!(flow = claim.flow, "the flow is made; its consumer group stays pending");
        }
    }

    /// Takes the group of a changed item, if it is another.
    pub async fn take_if_moved(&self, old: &Served, new: &FlowItem) -> Result<Option<Claim>, ApiError> {
        let (before, after) = (old.key(), group_key(new));
        if before == after {
            return Ok(None);
        }
        self.take(after, &new.id, Some(before)).await.map(Some)
    }

    /// Makes Lambda follow the item of a flow, and lets go of a group that it no longer has.
    pub async fn follow(&self, flow: &str) -> Result<(), ApiError> {
        let Some(served) = self.served(flow).await? else { return Ok(()) };
        let claim = match self.groups.read(&served.key()).await? {
            Some(claim) if claim.flow == flow => claim,
            _ => self.take(served.key(), flow, None).await?,
        };
        self.finish(&claim).await.map(drop)
    }

    /// Removes mapping and alias of a flow whose item is disabled, or gone.
    pub async fn remove(&self, flow: &str) -> Result<(), ApiError> {
        self.lambda.remove(flow).await
    }

    /// [`Self::finish`] of what failed: whoever asked is told that, and the log if this fails too.
    pub async fn finish_or_tell(&self, claim: &Claim) -> bool {
        self.finish(claim).await.unwrap_or_else(|_| {
            let text = "a source flow is half made; the next one that is made or deleted finishes it";
            tracing::error!(flow = claim.flow, "{text}");
            false
        })
    }

    /// Ends what was begun, one way or the other: the flow's item says which. Gives whether the flow has the group.
    async fn finish(&self, claim: &Claim) -> Result<bool, ApiError> {
        let holds = |served: &Option<Served>| served.as_ref().is_some_and(|served| served.key() == claim.key);
        let mut served = self.served(&claim.flow).await?;
        if !holds(&served) {
            if !self.groups.begin_undoing(claim).await? {
                return Ok(false);
            }
            // From here on it can't be written.
            served = self.served(&claim.flow).await?;
        }
        match &served {
            None => self.lambda.remove(&claim.flow).await?,
            Some(served) => {
                self.lambda.follow(&claim.flow, &source(served)).await?;
                // Who deletes a flow may have removed them before they were made here.
                if self.served(&claim.flow).await?.is_none() {
                    self.lambda.remove(&claim.flow).await?;
                }
            }
        }
        if !holds(&served) {
            self.groups.release(&claim.key, &claim.flow).await?;
            return Ok(false);
        }
        if let Some(from) = &claim.from {
            self.groups.release(from, &claim.flow).await?;
        }
        self.groups.settle(claim).await?;
        Ok(true)
    }

    async fn take(&self, key: String, flow: &str, from: Option<String>) -> Result<Claim, ApiError> {
        let now = self.now();
        let claim = Claim { key, flow: flow.to_owned(), from, pending_since: Some(now) };
        for _ in 0..2 {
            if self.groups.take(&claim).await? {
                return Ok(claim);
            }
            let Some(other) = self.groups.read(&claim.key).await? else { continue };
            let owner = self.served(&other.flow).await?;
            if owner.is_some_and(|owner| owner.key() == claim.key) {
                let text =
                    "the consumer group serves another flow of this hub; give the source connection one of its own";
                return Err(ApiError::Conflict(text.to_owned()));
            }
            if other.flow != flow && !is_abandoned(&other, now) {
                break;
            }
            self.finish(&other).await?;
        }
        let text = "the consumer group is being taken by another flow, or let go; send it again in a minute";
        Err(ApiError::Conflict(text.to_owned()))
    }

    /// What others have begun and will not end.
    pub async fn finish_abandoned(&self) {
        let now = self.now();
        let Ok(pending) = self.groups.pending().await else { return };
        for claim in pending.iter().filter(|claim| is_abandoned(claim, now)) {
            self.finish_or_tell(claim).await;
        }
    }

    fn now(&self) -> u64 {
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }
}

fn is_abandoned(claim: &Claim, now: u64) -> bool {
    claim.pending_since.is_none_or(|since| u128::from(now.saturating_sub(since)) > ABANDONED.as_millis())
}

fn source(served: &Served) -> Source {
    let host = served.host.split(':').next().unwrap_or(&served.host);
    Source {
        server: format!("{host}:{KAFKA_PORT}"),
        topic: served.hub.clone(),
        group: served.group.clone(),
        latest: served.latest,
        secret_arn: served.secret_arn.clone(),
        enabled: served.enabled,
    }
}
