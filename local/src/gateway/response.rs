//! The HTTP response that a function's response describes.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// The HTTP response for what a function returned. Without `statusCode`, the whole of it is the body.
pub(super) fn response(returned: &[u8]) -> Response {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct FullForm {
        status_code: u16,
        #[serde(default)]
        headers: Option<BTreeMap<String, Value>>,
        #[serde(default)]
        body: Option<String>,
        #[serde(default)]
        is_base64_encoded: Option<bool>,
        #[serde(default)]
        cookies: Option<Vec<String>>,
    }
    let full_form = match serde_json::from_slice::<Value>(returned) {
        Ok(Value::Object(members)) if members.contains_key("statusCode") => Value::Object(members),
        Ok(_) => return ([(CONTENT_TYPE, "application/json")], returned.to_vec()).into_response(),
        Err(_) => return message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    };
    let formed = || -> Option<Response> {
        let form: FullForm = serde_json::from_value(full_form).ok()?;
        let body = form.body.unwrap_or_default();
        let body = if form.is_base64_encoded == Some(true) { STANDARD.decode(body).ok()? } else { body.into_bytes() };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(form.status_code).ok()?;
        for (name, value) in form.headers.unwrap_or_default() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            response.headers_mut().insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        for cookie in form.cookies.unwrap_or_default() {
            response.headers_mut().append(SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
        }
        // The server sets it itself.
        response.headers_mut().remove(CONTENT_LENGTH);
        if !response.headers().contains_key(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain;charset=UTF-8"));
        }
        Some(response)
    };
    formed().unwrap_or_else(|| message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"))
}

/// A response of the gateway itself.
pub(super) fn message(status: StatusCode, text: &str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], json!({ "message": text }).to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_a_function_returns_becomes_the_response() {
        let failed = r#"{"message":"Internal Server Error"}"#;
        for (returned, status, body) in [
            (r#"{"statusCode":202,"headers":{"X-A":"b"},"body":"x","cookies":["a=b","c=d"]}"#, 202, "x"),
            (r#"{"statusCode":200,"body":"eHg=","isBase64Encoded":true}"#, 200, "xx"),
            (r#"{"statusCode":204}"#, 204, ""),
            (r#"{"a":1}"#, 200, r#"{"a":1}"#),
            (r#""text""#, 200, r#""text""#),
            (r#"{"statusCode":"x"}"#, 500, failed),
            ("no json", 500, failed),
        ] {
            let response = response(returned.as_bytes());
            assert_eq!(response.status(), status, "{returned}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, body, "{returned}");
        }
        let formed = response(br#"{"statusCode":202,"headers":{"X-A":"b"},"cookies":["a=b","c=d"]}"#);
        assert_eq!(formed.headers()["x-a"], "b");
        assert_eq!(formed.headers().get_all("set-cookie").iter().count(), 2);
    }
}
