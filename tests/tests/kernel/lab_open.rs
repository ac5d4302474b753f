//! With no agent every table is open: the lab itself forbids nothing.

use std::time::Instant;

use netpol_tests::{
    lab::{Lab, Shape},
    manifests::World,
    table::{Destination, Outcome, Port, Table},
};

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client}
spec: {containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: b, name: far}
spec: {nodeName: elsewhere, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 9, protocol: SCTP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: b, name: on-node}
spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7, 'fd00:5::7'], ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 9, protocol: SCTP}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: old}
spec: {addresses: [192.168.1.9], ports: [{port: 80}]}
";

#[test]
fn every_table_is_open_without_an_agent() -> anyhow::Result<()> {
    for shape in Shape::ALL {
        let lab = Lab::new(shape, World::parse(WORLD))?;
        let mut destinations = lab.destinations();
        // Nothing listens there, and the refusal must come back.
        for party in lab.parties() {
            for port in [Port::Icmp, Port::Tcp(4), Port::Udp(4), Port::Sctp(4)] {
                destinations.insert(Destination::new(party.clone(), port));
            }
        }
        let started = Instant::now();
        let found = lab.table_of(&destinations)?;
        println!(
            "{shape}: {} cells in {:.2} s",
            found.len(),
            started.elapsed().as_secs_f64()
        );
        let expected = Table::uniform(&lab.parties(), &destinations, Outcome::Open);
        assert!(
            expected == found,
            "{shape}: {}",
            expected.differences(&found)
        );
        assert!(found.all_open());
    }
    Ok(())
}

#[test]
fn nine_pods_with_six_ports_each() -> anyhow::Result<()> {
    let mut world = String::new();
    for pod in 1..=9 {
        world.push_str(&format!(
            "kind: Pod\napiVersion: v1\nmetadata: {{namespace: n{}, name: p{pod}}}\nspec: {{containers: [{{name: c, ports: [\
             {{containerPort: 80}}, {{containerPort: 81}}, {{containerPort: 82}}, {{containerPort: 53, protocol: UDP}}, \
             {{containerPort: 54, protocol: UDP}}, {{containerPort: 9, protocol: SCTP}}]}}]}}\n---\n",
            pod % 3
        ));
    }
    for shape in Shape::ALL {
        let started = Instant::now();
        let lab = Lab::new(shape, World::parse(&world))?;
        let built = started.elapsed();
        let started = Instant::now();
        let found = lab.table()?;
        println!(
            "{shape}: built in {:.2} s, 9 x 9 x 6 by both families in {:.2} s",
            built.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
        assert!(found.all_open(), "{}", found.opened().differences(&found));
        assert_eq!(found.destinations().count(), 54);
    }
    Ok(())
}
