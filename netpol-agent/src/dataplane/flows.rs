//! The flow tables, for whoever knows of a flow that they have lost.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData};
use netpol_common::{Address, Endpoint, Flow, FlowKey, Peer, map};

use super::{
    Error,
    error::os_error,
    pins::{Pins, open},
};

/// Handles of their own on the flow tables and on what is needed to write into them.
pub struct Flows {
    flows: HashMap<MapData, FlowKey, Flow>,
    opening: HashMap<MapData, FlowKey, Flow>,
    endpoints: HashMap<MapData, u32, Endpoint>,
    hosts: HashMap<MapData, Address, Peer>,
    epoch: Array<MapData, u32>,
}

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h
const NO_EXIST: u64 = 1;

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            flows: open(pins, map::FLOWS)?,
            opening: open(pins, map::OPENING)?,
            endpoints: open(pins, map::ENDPOINTS)?,
            hosts: open(pins, map::PEER_HOSTS)?,
            epoch: open(pins, map::EPOCH)?,
        })
    }

    /// The endpoint behind a host interface.
    pub fn endpoint(&self, interface: u32) -> Option<Endpoint> {
        self.endpoints.get(&interface, 0).ok()
    }

    /// The host interface of the endpoint that has an address.
    pub fn owners(&self) -> BTreeMap<Address, u32> {
        let endpoints = self.endpoints.iter().filter_map(Result::ok);
        endpoints
            .flat_map(|(interface, endpoint)| {
                [endpoint.ipv4, endpoint.ipv6].map(|address| (address, interface))
            })
            .filter(|(address, _)| *address != Address::NONE)
            .collect()
    }

    /// Whether an address is one of the node's own.
    pub fn is_node(&self, address: &Address) -> bool {
        self.hosts.get(address, 0).is_ok_and(|peer| peer.is_node())
    }

    /// A flow, whichever table has it.
    pub fn find(&self, key: &FlowKey) -> Option<Flow> {
        let known = self.flows.get(key, 0);
        known.or_else(|_| self.opening.get(key, 0)).ok()
    }

    /// Writes a flow that the tables have not. The next packet is judged under today's tables: the flow carries an epoch that
    /// is none. Returns whether it was written.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or written.
    pub fn add(&mut self, key: &FlowKey, flow: Flow) -> Result<bool, Error> {
        let epoch = self.epoch.get(&0, 0).map_err(|e| Error::Read {
            table: map::EPOCH,
            source: os_error(e),
        })?;
        let flow = Flow {
            epoch: epoch.wrapping_sub(1),
            ..flow
        };
        match self.opening.get(key, 0) {
            // What an answer to nobody has opened at an address behind which somebody else answers.
            Ok(opening) if opening.deferred() && !opening.resolved() => {}
            Ok(_) => return Ok(false),
            Err(_) => {}
        }
        match self.flows.insert(key, flow, NO_EXIST) {
            Ok(()) => {
                let _ = self.opening.remove(key);
                Ok(true)
            }
            Err(e) => match os_error(e) {
                e if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
                source => Err(Error::Write {
                    table: map::FLOWS,
                    source,
                }),
            },
        }
    }
}
