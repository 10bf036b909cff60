//! SAS tokens, compared with tokens of three independent SDKs.

use serde::Deserialize;
use shared::event_hubs::token::sas::{expiry, sign};

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    id: String,
    resource: String,
    key_name: String,
    key: String,
    expiry: u64,
    accepted_tokens: Vec<String>,
}

#[test]
fn tokens_equal_those_of_other_implementations() {
    let vectors: Vectors = serde_json::from_str(include_str!("../fixtures/eventhubs/sas_vectors.json")).unwrap();
    assert_eq!(vectors.vectors.len(), 10);
    for vector in vectors.vectors {
        let token = sign(&vector.resource, &vector.key_name, &vector.key.into(), vector.expiry);
        assert_eq!(expiry(&token), Ok(vector.expiry), "{}", vector.id);
        let token = secrecy::ExposeSecret::expose_secret(&token).to_owned();
        assert!(vector.accepted_tokens.contains(&token), "{}: {token}", vector.id);
    }
}
