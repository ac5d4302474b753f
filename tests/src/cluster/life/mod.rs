//! What happens to agents and pods in the life of a cluster, under traffic: agents that are replaced, pods that come and go,
//! pods that are probed by their kubelet, pods in their node's network.
//!
//! Walkers try their goals again and again, and every single attempt counts: [`trail`]. [`objects`] has the world.

pub mod objects;
pub mod trail;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Options, ROLL_OUT_PATIENCE,
    client::Cluster,
    pods::{self, Readiness},
};
use crate::{manifests::DocumentId, table::Outcome};
use objects::{Maker, Role};
use trail::{ATTEMPTS, Goal, Runs};

/// How many pods come and go, one after the other.
const GUESTS: usize = 20;
/// How long images may be pulled and pods started.
const PODS_PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at a log or a pod.
const PAUSE: Duration = Duration::from_millis(500);

/// Plays all cases, and says whether every attempt was as it shall be.
///
/// `image` is for pods, if the options name none.
pub async fn run(
    cluster: &Cluster,
    options: &Options,
    nodes: &[String],
    image: &str,
) -> Result<bool> {
    println!("\n== life, with the agent");
    let namespace = format!("{}-life", options.prefix);
    let maker = Maker {
        namespace: &namespace,
        image: options.probe_image.as_deref().unwrap_or(image),
        timeout: options.timeout,
    };
    let mut life = Life {
        cluster,
        options,
        nodes,
        maker,
        servers: Vec::new(),
        walkers: Vec::new(),
        locked_since: Value::Null,
        wrong: 0,
    };
    life.set().await?;
    life.replace_agents()
        .await
        .context("replacing the agents")?;
    life.receive_guests()
        .await
        .context("pods that come and go")?;
    life.look_at_locked()
        .await
        .context("the pod that may do nothing")?;
    println!("life: {} wrong", life.wrong);
    Ok(life.wrong == 0)
}

/// A server that walkers go to.
#[derive(Clone)]
struct Server {
    name: String,
    app: &'static str,
    address: SocketAddr,
}

impl Server {
    fn goal(&self, open: bool) -> Goal {
        Goal {
            name: self.name.clone(),
            address: self.address,
            expected: if open { Outcome::Open } else { Outcome::Denied },
        }
    }
}

struct Walker {
    name: String,
    goals: Vec<Goal>,
}

struct Life<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    nodes: &'a [String],
    maker: Maker<'a>,
    /// Whom all walkers but that of the node try: the ports 80 and 81 of both shops, and a server whom no policy selects.
    servers: Vec<Server>,
    walkers: Vec<Walker>,
    /// When the pod that may do nothing became ready.
    locked_since: Value,
    /// How many goals were not as they shall be, and the like.
    wrong: usize,
}

impl Life<'_> {
    /// Makes the world, and waits until everything is as it shall be for the first time.
    async fn set(&mut self) -> Result<()> {
        let namespace = self.maker.namespace(&self.options.prefix);
        self.cluster.claim(&namespace).await?;
        for policy in self.maker.policies() {
            self.cluster.apply(&policy).await?;
        }
        let (one, two) = (&self.nodes[0], &self.nodes[1 % self.nodes.len()]);
        for server in [
            self.maker.server("shop-0", "shop", one, false),
            self.maker.server("shop-1", "shop", two, false),
            self.maker.server("plain", "plain", two, false),
            self.maker.server("locked", "locked", one, true),
        ] {
            self.cluster.apply(&server).await?;
        }
        for (name, app, port) in [
            ("shop-0", "shop", 80),
            ("shop-0", "shop", 81),
            ("shop-1", "shop", 80),
            ("shop-1", "shop", 81),
            ("plain", "plain", 80),
        ] {
            self.servers.push(self.server(name, app, port).await?);
        }
        let locked = self.server("locked", "locked", 80).await?;
        self.locked_since = self.ready_since("locked").await?;

        let [on_one, _, on_two, _, plain] = &self.servers[..] else {
            bail!("five servers");
        };
        // The labels of `locked`, and no policy holds it. It reaches the pods of its own node as a kubelet does; to those of the
        // other it is an address that no selector selects.
        let apart = one != two;
        let on_node = vec![
            plain.goal(true),
            on_two.goal(true),
            on_one.goal(!apart),
            locked.goal(!apart),
        ];
        let mut friend = self.goals(Role::Friend);
        friend.push(locked.goal(false));
        let stranger = self.goals(Role::Stranger);
        let captive = self.goals(Role::Captive);
        let maker = &self.maker;
        for (pod, name, goals) in [
            (
                maker.walker("friend", Role::Friend, one, &friend),
                "friend",
                friend,
            ),
            (
                maker.walker("stranger", Role::Stranger, two, &stranger),
                "stranger",
                stranger,
            ),
            (
                maker.walker("captive", Role::Captive, two, &captive),
                "captive",
                captive,
            ),
            (
                maker.walker_on_the_node("on-node", two, &on_node),
                "on-node",
                on_node,
            ),
        ] {
            self.cluster.apply(&pod).await?;
            self.wait_ready(name).await?;
            let name = name.to_owned();
            self.walkers.push(Walker { name, goals });
        }
        for walker in &self.walkers {
            let trails = self.settled(walker, PODS_PATIENCE).await?;
            for (goal, attempts) in walker.goals.iter().zip(&trails) {
                ensure!(
                    goal.is_settled(attempts),
                    "{} to {} shall be {}: {}",
                    walker.name,
                    goal.name,
                    goal.expected,
                    Runs(attempts)
                );
            }
        }
        Ok(())
    }

    /// A new agent on every node, one after the other: nothing that is open closes, and nothing that is closed opens.
    async fn replace_agents(&mut self) -> Result<()> {
        let (namespace, name) = self.options.agent.as_ref().context("an agent")?;
        let before = self.attempted().await?;
        let started = Instant::now();
        self.cluster.restart(namespace, name).await?;
        let agents = self
            .cluster
            .wait_rolled_out(namespace, name, ROLL_OUT_PATIENCE)
            .await?;
        let took = started.elapsed().as_secs();
        let after = self.attempted().await?;
        println!("\n-- life, {agents} agents were replaced within {took} s");
        self.more_than(&after).await?;
        self.judge(&before).await
    }

    /// Pods that come and go under one name, each time as somebody else: a guest is never taken for the one before.
    async fn receive_guests(&mut self) -> Result<()> {
        println!("\n-- life, {GUESTS} pods of one name, one after the other");
        let before = self.attempted().await?;
        for nth in 0..GUESTS {
            let role = Role::ALL[nth % Role::ALL.len()];
            let node = &self.nodes[nth / Role::ALL.len() % self.nodes.len()];
            let goals = self.goals(role);
            let pod = self.maker.walker("guest", role, node, &goals);
            self.cluster.apply(&pod).await?;
            self.wait_ready("guest").await?;
            let guest = Walker {
                name: "guest".to_owned(),
                goals,
            };
            let trails = self.settled(&guest, self.options.patience).await?;
            let mut said = Vec::new();
            for (goal, attempts) in guest.goals.iter().zip(&trails) {
                let good = goal.is_settled(attempts) && goal.never_strayed(attempts);
                self.wrong += usize::from(!good);
                let mark = if good { "" } else { " WRONG" };
                said.push(format!("{} {}{mark}", goal.name, Runs(attempts)));
            }
            println!(
                "guest {nth} is a {} on {node}: {}",
                role.label(),
                said.join("; ")
            );
            self.cluster.delete(&pod).await?;
            self.wait_absent("guest").await?;
        }
        println!("meanwhile:");
        self.judge(&before).await
    }

    /// Its kubelet has probed it all the time, and nothing else has reached it.
    async fn look_at_locked(&mut self) -> Result<()> {
        let since = self.ready_since("locked").await?;
        let pod = self.pod("locked").await?.context("pod `locked` has gone")?;
        let containers = pod["status"]["containerStatuses"].as_array();
        let restarts: u64 = containers
            .into_iter()
            .flatten()
            .filter_map(|container| container["restartCount"].as_u64())
            .sum();
        let good = since == self.locked_since && restarts == 0;
        self.wrong += usize::from(!good);
        println!(
            "\n-- life, a pod that may do nothing, and its kubelet: ready since {} (at first {}), {restarts} restarts{}",
            since.as_str().unwrap_or("never"),
            self.locked_since.as_str().unwrap_or("never"),
            if good { "" } else { " WRONG" },
        );
        Ok(())
    }

    fn goals(&self, role: Role) -> Vec<Goal> {
        let servers = self.servers.iter();
        servers
            .map(|server| server.goal(role.may_reach(server.app, server.address.port())))
            .collect()
    }

    /// Everything that a walker has come to so far.
    async fn trails(&self, walker: &Walker) -> Result<Vec<Vec<Outcome>>> {
        let log = self.cluster.log(self.maker.namespace, &walker.name).await?;
        trail::read(&log, walker.goals.len())
            .with_context(|| format!("the log of pod {}", walker.name))
    }

    /// Waits until all goals of a walker are as they shall be, or the time is up, and tells what it has come to.
    async fn settled(&self, walker: &Walker, patience: Duration) -> Result<Vec<Vec<Outcome>>> {
        let end = Instant::now() + patience;
        loop {
            let trails = self.trails(walker).await?;
            let mut pairs = walker.goals.iter().zip(&trails);
            if pairs.all(|(goal, attempts)| goal.is_settled(attempts)) || Instant::now() > end {
                return Ok(trails);
            }
            sleep(PAUSE).await;
        }
    }

    /// How many attempts there have been: at each goal of each walker.
    async fn attempted(&self) -> Result<Vec<Vec<usize>>> {
        let mut attempted = Vec::new();
        for walker in &self.walkers {
            let trails = self.trails(walker).await?;
            attempted.push(trails.iter().map(Vec::len).collect());
        }
        Ok(attempted)
    }

    /// Waits until every goal has been tried often enough since.
    async fn more_than(&self, before: &[Vec<usize>]) -> Result<()> {
        let end = Instant::now() + PODS_PATIENCE;
        loop {
            let now = self.attempted().await?;
            let mut pairs = now.iter().flatten().zip(before.iter().flatten());
            if pairs.all(|(now, before)| *now >= before + ATTEMPTS) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "walkers have stopped: {now:?} attempts, before {before:?}"
            );
            sleep(PAUSE).await;
        }
    }

    /// Shows every attempt since, and counts the goals with one that was not as it shall be.
    async fn judge(&mut self, before: &[Vec<usize>]) -> Result<()> {
        for (walker, before) in self.walkers.iter().zip(before) {
            let trails = self.trails(walker).await?;
            for ((goal, attempts), before) in walker.goals.iter().zip(&trails).zip(before) {
                let since = &attempts[*before..];
                let good = since.iter().all(|found| found.agrees_with(goal.expected));
                self.wrong += usize::from(!good);
                let mark = if good { "" } else { " WRONG" };
                println!("{} to {}: {}{mark}", walker.name, goal.name, Runs(since));
            }
        }
        Ok(())
    }
    /// A server's address, as soon as it is ready.
    async fn server(&self, pod: &str, app: &'static str, port: u16) -> Result<Server> {
        let status = self.wait_ready(pod).await?["status"].take();
        let address = status["podIP"]
            .as_str()
            .context("a ready pod has an address")?;
        Ok(Server {
            name: format!("{pod}:{port}"),
            app,
            address: SocketAddr::new(address.parse()?, port),
        })
    }

    async fn wait_ready(&self, name: &str) -> Result<Value> {
        let end = Instant::now() + PODS_PATIENCE;
        loop {
            let pod = self.pod(name).await?;
            let pod = pod.with_context(|| format!("pod {name} has gone"))?;
            match pods::readiness(&pod) {
                Readiness::Ready => return Ok(pod),
                Readiness::NotYet(detail) if Instant::now() > end => {
                    bail!("pod {name} is not ready: {detail}")
                }
                Readiness::NotYet(_) => sleep(PAUSE).await,
                Readiness::Never(detail) => bail!("pod {name} does not run: {detail}"),
            }
        }
    }

    /// Since when a pod is ready without a break.
    async fn ready_since(&self, name: &str) -> Result<Value> {
        let pod = self.wait_ready(name).await?;
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Ready");
        let ready = ready.context("a ready pod has the condition")?;
        Ok(ready["lastTransitionTime"].clone())
    }

    async fn wait_absent(&self, name: &str) -> Result<()> {
        let end = Instant::now() + PODS_PATIENCE;
        while self.pod(name).await?.is_some() {
            ensure!(Instant::now() < end, "pod {name} does not go");
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn pod(&self, name: &str) -> Result<Option<Value>> {
        let id = DocumentId::pod(self.maker.namespace, name);
        self.cluster.find(&id).await
    }
}
