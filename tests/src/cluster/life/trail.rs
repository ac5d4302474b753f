//! Probes without a pause: what a walker tries again and again, and what its log says came of it.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};

use super::super::script;
use crate::table::Outcome;

/// Between two attempts at one goal.
const PAUSE: &str = "0.5";

/// How many attempts at each goal there must be in every part of a story.
pub const ATTEMPTS: usize = 3;

/// What a walker tries to reach, and what shall come of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Goal {
    /// What people call it: `shop-0:80`.
    pub name: String,
    /// Where it is.
    pub address: SocketAddr,
    /// What every attempt shall come to.
    pub expected: Outcome,
}

impl Goal {
    /// Whether the last attempts all came to what they shall.
    pub fn is_settled(&self, attempts: &[Outcome]) -> bool {
        let last = attempts.iter().rev().take(ATTEMPTS);
        attempts.len() >= ATTEMPTS && last.copied().all(|found| found.agrees_with(self.expected))
    }

    /// Whether a pod that is new was never taken for another one: what is forbidden never opens, what is allowed may be late,
    /// and once it is open it stays so.
    pub fn never_strayed(&self, attempts: &[Outcome]) -> bool {
        let late = attempts
            .iter()
            .take_while(|found| self.expected == Outcome::Open && **found == Outcome::Denied);
        let rest = &attempts[late.count()..];
        rest.iter().all(|found| found.agrees_with(self.expected))
    }
}

/// The shell script of a walker: it tries all goals side by side from its first moment to its last, a line for each attempt.
pub fn walk(goals: &[Goal], timeout: Duration) -> String {
    let mut script = script::attempt(timeout);
    script.push_str(&format!(
        "walk() {{ while :; do try \"$@\"; sleep {PAUSE}; done; }}\n"
    ));
    for (nth, goal) in goals.iter().enumerate() {
        script.push_str(&format!("walk {nth} tcp '{}' &\n", goal.address));
    }
    script.push_str("wait\n");
    script
}

/// The outcomes of each of `count` goals, in the order of time, from what a walker has printed so far.
pub fn read(log: &str, count: usize) -> Result<Vec<Vec<Outcome>>> {
    let mut outcomes = vec![Vec::new(); count];
    // A line that is still being written is read the next time.
    let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    for line in complete.lines() {
        let (nth, outcome) = script::result(line)?;
        let of_goal = outcomes.get_mut(nth);
        of_goal
            .with_context(|| format!("there is no goal {nth}"))?
            .push(outcome);
    }
    Ok(outcomes)
}

/// How often each outcome occurred, in a row: `12 open, 1 denied, 30 open`.
pub struct Runs<'a>(pub &'a [Outcome]);

impl fmt::Display for Runs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        for (nth, run) in self.0.chunk_by(|a, b| a == b).enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", run.len(), run[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Failure;

    #[test]
    fn a_log_is_read_by_goal_and_without_its_last_unfinished_line() {
        let log = "0 0 \n1 1 TIMEOUT\n0 1 TIMEOUT\n0 1 REFUSED\n1 0";
        let refused = Outcome::Error(Failure::Errno(libc::ECONNREFUSED));
        assert_eq!(
            read(log, 2).unwrap(),
            [
                vec![Outcome::Open, Outcome::Denied, refused],
                vec![Outcome::Denied]
            ]
        );
        assert_eq!(read("", 1).unwrap(), [vec![]]);
        assert!(read("2 0 \n", 2).is_err());
        assert!(read("sh: not found\n", 2).is_err());
    }

    #[test]
    fn what_is_allowed_may_be_late_and_what_is_forbidden_is_never_open() {
        const O: Outcome = Outcome::Open;
        const D: Outcome = Outcome::Denied;
        let open = Goal {
            name: String::new(),
            address: "10.0.0.1:80".parse().unwrap(),
            expected: O,
        };
        let denied = Goal {
            expected: D,
            ..open.clone()
        };
        assert!(
            open.is_settled(&[D, O, O, O])
                && !open.is_settled(&[O, O])
                && !open.is_settled(&[O, O, O, D])
        );
        assert!(open.never_strayed(&[D, D, O, O]) && !open.never_strayed(&[D, O, D, O]));
        assert!(denied.never_strayed(&[D, D]) && !denied.never_strayed(&[O, D, D]));
        assert!(!open.never_strayed(&[Outcome::Error(Failure::NotPermitted), O]));
    }

    #[test]
    fn outcomes_are_told_in_runs() {
        let outcomes = [Outcome::Open, Outcome::Open, Outcome::Denied, Outcome::Open];
        assert_eq!(Runs(&outcomes).to_string(), "2 open, 1 denied, 1 open");
        assert_eq!(Runs(&[]).to_string(), "nothing");
    }

    #[test]
    fn a_walker_tries_all_goals_side_by_side() {
        let goal = |address: &str| Goal {
            name: address.to_owned(),
            address: address.parse().unwrap(),
            expected: Outcome::Open,
        };
        let script = walk(
            &[goal("10.0.0.1:80"), goal("[fd00::1]:81")],
            Duration::from_secs(1),
        );
        assert!(script.contains("--timeout=1000ms"), "{script}");
        assert!(script.contains("walk 0 tcp '10.0.0.1:80' &\n"), "{script}");
        assert!(
            script.ends_with("walk 1 tcp '[fd00::1]:81' &\nwait\n"),
            "{script}"
        );
    }
}
