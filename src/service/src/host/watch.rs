//! What a VM process says, until it is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vmferry_protocol::source as protocol;
use vmferry_vmm::api::{Event, ProgressLine};
use vmferry_vmm::client::VmmClient;

use super::entry::{Entry, Phase};
use super::{Inner, process};
use crate::model::{MigrationProgress, MigrationState, PassProgress, VmState};

/// What whoever waits for a verdict hears where there will be none.
pub(super) const NO_VERDICT: &str = "";
/// How often the end of a migration is looked for on disk, in case that it was missed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a process may take to be quite gone once its connection has ended.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Listens to a VM's process until it is gone. Boxed: one may follow another.
pub(super) fn listen(
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    client: Arc<VmmClient>,
    events: mpsc::UnboundedReceiver<Event>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(listening(inner, entry, client, events))
}

async fn listening(
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    client: Arc<VmmClient>,
    mut events: mpsc::UnboundedReceiver<Event>,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => heard(&inner, &entry, event).await,
                None => break,
            },
            _ = look.tick() => inner.look_for_end(&entry).await,
        }
    }
    let _ = entry.verdicts.send(NO_VERDICT.to_owned());
    let ours = entry.with(|d| {
        let same = |c: &Arc<VmmClient>| Arc::ptr_eq(c, &client);
        let ours = d.client.as_ref().is_some_and(same) && !d.ending;
        if ours {
            d.client = None;
        }
        ours
    });
    if !ours {
        return;
    }
    let Ok(_turn) = inner.turn_of(&entry).await else {
        return;
    };
    let mut exit = entry.with(|d| d.exit.clone());
    let why = tokio::select! {
        how = exit.wait_for(Option::is_some) => match how {
            Ok(how) => how.clone(),
            Err(_) => None,
        },
        () = sleep(GONE_WITHIN) => None,
    };
    // A guest may run in it still: it is not ended for a connection that broke.
    match process::find(&entry.dir).await {
        Ok(Some(running)) => return inner.adopt_running(&entry, running).await,
        Ok(None) => {}
        Err(error) => return inner.is_silent(&entry, &error),
    }
    let why = why.unwrap_or_else(|| "its process is gone".to_owned());
    inner.died(&entry, why).await;
}

impl Inner {
    /// A VM's process is there and does not answer: it is tried again, until it does or is gone.
    pub(super) fn is_silent(self: &Arc<Self>, entry: &Arc<Entry>, why: &str) {
        tracing::error!(vm = entry.name, why, "a process that does not answer");
        entry.with(|d| {
            d.client = None;
            d.state = VmState::Crashed;
            d.detail = Some(format!("its process is there, but {why}"));
        });
        self.changed(entry);
        self.spawn(seek(self.clone(), entry.clone()));
    }
}

/// Boxed: it begins to listen, which may end in another search.
fn seek(inner: Arc<Inner>, entry: Arc<Entry>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        loop {
            sleep(LOOK_EVERY).await;
            let Ok(_turn) = inner.turn_of(&entry).await else {
                return;
            };
            if entry.client().is_ok() {
                return;
            }
            match process::find(&entry.dir).await {
                Ok(Some(running)) => return inner.adopt_running(&entry, running).await,
                Ok(None) if entry.state() != VmState::Crashed => return,
                Ok(None) => return inner.died(&entry, "its process is gone".to_owned()).await,
                Err(_) => {}
            }
        }
    })
}

async fn heard(inner: &Arc<Inner>, entry: &Arc<Entry>, event: Event) {
    match event {
        Event::WorkloadReady => {}
        Event::Verified { verdict } => {
            let _ = entry.verdicts.send(verdict);
        }
        Event::Progress(line) => progress(inner, entry, &line),
        Event::Arrived { .. } => inner.arrived(entry).await,
        end @ (Event::Migrated(_) | Event::Received { .. }) => inner.ended(entry, end).await,
        Event::GuestEnded { crashed, detail } => {
            entry.with(|d| {
                d.state = match crashed {
                    true => VmState::Crashed,
                    false => VmState::Stopped,
                };
                d.detail = Some(detail.clone());
                d.record.phase = Phase::Stopped {
                    crashed,
                    why: Some(detail),
                };
            });
            let _ = entry.verdicts.send(NO_VERDICT.to_owned());
            inner.store.write_later(entry.file(), &entry.record());
            inner.changed(entry);
        }
    }
}

/// A line of a VM process, as the API shows it.
pub(super) fn shown(line: &ProgressLine) -> MigrationProgress {
    MigrationProgress {
        phase: line.phase.clone(),
        pass: line.pass,
        pages_left: line.pages_left,
        pages_total: line.pages_total,
        bytes_per_second: line.bytes_per_second,
        bytes_wire: line.bytes_wire,
        predicted_blackout_ms: line.predicted_blackout_ms,
        jobs_unsettled: line.jobs_unsettled,
        stall_ms: line.stall_ms,
        run_delay_ms: line.run_delay_ms,
        passes: line.passes.iter().map(pass).collect(),
        bytes_by_codec: line.bytes_by_codec.clone(),
    }
}

fn pass(pass: &protocol::PassProgress) -> PassProgress {
    PassProgress {
        pass: pass.pass,
        pages_dirtied: pass.considered,
        pages_sent: pass.sent,
    }
}

/// Takes over how a migration from here is getting on.
pub(super) fn progress(inner: &Inner, entry: &Entry, line: &ProgressLine) {
    let Some(id) = entry.with(|d| d.migration.clone()) else {
        return;
    };
    let settling = line.phase == "settling";
    inner.update(&id, |m| {
        // The last line may come after the end.
        if !m.state.is_over() {
            m.progress = Some(shown(line));
            m.state = match settling {
                true => MigrationState::Settling,
                false => MigrationState::Running,
            };
        }
    });
    if settling && entry.state() != VmState::Settling {
        entry.with(|d| d.state = VmState::Settling);
        inner.changed(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_vm_process_says_is_shown() {
        let line = ProgressLine {
            phase: "precopy".to_owned(),
            pass: 2,
            pages_left: 3,
            pages_total: 4,
            bytes_per_second: 5.0,
            bytes_wire: 6,
            predicted_blackout_ms: Some(7.0),
            jobs_unsettled: 8,
            stall_ms: 9.0,
            run_delay_ms: 10.0,
            passes: vec![protocol::PassProgress {
                pass: 2,
                considered: 11,
                sent: 12,
            }],
            bytes_by_codec: [("lz4".to_owned(), 13)].into(),
        };
        let expected = MigrationProgress {
            phase: "precopy".to_owned(),
            pass: 2,
            pages_left: 3,
            pages_total: 4,
            bytes_per_second: 5.0,
            bytes_wire: 6,
            predicted_blackout_ms: Some(7.0),
            jobs_unsettled: 8,
            stall_ms: 9.0,
            run_delay_ms: 10.0,
            passes: vec![PassProgress {
                pass: 2,
                pages_dirtied: 11,
                pages_sent: 12,
            }],
            bytes_by_codec: [("lz4".to_owned(), 13)].into(),
        };
        assert_eq!(shown(&line), expected);
    }
}
