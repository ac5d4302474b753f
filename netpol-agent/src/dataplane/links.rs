//! Programs on devices: TCX links where the kernel has them, clsact filters over netlink where not.
//!
//! Nothing is ever detached first: a program that is there already is replaced in place, so that no packet finds the hook
//! empty.

use std::os::fd::AsFd as _;

use super::{
    Error,
    filters::{HANDLE, PRIORITY},
    pins::{Hook, LinkPin, Pins},
    qdisc, sys,
};
use aya::{
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
    },
    util::KernelVersion,
};

/// Which kind of hook to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HookChoice {
    /// TCX where the kernel has it (6.6), clsact where not.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact queueing discipline.
    Clsact,
}

/// The kind of hook in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookKind {
    /// TCX links.
    Tcx,
    /// Filters of a clsact queueing discipline.
    Clsact,
}

impl HookChoice {
    /// What this choice means on this kernel.
    pub fn resolve(self) -> HookKind {
        match self {
            Self::Tcx => HookKind::Tcx,
            Self::Clsact => HookKind::Clsact,
            Self::Auto => match KernelVersion::current() {
                Ok(version) if version >= KernelVersion::new(6, 6, 0) => HookKind::Tcx,
                _ => HookKind::Clsact,
            },
        }
    }
}

impl std::fmt::Display for HookKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Where on a device a program belongs.
pub(super) const fn place(hook: Hook) -> TcAttachType {
    match hook {
        // What the pod sends comes in to the node.
        Hook::PodEgress => TcAttachType::Ingress,
        Hook::PodIngress | Hook::HostEgress | Hook::BareEgress => TcAttachType::Egress,
    }
}

/// Puts `program` on a hook of a device, in place of whatever program of ours is there. The pin keeps it there when the
/// agent ends.
///
/// # Errors
///
/// If the device is gone or the kernel refuses.
pub(super) fn attach(
    pins: &Pins,
    program: &mut SchedClassifier,
    pin: LinkPin,
    device: &str,
) -> Result<(), Error> {
    let put = if pin.clsact { clsact } else { tcx };
    put(pins, program, pin, device).map_err(|source| Error::Attach {
        device: device.to_owned(),
        hook: pin.hook,
        source,
    })?;
    // What an earlier run has put there in another way, or when the device was of another kind, goes after this one is in
    // place.
    for hook in Hook::ALL {
        for clsact in [false, true] {
            let other = LinkPin {
                hook,
                clsact,
                ..pin
            };
            if other == pin || place(hook) != place(pin.hook) {
                continue;
            }
            if clsact && pin.clsact {
                // There is one filter of ours at a place, and it is this one now.
                pins.remove(&pins.link(other))?;
            } else {
                detach(pins, other)?;
            }
        }
    }
    Ok(())
}

fn tcx(
    pins: &Pins,
    program: &mut SchedClassifier,
    pin: LinkPin,
    device: &str,
) -> anyhow::Result<()> {
    let path = pins.link(pin);
    if let Ok(fd) = sys::open_pin(&path) {
        if sys::tcx_interface(fd.as_fd())? == Some(pin.interface) {
            let link: SchedClassifierLink =
                FdLink::from(PinnedLink::from_pin(&path)?).try_into()?;
            let id = program.attach_to_link(link)?;
            drop(program.take_link(id)?);
            return Ok(());
        }
        // Its device has gone, and another one has the index now.
        pins.remove(&path)?;
    }
    let id = program.attach_with_options(
        device,
        place(pin.hook),
        TcAttachOptions::TcxOrder(LinkOrder::first()),
    )?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(&path)?;
    Ok(())
}

fn clsact(
    pins: &Pins,
    program: &mut SchedClassifier,
    pin: LinkPin,
    device: &str,
) -> anyhow::Result<()> {
    let path = pins.link(pin);
    // In place of a filter of ours, if there is one. Its pin may be lost: an agent can be killed before it has pinned, and
    // a bpf file system be unmounted.
    let there = program
        .attach_to_link(SchedClassifierLink::attached(
            device,
            place(pin.hook),
            PRIORITY,
            HANDLE,
            None,
        )?)
        .and_then(|id| program.take_link(id))
        // aya deletes the filter when the link is dropped.
        .map(std::mem::forget)
        .is_ok();
    if !there {
        qdisc::ensure(device)?;
        let id = program.attach_with_options(
            device,
            place(pin.hook),
            TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            }),
        )?;
        std::mem::forget(program.take_link(id)?);
    }
    // The pin of the program tells a later run, and `cleanup`, that there is a filter.
    pins.remove(&path)?;
    program.pin(&path)?;
    Ok(())
}

/// Takes our program off a hook and removes its pin; fine if it is not there.
///
/// # Errors
///
/// If the pin cannot be removed.
pub(super) fn detach(pins: &Pins, pin: LinkPin) -> Result<(), Error> {
    let path = pins.link(pin);
    if !path.exists() {
        return Ok(());
    }
    if pin.clsact {
        if let Some(device) = name_of(pin.interface)
            && let Ok(link) =
                SchedClassifierLink::attached(&device, place(pin.hook), PRIORITY, HANDLE, None)
        {
            // Dropping it deletes the filter.
            drop(link);
        }
    } else if let Ok(link) = sys::open_pin(&path) {
        // Fails if the device has gone: then nothing is attached any more.
        let _ = sys::detach_link(link.as_fd());
    }
    pins.remove(&path)?;
    Ok(())
}

/// The name of a device of this network namespace.
pub(super) fn name_of(interface: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(interface).ok()?;
    // nix 0.31 takes the null pointer that means "no such device" for success, and gives an empty name.
    name.into_string().ok().filter(|name| !name.is_empty())
}

/// Whether the device of a pinned link or filter is still there.
pub(super) fn alive(pins: &Pins, pin: LinkPin) -> bool {
    if pin.clsact {
        return name_of(pin.interface).is_some();
    }
    sys::open_pin(&pins.link(pin))
        .and_then(|fd| sys::tcx_interface(fd.as_fd()))
        .is_ok_and(|interface| interface == Some(pin.interface))
}
