//! A socket buffer as a frame.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _, bindings::__sk_buff, helpers::bpf_skb_load_bytes, programs::TcContext,
};
use netpol_common::Frame;

/// The length of an Ethernet header (`ETH_HLEN`).
const ETHERNET: u32 = 14;

/// The socket buffer of the packet at the hook.
pub struct Skb {
    context: TcContext,
    /// Bytes of an Ethernet header that the packet lacks: [`ETHERNET`] on a device that has none (WireGuard, tun, IPIP).
    lacks: u32,
}

impl Skb {
    /// The frame of this context.
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        Self { context, lacks: 0 }
    }

    /// The packet of this context on a device whose packets begin with their IP header.
    #[inline(always)]
    #[allow(dead_code, reason = "the yardsticks measure frames only")]
    pub fn bare(context: TcContext) -> Self {
        Self {
            context,
            lacks: ETHERNET,
        }
    }

    /// The context, for logging.
    #[inline(always)]
    pub fn context(&self) -> &TcContext {
        &self.context
    }

    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.context.as_ptr().cast()
    }

    /// What the kernel takes for the EtherType, in network byte order.
    #[inline(always)]
    fn protocol(&self) -> [u8; 2] {
        // SAFETY: the verifier allows reads of this context field.
        let [first, second, ..] = unsafe { (*self.raw()).protocol }.to_ne_bytes();
        [first, second]
    }
}

/// Bytes that can be moved in words.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

impl Frame for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut out = MaybeUninit::<Aligned<N>>::uninit();
        // SAFETY: the helper checks the offset against the packet, and writes N bytes or says that it did not.
        let r = unsafe {
            bpf_skb_load_bytes(
                self.raw().cast(),
                (offset as u32).wrapping_sub(self.lacks),
                out.as_mut_ptr().cast(),
                N as u32,
            )
        };
        // SAFETY: all N bytes were written; nobody reads those that only align.
        (r == 0).then(|| unsafe { (*out.as_ptr()).0 })
    }

    #[inline(always)]
    fn start(&self) -> Option<[u8; 34]> {
        if self.lacks == 0 {
            return self.load::<34>(0);
        }
        let ip = self.load::<20>(ETHERNET as usize)?;
        let mut start = [0; 34];
        [start[12], start[13]] = self.protocol();
        start[14..].copy_from_slice(&ip);
        Some(start)
    }

    #[inline(always)]
    fn ether_type(&self) -> u16 {
        if self.lacks == 0 {
            return self.load::<2>(12).map_or(0, u16::from_be_bytes);
        }
        u16::from_be_bytes(self.protocol())
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).len + self.lacks }
    }

    #[inline(always)]
    fn forget(&self, number: u64) -> u64 {
        let mut number = number;
        // The verifier does not follow byte swaps (kernel/bpf/verifier.c, `check_alu_op`: BPF_END).
        // SAFETY: two swaps give back what there was; nothing but this register is touched.
        unsafe {
            core::arch::asm!("{0} = be64 {0}", "{0} = be64 {0}", inout(reg) number, options(pure, nomem, nostack));
        }
        number
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).ifindex }
    }

    #[inline(always)]
    fn came_in_by(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).ingress_ifindex }
    }

    #[inline(always)]
    fn of_a_socket(&self) -> bool {
        // SAFETY: as above; nobody looks at what it points to.
        !unsafe { (*self.raw()).__bindgen_anon_2.sk }.is_null()
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).mark }
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        set_mark(self.raw(), mark);
    }
}

/// A function of its own: where the field is read too, the compiler keeps its address, and the verifier takes no context
/// pointer but the one to its beginning ("dereference of modified ctx ptr").
#[inline(never)]
fn set_mark(skb: *mut __sk_buff, mark: u32) {
    // SAFETY: the verifier allows writes of this context field, and nobody else has the packet.
    unsafe { (*skb).mark = mark }
}
