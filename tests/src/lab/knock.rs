//! One datagram, and whether it arrived: quicker than a probe where the answer is no.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::{Lab, error::LabError, probe, serve};
use crate::table::{Destination, Family, Party, Port};

impl Lab {
    /// Sends one UDP datagram, of a flow of its own, to a port that another party declares. Says whether it arrived in time.
    pub fn knock(
        &self,
        from: &Party,
        to: &Destination,
        family: Family,
        patience: Duration,
    ) -> Result<bool, LabError> {
        let failed = |error| LabError::io(format!("send a datagram to {to}"), error);
        let (address, Port::Udp(port)) = self.goal(to, family)? else {
            return Err(failed(std::io::ErrorKind::InvalidInput.into()));
        };
        let goal = SocketAddr::new(address, port);
        let nonce = probe::nonce();
        let sent = self.station(from)?.worker.run(move || async move {
            let any: SocketAddr = match goal {
                SocketAddr::V4(_) => ([0; 4], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = std::net::UdpSocket::bind(any)?;
            socket.send_to(&serve::message(serve::PING_MAGIC, nonce), goal)
        });
        sent.map_err(failed)?;
        let receivers = self.receivers(to, family);
        let inboxes = receivers.iter().map(|receiver| self.inbox(&receiver.party));
        let inboxes: Vec<_> = inboxes.collect::<Result<_, _>>()?;
        let end = Instant::now() + patience;
        while !inboxes.iter().any(|inbox| inbox.has(nonce)) {
            if Instant::now() > end {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }
}
