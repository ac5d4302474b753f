//! Filters of ours on the devices of this network namespace, asked of the kernel. Filters are pinned by nothing: they judge for as
//! long as the device is there, also when the bpf file system that told of them was unmounted.

use std::io;

use aya::programs::{
    TcAttachType,
    tc::{SchedClassifierLink, TcHandle},
};
use netpol_common::map;
use nix::sys::socket::SockProtocol;

use super::Error;
use crate::netlink::{Socket, find, text, word};

/// Priority and handle by which a filter of ours is known on a device. The handle spells "np".
pub(super) const PRIORITY: u16 = 50;
/// See [`PRIORITY`].
pub(super) const HANDLE: TcHandle = TcHandle::new(0, NUMBER as u16);
const NUMBER: u32 = 0x6e70;

/// What our programs are called.
const NAMES: [&str; 4] = [
    map::POD_INGRESS,
    map::POD_EGRESS,
    map::HOST_EGRESS,
    map::BARE_EGRESS,
];

/// `struct tcmsg`
const HEADER: usize = 20;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, and the same of egress.
const PLACES: [(TcAttachType, u32); 2] = [
    (TcAttachType::Ingress, 0xffff_fff2),
    (TcAttachType::Egress, 0xffff_fff3),
];
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// A filter of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    pub interface: u32,
    pub device: String,
    pub place: TcAttachType,
}

/// All filters of ours in this network namespace, of whichever version.
///
/// # Errors
///
/// If the kernel does not answer.
pub(super) fn all() -> Result<Vec<Filter>, Error> {
    let failed = |source| Error::Filters { source };
    let devices = nix::net::if_::if_nameindex().map_err(|e| failed(e.into()))?;
    let mut socket = Socket::open(SockProtocol::NetlinkRoute, 0).map_err(failed)?;
    let mut filters = Vec::new();
    for device in &devices {
        let interface = device.index();
        for (place, parent) in PLACES {
            if is_ours(&mut socket, interface, parent).map_err(failed)? {
                filters.push(Filter {
                    interface,
                    device: device.name().to_string_lossy().into_owned(),
                    place,
                });
            }
        }
    }
    Ok(filters)
}

/// Takes all of them away. Returns how many there were.
///
/// # Errors
///
/// If one cannot be taken away.
pub(super) fn remove_all() -> Result<usize, Error> {
    let filters = all()?;
    for Filter { device, place, .. } in &filters {
        // Dropping it deletes the filter.
        drop(SchedClassifierLink::attached(
            device, *place, PRIORITY, HANDLE, None,
        ));
    }
    match all()?.first() {
        None => Ok(filters.len()),
        Some(left) => Err(Error::Filters {
            source: io::Error::other(format!("the one of {} stays", left.device)),
        }),
    }
}

/// Whether a filter of ours is at this place of a device.
fn is_ours(socket: &mut Socket, interface: u32, parent: u32) -> io::Result<bool> {
    let mut body = vec![0; HEADER];
    body[4..8].copy_from_slice(&interface.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    let mut ours = false;
    let answer = socket.ask(
        libc::RTM_GETTFILTER,
        libc::NLM_F_DUMP,
        &body,
        |_, message| {
            let number = |at: usize| message.get(at..at + 4).and_then(word).unwrap_or(0);
            let name = find(message, HEADER, TCA_OPTIONS)
                .and_then(|options| find(options, 0, TCA_BPF_NAME))
                .map(text);
            ours |= number(8) == NUMBER
                && number(16) >> 16 == u32::from(PRIORITY)
                && name.is_some_and(|name| NAMES.contains(&&*name));
        },
    );
    match answer {
        Ok(()) => Ok(ours),
        // The device has gone, or it has no queueing discipline that could have filters there.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(ours),
        Err(e) => Err(e),
    }
}
