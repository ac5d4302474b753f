//! The queueing discipline that clsact filters hang on.

use std::io;

use aya::programs::tc::qdisc_add_clsact;
use nix::sys::socket::SockProtocol;

use crate::netlink::{Socket, find, text};

/// `struct tcmsg`
const HEADER: usize = 20;
/// `TC_H_CLSACT`: there is one place for clsact and for the older `ingress`.
const PLACE: u32 = 0xffff_fff1;
const TCA_KIND: u16 = 1;

/// Sees to it that a device has a clsact queueing discipline: ours or somebody else's, they are all alike.
///
/// # Errors
///
/// If the kernel refuses, or if an `ingress` discipline takes its place: that one has no egress, and the kernel
/// (net/sched/sch_ingress.c, `ingress_tcf_block`) would put an egress filter among those of ingress without a word.
pub(super) fn ensure(device: &str) -> anyhow::Result<()> {
    match qdisc_add_clsact(device) {
        Ok(()) => return Ok(()),
        Err(error) if !exists(&error) => return Err(error.into()),
        Err(_) => {}
    }
    match kind(device)?.as_deref() {
        // A kernel that does not tell gets the benefit of the doubt.
        None | Some("clsact") => Ok(()),
        Some(other) => anyhow::bail!(
            "its queueing discipline `{other}` is in the place of clsact: remove it (`tc qdisc del dev {device} ingress`) or let \
             its owner use clsact, which takes the same ingress filters"
        ),
    }
}

/// What is in the place of clsact.
fn kind(device: &str) -> io::Result<Option<String>> {
    let index = nix::net::if_::if_nametoindex(device)?;
    let mut body = vec![0; HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[12..16].copy_from_slice(&PLACE.to_ne_bytes());
    let mut kind = None;
    let mut socket = Socket::open(SockProtocol::NetlinkRoute, 0)?;
    // Without an echo some kernels answer only those who listen to RTNLGRP_TC (net/sched/sch_api.c, `qdisc_notify`).
    let flags = libc::NLM_F_ECHO | libc::NLM_F_ACK;
    socket.ask(libc::RTM_GETQDISC, flags, &body, |_, message| {
        kind = find(message, HEADER, TCA_KIND).map(text);
    })?;
    Ok(kind)
}

fn exists(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(libc::EEXIST)
        {
            return true;
        }
        next = error.source();
    }
    false
}
