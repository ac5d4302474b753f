//! Looks at every frame that a pod receives, for packets that no version of the policies allows: a SYN that gets through
//! is a leak, also where its answer does not.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use netpol_tests::{
    lab::{FrameSocket, Lab, LabError},
    table::Party,
};

/// A port that no version of the policies opens.
pub const CLOSED: u16 = 7000;

/// What leaked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leaks {
    /// TCP segments.
    pub tcp: u64,
    /// UDP datagrams.
    pub udp: u64,
}

/// Watches one pod.
pub struct Watch {
    tcp: Arc<AtomicU64>,
    udp: Arc<AtomicU64>,
    seen: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Counts what comes in at `pod` from `foes`, or from anybody at the closed port.
    pub fn start(lab: &Lab, pod: &Party, foes: &[Party]) -> Result<Self, LabError> {
        let own: BTreeSet<IpAddr> = lab.addresses(pod)?.iter().copied().collect();
        let mut forbidden = BTreeSet::new();
        for foe in foes {
            forbidden.extend(lab.addresses(foe)?.iter().copied());
        }
        let socket = FrameSocket::open(lab, pod, "eth0")?;
        let [tcp, udp, seen] = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (tcp, udp, seen) = (Arc::clone(&tcp), Arc::clone(&udp), Arc::clone(&seen));
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Nothing is ever wanted: it looks at all frames until the time is over.
                    let _ = socket.receive(Duration::from_millis(50), |frame| {
                        seen.fetch_add(1, Ordering::Relaxed);
                        let Some(packet) = read(frame) else {
                            return false;
                        };
                        let foe = forbidden.contains(&packet.from) || packet.port == CLOSED;
                        if own.contains(&packet.to) && foe {
                            let count = if packet.protocol == 6 { &tcp } else { &udp };
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        false
                    });
                }
            })
        };
        Ok(Self {
            tcp,
            udp,
            seen,
            over,
            thread: Some(thread),
        })
    }

    /// What leaked so far.
    pub fn leaks(&self) -> Leaks {
        Leaks {
            tcp: self.tcp.load(Ordering::Relaxed),
            udp: self.udp.load(Ordering::Relaxed),
        }
    }

    /// How many frames it has looked at: a watch that sees nothing proves nothing.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    /// The destination port.
    port: u16,
}

/// A TCP or UDP packet as the lab's kernels send them: no IPv6 extension headers.
fn read(frame: &[u8]) -> Option<Packet> {
    let packet = frame.get(14..)?;
    let (from, to, protocol, payload): (IpAddr, IpAddr, u8, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = packet.first_chunk::<20>()?;
            let [from, to] =
                [12, 16].map(|at| [header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let payload = packet.get(usize::from(header[0] & 0xf) * 4..)?;
            (from.into(), to.into(), header[9], payload)
        }
        [0x86, 0xdd] => {
            let header = packet.first_chunk::<40>()?;
            let from = <[u8; 16]>::try_from(&header[8..24]).ok()?;
            let to = <[u8; 16]>::try_from(&header[24..40]).ok()?;
            (from.into(), to.into(), header[6], packet.get(40..)?)
        }
        _ => return None,
    };
    let [_, _, high, low] = *payload.first_chunk::<4>()?;
    matches!(protocol, 6 | 17).then(|| Packet {
        from,
        to,
        protocol,
        port: u16::from_be_bytes([high, low]),
    })
}
