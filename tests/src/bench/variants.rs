//! The programs on the devices of two pods: none, empty ones, or the agent's.

use std::{fmt, net::IpAddr, os::fd::OwnedFd, time::Duration};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, tc::SchedClassifierLinkId},
    sys::{Stats, enable_stats},
};
use netpol_agent::{
    dataplane::{self, Dataplane, HookChoice, Sizes},
    object,
};
use netpol_common::{Endpoint, MarkField};

use super::world;
use crate::{
    lab::{Lab, enter},
    table::Party,
};

/// Which programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// None.
    None,
    /// Programs that do nothing.
    Empty,
    /// The agent's.
    Agent,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 3] = [Self::None, Self::Empty, Self::Agent];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no programs",
            Self::Empty => "empty programs",
            Self::Agent => "the agent's programs",
        })
    }
}

/// Both hooks of both pods' devices.
pub struct Hooks {
    dataplane: Dataplane,
    /// Kept, because its programs go with it.
    yardstick: Ebpf,
    links: Vec<SchedClassifierLinkId>,
    pods: Vec<Pod>,
    variant: Variant,
    statistics: Option<OwnedFd>,
}

struct Pod {
    interface: u32,
    device: String,
    endpoint: Endpoint,
}

const HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];
const EMPTY: &str = "empty";

impl Hooks {
    /// Moves this thread into the lab's node, compiles a cluster around the two pods, a client and its server, and loads all
    /// programs. Nothing is attached yet.
    pub fn new(lab: &Lab, parties: [&Party; 2], policies: u32) -> anyhow::Result<Self> {
        enter(&lab.node().namespace)?;
        let mut dataplane = Dataplane::open(&dataplane::Options {
            pins: lab.run_dir().bpf(),
            hook: HookChoice::Auto,
            sizes: Sizes::default(),
            mark: MarkField::DEFAULT,
            trace: false,
        })?;
        let mut addresses: [&[IpAddr]; 2] = [&[]; 2];
        for (party, addresses) in parties.into_iter().zip(&mut addresses) {
            *addresses = lab.addresses(party)?;
        }
        let index = world::pair(addresses, policies);
        dataplane.write(&index.tables())?;
        let mut pods = vec![];
        for (slot, party) in parties.into_iter().enumerate() {
            let interface = lab.device(party)?;
            let device = lab
                .node()
                .configure(move |netlink| async move { netlink.name(interface).await })?;
            let mac = lab.station(party)?.configure(|netlink| async move {
                let eth0 = netlink.index("eth0").await?;
                netlink.mac(eth0).await
            })?;
            let isolation = index
                .local_pods()
                .find(|pod| Party::Pod(pod.key.clone()) == *party)
                .with_context(|| format!("the compiled cluster has no {party}"))?;
            let mut endpoint = Endpoint {
                slot: slot as u32,
                flags: Endpoint::GUARD,
                ingress: isolation.ingress,
                egress: isolation.egress,
                ..Endpoint::default()
            };
            endpoint.mac[..6].copy_from_slice(&mac);
            for address in addresses[slot] {
                match address {
                    IpAddr::V4(address) => endpoint.ipv4 = (*address).into(),
                    IpAddr::V6(address) => endpoint.ipv6 = (*address).into(),
                }
            }
            pods.push(Pod {
                interface,
                device,
                endpoint,
            });
        }
        let mut yardstick = Ebpf::load(object::YARDSTICK)?;
        empty(&mut yardstick)?.load()?;
        Ok(Self {
            dataplane,
            yardstick,
            links: vec![],
            pods,
            variant: Variant::None,
            statistics: None,
        })
    }

    /// Takes off what is there and puts on what is wanted.
    pub fn set(&mut self, variant: Variant) -> anyhow::Result<()> {
        if variant == self.variant {
            return Ok(());
        }
        let program = empty(&mut self.yardstick)?;
        for link in self.links.drain(..) {
            program.detach(link)?;
        }
        for pod in &self.pods {
            if self.variant == Variant::Agent {
                self.dataplane.release(pod.interface)?;
                self.dataplane.remove_endpoint(pod.interface)?;
            }
            match variant {
                Variant::None => {}
                Variant::Empty => {
                    for hook in HOOKS {
                        self.links.push(program.attach(&pod.device, hook)?);
                    }
                }
                Variant::Agent => {
                    self.dataplane.set_endpoint(pod.interface, &pod.endpoint)?;
                    self.dataplane.attach(pod.interface, &pod.device)?;
                }
            }
        }
        self.variant = variant;
        Ok(())
    }

    /// How often the programs on the devices have run, and for how long. Counting begins with the first call.
    pub fn runs(&mut self) -> anyhow::Result<(u64, Duration)> {
        if self.statistics.is_none() {
            self.statistics = Some(enable_stats(Stats::RunTime)?);
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut sum = (0, Duration::ZERO);
        for pod in &self.pods {
            for hook in HOOKS {
                let (_, programs) = SchedClassifier::query_tcx(&pod.device, hook)?;
                for program in programs {
                    if seen.insert(program.id()) {
                        sum.0 += program.run_count();
                        sum.1 += program.run_time();
                    }
                }
            }
        }
        Ok(sum)
    }
}

fn empty(yardstick: &mut Ebpf) -> anyhow::Result<&mut SchedClassifier> {
    let program = yardstick.program_mut(EMPTY);
    Ok(program.context("no empty program")?.try_into()?)
}
