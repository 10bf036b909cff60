//! The smallest function of this stack, with which the functions are compared. It accepts any event, posts bytes that the driver
//! prepared with a token that the driver signed, and returns a prepared response. It reads nothing of the event
//! (`lambda_runtime` checks that it is JSON), logs nothing and retries nothing.
//!
//! `FLOOR_POSTS` is a file with one line per request: the address, a tab, and the body.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

fn main() -> Result<(), Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), Error> {
    let token: &'static HeaderValue = Box::leak(Box::new(HeaderValue::from_str(&std::env::var("FLOOR_TOKEN")?)?));
    let response: &'static RawValue = Box::leak(RawValue::from_string(std::env::var("FLOOR_RESPONSE")?)?);
    let posts: &'static str = Box::leak(std::fs::read_to_string(std::env::var("FLOOR_POSTS")?)?.into());
    let posts: Vec<(&str, Bytes)> = posts
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(url, body)| (url, Bytes::from_static(body.as_bytes())))
        .collect();
    let (posts, http) = (&*posts.leak(), client()?);
    let handler = service_fn(move |_: LambdaEvent<IgnoredAny>| {
        let http = http.clone();
        async move {
            match posts {
                [(url, body)] => post(&http, url, body, token).await?,
                posts => drop(try_join_all(posts.iter().map(|(url, body)| post(&http, url, body, token))).await?),
            }
            Ok::<_, Error>(response)
        }
    });
    lambda_runtime::run(handler).await
}

async fn post(http: &reqwest::Client, url: &str, body: &Bytes, token: &HeaderValue) -> Result<(), Error> {
    let response = http
        .post(url)
        .header(AUTHORIZATION, token)
        .header(CONTENT_TYPE, "application/vnd.microsoft.servicebus.json")
        .body(body.clone())
        .send()
        .await?;
    let status = response.status();
    response.bytes().await?;
    if status.as_u16() == 201 { Ok(()) } else { Err(format!("the sink responded with {status}").into()) }
}

/// An HTTP client with TLS on ring and one root.
#[expect(clippy::disallowed_methods, reason = "the floor does not depend on `shared`")]
fn client() -> Result<reqwest::Client, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(std::env::var("EXTRA_CA_CERTS")?)? {
        roots.add(certificate?)?;
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).http1_only().build()?)
}
