//! Yardsticks for `cargo xtask bench`: a program that does nothing, and the least that any stateful filter has to do.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "the bare lookup uses a part of it")]
mod frame;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
        btf_maps::{Array, LruHashMap},
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use netpol_common::{Direction, Flow, FlowKey, Frame as _, Packet, Parsed, parse, size};

    use crate::frame::Skb;

    #[btf_map]
    static FLOWS: LruHashMap<FlowKey, Flow, { size::FLOWS as usize }> = LruHashMap::new();
    #[btf_map]
    static EPOCH: Array<u32, 1> = Array::new();

    /// Nothing at all: what a call of a program costs.
    #[classifier]
    pub fn empty(_: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Parse, one LRU lookup that hits, one array read.
    #[classifier]
    pub fn bare_lookup(ctx: TcContext) -> i32 {
        let skb = Skb::new(ctx);
        let mut packet = Packet::EMPTY;
        if parse(&skb, &mut packet) != Parsed::Packet {
            return TC_ACT_SHOT as i32;
        }
        let key = packet.flow_key(skb.interface(), Direction::Ingress);
        let epoch = EPOCH.get(0).copied().unwrap_or(0);
        // SAFETY: nobody writes this table while the benchmark runs.
        match unsafe { FLOWS.get(&key) } {
            Some(flow) if flow.epoch == epoch => TC_ACT_UNSPEC,
            _ => TC_ACT_SHOT as i32,
        }
    }

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
