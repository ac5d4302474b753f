//! Follows one kind: lists it, watches it, and begins again as often as needed.
//!
//! ```text
//!            ┌──────────── 410, or the server went back ────────────┐
//!            ▼                                                      │
//!   list: a watch that begins with everything, ──── complete ──► watch from the last version ──┐
//!         or pages where the server has none                        ▲                          │
//!                                                                   └── ended, broken, silent ─┘
//! ```
//!
//! A list that is complete, or a watch that is opened, proves nothing: the next step may fail every time. What counts is a
//! watch that lives ([`Reflector::works`]); until then every failure is followed by a longer pause, and told.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::FutureExt as _;
use hyper::StatusCode;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    check::{Check, Step},
    held::Held,
    request::{Connection, Failure, Lines, PAGE, Part, Refusal},
    timing::Timing,
    wire::{self, Event, Status, What},
};
use crate::{
    cluster::{Away, Kind, Problem},
    policy::ObjectChange,
};

/// What there is to tell of one kind: changes since the last report, and the state after them.
#[derive(Debug)]
pub(super) struct Report {
    pub kind: Kind,
    pub changes: Vec<ObjectChange>,
    /// The version that these changes lead to.
    pub version: u64,
    /// The first list is complete.
    pub complete: bool,
    /// See [`crate::cluster::Update::covers`].
    pub covers: u64,
    /// See [`crate::cluster::Update::unanswered`].
    pub unanswered: Option<Arc<str>>,
    pub away: Option<Arc<Away>>,
    /// Only when they are others than before.
    pub problems: Option<Arc<[Problem]>>,
}

/// So many changes are told at once while there are more to come.
const BATCH: usize = 512;

/// Follows one kind.
pub(super) struct Reflector {
    connection: Connection,
    timing: Timing,
    tickets: watch::Receiver<u64>,
    reports: mpsc::Sender<Report>,
    held: Held,
    /// Where the watch goes on; empty when everything has to be listed.
    position: String,
    /// Lists are streamed. Until the server refuses it.
    streaming: bool,
    /// How often in a row a list expired between two of its pages.
    torn: u32,
    complete: bool,
    covers: u64,
    /// Why those who wait still do, if the server does not say what there is.
    unanswered: Option<Arc<str>>,
    away: Option<Arc<Away>>,
    /// How often in a row something failed without a watch that worked between.
    failures: u32,
    /// How often of these everything had to be listed again.
    expirations: u32,
    /// The server answers, and still a watch has come to nothing: the next answer proves nothing.
    fruitless: bool,
    /// The credentials were read again because the server does not accept them, and it has not answered since.
    renewed: bool,
    /// What is not told yet.
    changes: Vec<ObjectChange>,
    news: bool,
}

/// What a turn of the watch has brought.
enum Turn {
    Read(Result<bool, Failure>),
    Silent,
    /// It has been open for a while.
    Lives,
    Asked,
    Checked(Step),
}

impl Reflector {
    pub fn new(
        connection: Connection,
        timing: Timing,
        tickets: watch::Receiver<u64>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self {
            held: Held::new(connection.kind()),
            connection,
            timing,
            tickets,
            reports,
            position: String::new(),
            streaming: true,
            torn: 0,
            complete: false,
            covers: 0,
            unanswered: None,
            away: None,
            failures: 0,
            expirations: 0,
            fruitless: false,
            renewed: false,
            changes: Vec::new(),
            news: false,
        }
    }

    /// Runs until nobody listens any more.
    pub async fn run(mut self) {
        loop {
            let ended = if !self.position.is_empty() {
                self.follow(false).await
            } else if self.streaming {
                self.follow(true).await
            } else {
                self.list().await
            };
            let told = match ended {
                Ok(()) => Ok(()),
                Err(failure) => self.recover(failure).await,
            };
            if told.is_err() {
                return;
            }
        }
    }

    /// Lists everything, page by page.
    async fn list(&mut self) -> Result<(), Failure> {
        let ticket = *self.tickets.borrow();
        self.held.begin();
        let mut next: Option<String> = None;
        loop {
            // Pages that expire again and again: the server does not keep a version for long enough.
            let limit = (self.torn < 2).then_some(PAGE);
            let page = self.connection.page(Part::All, limit, next.as_deref());
            let text = page.await.inspect_err(|failure| {
                let torn = next.is_some() && matches!(failure, Failure::Expired(_));
                self.torn += u32::from(torn);
            })?;
            let (held, changes) = (&mut self.held, &mut self.changes);
            let kinds = [self.connection.kind().list()];
            let page = wire::list(&text, &kinds, |object| held.listed(object, changes))?;
            drop(text);
            next = page.next;
            if next.is_none() {
                self.position = page.version;
                return self.listed(ticket).await;
            }
            self.tell().await?;
        }
    }

    /// A list is complete.
    async fn listed(&mut self, ticket: u64) -> Result<(), Failure> {
        let version = wire::version(&self.position);
        self.held.end(version, &mut self.changes);
        self.torn = 0;
        self.complete = true;
        self.cover(ticket);
        tracing::debug!(
            kind = %self.connection.kind(),
            objects = self.held.len(),
            version = self.position,
            "listed"
        );
        self.reached().await
    }

    /// Watches until the watch ends, which is never good news. `initial`: it begins with everything that there is.
    async fn follow(&mut self, mut initial: bool) -> Result<(), Failure> {
        let ticket = *self.tickets.borrow();
        let from = (!initial).then_some(self.position.as_str());
        let answer = match self.connection.watch(from).await {
            Err(Failure::Refused(refusal)) if initial && is_unsupported(&refusal) => {
                tracing::debug!(kind = %self.connection.kind(), reason = refusal.reason, "no streamed lists");
                self.streaming = false;
                return Ok(());
            }
            answer => answer?,
        };
        self.reached().await?;
        if initial {
            self.held.begin();
        }
        let mut lines = Lines::new(answer);
        let mut check = Check::default();
        let opened = Instant::now();
        let mut heard = opened;
        loop {
            let ticket_now = *self.tickets.borrow_and_update();
            if !initial && ticket_now > self.covers {
                check.ask(ticket_now, &self.connection);
            }
            // A list does not pause.
            let limit = if initial {
                self.timing.answer
            } else {
                self.timing.idle
            };
            let turn = tokio::select! {
                read = timeout_at(heard + limit, lines.more()) => read.map_or(Turn::Silent, Turn::Read),
                asked = self.tickets.changed() => match asked {
                    Ok(()) => Turn::Asked,
                    Err(_) => return Err(Failure::Closed),
                },
                step = check.step() => Turn::Checked(step),
                () = sleep_until(opened + SHORT), if !initial && self.failures > 0 => Turn::Lives,
            };
            match turn {
                Turn::Asked => {}
                Turn::Lives => {
                    self.works();
                    self.tell().await?;
                }
                Turn::Read(more) => {
                    heard = Instant::now();
                    let mut more = more?;
                    // What has come together is told together.
                    loop {
                        while let Some(event) = lines.event()? {
                            self.take(event, &mut initial, ticket).await?;
                        }
                        if !more || self.changes.len() >= BATCH {
                            break;
                        }
                        match lines.more().now_or_never() {
                            Some(read) => more = read?,
                            None => break,
                        }
                    }
                    self.meet(&mut check);
                    self.tell().await?;
                    if !more {
                        break;
                    }
                }
                Turn::Silent if initial => {
                    self.streaming = false;
                    return Err(Failure::Broken("a streamed list did not end".into()));
                }
                Turn::Silent => {
                    return Err(Failure::Broken(format!("nothing came for {limit:?}")));
                }
                Turn::Checked(Step::Seen(Ok(seen))) => {
                    check.compare(&seen, &self.held, self.timing.withhold);
                    self.meet(&mut check);
                    self.tell().await?;
                }
                Turn::Checked(Step::Again) => {}
                Turn::Checked(Step::Seen(Err(failure))) => {
                    self.unanswered(failure, &mut check).await?;
                }
                Turn::Checked(Step::Withheld) => {
                    tracing::warn!(
                        kind = %self.connection.kind(),
                        "the watch does not bring what the server has; everything is listed again"
                    );
                    return Err(Failure::expired(
                        "the watch does not bring what the server has",
                    ));
                }
            }
        }
        if initial {
            return Err(Failure::Broken("a streamed list ended early".into()));
        }
        Err(Failure::Ended)
    }

    /// Takes in an event.
    async fn take(&mut self, event: Event, initial: &mut bool, ticket: u64) -> Result<(), Failure> {
        let Event { what, object } = event;
        if what == What::Error {
            let mut status: Status = serde_json::from_value(object).unwrap_or_default();
            // However little it says, somebody has answered.
            if status.code == 0 {
                status.code = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
            }
            self.fruitless = true;
            return Err(Failure::of(&status, self.connection.kind()));
        }
        let kind = self.connection.kind();
        if !wire::may_be(&object, kind) {
            let told = &object["kind"];
            return Err(Failure::Garbled(format!(
                "the server sent a {told} in a watch of {}",
                kind.resource()
            )));
        }
        let version = wire::resource_version(&object);
        if !*initial && !version.is_empty() {
            let (before, now) = (wire::version(&self.position), wire::version(version));
            // The server was restored from a backup: what it sends from here on is not what is missing.
            if what == What::Bookmark && now < before {
                return Err(Failure::expired(format!(
                    "the watch is at version {now}, before the list that it goes on from ({before})"
                )));
            }
            // Something new has come. Bookmarks alone are worth no watch.
            if what != What::Bookmark && now > before {
                self.works();
            }
            self.position.clear();
            self.position.push_str(version);
        }
        match what {
            What::Added | What::Modified if *initial => {
                self.held.listed(object, &mut self.changes);
                // The first list is long; what is known of it need not wait for its end.
                if self.changes.len() >= BATCH {
                    self.tell().await?;
                }
            }
            What::Added | What::Modified => self.held.changed(object, &mut self.changes),
            What::Deleted => self.held.deleted(&object, &mut self.changes),
            What::Bookmark if !*initial => {}
            What::Bookmark if wire::ends_initial_events(&object) => {
                if !wire::is_position(version) {
                    return Err(wire::NoList::NoVersion.into());
                }
                self.position = version.to_owned();
                *initial = false;
                self.listed(ticket).await?;
            }
            // A server that does not know streamed lists, and only watches.
            What::Bookmark => {
                self.streaming = false;
                return Err(Failure::expired("the server streams no lists"));
            }
            What::Error => {}
        }
        Ok(())
    }

    /// Takes note of what those who wait have been waiting for.
    fn meet(&mut self, check: &mut Check) {
        if let Some(ticket) = check.met(&self.held) {
            self.cover(ticket);
        }
    }

    /// All has come that was there when this ticket was given out.
    fn cover(&mut self, ticket: u64) {
        self.covers = self.covers.max(ticket);
        self.unanswered = None;
        self.news = true;
    }

    /// The server would not say what there is. That concerns those who wait: the watch may be as good as ever.
    async fn unanswered(&mut self, failure: Failure, check: &mut Check) -> Result<(), Failure> {
        let busy = failure.is_load();
        let (code, reason, asked) = match failure {
            Failure::Refused(refusal) => (refusal.code, refusal.reason, refusal.retry_after),
            Failure::Expired(expired) => {
                (Some(StatusCode::GONE), expired.reason, expired.retry_after)
            }
            Failure::Broken(reason) | Failure::Garbled(reason) => {
                (Some(StatusCode::OK), reason, None)
            }
            other @ (Failure::Closed | Failure::Ended) => return Err(other),
        };
        if self.unanswered.as_deref() != Some(&*reason) {
            self.unanswered = Some(reason.as_str().into());
            self.news = true;
        }
        match code {
            // There may be nobody any more, and the watch would never tell: another one will.
            None => return Err(Failure::Broken(reason)),
            Some(StatusCode::UNAUTHORIZED) => drop(self.connection.renew().await),
            Some(_) => {}
        }
        check.pause(&self.timing, busy, asked);
        self.tell().await
    }

    /// Tells what is new, if something is.
    async fn tell(&mut self) -> Result<(), Failure> {
        let problems = self.held.problems();
        if !self.news && self.changes.is_empty() && problems.is_none() {
            return Ok(());
        }
        self.news = false;
        let report = Report {
            kind: self.connection.kind(),
            changes: std::mem::take(&mut self.changes),
            version: wire::version(&self.position),
            complete: self.complete,
            covers: self.covers,
            unanswered: self.unanswered.clone(),
            away: self.away.clone(),
            problems,
        };
        let sent = self.reports.send(report).await;
        sent.map_err(|_| Failure::Closed)
    }

    /// The server has answered: nothing stands between. Whether it gives anything is another question.
    async fn reached(&mut self) -> Result<(), Failure> {
        self.renewed = false;
        if !self.fruitless {
            self.works();
        }
        self.tell().await
    }

    /// The watch is worth something: whatever failed before is over.
    fn works(&mut self) {
        self.failures = 0;
        self.expirations = 0;
        self.fruitless = false;
        self.news |= self.away.take().is_some();
    }

    /// Makes ready for the next attempt. Fails only when nobody listens any more.
    async fn recover(&mut self, failure: Failure) -> Result<(), Failure> {
        let kind = self.connection.kind();
        tracing::debug!(%kind, ?failure, failures = self.failures, "a list or a watch has ended");
        let first = self.failures == 0;
        self.failures += 1;
        let mut asked = None;
        let busy = failure.is_load();
        match &failure {
            // Nobody has answered: what was before has nothing to do with what will be.
            Failure::Refused(refusal) if refusal.code.is_none() => self.fruitless = false,
            Failure::Refused(_) => {}
            _ => self.fruitless = true,
        }
        let reason = match failure {
            Failure::Closed => return Err(Failure::Closed),
            Failure::Expired(expired) => {
                self.position.clear();
                self.expirations += 1;
                // That happens: a watch had ended for too long.
                if self.expirations == 1 {
                    return self.tell().await;
                }
                asked = expired.retry_after;
                expired.reason
            }
            // Watches end and connections break; only if a new one does not work either there is something to tell.
            Failure::Ended | Failure::Broken(_) | Failure::Garbled(_) if first => {
                return self.tell().await;
            }
            Failure::Ended => "the server ends every watch as soon as it is opened".to_owned(),
            Failure::Broken(reason) => reason,
            // It would come again: go round it.
            Failure::Garbled(reason) => {
                self.position.clear();
                reason
            }
            // Tokens are exchanged while they are used: the file is read again.
            Failure::Refused(Refusal {
                code: Some(StatusCode::UNAUTHORIZED),
                ..
            }) if !self.renewed && self.connection.renew().await.is_ok() => {
                self.renewed = true;
                return self.tell().await;
            }
            Failure::Refused(refusal) => {
                asked = refusal.retry_after;
                let mut reason = refusal.reason;
                if matches!(refusal.code, None | Some(StatusCode::UNAUTHORIZED))
                    && let Err(e) = self.connection.renew().await
                {
                    reason = format!("{reason}; {e}");
                }
                reason
            }
        };
        self.lost(reason);
        self.tell().await?;
        sleep(self.timing.pause(self.failures - 1, busy, asked)).await;
        Ok(())
    }

    /// The server cannot be reached, or is of no use.
    fn lost(&mut self, reason: String) {
        if self.away.as_ref().is_some_and(|away| away.reason == reason) {
            return;
        }
        let since = self.away.as_ref().map(|away| away.since);
        self.away = Some(Arc::new(Away {
            since: since.unwrap_or_else(SystemTime::now),
            reason,
        }));
        self.news = true;
    }
}

/// A watch that lives so long works, even if nothing happens.
const SHORT: Duration = Duration::from_secs(1);

/// Whether the server does not know lists that are streamed (sendInitialEvents).
fn is_unsupported(refusal: &Refusal) -> bool {
    matches!(
        refusal.code,
        Some(StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
    )
}
