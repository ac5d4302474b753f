//! Virtual addresses: of somebody, of nobody, and of somebody who is not there.

use std::net::IpAddr;

use netpol_common::Reason;
use netpol_tests::lab::Shape;

use crate::stage::{Fate, Stage};

/// Backends of the Service that nobody is behind.
const GONE: [&str; 2] = ["10.244.1.200", "fd00:10:244:1::200"];
/// A hardware address that nobody has.
const NOWHERE: [u8; 6] = [2, 0, 0, 0, 9, 9];

pub fn play(stage: &Stage) -> anyhow::Result<()> {
    // Without it the node would only ask in vain who has that address.
    for address in GONE {
        let address: IpAddr = address.parse()?;
        let routed = stage.shape == Shape::Routed;
        let device = stage.lab.device(stage.party("stranger"))?;
        stage.lab.node().configure(move |netlink| async move {
            if routed {
                let to = address.into();
                netlink
                    .route(to, netpol_tests::lab::Hop::Direct, device)
                    .await?;
                return netlink.neighbour(device, address, NOWHERE).await;
            }
            let bridge = netlink.index("cni0").await?;
            netlink.neighbour(bridge, address, NOWHERE).await
        })?;
    }
    for virtual_address in ["10.96.0.9", "fd00:10:96::9"] {
        let to: IpAddr = virtual_address.parse()?;
        let what = format!("to the Service of goal at {to}");
        for from in ["ports", "all", "stranger"] {
            let frame = stage.path_to(from, to).udp(53);
            stage.check(&what, from, &frame, Fate::Arrives("goal"));
        }
        let frame = stage.path_to("mute", to).udp(53);
        stage.check(&what, "mute", &frame, Fate::Sent(Reason::Denied));
    }
    for virtual_address in ["10.96.0.10", "fd00:10:96::10"] {
        let to: IpAddr = virtual_address.parse()?;
        let what = format!("to the Service of nobody at {to}");
        for from in ["ports", "all", "mute"] {
            let frame = stage.path_to(from, to).udp(53);
            let lost = Fate::Lost(Reason::Deferred);
            stage.check(&what, from, &frame, lost);
        }
        // A port that no Service has goes where the node's routes lead, and is judged there.
        let what = format!("to a port that nothing has at {to}");
        for from in ["ports", "all", "mute"] {
            let frame = stage.path_to(from, to).udp(54);
            stage.check(&what, from, &frame, Fate::Sent(Reason::Denied));
        }
        let frame = stage.path_to("stranger", to).udp(54);
        stage.check(&what, "stranger", &frame, Fate::Sent(Reason::Open));
    }
    for virtual_address in ["10.96.0.11", "fd00:10:96::11"] {
        let to: IpAddr = virtual_address.parse()?;
        let what = format!("to the Service of a pod that is not there at {to}");
        for from in ["ports", "all", "mute"] {
            let frame = stage.path_to(from, to).udp(53);
            stage.check(&what, from, &frame, Fate::Sent(Reason::Denied));
        }
        let frame = stage.path_to("stranger", to).udp(53);
        stage.check(&what, "stranger", &frame, Fate::Sent(Reason::Open));
    }
    Ok(())
}
