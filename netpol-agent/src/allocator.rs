//! The allocator, and how much memory it may keep.
//!
//! The agent needs most memory in bursts (types of the kernel when it loads the programs, lists of a whole cluster) and then
//! rests for hours on every node of the cluster.

use libmimalloc_sys::{mi_option_set, mi_option_t};
use nix::sys::prctl;

/// Lists of tens of thousands of objects are parsed and trimmed at a start: musl's own allocator takes several times as long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`, for which the crate has no name. The test below knows when it is another.
const PURGE_DELAY: mi_option_t = 15;

/// Makes the allocator return to the kernel what the program frees. First of all, before anything is allocated.
pub fn give_back_what_is_freed() {
    // mimalloc asks for huge pages: of 2 MiB each, of which a few objects that stay hold all. Refused only by kernels that
    // know none.
    let _ = prctl::set_thp_disable(true);
    // It would wait for a second, and then for the next allocations, which may not come: at once.
    // SAFETY: any option may be set at any time, out of range ones are ignored.
    unsafe { mi_option_set(PURGE_DELAY, 0) };
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// Anonymous resident memory in bytes.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn what_is_freed_goes_back_to_the_kernel() {
        const OBJECTS: usize = 400_000;
        const SIZE: usize = 160;
        give_back_what_is_freed();
        assert!(prctl::get_thp_disable().unwrap());

        let before = resident();
        let objects: Vec<Box<[u8; SIZE]>> =
            (0..OBJECTS).map(|n| Box::new([n as u8; SIZE])).collect();
        let full = resident();
        assert!(full - before > (OBJECTS * SIZE) as u64 * 9 / 10);
        drop(black_box(objects));
        let after = resident();
        assert!(
            after < before + (full - before) / 10,
            "from {before} to {full} and back to {after} bytes"
        );
    }
}
