//! The tables of the dataplane on this kernel: what is written is there, what is refused changes nothing, and what is there
//! already is not written again.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use netpol_agent::{
    dataplane::{Error, HookChoice, Sizes, TableFill},
    policy::edit::Edit,
};
use netpol_common::{Address, Peer, PortKey, PortSetId, RuleKey, map, protocol};
use netpol_tests::kernel::{Bench, LOOPBACK};

/// Makes the element of a number.
type Make = fn(u32) -> Edit;

const TABLES: [&str; 4] = [map::PORTS, map::RULES, map::PEER_HOSTS, map::PEER_NETS];

fn host(number: u32, class: Option<u64>) -> Edit {
    Edit::Host {
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)).into(),
        peer: class.map(Peer::of),
    }
}

fn net(number: u32, class: Option<u64>) -> Edit {
    let prefix = (0x2001_0db8_u128 << 96) | (u128::from(number) << 32);
    Edit::Net {
        address: IpAddr::V6(Ipv6Addr::from_bits(prefix)).into(),
        bits: 96,
        peer: class.map(Peer::of),
    }
}

fn rule(number: u32, ports: Option<PortSetId>) -> Edit {
    let key = RuleKey {
        ruleset: 7,
        class: number.into(),
    };
    Edit::Rule { key, ports }
}

fn port(number: u32, present: bool) -> Edit {
    let [high, low] = [number >> 16, number & 0xffff];
    Edit::Port {
        key: PortKey::new(u64::from(high) + 2, protocol::TCP, low as u16),
        bits: PortKey::FULL_BITS,
        present,
    }
}

/// That many elements of each table, in the order in which an index hands them out.
fn elements(numbers: std::ops::Range<u32>) -> Vec<Edit> {
    let all = |edit: Make| numbers.clone().map(edit).collect::<Vec<_>>();
    [
        all(|n| port(n, true)),
        all(|n| rule(n, Some(2))),
        all(|n| host(n, Some(u64::from(n) + 1))),
        all(|n| net(n, Some(u64::from(n) + 1))),
    ]
    .concat()
}

fn removals(numbers: std::ops::Range<u32>) -> Vec<Edit> {
    let all = |edit: Make| numbers.clone().map(edit).collect::<Vec<_>>();
    [
        all(|n| net(n, None)),
        all(|n| host(n, None)),
        all(|n| rule(n, None)),
        all(|n| port(n, false)),
    ]
    .concat()
}

/// What is in the kernel, read through the pins and not through the dataplane.
fn content(bench: &Bench) -> anyhow::Result<BTreeSet<String>> {
    let open = |name| -> anyhow::Result<MapData> { Ok(MapData::from_pin(bench.pin(name))?) };
    let mut found = BTreeSet::new();
    let mut note = |edit: Edit| found.insert(format!("{edit:?}"));
    let ports: LpmTrie<_, PortKey, u8> = Map::LpmTrie(open(map::PORTS)?).try_into()?;
    for entry in ports.iter() {
        let (key, value) = entry?;
        note(Edit::Port {
            key: key.data(),
            bits: key.prefix_len(),
            present: value == 1,
        });
    }
    let rules: HashMap<_, RuleKey, PortSetId> = Map::HashMap(open(map::RULES)?).try_into()?;
    for entry in rules.iter() {
        let (key, ports) = entry?;
        note(Edit::Rule {
            key,
            ports: Some(ports),
        });
    }
    let hosts: HashMap<_, Address, Peer> = Map::HashMap(open(map::PEER_HOSTS)?).try_into()?;
    for entry in hosts.iter() {
        let (address, peer) = entry?;
        note(Edit::Host {
            address,
            peer: Some(peer),
        });
    }
    let nets: LpmTrie<_, Address, Peer> = Map::LpmTrie(open(map::PEER_NETS)?).try_into()?;
    for entry in nets.iter() {
        let (key, peer) = entry?;
        note(Edit::Net {
            address: key.data(),
            bits: key.prefix_len(),
            peer: Some(peer),
        });
    }
    Ok(found)
}

/// The kernel holds exactly this.
fn holds(bench: &Bench, moment: &str, expected: &[Edit]) -> anyhow::Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|edit| format!("{edit:?}")).collect();
    let found = content(bench)?;
    let difference = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
        let some: Vec<_> = a.difference(b).take(3).cloned().collect();
        some.join("\n  ")
    };
    ensure!(
        found == expected,
        "{moment}: {} elements expected, {} found\nmissing, for example:\n  {}\ntoo many, for example:\n  {}",
        expected.len(),
        found.len(),
        difference(&expected, &found),
        difference(&found, &expected),
    );
    Ok(())
}

#[test]
fn few_and_many_elements_are_written_and_removed() -> anyhow::Result<()> {
    let mut bench = Bench::new("write")?;
    // Below and above the number at which batches begin, and more than one batch.
    for count in [1, 7, 8, 9, 5000] {
        bench.dataplane.write(&elements(0..count))?;
        holds(
            &bench,
            &format!("{count} of each written"),
            &elements(0..count),
        )?;
        let fill = bench.dataplane.fill()?;
        for name in TABLES {
            let table = fill.iter().find(|table| table.name == name);
            ensure!(
                table.is_some_and(|table| table.entries == count as usize),
                "the fill of {name} after {count}: {fill:?}"
            );
        }
        // Again, and with other values.
        bench.dataplane.write(&elements(0..count))?;
        let changed: Vec<Edit> = (0..count).map(|n| host(n, Some(99))).collect();
        bench.dataplane.write(&changed)?;
        let mut expected = elements(0..count);
        expected.retain(|edit| !matches!(edit, Edit::Host { .. }));
        expected.extend(changed);
        holds(&bench, &format!("{count} of each written again"), &expected)?;

        bench.dataplane.write(&removals(0..count))?;
        holds(&bench, &format!("{count} of each removed"), &[])?;
    }
    Ok(())
}

#[test]
fn what_is_not_there_can_be_removed() -> anyhow::Result<()> {
    let mut bench = Bench::new("absent")?;
    bench.dataplane.write(&removals(0..20))?;
    bench.dataplane.write(&elements(0..10))?;
    bench.dataplane.write(&removals(5..15))?;
    bench.dataplane.write(&removals(5..15))?;
    holds(&bench, "with the upper half removed", &elements(0..5))?;
    bench.dataplane.remove_endpoint(LOOPBACK)?;
    Ok(())
}

fn small() -> Sizes {
    Sizes {
        hosts: 16,
        nets: 16,
        rules: 16,
        ports: 16,
        flows: 64,
    }
}

#[test]
fn a_full_table_is_a_clear_error_and_keeps_what_it_has() -> anyhow::Result<()> {
    let mut bench = Bench::with("full", small(), HookChoice::Auto)?;
    bench.dataplane.write(&elements(0..10))?;
    let there = content(&bench)?;
    let attempts: [(&str, Make); 4] = [
        (map::PORTS, |n| port(n, true)),
        (map::RULES, |n| rule(n, Some(2))),
        (map::PEER_HOSTS, |n| host(n, Some(1))),
        (map::PEER_NETS, |n| net(n, Some(1))),
    ];
    for (name, edit) in attempts {
        for numbers in [100..120, 200..207, 300..301] {
            let edits: Vec<Edit> = numbers.map(edit).collect();
            let error = bench
                .dataplane
                .write(&edits)
                .err()
                .with_context(|| format!("{name} holds 16, and took {} more", edits.len()))?;
            let told = error.to_string();
            ensure!(
                told.contains(&format!("cannot write table {name}")) && told.contains("it is full"),
                "what must be said of {name}: {told}"
            );
        }
        let now = content(&bench)?;
        ensure!(
            now.is_superset(&there),
            "{name}: an element that was there has gone"
        );
    }
    // There is room again once something goes, and what is there can be changed even now.
    bench.dataplane.write(&[host(3, Some(77))])?;
    bench.dataplane.discard_unknown(&elements(0..10))?;
    bench.dataplane.write(&elements(10..16))?;
    let fill = bench.dataplane.fill()?;
    let hosts = fill.iter().find(|table| table.name == map::PEER_HOSTS);
    ensure!(
        hosts.is_some_and(|table: &TableFill| table.entries == 16 && table.capacity == 16),
        "{fill:?}"
    );
    Ok(())
}

#[test]
fn adoption_writes_what_differs_and_nothing_else() -> anyhow::Result<()> {
    let mut bench = Bench::new("adopt")?;
    bench.dataplane.write(&elements(0..50))?;
    let mut wanted = elements(20..70);
    bench.dataplane.adopt(&wanted)?;
    holds(&bench, "adopted: nothing is removed yet", &elements(0..70))?;
    bench.dataplane.discard_unknown(&wanted)?;
    holds(&bench, "what nobody wants is gone", &wanted)?;
    wanted.push(host(30, Some(1000)));
    wanted.retain(|edit| *edit != host(30, Some(31)));
    bench.dataplane.adopt(&wanted)?;
    holds(&bench, "with a host of another class", &wanted)?;

    // From here on every write fails.
    for name in TABLES {
        bench.freeze(name)?;
    }
    bench
        .dataplane
        .adopt(&wanted)
        .context("everything is there, and yet something was written")?;
    bench
        .dataplane
        .discard_unknown(&wanted)
        .context("nothing is too many, and yet something was removed")?;
    let mut next = bench.open_again(HookChoice::Auto)?;
    next.adopt(&wanted)
        .context("the next agent finds everything, and yet writes something")?;
    for more in [
        port(99, true),
        rule(99, Some(2)),
        host(99, Some(1)),
        net(99, Some(1)),
    ] {
        let mut wanted = wanted.clone();
        wanted.push(more);
        ensure!(
            next.adopt(&wanted).is_err(),
            "{more:?} is missing, and was not written"
        );
    }
    Ok(())
}

#[test]
fn a_pin_of_another_layout_is_refused() -> anyhow::Result<()> {
    let bench = Bench::new("layout")?;
    let (rules, hosts, aside) = (
        bench.pin(map::RULES),
        bench.pin(map::PEER_HOSTS),
        bench.pin("ASIDE"),
    );
    // A map with other values lies where the rules should be.
    fs::rename(&rules, &aside)?;
    fs::rename(&hosts, &rules)?;
    let told = match bench.open_again(HookChoice::Auto) {
        Err(error @ Error::Layout { .. }) => error.to_string(),
        Err(error) => anyhow::bail!("another error than that of a layout: {error}"),
        Ok(_) => anyhow::bail!("a map of another layout was opened without a word"),
    };
    ensure!(
        told.contains(&rules.display().to_string()) && told.contains("netpol-agent cleanup"),
        "it must name the pin and say what to do: {told}"
    );
    fs::rename(&rules, &hosts)?;
    fs::rename(&aside, &rules)?;
    bench.open_again(HookChoice::Auto)?;
    Ok(())
}
