//! The secrets that the control API or an operator writes and the functions read.

use secrecy::{ExposeSecret, SecretString};

/// The connection string of a secret: `{"username":"$ConnectionString","password":"Endpoint=sb://…"}`, the form that
/// Lambda's Kafka source reads too, or the bare string.
pub fn connection_string_of(secret: &SecretString) -> Result<SecretString, &'static str> {
    #[derive(serde::Deserialize)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_secret_are_read() {
        let read = |text: &str| connection_string_of(&text.into()).map(|text| text.expose_secret().to_owned());
        assert_eq!(read("Endpoint=a").as_deref(), Ok("Endpoint=a"));
        assert_eq!(read(r#"{"username":"$ConnectionString","password":"Endpoint=a"}"#).as_deref(), Ok("Endpoint=a"));
        assert!(read(r#"{"user":"x"}"#).is_err());
    }
}
