//! What the agent asks of the kernel. [`Dataplane`] answers for the real one; tests have one that fails on demand.

use std::collections::BTreeSet;

use netpol_common::{Endpoint, TunnelKey, lost};

use super::repair;
use crate::{
    dataplane::{Dataplane, Error, TableFill, Tallies},
    node::{Device, DeviceKind},
    policy::Edit,
};

pub(super) trait Kernel {
    type Error: std::error::Error;

    fn write(&mut self, edits: &[Edit]) -> Result<(), Self::Error>;
    fn adopt(&mut self, tables: &[Edit]) -> Result<(), Self::Error>;
    fn discard_unknown(&mut self, tables: &[Edit]) -> Result<(), Self::Error>;
    fn adopt_endpoints(&mut self) -> Result<Vec<(u32, Endpoint)>, Self::Error>;
    fn attached(&self) -> Result<BTreeSet<u32>, Self::Error>;
    /// Whether what is attached now judges by other tables, and ends where programs are put in its place.
    fn displaces(&self) -> Result<bool, Self::Error>;
    fn set_endpoint(&mut self, interface: u32, endpoint: &Endpoint) -> Result<(), Self::Error>;
    fn remove_endpoint(&mut self, interface: u32) -> Result<(), Self::Error>;
    fn attach(&mut self, interface: u32, device: &Device) -> Result<(), Self::Error>;
    fn release(&mut self, interface: u32) -> Result<(), Self::Error>;
    fn set_tunnels(&mut self, tunnels: &BTreeSet<TunnelKey>) -> Result<(), Self::Error>;
    fn retire_others(&mut self) -> Result<usize, Self::Error>;
    fn pinned(&self) -> bool;
    fn raise_epoch(&mut self) -> Result<u32, Self::Error>;
    fn epoch(&self) -> u32;
    fn hook(&self) -> String;
    fn statistics(&self, slot: u32) -> Result<Tallies, Self::Error>;
    fn fill(&self) -> Result<Vec<TableFill>, Self::Error>;
    /// How many drops have no record.
    fn lost(&self) -> Result<[u64; lost::COUNT as usize], Self::Error>;
    /// Writes the flows that lived before these endpoints.
    fn seed(&mut self, fresh: &[(u32, Endpoint)]);
}

impl Kernel for Dataplane {
    type Error = Error;

    fn write(&mut self, edits: &[Edit]) -> Result<(), Error> {
        self.write(edits)
    }
    fn adopt(&mut self, tables: &[Edit]) -> Result<(), Error> {
        self.adopt(tables)
    }
    fn discard_unknown(&mut self, tables: &[Edit]) -> Result<(), Error> {
        self.discard_unknown(tables)
    }
    fn adopt_endpoints(&mut self) -> Result<Vec<(u32, Endpoint)>, Error> {
        self.adopt_endpoints()
    }
    fn attached(&self) -> Result<BTreeSet<u32>, Error> {
        self.attached()
    }
    fn displaces(&self) -> Result<bool, Error> {
        self.displaces()
    }
    fn set_endpoint(&mut self, interface: u32, endpoint: &Endpoint) -> Result<(), Error> {
        self.set_endpoint(interface, endpoint)
    }
    fn remove_endpoint(&mut self, interface: u32) -> Result<(), Error> {
        self.remove_endpoint(interface)
    }
    fn attach(&mut self, interface: u32, device: &Device) -> Result<(), Error> {
        match device.kind {
            DeviceKind::Pod => self.attach(interface, &device.name),
            DeviceKind::Host => self.attach_host(interface, &device.name),
            DeviceKind::Bare => self.attach_bare(interface, &device.name),
        }
    }
    fn release(&mut self, interface: u32) -> Result<(), Error> {
        self.release(interface)
    }
    fn retire_others(&mut self) -> Result<usize, Error> {
        self.retire_others()
    }
    fn set_tunnels(&mut self, tunnels: &BTreeSet<TunnelKey>) -> Result<(), Error> {
        self.set_tunnels(tunnels)
    }
    fn pinned(&self) -> bool {
        self.pinned()
    }
    fn raise_epoch(&mut self) -> Result<u32, Error> {
        self.raise_epoch()
    }
    fn epoch(&self) -> u32 {
        self.epoch()
    }
    fn hook(&self) -> String {
        self.hook().to_string()
    }
    fn statistics(&self, slot: u32) -> Result<Tallies, Error> {
        self.statistics(slot)
    }
    fn fill(&self) -> Result<Vec<TableFill>, Error> {
        self.fill()
    }
    fn lost(&self) -> Result<[u64; lost::COUNT as usize], Error> {
        self.lost()
    }
    fn seed(&mut self, fresh: &[(u32, Endpoint)]) {
        repair::seed(self, fresh);
    }
}
