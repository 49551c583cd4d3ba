//! Which tracker a migration uses: the one asked for, or the one that costs this guest least here.

use std::sync::Arc;
use std::time::Duration;

use vmferry_engine::report::TrackerChoice;
use vmferry_machine::{Machine, MachineConfig, MachineKind};
use vmferry_protocol::errors::chain;
use vmferry_tracker::auto::{self, Choice, MachineSort, Measured};
use vmferry_tracker::{TrackerError, TrackerKind};

use crate::api::MigrateOptions;

fn sort_of(config: &MachineConfig) -> MachineSort {
    match config.kind {
        MachineKind::Process => MachineSort::Process,
        MachineKind::Kvm if config.dirty_rings => MachineSort::KvmWithRings,
        MachineKind::Kvm => MachineSort::Kvm,
    }
}

/// A tracker for a migration.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) kind: TrackerKind,
    /// Why, unless it is the one that was asked for.
    pub(crate) why: Option<TrackerChoice>,
    /// What a notification costs a guest here, where the tracker cannot tell and that was measured.
    pub(crate) notification_cost: Option<Duration>,
}

/// The tracker for moving `machine` as `asked`. One that this host does not have or does not permit
/// is no reason not to move.
pub(crate) async fn choose(
    machine: &Arc<dyn Machine>,
    asked: &MigrateOptions,
) -> Result<Chosen, String> {
    let (sort, of) = (sort_of(machine.config()), machine.clone());
    let mut lacking = None;
    if asked.tracker != "auto" {
        let kind = asked.tracker.parse::<TrackerKind>();
        let kind = kind.map_err(|e| chain(&e))?;
        match missing(&*of, kind) {
            Some(why) => lacking = Some(format!("{kind} was asked for: {why}")),
            None => {
                let measured = match kind {
                    TrackerKind::WpGroup => Vec::new(),
                    _ => on_its_own_thread(move || auto::pick(sort)).await?.measured,
                };
                return Ok(Chosen {
                    kind,
                    why: None,
                    notification_cost: notification_cost(kind, &measured),
                });
            }
        }
    }
    // Who wants groups, or writers slowed down, wants what only some can do.
    let open = asked.group == "auto" && asked.throttle_pct == 0;
    let watcher = sort.watcher().filter(|_| open);
    let pick = move || match watcher.map(|kind| of.tracker(kind)) {
        Some(Ok(watcher)) => auto::pick_for(sort, &*watcher),
        _ => auto::pick(sort),
    };
    let choice = on_its_own_thread(pick).await?;
    let choice = match lacking {
        None => choice,
        Some(lacking) => {
            tracing::warn!(instead = %choice.kind, "{lacking}");
            Choice {
                why: format!("{lacking}; instead {}: {}", choice.kind, choice.why),
                ..choice
            }
        }
    };
    tracing::info!(kind = %choice.kind, why = choice.why, "tracker chosen");
    Ok(Chosen {
        kind: choice.kind,
        why: Some(TrackerChoice::from(&choice)),
        notification_cost: notification_cost(choice.kind, &choice.measured),
    })
}

/// Measuring takes its time, the first time, and looking at the guest each time.
async fn on_its_own_thread(
    pick: impl FnOnce() -> Choice + Send + 'static,
) -> Result<Choice, String> {
    tokio::task::spawn_blocking(pick)
        .await
        .map_err(|e| format!("choosing a tracker failed: {e}"))
}

/// For trackers of single pages, whose notifications are answered by the kernel: what was measured,
/// of the two figures the smaller. Those of `wp-group` are timed as they come.
fn notification_cost(kind: TrackerKind, measured: &[Measured]) -> Option<Duration> {
    if kind == TrackerKind::WpGroup {
        return None;
    }
    let cost = measured
        .iter()
        .find(|m| m.kind == kind)?
        .cost
        .as_ref()
        .ok()?;
    let ns = cost.dense_ns.min(cost.sparse_ns).max(0.0);
    Some(Duration::from_nanos(ns as u64))
}

/// What this host lacks for a tracker of that kind. A kind that a machine cannot have anywhere is
/// another matter: who asks for it is told when it is to start.
fn missing(machine: &dyn Machine, kind: TrackerKind) -> Option<String> {
    match (kind, machine.tracker(kind)) {
        (TrackerKind::WpGroup | TrackerKind::WpAsync, Err(error @ TrackerError::Kernel { .. })) => {
            Some(chain(&error))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use vmferry_tracker::auto::Cost;

    use super::*;

    #[test]
    fn only_what_was_measured_of_a_tracker_of_pages_is_reckoned_with() {
        let of = |kind, cost| Measured { kind, cost };
        let cost = |dense_ns, sparse_ns| Cost {
            dense_ns,
            sparse_ns,
        };
        let measured = [
            of(TrackerKind::WpGroup, Ok(cost(300.0, 90_000.0))),
            of(TrackerKind::KvmLog, Ok(cost(24_000.0, 25_000.0))),
            of(TrackerKind::WpAsync, Err("not here".to_owned())),
        ];
        let each = |kind| notification_cost(kind, &measured);
        assert_eq!(each(TrackerKind::KvmLog), Some(Duration::from_micros(24)));
        for kind in [
            TrackerKind::WpGroup,
            TrackerKind::WpAsync,
            TrackerKind::KvmRing,
        ] {
            assert_eq!(each(kind), None, "{kind}");
        }
    }
}
