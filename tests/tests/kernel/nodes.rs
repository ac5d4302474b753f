//! Several nodes, joined as Flannel joins them, with an agent on each.

use std::{collections::VecDeque, net::IpAddr, sync::Mutex, thread, time::Duration};

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Fleet, Hook},
    lab::{Backend, Connection, Lab, NODE_NAME, Shape, Side},
    manifests::{DocumentId, World},
    reference,
    scenario::Scenario,
    story,
    table::{Destination, Family, Party, Port, Table},
};

pub const BRIDGE_NF: Shape = Shape::Bridge { br_netfilter: true };
const BRIDGE: Shape = Shape::Bridge {
    br_netfilter: false,
};

/// `shop/web` is on `node`; everybody else is on `n2`, but `shop/near`. `shop/exporter` is in the network of `n2`.
pub const TWO_NODES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}]}]}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: near}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: friend, labels: {role: friend}}
spec: {nodeName: n2, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: caged, labels: {role: friend, caged: 'yes'}}
spec: {nodeName: n2, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: stranger}
spec: {nodeName: n2, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: exporter, labels: {role: friend}}
spec: {nodeName: n2, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 9100}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7, 'fd00:5::7'], ports: [{port: 80}, {port: 53, protocol: UDP}]}
";

/// Friends on a third node.
const THIRD_NODE: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: third, labels: {role: friend}}
spec: {nodeName: n3, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: fourth}, spec: {nodeName: n3, containers: [{name: c}]}}
";

/// `shop/web` takes friends on port 80, and what is caged reaches nothing but `shop/web`.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: cage}
spec:
  podSelector: {matchLabels: {caged: 'yes'}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
";

/// Written by hand. An exporter in the network of its node is no friend, whatever its labels say.
const ENFORCED: &str = "
shop/web TCP/80
  open:   shop/friend shop/caged node/node
  denied: shop/near shop/stranger shop/exporter host/outside node/n2
shop/web UDP/53
  open:   node/node
  denied: shop/friend shop/caged shop/near shop/stranger shop/exporter host/outside node/n2
shop/near TCP/80
  open:   shop/web shop/friend shop/stranger shop/exporter host/outside node/node node/n2
  denied: shop/caged
shop/exporter TCP/9100
  open:   shop/web shop/near shop/friend shop/stranger shop/caged host/outside node/node node/n2
host/outside TCP/80
  open:   shop/web shop/near shop/friend shop/stranger shop/exporter node/node node/n2
  denied: shop/caged
";

pub fn web(port: Port) -> Destination {
    Destination::new(Party::pod("shop", "web"), port)
}

fn open(lab: &Lab, moment: &str) -> anyhow::Result<()> {
    let found = lab.table()?;
    ensure!(
        found.all_open(),
        "{moment}: {}",
        found.opened().differences(&found)
    );
    Ok(())
}

/// The whole table, against the naive evaluator.
fn as_specified(lab: &Lab, fleet: &Fleet, moment: &str) -> anyhow::Result<Table> {
    let mut destinations = lab.destinations();
    if lab.has_services() {
        destinations.extend(lab.world().service_destinations());
    }
    let (expected, refused) = reference::table(lab, &destinations);
    ensure!(refused.is_empty(), "{moment}: {}", refused.join("; "));
    let found = lab.table_of(&destinations)?;
    let wrong = expected.differences(&found);
    let logs = || -> String { fleet.agents().iter().map(Agent::log).collect() };
    ensure!(wrong.is_empty(), "{moment}: {wrong}\n{}", logs());
    Ok(found)
}

fn whole_table(shape: Shape, backend: Backend, hook: Hook) -> anyhow::Result<()> {
    let mut lab = Lab::with_nodes(shape, backend, World::parse(TWO_NODES))?;
    let names: Vec<&str> = lab.nodes().map(|node| node.name()).collect();
    assert_eq!(names, ["n2", "node"]);
    open(&lab, "without agents")?;

    let mut fleet = Fleet::start(&lab, hook)?;
    fleet.wait()?;
    open(&lab, "without policies")?;

    lab.apply(POLICIES)?;
    fleet.wait()?;
    story::expect(&lab, "enforced", ENFORCED)?;
    as_specified(&lab, &fleet, "enforced")?;
    for agent in fleet.agents() {
        let status = agent.status()?;
        assert_eq!(status["node"], agent.node(), "{status:#}");
        let pods = status["pods"].as_array().map(Vec::len);
        let own = if agent.node() == NODE_NAME { 2 } else { 3 };
        assert_eq!(pods, Some(own), "{status:#}");
    }

    // A node that comes later, with its pods.
    lab.apply(THIRD_NODE)?;
    fleet.join(&lab, hook)?;
    fleet.wait()?;
    assert_eq!(fleet.agents().len(), 3);
    let found = as_specified(&lab, &fleet, "with a third node")?;
    for (who, outcome) in [("third", true), ("fourth", false)] {
        for family in Family::ALL {
            let outcome_found = found.get(&Party::pod("shop", who), &web(Port::Tcp(80)), family);
            let open = outcome_found.map(|outcome| outcome.is_open());
            assert_eq!(open, Some(outcome), "{who} by {family}");
        }
    }

    // A pod that is started anew elsewhere, with another address.
    lab.change(|world| {
        world.edit(&DocumentId::pod("shop", "friend"), |pod| {
            pod["spec"]["nodeName"] = NODE_NAME.into();
        })
    })?;
    fleet.wait()?;
    story::expect(&lab, "moved", ENFORCED)?;
    as_specified(&lab, &fleet, "moved")?;

    for name in ["web", "cage"] {
        lab.delete(&DocumentId::new("NetworkPolicy", "shop", name))?;
    }
    fleet.wait()?;
    open(&lab, "the policies are deleted")?;
    fleet.stop()?;
    Ok(())
}

#[test]
fn whole_table_by_vxlan() -> anyhow::Result<()> {
    whole_table(BRIDGE_NF, Backend::Vxlan, Hook::Auto)
}

#[test]
fn whole_table_by_vxlan_without_br_netfilter() -> anyhow::Result<()> {
    whole_table(BRIDGE, Backend::Vxlan, Hook::Clsact)
}

#[test]
fn whole_table_by_host_gw() -> anyhow::Result<()> {
    whole_table(BRIDGE_NF, Backend::HostGw, Hook::Clsact)
}

#[test]
fn whole_table_by_host_gw_and_routes_to_each_pod() -> anyhow::Result<()> {
    whole_table(Shape::Routed, Backend::HostGw, Hook::Auto)
}

/// Every second pod of a world that names no nodes goes to a second one.
fn spread(world: &World) -> anyhow::Result<World> {
    let mut spread = world.clone();
    for id in world.ids("Pod").iter().skip(1).step_by(2) {
        spread.edit(id, |pod| {
            if pod["spec"]["nodeName"].is_null() {
                pod["spec"]["nodeName"] = "n2".into();
            }
        })?;
    }
    Ok(spread)
}

/// What a scenario expects does not depend on the nodes that the pods are on.
fn play(scenario: &Scenario, shape: Shape, backend: Backend) -> anyhow::Result<()> {
    let first = scenario.steps.first().context("a scenario has a step")?;
    let mut lab = Lab::with_nodes(shape, backend, spread(&first.world)?)?;
    let mut fleet = Fleet::start(&lab, Hook::Auto)?;
    for step in &scenario.steps {
        let moment = format!("{}, {}", scenario.name, step.name);
        lab.replace_world(spread(&step.world)?)?;
        fleet.join(&lab, Hook::Auto)?;
        fleet.wait()?;
        let whole = as_specified(&lab, &fleet, &moment)?;
        // The scenario speaks of pods and hosts, and of a pod's own node.
        let mut found = Table::new();
        for (source, destination, cell) in whole.iter() {
            for family in Family::ALL {
                if let (false, Some(outcome)) =
                    (matches!(source, Party::Machine(_)), cell.get(family))
                {
                    found.set(source, destination, family, outcome);
                }
            }
        }
        let wrong = step.expected.differences(&found);
        ensure!(wrong.is_empty(), "{moment}: {wrong}");
    }
    fleet.stop()?;
    Ok(())
}

/// Every scenario; most of the time is spent waiting for what does not arrive, so several at a time.
fn scenarios(shape: Shape, backend: Backend) -> anyhow::Result<()> {
    let left = Mutex::new(VecDeque::from(Scenario::all()?));
    let next = || left.lock().ok()?.pop_front();
    let player = || {
        while let Some(scenario) = next() {
            play(&scenario, shape, backend)?;
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let players: Vec<_> = (0..4).map(|_| scope.spawn(player)).collect();
        players
            .into_iter()
            .try_for_each(|player| player.join().expect("no player panics"))
    })
}

#[test]
fn scenarios_by_vxlan() -> anyhow::Result<()> {
    scenarios(BRIDGE_NF, Backend::Vxlan)
}

#[test]
fn scenarios_by_host_gw() -> anyhow::Result<()> {
    scenarios(Shape::Routed, Backend::HostGw)
}

/// A permission that goes ends what lived on it, wherever the other end is; the agent of either end's node sees to it.
#[test]
fn connections_between_nodes_end_with_their_permission() -> anyhow::Result<()> {
    for backend in Backend::ALL {
        let mut lab = Lab::with_nodes(BRIDGE_NF, backend, World::parse(TWO_NODES))?;
        let mut fleet = Fleet::start(&lab, Hook::Auto)?;
        fleet.wait()?;
        let patience = Duration::from_secs(5);
        let mut ends = Vec::new();
        let mut stays = Vec::new();
        for family in Family::ALL {
            // Ended at the receiver's node, by its ingress; and at the sender's, by its egress.
            let links = [
                ("stranger", "web", true),
                ("caged", "near", true),
                ("friend", "web", false),
            ];
            for (from, to, revoked) in links {
                for first in [Side::Client, Side::Server] {
                    let to = Destination::new(Party::pod("shop", to), Port::Tcp(80));
                    let talk = Connection::open(&lab, &Party::pod("shop", from), &to, family)?;
                    ensure!(talk.ping_pong(patience), "{backend}: {from} by {family}");
                    let list = if revoked { &mut ends } else { &mut stays };
                    list.push((format!("{backend}: {from}, {first:?} first"), first, talk));
                }
            }
        }
        lab.apply(POLICIES)?;
        fleet.wait()?;
        thread::scope(|scope| {
            for (name, first, talk) in &ends {
                scope.spawn(move || {
                    assert!(!talk.send(*first, Duration::from_millis(400)), "{name}");
                });
            }
            for (name, first, talk) in &stays {
                scope.spawn(move || assert!(talk.send(*first, patience), "{name}"));
            }
        });
        fleet.stop()?;
    }
    Ok(())
}

/// Each node enforces by itself: one whose agent is dead goes on with what it knows, and holds nobody else up.
#[test]
fn a_dead_agent_is_its_own_nodes_matter() -> anyhow::Result<()> {
    const STILL_CAGED: &str = "
shop/web TCP/80
  open: shop/near shop/stranger shop/caged
shop/near TCP/80
  open: shop/web shop/stranger
  denied: shop/caged
";
    let mut lab = Lab::with_nodes(BRIDGE_NF, Backend::Vxlan, World::parse(TWO_NODES))?;
    lab.apply(POLICIES)?;
    let mut fleet = Fleet::start(&lab, Hook::Auto)?;
    fleet.wait()?;
    story::expect(&lab, "enforced", ENFORCED)?;

    fleet.on("n2").context("n2 has an agent")?.kill()?;
    for name in ["web", "cage"] {
        lab.delete(&DocumentId::new("NetworkPolicy", "shop", name))?;
    }
    fleet.on(NODE_NAME).context("so has node")?.wait()?;
    story::expect(&lab, "without the agent of n2", STILL_CAGED)?;

    let mut agent = Agent::start_on(&lab, "n2", Hook::Auto)?;
    agent.wait()?;
    open(&lab, "it is back")
}

/// Nobody reaches or is reached by any pod of `shop`, but who has one of these addresses.
fn only(addresses: &[String]) -> String {
    let blocks: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{ipBlock: {{cidr: '{address}'}}}}"))
        .collect();
    let rules = match blocks.as_slice() {
        [] => "ingress: [], egress: []".to_owned(),
        blocks => {
            let blocks = blocks.join(", ");
            format!("ingress: [{{from: [{blocks}]}}], egress: [{{to: [{blocks}]}}]")
        }
    };
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: shop, name: only}}, \
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], {rules}}}}}"
    )
}

/// The addresses as blocks of one address.
fn blocks(addresses: [IpAddr; 2]) -> [String; 2] {
    addresses.map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }))
}

/// A kubelet probes its own pods whatever the policies say; for the pods of other nodes its node is an address.
#[test]
fn a_node_is_free_at_its_own_pods_and_an_address_elsewhere() -> anyhow::Result<()> {
    const CLOSED: &str = "
shop/web TCP/80
  open:   node node/node
  denied: shop/friend shop/exporter node/n2 host/outside
shop/friend TCP/80
  open:   node node/n2 shop/exporter
  denied: shop/web node/node host/outside
shop/exporter TCP/9100
  open:   node shop/friend node/node node/n2 host/outside
  denied: shop/web
";
    const N2_ALLOWED: &str = "
shop/web TCP/80
  open:   node node/node shop/exporter node/n2
  denied: shop/friend host/outside
";
    for backend in Backend::ALL {
        let mut lab = Lab::with_nodes(BRIDGE_NF, backend, World::parse(TWO_NODES))?;
        let mut fleet = Fleet::start(&lab, Hook::Auto)?;
        lab.apply(&only(&[]))?;
        fleet.wait()?;
        let at = |moment: &str| format!("{backend}, {moment}");
        story::expect(&lab, &at("closed"), CLOSED)?;
        as_specified(&lab, &fleet, &at("closed"))?;

        // What a pod sees of another node is not always what `kubectl get nodes -o wide` shows.
        let n2 = lab.node_named("n2")?;
        let (internal, abroad) = (blocks(n2.addresses()), blocks(n2.addresses_abroad()));
        assert_eq!(internal == abroad, backend == Backend::HostGw);
        lab.apply(&only(&abroad))?;
        fleet.wait()?;
        story::expect(&lab, &at("n2 allowed"), N2_ALLOWED)?;
        as_specified(&lab, &fleet, &at("n2 allowed"))?;
        if backend == Backend::Vxlan {
            lab.apply(&only(&internal))?;
            fleet.wait()?;
            // Toward the node its address is what it is: egress opens, ingress does not.
            let towards = CLOSED.replace(
                "open:   node shop/friend node/node node/n2 host/outside\n  denied: shop/web\n",
                "open:   node shop/friend shop/web node/node node/n2 host/outside\n",
            );
            assert_ne!(towards, CLOSED);
            story::expect(&lab, &at("the internal address allowed"), &towards)?;
        }
        fleet.stop()?;
    }
    Ok(())
}
