//! Services with the agent: what a pod that is isolated for ingress receives through them, and whose address it judges.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Caller, Connection, Lab, Lookup, ProxyMode, Shape, Side},
    manifests::World,
    story,
    table::{Destination, Family, Outcome, Party, Port, Via},
};

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: free, labels: {app: free}}
spec: {containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: friend, labels: {role: friend}}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: other}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7, 'fd00:5::7']}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  externalIPs: [10.99.0.1, 'fd00:10:99::1']
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}, {name: none, port: 81, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: free}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: free}
  externalIPs: [10.99.0.2, 'fd00:10:99::2']
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: web-local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
";

/// `a/web` accepts these peers.
fn policy(peers: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: web}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{peers}]}}]}}}}"
    )
}

const FRIENDS: &str = "{podSelector: {matchLabels: {role: friend}}}";
const PORTS: [Port; 2] = [Port::Tcp(80), Port::Udp(53)];
const PATIENCE: Duration = Duration::from_secs(2);
/// How long something forbidden may take to arrive.
const SILENCE: Duration = Duration::from_millis(600);

fn pod(name: &str) -> Party {
    Party::pod("a", name)
}

fn at(name: &str, via: Via) -> BTreeSet<Destination> {
    PORTS
        .map(|port| Destination::new(Party::service_via("a", name, via), port))
        .into()
}

/// Runs a story with the agent in each shape and mode of kube-proxy; between them, both hooks.
fn everywhere(story: impl Fn(&mut Lab, &mut Agent) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for (shape, mode, hook) in [
        (
            Shape::Bridge { br_netfilter: true },
            ProxyMode::Iptables,
            Hook::Auto,
        ),
        (
            Shape::Bridge { br_netfilter: true },
            ProxyMode::Nftables,
            Hook::Clsact,
        ),
        (Shape::Routed, ProxyMode::Iptables, Hook::Clsact),
        (Shape::Routed, ProxyMode::Nftables, Hook::Auto),
    ] {
        let mut lab = Lab::with_proxy(shape, World::parse(WORLD), mode)?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        story(&mut lab, &mut agent)
            .with_context(|| format!("{shape}, kube-proxy in mode {mode}, hook {hook}"))?;
        agent.stop()?;
    }
    Ok(())
}

/// Every source at both ports of a Service, by both families.
fn all_are(
    lab: &Lab,
    moment: &str,
    sources: &[Party],
    goals: &BTreeSet<Destination>,
    outcome: Outcome,
) -> anyhow::Result<()> {
    let sources: BTreeSet<Party> = sources.iter().cloned().collect();
    let found = lab.probe(&sources, goals)?;
    for source in &sources {
        for goal in goals {
            for family in Family::ALL {
                let cell = found.get(source, goal, family);
                ensure!(
                    cell.is_some_and(|found| found.agrees_with(outcome)),
                    "{moment}: {source} at {goal} by {family}: expected {outcome}, found {cell:?}\n{}",
                    story::log_end(lab)
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_judges_the_pod_behind_the_cluster_address() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        let everybody = [pod("friend"), pod("other"), pod("web")];
        all_are(
            lab,
            "before",
            &everybody,
            &at("web", Via::ClusterIp),
            Outcome::Open,
        )?;
        lab.apply(&policy(FRIENDS))?;
        agent.wait()?;
        let goals = at("web", Via::ClusterIp);
        all_are(lab, "a friend", &[pod("friend")], &goals, Outcome::Open)?;
        all_are(lab, "no friend", &[pod("other")], &goals, Outcome::Denied)?;
        // As it was for the neighbour's Service.
        let free = at("free", Via::ClusterIp);
        all_are(lab, "the free one", &everybody, &free, Outcome::Open)?;
        // Where nothing listens an allowed client is told so at once, and another hears nothing.
        let none = BTreeSet::from([Destination::new(Party::service("a", "web"), Port::Tcp(81))]);
        let told = lab.probe(&BTreeSet::from([pod("friend"), pod("other")]), &none)?;
        for goal in &none {
            for family in Family::ALL {
                ensure!(told.get(&pod("friend"), goal, family) == Some(Outcome::Refused));
                ensure!(told.get(&pod("other"), goal, family) == Some(Outcome::Denied));
            }
        }
        Ok(())
    })
}

/// A node port masquerades: the backend sees the node's address, and that is no pod, no host outside, and, as it came in by
/// a device, not the node either.
#[test]
fn what_was_masqueraded_is_judged_as_the_address_it_carries() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        let strangers = [pod("friend"), pod("other"), Party::host("outside")];
        let ways = [Via::NodePort, Via::ExternalIp, Via::LoadBalancer];
        for via in ways {
            all_are(lab, "before", &strangers, &at("web", via), Outcome::Open)?;
        }
        lab.apply(&policy(FRIENDS))?;
        agent.wait()?;
        for via in ways {
            all_are(
                lab,
                "masqueraded",
                &strangers,
                &at("web", via),
                Outcome::Denied,
            )?;
            all_are(
                lab,
                "the free one",
                &strangers,
                &at("free", via),
                Outcome::Open,
            )?;
            // The node itself is always let in.
            all_are(
                lab,
                "the node",
                &[Party::Node],
                &at("web", via),
                Outcome::Open,
            )?;
        }
        // A block with the node's addresses lets in whoever comes as the node.
        let node = lab.home(&Party::Node).context("a node")?;
        let blocks: Vec<String> = node
            .all_addresses()
            .iter()
            .map(|address| {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                format!("{{ipBlock: {{cidr: '{address}/{bits}'}}}}")
            })
            .collect();
        lab.apply(&policy(&blocks.join(", ")))?;
        agent.wait()?;
        for via in ways {
            all_are(lab, "by block", &strangers, &at("web", via), Outcome::Open)?;
        }
        all_are(
            lab,
            "by itself",
            &strangers[..2],
            &at("web", Via::ClusterIp),
            Outcome::Denied,
        )?;
        Ok(())
    })
}

/// With `externalTrafficPolicy: Local` the client's own address arrives.
#[test]
fn a_local_policy_keeps_the_client_and_its_block_decides() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        let outside = [Party::host("outside")];
        let ways = [Via::NodePort, Via::LoadBalancer];
        lab.apply(&policy(
            "{ipBlock: {cidr: 10.0.5.0/24}}, {ipBlock: {cidr: 'fd00:5::/64'}}",
        ))?;
        agent.wait()?;
        for via in ways {
            all_are(
                lab,
                "in the block",
                &outside,
                &at("web-local", via),
                Outcome::Open,
            )?;
            all_are(
                lab,
                "as the node",
                &outside,
                &at("web", via),
                Outcome::Denied,
            )?;
        }
        lab.apply(&policy(FRIENDS))?;
        agent.wait()?;
        for via in ways {
            all_are(
                lab,
                "no block",
                &outside,
                &at("web-local", via),
                Outcome::Denied,
            )?;
            all_are(
                lab,
                "the free one",
                &outside,
                &at("free", via),
                Outcome::Open,
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_revoked_permission_ends_what_lives_through_a_service() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        lab.apply(&policy(FRIENDS))?;
        agent.wait()?;
        for family in Family::ALL {
            let to = Destination::new(Party::service("a", "web"), Port::Tcp(80));
            let free = Destination::new(Party::service("a", "free"), Port::Tcp(80));
            let talk = Destination::new(Party::service("a", "web"), Port::Udp(53));
            let ends = [Side::Client, Side::Server]
                .map(|_| Connection::open(lab, &pod("friend"), &to, family));
            let lives = Connection::open(lab, &pod("friend"), &free, family)?;
            let caller = Caller::open(lab, &pod("friend"), &talk, family)?;
            ensure!(lives.ping_pong(PATIENCE) && caller.send(lab, PATIENCE)?.answered);
            lab.apply(&policy("{podSelector: {matchLabels: {role: nobody}}}"))?;
            agent.wait()?;
            for (connection, side) in ends.into_iter().zip([Side::Client, Side::Server]) {
                let connection = connection?;
                ensure!(!connection.send(side, SILENCE), "{side:?} by {family}");
            }
            let heard = caller.send(lab, SILENCE)?;
            ensure!(heard.by.is_none(), "{heard:?} by {family}");
            ensure!(lives.ping_pong(PATIENCE), "the other one, by {family}");
            lab.apply(&policy(FRIENDS))?;
            agent.wait()?;
        }
        Ok(())
    })
}

const DNS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: kube-system, name: coredns, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}, {containerPort: 53}]}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: kube-system, name: kube-dns}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: kube-system, name: dns}
spec:
  podSelector: {matchLabels: {k8s-app: kube-dns}}
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}]}]
";

#[test]
fn names_are_looked_up_by_those_whom_the_dns_pod_lets_in() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        lab.apply(DNS)?;
        agent.wait()?;
        let name = "web.a.svc.cluster.local.";
        for port in [Port::Udp(53), Port::Tcp(53)] {
            for family in Family::ALL {
                let web = Destination::new(Party::service("a", "web"), Port::Tcp(80));
                let (address, _) = lab.goal(&web, family)?;
                let found = lab.lookup(&pod("friend"), name, (port, family), family)?;
                ensure!(found == Lookup::Found(vec![address]), "{found:?}");
                let found = lab.lookup(&pod("other"), name, (port, family), family)?;
                ensure!(found == Lookup::Silence, "{found:?}");
            }
        }
        Ok(())
    })
}
