//! What a flood of dropped packets costs the agent: it reads and tells what the programs record.

use std::{
    fs,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    agent::{Agent, Hook},
    lab::{Lab, Shape, enter},
    manifests::World,
    table::{Family, Party},
};

/// Each pod floods the next one.
const PODS: usize = 8;
const TIME: Duration = Duration::from_secs(4);
const PORT: u16 = 7_000;

fn world() -> String {
    let mut text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: bench, name: nothing}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"
    .to_owned();
    for pod in 0..PODS {
        text.push_str(&format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{namespace: bench, name: pod-{pod}}}
spec: {{containers: [{{name: c}}]}}
"
        ));
    }
    text
}

/// Floods a lab with an agent, and prints what the agent needs of a processor.
///
/// # Errors
///
/// If the lab or the agent does not start.
pub fn run(shape: Shape) -> anyhow::Result<()> {
    eprintln!("a flood of drops ...");
    let lab = Lab::new(shape, World::parse(&world()))?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let pid = agent.pid().context("the agent has ended")?;
    let rest = share(pid, || {
        thread::sleep(TIME);
        Ok(0)
    })?;
    let flood = share(pid, || flood(&lab))?;
    println!(
        "\nThe agent's share of one processor (target: at most 5 %)\n  at rest {:23.2} %\n  {:9.0} drops a second {:8.2} %",
        rest.1 * 100.0,
        flood.0,
        flood.1 * 100.0
    );
    Ok(())
}

/// What a process needs of a processor meanwhile, beside how many a second of something.
fn share(pid: u32, meanwhile: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<(f64, f64)> {
    let (before, begin) = (used(pid)?, Instant::now());
    let count = meanwhile()?;
    let time = begin.elapsed().as_secs_f64();
    let used = used(pid)? - before;
    Ok((count as f64 / time, used.as_secs_f64() / time))
}

/// The processor time of all threads of a process.
fn used(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Nanoseconds on a processor come first (proc_pid_schedstat() in fs/proc/base.c).
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next();
        sum += first.context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Sends as much as possible from each pod to the next one. Returns how much that was.
fn flood(lab: &Lab) -> anyhow::Result<u64> {
    let pod = |number: usize| Party::pod("bench", &format!("pod-{}", number % PODS));
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = vec![];
    for number in 0..PODS {
        let namespace = lab.station(&pod(number))?.namespace.open()?;
        let goal = lab.address(&pod(number + 1), Family::V4)?;
        let over = Arc::clone(&over);
        threads.push(thread::spawn(move || -> std::io::Result<u64> {
            enter(&namespace)?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((goal, PORT))?;
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                socket.send(&[0; 64])?;
                sent += 1;
            }
            Ok(sent)
        }));
    }
    thread::sleep(TIME);
    over.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for thread in threads {
        sent += thread
            .join()
            .map_err(|_| anyhow::anyhow!("a flood panicked"))??;
    }
    Ok(sent)
}
