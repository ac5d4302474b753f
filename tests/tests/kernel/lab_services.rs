//! Services without an agent: every kind, by every address, in both modes of kube-proxy and by both families.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, ensure};
use netpol_tests::{
    lab::{Backend, Caller, Connection, Lab, Lookup, ProxyMode, Shape},
    manifests::{DocumentId, World},
    table::{Destination, Failure, Family, Outcome, Party, Port, Table, Via},
};

/// Every kind of Service, each with a TCP and a UDP port.
const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: one, labels: {app: web, alone: 'yes'}}
spec: {containers: [{name: c, ports: [{containerPort: 8080, name: http}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: two, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 8080, name: http}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: far, labels: {place: far}}
spec: {nodeName: elsewhere, containers: [{name: c, ports: [{containerPort: 8080, name: http}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: on-node, labels: {place: node}}
spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 8080, name: http}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7, 'fd00:5::7'], ports: [{port: 8080}, {port: 5353, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: both}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  externalIPs: [10.99.0.1, 'fd00:10:99::1']
  ports: [{name: http, port: 80, targetPort: http}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: alone}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {alone: 'yes'}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: sticky}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {alone: 'yes'}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: far}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {place: far}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: on-node}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {place: node}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: talk, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: outside}
spec:
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80}, {name: talk, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: a, name: outside-4, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [10.0.5.7]}]
ports: [{name: http, port: 8080, protocol: TCP}, {name: talk, port: 5353, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: a, name: outside-6, labels: {kubernetes.io/service-name: outside}}
addressType: IPv6
endpoints: [{addresses: ['fd00:5::7']}]
ports: [{name: http, port: 8080, protocol: TCP}, {name: talk, port: 5353, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: nobody}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: nobody}
  ports: [{name: http, port: 80}, {name: talk, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: four-only}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// Where Services work for local pods.
const SHAPES: [Shape; 2] = [Shape::Bridge { br_netfilter: true }, Shape::Routed];

const PATIENCE: Duration = Duration::from_secs(2);

fn client() -> Party {
    Party::pod("a", "client")
}

fn at(name: &str, via: Via, port: Port) -> Destination {
    Destination::new(Party::service_via("a", name, via), port)
}

/// Runs a story in each shape and mode.
fn everywhere(
    world: &str,
    story: impl Fn(&mut Lab, ProxyMode) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for shape in SHAPES {
        for mode in ProxyMode::ALL {
            let mut lab = Lab::with_proxy(shape, World::parse(world), mode)?;
            story(&mut lab, mode).with_context(|| format!("{shape}, kube-proxy in mode {mode}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_service_is_open_to_everybody() -> anyhow::Result<()> {
    everywhere(WORLD, |lab, _| {
        let (nobody, goals): (BTreeSet<_>, BTreeSet<_>) = lab
            .service_destinations()
            .into_iter()
            .partition(|goal| goal.party.to_string().contains("/nobody"));
        let found = lab.table_of(&goals)?;
        ensure!(found.all_open(), "{}", found.opened().differences(&found));
        let four = at("four-only", Via::ClusterIp, Port::Tcp(80));
        ensure!(found.get(&client(), &four, Family::V4) == Some(Outcome::Open));
        ensure!(found.get(&client(), &four, Family::V6).is_none());
        // 8 kinds by cluster address; hosts have no way there.
        ensure!(found.len() > 200, "only {} cells", found.len());

        // Refused at once, and by the node: there is nobody behind it. To the node's own datagrams its kernel says so.
        let on_node = [Party::Node, Party::pod("a", "on-node")];
        let refused = lab.table_of(&nobody)?;
        for (source, goal, cell) in refused.iter() {
            for outcome in [cell.v4, cell.v6] {
                let told = outcome == Some(Outcome::Error(Failure::NotPermitted));
                ensure!(
                    outcome == Some(Outcome::Refused) || (told && on_node.contains(source)),
                    "{source} at {goal}: {cell:?}"
                );
            }
        }
        Ok(())
    })
}

/// With a kube-proxy on each of two nodes, and Flannel between them.
#[test]
fn every_service_is_open_across_nodes() -> anyhow::Result<()> {
    for (shape, backend, mode) in [
        (SHAPES[0], Backend::Vxlan, ProxyMode::Iptables),
        (SHAPES[0], Backend::HostGw, ProxyMode::Nftables),
        (SHAPES[1], Backend::Vxlan, ProxyMode::Nftables),
        (SHAPES[1], Backend::HostGw, ProxyMode::Iptables),
    ] {
        let lab = Lab::with_nodes_and_proxy(shape, backend, World::parse(WORLD), mode)?;
        let mut goals = lab.service_destinations();
        goals.retain(|goal| !goal.party.to_string().contains("/nobody"));
        let found = lab.table_of(&goals)?;
        // As in life: the nftables mode drops what a node without a local backend sends to the load balancer of a Service
        // whose external policy is Local; the iptables mode lets it through.
        let is_dropped = |source: &Party, goal: &Destination| {
            mode == ProxyMode::Nftables
                && *source == Party::machine("elsewhere")
                && goal.party == Party::service_via("a", "local", Via::LoadBalancer)
        };
        for (source, goal, cell) in found.iter() {
            let open = cell.uniform().is_some_and(Outcome::is_open);
            ensure!(
                open != is_dropped(source, goal),
                "{shape}, {backend}, kube-proxy in mode {mode}: {source} at {goal}: {cell:?}"
            );
        }
        let far = at("alone", Via::ClusterIp, Port::Tcp(80));
        let asked = found.get(&Party::pod("a", "far"), &far, Family::V6);
        ensure!(
            asked == Some(Outcome::Open),
            "{asked:?} from the other node"
        );
    }
    Ok(())
}

/// How often which backend accepts connections of a client.
fn choices(
    lab: &Lab,
    from: &Party,
    to: &Destination,
    family: Family,
    tries: usize,
) -> anyhow::Result<BTreeMap<Party, usize>> {
    let mut chosen = BTreeMap::new();
    for _ in 0..tries {
        let connection = Connection::open(lab, from, to, family)?;
        ensure!(
            connection.ping_pong(PATIENCE),
            "{to}: it opened, and no more"
        );
        *chosen.entry(connection.accepted_by().clone()).or_default() += 1;
    }
    Ok(chosen)
}

#[test]
fn connections_are_spread_and_a_sticky_client_keeps_its_backend() -> anyhow::Result<()> {
    everywhere(WORLD, |lab, _| {
        for family in Family::ALL {
            let spread = at("both", Via::ClusterIp, Port::Tcp(80));
            // All of 40 at one of two: once in 2^39.
            let chosen = choices(lab, &client(), &spread, family, 40)?;
            ensure!(chosen.len() == 2, "{chosen:?} by {family}");
            let sticky = at("sticky", Via::ClusterIp, Port::Tcp(80));
            let chosen = choices(lab, &client(), &sticky, family, 20)?;
            ensure!(chosen.len() == 1, "{chosen:?} by {family}");
            // Another Service comes, and the client is still known.
            let more = format!("more-{}", if family == Family::V4 { 4 } else { 6 });
            lab.apply(&format!(
                "{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: {more}}}, spec: {{selector: {{app: web}}, ports: [{{port: 81, targetPort: 8080}}]}}}}"
            ))?;
            let again = choices(lab, &client(), &sticky, family, 20)?;
            ensure!(chosen.keys().eq(again.keys()), "{chosen:?}, {again:?}");
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() -> anyhow::Result<()> {
    everywhere(WORLD, |lab, _| {
        let one = Party::pod("a", "one");
        for via in [Via::ClusterIp, Via::NodePort] {
            for family in Family::ALL {
                let to = at("alone", via, Port::Tcp(80));
                let chosen = choices(lab, &one, &to, family, 3)?;
                ensure!(chosen.keys().eq([&one]), "{to}: {chosen:?}");
                let to = at("alone", via, Port::Udp(53));
                let heard = Caller::open(lab, &one, &to, family)?.send(lab, PATIENCE)?;
                ensure!(
                    heard.answered && heard.by.as_ref() == Some(&one),
                    "{to}: {heard:?}"
                );
            }
        }
        Ok(())
    })
}

/// The same socket, the same ports, before and after.
#[test]
fn a_udp_socket_gets_another_backend_when_its_own_goes() -> anyhow::Result<()> {
    everywhere(WORLD, |lab, _| {
        let (one, two) = (Party::pod("a", "one"), Party::pod("a", "two"));
        for via in [Via::ClusterIp, Via::NodePort] {
            let to = at("alone", via, Port::Udp(53));
            for family in Family::ALL {
                let caller = Caller::open(lab, &client(), &to, family)?;
                let heard = caller.send(lab, PATIENCE)?;
                ensure!(
                    heard.by.as_ref() == Some(&one) && heard.answered,
                    "{to}: {heard:?}"
                );
                move_label(lab, &one, &two)?;
                let heard = caller.send(lab, PATIENCE)?;
                ensure!(
                    heard.by.as_ref() == Some(&two) && heard.answered,
                    "{to}: {heard:?}"
                );
                move_label(lab, &two, &one)?;
            }
        }
        Ok(())
    })
}

fn move_label(lab: &mut Lab, from: &Party, to: &Party) -> anyhow::Result<()> {
    let id = |party: &Party| match party {
        Party::Pod(key) => DocumentId::pod(&key.namespace, &key.name),
        _ => unreachable!("only pods have labels"),
    };
    let (from, to) = (id(from), id(to));
    lab.change(|world| {
        world.label(&from, &[("alone", None)])?;
        world.label(&to, &[("alone", Some("yes"))])
    })?;
    Ok(())
}

/// As kube-proxy has it: by the cluster address a pod keeps its own address; by the others it comes as the node, unless the
/// external policy is Local.
#[test]
fn the_source_address_is_kept_or_not_as_in_life() -> anyhow::Result<()> {
    everywhere(WORLD, |lab, _| {
        for family in Family::ALL {
            for (from, name, via, kept) in [
                (client(), "alone", Via::ClusterIp, true),
                (client(), "alone", Via::NodePort, false),
                (Party::host("outside"), "alone", Via::NodePort, false),
                (Party::host("outside"), "both", Via::ExternalIp, false),
                (Party::host("outside"), "both", Via::LoadBalancer, false),
                (Party::host("outside"), "local", Via::LoadBalancer, true),
                (Party::host("outside"), "local", Via::NodePort, true),
                (client(), "local", Via::LoadBalancer, true),
            ] {
                let to = at(name, via, Port::Tcp(80));
                let connection = Connection::open(lab, &from, &to, family)?;
                let seen = connection.seen_as();
                let own = lab.address(&from, family)?;
                ensure!(
                    (seen.ip() == own) == kept,
                    "{from} at {to} by {family} is seen as {seen}"
                );
                if !kept {
                    let node = lab.home(&Party::Node).context("a node")?;
                    ensure!(node.all_addresses().contains(&seen.ip()), "{seen}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn manifests_get_what_the_api_server_would_write() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(WORLD))?;
    let written = lab.documents("Service");
    let of = |name: &str| {
        let found = written.iter().find(|s| s["metadata"]["name"] == name);
        found.cloned().unwrap_or_default()
    };
    let both = of("both");
    assert_eq!(both["spec"]["clusterIP"], "10.96.0.11");
    assert_eq!(both["spec"]["clusterIPs"][1], "fd00:10:96::b");
    assert_eq!(both["spec"]["ports"][0]["nodePort"], 30_000);
    assert_eq!(
        both["status"]["loadBalancer"]["ingress"][1]["ip"],
        "fd00:10:98::b"
    );
    assert!(of("outside")["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(
        of("four-only")["spec"]["clusterIPs"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    // And the agent reads the same.
    let file = std::fs::read_to_string(lab.manifests().join("world.yaml"))?;
    assert!(file.contains("\"clusterIP\": \"10.96.0.11\""), "{file}");
    Ok(())
}

#[test]
fn foreign_marks_survive_the_rules() -> anyhow::Result<()> {
    use netpol_tests::lab::ProxyMode::{Iptables, Nftables};
    for mode in [Iptables, Nftables] {
        let lab = Lab::with_proxy(Shape::Routed, World::parse(WORLD), mode)?;
        let rules = lab.proxy_rules()?;
        for line in rules.lines().filter(|line| line.contains("mark set")) {
            ensure!(
                line.contains("0x00004000") || line.contains("0x4000"),
                "{mode}: {line}"
            );
            ensure!(
                line.contains(" or ")
                    || line.contains(" xor ")
                    || line.contains('|')
                    || line.contains('^'),
                "{mode}: {line}"
            );
        }
        ensure!(
            rules.contains("mark set"),
            "{mode}: no rule sets a mark:\n{rules}"
        );
    }
    Ok(())
}

const DNS: &str = "
---
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
apiVersion: v1
kind: Service
metadata: {namespace: a, name: headless}
spec: {ipFamilyPolicy: PreferDualStack, clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
";

#[test]
fn names_are_looked_up_through_the_service() -> anyhow::Result<()> {
    everywhere(&format!("{WORLD}{DNS}"), |lab, _| {
        for by in Family::ALL {
            for port in [Port::Udp(53), Port::Tcp(53)] {
                for wanted in Family::ALL {
                    let ask = |name: &str| lab.lookup(&client(), name, (port, by), wanted);
                    let (virtual_address, _) =
                        lab.goal(&at("both", Via::ClusterIp, Port::Tcp(80)), wanted)?;
                    let found = ask("both.a.svc.cluster.local.")?;
                    ensure!(found == Lookup::Found(vec![virtual_address]), "{found:?}");
                    let mut pods = vec![
                        lab.address(&Party::pod("a", "one"), wanted)?,
                        lab.address(&Party::pod("a", "two"), wanted)?,
                    ];
                    pods.sort();
                    let found = ask("Headless.a.svc.cluster.local.")?;
                    ensure!(found == Lookup::Found(pods), "{found:?}");
                    let found = ask("none.a.svc.cluster.local.")?;
                    ensure!(matches!(found, Lookup::Unknown(_)), "{found:?}");
                    let found = ask("example.com.")?;
                    ensure!(matches!(found, Lookup::Unknown(_)), "{found:?}");
                }
            }
        }
        // The same port still answers the lab's own probes.
        let dns = BTreeSet::from([
            Destination::new(Party::service("kube-system", "kube-dns"), Port::Udp(53)),
            Destination::new(Party::service("kube-system", "kube-dns"), Port::Tcp(53)),
        ]);
        let found: Table = lab.table_of(&dns)?;
        ensure!(found.all_open(), "{}", found.opened().differences(&found));
        Ok(())
    })
}
