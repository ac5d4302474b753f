//! What is cut on purpose must show: a prober that cannot fail proves nothing.

use std::{collections::BTreeSet, time::Duration};

use netpol_tests::{
    lab::{Connection, Lab, Shape, Side, Station},
    manifests::World,
    table::{Destination, Failure, Family, Outcome, Party, Port},
};

const WORLD: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: server}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: other}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7, 'fd00:5::7'], ports: [{port: 80}]}
";

const PORTS: [Port; 4] = [Port::Tcp(80), Port::Udp(53), Port::Sctp(9), Port::Icmp];

fn server() -> Party {
    Party::pod("a", "server")
}

fn at_server() -> BTreeSet<Destination> {
    PORTS
        .map(|port| Destination::new(server(), port))
        .into_iter()
        .collect()
}

/// Swallows everything that a station sends, or passes on, to a party.
fn swallow(station: &Station, lab: &Lab, to: &Party, family: Family) -> anyhow::Result<()> {
    let address = lab.address(to, family)?;
    // The routed shape has a host route of its own, which a blackhole of a lower metric goes before.
    station.configure(move |netlink| async move { netlink.blackhole(address.into()).await })?;
    Ok(())
}

#[test]
fn silence_is_denied_and_only_by_the_family_that_was_cut() -> anyhow::Result<()> {
    for shape in [
        Shape::Bridge { br_netfilter: true },
        Shape::Bridge {
            br_netfilter: false,
        },
    ] {
        let lab = Lab::new(shape, World::parse(WORLD))?;
        let host = Party::host("outside");
        swallow(lab.node(), &lab, &server(), Family::V6)?;
        let table = lab.probe(&BTreeSet::from([host.clone()]), &at_server())?;
        for destination in at_server() {
            assert_eq!(
                table.get(&host, &destination, Family::V4),
                Some(Outcome::Open),
                "{shape}: {destination} by IPv4"
            );
            let v6 = table.get(&host, &destination, Family::V6);
            // The node answers for a blackhole of its own when it routes IPv6: that is an error, and not silence.
            assert!(
                matches!(v6, Some(Outcome::Denied | Outcome::Error(_))),
                "{shape}: {destination} by IPv6: {v6:?}"
            );
        }
        swallow(lab.node(), &lab, &server(), Family::V4)?;
        let table = lab.probe(&BTreeSet::from([host.clone()]), &at_server())?;
        for destination in at_server() {
            assert_eq!(
                table.get(&host, &destination, Family::V4),
                Some(Outcome::Denied),
                "{shape}: {destination} by IPv4"
            );
        }
    }
    Ok(())
}

#[test]
fn a_lost_answer_is_half() -> anyhow::Result<()> {
    for shape in Shape::ALL {
        let lab = Lab::new(shape, World::parse(WORLD))?;
        let client = Party::pod("a", "other");
        // Everybody has found everybody, or IPv6 clients would not even find the server.
        assert!(lab.table()?.all_open());
        for family in Family::ALL {
            // Where the server's answers go next; nobody there has the MAC address that they go to.
            let next = match (shape, family) {
                (Shape::Bridge { .. }, _) => lab.address(&client, family)?,
                (Shape::Routed, Family::V4) => "10.244.1.1".parse()?,
                (Shape::Routed, Family::V6) => "fd00:10:244:1::1".parse()?,
            };
            lab.station(&server())?
                .configure(move |netlink| async move {
                    let eth0 = netlink.index("eth0").await?;
                    netlink.neighbour(eth0, next, [2, 0, 0, 0, 0, 66]).await
                })?;
        }
        let table = lab.probe(&BTreeSet::from([client.clone()]), &at_server())?;
        for family in Family::ALL {
            for (port, outcome) in [
                (Port::Tcp(80), Outcome::Half),
                (Port::Udp(53), Outcome::Half),
                (Port::Sctp(9), Outcome::Half),
                (Port::Icmp, Outcome::Denied),
            ] {
                let destination = Destination::new(server(), port);
                let found = table.get(&client, &destination, family);
                assert_eq!(found, Some(outcome), "{shape}: {destination} by {family}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_error_is_no_silence() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(WORLD))?;
    let client = Party::pod("a", "other");
    // Nobody has this address: the router says so, or the sender's own kernel does.
    swallow(lab.station(&client)?, &lab, &server(), Family::V4)?;
    let destination = Destination::new(server(), Port::Udp(53));
    assert_eq!(
        lab.try_once(&client, &destination, Family::V4)?,
        Outcome::Error(Failure::Errno(22))
    );
    let destination = Destination::new(server(), Port::Tcp(4));
    assert_eq!(
        lab.try_once(&client, &destination, Family::V6)?,
        Outcome::Refused
    );
    Ok(())
}

#[test]
fn a_live_connection_notices_both_directions() -> anyhow::Result<()> {
    let patience = Duration::from_millis(700);
    let lab = Lab::new(
        Shape::Bridge {
            br_netfilter: false,
        },
        World::parse(WORLD),
    )?;
    let client = Party::pod("a", "other");
    for family in Family::ALL {
        let to = Destination::new(server(), Port::Tcp(80));
        let connection = Connection::open(&lab, &client, &to, family)?;
        assert!(connection.ping_pong(patience), "{family}");
        // The server cannot send any more; the client's segments still arrive, without being acknowledged.
        swallow(lab.station(&server())?, &lab, &client, family)?;
        assert!(!connection.send(Side::Server, patience), "{family}");
        assert!(connection.send(Side::Client, patience), "{family}");
        assert_eq!(connection.closed(Side::Client), None);
    }
    Ok(())
}
