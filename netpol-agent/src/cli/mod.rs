//! The command line: `run`, `wait`, `status`, `cleanup`.

mod cleanup;
mod client;
mod lock;
mod mounts;
mod preflight;
mod run;
mod status;
mod wait;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};

use netpol_common::MarkField;

use crate::{dataplane::HookChoice, policy::object::ObjectKey};

/// Enforces Kubernetes NetworkPolicy on the pods of one node with eBPF.
#[derive(Parser, Debug)]
#[command(
    name = "netpol-agent",
    version,
    after_help = "Every option can also be given by the environment variable that is named beside it.\n\
                  The log level is set by NETPOL_LOG (default info; for example NETPOL_LOG=netpol_agent=debug)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Enforce policies in the foreground, until SIGTERM or SIGINT
    ///
    /// Programs and tables are pinned: enforcement goes on after the agent has ended, and the next one takes it over.
    /// `netpol-agent cleanup` ends it.
    Run(RunArgs),
    /// Wait until everything that is in the manifests or on the API server now is enforced
    ///
    /// Ends with 0 as soon as the running agent has all of that, has looked for the interfaces of all local
    /// pods, and enforces every object on every local pod that has an interface. Ends with 1 after the timeout, and says
    /// what is missing. An agent that is not there yet is waited for.
    Wait(WaitArgs),
    /// Show what the running agent enforces
    ///
    /// Pods of this node with their interfaces and policies, what was dropped and passed and why, policies with the pods
    /// that they select here, files and objects that cannot be used, how full the tables are.
    Status(StatusArgs),
    /// Take every program off its interface and remove all pins: pods are open afterwards
    ///
    /// Refuses while an agent is running.
    Cleanup(CleanupArgs),
    /// Mount a bpf file system for the pins, if there is none yet
    ///
    /// `run` does this by itself if it may (CAP_SYS_ADMIN). In a cluster it may not, and an init container does.
    MountBpffs(BpfDir),
}

/// Where an agent keeps its socket.
#[derive(Args, Debug)]
struct RunDir {
    /// Directory of the agent's socket and lock
    #[arg(
        long,
        env = "NETPOL_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/netpol-agent"
    )]
    run_dir: PathBuf,
}

/// Where an agent keeps its pins.
#[derive(Args, Debug)]
struct BpfDir {
    /// Directory of the pins, on a bpf file system (which is mounted there if there is none)
    ///
    /// Agents in different network namespaces of one machine need different directories.
    #[arg(
        long,
        env = "NETPOL_BPF_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/netpol"
    )]
    bpf_dir: PathBuf,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Directory with manifests: *.yaml, *.yml and *.json
    ///
    /// Files hold Namespaces, Pods, NetworkPolicies and Services, several documents or lists, as `kubectl get -o yaml` writes them;
    /// other kinds are ignored. The directory may be empty. It is watched: write a file in place or rename one over it,
    /// delete a file to delete its objects. A file or object that cannot be used keeps its last good version in force, and
    /// `netpol-agent status` shows it.
    ///
    /// Without this the agent reads the API server of the cluster.
    #[arg(long, env = "NETPOL_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Read the API server that the current context of this kubeconfig names
    ///
    /// Without this, and without --manifests, the agent uses the files that KUBECONFIG names or, where it is not set, the
    /// service account of the pod in which it runs. It has to be allowed to list and watch namespaces, pods, services and
    /// networkpolicies.networking.k8s.io.
    #[arg(
        long,
        env = "NETPOL_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "manifests"
    )]
    kubeconfig: Option<PathBuf>,
    /// Name of this node: pods whose spec.nodeName is NODE are enforced
    #[arg(long, env = "NODE_NAME", value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    node_name: String,
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpf_dir: BpfDir,
    /// How programs are put on interfaces
    #[arg(long, env = "NETPOL_HOOK", value_enum, default_value_t = Hook::Auto)]
    hook: Hook,
    /// Log the way of every packet of a pod (repeatable); costs nothing where it is not used
    #[arg(long, env = "NETPOL_TRACE_POD", value_name = "NAMESPACE/NAME", value_parser = pod, value_delimiter = ',')]
    trace_pod: Vec<ObjectKey>,
    /// Bits of packet marks that the agent may use, as a hexadecimal mask
    ///
    /// A packet to a Service is judged where it leaves, with the rules of the pod that has sent it; the mark says which pod
    /// that is. At least 13 neighbouring bits, none of them in 0xe000, which kube-proxy and the portmap plugin use, and none
    /// that something else on this node uses (Calico: 0xffff0000 unless configured otherwise).
    #[arg(long, env = "NETPOL_MARK_MASK", value_name = "MASK", value_parser = mark_mask, default_value = "0xffff0000")]
    mark_mask: MarkField,
    /// Let pods send under addresses that are not theirs, and receive what is addressed to others
    ///
    /// Switches off, for every pod: that what it sends carries its own hardware and IP addresses (in ARP and neighbour
    /// discovery, too), that nothing it sends is in an envelope that this node opens (VXLAN, Geneve, GRE, IPIP), that an ICMP
    /// error quotes what was sent to it, and that what it receives is for it. For pods that are routers or tunnel ends
    /// themselves. Policies are still enforced, on the addresses that packets carry: a pod can then claim another's.
    #[arg(long, env = "NETPOL_ALLOW_SPOOFING")]
    allow_spoofing: bool,
    /// Where to serve /metrics, /healthz and /readyz over HTTP; nowhere if it is not given
    ///
    /// An address of the node and a port, for example 127.0.0.1:10741. An IPv6 address needs no brackets.
    #[arg(long, env = "NETPOL_METRICS_ADDRESS", value_name = "IP:PORT", value_parser = listen_address)]
    metrics_address: Option<SocketAddr>,
    /// Form of the log, on standard error
    #[arg(long, env = "NETPOL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Args, Debug)]
struct WaitArgs {
    /// How long, for example 20s, 500ms or 2m
    #[arg(long, env = "NETPOL_TIMEOUT", value_parser = duration, default_value = "20s")]
    timeout: Duration,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args, Debug)]
struct StatusArgs {
    /// Form of the output; the fields of the JSON form are never renamed
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args, Debug)]
struct CleanupArgs {
    #[command(flatten)]
    bpf_dir: BpfDir,
    /// Even while an agent is running (its pods are open until it is restarted), or where filters cannot be removed because
    /// their network namespace is another one
    #[arg(long)]
    force: bool,
    /// Stay afterwards, until SIGTERM or SIGINT: for a pod of a DaemonSet, which is started again when it ends
    #[arg(long)]
    stay: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Hook {
    /// TCX links where the kernel has them (6.6), clsact where not
    Auto,
    /// TCX links
    Tcx,
    /// Filters of a clsact queueing discipline
    Clsact,
}

impl From<Hook> for HookChoice {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Auto => Self::Auto,
            Hook::Tcx => Self::Tcx,
            Hook::Clsact => Self::Clsact,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object in a line
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Wait(args) => wait::wait(&args),
        Command::Status(args) => status::status(&args),
        Command::Cleanup(args) => cleanup::cleanup(&args),
        Command::MountBpffs(args) => mounts::mount_bpffs(&args.bpf_dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::tell(&sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each told once: many errors name their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn pod(text: &str) -> Result<ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(ObjectKey::new(namespace, name))
        }
        _ => Err("give the pod as NAMESPACE/NAME".to_owned()),
    }
}

fn mark_mask(text: &str) -> Result<MarkField, String> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let mask = u32::from_str_radix(digits, 16)
        .map_err(|_| "give a hexadecimal number of up to 32 bits, for example 0xffff0000")?;
    if let Some(field) = MarkField::of_mask(mask) {
        return Ok(field);
    }
    let wrong = if mask & MarkField::FOREIGN != 0 {
        format!(
            "it has bits of {:#x}, which kube-proxy (0x4000, 0x8000) and the portmap plugin (0x2000) use",
            MarkField::FOREIGN
        )
    } else if mask.count_ones() < MarkField::MIN_BITS {
        format!("it has {} bits", mask.count_ones())
    } else {
        "its bits are not side by side".to_owned()
    };
    Err(format!(
        "{wrong}: choose at least {} neighbouring bits outside of {:#x}, for example {:#010x}",
        MarkField::MIN_BITS,
        MarkField::FOREIGN,
        MarkField::DEFAULT.mask
    ))
}

/// `$(HOST_IP):PORT` in a manifest gives an IPv6 address without brackets.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let unbracketed = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    let address = text.parse().ok().or_else(unbracketed);
    address.ok_or_else(|| "give an address and a port: 127.0.0.1:10741 or [::1]:10741".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let advice = || "give a number and a unit: 500ms, 20s, 2m or 1h".to_owned();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| advice())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(advice()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| advice())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no space")
            .context("cannot write (no space)")
            .context("cannot start");
        assert_eq!(sentence(&error), "cannot start: cannot write (no space)");
    }

    #[test]
    fn marks() {
        assert_eq!(mark_mask("0xffff0000"), Ok(MarkField::DEFAULT));
        assert_eq!(
            mark_mask("1FFF").map(|f| (f.mask, f.shift)),
            Ok((0x1fff, 0))
        );
        let args = [
            "netpol-agent",
            "run",
            "--manifests",
            "m",
            "--node-name",
            "n",
        ];
        let Ok(Command::Run(run)) = Cli::try_parse_from(args).map(|cli| cli.command) else {
            panic!("{args:?} is refused");
        };
        assert_eq!(run.mark_mask, MarkField::DEFAULT);
        for (text, why) in [
            ("0xffffc000", "kube-proxy"),
            ("0xfff00000", "it has 12 bits"),
            ("0xfffd0000", "side by side"),
            ("0", "it has 0 bits"),
            ("mask", "hexadecimal"),
            ("0x1ffff0000", "hexadecimal"),
        ] {
            let told = mark_mask(text).expect_err("is refused");
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn sources() {
        let source = |more: &[&str]| {
            let args = ["netpol-agent", "run", "--node-name", "n"];
            match Cli::try_parse_from(args.iter().chain(more)).map(|cli| cli.command) {
                Ok(Command::Run(run)) => Ok((run.manifests, run.kubeconfig)),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        assert_eq!(source(&[]), Ok((None, None)));
        assert_eq!(source(&["--manifests", "m"]), Ok((Some("m".into()), None)));
        assert_eq!(source(&["--kubeconfig", "k"]), Ok((None, Some("k".into()))));
        let both = source(&["--manifests", "m", "--kubeconfig", "k"]).expect_err("one of both");
        assert!(
            both.contains("--manifests") && both.contains("--kubeconfig"),
            "{both}"
        );
    }

    #[test]
    fn listen_addresses() {
        for (text, address) in [
            ("127.0.0.1:10741", "127.0.0.1:10741"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("fd00::1:10741", "[fd00::1]:10741"),
            (":::10741", "[::]:10741"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().expect(address)));
        }
        for text in [
            "",
            "10741",
            ":10741",
            "localhost:10741",
            "127.0.0.1",
            "$(HOST_IP):10741",
        ] {
            assert!(listen_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("500ms", 500),
            ("20s", 20_000),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "5 s", "5d", "1e3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pods() {
        assert_eq!(pod("a/b"), Ok(ObjectKey::new("a", "b")));
        for text in ["a", "/b", "a/", "a/b/c", ""] {
            assert!(pod(text).is_err(), "{text}");
        }
    }
}
