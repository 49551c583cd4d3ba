//! From the options of a request to a migration under way, at either side.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use vmferry_codecs::{CodecChoice, CodecId};
use vmferry_engine::destination::{self, DestinationHandle, DestinationOptions, config_of};
use vmferry_engine::source::{self, Live, SourceHandle, SourceOptions};
use vmferry_journal::Journal;
use vmferry_machine::{Console, Machine, MachineConfig, Role};
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::policy::Limits;
use vmferry_tracker::GroupSize;
use vmferry_transports::{
    Bandwidth, Connector, LinkHint, TlsIdentity, TransportKind, connector, listen,
};

use crate::api::{Event, MigrateOptions, ProgressLine, ReceiveOptions, TlsFiles};
use crate::events::{Happened, Happenings, sink};
use crate::{random_bits, tracker};

fn identity(files: &TlsFiles) -> Result<TlsIdentity, String> {
    TlsIdentity::from_files(&files.ca, &files.cert, &files.key).map_err(|e| chain(&e))
}

fn token(text: &str) -> Result<Token, String> {
    text.parse().map_err(|e| format!("token: {e}"))
}

fn hint(mbit: u64) -> LinkHint {
    LinkHint { mbit, rtt_ms: 0 }
}

/// Begins to move `machine` away.
pub(crate) async fn leave(
    machine: Arc<dyn Machine>,
    journal: Arc<dyn Journal>,
    asked: &MigrateOptions,
) -> Result<(SourceHandle, MigrationId, Arc<dyn Connector>), String> {
    let kind: TransportKind = asked.transport.parse().map_err(|e| chain(&e))?;
    let tracker = tracker::choose(&machine, asked).await?;
    let max_blackout = Duration::try_from_secs_f64(asked.max_blackout_ms / 1e3)
        .map_err(|_| "the longest blackout is not a time".to_owned())?;
    let migration = match &asked.migration {
        Some(id) => id.parse().map_err(|e| format!("migration id: {e}"))?,
        None => MigrationId(random_bits()?),
    };
    let trace = match &asked.traceparent {
        Some(text) => Some(text.parse().map_err(|e| format!("traceparent: {e}"))?),
        None => None,
    };
    let ram_bytes = machine.ram().bytes();
    let defaults = SourceOptions::new(migration, token(&asked.token)?, tracker.kind);
    let options = SourceOptions {
        streams: asked.streams,
        compressors: match usize::from(asked.compressors) {
            0 => defaults.compressors,
            threads => threads.min(MOST_COMPRESSORS),
        },
        budget: asked.budget.clone(),
        codec: asked.codec.parse::<CodecChoice>().map_err(|e| chain(&e))?,
        // More than all pages cannot be kept.
        delta_cache_bytes: (u64::from(asked.delta_cache_mib) << 20).min(ram_bytes),
        group: asked.group.parse::<GroupSize>().map_err(|e| chain(&e))?,
        limits: Limits {
            max_blackout,
            throttle_pct: asked.throttle_pct.min(100),
            min_passes: asked.min_passes,
            ..Limits::default()
        },
        tracker_choice: tracker.why,
        notification_cost: tracker.notification_cost,
        trace,
        ..defaults
    };
    let connector = connector(
        kind,
        asked.to,
        &asked.server_name,
        &identity(&asked.tls)?,
        hint(asked.link_mbit),
        Bandwidth::from_mbit(asked.link_mbit),
    )
    .map_err(|e| chain(&e))?;
    disks_may_move(&*machine).await?;
    let handle = source::start(machine, connector.clone(), journal, options)?;
    Ok((handle, migration, connector))
}

/// How long a guest that has just come waits for its former host to let go of its disks.
const LET_GO: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits a little for a former host that is about to let go of the disks.
async fn disks_may_move(machine: &dyn Machine) -> Result<(), String> {
    let began = tokio::time::Instant::now();
    loop {
        match machine.disks().may_move() {
            Err(_) if began.elapsed() < LET_GO => tokio::time::sleep(LOOK_EVERY).await,
            may => return may,
        }
    }
}

/// More than any host has use for.
const MOST_COMPRESSORS: usize = 64;

/// Tells of a migration's progress and end.
pub(crate) async fn watch_source(
    handle: SourceHandle,
    last: watch::Sender<Option<ProgressLine>>,
    events: broadcast::Sender<Event>,
    to: Happenings,
) {
    let SourceHandle {
        mut progress,
        mut ended,
        ..
    } = handle;
    loop {
        tokio::select! {
            end = &mut ended => {
                if let Ok(end) = end {
                    let _ = to.send(Happened::Left(Box::new(end)));
                }
                return;
            }
            Ok(()) = progress.changed() => {
                let line = progress.borrow_and_update().as_ref().map(line);
                if let Some(line) = line {
                    last.send_replace(Some(line.clone()));
                    let _ = events.send(Event::Progress(line));
                }
            }
        }
    }
}

fn line(live: &Live) -> ProgressLine {
    let p = &live.progress;
    ProgressLine {
        phase: format!("{:?}", p.phase).to_lowercase(),
        pass: p.pass,
        pages_left: p.pages_left,
        pages_total: p.pages_total,
        bytes_per_second: p.throughput.unwrap_or(0.0),
        bytes_wire: p.bytes_wire,
        jobs_unsettled: p.jobs_unsettled,
        // Before anything has travelled, nothing can be predicted.
        predicted_blackout_ms: p
            .predicted
            .filter(|_| p.throughput.is_some_and(|rate| rate > 0.0))
            .map(|d| d.as_secs_f64() * 1e3),
        stall_ms: live.costs.stall.as_secs_f64() * 1e3,
        run_delay_ms: live.run_delay.as_secs_f64() * 1e3,
        passes: p.passes.clone(),
        bytes_by_codec: (p.bytes_by_codec.iter())
            .map(|(&id, &bytes)| {
                let name = CodecId::try_from(id).map_or("unknown", CodecId::name);
                (name.to_owned(), bytes)
            })
            .collect(),
    }
}

/// Begins to wait for a machine; where it listens.
pub(crate) async fn receive(
    asked: &ReceiveOptions,
    journal: Arc<dyn Journal>,
    to: Happenings,
) -> Result<(DestinationHandle, std::net::SocketAddr), String> {
    let kind: TransportKind = asked.transport.parse().map_err(|e| chain(&e))?;
    let token = token(&asked.token)?;
    let tls = identity(&asked.tls)?;
    let listener = listen(kind, asked.listen, &tls, hint(asked.link_mbit))
        .await
        .map_err(|e| chain(&e))?;
    let address = listener.local_addr().map_err(|e| chain(&e))?;
    let consoles = (asked.serial.clone(), asked.debugcon.clone());
    let announced = asked.machine.as_deref().cloned();
    let announced = announced.map(|machine| here(machine, consoles.clone()));
    let (offered, offer) = watch::channel(false);
    let make = move |shape: &vmferry_protocol::message::VmShape| {
        offered.send_replace(true);
        let config = here(config_of(shape)?, consoles.clone());
        if announced
            .as_ref()
            .is_some_and(|announced| *announced != config)
        {
            return Err("another machine came than the one that was announced".to_owned());
        }
        vmferry_machine::create(&config, sink(to.clone()), Role::Heir).map_err(|e| chain(&e))
    };
    let options = DestinationOptions::new(token);
    let handle = destination::start(listener, Arc::new(make), journal, options);
    if let Some(seconds) = asked.come_within_s {
        let limit = Duration::from_secs(seconds);
        tokio::spawn(give_up_after(limit, offer, handle.operator()));
    }
    Ok((handle, address))
}

/// Cancels a reception that nobody has come to. The connection of one who has is watched by the
/// protocol.
async fn give_up_after(
    limit: Duration,
    mut offer: watch::Receiver<bool>,
    operator: destination::Operator,
) {
    // It also ends where the reception does.
    let offered = offer.wait_for(|offered| *offered);
    if tokio::time::timeout(limit, offered).await.is_err() {
        tracing::info!("nobody has come: the reception is given up");
        operator.cancel();
    }
}

/// The machine's configuration with this host's consoles.
fn here(config: MachineConfig, (serial, debugcon): (Console, Console)) -> MachineConfig {
    MachineConfig {
        serial,
        debugcon,
        ..config
    }
}

/// Tells of a reception's guest and end.
pub(crate) async fn watch_destination(handle: DestinationHandle, to: Happenings) {
    let DestinationHandle {
        mut arrived, ended, ..
    } = handle;
    while let Some(guest) = arrived.recv().await {
        let _ = to.send(Happened::Arrived(guest));
    }
    if let Ok(end) = ended.await {
        let _ = to.send(Happened::Received(end));
    }
}
