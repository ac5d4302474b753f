//! A real kube-apiserver and etcd, for the pods of a lab.
//!
//! They run outside the lab's nodes, on the router that every node reaches: `https://172.18.0.1:6443`, and etcd on the
//! loopback device there. Nothing of it is seen outside the lab's namespaces.
//!
//! There is no kubelet, no scheduler and no controller. Who a pod is on and which addresses it has is written by the test,
//! as the kubelet would ([`ControlPlane::apply`]); everything else goes the way of any object: admission, defaults,
//! validation, and for the agent the rights of its own service account, by the manifests of `deploy/`.

mod access;
mod binaries;
mod certificates;
mod client;
mod objects;
mod process;
mod seed;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

pub use access::AGENT_ACCOUNT;
pub use binaries::BINARIES_VARIABLE;
pub use client::Answer;

use crate::{
    lab::{Lab, Worker},
    manifests::DocumentId,
};
use binaries::Binaries;
use client::Client;
use process::Process;

/// How long a program may take until it answers: several are started at once, on a machine with few processors.
const PATIENCE: Duration = Duration::from_secs(120);

const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// A running control plane. Drop it before its lab: both programs end.
pub struct ControlPlane {
    /// `None` while it is stopped. Ends before etcd does.
    apiserver: Option<Process>,
    etcd: Process,
    client: Client,
    /// In the lab's directory, and removed with it.
    directory: PathBuf,
    address: IpAddr,
    binaries: Binaries,
    /// Further flags of the API server.
    flags: Vec<String>,
    /// What [`ControlPlane::apply`] has written.
    applied: BTreeMap<DocumentId, Value>,
    /// Lives in the namespace of the two programs, and is their parent. It ends last.
    worker: Worker,
}

impl ControlPlane {
    /// Starts etcd and the API server outside a lab's nodes, waits until they are ready, and gives the agent its account.
    /// No object of the lab is known to them yet: see [`ControlPlane::apply`].
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        Self::start_with(lab, &[])
    }

    /// As [`ControlPlane::start`], with more flags for the API server.
    pub fn start_with(lab: &Lab, flags: &[&str]) -> anyhow::Result<Self> {
        let binaries = Binaries::find()?;
        let address = lab.router_addresses()[0];
        let directory = lab.run_dir().path().join("control-plane");
        fs::create_dir(&directory).context("cannot make the directory of the control plane")?;
        certificates::write(&directory, address)?;
        let worker = Worker::start(&lab.outside().namespace)?;
        let mut etcd = Process::start("etcd", &worker, &directory, etcd(&binaries, &directory))?;
        let client = Client::new(&worker, &directory, &format!("https://{address}:{PORT}"))?;
        until_ready(&mut etcd, || client.etcd_is_ready(&worker))?;
        let mut control_plane = Self {
            apiserver: None,
            etcd,
            client,
            directory,
            address,
            binaries,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            applied: BTreeMap::new(),
            worker,
        };
        control_plane.start_server()?;
        for object in control_plane.deployed()? {
            control_plane.put(&object)?;
        }
        control_plane.log_in()?;
        Ok(control_plane)
    }

    /// Starts the API server, with the data and at the place that it had, and waits until it is ready.
    pub fn start_server(&mut self) -> anyhow::Result<()> {
        self.etcd.check()?;
        if self.apiserver.is_some() {
            bail!("the API server is running");
        }
        let command = self.apiserver_command();
        let process = Process::start("kube-apiserver", &self.worker, &self.directory, command)?;
        let process = self.apiserver.insert(process);
        until_ready(process, || self.client.server_is_ready(&self.worker))
    }

    /// Ends the API server: connections to it are closed, and new ones are refused.
    pub fn stop_server(&mut self) -> anyhow::Result<()> {
        let server = self.apiserver.take();
        server.context("the API server is not running")?.end()
    }

    /// Kills the API server, as a machine that loses its power does not even: the kernel closes its connections.
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        let server = self.apiserver.take();
        server.context("the API server is not running").map(drop)
    }

    /// Stops the API server in its tracks (SIGSTOP): connections stay, new ones are made, and nothing is answered.
    pub fn freeze_server(&self) -> anyhow::Result<()> {
        self.signal_server(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw_server(&self) -> anyhow::Result<()> {
        self.signal_server(Signal::SIGCONT)
    }

    /// Makes etcd forget every version of every object but the last.
    pub fn compact(&self) -> anyhow::Result<()> {
        self.client.compact(&self.worker)
    }

    /// The number of the last change of anything.
    pub fn revision(&self) -> anyhow::Result<String> {
        self.client.revision(&self.worker)
    }

    /// What the server answers to whoever wants to hear of policies since a revision: the text of the first second.
    pub fn watch_policies(&self, revision: &str) -> anyhow::Result<String> {
        self.client.watch_policies(&self.worker, revision)
    }

    /// Where the agent finds its kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join(access::KUBECONFIG)
    }

    /// The end of what the API server wrote.
    pub fn log_end(&self) -> String {
        self.apiserver
            .as_ref()
            .map(Process::log_end)
            .unwrap_or_default()
    }

    fn signal_server(&self, signal: Signal) -> anyhow::Result<()> {
        let server = self.apiserver.as_ref();
        server
            .context("the API server is not running")?
            .signal(signal)
    }

    fn apiserver_command(&self) -> Command {
        let mut command = Command::new(&self.binaries.apiserver);
        let file = |name: &str| self.directory.join(name).display().to_string();
        let flags = [
            ("etcd-servers", ETCD.to_owned()),
            ("bind-address", self.address.to_string()),
            ("advertise-address", self.address.to_string()),
            ("secure-port", PORT.to_string()),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("anonymous-auth", "false".to_owned()),
            ("client-ca-file", file(certificates::AUTHORITY)),
            ("tls-cert-file", file(certificates::SERVER)),
            ("tls-private-key-file", file(certificates::SERVER_KEY)),
            // As the lab's kube-proxy has it.
            (
                "service-cluster-ip-range",
                "10.96.0.0/16,fd00:10:96::/112".to_owned(),
            ),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc".to_owned(),
            ),
            ("service-account-key-file", file(certificates::TOKENS)),
            (
                "service-account-signing-key-file",
                file(certificates::TOKENS_KEY),
            ),
            ("endpoint-reconciler-type", "none".to_owned()),
            // As every cluster of kubeadm has it: agents of networks need it.
            ("allow-privileged", "true".to_owned()),
            // Nobody makes a service account for each namespace, and none of the lab's pods needs one.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            // What ends with its connections ends at once.
            ("shutdown-delay-duration", "0s".to_owned()),
        ];
        for (name, value) in flags {
            command.arg(format!("--{name}={value}"));
        }
        command.args(&self.flags);
        command
    }
}

fn etcd(binaries: &Binaries, directory: &Path) -> Command {
    let mut command = Command::new(&binaries.etcd);
    command.arg("--data-dir").arg(directory.join("etcd")).args([
        "--listen-client-urls",
        ETCD,
        "--advertise-client-urls",
        ETCD,
        "--listen-peer-urls",
        ETCD_PEERS,
        "--initial-advertise-peer-urls",
        ETCD_PEERS,
        "--initial-cluster",
        &format!("default={ETCD_PEERS}"),
        // It shall outlive the API server, and not the machine.
        "--unsafe-no-fsync",
        "--log-level",
        "warn",
    ]);
    command
}

/// Asks until the answer is yes, as long as the program runs.
fn until_ready(
    process: &mut Process,
    mut is_ready: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        process.check()?;
        match is_ready() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => bail!(
                "not ready after {} s: {error:#}; its last words:\n{}",
                PATIENCE.as_secs(),
                process.log_end()
            ),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
