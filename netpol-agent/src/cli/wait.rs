//! `netpol-agent wait`

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{WaitArgs, client};
use crate::agent::{Request, Response};

/// How often to try again while there is no agent.
const RETRY: Duration = Duration::from_millis(50);
/// How much longer than asked for an agent that is busy may take to answer.
const SLACK: Duration = Duration::from_secs(2);

pub(super) fn wait(args: &WaitArgs) -> anyhow::Result<()> {
    let end = Instant::now() + args.timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let request = Request::Wait {
            timeout_millis: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        match client::ask(&args.run_dir.run_dir, &request, left + SLACK) {
            Ok(Response::Wait { done: true, .. }) => return Ok(()),
            Ok(Response::Wait { missing, .. }) => {
                let mut text = format!("not everything is enforced after {:?}:", args.timeout);
                for line in missing {
                    text.push_str("\n  - ");
                    text.push_str(&line);
                }
                bail!(text);
            }
            Ok(other) => bail!("the agent gave an answer to another question: {other:?}"),
            // It may be starting, or be on its way down and up again.
            Err(error) if error.may_pass() && !left.is_zero() => thread::sleep(RETRY.min(left)),
            Err(error) => return Err(error.into()),
        }
    }
}
