//! The AWS services of a local system, and what it creates in them.

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use shared::aws::{Aws, AwsError, Service};
use shared::clock::Clock;
use shared::contract::secret::ClientCredentials;
use shared::environment::Environment;
use tokio::time::Instant;

use super::{
    CREATE_TIMEOUT, FLOWS_TABLE, IMS_CLIENT, IMS_SECRET, IMS_SECRET_OF_FLOWS, LOG_GROUP, MAX_REDELIVERIES,
    SENDERS_SECRET_ID, UndeliveredQueues, VISIBILITY_TIMEOUT,
};
use crate::{cloudwatch, console, queue_source};

/// A client for the AWS services at `endpoint`, with credentials that moto accepts.
pub fn local_aws(http: shared::http::Http, endpoint: String, region: String) -> Aws {
    let environment = Environment::from_fn(move |name| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_REGION" => Some(region.clone()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("local".to_owned()),
        _ => None,
    });
    Aws::new(http, environment, Clock::system())
}

/// The definition of the table of flows, as the template has it.
pub fn flows_table(name: &str) -> Value {
    let attribute = |name: &str| json!({ "AttributeName": name, "AttributeType": "S" });
    let key = |name: &str| json!([{ "AttributeName": name, "KeyType": "HASH" }]);
    let index = json!({
        "IndexName": "collection", "KeySchema": key("collection"), "Projection": { "ProjectionType": "ALL" },
    });
    json!({
        "TableName": name, "AttributeDefinitions": [attribute("pk"), attribute("collection")], "KeySchema": key("pk"),
        "GlobalSecondaryIndexes": [index], "BillingMode": "PAY_PER_REQUEST",
    })
}

/// Creates the log group, the secrets, the table of flows, and the parking and rejected queues.
pub(super) async fn create_resources(aws: &Aws, connection_string: &str) -> Result<UndeliveredQueues, AwsError> {
    cloudwatch::create(aws, LOG_GROUP, Instant::now() + CREATE_TIMEOUT).await?;
    create_secret(aws, SENDERS_SECRET_ID, &console::secret(connection_string)).await?;
    let (client_id, client_secret) = (IMS_CLIENT.0.to_owned(), IMS_CLIENT.1.into());
    let client = ClientCredentials { client_id, client_secret }.to_secret();
    for name in [IMS_SECRET, IMS_SECRET_OF_FLOWS] {
        create_secret(aws, name, client.expose_secret()).await?;
    }
    aws.call(Service::DynamoDb, "CreateTable", &flows_table(FLOWS_TABLE), Instant::now() + CREATE_TIMEOUT).await?;
    let (parking_queue_url, parking_dead_letters_url) =
        queue_source::create_queue(aws, "parking", VISIBILITY_TIMEOUT, MAX_REDELIVERIES).await?;
    // The rejected queue has no consumer, and so needs no dead-letter queue.
    let rejected_queue_url = queue_source::create_storage_queue(aws, "rejected").await?;
    Ok(UndeliveredQueues { parking_queue_url, parking_dead_letters_url, rejected_queue_url })
}

async fn create_secret(aws: &Aws, name: &str, text: &str) -> Result<(), AwsError> {
    let body = json!({ "Name": name, "SecretString": text });
    aws.call(Service::SecretsManager, "CreateSecret", &body, Instant::now() + CREATE_TIMEOUT).await.map(drop)
}
