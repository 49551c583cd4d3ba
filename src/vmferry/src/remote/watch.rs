//! Waits for the end of something that a host service does, and shows how it gets on.
//!
//! Events bring news soon; reading now and then finds what events have missed, and whether the
//! service is still there. What was begun does not need the service, so its death is waited out.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval};
use vmferry_service::model::ServiceEvent;

use super::CommandError;
use super::api::{Happening, Happenings, Remote, RemoteError, Result};
use super::display::Display;
use super::session::Session;

/// How often it is read.
const READ_EVERY: Duration = Duration::from_secs(2);
/// How long a service that does not answer is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Something that takes its time, and ends.
pub(super) trait Watched {
    /// What the API says of it.
    type Document: Clone + PartialEq + Send + 'static;
    /// What it is called.
    const WHAT: &'static str;

    /// What an event says of it.
    fn pick(&mut self, event: ServiceEvent) -> Option<Self::Document>;
    /// How it is.
    fn read(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, Result<Self::Document>>;
    /// Asks that it be cancelled.
    fn cancel(&self, remote: Arc<dyn Remote>) -> BoxFuture<'static, Result<Self::Document>>;
    /// Whether nothing more will happen.
    fn is_over(document: &Self::Document) -> bool;
    /// Shows it.
    fn show(&mut self, document: &Self::Document, display: &mut dyn Display);
    /// The event that says the same.
    fn event(document: Self::Document) -> ServiceEvent;
}

/// Why it is not waited for any longer.
#[derive(Debug, PartialEq)]
pub(super) enum End<D> {
    /// It is over.
    Over(D),
    /// The user has left.
    Left,
    /// The service does not answer any more.
    Lost(RemoteError),
}

/// What a call answers, while it is waited for.
type Answer<T> = Option<BoxFuture<'static, Result<T>>>;

/// Answers none where there is nothing to wait for: its branch of a `select` rests then.
fn pending<F: Future + Unpin>(answer: &mut Option<F>) -> OptionFuture<&mut F> {
    answer.as_mut().into()
}

/// Waits until it is over, or not to be waited for any longer. With `--json`, events go to stdout.
///
/// # Errors
/// The service says that there is no such thing; stdout cannot be written.
pub(super) async fn watch<W: Watched>(
    session: &mut Session,
    watched: &mut W,
    events: Option<Happenings>,
) -> std::result::Result<End<W::Document>, CommandError> {
    let mut interrupts = session.interrupts.listen()?;
    let end = Watch {
        events,
        reading: None,
        cancelling: None,
        subscribing: None,
        is_cancelled: false,
        silent_since: None,
        last: None,
    }
    .run(session, watched, &mut interrupts)
    .await;
    session.display.end();
    match end {
        // Nobody reads any more; what was begun goes on, and how it ends is not to be told.
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(End::Left),
        end => end,
    }
}

struct Watch<D> {
    events: Option<Happenings>,
    reading: Answer<D>,
    cancelling: Answer<D>,
    subscribing: Answer<Happenings>,
    is_cancelled: bool,
    silent_since: Option<Instant>,
    last: Option<D>,
}

/// What comes next.
enum Next<D> {
    Interrupt,
    Cancelled(Result<D>),
    Read(Result<D>),
    Subscribed(Result<Happenings>),
    Happened(Option<Result<Happening>>),
    Tick,
}

impl<D: Clone + PartialEq + Send + 'static> Watch<D> {
    async fn run<W: Watched<Document = D>>(
        mut self,
        session: &mut Session,
        watched: &mut W,
        interrupts: &mut UnboundedReceiver<()>,
    ) -> std::result::Result<End<D>, CommandError> {
        let mut ticks = interval(READ_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                biased;
                Some(()) = interrupts.recv() => Next::Interrupt,
                Some(answer) = pending(&mut self.cancelling) => Next::Cancelled(answer),
                Some(answer) = pending(&mut self.reading) => Next::Read(answer),
                Some(answer) = pending(&mut self.subscribing) => Next::Subscribed(answer),
                Some(item) = OptionFuture::from(self.events.as_mut().map(StreamExt::next)) => {
                    Next::Happened(item)
                }
                _ = ticks.tick() => Next::Tick,
            };
            let news = match next {
                Next::Interrupt if self.is_cancelled => return Ok(End::Left),
                Next::Interrupt => {
                    self.is_cancelled = true;
                    session.display.step(&format!(
                        "asking to cancel the {}; Ctrl-C again leaves it alone",
                        W::WHAT
                    ));
                    self.cancelling = Some(watched.cancel(session.remote.clone()));
                    None
                }
                Next::Cancelled(answer) => {
                    self.cancelling = None;
                    answer
                        .map_err(|error| {
                            let text = format!("cannot be cancelled: {error}; waiting for its end");
                            session.display.step(&text);
                        })
                        .ok()
                }
                Next::Read(answer) => {
                    self.reading = None;
                    match self.heard(answer, session) {
                        Ok(news) => news,
                        Err(error) if error.may_pass() => return Ok(End::Lost(error)),
                        Err(error) => return Err(error.into()),
                    }
                }
                Next::Subscribed(answer) => {
                    self.subscribing = None;
                    self.events = answer.ok();
                    None
                }
                Next::Happened(Some(Ok(Happening::Event(event)))) => watched.pick(*event),
                Next::Happened(Some(Ok(Happening::Missed))) => {
                    self.reading = Some(watched.read(session.remote.clone()));
                    None
                }
                Next::Happened(Some(Err(_)) | None) => {
                    self.events = None;
                    None
                }
                Next::Tick => {
                    self.look(session, watched);
                    None
                }
            };
            let Some(document) = news.filter(|news| self.last.as_ref() != Some(news)) else {
                continue;
            };
            if session.out.json {
                session.out.line(&W::event(document.clone()))?;
            }
            watched.show(&document, &mut *session.display);
            if W::is_over(&document) {
                return Ok(End::Over(document));
            }
            self.last = Some(document);
        }
    }

    /// Begins to read, and to listen where nobody does.
    fn look<W: Watched<Document = D>>(&mut self, session: &Session, watched: &W) {
        if self.reading.is_none() {
            self.reading = Some(watched.read(session.remote.clone()));
        }
        if self.events.is_none() && self.silent_since.is_none() && self.subscribing.is_none() {
            let remote = session.remote.clone();
            self.subscribing = Some(async move { remote.events().await }.boxed());
        }
    }

    /// What was read; an error where it is not to be tried again.
    fn heard(&mut self, answer: Result<D>, session: &mut Session) -> Result<Option<D>> {
        match answer {
            Ok(document) => {
                if self.silent_since.take().is_some() {
                    session.display.step("the host service answers again");
                }
                Ok(Some(document))
            }
            Err(error) if error.may_pass() => {
                let now = Instant::now();
                let since = *self.silent_since.get_or_insert_with(|| {
                    session.display.step(&format!(
                        "{error}; what was begun goes on without it; waiting"
                    ));
                    now
                });
                if now - since < PATIENCE {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }
}
