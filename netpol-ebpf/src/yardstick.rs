//! Yardsticks for `cargo xtask bench`: a program that does nothing, and the least that any stateful filter has to do.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
        helpers::bpf_get_prandom_u32,
        macros::classifier,
        programs::TcContext,
    };
    use netpol_common::{
        Address, Direction, Endpoint, Flow, FlowKey, FlowRef as _, Frame as _, Packet, Parsed,
        Peer, PortSetId, Reason, RuleKey, Tables, Tick, judge, parse,
    };

    use crate::{
        frame::Skb,
        maps::{Kernel, Place},
    };

    /// Nothing at all: what a call of a program costs.
    #[classifier]
    pub fn empty(_: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Parse, one LRU lookup that hits, one array read.
    #[classifier]
    pub fn bare_lookup(ctx: TcContext) -> i32 {
        let skb = Skb::new(ctx);
        let Parsed::Packet(packet) = parse(&skb) else {
            return TC_ACT_SHOT as i32;
        };
        let key = packet.flow_key(skb.interface(), Direction::Ingress);
        let tables = Kernel::of(&skb);
        let epoch = tables.epoch();
        match tables.flow(&key) {
            Some(place) if place.load().epoch == epoch => TC_ACT_UNSPEC,
            _ => TC_ACT_SHOT as i32,
        }
    }

    /// A key that is not in the table.
    #[inline(always)]
    fn fresh(key: &FlowKey) -> FlowKey {
        let mut key = *key;
        // SAFETY: takes nothing, changes nothing.
        key.protocol = unsafe { bpf_get_prandom_u32() } | 1 << 31;
        key
    }

    /// Parse, one LRU insertion: the least that noting a new flow costs.
    #[classifier]
    pub fn bare_insert(ctx: TcContext) -> i32 {
        let skb = Skb::new(ctx);
        let Parsed::Packet(packet) = parse(&skb) else {
            return TC_ACT_SHOT as i32;
        };
        let key = packet.flow_key(skb.interface(), Direction::Ingress);
        let tables = Kernel::of(&skb);
        tables.remember(
            &fresh(&key),
            Flow::open(tables.epoch(), Direction::Ingress, 0, 0),
        );
        TC_ACT_UNSPEC
    }

    /// The kernel's tables, but every flow is new: looked up, and not believed. `BPF_PROG_TEST_RUN` repeats one packet, whose
    /// second run would find the flow that the first one has noted.
    struct Forgetful<'a>(Kernel<'a>);

    impl Tables for Forgetful<'_> {
        type Flow = Place;
        #[inline(always)]
        fn epoch(&self) -> u32 {
            self.0.epoch()
        }
        #[inline(always)]
        fn now(&self) -> Tick {
            self.0.now()
        }
        #[inline(always)]
        fn endpoint(&self, interface: u32) -> Option<&Endpoint> {
            self.0.endpoint(interface)
        }
        #[inline(always)]
        fn flow(&self, key: &FlowKey) -> Option<Place> {
            // A key that is never written: the lookup is made and misses.
            let mut other = *key;
            other.protocol = u32::MAX;
            self.0.flow(&other)
        }
        #[inline(always)]
        fn remember(&self, key: &FlowKey, flow: Flow) {
            self.0.remember(&fresh(key), flow);
        }
        #[inline(always)]
        fn host(&self, address: &Address) -> Option<Peer> {
            self.0.host(address)
        }
        #[inline(always)]
        fn net(&self, address: &Address) -> Option<Peer> {
            self.0.net(address)
        }
        #[inline(always)]
        fn rule(&self, key: &RuleKey) -> Option<PortSetId> {
            self.0.rule(key)
        }
        #[inline(always)]
        fn port(&self, set: PortSetId, protocol: u8, port: u16) -> bool {
            self.0.port(set, protocol, port)
        }
        #[inline(always)]
        fn count(&self, slot: u32, direction: Direction, reason: Reason, length: u32) {
            self.0.count(slot, direction, reason, length);
        }
    }

    /// `pod_ingress` for which every flow is new.
    #[classifier]
    pub fn pod_ingress_new(ctx: TcContext) -> i32 {
        let skb = Skb::new(ctx);
        if judge(&skb, &Forgetful(Kernel::of(&skb)), Direction::Ingress).passes() {
            TC_ACT_UNSPEC
        } else {
            TC_ACT_SHOT as i32
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
