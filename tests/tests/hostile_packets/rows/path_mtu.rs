//! A link behind a router is narrower than anybody knows: only the errors of that router tell.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use netpol_common::{Direction, Reason};
use netpol_tests::{
    lab::Capture,
    table::{Family, Party},
};

use super::sockets::stream;
use crate::stage::Stage;

/// Both families can use it; no device of the pod has it.
const NARROW: u32 = 1300;
const LENGTH: usize = 1 << 19;

/// A pod that is isolated both ways, with a rule for this one port, sends a stream to a host behind the narrow link.
pub fn play(stage: &Stage) -> anyhow::Result<()> {
    let outside = Party::host("outside");
    let link = stage.lab.device(&outside)?;
    stage
        .lab
        .outside()
        .configure(move |netlink| async move { netlink.mtu(link, NARROW).await })?;
    for family in Family::ALL {
        let (pod, host) = (
            stage.lab.station(stage.party("ports"))?,
            stage.lab.station(&outside)?,
        );
        let capture = Capture::start(pod, "eth0")?;
        let goal = SocketAddr::new(stage.lab.address(&outside, family)?, 80);
        let related = || stage.count("ports", Direction::Ingress, Reason::Related);
        let before = related()?;
        let arrived = stream(&pod.worker, &host.worker, goal, LENGTH)
            .with_context(|| format!("through a narrow link by {family}"))?;
        ensure!(arrived == LENGTH, "{family}: {arrived} bytes");
        ensure!(related()? > before, "{family}: nobody told the pod");
        let told = capture.count(|seen| {
            let message = match family {
                Family::V4 => seen.frame.get(34..36) == Some(&[3, 4][..]) && seen.frame[23] == 1,
                Family::V6 => seen.frame.get(54) == Some(&2) && seen.frame[20] == 58,
            };
            !seen.outgoing && message
        })?;
        ensure!(told > 0, "{family}: no error came");
    }
    Ok(())
}
