//! What no story is long enough for: a ring buffer that nobody reads.

use netpol_agent::{
    dataplane::{HookChoice, Sizes},
    object,
    packet_builder::{Payload, frame},
};
use netpol_common::{Budget, Direction, Endpoint, Isolation, lost, map, size};
use netpol_tests::kernel::{Bench, DROP, LOOPBACK};

use super::kernel_tables::KernelTables;

#[test]
fn a_full_ring_loses_records_and_nothing_else() -> anyhow::Result<()> {
    const SLOT: u32 = 5;
    // A record stands behind eight bytes of the kernel's (BPF_RINGBUF_HDR_SZ).
    const ROOM: u64 = size::EVENTS as u64 / (size_of::<netpol_common::Event>() as u64 + 8);
    let mut bench = Bench::with("ring", Sizes::default(), HookChoice::Auto)?;
    let mut programs = bench.load(object::NETPOL)?;
    let endpoint = Endpoint {
        slot: SLOT,
        ingress: Isolation::by(9),
        ..Endpoint::default()
    };
    bench.dataplane.set_endpoint(LOOPBACK, &endpoint)?;
    let mut kernel = KernelTables::open(&mut bench)?;
    let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let syn = frame(from, to, Payload::syn(4000, 80)).expect("one family");
    let losses = |bench: &Bench| bench.dataplane.lost();
    let before = losses(&bench)?;

    for _ in 0..ROOM + 10 {
        kernel.set_budget(SLOT, Direction::Ingress, Budget::default())?;
        let (verdict, _) = programs.execute(map::POD_INGRESS, &syn, LOOPBACK, 1)?;
        assert_eq!(
            verdict, DROP,
            "a packet without a record is dropped like any other"
        );
    }
    let full = losses(&bench)?[lost::FULL as usize] - before[lost::FULL as usize];
    let told = kernel.events().len() as u64;
    assert_eq!(told + full, ROOM + 10, "{told} records, {full} lost");
    assert!(
        full >= 10,
        "{told} records fit, which is more than there is room for"
    );
    assert_eq!(
        losses(&bench)?[lost::BUDGET as usize],
        before[lost::BUDGET as usize],
        "the budget was enough"
    );

    // Once it was read there is room again.
    kernel.set_budget(SLOT, Direction::Ingress, Budget::default())?;
    programs.execute(map::POD_INGRESS, &syn, LOOPBACK, 1)?;
    assert_eq!(kernel.events().len(), 1);
    Ok(())
}
