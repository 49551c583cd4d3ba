//! `Tracker`: asks the dirty tracker which pages may have changed.

use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::Duration;

use actix::{Actor, Handler, Message, Recipient, SyncContext};
use vmferry_protocol::errors::chain;
use vmferry_protocol::source::SourceEvent;
use vmferry_protocol::{PageSet, RamLayout};
use vmferry_tracker::{DirtyTracker, HarvestStats, PassFacts, TrackerError};

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
    /// What a notification costs the guest, where the tracker cannot tell.
    pub(crate) notification_cost: Option<Duration>,
    pub(crate) owner: Recipient<Told>,
}

/// What the guest has lost by notifications since the last harvest: as the tracker tells, or
/// reckoned by what one costs.
fn stall(stats: &HarvestStats, notification_cost: Option<Duration>) -> Duration {
    let count = u32::try_from(stats.notifications).unwrap_or(u32::MAX);
    let told = Some(stats.stall).filter(|stall| !stall.is_zero());
    let reckoned = || Some(notification_cost?.saturating_mul(count));
    told.or_else(reckoned).unwrap_or_default()
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
                stall: stall(&stats, self.notification_cost),
                group_pages: self.tracker.group_pages(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tracker_tells_counts_and_what_it_cannot_is_reckoned() {
        let us = Duration::from_micros;
        let stats = |stall| HarvestStats {
            notifications: 100,
            stall,
            ..HarvestStats::default()
        };
        assert_eq!(stall(&stats(us(7)), Some(us(24))), us(7));
        assert_eq!(stall(&stats(us(0)), Some(us(24))), us(2400));
        assert_eq!(stall(&stats(us(0)), None), us(0));
        let many = HarvestStats {
            notifications: u64::MAX,
            ..stats(us(0))
        };
        assert!(stall(&many, Some(Duration::MAX)) >= us(24));
    }
}
