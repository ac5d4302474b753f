//! Yardsticks for `cargo xtask bench`: a program that does nothing, and the least that any stateful filter has to do.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
        btf_maps::PerCpuArray,
        helpers::bpf_get_prandom_u32,
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use netpol_common::{
        Address, Budget, Direction, Dropped, Endpoint, Flow, FlowKey, FlowRef as _, Fragment,
        FragmentKey, Frame, MarkField, Parsed, Peer, PortSetId, Reason, RuleKey, Scratch, Tables,
        Tick, TunnelKey, host_egress, judge, parse,
    };

    use crate::{
        frame::Skb,
        maps::{BUDGETS, Kernel, Place, scratch},
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

    /// Altered keys: beside what the judge has there, the stack has no room for them.
    #[btf_map]
    static KEYS: PerCpuArray<FlowKey, 1> = PerCpuArray::new();

    /// The same key with another number in the place of its protocol, which no packet has.
    #[inline(always)]
    fn other<'a>(key: &'a FlowKey, number: u32) -> &'a FlowKey {
        match KEYS.get_ptr_mut(0) {
            // SAFETY: this CPU's own element, which nobody else holds when this is called.
            Some(place) => unsafe {
                *place = *key;
                (*place).protocol = number;
                &*place
            },
            // An array has its elements.
            None => key,
        }
    }

    /// A number that no key in the tables has.
    #[inline(always)]
    fn fresh() -> u32 {
        // SAFETY: takes nothing, changes nothing.
        unsafe { bpf_get_prandom_u32() | 1 << 31 }
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
            other(&key, fresh()),
            &Flow::open(tables.epoch(), Direction::Ingress, 0, 0),
        );
        TC_ACT_UNSPEC
    }

    /// The kernel's tables, altered so that a packet finds them as its first run did, however often it is repeated.
    struct Altered<'a, const HOW: u8> {
        kernel: Kernel<'a>,
        /// Of this run.
        number: u32,
    }

    /// Every flow is new: looked up, and not believed.
    const NEW: u8 = 0;
    /// Every flow is one that its opener carries on after an answer. There are as many as there are runs, numbered from the
    /// second word of the control block on.
    const ANSWERED: u8 = 1;
    /// Every dropped packet is the first one of its tick.
    const RECORDED: u8 = 2;

    /// The number of a key that is never written: a lookup is made and misses.
    const MISSING: u32 = u32::MAX >> 1;

    impl<const HOW: u8> Tables for Altered<'_, HOW> {
        type Flow = Place;
        #[inline(always)]
        fn epoch(&self) -> u32 {
            self.kernel.epoch()
        }
        #[inline(always)]
        fn now(&self) -> Tick {
            self.kernel.now()
        }
        #[inline(always)]
        fn endpoint(&self, interface: u32) -> Option<&Endpoint> {
            self.kernel.endpoint(interface)
        }
        #[inline(always)]
        fn flow(&self, key: &FlowKey) -> Option<Place> {
            match HOW {
                NEW => self.kernel.flow(other(key, MISSING)),
                ANSWERED => self.kernel.flow(other(key, self.number)),
                _ => self.kernel.flow(key),
            }
        }
        #[inline(always)]
        fn opening(&self, key: &FlowKey) -> Option<Place> {
            match HOW {
                NEW => self.kernel.opening(other(key, MISSING)),
                ANSWERED => self.kernel.opening(other(key, self.number)),
                _ => self.kernel.opening(key),
            }
        }
        #[inline(always)]
        fn remember(&self, key: &FlowKey, flow: &Flow) {
            if HOW == NEW {
                self.kernel.remember(other(key, fresh()), flow);
            } else {
                self.kernel.remember(key, flow);
            }
        }
        #[inline(always)]
        fn settle(&self, key: &FlowKey, flow: &Flow) {
            if HOW == ANSWERED {
                self.kernel.settle(other(key, self.number), flow);
            } else {
                self.kernel.settle(key, flow);
            }
        }
        #[inline(always)]
        fn interface_of(&self, slot: u32) -> Option<u32> {
            self.kernel.interface_of(slot)
        }
        #[inline(always)]
        fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
            self.kernel.fragment(key)
        }
        #[inline(always)]
        fn note_fragment(&self, key: &FragmentKey, fragment: Fragment) {
            self.kernel.note_fragment(key, fragment);
        }
        #[inline(always)]
        fn ticket(&self, number: u32) -> Option<FlowKey> {
            self.kernel.ticket(number)
        }
        #[inline(always)]
        fn issue(&self, number: u32, key: &FlowKey) {
            self.kernel.issue(number, key);
        }
        #[inline(always)]
        fn tunnel(&self, key: TunnelKey) -> bool {
            self.kernel.tunnel(key)
        }
        #[inline(always)]
        fn mark_field(&self) -> MarkField {
            self.kernel.mark_field()
        }
        #[inline(always)]
        fn report<F: Frame>(&self, frame: &F, dropped: &Dropped<'_>) {
            if HOW == RECORDED {
                refill(dropped.slot, dropped.direction);
            }
            self.kernel.report(frame, dropped);
        }
        #[inline(always)]
        fn host(&self, address: &Address) -> Option<Peer> {
            self.kernel.host(address)
        }
        #[inline(always)]
        fn net(&self, address: &Address) -> Option<Peer> {
            self.kernel.net(address)
        }
        #[inline(always)]
        fn rule(&self, key: &RuleKey) -> Option<PortSetId> {
            self.kernel.rule(key)
        }
        #[inline(always)]
        fn port(&self, set: PortSetId, protocol: u8, port: u16) -> bool {
            self.kernel.port(set, protocol, port)
        }
        #[inline(always)]
        fn count(&self, slot: u32, direction: Direction, reason: Reason, length: u32) {
            self.kernel.count(slot, direction, reason, length);
        }
    }

    /// A word of the control block.
    #[inline(always)]
    fn control(skb: &Skb, word: usize) -> u32 {
        // SAFETY: the verifier allows reads of this context field.
        unsafe { (*skb.context().as_ptr().cast::<__sk_buff>()).cb[word] }
    }

    /// Counts in the second word of the control block. A function of its own, as `set_mark` in `frame.rs`.
    #[inline(never)]
    fn set_number(skb: *mut __sk_buff, number: u32) {
        // SAFETY: the verifier allows writes of this context field, and nobody else has the packet.
        unsafe { (*skb).cb[1] = number }
    }

    /// Gives an endpoint the whole budget of a tick again.
    #[inline(always)]
    fn refill(slot: u32, direction: Direction) {
        if let Some(budget) = BUDGETS.get_ptr_mut(Budget::index(slot, direction)) {
            // SAFETY: this CPU's own element.
            unsafe { (*budget).used = 0 };
        }
    }

    /// A frame that is marked again for every run: the mark is the first word of the control block.
    struct Marked(Skb);

    impl Frame for Marked {
        #[inline(always)]
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.load(offset)
        }
        #[inline(always)]
        fn start(&self) -> Option<[u8; 34]> {
            self.0.start()
        }
        #[inline(always)]
        fn len(&self) -> u32 {
            self.0.len()
        }
        #[inline(always)]
        fn interface(&self) -> u32 {
            self.0.interface()
        }
        #[inline(always)]
        fn came_in_by(&self) -> u32 {
            self.0.came_in_by()
        }
        #[inline(always)]
        fn of_a_socket(&self) -> bool {
            self.0.of_a_socket()
        }
        #[inline(always)]
        fn tagged(&self) -> bool {
            self.0.tagged()
        }
        #[inline(always)]
        fn mark(&self) -> u32 {
            control(&self.0, 0)
        }
        #[inline(always)]
        fn set_mark(&self, mark: u32) {
            self.0.set_mark(mark);
        }
    }

    #[inline(always)]
    fn action(reason: Reason) -> i32 {
        if reason.passes() {
            TC_ACT_UNSPEC
        } else {
            TC_ACT_SHOT as i32
        }
    }

    #[inline(always)]
    fn altered<const HOW: u8>(ctx: TcContext, direction: Direction) -> i32 {
        let skb = Skb::new(ctx);
        let Some(scratch) = scratch() else {
            return TC_ACT_SHOT as i32;
        };
        let mut number = 0;
        if HOW == ANSWERED {
            number = control(&skb, 1);
            set_number(skb.context().as_ptr().cast(), number + 1);
        }
        let tables = Altered::<HOW> {
            kernel: Kernel::of(&skb),
            number,
        };
        action(judge(&skb, &tables, scratch, direction))
    }

    /// `pod_ingress` for which every flow is new.
    #[classifier]
    pub fn pod_ingress_new(ctx: TcContext) -> i32 {
        altered::<NEW>(ctx, Direction::Ingress)
    }

    /// `pod_egress` for which every flow is new.
    #[classifier]
    pub fn pod_egress_new(ctx: TcContext) -> i32 {
        altered::<NEW>(ctx, Direction::Egress)
    }

    /// `pod_ingress` for which every flow has just been answered.
    #[classifier]
    pub fn pod_ingress_answered(ctx: TcContext) -> i32 {
        altered::<ANSWERED>(ctx, Direction::Ingress)
    }

    /// `pod_ingress` that records every drop.
    #[classifier]
    pub fn pod_ingress_recorded(ctx: TcContext) -> i32 {
        altered::<RECORDED>(ctx, Direction::Ingress)
    }

    /// `pod_ingress` for which every packet carries a mark.
    #[classifier]
    pub fn pod_ingress_marked(ctx: TcContext) -> i32 {
        let frame = Marked(Skb::new(ctx));
        match scratch() {
            Some(scratch) => action(judge(
                &frame,
                &Kernel::of(&frame.0),
                scratch,
                Direction::Ingress,
            )),
            None => TC_ACT_SHOT as i32,
        }
    }

    /// `host_egress` for which every packet carries a mark.
    #[classifier]
    pub fn host_egress_marked(ctx: TcContext) -> i32 {
        let frame = Marked(Skb::new(ctx));
        match scratch() {
            Some(scratch) => action(host_egress(&frame, &Kernel::of(&frame.0), scratch)),
            None => TC_ACT_SHOT as i32,
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
