//! What a caller is told when a request can't be done. The interface has no single shape for it: each case has its own.

use serde_json::{Value, json};

use crate::routes::Collection;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    TokenMissing,
    TokenInvalid,
    ApiKeyMissing,
    OrganisationMissing,
    /// The token does not name the organisation.
    ProfileInvalid,
    /// Headers, query or body are not what the call takes.
    BadRequest(String),
    UnknownSpec,
    /// Of `connectionSpec` or `flowSpec`.
    SpecVersionMissing(&'static str),
    /// The body is well formed, and says something that can't be.
    Unusable(String),
    Forbidden(String),
    NoSuchRoute,
    NotFound {
        collection: Collection,
        id: String,
    },
    /// With what is allowed instead.
    MethodNotAllowed(String),
    Conflict(String),
    Stale {
        given: String,
        current: String,
    },
    TooLarge(String),
    TooMany(&'static str),
    /// Ours: the store does not answer, or another change was always faster.
    Unavailable(&'static str),
}

impl ApiError {
    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::OrganisationMissing | Self::UnknownSpec | Self::Unusable(_) => 400,
            Self::TokenInvalid => 401,
            Self::TokenMissing | Self::ApiKeyMissing | Self::ProfileInvalid | Self::Forbidden(_) => 403,
            Self::NoSuchRoute | Self::NotFound { .. } => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::Conflict(_) => 409,
            Self::Stale { .. } => 412,
            Self::TooLarge(_) => 413,
            Self::SpecVersionMissing(_) => 422,
            Self::TooMany(_) => 429,
            Self::Unavailable(_) => 503,
        }
    }

    pub fn body(&self) -> Value {
        let coded = |code: &str, message: &str| json!({ "error_code": code, "message": message });
        let message = |message: &str| json!({ "message": message });
        let detailed = |text: String| json!({ "errorMessage": text, "errorDetails": text });
        let problem = |title: &str, detail: &str| json!({ "type": "about:blank", "status": self.status(), "title": title, "detail": detail });
        match self {
            Self::TokenMissing => coded("403010", "Oauth token is missing."),
            Self::TokenInvalid => coded("401013", "Oauth token is not valid"),
            Self::ApiKeyMissing => coded("403000", "Api Key is required"),
            Self::OrganisationMissing => coded("400003", "Missing header"),
            Self::ProfileInvalid => coded("403025", "Profile is not valid"),
            Self::BadRequest(detail) => problem("BadRequestError", detail),
            Self::UnknownSpec => message("Please provide a valid spec id"),
            Self::SpecVersionMissing(of) => message(&format!("{of}.version 'version' is required for spec info")),
            Self::Unusable(text) | Self::Forbidden(text) => message(text),
            Self::NoSuchRoute => message("Not Found"),
            Self::NotFound { collection, id } => detailed(format!("{} not found with id = [{id}]", collection.name())),
            Self::MethodNotAllowed(allowed) => message(&format!("expected {allowed}")),
            Self::Conflict(text) => detailed(text.clone()),
            Self::Stale { given, current } => {
                detailed(format!("Supplied version=[{given}] does not match the current version on entity=[{current}]"))
            }
            Self::TooLarge(detail) => problem("ContentTooLargeError", detail),
            Self::TooMany(text) | Self::Unavailable(text) => message(text),
        }
    }
}

pub fn bad_request<T>(detail: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::BadRequest(detail.into()))
}

pub fn unusable<T>(message: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::Unusable(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_as_documented() {
        for (error, status, body) in [
            (ApiError::TokenMissing, 403, json!({ "error_code": "403010", "message": "Oauth token is missing." })),
            (ApiError::TokenInvalid, 401, json!({ "error_code": "401013", "message": "Oauth token is not valid" })),
            (ApiError::ApiKeyMissing, 403, json!({ "error_code": "403000", "message": "Api Key is required" })),
            (ApiError::OrganisationMissing, 400, json!({ "error_code": "400003", "message": "Missing header" })),
            (ApiError::ProfileInvalid, 403, json!({ "error_code": "403025", "message": "Profile is not valid" })),
            (ApiError::UnknownSpec, 400, json!({ "message": "Please provide a valid spec id" })),
            (
                ApiError::SpecVersionMissing("connectionSpec"),
                422,
                json!({ "message": "connectionSpec.version 'version' is required for spec info" }),
            ),
        ] {
            assert_eq!((error.status(), error.body()), (status, body));
        }
        let missing = ApiError::NotFound { collection: Collection::Flows, id: "ca5c6e9a-".to_owned() }.body();
        assert_eq!(missing["errorMessage"], "flows not found with id = [ca5c6e9a-]");
        assert_eq!(missing["errorMessage"], missing["errorDetails"]);
        let stale = ApiError::Stale { given: "\"a\"".to_owned(), current: "\"b\"".to_owned() }.body();
        let text = "Supplied version=[\"a\"] does not match the current version on entity=[\"b\"]";
        assert_eq!(stale, json!({ "errorMessage": text, "errorDetails": text }));
    }
}
