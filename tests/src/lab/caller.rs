//! A UDP client that keeps its socket, and with it its ports, whoever answers.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Inbox, Lab, error::LabError, probe, serve};
use crate::table::{Destination, Family, Party, Port};

/// A connected UDP socket in a party's namespace.
pub struct Caller {
    socket: UdpSocket,
    to: Destination,
    family: Family,
}

/// What became of one datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Who received it.
    pub by: Option<Party>,
    /// Whether the answer came back.
    pub answered: bool,
}

impl Caller {
    /// Opens a socket for a UDP destination, a Service too. No packet flows yet.
    pub fn open(
        lab: &Lab,
        from: &Party,
        to: &Destination,
        family: Family,
    ) -> Result<Self, LabError> {
        Self::open_at(lab, from, to, family, 0)
    }

    /// As [`Caller::open`], from this port: what is sent can be taken for what somebody else has sent.
    pub fn open_at(
        lab: &Lab,
        from: &Party,
        to: &Destination,
        family: Family,
        port: u16,
    ) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::NotConnected {
            from: from.to_string(),
            to: to.to_string(),
            reason: error.to_string(),
        };
        let (address, Port::Udp(there)) = lab.goal(to, family)? else {
            return Err(failed(io::Error::other("the port is no UDP port")));
        };
        let goal = SocketAddr::new(address, there);
        let source = SocketAddr::new(lab.address(from, family)?, port);
        let opened = lab.station(from)?.worker.run(move || async move {
            let socket = UdpSocket::bind(source)?;
            socket.connect(goal)?;
            Ok(socket)
        });
        Ok(Self {
            socket: opened.map_err(failed)?,
            to: to.clone(),
            family,
        })
    }

    /// The port that it sends from.
    pub fn port(&self) -> Result<u16, LabError> {
        let own = self.socket.local_addr();
        own.map(|own| own.port())
            .map_err(|error| LabError::io("name the port of a socket", error))
    }

    /// Sends a datagram and waits until its echo is back, or for so long.
    pub fn send(&self, lab: &Lab, patience: Duration) -> Result<Heard, LabError> {
        let inboxes: Vec<(Party, Arc<Inbox>)> = lab
            .receivers(&self.to, self.family)
            .into_iter()
            .map(|receiver| {
                Ok((
                    receiver.party.clone(),
                    Arc::clone(lab.inbox(&receiver.party)?),
                ))
            })
            .collect::<Result<_, LabError>>()?;
        let nonce = probe::nonce();
        let message = serve::message(serve::PING_MAGIC, nonce);
        // What cannot be sent does not arrive; an error may also be an earlier datagram's.
        let sent = self
            .socket
            .send(&message)
            .or_else(|_| self.socket.send(&message));
        let end = Instant::now() + patience;
        let mut buffer = [0; 64];
        let mut answered = false;
        while sent.is_ok() && !answered {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                break;
            }
            answered =
                matches!(self.socket.recv(&mut buffer), Ok(length) if buffer[..length] == message);
        }
        let by = inboxes.into_iter().find(|(_, inbox)| inbox.has(nonce));
        Ok(Heard {
            by: by.map(|(party, _)| party),
            answered,
        })
    }
}
