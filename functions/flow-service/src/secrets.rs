//! Keys and senders' credentials, in Secrets Manager. They are written from here, and read for checks of a connection.
//!
//! Functions read the version that is in force (`AWSCURRENT`). A changed credential is stored beside it first, then named by
//! the object's item, then put in force: so the table decides which one that is, and every step can be done again.

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};

use crate::errors::ApiError;

/// A deleted secret can be had back for as long.
const RECOVERY_DAYS: i64 = 7;

/// The label of the version that is in force.
const CURRENT: &str = "AWSCURRENT";
/// The label of the version that was stored last; one without any label may be removed.
const STAGED: &str = "STAGED";

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    pub name: String,
    pub version: String,
}

impl SecretVersion {
    /// A new version of that name.
    pub fn of(name: String) -> Self {
        Self { name, version: uuid() }
    }
}

pub struct Secrets {
    client: Client,
    /// Of the names of all secrets: the right to read them is given by it.
    prefix: String,
}

impl Secrets {
    pub fn new(client: Client, prefix: String) -> Self {
        Self { client, prefix }
    }

    /// A new name.
    pub fn name(&self, of: &str) -> String {
        format!("{}{of}/{}", self.prefix, uuid())
    }

    /// Stores a text under a new name, in force at once.
    pub async fn create(&self, secret: &SecretVersion, text: &SecretString) -> Result<(), ApiError> {
        self.client
            .create_secret()
            .name(&secret.name)
            .client_request_token(&secret.version)
            .secret_string(text.expose_secret())
            .send()
            .await
            .map_err(|error| failed("CreateSecret", &error))?;
        Ok(())
    }

    /// Stores a text beside the one that is in force.
    pub async fn stage(&self, secret: &SecretVersion, text: &SecretString) -> Result<(), ApiError> {
        self.client
            .put_secret_value()
            .secret_id(&secret.name)
            .client_request_token(&secret.version)
            .secret_string(text.expose_secret())
            .version_stages(STAGED)
            .send()
            .await
            .map_err(|error| failed("PutSecretValue", &error))?;
        Ok(())
    }

    pub async fn get(&self, secret: &SecretVersion) -> Result<SecretString, ApiError> {
        let answer = self.client.get_secret_value().secret_id(&secret.name).version_id(&secret.version).send().await;
        let answer = answer.map_err(|error| failed("GetSecretValue", &error))?;
        Ok(answer.secret_string.unwrap_or_default().into())
    }

    /// As other services name it.
    pub async fn arn(&self, name: &str) -> Result<String, ApiError> {
        let answer = self.client.get_secret_value().secret_id(name).version_stage(CURRENT).send().await;
        let answer = answer.map_err(|error| failed("GetSecretValue", &error))?;
        Ok(answer.arn.unwrap_or_default())
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The version that is in force.
    pub async fn current(&self, name: &str) -> Result<String, ApiError> {
        let answer = self.client.get_secret_value().secret_id(name).version_stage(CURRENT).send().await;
        let GetSecretValueOutput { version_id, .. } = answer.map_err(|error| failed("GetSecretValue", &error))?;
        Ok(version_id.unwrap_or_default())
    }

    /// Puts a version in force, if `instead_of` still is; else gives `false`.
    pub async fn promote(&self, secret: &SecretVersion, instead_of: &str) -> Result<bool, ApiError> {
        let update = self.client.update_secret_version_stage().secret_id(&secret.name).version_stage(CURRENT);
        match update.remove_from_version_id(instead_of).move_to_version_id(&secret.version).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("InvalidParameterException") => Ok(false),
            Err(error) => Err(failed("UpdateSecretVersionStage", &error)),
        }
    }

    /// Of an object that is gone: what can't be deleted is logged, and hurts nobody.
    pub async fn delete(&self, name: &str) {
        let delete = self.client.delete_secret().secret_id(name).recovery_window_in_days(RECOVERY_DAYS);
        if let Err(error) = delete.send().await {
            failed("DeleteSecret", &error);
        }
    }
}

fn failed<E: ProvideErrorMetadata>(operation: &'static str, error: &SdkError<E>) -> ApiError {
    let code = error.code().unwrap_or("none");
    tracing::error!(operation, code, "Secrets Manager does not do it");
    refusal(code)
}

/// What a caller is told of an answer's code.
fn refusal(code: &str) -> ApiError {
    match code {
        "LimitExceededException" => ApiError::TooMany(
            "Secrets Manager keeps no more versions of this credential, or no more secrets, for now: it was changed too often \
             within a day; try again tomorrow",
        ),
        // Deleted, or about to be.
        "ResourceNotFoundException" | "InvalidRequestException" => ApiError::Unusable(
            "the secret is not in Secrets Manager any more: restore it, or make the object anew".to_owned(),
        ),
        _ => ApiError::Unavailable("the store of secrets does not answer now; send it again"),
    }
}

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// A version 4 UUID. It stands in the webhook's address, so that nobody should guess it.
pub fn uuid() -> String {
    uuid_of(random(), 4)
}

/// A UUID of these bytes, but for version and variant.
pub fn uuid_of(bytes: [u8; 16], version: u128) -> String {
    let bits = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | version << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// 256 random bits as text.
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(random::<32>())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_may_pass_by_itself_is_to_be_sent_again() {
        for (code, status) in [
            ("LimitExceededException", 429),
            ("ResourceNotFoundException", 400),
            ("InvalidRequestException", 400),
            ("InternalServiceError", 503),
            ("none", 503),
        ] {
            assert_eq!(super::refusal(code).status(), status, "{code}");
        }
    }

    #[test]
    fn uuids_have_version_and_variant() {
        let uuid = super::uuid();
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"));
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        assert_ne!(uuid, super::uuid());
        assert_eq!(super::token().len(), 43);
    }
}
