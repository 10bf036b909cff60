//! The HTTP client of the AWS SDK: the one of the process, so that its calls follow the same rules for connections. The
//! SDK's own client drops only the one connection that failed, and its retry may get the next dead one.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::{HeaderName, HeaderValue, Method};
use reqwest::{Request, Url};
use shared::http::{Http, TransportKind, Via};
use tokio::time::Instant;

/// Timeout of one attempt; two of them fit the time of a call.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum size of a response, in bytes: those of DynamoDB and Lambda have a few megabytes at most.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// `ttl=20261125T120000Z; attempt=2; max=3`
const ATTEMPT: &str = "amz-sdk-request";

/// Sends the SDK's requests.
#[derive(Clone)]
pub struct SdkHttp(pub Http);

impl std::fmt::Debug for SdkHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SdkHttp")
    }
}

impl HttpClient for SdkHttp {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for SdkHttp {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let http = self.0.clone();
        HttpConnectorFuture::new(async move { send(&http, &request).await })
    }
}

async fn send(http: &Http, request: &HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let via = via(request);
    let bound = Instant::now() + ATTEMPT_TIMEOUT;
    let failed = |error: shared::http::TransportError| match error.kind {
        TransportKind::Timeout => ConnectorError::timeout(error.into()),
        _ => ConnectorError::io(error.into()),
    };
    let response = http.send(converted(request)?, via, bound).await.map_err(failed)?;
    let status = response.status().try_into().map_err(|_| invalid("the status of the response"))?;
    let headers = response.headers().clone();
    let body = response.read(MAX_RESPONSE, bound).await.whole().map_err(failed)?;
    let mut answer = HttpResponse::new(status, SdkBody::from(body));
    for (name, value) in &headers {
        if let Ok(value) = value.to_str() {
            answer.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(answer)
}

/// A retry has a new connection.
fn via(request: &HttpRequest) -> Via {
    let parts = request.headers().get(ATTEMPT).unwrap_or_default().split(';');
    let attempt = parts.filter_map(|part| part.trim().strip_prefix("attempt=")?.parse::<u32>().ok()).next();
    if attempt.is_some_and(|attempt| attempt > 1) { Via::NewConnection } else { Via::Pool }
}

fn converted(request: &HttpRequest) -> Result<Request, ConnectorError> {
    let method = Method::from_bytes(request.method().as_bytes()).map_err(|_| invalid("the method"))?;
    let url = Url::parse(request.uri()).map_err(|_| invalid("the endpoint"))?;
    let mut converted = Request::new(method, url);
    for (name, value) in request.headers() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("the name of a header"))?;
        let value = HeaderValue::from_str(value).map_err(|_| invalid("a header"))?;
        converted.headers_mut().append(name, value);
    }
    let body = request.body().bytes().ok_or_else(|| invalid("a body that is not in memory"))?;
    *converted.body_mut() = Some(body.to_vec().into());
    Ok(converted)
}

fn invalid(what: &str) -> ConnectorError {
    ConnectorError::user(format!("failed to use {what} of a call").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_has_a_new_connection_and_requests_keep_their_parts() {
        let mut request = HttpRequest::new(SdkBody::from("{}"));
        request.set_method("POST").unwrap();
        request.set_uri("http://127.0.0.1:9/path?a=b").unwrap();
        for (attempt, expected) in [
            ("attempt=1", Via::Pool),
            ("attempt=1; max=3", Via::Pool),
            ("attempt=2; max=3", Via::NewConnection),
            ("ttl=20261125T120000Z; attempt=3; max=3", Via::NewConnection),
        ] {
            request.headers_mut().insert(ATTEMPT, attempt);
            assert_eq!(via(&request), expected, "{attempt}");
        }
        request.headers_mut().append("x-amz-target", "T");
        let converted = converted(&request).unwrap();
        assert_eq!((converted.method(), converted.url().as_str()), (&Method::POST, "http://127.0.0.1:9/path?a=b"));
        assert_eq!(converted.headers()["x-amz-target"], "T");
        assert_eq!(converted.body().unwrap().as_bytes(), Some(&b"{}"[..]));
    }
}
