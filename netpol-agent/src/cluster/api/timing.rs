//! How long to wait for what.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// How long to wait for what. The defaults suit any cluster.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer, and for each part of a list.
    pub answer: Duration,
    /// How long the server is asked to keep a watch open, at least; up to half as long again, so that not all agents of a
    /// cluster come back at once.
    pub watch: Duration,
    /// A watch that is silent for so long is broken off: the other end may be gone without a word. Servers send a bookmark
    /// about every minute.
    pub idle: Duration,
    /// How long a watch may withhold what a list has shown before it is broken off.
    pub withhold: Duration,
    /// Before the first attempt after a failure that repeats.
    pub retry: Duration,
    /// Between attempts, at most, while nobody answers: the return of a server is to be noticed soon.
    pub retry_limit: Duration,
    /// Between attempts, at most, while a server answers that it can do no more, or has to give whole lists that lead nowhere:
    /// the agents of all nodes together are a load.
    pub busy_limit: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            watch: Duration::from_secs(300),
            idle: Duration::from_secs(150),
            withhold: Duration::from_secs(5),
            retry: Duration::from_millis(100),
            retry_limit: Duration::from_secs(5),
            busy_limit: Duration::from_secs(30),
        }
    }
}

impl Timing {
    /// How long to ask for a watch.
    pub(super) fn watch_seconds(&self) -> u64 {
        self.watch.mul_f64(1.0 + 0.5 * chance()).as_secs().max(1)
    }

    /// How long to wait before the next attempt: longer with every failure, and never shorter than the server asks for. `busy`:
    /// there is a server, and attempts cost it something.
    pub(super) fn pause(&self, failures: u32, busy: bool, asked: Option<Duration>) -> Duration {
        let longer = self.retry.saturating_mul(1 << failures.min(16));
        let limit = if busy {
            self.busy_limit
        } else {
            self.retry_limit
        };
        let own = longer.min(limit).mul_f64(0.5 + 0.5 * chance());
        match asked {
            Some(asked) => own.max(asked.min(LONGEST_PAUSE).mul_f64(1.0 + 0.1 * chance())),
            None => own,
        }
    }
}

/// No server is left alone for longer, whatever it asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Between 0 and 1. The keys of every `RandomState` are others.
fn chance() -> f64 {
    let random = RandomState::new().build_hasher().finish() >> 11;
    random as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_respect_the_server() {
        let timing = Timing::default();
        for _ in 0..100 {
            for (busy, limit) in [(false, timing.retry_limit), (true, timing.busy_limit)] {
                let pause = |failures, asked| timing.pause(failures, busy, asked);
                assert!(pause(0, None) <= timing.retry);
                assert!(pause(0, None) >= timing.retry / 2);
                assert!(pause(40, None) <= limit);
                assert!(pause(40, None) >= limit / 2);
                assert!(pause(0, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
                let forever = Some(Duration::from_secs(1 << 40));
                assert!(pause(0, forever) <= 2 * LONGEST_PAUSE);
            }
            assert!((300..=450).contains(&timing.watch_seconds()));
        }
    }
}
