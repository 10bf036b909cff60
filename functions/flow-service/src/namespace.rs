//! The host that a `namespace` names. It decides where keys are sent: only Event Hubs' own suffixes are allowed, and for
//! local use the emulators that a setting names.

/// The suffixes of the Azure clouds: global, China, US government.
const SUFFIXES: [&str; 3] =
    [".servicebus.windows.net", ".servicebus.chinacloudapi.cn", ".servicebus.usgovcloudapi.net"];

#[derive(Debug, Clone)]
pub struct Hosts {
    suffix: &'static str,
    /// Host and port of emulators, spoken to over plain http.
    emulators: Vec<String>,
}

/// Where a namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// With its port, if it is an emulator's.
    pub name: String,
    pub is_emulator: bool,
}

impl Host {
    pub fn base_url(&self) -> String {
        format!("{}://{}", if self.is_emulator { "http" } else { "https" }, self.name)
    }
}

impl Hosts {
    /// With the suffix that completes bare names, and the allowed emulators.
    pub fn new(suffix: Option<&str>, emulators: Option<&str>) -> Result<Self, String> {
        let suffix = match suffix {
            None => SUFFIXES[0],
            Some(text) => SUFFIXES
                .into_iter()
                .find(|known| known.trim_start_matches('.') == text.trim().trim_start_matches('.'))
                .ok_or_else(|| format!("expected one of {}", SUFFIXES.join(", ")))?,
        };
        let emulators = emulators.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty());
        Ok(Self { suffix, emulators: emulators.map(str::to_ascii_lowercase).collect() })
    }

    /// Whether a local setting names the host, with its port.
    pub fn is_emulator(&self, host: &str) -> bool {
        self.emulators.iter().any(|emulator| emulator == host)
    }

    /// The host of a bare name, a full host or a URL; `None` when keys must not be sent there.
    pub fn host(&self, namespace: &str) -> Option<Host> {
        let text = namespace.to_ascii_lowercase();
        let text = ["sb://", "amqps://", "https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(&text);
        let name = text.strip_suffix('/').unwrap_or(text);
        if self.is_emulator(name) {
            return Some(Host { name: name.to_owned(), is_emulator: true });
        }
        if namespace.to_ascii_lowercase().starts_with("http://") {
            return None;
        }
        let label = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
        match label {
            Some(label) if is_label(label) => Some(Host { name: name.to_owned(), is_emulator: false }),
            None if is_label(name) && name == namespace.to_ascii_lowercase() => {
                Some(Host { name: format!("{name}{}", self.suffix), is_emulator: false })
            }
            _ => None,
        }
    }
}

/// One label of a domain, as namespaces are named.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_event_hubs_of_azure_are_hosts() {
        let hosts = Hosts::new(None, None).unwrap();
        for (namespace, host) in [
            ("contoso", Some("contoso.servicebus.windows.net")),
            ("Contoso.servicebus.windows.net", Some("contoso.servicebus.windows.net")),
            ("sb://contoso.servicebus.chinacloudapi.cn/", Some("contoso.servicebus.chinacloudapi.cn")),
            ("https://contoso.servicebus.usgovcloudapi.net", Some("contoso.servicebus.usgovcloudapi.net")),
            ("", None),
            ("{NAMESPACE}", None),
            ("a.b.servicebus.windows.net", None),
            (".servicebus.windows.net", None),
            ("servicebus.windows.net", None),
            ("contoso.servicebus.windows.net.evil.example", None),
            ("contoso.evil.example", None),
            ("evil.example/.servicebus.windows.net", None),
            ("evil.example#.servicebus.windows.net", None),
            ("x@evil.servicebus.windows.net", None),
            ("contoso.servicebus.windows.net:443", None),
            ("contoso.servicebus.windows.net/x", None),
            ("contoso.servicebus.windows.net.", None),
            ("http://contoso.servicebus.windows.net", None),
            ("127.0.0.1:5300", None),
            ("localhost/", None),
            ("sb://contoso", None),
            (" contoso", None),
            ("cont\u{f6}so", None),
        ] {
            assert_eq!(hosts.host(namespace).map(|host| host.name).as_deref(), host, "{namespace}");
        }
    }

    #[test]
    fn emulators_are_allowed_by_name_only() {
        let hosts = Hosts::new(Some("servicebus.chinacloudapi.cn"), Some("127.0.0.1:5300, 127.0.0.1:5301")).unwrap();
        let emulator = hosts.host("sb://127.0.0.1:5301/").unwrap();
        assert_eq!(emulator.base_url(), "http://127.0.0.1:5301");
        assert_eq!(hosts.host("127.0.0.1:5302"), None);
        assert_eq!(hosts.host("contoso").unwrap().base_url(), "https://contoso.servicebus.chinacloudapi.cn");
        assert!(Hosts::new(Some(".example.net"), None).is_err());
    }
}
