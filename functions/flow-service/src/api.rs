//! The calls: each reads what it refers to, decides, and writes all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::contract::flow_item::FlowItem;
use tokio::join;
use tokio::time::{Instant, sleep};

use crate::connections::{self, Credentials, Senders, has_mask, hub_of, without_secrets};
use crate::errors::{ApiError, bad_request, unusable};
use crate::flows::{self, Ends};
use crate::groups::Claim;
use crate::hubs::{Has, Hubs, Look};
use crate::listing::Listing;
use crate::namespace::Hosts;
use crate::openapi;
use crate::patch;
use crate::request::Request;
use crate::routes::{Collection, Operation};
use crate::runs::Runs;
use crate::schemas;
use crate::secrets::{SecretVersion, Secrets, random, uuid};
use crate::source_flows::{self, SourceEnds, SourceFlows};
use crate::specs::{
    CONNECTION_SPECS, ConnectionSpec, EVENT_HUBS, FLOW_SPECS, FROM_HUB, FlowSpec, TO_HUB, VERSION, connection_spec,
    flow_spec,
};
use crate::store::{Document, Entity, MAX_BYTES, MAX_WRITES, Name, Store, Unwritten, Write, flow_size};
use crate::tenant::{Caller, OrgClaim, Tenant};

/// Rounds of read, decide and write before a request gives way to the others.
const ROUNDS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

pub struct Api {
    pub store: Store,
    pub secrets: Secrets,
    pub hubs: Hubs,
    pub runs: Runs,
    /// Without it flows from a hub are kept, and none is served.
    pub sources: Option<SourceFlows>,
    pub hosts: Hosts,
    pub clock: Clock,
    pub org_claim: OrgClaim,
    /// Where senders reach the webhooks; without it, where the caller reached this function.
    pub public_url: Option<String>,
    /// What one request to a hub may hold.
    pub max_bytes: u64,
}

/// What a call that succeeded answers.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// `None`: no body.
    pub body: Option<Value>,
    pub location: Option<String>,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body), location: None }
    }

    fn deleted() -> Self {
        Self { status: 204, body: None, location: None }
    }

    fn created(entity: &Entity, more: Value) -> Self {
        let mut body = told(entity);
        extend(&mut body, more);
        let location = Some(format!("/{}/{}", entity.collection.name(), entity.id));
        Self { status: 201, body: Some(body), location }
    }
}

fn told(entity: &Entity) -> Value {
    json!({ "id": entity.id, "etag": entity.etag() })
}

fn items(items: Vec<Value>) -> Value {
    json!({ "items": items })
}

/// An end of a flow with its base connection.
struct End {
    entity: Entity,
    base: Option<Entity>,
}

impl Api {
    /// Begins nothing that can't end by the deadline.
    pub async fn answer(
        &self,
        request: &Request,
        operation: Operation,
        id: &str,
        deadline: Instant,
    ) -> Result<Reply, ApiError> {
        if operation == Operation::OpenApi {
            return Ok(Reply::ok(openapi::document()));
        }
        let caller = Caller::of(request, &self.org_claim)?;
        let tenant = &caller.tenant;
        let found = |item: Option<Value>| match item {
            Some(item) => Ok(Reply::ok(items(vec![item]))),
            None => Err(ApiError::UnknownSpec),
        };
        match operation {
            Operation::Create(collection) => {
                request.check_content_type()?;
                let body = request.json()?;
                schemas::check(&schemas::body(collection), &body)?;
                let Value::Object(body) = body else { return bad_request("expected an object") };
                match collection {
                    Collection::Connections => self.create_connection(request, &caller, body).await,
                    Collection::Flows => self.create_flow(request, &caller, body, deadline).await,
                    _ => self.create_end(request, &caller, collection, body, deadline).await,
                }
            }
            Operation::List(collection) => {
                let listing = Listing::parse(request)?;
                let mut page = listing.page();
                self.store.list(tenant, collection, |text| page.take(text)).await?;
                Ok(Reply::ok(page.answer(collection.name())))
            }
            Operation::Read(collection) => {
                let entity = self.existing(tenant, collection, id).await?;
                Ok(Reply::ok(items(vec![Value::Object(entity.document)])))
            }
            Operation::Patch(collection) => {
                request.check_content_type()?;
                let operations = patch::parse(&request.json()?)?;
                self.change(request, &caller, collection, id, Change::Patch(&operations), deadline).await
            }
            Operation::Action => {
                let state = match request.parameter("op").map(str::to_ascii_lowercase).as_deref() {
                    Some("enable") => "enabled",
                    Some("disable") => "disabled",
                    _ => return bad_request("op: expected enable or disable"),
                };
                self.change(request, &caller, Collection::Flows, id, Change::State(state), deadline).await
            }
            Operation::Delete(collection) => self.delete(request, tenant, collection, id, deadline).await,
            Operation::Test => self.test(tenant, id, deadline).await,
            Operation::Explore => self.explore(request, tenant, id).await,
            Operation::ConnectionSpecs => Ok(Reply::ok(items(CONNECTION_SPECS.iter().map(|s| s.item()).collect()))),
            Operation::ConnectionSpec => found(connection_spec(id).map(ConnectionSpec::item)),
            Operation::FlowSpecs => Ok(Reply::ok(items(FLOW_SPECS.iter().map(|s| s.item()).collect()))),
            Operation::FlowSpec => found(flow_spec(id).map(FlowSpec::item)),
            Operation::Runs => {
                let listing = Listing::parse(request)?;
                let Some(flow) = listing.wanted("flowId") else {
                    return bad_request("property: expected `flowId==<id>`, of one flow");
                };
                // Another tenant's flow is as one that never was.
                let Some(flow) = self.store.get(tenant, Collection::Flows, flow).await? else {
                    return Ok(Reply::ok(listing.page().answer("runs")));
                };
                let runs = self.runs.of(&flow).await?;
                let mut page = listing.page();
                for run in &runs.items {
                    page.take(&Value::Object(run.clone()).to_string());
                }
                let mut answer = page.answer("runs");
                if runs.is_truncated {
                    answer["truncated"] = true.into();
                }
                Ok(Reply::ok(answer))
            }
            Operation::OpenApi => Ok(Reply::ok(openapi::document())),
        }
    }

    async fn existing(&self, tenant: &Tenant, collection: Collection, id: &str) -> Result<Entity, ApiError> {
        let missing = || ApiError::NotFound { collection, id: id.to_owned() };
        self.store.get(tenant, collection, id).await?.ok_or_else(missing)
    }

    /// What a body refers to.
    async fn referred(
        &self,
        tenant: &Tenant,
        collection: Collection,
        id: &str,
        member: &str,
    ) -> Result<Entity, ApiError> {
        let missing = || ApiError::Unusable(format!("{member}: there is no such object"));
        self.store.get(tenant, collection, id).await?.ok_or_else(missing)
    }

    fn now(&self) -> u64 {
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    /// A new object of a body. What the service itself writes is not taken from it.
    fn new_entity(&self, caller: &Caller, collection: Collection, mut document: Document) -> Entity {
        let (id, now) = (uuid(), self.now());
        let name = &caller.tenant;
        for foreign in ["inheritedAttributes", "lastOperation", "lastRunDetails", "runs"] {
            document.remove(foreign);
        }
        for (member, value) in [
            ("id", json!(id)),
            ("createdAt", json!(now)),
            ("updatedAt", json!(now)),
            ("createdBy", json!(caller.subject)),
            ("updatedBy", json!(caller.subject)),
            ("createdClient", json!(caller.client)),
            ("updatedClient", json!(caller.client)),
            ("imsOrgId", json!(name.organisation)),
            ("sandboxName", json!(name.sandbox)),
            ("sandboxId", json!(name.sandbox_id())),
            ("state", json!("enabled")),
        ] {
            document.insert(member.to_owned(), value);
        }
        let mut entity = Entity { collection, id, document, secret: None, used_by: Vec::new(), is_unseen: false };
        renew_etag(&mut entity);
        if collection == Collection::Flows {
            self.note_operation(&mut entity, "create");
            let runs = format!("/flows/{}/runs", entity.id);
            entity.document.insert("runs".to_owned(), runs.into());
        }
        entity
    }

    fn note_operation(&self, flow: &mut Entity, operation: &str) {
        let now = self.now();
        let note = json!({
            "started": now, "updated": now, "percentCompleted": 100.0,
            "status": { "value": "completed", "errors": [] }, "operation": operation,
        });
        flow.document.insert("lastOperation".to_owned(), note);
    }

    async fn create_connection(&self, request: &Request, caller: &Caller, body: Document) -> Result<Reply, ApiError> {
        let validate = validation(request)?;
        let spec = spec_of(&body, Collection::Connections)?;
        let mut connection = self.new_entity(caller, Collection::Connections, body);
        if spec.id != EVENT_HUBS {
            if connection.document.contains_key("auth") {
                return unusable("auth: connections of that spec have no credentials");
            }
            connections::check_secrets(&connection)?;
            connection.check_size()?;
            self.write(&caller.tenant, vec![Write::Create(&connection)]).await?;
            return Ok(Reply::created(&connection, json!({})));
        }
        let credentials = Credentials::take(&mut connection.document, None, &self.hosts)?;
        let Some(key) = &credentials.key else { return unusable("auth.params.sasKey: that is the mask of a key") };
        connections::check_secrets(&connection)?;
        connection.check_size()?;
        let doubt = self.validate(validate, &credentials, key, credentials.hub.as_deref()).await?;
        let secret = SecretVersion::of(self.secrets.name("connections"));
        self.secrets.create(&secret, &credentials.secret(key.expose_secret())).await?;
        connection.secret = Some(secret.clone());
        if let Err(error) = self.write(&caller.tenant, vec![Write::Create(&connection)]).await {
            self.abandon(&secret.name, &error).await;
            return Err(error);
        }
        Ok(Reply::created(&connection, doubt))
    }

    /// Deletes the secret of what was not written; unless nobody can tell whether it was.
    async fn abandon(&self, name: &str, error: &ApiError) {
        if matches!(error, ApiError::Unavailable(_)) && *error != BUSY {
            tracing::error!(secret = name, "a write was not answered: the secret stays, and may be nobody's");
        } else {
            self.secrets.delete(name).await;
        }
    }

    /// Asks the namespace. By default only a definite refusal counts. Gives what the answer adds: a `detail` where a hub can't
    /// be told to be there.
    async fn validate(
        &self,
        validate: Option<bool>,
        credentials: &Credentials,
        key: &SecretString,
        hub: Option<&str>,
    ) -> Result<Value, ApiError> {
        if validate == Some(false) {
            return Ok(json!({}));
        }
        match self.hubs.look(&credentials.host, &credentials.key_name, key).await {
            Look::WrongKey => unusable("auth.params: the namespace refuses the key: wrong name or wrong key"),
            Look::Hubs(list) => match hub.map_or(Has::Yes, |hub| list.has(hub)) {
                Has::Yes => Ok(json!({})),
                Has::No => unusable("eventHubName: the namespace has no such event hub"),
                Has::Unknown => Ok(json!({ "detail": UNSEEN })),
            },
            Look::Unreachable(problem) if validate == Some(true) => {
                unusable(format!("auth.params.namespace: it can't be reached: {problem}"))
            }
            Look::NoManage | Look::Refused(_) | Look::Unreachable(_) => Ok(json!({})),
        }
    }

    /// Checks that the caller holds a key of the namespace, before a consumer group of it is claimed: groups belong to the namespace,
    /// and the first who claims one keeps it. Unlike [`Self::validate`] it needs proof, whatever `validate` says.
    async fn prove(&self, connection: &Entity) -> Result<(), ApiError> {
        let credentials = Credentials::of(connection, &self.hosts)?;
        let key = self.key(connection).await?;
        match self.hubs.look(&credentials.host, &credentials.key_name, &key).await {
            Look::Hubs(_) | Look::NoManage => Ok(()),
            Look::WrongKey => unusable(
                "sourceConnectionIds: the namespace refuses the key of the source's connection; correct the key and retry",
            ),
            Look::Refused(status) => unusable(format!(
                "sourceConnectionIds: the namespace did not confirm the key of the source's connection (it responded with {status}); \
                 check that it accepts SAS keys, and its IP rules"
            )),
            Look::Unreachable(problem) => {
                tracing::warn!(
                    problem,
                    "a namespace could not be reached to check a key; no consumer group was claimed"
                );
                Err(ApiError::Unavailable(
                    "the namespace of the source's connection could not be reached to check its key; retry this request",
                ))
            }
        }
    }

    /// The key of a stored connection.
    async fn key(&self, connection: &Entity) -> Result<SecretString, ApiError> {
        let Some(secret) = &connection.secret else { return unusable("the connection has no key") };
        let secret = self.secrets.get(secret).await?;
        let text = shared::contract::secret::connection_string_of(&secret).ok();
        let parsed = text
            .and_then(|text| shared::event_hubs::connection_string::ConnectionString::parse(text.expose_secret()).ok());
        match parsed.map(|parsed| parsed.credential) {
            Some(shared::event_hubs::connection_string::Credential::Key { key, .. }) => Ok(key),
            _ => unusable("the connection's secret can't be used: give the key anew"),
        }
    }

    async fn create_end(
        &self,
        request: &Request,
        caller: &Caller,
        collection: Collection,
        body: Document,
        deadline: Instant,
    ) -> Result<Reply, ApiError> {
        let validate = validation(request)?;
        let spec = spec_of(&body, collection)?;
        let tenant = &caller.tenant;
        let mut entity = self.new_entity(caller, collection, body);
        let is_target = collection == Collection::TargetConnections;
        let is_sender = spec.kind.is_some() && !is_target;
        let senders = if is_sender { Some(Senders::take(&mut entity.document, None)?) } else { None };
        connections::check_secrets(&entity)?;
        connections::check(&entity, spec, is_target, self.max_bytes)?;
        source_flows::check(&entity, is_target, tenant, &self.hosts, &self.secrets)?;
        let base = self.base(tenant, &entity, spec).await?;
        let mut doubt = json!({});
        if let Some(base) = &base
            && spec.id == EVENT_HUBS
        {
            let credentials = Credentials::of(base, &self.hosts)?;
            let hub = hub_of(&entity, credentials.hub.as_deref())?;
            if validate != Some(false) {
                doubt = self.validate(validate, &credentials, &self.key(base).await?, Some(&hub)).await?;
            }
        }
        // Neither can be changed later.
        let inherited = match &base {
            Some(base) => json!({ "baseConnection": flows::reference(base) }),
            None => json!({}),
        };
        entity.document.insert("inheritedAttributes".to_owned(), inherited);
        entity.check_size()?;
        if let Some(Senders { secret: Some(secret), is_generated }) = senders {
            let version = SecretVersion::of(self.secrets.name("senders"));
            self.secrets.create(&version, &secret).await?;
            entity.secret = Some(version);
            entity.is_unseen = is_generated;
        }
        let written = async {
            let mut rounds = Rounds::until(deadline);
            let mut base = base;
            loop {
                let mut writes = vec![Write::Create(&entity)];
                if let Some(base) = &base {
                    writes.push(self.add_user(base, &entity, false)?);
                }
                match self.store.write(tenant, writes).await {
                    Ok(()) => return Ok(()),
                    Err(unwritten) => rounds.next(unwritten).await?,
                }
                base = self.base(tenant, &entity, spec).await?;
            }
        };
        let written: Result<(), ApiError> = written.await;
        if let Err(error) = written {
            if let Some(secret) = &entity.secret {
                self.abandon(&secret.name, &error).await;
            }
            return Err(error);
        }
        Ok(Reply::created(&entity, doubt))
    }

    /// The base connection of a source or target connection.
    async fn base(&self, tenant: &Tenant, end: &Entity, spec: &ConnectionSpec) -> Result<Option<Entity>, ApiError> {
        const MEMBER: &str = "baseConnectionId";
        let Some(id) = end.member(MEMBER).as_str() else {
            if spec.needs_base {
                return unusable(format!("{MEMBER}: missing"));
            }
            return Ok(None);
        };
        let base = self.referred(tenant, Collection::Connections, id, MEMBER).await?;
        if base.spec_id() != spec.id {
            return unusable(format!("{MEMBER}: a connection of another spec"));
        }
        Ok(Some(base))
    }

    fn add_user<'e>(&self, of: &'e Entity, user: &Entity, shown: bool) -> Result<Write<'e>, ApiError> {
        if of.used_by.len() >= of.max_users() {
            let (what, most) = (of.collection.name(), of.max_users());
            return Err(ApiError::Conflict(format!("{what} [{}] is used by {most} others already", of.id)));
        }
        Ok(Write::AddUser { of, user: user.user_name(), shown })
    }

    /// The end of a flow with its base connection.
    async fn end(&self, tenant: &Tenant, flow: &Entity, collection: Collection) -> Result<End, ApiError> {
        let member = ends_member(collection);
        let id = match flow.member(member).as_array().map(Vec::as_slice) {
            Some([Value::String(id)]) => id.as_str(),
            _ => return unusable(format!("{member}: expected one id")),
        };
        let entity = self.referred(tenant, collection, id, member).await?;
        let base = match entity.member("baseConnectionId").as_str() {
            None => None,
            Some(id) => Some(self.referred(tenant, Collection::Connections, id, "baseConnectionId").await?),
        };
        Ok(End { entity, base })
    }

    async fn create_flow(
        &self,
        request: &Request,
        caller: &Caller,
        body: Document,
        deadline: Instant,
    ) -> Result<Reply, ApiError> {
        let spec = flow_spec_of(&body)?;
        let tenant = &caller.tenant;
        let mut flow = self.new_entity(caller, Collection::Flows, body);
        connections::check_secrets(&flow)?;
        let mut rounds = Rounds::until(deadline);
        let mut proven = None;
        loop {
            let (source, target) = self.ends(tenant, &flow).await?;
            flows::check_ends(spec, &source.entity, &target.entity)?;
            inherit(&mut flow, &source, &target);
            flow.check_size()?;
            let shows = source.entity.is_unseen;
            let mut writes = vec![
                Write::Create(&flow),
                self.add_user(&source.entity, &flow, shows)?,
                self.add_user(&target.entity, &flow, false)?,
            ];
            let mut more = json!({});
            if spec.id == TO_HUB {
                let Some(connection) = &target.base else { return unusable("baseConnectionId: missing") };
                let ends = Ends { source: &source.entity, target: &target.entity, connection };
                let item = flows::item(&flow, &ends, tenant, &self.hosts, self.max_bytes)?;
                more = self.senders_view(request, &item, &source.entity).await?;
                writes.extend([Write::Unchanged(connection), Write::PutFlow { item: item.into(), seen: None }]);
            }
            let mut begun = None;
            if let (FROM_HUB, Some(sources)) = (spec.id, &self.sources)
                && source_flows::has_inlet(&target.entity)
            {
                let (item, connection) = self.source_item(sources, &flow, &source, &target, tenant).await?;
                more["consumerGroup"] = item.reading.as_ref().map(|reading| reading.group.as_str()).into();
                if proven.is_none() || proven != connection.secret {
                    self.prove(connection).await?;
                    proven.clone_from(&connection.secret);
                }
                let claim = begun.insert((sources, Box::pin(sources.begin(&item)).await?));
                let item = Write::PutFlow { item: item.into(), seen: None };
                writes.extend([Write::Unchanged(connection), item, Write::HoldsGroup(&claim.1)]);
            }
            let written = self.store.write(tenant, writes).await;
            match (written, begun) {
                (Ok(()), Some((sources, claim))) => sources.settle(&claim).await,
                (Ok(()), None) => {}
                // Of a write that was not answered nobody knows, before the item is looked for.
                (Err(_), Some((sources, claim))) if Box::pin(sources.finish_or_tell(&claim)).await => {}
                (Err(unwritten), _) => {
                    rounds.next(unwritten).await?;
                    continue;
                }
            }
            return Ok(Reply::created(&flow, more));
        }
    }

    /// Both ends of a flow.
    async fn ends(&self, tenant: &Tenant, flow: &Entity) -> Result<(End, End), ApiError> {
        let (source, target) = join!(
            self.end(tenant, flow, Collection::SourceConnections),
            self.end(tenant, flow, Collection::TargetConnections),
        );
        // Whichever is read first, the source is complained of first.
        Ok((source?, target?))
    }

    /// What those need who send to a flow.
    async fn senders_view(&self, request: &Request, item: &FlowItem, source: &Entity) -> Result<Value, ApiError> {
        let base_url = self.public_url.as_deref().unwrap_or(&request.base_url);
        Ok(json!({
            "webhookUrl": format!("{base_url}/{}/{}", item.kind, item.id),
            "senderAuth": self.sender_auth(source).await?,
        }))
    }

    /// The item of a flow from a hub, and the connection that it reads by.
    async fn source_item<'e>(
        &self,
        sources: &SourceFlows,
        flow: &Entity,
        source: &'e End,
        target: &End,
        tenant: &Tenant,
    ) -> Result<(FlowItem, &'e Entity), ApiError> {
        let Some(connection) = &source.base else { return unusable("baseConnectionId: missing") };
        let ends = SourceEnds { source: &source.entity, connection, target: &target.entity };
        Ok((sources.item(flow, &ends, tenant, &self.hosts, &self.secrets).await?, connection))
    }

    /// Of a flow that is served.
    fn sources(&self) -> Result<&SourceFlows, ApiError> {
        self.sources.as_ref().ok_or(ApiError::Unavailable("the function that serves flows from a hub is not set"))
    }

    /// Makes Lambda follow a change of a flow from a hub, or of its source.
    async fn follow(&self, changed: &Entity) -> Result<(), ApiError> {
        let Some(sources) = &self.sources else { return Ok(()) };
        let flows: Vec<&str> = match changed.collection {
            Collection::Flows if changed.member("flowSpec")["id"] == FROM_HUB => vec![&changed.id],
            Collection::SourceConnections if changed.spec_id() == EVENT_HUBS => {
                changed.used_by.iter().filter_map(|user| user.strip_prefix("flows#")).collect()
            }
            _ => return Ok(()),
        };
        for flow in flows {
            Box::pin(sources.follow(flow)).await?;
        }
        Ok(())
    }

    /// Ends the serving of a flow that is to be deleted. Gives the key of its consumer group, if it was served.
    async fn stop(&self, tenant: &Tenant, flow: &Entity) -> Result<Option<String>, ApiError> {
        let is_source = flow.member("flowSpec")["id"] == FROM_HUB;
        if !is_source || self.store.flow_version(&flow.id).await?.is_none() {
            return Ok(None);
        }
        let sources = self.sources()?;
        let Some(served) = sources.served(&flow.id).await? else { return Ok(None) };
        self.write(tenant, vec![Write::SetState { id: &flow.id, enabled: false }]).await?;
        Box::pin(sources.remove(&flow.id)).await?;
        Ok(Some(served.key()))
    }

    /// Generated credentials as they are, once; of all others type and name.
    async fn sender_auth(&self, source: &Entity) -> Result<Value, ApiError> {
        let shown = || source.member("params")["senderAuth"].clone();
        let Some(secret) = source.secret.as_ref().filter(|_| source.is_unseen) else {
            // An open flow has no list.
            return Ok(if shown().is_array() { shown() } else { json!([]) });
        };
        let text = self.secrets.get(secret).await?;
        Ok(serde_json::from_str(text.expose_secret()).unwrap_or_else(|_| without_secrets(text.expose_secret())))
    }

    /// Changes one object, and the items of all flows that it reaches.
    async fn change(
        &self,
        request: &Request,
        caller: &Caller,
        collection: Collection,
        id: &str,
        change: Change<'_>,
        deadline: Instant,
    ) -> Result<Reply, ApiError> {
        let tenant = &caller.tenant;
        let if_match = match change {
            Change::Patch(_) => request.header("if-match"),
            Change::State(_) => request.header("if-match").or(Some("*")),
        };
        let mut rounds = Rounds::until(deadline);
        let mut staged: Option<Staged> = None;
        let changed = loop {
            let round = self.change_once(request, caller, (collection, id), if_match, change, &mut staged).await;
            match round {
                Ok(changed) => break Ok(changed),
                Err(unwritten) => {
                    if let Err(error) = rounds.next(unwritten).await {
                        break Err(error);
                    }
                }
            }
        };
        let Changed { old, new, more } = match changed {
            Ok(changed) => changed,
            Err(error) => {
                if let Some(Staged { secret, is_stored: true, moves: true, .. }) = &staged {
                    self.abandon(&secret.name, &error).await;
                }
                return Err(error);
            }
        };
        match &old.secret {
            Some(before) if new.secret.as_ref().is_some_and(|after| after.name != before.name) => {
                self.secrets.delete(&before.name).await;
            }
            // Also when its secret has not changed: a change before may have ended at this step.
            Some(before) => self.put_in_force(tenant, &new, &before.name, deadline).await?,
            None => {}
        }
        self.follow(&new).await?;
        let mut told = told(&new);
        extend(&mut told, more);
        Ok(Reply::ok(told))
    }

    /// One round of a change. What it stores in `staged` is for the next ones too.
    async fn change_once(
        &self,
        request: &Request,
        caller: &Caller,
        (collection, id): (Collection, &str),
        if_match: Option<&str>,
        change: Change<'_>,
        staged: &mut Option<Staged>,
    ) -> Result<Changed, Unwritten> {
        let tenant = &caller.tenant;
        let old = self.existing(tenant, collection, id).await?;
        match if_match {
            Some(if_match) => check_etag(&old, if_match)?,
            None => return bad_request("If-Match: missing; give the etag").map_err(Unwritten::Failed),
        }
        let mut new = old.clone();
        match change {
            Change::Patch(operations) => {
                new.document = patch::apply(&old.document, operations)?;
                check_patched(&new, operations)?;
            }
            Change::State(state) => drop(new.document.insert("state".to_owned(), state.into())),
        }
        new.document.insert("updatedAt".to_owned(), self.now().into());
        new.document.insert("updatedBy".to_owned(), caller.subject.clone().into());
        new.document.insert("updatedClient".to_owned(), caller.client.clone().into());
        renew_etag(&mut new);
        let secret = self.new_secret(&old, &mut new).await?;
        if matches!(change, Change::Patch(_)) {
            connections::check_secrets(&new)?;
            new.check_size()?;
        }
        self.name_secret(&old, secret, staged).await?;
        if let Some(staged) = &staged {
            new.secret = Some(staged.secret.clone());
        }
        let more = match (collection, change) {
            (Collection::Flows, Change::State(state)) => self.write_state(tenant, &old, &mut new, state).await?,
            (Collection::Flows, Change::Patch(_)) => self.write_flow(request, tenant, &old, &mut new).await?,
            _ => self.write_and_reach(tenant, &old, &new, staged.as_mut()).await?,
        };
        Ok(Changed { old, new, more })
    }

    /// Names the secret of a change before it is stored: what is refused stores none. One that a round before has stored does
    /// again, if nothing has changed of it.
    async fn name_secret(
        &self,
        old: &Entity,
        secret: Option<NewSecret>,
        staged: &mut Option<Staged>,
    ) -> Result<(), ApiError> {
        if secret.is_some() && old.secret.is_none() {
            return unusable("it has no secret that could change; make it anew");
        }
        let name = old.secret.as_ref().map(|secret| secret.name.as_str()).unwrap_or_default();
        let fits = |staged: &Staged| {
            secret.as_ref().is_some_and(|secret| {
                staged.text.expose_secret() == secret.text.expose_secret()
                    && staged.moves == secret.moves
                    && (secret.moves || staged.secret.name == name)
            })
        };
        if staged.as_ref().is_some_and(fits) {
            return Ok(());
        }
        if let Some(Staged { secret, is_stored: true, moves: true, .. }) = staged.take() {
            self.secrets.delete(&secret.name).await;
        }
        *staged = secret.map(|NewSecret { text, moves }| {
            let name = if moves { self.secrets.name("connections") } else { name.to_owned() };
            Staged { secret: SecretVersion::of(name), text, moves, is_stored: false }
        });
        Ok(())
    }

    /// Puts in force that version of a secret which its object names, whichever changes cross.
    async fn put_in_force(&self, tenant: &Tenant, of: &Entity, name: &str, deadline: Instant) -> Result<(), ApiError> {
        let mut rounds = Rounds::until(deadline);
        loop {
            // Read before the object: only what an object named comes into force, so that what it names now is not older.
            let current = self.secrets.current(name).await?;
            let secret = self.store.get(tenant, of.collection, &of.id).await?.and_then(|entity| entity.secret);
            // Else it is as it should be, or the object was moved or deleted meanwhile.
            let Some(secret) = secret.filter(|secret| secret.name == name && secret.version != current) else {
                return Ok(());
            };
            if self.secrets.promote(&secret, &current).await? {
                return Ok(());
            }
            rounds.next(Unwritten::Lost).await?;
        }
    }

    /// What a patched connection or sender gives its secret.
    async fn new_secret(&self, old: &Entity, new: &mut Entity) -> Result<Option<NewSecret>, ApiError> {
        let spec = connection_spec(new.spec_id());
        match (new.collection, spec) {
            (Collection::Connections, Some(spec)) if spec.id == EVENT_HUBS => {
                let before = Credentials::of(old, &self.hosts)?;
                let after = Credentials::take(&mut new.document, Some(old), &self.hosts)?;
                if after.key.is_none()
                    && before.key_name == after.key_name
                    && before.host == after.host
                    && before.hub == after.hub
                {
                    return Ok(None);
                }
                let key = match &after.key {
                    Some(key) => key.clone(),
                    None => self.key(old).await?,
                };
                // Functions read a secret again when the hub refuses its key, and only for the host that they know.
                let moves = before.host != after.host;
                Ok(Some(NewSecret { text: after.secret(key.expose_secret()), moves }))
            }
            (Collection::Connections, _) if new.document.contains_key("auth") => {
                unusable("auth: connections of that spec have no credentials")
            }
            (Collection::SourceConnections, Some(spec)) if spec.kind.is_some() => {
                let shown = old.member("params")["senderAuth"].clone();
                let senders = Senders::take(&mut new.document, Some(&shown))?;
                if senders.secret.is_some() {
                    new.is_unseen = false;
                }
                Ok(senders.secret.map(|text| NewSecret { text, moves: false }))
            }
            _ => Ok(None),
        }
    }

    /// Writes a connection, source or target connection, and the items of the flows that it reaches.
    async fn write_and_reach(
        &self,
        tenant: &Tenant,
        old: &Entity,
        new: &Entity,
        staged: Option<&mut Staged>,
    ) -> Result<Value, Unwritten> {
        if let Some(spec) = connection_spec(new.spec_id())
            && new.collection != Collection::Connections
        {
            let is_target = new.collection == Collection::TargetConnections;
            connections::check(new, spec, is_target, self.max_bytes)?;
            source_flows::check(new, is_target, tenant, &self.hosts, &self.secrets)?;
            let base = self.base(tenant, new, spec).await?;
            if let (EVENT_HUBS, Some(base)) = (spec.id, base) {
                let scope = Credentials::of(&base, &self.hosts)?.hub;
                hub_of(new, scope.as_deref())?;
            }
        }
        let mut writes = vec![Write::Update { entity: new, old_etag: old.etag() }];
        // A name or a key changes however many flows there are.
        let mut claims = Vec::new();
        if flows::seen(old) != flows::seen(new) {
            let (reached, taken) = self.reached(tenant, new).await?;
            writes.extend(reached);
            claims = taken;
        }
        writes.extend(claims.iter().map(Write::HoldsGroup));
        let written = async {
            if let Some(staged) = staged
                && !staged.is_stored
            {
                if staged.moves {
                    self.secrets.create(&staged.secret, &staged.text).await?;
                } else {
                    self.secrets.stage(&staged.secret, &staged.text).await?;
                }
                staged.is_stored = true;
            }
            self.store.write(tenant, writes).await
        };
        let written = written.await;
        self.finish_unwritten(&written, &claims).await;
        written?;
        Ok(json!({}))
    }

    /// Gives back the consumer groups that were taken for a write that failed; unless it was done all the same.
    async fn finish_unwritten(&self, written: &Result<(), Unwritten>, claims: &[Claim]) {
        if let (Err(_), Some(sources)) = (written, &self.sources) {
            for claim in claims {
                Box::pin(sources.finish_or_tell(claim)).await;
            }
        }
    }

    /// The items of the flows that a change of `new` reaches, and that no flow comes meanwhile, which would be made from what is
    /// changed here. Also the consumer groups that were taken for those that read another hub now.
    async fn reached(&self, tenant: &Tenant, new: &Entity) -> Result<(Vec<Write<'static>>, Vec<Claim>), Unwritten> {
        let too_much = |objects: usize, size: &str| {
            let text = format!(
                "{objects} objects{size} depend on it: a change reaches {} of {MAX_BYTES} bytes at most",
                MAX_WRITES - 1
            );
            Unwritten::Failed(ApiError::Conflict(text))
        };
        let user = |user: &String| {
            let (name, id) = user.split_once('#')?;
            Some((Collection::of(name)?, id.to_owned()))
        };
        let (mut flow_ids, mut ends) = (BTreeSet::new(), Vec::new());
        for (collection, id) in new.used_by.iter().filter_map(user) {
            match collection {
                Collection::Flows => drop(flow_ids.insert(id)),
                _ => ends.push((collection, id)),
            }
        }
        if ends.len() >= MAX_WRITES {
            return Err(too_much(ends.len(), ""));
        }
        let mut known = self.store.get_all(tenant, &ends).await?;
        if known.len() < ends.len() {
            return Err(Unwritten::Lost);
        }
        let scope = match new.spec_id() {
            EVENT_HUBS if !known.is_empty() => Credentials::of(new, &self.hosts)?.hub,
            _ => None,
        };
        let mut reached = Vec::new();
        let mut bytes = new.size();
        for end in known.values() {
            // Its own hub must still be one that the key is for.
            if end.spec_id() == EVENT_HUBS {
                hub_of(end, scope.as_deref())?;
            }
            flow_ids.extend(end.used_by.iter().filter_map(|user| user.strip_prefix("flows#")).map(str::to_owned));
            bytes += end.size();
            reached.push(Write::SameUsers(end.clone()));
        }
        if reached.len() + flow_ids.len() >= MAX_WRITES {
            return Err(too_much(reached.len() + flow_ids.len(), ""));
        }
        // The versions first: whoever changes a flow after this makes the write fail.
        let ids: Vec<String> = flow_ids.into_iter().collect();
        let versions = self.store.flow_versions(&ids).await?;
        let names: Vec<Name> = versions.keys().map(|id| (Collection::Flows, id.clone())).collect();
        let flows = self.store.get_all(tenant, &names).await?;
        if flows.len() < names.len() {
            return Err(Unwritten::Lost);
        }
        known.insert((new.collection, new.id.clone()), new.clone());
        let refers = |flow: &Entity| {
            [end_name(flow, Collection::SourceConnections), end_name(flow, Collection::TargetConnections)]
        };
        self.learn(tenant, &mut known, flows.values().flat_map(refers).flatten().collect()).await?;
        let bases: Vec<Name> = known.values().filter_map(base_name).collect();
        self.learn(tenant, &mut known, bases).await?;
        let mut moved = Vec::new();
        for ((_, id), flow) in &flows {
            let [Some(source), Some(target)] = refers(flow).map(|name| known.get(&name?)) else {
                return Err(Unwritten::Lost);
            };
            let base = |end: &Entity| base_name(end).and_then(|name| known.get(&name));
            let item = if flow.member("flowSpec")["id"] == FROM_HUB {
                let sources = self.sources()?;
                let Some(served) = sources.served(id).await? else { return Err(Unwritten::Lost) };
                let is_connection = new.collection == Collection::Connections;
                let text = "flows read hubs by it, which can't move: give their sources another connection";
                let moves = || Unwritten::from(ApiError::Conflict(text.to_owned()));
                // Before its secret is asked for, which is stored last.
                if is_connection && !Credentials::of(new, &self.hosts)?.host.name.eq_ignore_ascii_case(&served.host) {
                    return Err(moves());
                }
                let [source, target] =
                    [source, target].map(|end| End { entity: end.clone(), base: base(end).cloned() });
                let (item, connection) = self.source_item(sources, flow, &source, &target, tenant).await?;
                if served.key() != source_flows::group_key(&item) {
                    if is_connection {
                        return Err(moves());
                    }
                    self.prove(connection).await?;
                }
                moved.push((served, item.clone()));
                item
            } else {
                let Some(connection) = base(target) else { continue };
                let ends = Ends { source, target, connection };
                flows::item(flow, &ends, tenant, &self.hosts, self.max_bytes)?
            };
            bytes += flow_size(&item);
            reached.push(Write::PutFlow { item: item.into(), seen: versions.get(id).copied() });
        }
        if bytes > MAX_BYTES {
            return Err(too_much(reached.len(), &format!(" of {bytes} bytes")));
        }
        // Last, since what is taken must be given back if the rest fails.
        let mut claims = Vec::new();
        for (served, item) in &moved {
            match Box::pin(self.sources()?.take_if_moved(served, item)).await {
                Ok(claim) => claims.extend(claim),
                Err(error) => {
                    let written = Err(error.into());
                    self.finish_unwritten(&written, &claims).await;
                    return Err(written.err().unwrap_or(Unwritten::Lost));
                }
            }
        }
        Ok((reached, claims))
    }

    /// Reads those objects that are not known yet.
    async fn learn(
        &self,
        tenant: &Tenant,
        known: &mut BTreeMap<Name, Entity>,
        mut names: Vec<Name>,
    ) -> Result<(), ApiError> {
        names.retain(|name| !known.contains_key(name));
        known.extend(self.store.get_all(tenant, &names).await?);
        Ok(())
    }

    /// Writes the state of a flow. Whatever else it says, it can be disabled.
    async fn write_state(
        &self,
        tenant: &Tenant,
        old: &Entity,
        new: &mut Entity,
        state: &'static str,
    ) -> Result<Value, Unwritten> {
        self.note_operation(new, if state == "enabled" { "enable" } else { "disable" });
        let mut writes = vec![Write::Update { entity: new, old_etag: old.etag() }];
        // A flow from a hub that is not served has no item.
        let has_item = new.member("flowSpec")["id"] == TO_HUB || self.store.flow_version(&new.id).await?.is_some();
        if has_item {
            writes.push(Write::SetState { id: &new.id, enabled: state == "enabled" });
        }
        self.store.write(tenant, writes).await?;
        Ok(json!({}))
    }

    /// Writes a flow, its item, and what it refers to now. Gives what senders must know, if they send to another source now.
    async fn write_flow(
        &self,
        request: &Request,
        tenant: &Tenant,
        old: &Entity,
        new: &mut Entity,
    ) -> Result<Value, Unwritten> {
        let spec = new.member("flowSpec")["id"].as_str().and_then(flow_spec).ok_or(ApiError::UnknownSpec)?;
        self.note_operation(new, "update");
        let seen = self.store.flow_version(&new.id).await?;
        let (source, target) = self.ends(tenant, new).await?;
        flows::check_ends(spec, &source.entity, &target.entity)?;
        inherit(new, &source, &target);
        new.check_size()?;
        let mut writes = vec![Write::Update { entity: new, old_etag: old.etag() }];
        for end in [&source.entity, &target.entity] {
            match end_name(old, end.collection).filter(|(_, before)| *before != end.id) {
                None => writes.push(Write::Unchanged(end)),
                Some(of) => {
                    writes.push(self.add_user(end, new, end.is_unseen)?);
                    writes.push(Write::RemoveUser { of, user: new.user_name() });
                }
            }
        }
        let mut more = json!({});
        if let (TO_HUB, Some(connection)) = (spec.id, &target.base) {
            let ends = Ends { source: &source.entity, target: &target.entity, connection };
            let item = flows::item(new, &ends, tenant, &self.hosts, self.max_bytes)?;
            if end_name(old, Collection::SourceConnections) != end_name(new, Collection::SourceConnections) {
                more = self.senders_view(request, &item, &source.entity).await?;
            }
            writes.extend([Write::Unchanged(connection), Write::PutFlow { item: item.into(), seen }]);
        }
        let mut claims = Vec::new();
        if let (FROM_HUB, Some(_)) = (spec.id, seen) {
            let sources = self.sources()?;
            let Some(served) = sources.served(&new.id).await? else { return Err(Unwritten::Lost) };
            let (item, connection) = self.source_item(sources, new, &source, &target, tenant).await?;
            if served.key() != source_flows::group_key(&item) {
                self.prove(connection).await?;
            }
            claims.extend(Box::pin(sources.take_if_moved(&served, &item)).await?);
            writes.extend([Write::Unchanged(connection), Write::PutFlow { item: item.into(), seen }]);
        }
        writes.extend(claims.iter().map(Write::HoldsGroup));
        let written = self.store.write(tenant, writes).await;
        self.finish_unwritten(&written, &claims).await;
        written?;
        Ok(more)
    }

    async fn delete(
        &self,
        request: &Request,
        tenant: &Tenant,
        collection: Collection,
        id: &str,
        deadline: Instant,
    ) -> Result<Reply, ApiError> {
        let mut rounds = Rounds::until(deadline);
        loop {
            let entity = self.existing(tenant, collection, id).await?;
            check_etag(&entity, request.header("if-match").unwrap_or("*"))?;
            if !entity.used_by.is_empty() {
                let users: Vec<String> = entity.used_by.iter().take(5).map(|user| user.replace('#', "/")).collect();
                let text = format!("{} [{id}] is in use by {}", collection.name(), users.join(", "));
                return Err(ApiError::Conflict(text));
            }
            let group = if collection == Collection::Flows { self.stop(tenant, &entity).await? } else { None };
            let mut writes = vec![Write::Delete { entity: &entity }];
            let is_served = group.is_some();
            writes.extend(group.map(|key| Write::ReleaseGroup { key, flow: id }));
            // A member of that name elsewhere is only a member.
            let refers_to: &[(Collection, &str)] = match collection {
                Collection::Flows => &[
                    (Collection::SourceConnections, "sourceConnectionIds"),
                    (Collection::TargetConnections, "targetConnectionIds"),
                ],
                Collection::SourceConnections | Collection::TargetConnections => {
                    &[(Collection::Connections, "baseConnectionId")]
                }
                Collection::Connections => &[],
            };
            for &(collection, member) in refers_to {
                let id = match entity.member(member) {
                    Value::String(id) => id,
                    Value::Array(ids) => match ids.first().and_then(Value::as_str) {
                        Some(id) => id,
                        None => continue,
                    },
                    _ => continue,
                };
                writes.push(Write::RemoveUser { of: (collection, id.to_owned()), user: entity.user_name() });
            }
            if collection == Collection::Flows {
                writes.push(Write::DeleteFlow { id: entity.id.clone() });
            }
            match self.store.write(tenant, writes).await {
                Ok(()) => {}
                Err(unwritten) => {
                    rounds.next(unwritten).await?;
                    continue;
                }
            }
            if let Some(secret) = &entity.secret {
                self.secrets.delete(&secret.name).await;
            }
            if let (true, Some(sources)) = (is_served, &self.sources) {
                // Who enabled it meanwhile may have made them anew.
                Box::pin(sources.remove(id)).await?;
                Box::pin(sources.finish_abandoned()).await;
            }
            return Ok(Reply::deleted());
        }
    }

    async fn test(&self, tenant: &Tenant, id: &str, deadline: Instant) -> Result<Reply, ApiError> {
        let connection = self.existing(tenant, Collection::Connections, id).await?;
        let told = |result: bool, detail: String| Ok(Reply::ok(json!({ "result": result, "detail": detail })));
        if connection.spec_id() != EVENT_HUBS {
            return told(true, "connections of that spec have nothing to test".to_owned());
        }
        let ready = async {
            if let Some(secret) = &connection.secret {
                self.put_in_force(tenant, &connection, &secret.name, deadline).await?;
            }
            Ok((Credentials::of(&connection, &self.hosts)?, self.key(&connection).await?))
        };
        let (credentials, key) = match ready.await {
            Ok(ready) => ready,
            // What is stored can't be used: that is what a test is for.
            Err(ApiError::Unusable(problem)) => return told(false, problem),
            Err(error) => return Err(error),
        };
        let look = self.hubs.look(&credentials.host, &credentials.key_name, &key).await;
        match (look, &credentials.hub) {
            (Look::Hubs(list), Some(hub)) => match list.has(hub) {
                Has::Yes => told(true, format!("the key is good, its rule has Manage, {hub} is there")),
                Has::No => told(false, format!("the key is good; the namespace has no event hub {hub}")),
                Has::Unknown => told(true, format!("the key is good, its rule has Manage; {UNSEEN}")),
            },
            (Look::Hubs(_), None) => told(true, "the key is good, its rule has Manage".to_owned()),
            (Look::NoManage, _) => told(
                true,
                "the key is good, its rule has no Manage; that it may send, and that a hub is there, only sending could \
                 prove, which a test does not"
                    .to_owned(),
            ),
            (Look::WrongKey, _) => told(false, "the namespace refuses the key: wrong name or wrong key".to_owned()),
            (Look::Refused(status), _) => told(false, refused(status)),
            (Look::Unreachable(problem), _) => told(false, format!("the namespace can't be reached: {problem}")),
        }
    }

    async fn explore(&self, request: &Request, tenant: &Tenant, id: &str) -> Result<Reply, ApiError> {
        if !matches!(request.parameter("objectType"), None | Some("root")) {
            return bad_request("objectType: expected root");
        }
        let connection = self.existing(tenant, Collection::Connections, id).await?;
        if connection.spec_id() != EVENT_HUBS {
            return unusable("connections of that spec have nothing to explore");
        }
        let credentials = Credentials::of(&connection, &self.hosts)?;
        let key = self.key(&connection).await?;
        match self.hubs.look(&credentials.host, &credentials.key_name, &key).await {
            Look::Hubs(list) => {
                let in_scope =
                    |hub: &String| credentials.hub.as_ref().is_none_or(|scope| scope.eq_ignore_ascii_case(hub));
                let listed = list.names.into_iter().filter(in_scope).map(|hub| {
                    json!({
                        "type": "file", "path": format!("/{hub}"), "name": hub,
                        "canPreview": false, "canFetchSchema": false,
                    })
                });
                Ok(Reply::ok(listed.collect()))
            }
            Look::NoManage => Err(ApiError::Forbidden(
                "the key's rule has no Manage, without which a namespace does not list its event hubs".to_owned(),
            )),
            Look::WrongKey => {
                Err(ApiError::Forbidden("the namespace refuses the key: wrong name or wrong key".to_owned()))
            }
            Look::Refused(status) => Err(ApiError::Forbidden(refused(status))),
            Look::Unreachable(problem) => unusable(format!("the namespace can't be reached: {problem}")),
        }
    }

    async fn write(&self, tenant: &Tenant, writes: Vec<Write<'_>>) -> Result<(), ApiError> {
        self.store.write(tenant, writes).await.map_err(|unwritten| match unwritten {
            Unwritten::Failed(error) => error,
            // Of new objects only.
            Unwritten::Lost => BUSY,
        })
    }
}

/// Rounds of read, decide and write.
struct Rounds {
    count: u32,
    began: Instant,
    deadline: Instant,
}

impl Rounds {
    fn until(deadline: Instant) -> Self {
        Self { count: 0, began: Instant::now(), deadline }
    }

    /// Goes on after a write that others were faster than, if the next round can end in time.
    async fn next(&mut self, unwritten: Unwritten) -> Result<(), ApiError> {
        if let Unwritten::Failed(error) = unwritten {
            return Err(error);
        }
        self.count += 1;
        // Not in step with the others.
        let [random] = random::<1>();
        let pause = (PAUSE * self.count).mul_f32(0.5 + f32::from(random) / 255.0);
        // More flows may be reached by then, and it is not the last step.
        let longest = self.began.elapsed() * 2;
        if self.count >= ROUNDS || Instant::now() + pause + longest > self.deadline {
            return Err(BUSY);
        }
        sleep(pause).await;
        self.began = Instant::now();
        Ok(())
    }
}

fn refused(status: u16) -> String {
    format!(
        "the namespace responded with {status}, which does not show whether it accepts the key; check that it accepts SAS keys, and its IP \
         rules"
    )
}

const UNSEEN: &str =
    "the namespace has more event hubs than it lists: that this one is there, only sending could prove";
const BUSY: ApiError = ApiError::Unavailable("others change the same objects now; send it again");

#[derive(Clone, Copy)]
enum Change<'a> {
    Patch(&'a [patch::Operation]),
    State(&'static str),
}

struct NewSecret {
    text: SecretString,
    /// To another host: under a new name, so that nobody reads one host's key for the other.
    moves: bool,
}

/// A secret that a change names, and stores once in all its rounds.
struct Staged {
    secret: SecretVersion,
    text: SecretString,
    /// Under a new name.
    moves: bool,
    is_stored: bool,
}

/// What a round has written, and what its answer adds.
struct Changed {
    old: Entity,
    new: Entity,
    more: Value,
}

/// The end of that sort which a flow refers to.
fn end_name(flow: &Entity, collection: Collection) -> Option<Name> {
    Some((collection, flow.member(ends_member(collection))[0].as_str()?.to_owned()))
}

fn base_name(end: &Entity) -> Option<Name> {
    Some((Collection::Connections, end.member("baseConnectionId").as_str()?.to_owned()))
}

fn extend(body: &mut Value, more: Value) {
    if let (Value::Object(body), Value::Object(more)) = (body, more) {
        body.extend(more);
    }
}

fn ends_member(collection: Collection) -> &'static str {
    match collection {
        Collection::SourceConnections => "sourceConnectionIds",
        _ => "targetConnectionIds",
    }
}

fn inherit(flow: &mut Entity, source: &End, target: &End) {
    let told = flows::inherited(&[(&source.entity, source.base.as_ref())], &[(&target.entity, target.base.as_ref())]);
    flow.document.insert("inheritedAttributes".to_owned(), told);
}

/// A string with its quotes in it.
fn renew_etag(entity: &mut Entity) {
    let etag = format!("\"{}\"", uuid());
    entity.document.insert("version".to_owned(), etag.clone().into());
    entity.document.insert("etag".to_owned(), etag.into());
}

/// Byte for byte, quotes included; `*` is any.
fn check_etag(entity: &Entity, if_match: &str) -> Result<(), ApiError> {
    if if_match == "*" || if_match == entity.etag() {
        return Ok(());
    }
    Err(ApiError::Stale { given: if_match.to_owned(), current: entity.etag().to_owned() })
}

/// A patched object must be one that could have been created.
fn check_patched(entity: &Entity, operations: &[patch::Operation]) -> Result<(), ApiError> {
    let carries_mask = operations.iter().any(|operation| match &operation.change {
        patch::Change::Add(value) | patch::Change::Replace(value) => has_mask(value),
        patch::Change::Remove => false,
    });
    if entity.collection == Collection::Connections && carries_mask {
        return unusable("the patch carries the mask of a key; give the key, or leave it out");
    }
    schemas::check(&schemas::body(entity.collection), &Value::Object(entity.document.clone()))
}

fn spec_of(body: &Document, collection: Collection) -> Result<&'static ConnectionSpec, ApiError> {
    const MEMBER: &str = "connectionSpec";
    let (id, version) = spec_members(body, MEMBER);
    let spec = connection_spec(id).filter(|spec| spec.collections.contains(&collection));
    check_version(MEMBER, version, spec)
}

fn flow_spec_of(body: &Document) -> Result<&'static FlowSpec, ApiError> {
    const MEMBER: &str = "flowSpec";
    let (id, version) = spec_members(body, MEMBER);
    check_version(MEMBER, version, flow_spec(id))
}

fn spec_members<'b>(body: &'b Document, member: &str) -> (&'b str, Option<&'b str>) {
    let text = |name: &str| body.get(member).and_then(|spec| spec[name].as_str());
    (text("id").unwrap_or_default(), text("version"))
}

fn check_version<T>(member: &'static str, version: Option<&str>, spec: Option<T>) -> Result<T, ApiError> {
    let spec = spec.ok_or(ApiError::UnknownSpec)?;
    match version {
        None => Err(ApiError::SpecVersionMissing(member)),
        Some(VERSION) => Ok(spec),
        Some(_) => unusable(format!("{member}.version: expected {VERSION}")),
    }
}

/// `validate`: whether creating asks the namespace, and whether it must answer.
fn validation(request: &Request) -> Result<Option<bool>, ApiError> {
    match request.parameter("validate") {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => bad_request("validate: expected true or false"),
    }
}
