//! Secret texts that functions read from a variable or from Secrets Manager.

use secrecy::SecretString;
use tokio::time::Instant;

use super::{Aws, AwsError};
use crate::environment::{Environment, SettingsError};

/// The place of a secret text: the environment, or Secrets Manager.
#[derive(Debug, Clone)]
pub struct SecretSource {
    pub variable: &'static str,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Environment(SecretString),
    SecretsManager(String),
}

impl SecretSource {
    /// Reads the variable `value`, or `secret_id`, which names a secret. Only one of them may be set.
    ///
    /// # Errors
    /// Fails if both are set.
    pub fn read(
        environment: &Environment,
        value: &'static str,
        secret_id: &'static str,
    ) -> Result<Option<Self>, SettingsError> {
        match (environment.get(value), environment.get(secret_id)) {
            (Some(_), Some(_)) => Err(SettingsError::new(secret_id, format!("{value} is set too; set one of them"))),
            (Some(text), None) => Ok(Some(Self { variable: value, place: Place::Environment(text.into()) })),
            (None, Some(id)) => Ok(Some(Self { variable: secret_id, place: Place::SecretsManager(id) })),
            (None, None) => Ok(None),
        }
    }

    /// A secret that a flow's item or an envelope names.
    pub fn secret(variable: &'static str, id: &str) -> Self {
        Self { variable, place: Place::SecretsManager(id.to_owned()) }
    }

    /// Name or ARN of the secret, if it is one.
    pub fn secret_id(&self) -> Option<&str> {
        match &self.place {
            Place::Environment(_) => None,
            Place::SecretsManager(id) => Some(id),
        }
    }

    /// Whether another read can return another text.
    pub fn can_change(&self) -> bool {
        self.secret_id().is_some()
    }

    /// Reads the text.
    pub async fn text(&self, aws: &Aws, deadline: Instant) -> Result<SecretString, AwsError> {
        match &self.place {
            Place::Environment(text) => Ok(text.clone()),
            Place::SecretsManager(id) => aws.secret(id, deadline).await,
        }
    }
}

impl AwsError {
    /// The error of a setting whose secret could not be read.
    pub fn of_setting(&self, variable: &'static str) -> SettingsError {
        SettingsError { variable, problem: self.to_string(), is_transient: self.is_transient() }
    }
}
