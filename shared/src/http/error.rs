//! Why a request got no response: the one translation of the errors of the HTTP client, its TLS library and the resolver.

use std::error::Error;
use std::{fmt, io};

use rustls::CertificateError;

/// A request that got no response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportError {
    pub kind: TransportKind,
    /// Text for the log: the errors of the libraries, without the URL.
    detail: String,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// The resolver knows that the name of the host does not exist.
    NoSuchHost,
    /// The peer's certificate was not accepted; the text says why.
    Certificate(&'static str),
    /// The peer does not speak TLS, or not as this client does.
    Tls,
    /// The proxy asks for credentials that it did not get.
    ProxyCredentials,
    /// No connection, for a reason that may be transient.
    Unreachable,
    ConnectionLost,
    Timeout,
    /// The body of the response is longer than its reader allows.
    TooLong,
}

impl TransportKind {
    /// Whether there was a connection.
    pub(super) fn was_connected(self) -> bool {
        matches!(self, Self::ConnectionLost | Self::Timeout | Self::TooLong)
    }

    /// What an operator should look at, where time alone does not help. `setting` names where the address comes from.
    pub fn hint(self, setting: &str) -> Option<String> {
        match self {
            Self::NoSuchHost => {
                Some(format!("the host name does not exist, or this network's DNS does not know it: check {setting}"))
            }
            Self::Certificate(problem) => Some(format!(
                "the certificate was not accepted ({problem}): check {setting}; if a proxy inspects TLS, set EXTRA_CA_CERTS to its root certificate"
            )),
            Self::Tls => Some(format!("the TLS handshake failed: check {setting}, and that no proxy alters TLS")),
            Self::ProxyCredentials => Some("the proxy refuses its credentials: check HTTPS_PROXY".to_owned()),
            Self::Unreachable | Self::ConnectionLost | Self::Timeout | Self::TooLong => None,
        }
    }
}

impl TransportError {
    pub(super) fn new(kind: TransportKind) -> Self {
        let detail = match kind {
            TransportKind::Timeout => "no response in time",
            TransportKind::TooLong => "the response is too long",
            TransportKind::NoSuchHost => "no such host",
            TransportKind::Certificate(problem) => problem,
            TransportKind::Tls => "TLS handshake failed",
            TransportKind::ProxyCredentials => "the proxy refuses its credentials",
            TransportKind::Unreachable => "no connection",
            TransportKind::ConnectionLost => "connection lost",
        };
        Self { kind, detail: detail.to_owned() }
    }

    pub(crate) fn timeout() -> Self {
        Self::new(TransportKind::Timeout)
    }

    pub(super) fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let kind = if error.is_connect() {
            chain(&error).find_map(kind_of).unwrap_or(TransportKind::Unreachable)
        } else if error.is_timeout() {
            TransportKind::Timeout
        } else {
            TransportKind::ConnectionLost
        };
        match kind {
            TransportKind::Timeout => Self::timeout(),
            kind => {
                let texts: Vec<String> = chain(&error).map(ToString::to_string).collect();
                Self { kind, detail: texts.join(": ") }
            }
        }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for TransportError {}

/// An error and its sources.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The kind of failure that one error of the chain shows, if the connection could not be opened.
fn kind_of(error: &(dyn Error + 'static)) -> Option<TransportKind> {
    if let Some(tls) = error.downcast_ref() {
        return of_tls(tls);
    }
    // The source of such an error is that of the error in it.
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => kind_of(wrapped),
        None => of_text(&error.to_string()),
    }
}

fn of_tls(error: &rustls::Error) -> Option<TransportKind> {
    let problem = match error {
        rustls::Error::InvalidCertificate(problem) => problem,
        rustls::Error::NoCertificatesPresented => return Some(TransportKind::Certificate("none was presented")),
        rustls::Error::InvalidMessage(_)
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::AlertReceived(_) => return Some(TransportKind::Tls),
        _ => return None,
    };
    Some(TransportKind::Certificate(match problem {
        CertificateError::UnknownIssuer => "its issuer is not trusted",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired, or the clock is wrong",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or the clock is wrong"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host name"
        }
        CertificateError::Revoked => "it has been revoked",
        _ => "it is not valid",
    }))
}

/// The resolver's result and the proxy's refusal have no type of their own. `EAI_NONAME` and `EAI_NODATA` are final;
/// `EAI_AGAIN` (glibc: "Temporary failure in name resolution", musl: "Try again") is not.
fn of_text(text: &str) -> Option<TransportKind> {
    const NO_SUCH_HOST: [&str; 5] = [
        // glibc
        "Name or service not known",
        "No address associated with hostname",
        // musl
        "Name does not resolve",
        "Name has no usable address",
        // macOS
        "nodename nor servname provided",
    ];
    if NO_SUCH_HOST.iter().any(|known| text.contains(known)) {
        return Some(TransportKind::NoSuchHost);
    }
    text.contains("proxy authorization required").then_some(TransportKind::ProxyCredentials)
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, InvalidMessage};

    use super::*;

    #[test]
    fn a_name_that_does_not_exist_differs_from_a_resolver_that_failed() {
        let lookup = |text: &str| of_text(&format!("failed to lookup address information: {text}"));
        for text in ["Name or service not known", "No address associated with hostname", "Name does not resolve"] {
            assert_eq!(lookup(text), Some(TransportKind::NoSuchHost), "{text}");
        }
        for text in ["Temporary failure in name resolution", "Try again", "System error"] {
            assert_eq!(lookup(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_an_operator_can_fix_has_a_hint() {
        // The TLS connector wraps it twice.
        let tls = |error: rustls::Error| kind_of(&io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error)));
        let certificate = |error: CertificateError| tls(rustls::Error::InvalidCertificate(error)).unwrap();
        for (kind, named) in [
            (TransportKind::NoSuchHost, "DNS"),
            (certificate(CertificateError::UnknownIssuer), "issuer is not trusted"),
            (certificate(CertificateError::UnknownIssuer), "EXTRA_CA_CERTS"),
            (certificate(CertificateError::Expired), "expired"),
            (certificate(CertificateError::NotValidYet), "clock"),
            (certificate(CertificateError::NotValidForName), "another host"),
            (tls(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)).unwrap(), "TLS handshake"),
            (tls(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)).unwrap(), "TLS handshake"),
            (TransportKind::ProxyCredentials, "HTTPS_PROXY"),
        ] {
            let hint = kind.hint("`Endpoint`").unwrap();
            assert!(hint.contains(named), "{kind:?}: {hint}");
        }
        for kind in [TransportKind::Unreachable, TransportKind::ConnectionLost, TransportKind::Timeout] {
            assert_eq!(kind.hint("`Endpoint`"), None);
        }
        assert_eq!(kind_of(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
