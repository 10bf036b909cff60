//! The secrets that the control API or an operator writes and the functions read.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

/// The secret of a connection string: `{"username":"$ConnectionString","password":"Endpoint=sb://…"}`, the form that
/// Lambda's Kafka source reads too.
pub fn connection_secret(connection_string: &str) -> SecretString {
    json!({ "username": "$ConnectionString", "password": connection_string }).to_string().into()
}

/// The connection string of a secret, which is in the form of [`connection_secret`] or the bare string.
///
/// # Errors
/// Names the two forms.
pub fn connection_string_of(secret: &SecretString) -> Result<SecretString, &'static str> {
    #[derive(Deserialize)]
    struct BasicAuth {
        password: SecretString,
    }
    if !secret.expose_secret().trim_start().starts_with('{') {
        return Ok(secret.clone());
    }
    serde_json::from_str::<BasicAuth>(secret.expose_secret()).map(|secret| secret.password).map_err(
        |_| "expected a connection string, or {\"username\":\"$ConnectionString\",\"password\":\"Endpoint=sb://…\"}",
    )
}

/// The secret that makes senders of a flow present a bearer token. `SenderAuth::parse` reads it.
pub fn bearer_sender_auth(token: &str) -> SecretString {
    json!([{ "type": "bearer", "secret": token }]).to_string().into()
}

/// The client whose access tokens an inlet accepts. Its secret is `{"client_id":…,"client_secret":…}`.
#[derive(Debug, Clone, Deserialize)]
pub struct ClientCredentials {
    pub client_id: String,
    pub client_secret: SecretString,
}

impl ClientCredentials {
    /// Reads the text of a secret.
    ///
    /// # Errors
    /// Names the form.
    pub fn parse(secret: &SecretString) -> Result<Self, &'static str> {
        serde_json::from_str(secret.expose_secret())
            .map_err(|_| "the secret is not {\"client_id\":\"…\",\"client_secret\":\"…\"}")
    }

    /// The text of the secret.
    pub fn to_secret(&self) -> SecretString {
        let Self { client_id, client_secret } = self;
        json!({ "client_id": client_id, "client_secret": client_secret.expose_secret() }).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sender_auth::{Credential, SenderAuth};

    #[test]
    fn a_connection_string_is_read_as_it_was_written_or_bare() {
        let read = |secret: SecretString| connection_string_of(&secret).map(|text| text.expose_secret().to_owned());
        for text in ["Endpoint=a", "Endpoint=\"a\""] {
            assert_eq!(read(connection_secret(text)).as_deref(), Ok(text));
            assert_eq!(read(text.into()).as_deref(), Ok(text));
        }
        assert!(read(r#"{"user":"x"}"#.into()).is_err());
    }

    #[test]
    fn generated_sender_credentials_are_a_bearer_token() {
        let SenderAuth::AnyOf(credentials) = SenderAuth::parse(&bearer_sender_auth("token")).unwrap() else {
            panic!("a list of credentials")
        };
        assert!(matches!(credentials[..], [Credential::Bearer { .. }]));
    }

    #[test]
    fn client_credentials_are_read_as_they_were_written() {
        let client = ClientCredentials { client_id: "id".to_owned(), client_secret: "\"s\"".into() };
        let read = ClientCredentials::parse(&client.to_secret()).unwrap();
        assert_eq!((read.client_id.as_str(), read.client_secret.expose_secret()), ("id", "\"s\""));
        assert!(!format!("{read:?}").contains("\"s\""));
        assert!(ClientCredentials::parse(&"{}".into()).is_err());
    }
}
