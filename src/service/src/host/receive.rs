//! Machines come: a VM process waits for each, until it has come or will not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vmferry_engine::report::DestinationTimeline;
use vmferry_machine::Console;
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_transports::TransportKind;
use vmferry_vmm::api::{Answer, Event, ReceiveOptions, Request};
use vmferry_vmm::client::ClientError;

use super::depart::random_hex;
use super::entry::{Entry, Phase, Record};
use super::migrations::{Account, Kept, Known, Registry};
use super::{Inner, Result, lock, now_ms, preflight, process, spec};
use crate::control::ControlError;
use crate::model::{
    Direction, Migration, MigrationOptions, MigrationState, Reception, ReceptionRequest, VmState,
};

/// How long a reception may take to end once it was told to.
const END_WITHIN: Duration = Duration::from_secs(25);

/// Incoming migrations that are under way.
fn under_way(registry: &Registry) -> usize {
    let comes = |k: &&Known| {
        let m = &k.kept.migration;
        m.direction == Direction::Incoming && m.state == MigrationState::Running
    };
    registry.known.values().filter(comes).count()
}

impl Inner {
    pub(super) fn incoming(&self) -> usize {
        under_way(&lock(&self.migrations))
    }

    fn room_to_receive(&self, registry: &Registry) -> Result<()> {
        let (now, most) = (under_way(registry), self.limits().incoming as usize);
        match now < most {
            true => Ok(()),
            false => Err(ControlError::Limit(format!(
                "{} receives {now} VMs already, and may receive {most} at once: try again later",
                self.config.name
            ))),
        }
    }

    pub(super) async fn receive(self: &Arc<Self>, request: ReceptionRequest) -> Result<Reception> {
        let id = request.migration.clone();
        if id.parse::<MigrationId>().is_err() || id.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ControlError::Invalid(format!(
                "{id:?} is no migration's id: it has 32 hexadecimal digits, in lower case"
            )));
        }
        let transport: std::result::Result<TransportKind, _> = request.transport.parse();
        transport.map_err(|e| ControlError::Invalid(e.to_string()))?;
        spec::check_name(&request.offer.spec.name).map_err(ControlError::Invalid)?;
        self.room_to_receive(&lock(&self.migrations))?;
        let problems = self.consider(&request.offer).await.problems;
        if !problems.is_empty() {
            return Err(ControlError::Conflict(preflight::in_a_line(&problems)));
        }
        let spec = request.offer.spec.clone();
        let kind = spec::kind(&spec, self.kvm.is_ok()).map_err(ControlError::Invalid)?;
        let ram_mib = spec.ram_mib;
        let record = Record {
            spec,
            kind,
            phase: Phase::Arriving(id.clone()),
            undecided: None,
        };
        let dir = self.store.vm(&record.spec.name);
        let entry = Entry::new(record, dir, VmState::Arriving);
        entry.with(|d| d.migration = Some(id.clone()));
        let _turn = entry.turn().await;
        self.note_incoming(&request)?;
        let claimed = self.claim(&entry, ram_mib);
        let waits = match claimed {
            Ok(()) => {
                self.changed(&entry);
                self.wait_for(&entry, &request).await
            }
            Err(e) => {
                self.over(
                    &id,
                    MigrationState::Failed,
                    Some(e.to_string()),
                    Account::None,
                );
                return Err(e);
            }
        };
        if let Err(error) = &waits {
            let why = Some(error.to_string());
            self.comes_not(&entry, &id, why, Account::None).await;
        }
        waits
    }

    fn note_incoming(&self, request: &ReceptionRequest) -> Result<()> {
        let mut registry = lock(&self.migrations);
        self.room_to_receive(&registry)?;
        let id = &request.migration;
        if let Some(known) = registry.known.get(id) {
            let m = &known.kept.migration;
            // A source that could not begin tries the same one again; nobody else has that id.
            if m.direction != Direction::Incoming || m.peer != request.from {
                return Err(ControlError::Conflict(format!(
                    "there is a migration {id} here"
                )));
            }
            if !m.state.is_over() {
                return Err(ControlError::Conflict(format!(
                    "migration {id} is under way here already"
                )));
            }
        }
        let migration = Migration {
            id: id.clone(),
            vm: request.offer.spec.name.clone(),
            direction: Direction::Incoming,
            peer: request.from.clone(),
            state: MigrationState::Running,
            reason: None,
            asked_ms: now_ms(),
            ended_ms: None,
            progress: None,
            blackout_ms: None,
            total_ms: None,
            traceparent: request.traceparent.clone(),
        };
        let kept = Kept {
            migration,
            options: MigrationOptions::default(),
            begun: true,
            parent: None,
            preflight: None,
            clock_ahead_ms: None,
        };
        self.remember(&mut registry, Known::new(kept));
        Ok(())
    }

    /// Has a VM process of its own wait for the machine.
    async fn wait_for(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        request: &ReceptionRequest,
    ) -> Result<Reception> {
        self.make_dir(entry).await?;
        let running = process::start(&self.config.binary, &entry.dir)
            .await
            .map_err(ControlError::Failed)?;
        self.take_up(entry, running);
        let client = entry.client()?;
        let token = random_hex()?;
        // What was looked at before is what may come.
        let spec = &request.offer.spec;
        let machine = spec::config(spec, self.kvm.is_ok(), &entry.dir);
        let machine = machine.map_err(ControlError::Invalid)?;
        let (first, last) = self.config.ports;
        let mut refused = "there is no port to listen on".to_owned();
        for port in first..=last.max(first) {
            let options = ReceiveOptions {
                transport: request.transport.clone(),
                listen: (self.config.listen, port).into(),
                tls: self.tls()?,
                token: token.clone(),
                link_mbit: request.link_mbit,
                migration: Some(request.migration.clone()),
                come_within_s: Some(self.config.come_within_s),
                machine: Some(Box::new(machine.clone())),
                serial: Console::File(entry.dir.join(spec::SERIAL)),
                debugcon: Console::File(entry.dir.join(spec::DEBUG)),
            };
            match client.call(Request::Receive(options)).await {
                Ok(Answer::Listening { mut address }) => {
                    if let Some(ip) = self.config.advertise {
                        address.set_ip(ip);
                    }
                    return Ok(Reception {
                        id: request.migration.clone(),
                        address: address.to_string(),
                        server_name: self.config.name.clone(),
                        token,
                    });
                }
                Ok(_) => return Err(ControlError::Failed("an unknown answer".to_owned())),
                // The port may be another's: the next one.
                Err(ClientError::Refused(why)) => refused = why,
                Err(e) => return Err(ControlError::Failed(chain(&e))),
            }
        }
        Err(ControlError::Failed(refused))
    }

    /// The guest runs here; storage may still be at work for its former host.
    pub(super) async fn arrived(&self, entry: &Entry) {
        let id = entry.with(|d| {
            d.record.phase = Phase::Live;
            d.migration.clone()
        });
        if let Err(error) = self.save(entry).await {
            tracing::error!(vm = entry.name, %error, "its journal tells that it has arrived");
        }
        if let Some(id) = id {
            self.update(&id, |m| {
                if !m.state.is_over() {
                    m.state = MigrationState::Settling;
                }
            });
        }
        // Its process may be gone.
        let _ = self.refresh(entry).await;
    }

    /// A reception has ended.
    pub(super) async fn came(
        &self,
        entry: &Entry,
        id: &str,
        completed: bool,
        reason: Option<String>,
        timeline: &DestinationTimeline,
    ) {
        let account = Account::Destination(timeline);
        if !completed {
            return self.comes_not(entry, id, reason, account).await;
        }
        self.arrived(entry).await;
        entry.with(|d| {
            if d.migration.as_deref() == Some(id) {
                d.migration = None;
            }
        });
        self.over(id, MigrationState::Completed, None, account);
        self.forget_end(entry, id).await;
        self.changed(entry);
    }

    /// A machine does not come: nothing of it stays.
    pub(super) async fn comes_not(
        &self,
        entry: &Entry,
        id: &str,
        reason: Option<String>,
        account: Account<'_>,
    ) {
        if let Err(error) = self.dismiss(entry).await {
            tracing::error!(vm = entry.name, %error, "a reception that came to nothing stays");
        }
        let cancelled = matches!(account, Account::Destination(timeline) if timeline.cancelled);
        let state = match cancelled {
            true => MigrationState::Cancelled,
            false => MigrationState::Failed,
        };
        self.over(id, state, reason, account);
    }

    /// The end of a migration was told, or found.
    pub(super) async fn ended(self: &Arc<Self>, entry: &Arc<Entry>, end: Event) {
        match end {
            Event::Migrated(end) => self.left(entry, *end).await,
            Event::Received {
                completed,
                reason,
                migration_id,
                timeline,
                ..
            } => {
                let id = migration_id.or_else(|| entry.with(|d| d.migration.clone()));
                if let Some(id) = id {
                    self.came(entry, &id, completed, reason, &timeline).await;
                }
            }
            _ => {}
        }
    }

    pub(super) async fn forget_reception(&self, id: &str) -> Result<()> {
        let Ok(migration) = self.migration(id) else {
            return Ok(());
        };
        if migration.direction != Direction::Incoming || migration.state.is_over() {
            return Ok(());
        }
        let Ok(entry) = self.entry(&migration.vm) else {
            return Ok(());
        };
        {
            let Ok(_turn) = self.turn_of(&entry).await else {
                return Ok(());
            };
            let ours = |d: &mut super::entry::Data| {
                d.migration.as_deref() == Some(id) && d.state == VmState::Arriving
            };
            let Some(client) = entry.with(|d| ours(d).then(|| d.client.clone())).flatten() else {
                return Ok(());
            };
            // Where it is over already, its end is on its way.
            let _ = client.call(Request::Cancel).await;
        }
        let ended = self.until_over(id);
        match timeout(END_WITHIN, ended).await {
            Ok(()) => Ok(()),
            Err(_) => Err(ControlError::Conflict(format!(
                "the reception of '{}' does not end: it has all of the guest, and waits to hear \
                 whether it may run",
                entry.name
            ))),
        }
    }
}
