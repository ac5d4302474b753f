//! Whatever happens, nothing stays behind.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    panic,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netpol_tests::{
    lab::{LABS_DIR, Lab, NETNS_DIR, PREFIX, Shape, sweep},
    manifests::World,
};

const WORLD: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: lab.netpol-agent/v1
kind: Host
metadata: {name: outside}
spec: {addresses: [10.0.5.7], ports: [{port: 80}]}
";

/// Everything on this machine that belongs to a lab: namespaces, directories, mounts.
fn traces(id: &str) -> Vec<String> {
    let mut traces: Vec<String> = fs::read_dir(NETNS_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&format!("{PREFIX}{id}-")))
        .collect();
    let directory = Path::new(LABS_DIR).join(id);
    traces.extend(directory.exists().then(|| directory.display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    traces.extend(
        mounts
            .lines()
            .filter(|line| {
                line.contains(&format!("{PREFIX}{id}-"))
                    || line.contains(&format!("{LABS_DIR}/{id}/"))
            })
            .map(str::to_owned),
    );
    traces
}

#[test]
fn a_lab_that_ends_leaves_nothing() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(WORLD))?;
    let id = lab.run_dir().id().to_owned();
    // Four namespaces, a directory, their four mounts and the bpffs.
    assert_eq!(traces(&id).len(), 10, "{:#?}", traces(&id));
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lab_that_panics_leaves_nothing() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = panic::catch_unwind(move || {
        let lab =
            Lab::new(Shape::Bridge { br_netfilter: true }, World::parse(WORLD)).expect("a lab");
        sender
            .send(lab.run_dir().id().to_owned())
            .expect("the test waits for it");
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    let id = receiver.recv().expect("the lab was built");
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn labs_live_side_by_side_and_keep_their_settings() -> anyhow::Result<()> {
    // bridge-nf-call-iptables belongs to the network namespace, or one of these labs would be wrong.
    let labs = Shape::ALL
        .map(|shape| Lab::new(shape, World::parse(WORLD)))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    for lab in &labs {
        assert!(lab.table()?.all_open());
        if let Shape::Bridge { br_netfilter } = lab.shape() {
            for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                let value = lab.node().worker.run(move || async move {
                    fs::read_to_string(format!("/proc/sys/net/bridge/{name}"))
                })?;
                assert_eq!(value.trim() == "1", br_netfilter, "{}: {name}", lab.shape());
            }
        }
    }
    Ok(())
}

const TO_BE_KILLED: &str = "NETPOL_LAB_TO_BE_KILLED";

/// Runs itself a second time, as the process that is killed.
#[test]
fn what_a_killed_run_leaves_is_swept() -> anyhow::Result<()> {
    if env::var_os(TO_BE_KILLED).is_some() {
        let lab = Lab::new(
            Shape::Bridge {
                br_netfilter: false,
            },
            World::parse(WORLD),
        )?;
        let child = Command::new("sleep").arg("600").spawn()?;
        lab.run_dir().note_child(child.id())?;
        println!("\nlab {} {}", lab.run_dir().id(), child.id());
        thread::sleep(Duration::from_secs(600));
        return Ok(());
    }
    let mut run = Command::new(env::current_exe()?)
        .args([
            "--exact",
            "lab_cleanup::what_a_killed_run_leaves_is_swept",
            "--nocapture",
        ])
        .env(TO_BE_KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let said = first_line(&mut run, "lab ");
    // Nothing of a living lab is swept.
    let swept = sweep();
    run.kill()?;
    run.wait()?;
    let said = said?;
    let mut words = said.split_whitespace().skip(1);
    let (Some(id), Some(child)) = (words.next(), words.next()) else {
        panic!("unexpected: {said}");
    };
    assert!(!swept?.contains(&id.to_owned()));
    assert_eq!(traces(id).len(), 10, "{:#?}", traces(id));
    sweep()?;
    assert_eq!(traces(id), Vec::<String>::new());
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_running(child) {
        assert!(Instant::now() < deadline, "its child {child} lives on");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn is_running(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn first_line(child: &mut Child, beginning: &str) -> anyhow::Result<String> {
    let output = child.stdout.take().expect("its output is a pipe");
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line.starts_with(beginning) {
            return Ok(line);
        }
    }
    anyhow::bail!("it ended without saying `{beginning}...`")
}
