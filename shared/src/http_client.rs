//! The one HTTP client of a process: HTTP/1.1, ring, compiled-in roots. The default crypto library costs 30 ms of CPU at
//! the first handshake of every cold start, and the system's roots most of a millisecond.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Peers close idle connections after 240 s; a sandbox may be frozen for longer than its clock tells.
const POOL_IDLE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Builds the client. `extra_ca_certs` is the path of a PEM file with further roots.
#[expect(clippy::disallowed_methods, reason = "the one place that builds a client")]
pub fn build(extra_ca_certs: Option<&str>) -> Result<reqwest::Client, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra_ca_certs {
        let unreadable =
            |error: rustls::pki_types::pem::Error| format!("can't read PEM certificates from `{path}`: {error}");
        let mut certificates = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            roots
                .add(certificate.map_err(unreadable)?)
                .map_err(|error| format!("unusable certificate in `{path}`: {error}"))?;
            certificates += 1;
        }
        if certificates == 0 {
            return Err(format!("no certificate in `{path}`; expected a PEM file"));
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .build()
        .map_err(|error| error.to_string())
}
