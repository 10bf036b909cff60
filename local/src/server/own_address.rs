//! Guards the control routes of `make run`: they have no password, so they respond only to names that point to this machine.
//! Another site can let its own name point here (DNS rebinding), but its requests then contain that name in `Host`.
//!
//! Data routes (webhooks, the hub, the inlet) are not guarded: containers use other names for them, and they check credentials.

use std::net::IpAddr;

use axum::Json;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, StatusCode};
use serde_json::json;

/// The beginning of the path of every control route, on whichever port.
const CONTROL: [&str; 3] = ["/_local", "/_emulator", "/_inlet"];

/// Refuses requests to control routes under the name of another machine. It is a layer around a whole router, so that a new
/// route below these paths is guarded too.
pub async fn guard_control_routes(request: Request, next: Next) -> Response {
    let is_control = CONTROL.iter().any(|start| request.uri().path().starts_with(start));
    if is_control && own_address(request.headers()).is_none() {
        let error =
            "control routes respond only to an IP address or localhost: open the address that `make run` printed";
        return (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response();
    }
    next.run(request).await
}

/// The `Host` of a request, if it is an IP address or `localhost`.
pub fn own_address(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let authority = host.parse::<Authority>().ok()?;
    let name = authority.host();
    let is_own = name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_own.then_some(host)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_own_names() {
        let own = |host: &str| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())]);
            own_address(&headers).is_some()
        };
        for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "192.168.1.5:9000"] {
            assert!(own(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
            assert!(!own(host), "{host}");
        }
        assert_eq!(own_address(&HeaderMap::new()), None);
    }
}
