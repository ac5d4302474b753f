//! All probes of one pod in one `exec`: a shell script that runs them side by side, and what it prints.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use netpol_agent::policy::object::Protocol;

use super::probes::Probe;
use crate::table::{Failure, Outcome};

/// How many connection attempts run in one pod at the same time.
const AT_ONCE: usize = 16;

/// What a script prints last. Without it, what it has printed was cut off on its way.
const END: &str = "end";

/// The script: one line of output for each probe, `NUMBER STATUS WORDS`.
pub fn script(probes: &[&Probe], timeout: Duration) -> String {
    let mut script = attempt(timeout);
    for (nth, probe) in probes.iter().enumerate() {
        let protocol = match probe.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let goal = std::net::SocketAddr::new(probe.address, probe.port);
        script.push_str(&format!("try {nth} {protocol} '{goal}' &\n"));
        if (nth + 1) % AT_ONCE == 0 {
            script.push_str("wait\n");
        }
    }
    script.push_str(&format!("wait\necho {END}\n"));
    script
}

/// A shell function: `try NUMBER PROTOCOL ADDRESS` prints `NUMBER STATUS WORDS`.
///
/// A datagram that a busy machine loses is sent again by nobody, so silence to one is no denial. Of TCP and SCTP the kernel takes
/// care.
pub fn attempt(timeout: Duration) -> String {
    let once = format!(
        "said=$(/agnhost connect --timeout={}ms --protocol=$2 \"$3\" 2>&1)",
        timeout.as_millis()
    );
    format!(
        "try() {{ {once}; status=$?\nif [ $status$2 = 1udp ]; then {once}; status=$?; fi\necho \"$1 $status $said\"; }}\n"
    )
}

/// The outcome of each of `count` probes, from what the script printed.
pub fn outcomes(printed: &str, count: usize) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![None; count];
    let Some(lines) = printed.strip_suffix(&format!("{END}\n")) else {
        bail!("what the probes printed was cut off:\n{printed}");
    };
    for line in lines.lines() {
        let (nth, outcome) = result(line)?;
        *outcomes
            .get_mut(nth)
            .with_context(|| format!("there is no probe {nth}"))? = Some(outcome);
    }
    outcomes
        .into_iter()
        .enumerate()
        .map(|(nth, outcome)| {
            outcome.with_context(|| format!("probe {nth} of {count} printed nothing:\n{printed}"))
        })
        .collect()
}

/// What a line that `try` has printed says: the probe's number, and its outcome.
pub fn result(line: &str) -> Result<(usize, Outcome)> {
    let no_result = || format!("the probes printed `{line}`, which is no result");
    let mut words = line.splitn(3, ' ');
    let (Some(nth), Some(status)) = (words.next(), words.next()) else {
        bail!(no_result());
    };
    let nth = nth.parse().with_context(no_result)?;
    Ok((nth, outcome(status, words.next().unwrap_or_default())?))
}

/// What `agnhost connect` says of one attempt. A refusal is an error here: every port that is probed has a server behind it,
/// so who refuses is not the server but a rule, or kube-proxy because nobody is behind a Service.
fn outcome(status: &str, said: &str) -> Result<Outcome> {
    if status == "0" {
        return Ok(Outcome::Open);
    }
    let (word, rest) = said.split_once(':').unwrap_or((said, ""));
    let error = |failure| Ok(Outcome::Error(failure));
    match word {
        "TIMEOUT" => Ok(Outcome::Denied),
        "REFUSED" => error(Failure::Errno(libc::ECONNREFUSED)),
        "OTHER" | "UNKNOWN" if rest.contains("connection refused") => {
            error(Failure::Errno(libc::ECONNREFUSED))
        }
        "OTHER" | "UNKNOWN" if rest.contains("no route to host") => error(Failure::HostUnreachable),
        "OTHER" | "UNKNOWN" if rest.contains("network is unreachable") => {
            error(Failure::NetUnreachable)
        }
        "OTHER" | "UNKNOWN" if rest.contains("operation not permitted") => {
            error(Failure::NotPermitted)
        }
        "OTHER" | "UNKNOWN" if rest.contains("permission denied") => error(Failure::Prohibited),
        _ => bail!(
            "`agnhost connect` ended with {status} and said `{said}`: does the probe image have it?"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::table::{Destination, Party, Port};

    fn probe(address: &str, port: Port) -> Probe {
        let (protocol, number) = port.transport().unwrap();
        Probe {
            source: Party::Node,
            destination: Destination::new(Party::Node, port),
            address: address.parse().unwrap(),
            protocol,
            port: number,
        }
    }

    #[test]
    fn each_word_of_agnhost_has_its_outcome() {
        let printed = "1 1 TIMEOUT\n0 0 \n2 1 REFUSED\n\
            3 1 OTHER: dial tcp 10.0.0.1:80: connect: no route to host\n\
            4 1 TIMEOUT: read udp 10.0.0.1:1->10.0.0.2:53: i/o timeout\n\
            5 1 UNKNOWN: write udp: operation not permitted\nend\n";
        assert_eq!(
            outcomes(printed, 6).unwrap(),
            [
                Outcome::Open,
                Outcome::Denied,
                Outcome::Error(Failure::Errno(libc::ECONNREFUSED)),
                Outcome::Error(Failure::HostUnreachable),
                Outcome::Denied,
                Outcome::Error(Failure::NotPermitted),
            ]
        );
    }

    #[test]
    fn what_is_no_result_is_never_taken_for_a_denial() {
        for printed in [
            "",
            "end\n",
            "0 0 \n",
            "0 127 sh: /agnhost: not found\nend\n",
            "0\nend\n",
            "7 0 \nend\n",
            "x 0\nend\n",
        ] {
            assert!(outcomes(printed, 1).is_err(), "{printed:?}");
        }
    }

    /// The script in this machine's shell, with a program in the place of agnhost that fails as it does.
    #[test]
    fn the_script_prints_one_line_for_each_probe() {
        let directory = tempfile::tempdir().unwrap();
        let stand_in = directory.path().join("agnhost");
        std::fs::write(
            &stand_in,
            "case \"$3 $4\" in *udp*) echo \"$4\" >>\"$(dirname \"$0\")/lost\"; echo TIMEOUT >&2; exit 1;; esac\n\
            [ \"$4\" = '[fd00::1]:80' ]\n",
        )
        .unwrap();
        let mut probes = vec![probe("fd00::1", Port::Tcp(80))];
        probes.extend((0..20).map(|nth| probe("10.0.0.1", Port::Udp(nth + 1))));
        let script = script(&probes.iter().collect::<Vec<_>>(), Duration::from_secs(2))
            .replace("/agnhost", &format!("sh {}", stand_in.display()));
        assert!(script.contains("--timeout=2000ms"), "{script}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let outcomes = outcomes(&printed, probes.len()).unwrap();
        assert_eq!(outcomes[0], Outcome::Open);
        // Twenty datagrams, each sent twice.
        let lost = std::fs::read_to_string(directory.path().join("lost")).unwrap();
        assert_eq!(lost.lines().count(), 2 * 20);
        assert!(outcomes[1..].iter().all(|one| *one == Outcome::Denied));
    }
}
