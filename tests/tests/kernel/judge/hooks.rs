//! The devices of the node, which program judges at which, and what a packet looks like where it has no Ethernet header.

use std::{fs::File, os::fd::AsFd as _};

use netpol_agent::dataplane::memory::SliceFrame;
use netpol_common::{Direction, Frame, map};
use netpol_tests::lab::Netlink;

use super::{
    shot::{Entry, Hook},
    world::Pod,
};

/// The indexes of the devices: of the pods, in their order, and of the uplink.
const DEVICES: [u32; 4] = [50, 51, 52, 53];
const UPLINK: u32 = DEVICES[3];

/// The device of a pod.
pub const fn device_of(pod: Pod) -> u32 {
    DEVICES[pod as usize]
}

/// The program of a hook, its device, and the direction in which it judges.
pub const fn place(hook: Hook) -> (&'static str, u32, Option<Direction>) {
    match hook {
        Hook::Sends(pod) => (map::POD_EGRESS, device_of(pod), Some(Direction::Egress)),
        Hook::Hears(pod) => (map::POD_INGRESS, device_of(pod), Some(Direction::Ingress)),
        Hook::Leaves => (map::HOST_EGRESS, UPLINK, None),
        Hook::LeavesBare => (map::BARE_EGRESS, UPLINK, None),
    }
}

/// The device by which a packet came to the node, 0 if by none.
pub const fn came_in_by(entry: Entry) -> u32 {
    match entry {
        Entry::Node => 0,
        Entry::Pod(pod) => device_of(pod),
        Entry::Uplink => UPLINK,
    }
}

/// Makes the devices in this thread's namespace.
pub fn make_devices() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let here = File::open("/proc/thread-self/ns/net")?;
    let names = ["pod-a", "pod-b", "pod-c", "uplink"];
    for (index, name) in DEVICES.into_iter().zip(names) {
        let peer = format!("{name}-peer");
        let veth = async {
            Netlink::open()?
                .veth((name, index), &peer, here.as_fd())
                .await
        };
        runtime.block_on(veth)?;
    }
    Ok(())
}

/// A packet that begins with its IP header, as the programs see it on a device that has no other.
pub struct Bare<'a, 'b>(pub &'a SliceFrame<'b>);

impl Bare<'_, '_> {
    const LACKS: usize = 14;

    /// What `eth_type_trans` makes of a test packet (net/ethernet/eth.c).
    fn protocol(&self) -> [u8; 2] {
        const ETH_P_802_3: u16 = 0x0001;
        const ETH_P_802_2: u16 = 0x0004;
        let bytes = self.0.bytes;
        match (bytes.get(12..14), bytes.get(14..16)) {
            (Some(&[high, low]), _) if high >= 0x06 => [high, low],
            (_, Some([0xff, 0xff])) => ETH_P_802_3.to_be_bytes(),
            _ => ETH_P_802_2.to_be_bytes(),
        }
    }
}

impl Frame for Bare<'_, '_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset.checked_sub(Self::LACKS)?)
    }

    fn start(&self) -> Option<[u8; 34]> {
        let ip = self.load::<20>(Self::LACKS)?;
        let mut start = [0; 34];
        start[12..14].copy_from_slice(&self.protocol());
        start[14..].copy_from_slice(&ip);
        Some(start)
    }

    fn ether_type(&self) -> u16 {
        u16::from_be_bytes(self.protocol())
    }

    fn len(&self) -> u32 {
        self.0.len() + Self::LACKS as u32
    }

    fn interface(&self) -> u32 {
        self.0.interface()
    }

    fn came_in_by(&self) -> u32 {
        self.0.came_in_by()
    }

    fn of_a_socket(&self) -> bool {
        self.0.of_a_socket()
    }

    fn tagged(&self) -> bool {
        self.0.tagged()
    }

    fn mark(&self) -> u32 {
        self.0.mark()
    }

    fn set_mark(&self, mark: u32) {
        self.0.set_mark(mark);
    }
}
