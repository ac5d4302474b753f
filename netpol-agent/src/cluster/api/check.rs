//! Somebody waits for everything that is on the server now: what is that, and has it come?

use std::{
    future::{Future, pending},
    pin::Pin,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{
    held::{Goal, Held, Ident, Seen},
    request::{Connection, Failure, PAGE, Part},
    timing::Timing,
    wire,
};

/// The answer that is being made out.
#[derive(Default)]
pub(super) struct Check {
    stage: Stage,
    /// How often in a row the server would not say what there is.
    failures: u32,
}

#[derive(Default)]
enum Stage {
    /// Nobody waits.
    #[default]
    Idle,
    /// The server is asked what there is, for this ticket.
    Asking(
        u64,
        Pin<Box<dyn Future<Output = Result<Seen, Failure>> + Send>>,
    ),
    /// The watch has to bring this, and until then.
    Awaiting(u64, Vec<Goal>, Instant),
    /// The server would not say what there is, and is left alone until then.
    Pausing(Instant),
}

/// What a turn of the check has brought.
pub(super) enum Step {
    /// The server has answered, or not.
    Seen(Result<Seen, Failure>),
    /// The watch did not bring what the server has.
    Withheld,
    /// The server may be asked again.
    Again,
}

impl Check {
    /// Asks the server for a ticket, unless it is being asked already, or left alone.
    pub fn ask(&mut self, ticket: u64, connection: &Connection) {
        if matches!(self.stage, Stage::Idle) {
            self.stage = Stage::Asking(ticket, Box::pin(look(connection.clone())));
        }
    }

    /// Goes on when there is something new. Cancelling loses nothing.
    pub async fn step(&mut self) -> Step {
        match &mut self.stage {
            Stage::Idle => pending().await,
            Stage::Asking(_, answer) => Step::Seen(answer.await),
            Stage::Awaiting(_, _, until) => {
                sleep_until(*until).await;
                Step::Withheld
            }
            Stage::Pausing(until) => {
                sleep_until(*until).await;
                self.stage = Stage::Idle;
                Step::Again
            }
        }
    }

    /// The server has answered: what is missing has to come in this time.
    pub fn compare(&mut self, seen: &Seen, held: &Held, withhold: Duration) {
        if let Stage::Asking(ticket, _) = self.stage {
            let until = Instant::now() + withhold;
            self.stage = Stage::Awaiting(ticket, held.behind(seen), until);
            self.failures = 0;
        }
    }

    /// The server would not say: it is asked again later, or when it wants.
    pub fn pause(&mut self, timing: &Timing, busy: bool, asked: Option<Duration>) {
        let pause = timing.pause(self.failures, busy, asked);
        self.stage = Stage::Pausing(Instant::now() + pause);
        self.failures += 1;
    }

    /// Strikes what has come off the list. Returns the ticket when nothing is left.
    pub fn met(&mut self, held: &Held) -> Option<u64> {
        let Stage::Awaiting(ticket, goals, _) = &mut self.stage else {
            return None;
        };
        let ticket = *ticket;
        goals.retain(|goal| !held.meets(goal));
        goals.is_empty().then(|| {
            self.stage = Stage::Idle;
            ticket
        })
    }
}

/// What there is on the server now: names and versions.
async fn look(connection: Connection) -> Result<Seen, Failure> {
    let kind = connection.kind();
    let mut seen = Seen::default();
    let mut next: Option<String> = None;
    loop {
        let text = connection
            .page(Part::Metadata, Some(PAGE), next.as_deref())
            .await?;
        // A server may take no notice of what part is asked for.
        let kinds = ["PartialObjectMetadataList", kind.list()];
        let page = wire::list(&text, &kinds, |object: wire::Named| {
            let of = object.metadata;
            let version = &of.resource_version;
            let ident = Ident::new(kind, &of.namespace, &of.name, &of.uid, version);
            seen.objects.push(ident);
        })?;
        seen.version = wire::version(&page.version);
        next = page.next;
        if next.is_none() {
            return Ok(seen);
        }
    }
}
