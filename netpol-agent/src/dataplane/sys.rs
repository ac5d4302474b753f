//! Kernel calls which aya does not offer.
#![expect(unsafe_code, reason = "bpf(2), membarrier(2) and clock_gettime(2)")]

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};
use netpol_common::{TICK_SHIFT, Tick};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes no more than the size says; pointers in `attr` are the callers' affair.
    let r = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            mem::size_of::<bpf_attr>(),
        )
    };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// Writes many elements with one call (`BPF_MAP_UPDATE_BATCH`; hash since 5.6, trie since 5.13). Returns how many were
/// written before the error, if there is one.
///
/// `K` and `V` must be the map's key and value types.
pub(super) fn update_batch<K: Copy, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len(), "a batch pairs keys and values");
    // SAFETY: plain data for which zero is valid.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = keys.len() as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr)
        .map(drop)
        .map_err(|error| {
            // SAFETY: the member that was written above; the kernel leaves the number of written elements there.
            (unsafe { attr.batch.count } as usize, error)
        })
}

/// How many elements a map holds, counted in batches (`BPF_MAP_LOOKUP_BATCH`; hash since 5.6, trie since 5.13).
///
/// Going from key to key would begin anew whenever the key at hand is evicted meanwhile, and need not end. A batch goes on from
/// a bucket. `key` and `value` are the map's sizes in bytes.
pub(super) fn count(
    map: BorrowedFd<'_>,
    key: usize,
    value: usize,
    limit: usize,
) -> io::Result<usize> {
    const AT_ONCE: usize = 4096;
    let mut keys = vec![0u8; AT_ONCE * key];
    let mut values = vec![0u8; AT_ONCE * value.next_multiple_of(8)];
    // A hash keeps the number of a bucket in it, a trie a key.
    let mut place = vec![0u8; key.max(8)];
    let mut count = 0;
    let mut first = true;
    while count <= limit {
        // SAFETY: plain data for which zero is valid.
        let mut attr: bpf_attr = unsafe { mem::zeroed() };
        attr.batch.in_batch = if first { 0 } else { place.as_ptr() as u64 };
        attr.batch.out_batch = place.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = AT_ONCE as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: the member that was written above; the kernel leaves the number of elements there.
        let found = unsafe { attr.batch.count } as usize;
        match result {
            Ok(_) => count += found,
            // The end of the map.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(count + found),
            Err(e) => return Err(e),
        }
        first = false;
    }
    Ok(count.min(limit))
}

/// The values of neighbouring elements of an array, read with one call (`BPF_MAP_LOOKUP_BATCH`; per-CPU arrays since 5.13).
/// `value` is the size of one in bytes, for a per-CPU array that of all CPUs together.
pub(super) fn elements(
    map: BorrowedFd<'_>,
    first: u32,
    count: usize,
    value: usize,
) -> io::Result<Vec<u8>> {
    let mut keys = vec![0u32; count];
    let mut values = vec![0u8; count * value];
    // A batch begins behind the element that it is given.
    let before = first.wrapping_sub(1);
    let mut place = 0u32;
    // SAFETY: plain data for which zero is valid.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.batch.in_batch = if first == 0 {
        0
    } else {
        &raw const before as u64
    };
    attr.batch.out_batch = &raw mut place as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = count as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The end of the map was reached, too.
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
        _ => {}
    }
    // SAFETY: the member that was written above; the kernel leaves the number of elements there.
    let found = unsafe { attr.batch.count } as usize;
    if found == count && keys.first() == Some(&first) {
        Ok(values)
    } else {
        Err(io::Error::other(format!(
            "asked for {count} elements from {first} on, and got {found}"
        )))
    }
}

/// The device on which a TCX link sits: its index, 0 once the device is gone. `None` if it is no TCX link.
pub(super) fn tcx_interface(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    const BPF_LINK_TYPE_TCX: u32 = 11;
    // SAFETY: plain data for which zero is valid.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info = &raw mut info as u64;
    attr.info.info_len = mem::size_of::<bpf_link_info>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    if info.type_ != BPF_LINK_TYPE_TCX {
        return Ok(None);
    }
    // SAFETY: the kernel fills the member that belongs to the type.
    Ok(Some(unsafe { info.__bindgen_anon_1.tcx.ifindex }))
}

/// Takes the program of a link off its hook at once (`BPF_LINK_DETACH`). The end of the last reference would do so as well,
/// but some time later: a program that is attached to the same hook in between is refused.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain data for which zero is valid.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Opens a pinned object of any kind.
pub(super) fn open_pin(path: &std::path::Path) -> io::Result<OwnedFd> {
    use std::os::{fd::FromRawFd as _, unix::ffi::OsStrExt as _};
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain data for which zero is valid.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Returns when every packet that was being judged when it was called is through.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (kernel/sched/membarrier.c), and TC programs run inside an RCU read
/// section (net/sched/cls_bpf.c, net/core/dev.c `sch_handle_ingress`). Blocks for some milliseconds; call it off the loop.
///
/// # Errors
///
/// None on ordinary kernels. Where the call is refused (`nohz_full` CPUs, seccomp) it sleeps for a second instead, which is
/// longer than any packet is judged.
pub fn grace() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Nanoseconds of a clock of the kernel.
fn clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the structure and nothing else.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The clock of the flow tables.
pub fn tick() -> Tick {
    (clock(libc::CLOCK_MONOTONIC_COARSE) >> TICK_SHIFT) as Tick
}

/// The clock of [`netpol_common::Event::time`].
pub fn monotonic() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}
