//! Services with the agent: what a pod that is isolated for egress sends to them is judged on the backend that it really
//! goes to.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use netpol_agent::packet_builder::{self, Payload};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{
        Caller, Capture, Captured, Connection, FrameSocket, Lab, Load, Lookup, ProxyMode, Shape,
        Side, Traffic,
    },
    manifests::{DocumentId, World},
    scenario::Scenario,
    story,
    table::{Destination, Family, Outcome, Party, Port, Via},
};

const PATIENCE: Duration = Duration::from_secs(2);
/// How long something forbidden may take to arrive.
const SILENCE: Duration = Duration::from_millis(600);
const PORTS: [Port; 2] = [Port::Tcp(80), Port::Udp(53)];
/// Through each of them a pod leaves the cluster address behind and comes back as the node.
const WAYS: [Via; 4] = Via::ALL;

/// `a/client` is the pod that policies isolate; `good` and `bad` are alike but for their labels.
fn world() -> String {
    let ports = "[{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]";
    let mut world = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n".to_owned();
    for (name, labels, spec) in [
        ("client", "app: client", ""),
        ("good", "app: good, kind: good, pool: mixed", ""),
        ("bad", "app: bad, kind: bad, pool: mixed", ""),
        ("far", "app: far, kind: good", "nodeName: elsewhere, "),
        ("on-node", "app: on-node", "hostNetwork: true, "),
    ] {
        world += &format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: {name}, labels: {{{labels}}}}}, \
             spec: {{{spec}containers: [{{name: c, ports: {ports}}}]}}}}\n"
        );
    }
    for (nth, (name, selector, more)) in [
        ("good", "app: good", ""),
        ("bad", "app: bad", ""),
        ("mixed", "pool: mixed", ""),
        ("sticky", "app: good", "sessionAffinity: ClientIP, "),
        ("far", "app: far", ""),
        ("on-node", "app: on-node", ""),
        ("client", "app: client", ""),
        ("moving", "moving: 'yes'", ""),
    ]
    .into_iter()
    .enumerate()
    {
        world += &format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: {name}}}, \
             spec: {{type: LoadBalancer, ipFamilyPolicy: PreferDualStack, {more}selector: {{{selector}}}, \
             externalIPs: [10.99.0.{n}, 'fd00:10:99::{n}'], ports: [{{name: http, port: 80, targetPort: 8080}}, \
             {{name: talk, port: 53, protocol: UDP, targetPort: 5353}}]}}}}\n",
            n = nth + 1
        );
    }
    for (name, v4, v6) in [
        ("near", "10.0.5.7", "fd00:5::7"),
        ("abroad", "10.0.6.7", "fd00:6::7"),
    ] {
        world += &format!(
            "---\n{{apiVersion: lab.netpol-agent/v1, kind: Host, metadata: {{name: {name}}}, spec: {{addresses: ['{v4}', '{v6}'], \
             ports: [{{port: 8080}}, {{port: 5353, protocol: UDP}}]}}}}\n\
             ---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: {name}}}, spec: {{ipFamilyPolicy: PreferDualStack, \
             ports: [{{name: http, port: 80}}, {{name: talk, port: 53, protocol: UDP}}]}}}}\n"
        );
        for (family, address) in [("IPv4", v4), ("IPv6", v6)] {
            world += &format!(
                "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{namespace: a, name: {name}-{lower}, \
                 labels: {{kubernetes.io/service-name: {name}}}}}, addressType: {family}, endpoints: [{{addresses: ['{address}']}}], \
                 ports: [{{name: http, port: 8080, protocol: TCP}}, {{name: talk, port: 5353, protocol: UDP}}]}}\n",
                lower = family.to_lowercase()
            );
        }
    }
    world
}

/// `a/client` may send to these peers.
fn policy(peers: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: client}}, \
         spec: {{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{to: [{peers}]}}]}}}}"
    )
}

const GOOD: &str = "{podSelector: {matchLabels: {kind: good}}}";
const NEAR: &str = "{ipBlock: {cidr: 10.0.5.0/24}}, {ipBlock: {cidr: 'fd00:5::/64'}}";
const NOBODY: &str = "{podSelector: {matchLabels: {kind: nobody}}}";

fn client() -> Party {
    Party::pod("a", "client")
}

fn service(name: &str, via: Via, port: Port) -> Destination {
    Destination::new(Party::service_via("a", name, via), port)
}

fn both_ports(name: &str, via: Via) -> BTreeSet<Destination> {
    PORTS.map(|port| service(name, via, port)).into()
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
        let mut lab = Lab::with_proxy(shape, World::parse(&world()), mode)?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        story(&mut lab, &mut agent)
            .with_context(|| format!("{shape}, kube-proxy in mode {mode}, hook {hook}"))?;
        agent.stop()?;
    }
    Ok(())
}

fn enforce(lab: &mut Lab, agent: &mut Agent, policy: &str) -> anyhow::Result<()> {
    lab.apply(policy)?;
    agent.wait()?;
    Ok(())
}

/// Puts one of the two behind the Service `moving`.
fn serve(lab: &mut Lab, name: &str) -> anyhow::Result<()> {
    lab.change(|world| {
        for pod in ["good", "bad"] {
            let label = (pod == name).then_some("yes");
            world.label(&DocumentId::pod("a", pod), &[("moving", label)])?;
        }
        Ok(())
    })?;
    Ok(())
}

/// `a/client` at both ports of a Service, by both families.
fn client_is(
    lab: &Lab,
    moment: &str,
    goals: &BTreeSet<Destination>,
    outcome: Outcome,
) -> anyhow::Result<()> {
    let found = lab.probe(&BTreeSet::from([client()]), goals)?;
    for goal in goals {
        for family in Family::ALL {
            let cell = found.get(&client(), goal, family);
            ensure!(
                cell.is_some_and(|found| found.agrees_with(outcome)),
                "{moment}: {goal} by {family}: expected {outcome}, found {cell:?}\n{}",
                story::log_end(lab)
            );
        }
    }
    Ok(())
}

/// Each of these by every address, before any policy, and under the policy.
fn by_every_address(policy: &str, names: &[(&str, Outcome)], ways: &[Via]) -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        let goals = |name| {
            ways.iter()
                .flat_map(move |via| both_ports(name, *via))
                .collect()
        };
        for (name, _) in names {
            client_is(lab, "before the policy", &goals(name), Outcome::Open)?;
        }
        enforce(lab, agent, policy)?;
        for (name, outcome) in names {
            client_is(lab, "under the policy", &goals(name), *outcome)?;
        }
        Ok(())
    })
}

#[test]
fn an_allowed_backend_is_reached_by_every_address_and_a_forbidden_one_by_none() -> anyhow::Result<()>
{
    by_every_address(
        &policy(GOOD),
        &[
            ("good", Outcome::Open),
            ("sticky", Outcome::Open),
            ("far", Outcome::Open),
            ("bad", Outcome::Denied),
        ],
        &WAYS,
    )
}

#[test]
fn a_backend_outside_the_cluster_is_judged_by_its_block() -> anyhow::Result<()> {
    by_every_address(
        &policy(NEAR),
        &[
            ("near", Outcome::Open),
            ("abroad", Outcome::Denied),
            ("good", Outcome::Denied),
        ],
        &[Via::ClusterIp],
    )
}

/// The node of a pod is always allowed, and a pod in the node's own network is the node.
#[test]
fn a_backend_on_the_own_node_s_network_is_always_allowed() -> anyhow::Result<()> {
    by_every_address(
        &policy(NOBODY),
        &[("on-node", Outcome::Open), ("good", Outcome::Denied)],
        &WAYS,
    )
}

/// Also when neither direction is open to anybody: what leaves and comes back is masqueraded, and still its own.
#[test]
fn a_pod_always_reaches_itself_through_its_own_service() -> anyhow::Result<()> {
    let closed = |directions: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: client}}, \
             spec: {{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [{directions}]}}}}"
        )
    };
    for directions in ["Ingress", "Egress", "Ingress, Egress"] {
        everywhere(|lab, agent| {
            let own = WAYS.into_iter().flat_map(|via| both_ports("client", via));
            let own: BTreeSet<Destination> = own.collect();
            client_is(lab, "before the policy", &own, Outcome::Open)?;
            enforce(lab, agent, &closed(directions))?;
            client_is(lab, directions, &own, Outcome::Open)?;
            // Others come through the same Service as before, or not at all.
            let good = BTreeSet::from([Party::pod("a", "good")]);
            let goals = both_ports("client", Via::ClusterIp);
            let found = lab.probe(&good, &goals)?;
            ensure!(
                found.all_open() != directions.contains("Ingress"),
                "{directions}: another pod\n{found}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Which backend a packet goes to is for kube-proxy to say; each is judged by itself.
#[test]
fn of_two_backends_only_the_allowed_one_is_reached() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        let bad = Party::pod("a", "bad");
        for via in WAYS {
            for family in Family::ALL {
                let to = service("mixed", via, Port::Udp(53));
                let mut before = BTreeSet::new();
                // All of 40 at one of two: once in 2^39.
                for _ in 0..40 {
                    let caller = Caller::open(lab, &client(), &to, family)?;
                    before.extend(caller.send(lab, PATIENCE)?.by);
                }
                ensure!(before.len() == 2, "before: {to} by {family}: {before:?}");
            }
        }
        enforce(lab, agent, &policy(GOOD))?;
        for via in WAYS {
            for family in Family::ALL {
                let to = service("mixed", via, Port::Udp(53));
                let mut lost = 0;
                for _ in 0..40 {
                    let heard = Caller::open(lab, &client(), &to, family)?
                        .send(lab, Duration::from_millis(100))?;
                    ensure!(heard.by.as_ref() != Some(&bad), "{to} by {family}");
                    lost += usize::from(!heard.answered);
                }
                ensure!(
                    (1..40).contains(&lost),
                    "{to} by {family}: lost {lost} of 40"
                );
            }
        }
        Ok(())
    })
}

/// The socket keeps its ports, and what was allowed was another backend.
#[test]
fn a_udp_flow_whose_backend_changes_is_judged_anew() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        serve(lab, "good")?;
        enforce(lab, agent, &policy(GOOD))?;
        for via in WAYS {
            for family in Family::ALL {
                let to = service("moving", via, Port::Udp(53));
                let caller = Caller::open(lab, &client(), &to, family)?;
                let good = Some(Party::pod("a", "good"));
                let heard = caller.send(lab, PATIENCE)?;
                ensure!(
                    heard.by == good && heard.answered,
                    "{to} by {family}: {heard:?}"
                );
                serve(lab, "bad")?;
                let heard = caller.send(lab, SILENCE)?;
                ensure!(
                    heard.by.is_none() && !heard.answered,
                    "{to} by {family}: {heard:?}"
                );
                serve(lab, "good")?;
                let heard = caller.send(lab, PATIENCE)?;
                ensure!(
                    heard.by == good && heard.answered,
                    "back: {to} by {family}: {heard:?}"
                );
            }
        }
        Ok(())
    })
}

/// A datagram from a backend's port to the port of the client, as if it answered.
fn speak(lab: &Lab, from: &str, family: Family, port: u16) -> anyhow::Result<()> {
    let from = Party::pod("a", from);
    let payload = Payload::Udp {
        source: 5353,
        destination: port,
    };
    let (source, goal) = (lab.address(&from, family)?, lab.address(&client(), family)?);
    let mut frame = packet_builder::frame(source, goal, payload).context("one family")?;
    if family == Family::V4 {
        // The header's sum (RFC 791): each router looks at it.
        let words = frame[14..34].chunks(2);
        let sum: u32 = words
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let mac = |party: &Party| -> anyhow::Result<[u8; 6]> {
        let mac = lab.station(party)?.configure(|netlink| async move {
            let eth0 = netlink.index("eth0").await?;
            netlink.mac(eth0).await
        });
        Ok(mac?)
    };
    let next = match lab.shape() {
        Shape::Bridge { .. } => mac(&client())?,
        Shape::Routed => {
            let device = lab.device(&from)?;
            lab.node()
                .configure(move |netlink| async move { netlink.mac(device).await })?
        }
    };
    frame[..6].copy_from_slice(&next);
    frame[6..12].copy_from_slice(&mac(&from)?);
    FrameSocket::open(lab, &from, "eth0")?.send(&frame)?;
    Ok(())
}

/// Connection tracking has noted the backend before it is known that it is forbidden, and takes what it sends for an answer.
#[test]
fn a_forbidden_backend_cannot_speak_in_the_name_of_the_one_before_it() -> anyhow::Result<()> {
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: client}}, \
         spec: {{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Ingress, Egress], egress: [{{to: [{GOOD}]}}]}}}}"
    );
    everywhere(|lab, agent| {
        enforce(lab, agent, &policy)?;
        for family in Family::ALL {
            serve(lab, "good")?;
            let to = service("moving", Via::ClusterIp, Port::Udp(53));
            let caller = Caller::open(lab, &client(), &to, family)?;
            let capture = Capture::start(lab.station(&client())?, "eth0")?;
            let port = caller.port()?;
            // The last bytes of what was spoken: the header of a datagram without data, the Service's port in it.
            let ends = [&53_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 8]].concat();
            let heard = |patience: Duration| -> anyhow::Result<bool> {
                let end = Instant::now() + patience;
                while Instant::now() < end {
                    let spoken = |seen: &Captured| {
                        let udp = seen.frame.len().checked_sub(8);
                        !seen.outgoing && udp.is_some_and(|at| seen.frame[at..].starts_with(&ends))
                    };
                    if capture.count(spoken)? > 0 {
                        return Ok(true);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(false)
            };
            let answered = caller.send(lab, PATIENCE)?;
            ensure!(answered.answered, "{to} by {family}: {answered:?}");
            speak(lab, "good", family, port)?;
            ensure!(heard(PATIENCE)?, "{family}: the allowed one is not heard");
            serve(lab, "bad")?;
            let denied = caller.send(lab, SILENCE)?;
            ensure!(denied.by.is_none(), "{to} by {family}: {denied:?}");
            speak(lab, "bad", family, port)?;
            ensure!(!heard(SILENCE)?, "{family}: the forbidden one is heard");
            // The first one again, on the same ports.
            serve(lab, "good")?;
            let answered = caller.send(lab, PATIENCE)?;
            ensure!(answered.answered, "{to} by {family}, again: {answered:?}");
            speak(lab, "good", family, port)?;
            ensure!(
                heard(PATIENCE)?,
                "{family}: the allowed one is not heard again"
            );
        }
        Ok(())
    })
}

#[test]
fn a_revoked_permission_ends_what_lives_through_a_service_both_ways() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        for via in WAYS {
            for family in Family::ALL {
                enforce(lab, agent, &policy(&format!("{GOOD}, {NEAR}")))?;
                let open = |name: &str| {
                    let to = service(name, via, Port::Tcp(80));
                    Connection::open(lab, &client(), &to, family)
                };
                let ends = [(open("good")?, Side::Client), (open("good")?, Side::Server)];
                let lives = Connection::open(
                    lab,
                    &client(),
                    &service("near", Via::ClusterIp, Port::Tcp(80)),
                    family,
                )?;
                let talk = service("good", via, Port::Udp(53));
                let caller = Caller::open(lab, &client(), &talk, family)?;
                ensure!(caller.send(lab, PATIENCE)?.answered, "{talk} by {family}");
                for (connection, _) in &ends {
                    ensure!(connection.ping_pong(PATIENCE), "{via} by {family}");
                }
                ensure!(lives.ping_pong(PATIENCE), "near by {family}");
                enforce(lab, agent, &policy(NEAR))?;
                for (connection, side) in &ends {
                    let sent = connection.send(*side, SILENCE);
                    ensure!(!sent, "{via} by {family}: from the {side:?}");
                }
                let heard = caller.send(lab, SILENCE)?;
                ensure!(heard.by.is_none(), "{talk} by {family}: {heard:?}");
                ensure!(
                    lives.ping_pong(PATIENCE),
                    "the other one, {via} by {family}"
                );
            }
        }
        Ok(())
    })
}

/// Everything is judged again at each change, and what stays allowed does not notice.
#[test]
fn an_unrelated_change_loses_nothing() -> anyhow::Result<()> {
    everywhere(|lab, agent| {
        enforce(lab, agent, &policy(GOOD))?;
        let mut running = Vec::new();
        for via in [Via::ClusterIp, Via::NodePort] {
            for family in Family::ALL {
                for (load, port) in [
                    (Load::TcpStream, Port::Tcp(80)),
                    (Load::UdpFlow, Port::Udp(53)),
                ] {
                    let to = service("good", via, port);
                    let pause = Duration::from_millis(5);
                    let traffic = Traffic::start(lab, &client(), &to, family, load, pause)?;
                    running.push((format!("{load:?} to {to} by {family}"), traffic));
                }
            }
        }
        for (what, traffic) in &running {
            ensure!(traffic.wait_sent(10, PATIENCE), "{what} does not flow");
        }
        for _ in 0..5 {
            enforce(lab, agent, &policy(&format!("{GOOD}, {NEAR}")))?;
            enforce(lab, agent, &policy(GOOD))?;
        }
        for (what, traffic) in running {
            let counts = traffic.stop();
            ensure!(
                counts.lost() == 0 && counts.arrived == counts.sent,
                "{what}: {counts:?}"
            );
        }
        Ok(())
    })
}

/// S08 says so in as many words: DNS by the Service's address, and a name lookup works.
#[test]
fn a_pod_that_may_only_ask_the_dns_looks_names_up() -> anyhow::Result<()> {
    let scenario = Scenario::find("S08")?;
    for shape in [Shape::Bridge { br_netfilter: true }, Shape::Routed] {
        for mode in ProxyMode::ALL {
            let mut lab = Lab::with_proxy(shape, scenario.world.clone(), mode)?;
            let mut agent = Agent::start(&lab, Hook::Auto)?;
            let name = "kube-dns.kube-system.svc.cluster.local.";
            let dns = Destination::new(Party::service("kube-system", "kube-dns"), Port::Udp(53));
            let asking = Party::pod("production", "api-backend");
            let ask = |lab: &Lab, moment: &str| -> anyhow::Result<()> {
                for port in [Port::Udp(53), Port::Tcp(53)] {
                    for family in Family::ALL {
                        let (address, _) = lab.goal(&dns, family)?;
                        let found = lab.lookup(&asking, name, (port, family), family)?;
                        ensure!(
                            found == Lookup::Found(vec![address]),
                            "{moment}, {shape}, {mode}, {port} by {family}: {found:?}"
                        );
                    }
                }
                Ok(())
            };
            agent.wait()?;
            ask(&lab, "before the policy")?;
            lab.replace_world(scenario.steps[0].world.clone())?;
            agent.wait()?;
            ask(&lab, "under the policy")?;
            agent.stop()?;
        }
    }
    Ok(())
}
