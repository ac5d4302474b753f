//! The judge in its two homes: the same stories of packets against the same tables, in this kernel (`BPF_PROG_TEST_RUN`) and on
//! the host. After each packet everything must agree: the verdict and its reason, the mark, the packet, what is counted and
//! recorded, and every entry that it has left in a table.
//!
//! `PROPTEST_CASES=N` plays N times eight stories, others each time; `PROPTEST_RNG_SEED` plays those of a seed again.
//!
//! One input no test run can have: a VLAN tag that the device has taken off (`__sk_buff.vlan_present` must be 0 in
//! net/bpf/test_run.c `convert___skb_to_skb`). `hostile_packets` sends such frames through real devices.

mod bodies;
mod counts;
mod generate;
mod homes;
mod hooks;
mod kernel_tables;
mod met;
mod outcome;
mod ring;
mod shot;
mod story;
mod wire;
mod world;

use std::cell::RefCell;

use netpol_agent::dataplane::monotonic;
use netpol_common::{Reason, tcp};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use self::{
    generate::stories,
    homes::{Failure, Homes},
    met::Met,
    shot::{Body, Hook, Shot},
    story::{Act, Change, Step, Story},
    world::{ISOLATIONS, Pod, Profile, Who},
};

/// Stories that are always told, and how often each reason must be met in them.
const SEED: u64 = 20;
const LEAST: u64 = 20;

/// Plays a story once. If the homes disagree, tells about which packet.
fn play(homes: &mut Homes, story: &Story, met: &mut Met) -> Result<Vec<Reason>, Failure> {
    homes.begin(story)?;
    met.begin();
    let mut shots: Vec<Shot> = Vec::new();
    let mut reasons = Vec::new();
    for act in &story.acts {
        for step in act.steps(&shots) {
            let shot = match step {
                Step::Change(change) => {
                    homes.change(change, &shots)?;
                    continue;
                }
                Step::RaiseEpoch => {
                    homes.change(&Change::Epoch, &shots)?;
                    continue;
                }
                Step::Shot(shot) => shot,
            };
            let mark = homes.mark(&shot);
            match homes.fire(&shot) {
                Ok((reason, left)) => {
                    reasons.push(reason);
                    met.note(&shot, (mark, homes.field()), reason, left);
                }
                Err(Failure::Disagree(difference)) => {
                    return Err(Failure::Disagree(format!(
                        "{difference}Packet {} of the story: {shot:?}\nwith the mark {mark:#010x}: {}",
                        shots.len() + 1,
                        hex(&shot.bytes()),
                    )));
                }
                Err(interrupted) => return Err(interrupted),
            }
            shots.push(shot);
        }
    }
    homes.end()?;
    Ok(reasons)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Plays a story to its end: again, when the clock has come between its packets.
fn tell(homes: &mut Homes, story: &Story, met: &mut Met) -> Result<Vec<Reason>, String> {
    const ATTEMPTS: usize = 50;
    for _ in 0..ATTEMPTS {
        match play(homes, story, met) {
            Ok(reasons) => return Ok(reasons),
            Err(Failure::Interrupted) => {}
            Err(Failure::Disagree(difference)) => return Err(difference),
        }
    }
    Err(format!(
        "the clock went on in the middle of a packet, {ATTEMPTS} times in a row: is this machine very busy?"
    ))
}

#[test]
fn kernel_and_host_agree_on_every_packet() {
    let homes = RefCell::new(Homes::new().expect("both homes"));
    let met = RefCell::new(Met::default());
    let usual = Config::default();
    let wished = std::env::var_os("PROPTEST_CASES").is_some();
    let seed = match (wished, usual.rng_seed) {
        (_, RngSeed::Fixed(seed)) => seed,
        (true, RngSeed::Random) => monotonic(),
        (false, RngSeed::Random) => SEED,
    };
    let mut runner = TestRunner::new(Config {
        cases: usual.cases * 8,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..usual
    });
    let result = runner.run(&stories(), |story| {
        tell(&mut homes.borrow_mut(), &story, &mut met.borrow_mut())
            .map(drop)
            .map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(difference, story)) => {
            panic!("seed {seed}: the homes disagree.\n{difference}\nThe story:\n{story}")
        }
        Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
    }
    met.borrow().require(LEAST);
}

/// What becomes of the packets of a story, on which the homes agree.
fn reasons(profile: Profile, acts: Vec<Act>) -> Vec<Reason> {
    let mut homes = Homes::new().expect("both homes");
    let open = Profile::plain(ISOLATIONS[0], ISOLATIONS[0]);
    let story = Story {
        narrow: false,
        profiles: [profile, open],
        acts,
    };
    tell(&mut homes, &story, &mut Met::default())
        .unwrap_or_else(|difference| panic!("{difference}"))
}

const OPEN: usize = 0;
const RULES: usize = 1;
const NOTHING: usize = 3;

fn isolated(ingress: usize, egress: usize) -> Profile {
    Profile::plain(ISOLATIONS[ingress], ISOLATIONS[egress])
}

/// The policies of pod A become others.
fn isolate(ingress: usize, egress: usize) -> Act {
    Act::Change((Change::Profile(Pod::A, isolated(ingress, egress)), true))
}

/// A segment from pod A to a peer, or back, of a connection to port 80 of whoever has it.
fn segment(hook: Hook, v6: bool, peer: Who, ports: (u16, u16), flags: u8) -> Act {
    let who = match hook {
        Hook::Sends(pod) => (pod.who(), peer),
        Hook::Hears(pod) => (peer, pod.who()),
        Hook::Leaves | Hook::LeavesBare => panic!("a hook of a pod"),
    };
    Act::Packet(
        Shot::honest(hook, v6, who, Body::Tcp { ports, flags }),
        Vec::new(),
    )
}

#[test]
fn an_interface_without_endpoint_is_left_alone() {
    let syn = |pod| segment(Hook::Hears(pod), false, Who::Friend, (4000, 80), tcp::SYN);
    // With an endpoint that allows nothing the same packet is dropped.
    let acts = vec![syn(Pod::C), syn(Pod::A)];
    let met = reasons(isolated(NOTHING, OPEN), acts);
    assert_eq!(met, [Reason::Unknown, Reason::Denied]);
}

#[test]
fn an_older_epoch_is_judged_again_in_both_directions() {
    let from_friend = |flags| segment(Hook::Hears(Pod::A), false, Who::Friend, (4000, 80), flags);
    let to_friend = |flags| segment(Hook::Sends(Pod::A), false, Who::Friend, (80, 4000), flags);
    let data = || from_friend(tcp::ACK);
    let reply = || to_friend(tcp::SYN | tcp::ACK);
    let acts = vec![
        from_friend(tcp::SYN),
        reply(),
        data(),
        // The same tables under a new epoch: judged again, and allowed again.
        isolate(RULES, OPEN),
        reply(),
        data(),
        // The permission goes: the pod's own egress is open, but it did not open this connection.
        isolate(NOTHING, OPEN),
        reply(),
        data(),
        // A connection that the pod opens to the same ports is another one.
        to_friend(tcp::SYN),
        // And it comes back.
        isolate(RULES, OPEN),
        from_friend(tcp::SYN),
    ];
    let expected = [
        Reason::Rule,
        Reason::Flow,
        Reason::Flow,
        Reason::Rule,
        Reason::Flow,
        Reason::Revoked,
        Reason::Revoked,
        Reason::Open,
        Reason::Rule,
    ];
    assert_eq!(reasons(isolated(RULES, OPEN), acts), expected);
}

#[test]
fn addresses_of_both_families_are_told_apart() {
    // ::/0 is of a class that may use port 80; it must not answer for IPv4, nor the mapped form of an allowed IPv4 address.
    let syn = |v6, who| segment(Hook::Hears(Pod::A), v6, who, (4000, 80), tcp::SYN);
    let acts = vec![
        syn(false, Who::Stranger),
        syn(true, Who::Stranger),
        syn(false, Who::Mapped),
        syn(true, Who::Mapped),
    ];
    let expected = [
        Reason::Denied,
        Reason::Rule,
        Reason::Rule,
        Reason::Malformed,
    ];
    assert_eq!(reasons(isolated(RULES, OPEN), acts), expected);
}
