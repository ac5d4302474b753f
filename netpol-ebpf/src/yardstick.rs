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
        Address, Direction, Dropped, Endpoint, Flow, FlowKey, FlowRef as _, Fragment, FragmentKey,
        Frame, MarkField, Parsed, Peer, PortSetId, Reason, RuleKey, Scratch, Tables, Tick,
        TunnelKey, judge, parse,
    };

    use crate::{
        frame::Skb,
        maps::{Kernel, Place, scratch},
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
        let Some(Scratch { packet, .. }) = scratch() else {
            return TC_ACT_SHOT as i32;
        };
        if parse(&skb, packet) != Parsed::Packet {
            return TC_ACT_SHOT as i32;
        }
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
        let Some(Scratch { packet, .. }) = scratch() else {
            return TC_ACT_SHOT as i32;
        };
        if parse(&skb, packet) != Parsed::Packet {
            return TC_ACT_SHOT as i32;
        }
        let key = packet.flow_key(skb.interface(), Direction::Ingress);
        let tables = Kernel::of(&skb);
        tables.remember(
            &fresh(&key),
            &Flow::open(tables.epoch(), Direction::Ingress, 0, 0),
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
        fn opening(&self, key: &FlowKey) -> Option<Place> {
            let mut other = *key;
            other.protocol = u32::MAX;
            self.0.opening(&other)
        }
        #[inline(always)]
        fn remember(&self, key: &FlowKey, flow: &Flow) {
            self.0.remember(&fresh(key), flow);
        }
        #[inline(always)]
        fn settle(&self, key: &FlowKey, flow: &Flow) {
            self.0.settle(key, flow);
        }
        #[inline(always)]
        fn interface_of(&self, slot: u32) -> Option<u32> {
            self.0.interface_of(slot)
        }
        #[inline(always)]
        fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
            self.0.fragment(key)
        }
        #[inline(always)]
        fn note_fragment(&self, key: &FragmentKey, fragment: Fragment) {
            self.0.note_fragment(key, fragment);
        }
        #[inline(always)]
        fn ticket(&self, number: u32) -> Option<FlowKey> {
            self.0.ticket(number)
        }
        #[inline(always)]
        fn issue(&self, number: u32, key: &FlowKey) {
            self.0.issue(number, key);
        }
        #[inline(always)]
        fn tunnel(&self, key: TunnelKey) -> bool {
            self.0.tunnel(key)
        }
        #[inline(always)]
        fn mark_field(&self) -> MarkField {
            self.0.mark_field()
        }
        #[inline(always)]
        fn report<F: Frame>(&self, frame: &F, dropped: &Dropped<'_>) {
            self.0.report(frame, dropped);
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
        let Some(scratch) = scratch() else {
            return TC_ACT_SHOT as i32;
        };
        let tables = Forgetful(Kernel::of(&skb));
        if judge(&skb, &tables, scratch, Direction::Ingress).passes() {
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
