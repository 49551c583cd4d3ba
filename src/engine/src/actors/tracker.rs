//! `Tracker`: asks the dirty tracker which pages may have changed.

use std::sync::{Arc, RwLock, RwLockReadGuard};

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_protocol::errors::chain;
use vmferry_protocol::source::SourceEvent;
use vmferry_protocol::{PageSet, RamLayout};
use vmferry_tracker::{DirtyTracker, PassFacts, TrackerError};

use crate::source::Told;

/// Whether pages may still be protected. Whoever protects holds the guard; ending waits for them.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<RwLock<bool>>);

impl Live {
    pub(crate) fn new() -> Self {
        Self(Arc::new(RwLock::new(true)))
    }

    /// None where it has ended.
    pub(crate) fn guard(&self) -> Option<RwLockReadGuard<'_, bool>> {
        self.0.read().ok().filter(|live| **live)
    }

    fn end(&self) {
        if let Ok(mut live) = self.0.write() {
            *live = false;
        }
    }
}

/// The tracker's thread.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) tracker: Arc<dyn DirtyTracker>,
    pub(crate) layout: RamLayout,
    pub(crate) live: Live,
    pub(crate) owner: Recipient<Told>,
}

impl Actor for Tracker {
    type Context = SyncContext<Self>;
}

/// Which pages may have changed? Starts tracking, for pass 1.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Harvest {
    /// The pass that begins, and how the last one went; its pages are found by the harvest.
    pub(crate) facts: PassFacts,
    /// The guest stands still: nothing will be protected any more.
    pub(crate) last: bool,
}

/// End tracking.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopTracking;

impl Handler<Harvest> for Tracker {
    type Result = ();

    fn handle(&mut self, Harvest { mut facts, last }: Harvest, _: &mut SyncContext<Self>) {
        if self.live.guard().is_none() {
            return;
        }
        let mut dirty = PageSet::new(&self.layout);
        let mut harvest = || {
            if facts.pass == 1 {
                self.tracker.start()?;
            }
            let stats = self.tracker.harvest(&mut |run| dirty.insert(run))?;
            facts.pages = stats.pages;
            if !last {
                self.tracker.next_pass(&facts);
            }
            Ok::<_, TrackerError>(stats)
        };
        self.owner.do_send(Told(match harvest() {
            Ok(stats) => SourceEvent::Harvested {
                dirty,
                notifications: stats.notifications,
                stall: stats.stall,
            },
            Err(error) => SourceEvent::Failed {
                detail: chain(&error),
            },
        }));
    }
}

impl Handler<StopTracking> for Tracker {
    type Result = ();

    fn handle(&mut self, _: StopTracking, _: &mut SyncContext<Self>) {
        self.live.end();
        self.tracker.stop();
    }
}
