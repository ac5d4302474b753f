//! Whole Ethernet frames, past the sender's own IP stack: for packets that no honest pod would send.

use std::{
    io::{self, ErrorKind},
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{Lab, error::LabError};
use crate::table::Party;

/// A packet socket on a device of a party: sends frames as they are, and receives every frame that comes in or goes out.
pub struct FrameSocket {
    socket: Socket,
    device: u32,
}

impl FrameSocket {
    /// Opens it; a pod's device is `eth0`.
    pub fn open(lab: &Lab, party: &Party, device: &str) -> Result<Self, LabError> {
        let station = lab.station(party)?;
        let name = device.to_owned();
        let index = station.configure(move |netlink| async move { netlink.index(&name).await })?;
        let socket = station
            .worker
            .run(move || async move { socket(index) })
            .map_err(|error| LabError::io(format!("open a packet socket at {party}"), error))?;
        Ok(Self {
            socket,
            device: index,
        })
    }

    /// Sends a frame: destination MAC, source MAC, EtherType, payload.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send_to(frame, &link_address(self.device))?;
        Ok(())
    }

    /// Waits for the first frame, in or out, that `wanted` accepts.
    pub fn receive(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut buffer = [MaybeUninit::uninit(); 65536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    // SAFETY: the kernel has written the first `length` bytes.
                    let frame: Vec<u8> = buffer[..length]
                        .iter()
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    if wanted(&frame) {
                        return Ok(Some(frame));
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A packet socket on a device of the calling thread's namespace.
pub(super) fn socket(device: u32) -> io::Result<Socket> {
    let protocol = u16::to_be(libc::ETH_P_ALL as u16);
    let protocol = Protocol::from(i32::from(protocol));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.bind(&link_address(device))?;
    Ok(socket)
}

/// A device as the address of a packet socket.
pub(super) fn link_address(device: u32) -> SockAddr {
    // SAFETY: `sockaddr_ll` is plain numbers; all zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = u16::to_be(libc::ETH_P_ALL as u16);
    // Indexes are small positive numbers.
    address.sll_ifindex = device as i32;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_storage` is large and aligned enough for every address, this one included.
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = address;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}
