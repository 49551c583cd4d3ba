//! Drains: all machines leave, so many at once.

use std::sync::Arc;

use super::drain::{Ended, Fare, Plan};
use super::{Inner, Result, lock, spec, store};
use crate::control::ControlError;
use crate::model::{
    Direction, Drain, DrainItem, DrainRequest, Migration, MigrationRequest, MigrationState,
    ServiceEvent, VmState,
};

const FILE: &str = "drain.json";

/// A drain, and what is to be done for it.
#[derive(Debug)]
pub(super) struct Draining {
    drain: Drain,
    plan: Plan,
}

fn item(vm: String, to: String) -> DrainItem {
    DrainItem {
        vm,
        to,
        migration: None,
        state: MigrationState::Queued,
        reason: None,
        blackout_ms: None,
        total_ms: None,
    }
}

impl Inner {
    pub(super) fn drain(self: &Arc<Self>, request: DrainRequest) -> Result<Drain> {
        if request.to.is_empty() {
            return Err(ControlError::Invalid(
                "say where to: name one host or several".to_owned(),
            ));
        }
        for to in &request.to {
            self.url_of(to)?;
        }
        let options = request.options.clone().or(&self.config.defaults);
        spec::check_options(&options).map_err(ControlError::Invalid)?;
        let mut slot = lock(&self.drain);
        if slot.as_ref().is_some_and(|d| !d.drain.over) {
            return Err(ControlError::Conflict(
                "a drain is under way: wait for its end, or cancel it".to_owned(),
            ));
        }
        let mut items = Vec::new();
        let mut moving = Vec::new();
        for entry in self.entries() {
            let (state, migration) = entry.with(|d| (d.state, d.migration.clone()));
            let mut item = item(entry.name.clone(), String::new());
            match state {
                // What does not run here needs not leave.
                VmState::Stopped | VmState::Crashed | VmState::Arriving => continue,
                _ => {}
            }
            // It waits or moves already: it is only waited for.
            if let Some(id) = migration {
                item.migration = Some(id);
                moving.push(items.len());
            }
            items.push(item);
        }
        let parallel = self.parallel(&request);
        let mut plan = Plan::new(items.len(), request.to.len(), parallel);
        moving.into_iter().for_each(|at| plan.moves_to(at, None));
        let drain = Drain {
            request,
            cancelled: false,
            over: false,
            items,
        };
        self.note_drain(&drain);
        *slot = Some(Draining { drain, plan });
        drop(slot);
        self.spawn(drive(self.clone()));
        self.drain_state()
    }

    pub(super) fn drain_state(&self) -> Result<Drain> {
        let drain = lock(&self.drain).as_ref().map(|d| d.drain.clone());
        match drain {
            Some(mut drain) => {
                self.fill_in(&mut drain);
                Ok(drain)
            }
            None => Err(ControlError::NotFound(
                "nobody has drained this host yet".to_owned(),
            )),
        }
    }

    pub(super) async fn cancel_drain(&self) -> Result<Drain> {
        let cancelled = {
            let mut slot = lock(&self.drain);
            let Some(draining) = slot.as_mut().filter(|d| !d.drain.over) else {
                return Err(ControlError::Conflict("no drain is under way".to_owned()));
            };
            draining.drain.cancelled = true;
            let moving = draining.plan.cancel();
            for (at, item) in draining.drain.items.iter_mut().enumerate() {
                if draining.plan.fare(at) == Fare::Over && item.migration.is_none() {
                    item.state = MigrationState::Cancelled;
                    item.reason = Some("the drain was cancelled before its turn".to_owned());
                }
            }
            self.note_drain(&draining.drain);
            let items = &draining.drain.items;
            let ids = moving
                .into_iter()
                .filter_map(|at| items[at].migration.clone());
            ids.collect::<Vec<String>>()
        };
        for id in cancelled {
            // Too late for some.
            let _ = self.cancel(&id).await;
        }
        self.drain_on.notify_one();
        self.drain_state()
    }

    /// Brings the table up to what is known of its migrations.
    fn fill_in(&self, drain: &mut Drain) {
        for item in &mut drain.items {
            let Some(id) = &item.migration else {
                continue;
            };
            if let Ok(m) = self.migration(id) {
                item.to = m.peer;
                item.state = m.state;
                item.reason = m.reason;
                item.blackout_ms = m.blackout_ms;
                item.total_ms = m.total_ms;
            }
        }
    }

    /// What became of a move; none while it is under way.
    fn how_it_ended(&self, id: &str) -> Option<Ended> {
        let registry = lock(&self.migrations);
        let Some(known) = registry.known.get(id) else {
            return Some(Ended::Stayed);
        };
        match known.kept.migration.state {
            MigrationState::Completed => Some(Ended::Arrived),
            MigrationState::Failed if !known.kept.begun => Some(Ended::Refused),
            state if state.is_over() => Some(Ended::Stayed),
            _ => None,
        }
    }

    /// Does what there is to do now; whether the drain is over.
    fn drive_on(self: &Arc<Self>) -> bool {
        let mut slot = lock(&self.drain);
        let Some(draining) = &mut *slot else {
            return true;
        };
        let before = draining.drain.clone();
        let Draining { drain, plan } = draining;
        for (at, item) in drain.items.iter().enumerate() {
            if let (Fare::Moves, Some(id)) = (plan.fare(at), &item.migration)
                && let Some(how) = self.how_it_ended(id)
            {
                plan.ended(at, how);
            }
        }
        while let Some((at, target)) = plan.begin() {
            let item = &mut drain.items[at];
            item.to.clone_from(&drain.request.to[target]);
            let request = MigrationRequest {
                to: item.to.clone(),
                options: drain.request.options.clone(),
                traceparent: None,
            };
            let begun = self
                .entry(&item.vm)
                .and_then(|entry| self.migrate(&entry, request));
            match begun {
                Ok(id) => item.migration = Some(id),
                Err(error) => {
                    item.state = MigrationState::Failed;
                    item.reason = Some(error.to_string());
                    item.migration = None;
                    plan.ended(at, Ended::Stayed);
                }
            }
        }
        let over = plan.is_over();
        self.fill_in(drain);
        drain.over = over;
        if *drain != before {
            self.note_drain(drain);
        }
        over
    }

    fn note_drain(&self, drain: &Drain) {
        self.store.write_later(self.store.path(FILE), drain);
        self.tell(ServiceEvent::Drain(drain.clone()));
    }

    /// The migration of a drain's item that was begun, but not noted in the drain any more.
    fn begun_for(&self, vm: &str, request: &DrainRequest) -> Option<String> {
        let is_here = self.entry(vm).is_ok();
        let mut all = lock(&self.migrations).list().into_iter();
        let of_drain = |m: &Migration| {
            let is_open = !m.state.is_over();
            m.vm == vm
                && m.direction == Direction::Outgoing
                && request.to.contains(&m.peer)
                && (is_open || (m.state == MigrationState::Completed && !is_here))
        };
        all.find(of_drain).map(|m| m.id)
    }

    /// Takes up a drain that an earlier service had under way.
    pub(super) async fn load_drain(self: &Arc<Self>) {
        let path = self.store.path(FILE);
        let read = tokio::task::spawn_blocking(move || store::read::<Drain>(&path)).await;
        let mut drain = match read {
            Ok(Ok(Some(drain))) => drain,
            Ok(Err(why)) => return tracing::error!(why, "a drain is not known any more"),
            _ => return,
        };
        let mut plan = Plan::new(
            drain.items.len(),
            drain.request.to.len(),
            self.parallel(&drain.request),
        );
        for (at, item) in drain.items.iter_mut().enumerate() {
            if item.migration.is_none() && !item.state.is_over() {
                item.migration = self.begun_for(&item.vm, &drain.request);
            }
            match &item.migration {
                // How it goes on, and whether, is found in the migration.
                Some(id) => {
                    let peer = self.migration(id).map(|m| m.peer).unwrap_or_default();
                    plan.moves_to(at, drain.request.to.iter().position(|to| *to == peer));
                }
                None if item.state.is_over() => plan.over(at),
                None => {}
            }
        }
        if drain.cancelled {
            plan.cancel();
        }
        let over = drain.over;
        *lock(&self.drain) = Some(Draining { drain, plan });
        if !over {
            self.spawn(drive(self.clone()));
        }
    }

    /// How many machines a drain moves at once.
    fn parallel(&self, request: &DrainRequest) -> usize {
        request.parallel.unwrap_or(self.limits().outgoing).max(1) as usize
    }
}

/// Drives a drain to its end.
async fn drive(inner: Arc<Inner>) {
    while !inner.drive_on() {
        inner.drain_on.notified().await;
    }
}
