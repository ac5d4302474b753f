//! What the programs record of dropped packets.
#![expect(unsafe_code, reason = "bytes of a ring buffer become a record")]

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use netpol_common::Event;

/// The ring buffer of drops. Reading takes records out: there is one reader.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// The oldest record that nobody has read, if there is one; never waits.
    pub fn read(&mut self) -> Option<Event> {
        loop {
            let item = self.0.next()?;
            // A record of another length is of a version that this one knows nothing of.
            if item.len() == size_of::<Event>() {
                // SAFETY: as many bytes as the type has; it is plain data, valid for all of them.
                return Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
    }
}

impl AsFd for Events {
    /// Readable when there is a record.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
