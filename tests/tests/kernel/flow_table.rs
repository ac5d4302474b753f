//! What a flood of new flows does to the flows of others: nothing, once their opener has had an answer and gone on.

use std::net::Ipv4Addr;

use anyhow::ensure;
use netpol_agent::{
    object,
    packet_builder::{Payload, frame},
};
use netpol_common::{Direction, Endpoint, Reason, map, size, tcp};
use netpol_tests::kernel::{Bench, LOOPBACK, Programs};

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const SLOT: u32 = 3;

struct Pod {
    bench: Bench,
    programs: Programs,
}

impl Pod {
    /// Sends or receives a TCP packet of a conversation with `remote`, and tells why it passed or not.
    fn packet(
        &mut self,
        direction: Direction,
        remote: Ipv4Addr,
        port: u16,
        flags: u8,
    ) -> anyhow::Result<Reason> {
        let before = self.bench.counted(SLOT, direction)?;
        let payload = |source, destination| Payload::Tcp {
            source,
            destination,
            flags,
        };
        let (program, bytes) = match direction {
            Direction::Egress => (
                map::POD_EGRESS,
                frame(POD.into(), remote.into(), payload(port, 80)),
            ),
            Direction::Ingress => (
                map::POD_INGRESS,
                frame(remote.into(), POD.into(), payload(80, port)),
            ),
        };
        let bytes = bytes.expect("one family");
        self.programs.execute(program, &bytes, LOOPBACK, 1)?;
        let after = self.bench.counted(SLOT, direction)?;
        let reason = Reason::ALL
            .into_iter()
            .find(|&reason| after[reason as usize] > before[reason as usize]);
        reason.ok_or_else(|| anyhow::anyhow!("nothing was counted"))
    }
}

#[test]
fn a_flood_of_new_flows_takes_no_established_one_down() -> anyhow::Result<()> {
    let mut bench = Bench::new("flood")?;
    let programs = bench.load(object::NETPOL)?;
    let endpoint = Endpoint {
        slot: SLOT,
        ipv4: POD.into(),
        ..Endpoint::default()
    };
    bench.dataplane.set_endpoint(LOOPBACK, &endpoint)?;
    let mut pod = Pod { bench, programs };
    use Direction::{Egress, Ingress};

    let (established, opening) = (1000, 1001);
    ensure!(pod.packet(Egress, SERVER, established, tcp::SYN)? == Reason::Open);
    ensure!(pod.packet(Ingress, SERVER, established, tcp::SYN | tcp::ACK)? == Reason::Flow);
    ensure!(pod.packet(Egress, SERVER, established, tcp::ACK)? == Reason::Flow);
    ensure!(pod.packet(Egress, SERVER, opening, tcp::SYN)? == Reason::Open);

    // More conversations than both tables together have places, to as many hosts, none of which answers.
    let flood = size::FLOWS + size::OPENING;
    for number in 0..flood {
        let remote = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number);
        let bytes = frame(POD.into(), remote.into(), Payload::syn(7, 80)).expect("one family");
        pod.programs.execute(map::POD_EGRESS, &bytes, LOOPBACK, 1)?;
    }

    ensure!(
        pod.packet(Egress, SERVER, established, tcp::ACK)? == Reason::Flow,
        "an established flow was evicted"
    );
    // The flood was one: what had not been answered yet has lost its place.
    ensure!(
        pod.packet(Egress, SERVER, opening, tcp::SYN)? == Reason::Open,
        "no flow was evicted at all"
    );
    Ok(())
}
