//! What hangs on the hooks of the node's devices, asked of the kernel and not of the agent.

use std::{collections::BTreeSet, fs, io};

use aya::programs::{SchedClassifier, TcAttachType};

use crate::lab::{Lab, LabError};

/// How many programs are on one hook of a device, by the way they were put there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Programs {
    /// As TCX links.
    pub tcx: usize,
    /// As filters of a clsact queueing discipline.
    pub clsact: usize,
}

impl Programs {
    /// None.
    pub const NONE: Self = Self { tcx: 0, clsact: 0 };
    /// One, as a TCX link.
    pub const TCX: Self = Self { tcx: 1, clsact: 0 };
    /// One, as a clsact filter.
    pub const CLSACT: Self = Self { tcx: 0, clsact: 1 };
}

/// The programs at ingress and egress of a device of the lab's node.
pub fn attached(lab: &Lab, index: u32) -> Result<[Programs; 2], LabError> {
    lab.node().configure(move |netlink| async move {
        let name = netlink.name(index).await?;
        let clsact = netlink.filters(index).await?;
        let mut programs = clsact.map(|clsact| Programs { tcx: 0, clsact });
        for (hook, programs) in [TcAttachType::Ingress, TcAttachType::Egress]
            .into_iter()
            .zip(&mut programs)
        {
            let (_, tcx) = SchedClassifier::query_tcx(&name, hook).map_err(|error| {
                LabError::io(
                    format!("query the programs of {name}"),
                    io::Error::other(error.to_string()),
                )
            })?;
            programs.tcx = tcx.len();
        }
        Ok(programs)
    })
}

/// The names of all pins of the lab's agent, without the directory of the schema.
pub fn pins(lab: &Lab) -> BTreeSet<String> {
    let entries = |path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(lab.run_dir().bpf())
        .flat_map(|schema| entries(schema.path()))
        .map(|pin| pin.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The device indexes of the pinned links.
pub fn pinned_devices(lab: &Lab) -> BTreeSet<u32> {
    pins(lab)
        .iter()
        .filter_map(|name| {
            let rest = name
                .strip_prefix("tcx-")
                .or_else(|| name.strip_prefix("clsact-"))?;
            rest.split('-').next()?.parse().ok()
        })
        .collect()
}
