//! A lab whose pods an API server knows.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use netpol_tests::{
    agent::{Agent, Hook, Said},
    control_plane::ControlPlane,
    lab::{Lab, LabError, NODE_NAME, Shape},
    manifests::{DocumentId, World},
    story::{self, THREE_PODS},
    table::{Destination, Party, Port},
};
use serde_json::Value;

/// Fields are dropped in this order.
pub struct Cluster {
    pub control_plane: ControlPlane,
    pub lab: Lab,
}

impl Cluster {
    /// The lab and the API server agree.
    pub fn new(shape: Shape, world: World) -> anyhow::Result<Self> {
        Self::with_flags(shape, world, &[])
    }

    /// As [`Cluster::new`], with more flags for the API server.
    pub fn with_flags(shape: Shape, world: World, flags: &[&str]) -> anyhow::Result<Self> {
        let lab = Lab::new(shape, world)?;
        let mut control_plane = ControlPlane::start_with(&lab, flags)?;
        control_plane.apply(&lab)?;
        Ok(Self { control_plane, lab })
    }

    /// With `a/web`, `a/friend` and `a/other`.
    pub fn of_three_pods() -> anyhow::Result<Self> {
        Self::new(Shape::Routed, World::parse(THREE_PODS))
    }

    /// Starts the agent of the lab's node, with its own service account.
    pub fn agent(&self, hook: Hook) -> anyhow::Result<Agent> {
        self.agent_as(NODE_NAME, hook)
    }

    /// As [`Cluster::agent`], where the node has another name.
    pub fn agent_as(&self, node: &str, hook: Hook) -> anyhow::Result<Agent> {
        self.start(node, hook, &[])
    }

    /// As [`Cluster::agent`], with more arguments.
    pub fn agent_with(&self, arguments: &[&str]) -> anyhow::Result<Agent> {
        self.start(NODE_NAME, Hook::Auto, arguments)
    }

    fn start(&self, node: &str, hook: Hook, arguments: &[&str]) -> anyhow::Result<Agent> {
        let (lab, kubeconfig) = (&self.lab, self.control_plane.kubeconfig());
        Ok(Agent::start_with_api(
            lab,
            &kubeconfig,
            node,
            hook,
            arguments,
        )?)
    }

    /// Changes the world, the lab with it, and then the objects of the API.
    pub fn change(
        &mut self,
        change: impl FnOnce(&mut World) -> Result<(), LabError>,
    ) -> anyhow::Result<()> {
        self.lab.change(change)?;
        self.control_plane.apply(&self.lab)
    }

    /// Applies YAML documents.
    pub fn put(&mut self, text: &str) -> anyhow::Result<()> {
        self.change(|world| {
            world.apply(text);
            Ok(())
        })
    }

    /// Deletes an object, of a pod its sandbox too.
    pub fn delete(&mut self, id: &DocumentId) -> anyhow::Result<()> {
        self.change(|world| world.remove(id))
    }

    /// Probes, and says where the table is wrong.
    pub fn expect(&self, moment: &str, table: &str) -> anyhow::Result<()> {
        story::expect(&self.lab, moment, table)
    }
}

/// `a/friend`
pub fn friend() -> Party {
    Party::pod("a", "friend")
}

/// `a/other`
pub fn other() -> Party {
    Party::pod("a", "other")
}

/// A port of `a/web`.
pub fn web(port: Port) -> Destination {
    Destination::new(Party::pod("a", "web"), port)
}

/// `wait` has ended with 1, and says each of these words.
pub fn missing(said: &Said, words: &[&str]) -> anyhow::Result<()> {
    ensure!(said.code == Some(1), "`wait` must not succeed: {said}");
    for word in words {
        ensure!(said.err.contains(word), "it must say `{word}`: {said}");
    }
    Ok(())
}

/// Asks for the status until it is as wanted: the agent may take this long to notice.
pub fn status_until(
    agent: &Agent,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        // There is none before the agent listens.
        let status = agent.status();
        match status {
            Ok(status) if wanted(&status) => return Ok(status),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Ok(status) if Instant::now() > end => bail!(
                "{what}: not so after a minute; the status is\n{status:#}\n{}",
                agent.log()
            ),
            _ => {}
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the status says that the server cannot be reached.
pub fn is_away(status: &Value) -> bool {
    !status["source"]["away"].is_null()
}

/// For a packet that shall not come.
pub const SILENCE: Duration = Duration::from_millis(400);
/// For a packet that shall.
pub const PATIENCE: Duration = Duration::from_secs(3);
