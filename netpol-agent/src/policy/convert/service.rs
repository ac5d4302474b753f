//! Services: only where they are reached. Who answers, kube-proxy decides.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Fault, Refusal, check_key, key, slim, syntax::Field};
use crate::policy::object::{ObjectKey, Service};

/// A Service.
pub fn service(object: &slim::Service) -> Result<Service, Refusal> {
    let key = key(&object.metadata);
    read(object, &key).map_err(|fault| fault.of("Service", &key))
}

fn read(object: &slim::Service, key: &ObjectKey) -> Result<Service, Fault> {
    check_key(&object.metadata, key)?;
    let addresses = texts(object)
        .into_iter()
        .map(|(field, text)| field.ip_address(text))
        .collect::<Result<BTreeSet<IpAddr>, Fault>>()?;
    Ok(Service {
        key: key.clone(),
        addresses,
    })
}

/// Every field that holds an address, and what it says.
fn texts(object: &slim::Service) -> Vec<(Field, &str)> {
    let mut texts = Vec::new();
    if let Some(spec) = &object.spec {
        let field = Field::new("spec");
        texts.extend(
            spec.cluster_ip
                .as_deref()
                .map(|ip| (field.child("clusterIP"), ip)),
        );
        texts.extend(list(&field.child("clusterIPs"), &spec.cluster_ips));
        // A headless Service says None, and one to which nothing is assigned yet nothing.
        texts.retain(|(_, text)| !matches!(*text, "None" | ""));
        texts.extend(list(&field.child("externalIPs"), &spec.external_ips));
        texts.extend(
            spec.load_balancer_ip
                .as_deref()
                .filter(|ip| !ip.is_empty())
                .map(|ip| (field.child("loadBalancerIP"), ip)),
        );
    }
    let field = Field::new("status.loadBalancer.ingress");
    let balancer = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    for (at, ingress) in ingress.into_iter().flatten().enumerate() {
        // Many have a host name in its place.
        let ip = ingress.ip.as_deref().filter(|ip| !ip.is_empty());
        texts.extend(ip.map(|ip| (field.at(at).child("ip"), ip)));
    }
    texts
}

fn list<'a>(field: &Field, texts: &'a Option<Vec<String>>) -> Vec<(Field, &'a str)> {
    let texts = texts.iter().flatten().enumerate();
    texts
        .map(|(at, text)| (field.at(at), text.as_str()))
        .collect()
}
