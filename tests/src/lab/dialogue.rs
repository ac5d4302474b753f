//! A UDP conversation that a test keeps, with both ends in its hands.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{Lab, Side, error::LabError, probe, serve};
use crate::table::{Destination, Family, Party, Port};

/// A UDP conversation between two parties, each on a port of its own that stays the same. The receiving end is a socket
/// of its own too, also where a server answers on the port: a connected socket goes before one that is not.
#[derive(Debug)]
pub struct Dialogue {
    client: UdpSocket,
    server: UdpSocket,
}

impl Dialogue {
    /// Prepares a conversation from a party to a UDP port of another one. No packet flows yet.
    pub fn open(
        lab: &Lab,
        from: &Party,
        to: &Destination,
        family: Family,
    ) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::NotConnected {
            from: from.to_string(),
            to: to.to_string(),
            reason: error.to_string(),
        };
        let Port::Udp(port) = to.port else {
            return Err(failed(io::Error::other("the port is no UDP port")));
        };
        let here = lab.address(from, family)?;
        let there = SocketAddr::new(lab.address(&to.party, family)?, port);
        let client = lab
            .station(from)?
            .worker
            .run(move || async move { bound(here, 0) })
            .map_err(failed)?;
        let server = lab
            .station(&to.party)?
            .worker
            .run(move || async move { bound(there.ip(), port) })
            .map_err(failed)?;
        let back = client.local_addr().map_err(failed)?;
        client.connect(there).map_err(failed)?;
        server.connect(back).map_err(failed)?;
        Ok(Self { client, server })
    }

    /// Sends one datagram from one side and says whether it arrived at the other in time.
    pub fn send(&self, from: Side, patience: Duration) -> bool {
        let (sender, receiver) = match from {
            Side::Client => (&self.client, &self.server),
            Side::Server => (&self.server, &self.client),
        };
        let message = serve::message(serve::PING_MAGIC, probe::nonce());
        // What cannot be sent does not arrive.
        if sender.send(&message).is_err() {
            return false;
        }
        let end = Instant::now() + patience;
        let mut buffer = [0; 64];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || receiver.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match receiver.recv(&mut buffer) {
                Ok(length) if buffer[..length] == message => return true,
                // Another message: one that a server on the same port has echoed.
                Ok(_) => {}
                // The time is over, or an ICMP message came about an earlier datagram.
                Err(_) => {}
            }
        }
    }
}

fn bound(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // A party may talk to several on one port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
