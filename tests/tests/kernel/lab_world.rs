//! The world changes while the lab runs.

use std::{fs, time::Duration};

use netpol_tests::{
    lab::{Connection, FrameSocket, Lab, Load, Restart, Shape, Traffic},
    manifests::{DocumentId, World},
    table::{Destination, Family, Outcome, Party, Port},
};

const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client}
spec: {containers: [{name: c}]}
";

fn web(port: Port) -> Destination {
    Destination::new(Party::pod("a", "web"), port)
}

fn written(lab: &Lab) -> anyhow::Result<World> {
    Ok(World::read(&lab.manifests())?)
}

#[test]
fn pods_come_go_restart_and_change() -> anyhow::Result<()> {
    for shape in Shape::ALL {
        let mut lab = Lab::new(shape, World::parse(WORLD))?;
        let client = Party::pod("a", "client");
        assert!(lab.table()?.all_open());

        // A new pod, with a second port later on.
        lab.apply("{apiVersion: v1, kind: Pod, metadata: {namespace: b, name: new}, spec: {containers: [{name: c, ports: [{containerPort: 1}]}]}}")?;
        lab.apply("{apiVersion: v1, kind: Pod, metadata: {namespace: b, name: new}, spec: {containers: [{name: c, ports: [{containerPort: 1}, {containerPort: 2}]}]}}")?;
        assert_eq!(lab.destinations().len(), 4);
        let table = lab.table()?;
        assert!(
            table.all_open(),
            "{shape}: {}",
            table.opened().differences(&table)
        );

        // Labels reach the manifest, and a namespace's too.
        lab.label(
            &DocumentId::pod("a", "web"),
            &[("app", None), ("tier", Some("front"))],
        )?;
        lab.label(&DocumentId::namespace("a"), &[("env", Some("live"))])?;
        let now = written(&lab)?;
        let pod = now
            .get(&DocumentId::pod("a", "web"))
            .expect("the pod is written");
        assert_eq!(
            pod["metadata"]["labels"],
            serde_json::json!({"tier": "front"})
        );
        let addresses: Vec<String> = lab
            .addresses(&Party::pod("a", "web"))?
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(pod["status"]["podIPs"][0]["ip"], addresses[0]);
        assert_eq!(pod["status"]["podIPs"][1]["ip"], addresses[1]);
        let namespace = now
            .get(&DocumentId::namespace("a"))
            .expect("the namespace is written");
        assert_eq!(namespace["metadata"]["labels"]["env"], "live");

        // A restarted pod keeps its address or gets another one, and answers either way.
        for (restart, same) in [(Restart::SameAddress, true), (Restart::NewAddress, false)] {
            let before = lab.addresses(&Party::pod("a", "web"))?.to_vec();
            lab.restart_pod("a", "web", restart)?;
            assert_eq!(
                lab.addresses(&Party::pod("a", "web"))? == before,
                same,
                "{shape}"
            );
            for family in Family::ALL {
                let outcome = lab.try_once(&client, &web(Port::Tcp(80)), family)?;
                assert_eq!(
                    outcome,
                    Outcome::Open,
                    "{shape}: by {family} after {restart:?}"
                );
            }
        }

        // An address may be given to another pod.
        lab.delete(&DocumentId::pod("b", "new"))?;
        assert!(lab.address(&Party::pod("b", "new"), Family::V4).is_err());
        lab.apply("{apiVersion: v1, kind: Pod, metadata: {namespace: c, name: heir, annotations: {lab.netpol-agent/address-index: '4'}}, spec: {containers: [{name: c, ports: [{containerPort: 1}]}]}}")?;
        let heir = Party::pod("c", "heir");
        assert_eq!(lab.address(&heir, Family::V4)?.to_string(), "10.244.1.4");
        let table = lab.table()?;
        assert!(
            table.all_open(),
            "{shape}: {}",
            table.opened().differences(&table)
        );

        // What is deleted is gone from the manifests, and nothing else is.
        assert!(written(&lab)?.get(&DocumentId::pod("b", "new")).is_none());
        lab.replace_world(World::new())?;
        assert_eq!(fs::read_dir(lab.manifests())?.count(), 0);
    }
    Ok(())
}

#[test]
fn connections_live_and_traffic_is_counted() -> anyhow::Result<()> {
    let patience = Duration::from_secs(1);
    for shape in Shape::ALL {
        let lab = Lab::new(shape, World::parse(WORLD))?;
        let client = Party::pod("a", "client");
        for family in Family::ALL {
            let connection = Connection::open(&lab, &client, &web(Port::Tcp(80)), family)?;
            assert!(connection.ping_pong(patience), "{shape} by {family}");
            assert!(connection.ping_pong(patience), "{shape} by {family}");
        }
        let loads = [
            (Load::UdpFlow, Port::Udp(53)),
            (Load::UdpFresh, Port::Udp(53)),
            (Load::TcpStream, Port::Tcp(80)),
            (Load::TcpConnections, Port::Tcp(80)),
        ];
        let mut running = Vec::new();
        for (load, port) in loads {
            for family in Family::ALL {
                let pause = Duration::from_millis(2);
                running.push((
                    load,
                    Traffic::start(&lab, &client, &web(port), family, load, pause)?,
                ));
            }
        }
        for (load, traffic) in running {
            assert!(
                traffic.wait_sent(50, Duration::from_secs(5)),
                "{shape}: {load:?}"
            );
            let counts = traffic.stop();
            assert_eq!(counts.lost(), 0, "{shape}: {load:?}: {counts:?}");
            assert_eq!(counts.arrived, counts.sent, "{shape}: {load:?}");
        }
    }
    Ok(())
}

#[test]
fn frames_leave_a_pod_as_they_are() -> anyhow::Result<()> {
    let lab = Lab::new(
        Shape::Bridge {
            br_netfilter: false,
        },
        World::parse(WORLD),
    )?;
    let sender = FrameSocket::open(&lab, &Party::pod("a", "client"), "eth0")?;
    let receiver = FrameSocket::open(&lab, &Party::pod("a", "web"), "eth0")?;
    // To everybody, from an address that nobody has, of a type that nobody knows.
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.extend([7; 50]);
    sender.send(&frame)?;
    let received = receiver.receive(Duration::from_secs(1), |got| got[12..14] == [0x88, 0xb5])?;
    assert_eq!(received.as_deref(), Some(frame.as_slice()));
    Ok(())
}
