//! Keys and senders' credentials, in Secrets Manager. They are written from here, and read for checks of a connection.

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};

use crate::errors::ApiError;

/// A deleted secret can be had back for as long.
const RECOVERY_DAYS: i64 = 7;

pub struct Secrets {
    client: Client,
    /// Of the names of all secrets: the right to read them is given by it.
    prefix: String,
}

impl Secrets {
    pub fn new(client: Client, prefix: String) -> Self {
        Self { client, prefix }
    }

    /// Stores a text under a new name, and gives the name.
    pub async fn create(&self, of: &str, secret: &SecretString) -> Result<String, ApiError> {
        let name = format!("{}{of}/{}", self.prefix, uuid());
        self.client
            .create_secret()
            .name(&name)
            .secret_string(secret.expose_secret())
            .send()
            .await
            .map_err(|error| failed("CreateSecret", &error))?;
        Ok(name)
    }

    pub async fn put(&self, name: &str, secret: &SecretString) -> Result<(), ApiError> {
        let put = self.client.put_secret_value().secret_id(name).secret_string(secret.expose_secret());
        put.send().await.map_err(|error| failed("PutSecretValue", &error)).map(drop)
    }

    pub async fn get(&self, name: &str) -> Result<SecretString, ApiError> {
        let answer = self.client.get_secret_value().secret_id(name).send().await;
        let answer = answer.map_err(|error| failed("GetSecretValue", &error))?;
        Ok(answer.secret_string.unwrap_or_default().into())
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
    tracing::error!(operation, code = error.code().unwrap_or("none"), "Secrets Manager does not answer");
    ApiError::Unavailable("the store of secrets does not answer now; send it again")
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// A version 4 UUID. It stands in the webhook's address, so that nobody should guess it.
pub fn uuid() -> String {
    let bits = u128::from_be_bytes(random::<16>()) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
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
    fn uuids_have_version_and_variant() {
        let uuid = super::uuid();
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"));
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        assert_ne!(uuid, super::uuid());
        assert_eq!(super::token().len(), 43);
    }
}
