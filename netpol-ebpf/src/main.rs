//! The TC classifiers. They hold no knowledge of their own: what is decided stands in `netpol_common::judge`, and this
//! program gives it the socket buffer (`frame`) and the kernel's maps (`maps`).
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
        macros::classifier,
        programs::TcContext,
    };
    use netpol_common::{Direction, Reason, Scratch, host_egress as host_egress_of, judge};

    use crate::{
        frame::Skb,
        maps::{Kernel, scratch},
    };

    /// `TC_ACT_UNSPEC` passes and lets the other programs on the device have their say.
    #[inline(always)]
    fn action(reason: Reason) -> i32 {
        if reason.passes() {
            TC_ACT_UNSPEC
        } else {
            TC_ACT_SHOT as i32
        }
    }

    /// Without scratch memory, which an array always has, nothing is known: nothing passes.
    #[inline(always)]
    fn run(skb: Skb, judge: impl FnOnce(&Skb, &Kernel<'_>, &mut Scratch) -> Reason) -> i32 {
        match scratch() {
            Some(scratch) => action(judge(&skb, &Kernel::of(&skb), scratch)),
            None => TC_ACT_SHOT as i32,
        }
    }

    /// Ingress of the host side of a pod's veth: what the pod sends.
    #[classifier]
    pub fn pod_egress(ctx: TcContext) -> i32 {
        run(Skb::new(ctx), |skb, tables, scratch| {
            judge(skb, tables, scratch, Direction::Egress)
        })
    }

    /// Egress of the host side of a pod's veth: what the pod receives.
    #[classifier]
    pub fn pod_ingress(ctx: TcContext) -> i32 {
        run(Skb::new(ctx), |skb, tables, scratch| {
            judge(skb, tables, scratch, Direction::Ingress)
        })
    }

    /// Egress of every other device: what a pod has sent to a Service or its node, on its way to whoever answers.
    #[classifier]
    pub fn host_egress(ctx: TcContext) -> i32 {
        run(Skb::new(ctx), |skb, tables, scratch| {
            host_egress_of(skb, tables, scratch)
        })
    }

    /// The same on a device whose packets have no Ethernet header.
    #[classifier]
    pub fn bare_egress(ctx: TcContext) -> i32 {
        run(Skb::bare(ctx), |skb, tables, scratch| {
            host_egress_of(skb, tables, scratch)
        })
    }

    /// `bpf_ktime_get_coarse_ns` and others are for programs under a GPL-compatible licence only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
