//! Bringing the rules into a node's namespace, and ending the UDP connections that lived on old ones.

use std::{io, net::IpAddr};

use super::{
    ProxyMode, iptables,
    model::{Backend, Entry},
    nftables,
};
use crate::{
    lab::{LabError, Node, Station},
    table::{Family, Port},
};

/// kube-proxy on one node: what it wrote last.
#[derive(Default)]
pub(super) struct NodeProxy {
    entries: Vec<Entry>,
    iptables: [Option<iptables::Written>; 2],
    nftables: [Option<nftables::Written>; 2],
}

impl NodeProxy {
    /// Rewrites the rules of a node for these Services.
    pub fn sync(
        &mut self,
        mode: ProxyMode,
        node: &Node,
        entries: &[Entry],
    ) -> Result<(), LabError> {
        if self.entries == entries {
            return Ok(());
        }
        let (name, station) = (node.name(), node.station());
        for (nth, family) in Family::ALL.into_iter().enumerate() {
            match mode {
                ProxyMode::Iptables => {
                    if self.iptables[nth].is_none() && family == Family::V4 {
                        station.worker.sysctl("ipv4/conf/all/route_localnet", "1")?;
                    }
                    let old = self.iptables[nth].as_ref().map(|old| &old.chains);
                    let written = iptables::rules(family, entries, name, old);
                    let program = match family {
                        Family::V4 => "iptables-restore",
                        Family::V6 => "ip6tables-restore",
                    };
                    run(station, program, &["--noflush"], &written.text)?;
                    self.iptables[nth] = Some(written);
                }
                ProxyMode::Nftables => {
                    let old = self.nftables[nth].as_ref();
                    let written = nftables::rules(family, entries, name, old);
                    run(station, "nft", &["-f", "-"], &written.text)?;
                    self.nftables[nth] = Some(written);
                }
            }
        }
        for stale in stale(&self.entries, entries) {
            forget(station, &stale)?;
        }
        self.entries = entries.to_vec();
        Ok(())
    }
}

/// Which UDP connections kube-proxy takes out of the connection table: datagrams that go on would go on to a backend that
/// is no more, or to nobody, for as long as they come. `None` for the backend: all of the address.
struct Stale {
    family: Family,
    address: Option<IpAddr>,
    port: u16,
    backend: Option<IpAddr>,
}

fn stale(before: &[Entry], after: &[Entry]) -> Vec<Stale> {
    let udp = |entry: &&Entry| matches!(entry.port, Port::Udp(_));
    let like = |entry: &Entry, all: &[Entry]| -> Vec<Backend> {
        let same = |other: &&Entry| {
            (&other.service, other.port, other.family) == (&entry.service, entry.port, entry.family)
        };
        all.iter()
            .find(same)
            .map(|other| other.backends.clone())
            .unwrap_or_default()
    };
    let mut stale = Vec::new();
    for entry in before.iter().filter(udp) {
        let left = like(entry, after);
        for gone in entry.backends.iter().filter(|old| !left.contains(old)) {
            stale.extend(all_of(entry, Some(gone.address)));
        }
    }
    for entry in after.iter().filter(udp) {
        if !entry.backends.is_empty() && like(entry, before).is_empty() {
            stale.extend(all_of(entry, None));
        }
    }
    stale
}

fn all_of(entry: &Entry, backend: Option<IpAddr>) -> Vec<Stale> {
    let virtual_addresses = [entry.cluster].into_iter().chain(entry.outer_addresses());
    let at = |address, port| Stale {
        family: entry.family,
        address,
        port,
        backend,
    };
    virtual_addresses
        .map(|address| at(Some(address), entry.number()))
        .chain(entry.node_port.map(|port| at(None, port)))
        .collect()
}

fn forget(station: &Station, stale: &Stale) -> Result<(), LabError> {
    let family = match stale.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let port = stale.port.to_string();
    let mut arguments = vec!["-D", "-f", family, "-p", "udp", "--orig-port-dst", &port];
    let (address, backend) = (
        stale.address.map(|address| address.to_string()),
        stale.backend.map(|backend| backend.to_string()),
    );
    if let Some(address) = &address {
        arguments.extend(["--orig-dst", address]);
    }
    if let Some(backend) = &backend {
        arguments.extend(["--dst-nat", backend]);
    }
    match run(station, "conntrack", &arguments, "") {
        // It says so when there was none.
        Err(LabError::Program { said, .. }) if said.contains("0 flow entries") => Ok(()),
        result => result.map(|_| ()),
    }
}

/// All rules of a namespace.
pub(super) fn show(station: &Station) -> Result<String, LabError> {
    run(station, "nft", &["list", "ruleset"], "")
}

fn run(
    station: &Station,
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, LabError> {
    match station.run_program(program, arguments, input) {
        Err(LabError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Err(LabError::NoProgram(program))
        }
        Err(LabError::Program {
            command,
            namespace,
            said,
        }) if !input.is_empty() => Err(LabError::Program {
            command,
            namespace,
            said: format!("{said}\nit was given:\n{input}"),
        }),
        result => result,
    }
}
