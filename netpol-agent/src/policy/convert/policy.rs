//! NetworkPolicy (networking.k8s.io/v1), with the checks of pkg/apis/networking/validation.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Fault, Refusal, check_key, key, selector, slim::NetworkPolicy, syntax::Field};
use crate::policy::object::{
    ObjectKey, Policy, PolicyPeer, PolicyPort, PortMatch, Protocol, Rule, Selector,
};

/// A network policy.
pub fn policy(object: &NetworkPolicy) -> Result<Policy, Refusal> {
    let key = key(&object.metadata);
    read(object, &key).map_err(|fault| fault.of("NetworkPolicy", &key))
}

fn read(object: &NetworkPolicy, key: &ObjectKey) -> Result<Policy, Fault> {
    check_key(&object.metadata, key)?;
    let absent = NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&absent);
    let field = Field::new("spec");
    let selector = match &spec.pod_selector {
        Some(given) => selector(&field.child("podSelector"), given)?,
        None => Selector::default(),
    };
    let types = Types::of(spec)?;
    // Rules of a direction that the policy does not have are checked, and mean nothing.
    let mut ingress = Vec::new();
    for (at, given) in spec.ingress.iter().flatten().enumerate() {
        let field = field.child("ingress").at(at);
        ingress.push(Rule {
            peers: peers(&field.child("from"), given.from.as_deref())?,
            ports: ports(&field.child("ports"), given.ports.as_deref())?,
        });
    }
    let mut egress = Vec::new();
    for (at, given) in spec.egress.iter().flatten().enumerate() {
        let field = field.child("egress").at(at);
        egress.push(Rule {
            peers: peers(&field.child("to"), given.to.as_deref())?,
            ports: ports(&field.child("ports"), given.ports.as_deref())?,
        });
    }
    Ok(Policy {
        key: key.clone(),
        selector,
        ingress: types.ingress.then_some(ingress),
        egress: types.egress.then_some(egress),
    })
}

/// The directions in which a policy isolates.
struct Types {
    ingress: bool,
    egress: bool,
}

impl Types {
    /// `policyTypes`; absent or empty it is Ingress, and Egress if there is at least one egress rule.
    fn of(spec: &NetworkPolicySpec) -> Result<Self, Fault> {
        let given = spec.policy_types.as_deref().unwrap_or_default();
        if given.is_empty() {
            return Ok(Self {
                ingress: true,
                egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
            });
        }
        if given.len() > 2 {
            return Err(Field::new("spec.policyTypes")
                .fault("has more than two items: name each direction at most once"));
        }
        let mut types = Self {
            ingress: false,
            egress: false,
        };
        for (at, name) in given.iter().enumerate() {
            match name.as_str() {
                "Ingress" => types.ingress = true,
                "Egress" => types.egress = true,
                _ => {
                    return Err(Field::new("spec.policyTypes").at(at).fault(format!(
                        "{name:?} is not a policy type: use Ingress or Egress"
                    )));
                }
            }
        }
        Ok(types)
    }
}

/// `from` or `to`; absent or empty it is every peer.
fn peers(
    field: &Field,
    given: Option<&[NetworkPolicyPeer]>,
) -> Result<Option<Vec<PolicyPeer>>, Fault> {
    let given = given.unwrap_or_default();
    let peers: Result<Vec<_>, _> = given
        .iter()
        .enumerate()
        .map(|(at, item)| peer(&field.at(at), item))
        .collect();
    Ok(Some(peers?).filter(|peers| !peers.is_empty()))
}

fn peer(field: &Field, given: &NetworkPolicyPeer) -> Result<PolicyPeer, Fault> {
    let pods = match &given.pod_selector {
        Some(given) => Some(selector(&field.child("podSelector"), given)?),
        None => None,
    };
    let namespaces = match &given.namespace_selector {
        Some(given) => Some(selector(&field.child("namespaceSelector"), given)?),
        None => None,
    };
    match (&given.ip_block, namespaces, pods) {
        (None, None, None) => Err(field.fault(
            "names no peer: give it a podSelector, a namespaceSelector or an ipBlock, or leave the whole list out for \
             every peer",
        )),
        (Some(given), None, None) => block(&field.child("ipBlock"), given),
        (Some(_), _, _) => Err(field.child("ipBlock").fault(
            "stands beside a selector: an item is either an ipBlock or selectors; make two items for either of both",
        )),
        (None, None, Some(pods)) => Ok(PolicyPeer::Pods(pods)),
        (None, Some(namespaces), pods) => {
            Ok(PolicyPeer::Namespaces(namespaces, pods.unwrap_or_default()))
        }
    }
}

fn block(field: &Field, given: &IPBlock) -> Result<PolicyPeer, Fault> {
    let cidr = prefix(&field.child("cidr"), &given.cidr)?;
    let mut except = Vec::new();
    for (at, text) in given.except.iter().flatten().enumerate() {
        let field = field.child("except").at(at);
        let inner = prefix(&field, text)?;
        if !cidr.contains(&inner) || cidr == inner {
            return Err(field.fault(format!(
                "{text} is not a smaller block inside {}: write a part of the cidr, or leave it out",
                given.cidr
            )));
        }
        except.push(inner);
    }
    except.sort_unstable();
    except.dedup();
    Ok(PolicyPeer::Block { cidr, except })
}

/// An address prefix, its host bits masked off.
fn prefix(field: &Field, text: &str) -> Result<IpNet, Fault> {
    let net: IpNet = text.parse().map_err(|_| {
        field.fault(format!(
            "{text:?} is not an address block: write it as 10.1.0.0/16, 10.1.2.3/32 or 2001:db8::/64"
        ))
    })?;
    if let IpNet::V6(six) = net
        && let Some(four) = six.addr().to_ipv4_mapped()
    {
        let Some(bits) = six.prefix_len().checked_sub(96) else {
            return Err(field.fault(format!(
                "{text} is an IPv4 address with the prefix length of an IPv6 block: write {} if that is what you mean, \
                 or an IPv4 block",
                six.trunc()
            )));
        };
        return Err(field.fault(format!(
            "{text} is an IPv4 block in IPv6 form, which no packet matches: write {four}/{bits}"
        )));
    }
    Ok(net.trunc())
}

/// `ports`; absent or empty it is every port of every protocol.
fn ports(
    field: &Field,
    given: Option<&[NetworkPolicyPort]>,
) -> Result<Option<Vec<PolicyPort>>, Fault> {
    let given = given.unwrap_or_default();
    let ports: Result<Vec<_>, _> = given
        .iter()
        .enumerate()
        .map(|(at, item)| port(&field.at(at), item))
        .collect();
    Ok(Some(ports?).filter(|ports| !ports.is_empty()))
}

fn port(field: &Field, given: &NetworkPolicyPort) -> Result<PolicyPort, Fault> {
    let protocol: Protocol = field
        .child("protocol")
        .protocol(given.protocol.as_deref())?;
    let end_field = field.child("endPort");
    let port = match (&given.port, given.end_port) {
        (None, None) => PortMatch::All,
        (None, Some(_)) => {
            return Err(end_field.fault("has no port to start from: add port, or remove endPort"));
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = field.child("port").port_number(*first)?;
            let last = match end {
                Some(end) => end_field.port_number(end)?,
                None => first,
            };
            if last < first {
                return Err(end_field.fault(format!("{last} is below port {first}: swap the two")));
            }
            PortMatch::Range(first, last)
        }
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err(end_field.fault("needs a port number: a range cannot start at a port name"));
        }
        (Some(IntOrString::String(name)), None) => {
            field.child("port").port_name(name)?;
            PortMatch::Named(name.clone())
        }
    };
    Ok(PolicyPort { protocol, port })
}
