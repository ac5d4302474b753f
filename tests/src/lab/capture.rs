//! What passes a device, to be looked at and counted.

use std::{io, mem::MaybeUninit, os::fd::AsRawFd};

use socket2::Socket;

use super::{Station, error::LabError, frame};

/// How much may pass between two looks.
const BUFFER: libc::c_int = 8 << 20;

/// A packet socket that holds every frame that passes a device, in or out, until it is looked at.
pub struct Capture {
    socket: Socket,
}

/// A frame that passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// It was sent by the device, and not received.
    pub outgoing: bool,
    /// All of it, with its Ethernet header.
    pub frame: Vec<u8>,
}

impl Capture {
    /// Begins, on a device of a station: `uplink0`, `flannel.1`, `cni0` of a node, `eth0` of a pod.
    pub fn start(station: &Station, device: &str) -> Result<Self, LabError> {
        let name = device.to_owned();
        let index = station.configure(move |netlink| async move { netlink.index(&name).await })?;
        let socket = station.worker.run(move || async move {
            let socket = frame::socket(index)?;
            set_buffer(&socket)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let socket = socket
            .map_err(|error: io::Error| LabError::io(format!("capture on {device}"), error))?;
        Ok(Self { socket })
    }

    /// What passed since the last look.
    ///
    /// # Errors
    ///
    /// Also when more passed than the kernel could hold.
    pub fn take(&self) -> io::Result<Vec<Captured>> {
        let mut taken = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 65536];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // SAFETY: the kernel has written the first `length` bytes.
                    let frame = buffer[..length]
                        .iter()
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    // SAFETY: the address of a packet socket is a `sockaddr_ll`.
                    let kind = unsafe { (*from.as_ptr().cast::<libc::sockaddr_ll>()).sll_pkttype };
                    taken.push(Captured {
                        outgoing: kind == libc::PACKET_OUTGOING,
                        frame,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        match dropped(&self.socket)? {
            0 => Ok(taken),
            lost => Err(io::Error::other(format!("{lost} frames were not captured"))),
        }
    }

    /// How many of the frames that passed since the last look are as `wanted`.
    pub fn count(&self, wanted: impl Fn(&Captured) -> bool) -> io::Result<usize> {
        Ok(self.take()?.iter().filter(|frame| wanted(frame)).count())
    }
}

fn set_buffer(socket: &Socket) -> io::Result<()> {
    let size = BUFFER;
    // SAFETY: the pointer is to a live integer of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many frames found no room since this was last asked.
fn dropped(socket: &Socket) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the pointers are to a live `tpacket_stats` and to its size, which the kernel writes no further than.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(statistics.tp_drops)
    } else {
        Err(io::Error::last_os_error())
    }
}
