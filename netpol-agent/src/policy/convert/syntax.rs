//! Paths of fields, and the syntax of single values (k8s.io/apimachinery/pkg/util/validation).

use std::net::IpAddr;

use super::Fault;
use crate::policy::object::Protocol;

/// The path of a field.
#[derive(Clone)]
pub(super) struct Field(String);

impl Field {
    pub(super) fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn child(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    pub(super) fn at(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(super) fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault {
            field: self.0.clone(),
            reason: reason.into(),
        }
    }

    /// An address. An IPv4 address in IPv6 form would be another one to the tables than the packets carry.
    pub(super) fn ip_address(&self, text: &str) -> Result<IpAddr, Fault> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| self.fault(format!("{text:?} is not an IP address")))?;
        match address {
            IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => Err(self.fault(format!(
                "{text} is an IPv4 address in IPv6 form: write it as IPv4"
            ))),
            address => Ok(address),
        }
    }

    /// A protocol, TCP when absent.
    pub(super) fn protocol(&self, text: Option<&str>) -> Result<Protocol, Fault> {
        match text {
            None | Some("TCP") => Ok(Protocol::Tcp),
            Some("UDP") => Ok(Protocol::Udp),
            Some("SCTP") => Ok(Protocol::Sctp),
            Some(other) => {
                Err(self.fault(format!("{other:?} is not a protocol: use TCP, UDP or SCTP")))
            }
        }
    }

    /// A port number.
    pub(super) fn port_number(&self, number: i32) -> Result<u16, Fault> {
        u16::try_from(number)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| self.fault(format!("{number} is not a port: use 1 to 65535")))
    }

    /// An IANA_SVC_NAME (RFC 6335 section 5.1).
    pub(super) fn port_name(&self, name: &str) -> Result<(), Fault> {
        let wrong = if name.is_empty() || name.len() > 15 {
            "must have 1 to 15 characters"
        } else if !name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            "may only have lower-case letters, digits and '-'"
        } else if !name.bytes().any(|b| b.is_ascii_lowercase()) {
            "must have at least one letter"
        } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
            "must not start or end with '-', or have two in a row"
        } else {
            return Ok(());
        };
        Err(self.fault(format!("{name:?} is not a port name: it {wrong}")))
    }

    /// The name of a pod or a policy.
    pub(super) fn object_name(&self, name: &str) -> Result<(), Fault> {
        if is_dns_name(name) {
            return Ok(());
        }
        Err(self.fault(format!(
            "{name:?} is not a name: use up to 253 lower-case letters, digits, '-' or '.', with a letter or digit at the \
             ends of each part"
        )))
    }

    /// The name of a namespace.
    pub(super) fn namespace_name(&self, name: &str) -> Result<(), Fault> {
        if is_dns_name(name) && name.len() <= 63 && !name.contains('.') {
            return Ok(());
        }
        Err(self.fault(format!(
            "{name:?} is not the name of a namespace: use up to 63 lower-case letters, digits or '-', with a letter or \
             digit at both ends"
        )))
    }

    /// A label key: an optional DNS name and '/', then a name.
    pub(super) fn label_key(&self, key: &str) -> Result<(), Fault> {
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key),
        };
        if name.is_empty() || !is_label_name(name) {
            return Err(self.fault(format!(
                "{key:?} is not a label key: the name needs 1 to 63 letters, digits, '-', '_' or '.', with a letter or \
                 digit at both ends"
            )));
        }
        if prefix.is_some_and(|prefix| !is_dns_name(prefix)) {
            return Err(self.fault(format!(
                "{key:?} is not a label key: what stands before '/' must be a lower-case DNS name"
            )));
        }
        Ok(())
    }

    /// A label value: empty, or a name.
    pub(super) fn label_value(&self, value: &str) -> Result<(), Fault> {
        if value.is_empty() || is_label_name(value) {
            return Ok(());
        }
        Err(self.fault(format!(
            "{value:?} is not a label value: use up to 63 letters, digits, '-', '_' or '.', with a letter or digit at \
             both ends"
        )))
    }
}

fn ends_are_alphanumeric(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().last()];
    ends.iter()
        .all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

fn is_label_name(text: &str) -> bool {
    text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends_are_alphanumeric(text)
}

/// RFC 1123 subdomain.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            label
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && ends_are_alphanumeric(label)
        })
}
