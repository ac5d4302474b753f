//! The container image: one static program and nothing else, written without a container engine.
//!
//! The archive is an OCI image layout and a `docker save` archive at once, over the same blobs, so that every tool that loads
//! archives takes it. The same program gives the same bytes.

mod archive;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    setup,
    shell::{cargo, house, run, say},
    target_folder,
};
use archive::Image;

/// Neither the program nor the archive may be larger.
const LIMIT: u64 = 20 << 20;
/// `localhost`: nobody ever pulls it from a registry by mistake.
const NAME: &str = concat!("localhost/netpol-agent:", env!("CARGO_PKG_VERSION"));

#[derive(Args)]
pub struct Options {
    /// The image's name and tag; deploy/base/kustomization.yaml has the same
    #[arg(long, value_name = "NAME:TAG", default_value = NAME)]
    tag: String,
    /// Give the image to a cluster of this machine
    #[arg(long, value_enum, value_name = "WHERE")]
    load: Option<Cluster>,
    /// The name of the kind cluster or minikube profile
    #[arg(long, requires = "load", value_name = "NAME")]
    cluster: Option<String>,
}

/// Who takes an image archive.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cluster {
    /// All nodes of a kind cluster
    Kind,
    /// All nodes of a minikube profile
    Minikube,
    /// K3s on this machine
    K3s,
    /// The kubelet's containerd on this machine (kubeadm)
    Containerd,
    /// Docker on this machine
    Docker,
}

impl Cluster {
    fn command(self, archive: &Path, name: Option<&str>) -> Command {
        let (program, words): (&str, &[&str]) = match self {
            Self::Kind => ("kind", &["load", "image-archive"]),
            Self::Minikube => ("minikube", &["image", "load"]),
            Self::K3s => ("k3s", &["ctr", "images", "import"]),
            Self::Containerd => ("ctr", &["--namespace", "k8s.io", "images", "import"]),
            Self::Docker => ("docker", &["load", "--input"]),
        };
        let mut command = Command::new(program);
        command.args(words).arg(archive);
        match (self, name) {
            (Self::Kind, Some(name)) => command.args(["--name", name]),
            (Self::Minikube, Some(name)) => command.args(["--profile", name]),
            _ => &mut command,
        };
        command
    }
}

/// Builds the image, and gives it to a cluster if that was asked for.
pub fn image(options: &Options) -> Result<()> {
    let architecture = env::consts::ARCH;
    let target = format!("{architecture}-unknown-linux-musl");
    setup::setup_static(&target)?;
    let program = build(&target)?;
    let folder = target_folder()?.join("oci");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Where the container file takes it from.
    let copy = folder.join("netpol-agent");
    fs::copy(&program, &copy).with_context(|| format!("cannot write {}", copy.display()))?;

    let image = Image::of(&Content {
        program: fs::read(&program)?,
        architecture: match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        name: &options.tag,
        labels: labels(),
    })?;
    let archive = folder.join("netpol-agent.tar");
    fs::write(&archive, &image.archive)
        .with_context(|| format!("cannot write {}", archive.display()))?;
    say(&format!(
        "image: {} ({architecture}, {}), program {}, compressed {}",
        options.tag,
        image.digest,
        mebibytes(image.unpacked),
        mebibytes(image.packed)
    ));
    if image.unpacked.max(image.packed) > LIMIT {
        bail!(
            "the image is larger than {}: look for what made it grow",
            mebibytes(LIMIT)
        );
    }
    if let Some(cluster) = options.load {
        say("image: loading it");
        run(&mut cluster.command(&archive, options.cluster.as_deref()))?;
    }
    println!("{}", archive.display());
    Ok(())
}

/// What an image is made of.
pub struct Content<'a> {
    pub program: Vec<u8>,
    /// As OCI names it.
    pub architecture: &'a str,
    pub name: &'a str,
    pub labels: Vec<(String, String)>,
}

fn build(target: &str) -> Result<PathBuf> {
    say("building");
    let mut command = cargo([
        "build",
        "--package",
        "netpol-agent",
        "--bin",
        "netpol-agent",
    ]);
    command.args(["--profile", "image", "--target", target]);
    // Nothing of this machine gets into the program, and the same source gives the same program elsewhere.
    let mut flags = vec![format!("--remap-path-prefix={}=.", house().display())];
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    if let Some(home) = cargo_home {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    let variable = target.to_uppercase().replace('-', "_");
    command.env(
        format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
        flags.join(" "),
    );
    run(&mut command)?;
    let program = target_folder()?.join(target).join("image/netpol-agent");
    // It must run where there is nothing else, and must hold the eBPF programs.
    if archive::is_dynamic(&fs::read(&program)?) {
        bail!(
            "{} needs a dynamic linker, which the image does not have",
            program.display()
        );
    }
    Ok(program)
}

/// The annotations that OCI has names for.
fn labels() -> Vec<(String, String)> {
    let mut labels = vec![
        ("title", "netpol-agent".to_owned()),
        (
            "description",
            "Enforces Kubernetes NetworkPolicy on the pods of one node with eBPF".to_owned(),
        ),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
    ];
    labels.extend(revision().map(|revision| ("revision", revision)));
    labels
        .into_iter()
        .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value))
        .collect()
}

/// The commit, if the source is exactly that.
fn revision() -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git")
            .current_dir(house())
            .args(words)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    git(&["rev-parse", "HEAD"]).filter(|_| clean)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
