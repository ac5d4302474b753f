//! `cargo xtask kind`: a cluster of containers with Flannel, the agent on it, and the connectivity suite without and with it.
//!
//! Everything is done by the ordinary programs, `kind`, `kubectl` and `docker`, with the kubeconfig and the engine that they
//! find by themselves. Where no container registry can be reached, images come from archives.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::{
    cluster_test,
    shell::{capture, cargo, house, on_path, run, say, works},
};

/// The scenario that is played again after the agent has been taken away, and after it has come back.
const AGAIN: &str = "S07";
/// Prints what a node still has of the agent.
const LEFT_BEHIND: &str = "ls -d /sys/fs/bpf/netpol* 2>/dev/null
for device in $(ls /sys/class/net); do
    for way in ingress egress; do
        tc filter show dev $device $way | grep -E '(pod|host|bare)_(in|e)gress' | sed \"s/^/$device $way: /\"
    done
done
true";
/// What the overlay calls the agent's image, and where its DaemonSet is.
const AGENT: (&str, &str) = ("kube-system", "netpol-agent");

#[derive(Subcommand)]
pub enum Kind {
    /// Make the cluster if it is not there, and deploy the agent
    Up {
        #[command(flatten)]
        cluster: Cluster,
        /// Leave the agent out
        #[arg(long)]
        without_agent: bool,
    },
    /// The connectivity suite, first without the agent (everything open) and then with it
    Test {
        #[command(flatten)]
        cluster: Cluster,
        /// For the suite: see `cargo xtask cluster-test -- --help`
        #[arg(last = true, value_name = "ARGS")]
        suite: Vec<OsString>,
    },
    /// Delete the cluster
    Down {
        /// The cluster's name
        #[arg(long, default_value = "netpol")]
        name: String,
    },
}

/// The cluster, and what it is made of. The defaults need a container registry; the options name what to take instead.
#[derive(Args)]
pub struct Cluster {
    /// The cluster's name; its context is kind-NAME
    #[arg(long, default_value = "netpol")]
    name: String,
    /// The nodes' image, or an archive of it; else the one of the installed kind
    #[arg(long, value_name = "IMAGE|FILE")]
    node_image: Option<String>,
    /// Images that the nodes shall not pull, as archives (`docker save`); may be given several times
    #[arg(long, value_name = "FILE")]
    image_archive: Vec<PathBuf>,
    /// kind's description of the cluster
    #[arg(long, value_name = "FILE", default_value = "deploy/kind/cluster.yaml")]
    cluster_config: PathBuf,
    /// Flannel: a kustomization, a manifest or a URL
    #[arg(
        long,
        value_name = "DIR|FILE|URL",
        default_value = "deploy/kind/flannel"
    )]
    flannel: String,
    /// The agent's image as an archive; else it is built
    #[arg(long, value_name = "FILE")]
    agent_archive: Option<PathBuf>,
    /// The agent's manifests, as a kustomization
    #[arg(long, value_name = "DIR", default_value = "deploy/overlays/kind")]
    overlay: PathBuf,
}

pub fn perform(verb: Kind) -> Result<()> {
    match verb {
        Kind::Up {
            cluster,
            without_agent,
        } => {
            cluster.make()?;
            if !without_agent {
                cluster.deploy()?;
            }
            say(&format!(
                "the cluster is there: kubectl --context {} get pods -A",
                cluster.context()
            ));
            Ok(())
        }
        Kind::Test { cluster, suite } => cluster.test(&suite),
        Kind::Down { name } => {
            need("kind")?;
            run(program("kind").args(["delete", "cluster", "--name", &name]))
        }
    }
}

impl Cluster {
    fn context(&self) -> String {
        format!("kind-{}", self.name)
    }

    fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program("kubectl");
        command.arg("--context").arg(self.context()).args(arguments);
        command
    }

    fn exists(&self) -> Result<bool> {
        let clusters = capture(program("kind").args(["get", "clusters", "--quiet"]))?;
        Ok(clusters.lines().any(|name| name == self.name))
    }

    fn has_agent(&self) -> bool {
        let (namespace, name) = AGENT;
        works(&mut self.kubectl(["--namespace", namespace, "get", "daemonset", name]))
    }

    /// The cluster without the agent, ready for pods.
    fn make(&self) -> Result<()> {
        need("kind")?;
        need("kubectl")?;
        if self.exists()? {
            say(&format!("cluster {} is there already", self.name));
        } else {
            // Before minutes are spent on a cluster.
            for file in &self.image_archive {
                readable(file)?;
            }
            say(&format!("making cluster {}", self.name));
            let mut create = program("kind");
            create
                .args(["create", "cluster", "--name", &self.name, "--config"])
                .arg(at_home(&self.cluster_config));
            if let Some(image) = &self.node_image {
                create.arg("--image").arg(node_image(image)?);
            }
            run(&mut create)?;
        }
        for file in &self.image_archive {
            self.load(file)?;
        }
        say("Flannel");
        let (how, what) = manifest(&self.flannel);
        run(self.kubectl(["apply", how]).arg(what))?;
        // Nodes are not ready until the CNI is.
        self.rolled_out("kube-flannel", "daemonset/kube-flannel-ds")?;
        run(&mut self.kubectl([
            "wait",
            "--for=condition=Ready",
            "nodes",
            "--all",
            "--timeout=300s",
        ]))?;
        self.rolled_out("kube-system", "deployment/coredns")
    }

    fn load(&self, archive: &Path) -> Result<()> {
        say(&format!("loading {}", archive.display()));
        run(program("kind")
            .args(["load", "image-archive", "--name", &self.name])
            .arg(readable(archive)?))
    }

    /// The agent's image into the nodes, its manifests to the API server, and the wait until every node enforces.
    fn deploy(&self) -> Result<()> {
        let archive = match &self.agent_archive {
            Some(archive) => archive.clone(),
            None => built_image()?,
        };
        self.load(&archive)?;
        say("the agent");
        let (namespace, name) = AGENT;
        let daemonset = format!("daemonset/{name}");
        let was_there = self.has_agent();
        run(self
            .kubectl(["apply", "--kustomize"])
            .arg(at_home(&self.overlay)))?;
        if was_there {
            // The image has the name of the one before, and may be a new one.
            run(&mut self.kubectl(["--namespace", namespace, "rollout", "restart", &daemonset]))?;
        }
        self.rolled_out(namespace, &daemonset)
    }

    /// Takes the agent away with all that it enforces, by the script that users have for it: that stays when its pods are only
    /// deleted.
    fn undeploy(&self) -> Result<()> {
        say("taking the agent away: deploy/uninstall.sh");
        let kubectl = format!("{} --context {}", named("kubectl"), self.context());
        run(Command::new(house().join("deploy/uninstall.sh")).env("KUBECTL", kubectl))?;
        // What an overlay has that deploy/ has not.
        run(self
            .kubectl(["delete", "--ignore-not-found", "--wait", "--kustomize"])
            .arg(at_home(&self.overlay)))
    }

    /// Refuses when a node still has something of the agent in its kernel.
    fn is_clean(&self) -> Result<()> {
        need("docker")?;
        let nodes = capture(program("kind").args(["get", "nodes", "--name", &self.name]))?;
        for node in nodes.lines() {
            let left = capture(program("docker").args(["exec", node, "sh", "-c", LEFT_BEHIND]))?;
            if !left.trim().is_empty() {
                bail!("node {node} is not clean after deploy/uninstall.sh:\n{left}");
            }
            say(&format!("{node}: no pins and no filters are left"));
        }
        Ok(())
    }

    fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        let status = ["rollout", "status", what, "--timeout=300s"];
        run(self.kubectl(["--namespace", namespace]).args(status))
    }

    fn test(&self, suite: &[OsString]) -> Result<()> {
        self.make()?;
        if self.has_agent() {
            self.undeploy()?;
        }
        let context = [OsString::from("--context"), self.context().into()];
        let suite_with = |more: &[&str]| -> Vec<OsString> {
            let more = more.iter().map(OsString::from);
            context
                .iter()
                .cloned()
                .chain(suite.iter().cloned())
                .chain(more)
                .collect()
        };
        say("the suite without the agent: policies exist, and everything must stay open");
        let without = cluster_test::run_suite(&suite_with(&["--without-agent"]));
        self.deploy()?;
        say(
            "the suite with the agent, and what happens to it and to pods in the life of a cluster",
        );
        let with = cluster_test::run_suite(&suite_with(&["--part", "scenarios", "--part", "life"]));
        self.undeploy()?;
        self.is_clean()?;
        say("a scenario after the agent has been taken away: everything must be open again");
        let again = cluster_test::run_suite(&suite_with(&["--without-agent", "--only", AGAIN]));
        self.deploy()?;
        say("the same scenario with the agent that was installed again");
        let anew = cluster_test::run_suite(&suite_with(&["--only", AGAIN]));
        without.context("without the agent")?;
        with.context("with the agent")?;
        again.context("after it has been taken away")?;
        anew.context("with the agent installed again")?;
        say("without the agent, with it, without it and with it again: all is as expected");
        Ok(())
    }
}

/// The agent's image, built from this source.
fn built_image() -> Result<PathBuf> {
    let printed = capture(&mut cargo(["xtask", "image"]))?;
    let path = printed.lines().last().map(str::trim).unwrap_or_default();
    readable(Path::new(path))
        .context("`cargo xtask image` prints where the image is")
        .map(Path::to_owned)
}

/// A program by its name on PATH, or by the path in a variable of its name: `KIND=/opt/kind`.
pub fn program(name: &str) -> Command {
    Command::new(named(name))
}

fn named(name: &str) -> String {
    env::var(name.to_uppercase()).unwrap_or_else(|_| name.to_owned())
}

/// Refuses, before anything is done, when a program is missing.
pub fn need(name: &str) -> Result<()> {
    let variable = name.to_uppercase();
    if env::var_os(&variable).is_none() && on_path(name).is_none() {
        bail!("`{name}` is not on PATH: install it, or name it by the variable {variable}");
    }
    Ok(())
}

/// A path that the command line leaves at its default is meant from the workspace.
fn at_home(path: &Path) -> PathBuf {
    if path.exists() {
        path.to_owned()
    } else {
        house().join(path)
    }
}

/// How kubectl is told of manifests: a kustomization, a file, or a URL.
fn manifest(named: &str) -> (&'static str, OsString) {
    if named.contains("://") {
        return ("--filename", named.into());
    }
    let path = at_home(Path::new(named));
    let how = if path.is_dir() {
        "--kustomize"
    } else {
        "--filename"
    };
    (how, path.into_os_string())
}

fn readable(file: &Path) -> Result<&Path> {
    std::fs::File::open(file).with_context(|| format!("read {}", file.display()))?;
    Ok(file)
}

/// The name of the nodes' image; an archive is loaded into the engine first.
fn node_image(image: &str) -> Result<String> {
    if !Path::new(image).is_file() {
        return Ok(image.to_owned());
    }
    need("docker")?;
    say(&format!("loading {image} into the engine"));
    let said = capture(program("docker").args(["load", "--quiet", "--input", image]))?;
    loaded(&said)
        .with_context(|| format!("docker load of {image} names no image: {said}"))
        .map(str::to_owned)
}

/// `Loaded image: kindest/node:v1.35.0`
fn loaded(said: &str) -> Option<&str> {
    said.lines()
        .find_map(|line| line.strip_prefix("Loaded image: "))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_says_what_it_has_loaded() {
        assert_eq!(
            loaded("Loaded image: kindest/node:v1.35.0\n"),
            Some("kindest/node:v1.35.0")
        );
        assert_eq!(loaded("Loaded image ID: sha256:0123\n"), None);
    }

    #[test]
    fn defaults_are_in_the_workspace() {
        assert!(at_home(Path::new("deploy/kind/cluster.yaml")).is_file());
        let (how, what) = manifest("deploy/kind/flannel");
        assert_eq!(how, "--kustomize");
        assert!(Path::new(&what).join("kustomization.yaml").is_file());
    }

    #[test]
    fn manifests_are_files_directories_and_urls() {
        let url = "https://example.org/flannel.yaml";
        assert_eq!(manifest(url), ("--filename", url.into()));
        let file = "deploy/kind/flannel/kube-flannel.yaml";
        assert_eq!(manifest(file).0, "--filename");
    }
}
