//! Machines leave: migrations wait for their turn, are prepared with the other host, begun in the
//! VM process, and ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use vmferry_engine::SOFTWARE;
use vmferry_protocol::errors::chain;
use vmferry_protocol::ids::MigrationId;
use vmferry_vmm::api::{Answer, Inspection, MigrateOptions, Migrated, Request};
use vmferry_vmm::client::{ClientError, VmmClient};
use vmferry_vmm::{ends, random_bits};

use super::admission::{Next, shares};
use super::entry::{Entry, in_a_word};
use super::migrations::{self, Account, Kept, Known};
use super::peers::Peer;
use super::preflight::{self, There};
use super::{Inner, Result, facts, lock, now_ms, now_us, spec, vms};
use crate::config::built_in;
use crate::control::ControlError;
use crate::model::{
    Direction, Migration, MigrationRequest, MigrationState, Offer, Preflight, Problem, Reception,
    ReceptionRequest, VmState,
};
use crate::telemetry::{PreflightTimes, migration_context};

/// How long a host may take to forget a reception.
const FORGET_WITHIN: Duration = Duration::from_secs(30);
/// Nothing lasts longer.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// 128 random bits, in hexadecimal.
pub(super) fn random_hex() -> Result<String> {
    let bits = random_bits().map_err(ControlError::Failed)?;
    Ok(MigrationId(bits).to_string())
}

/// Lets migrations begin, each when it may.
pub(super) async fn admit(inner: Arc<Inner>) {
    loop {
        let most = inner.limits().outgoing as usize;
        let next = lock(&inner.migrations)
            .admission
            .next(most, inner.began.elapsed());
        let wake = match next {
            Next::Begin(id) => {
                inner.spawn(carry(inner.clone(), id));
                continue;
            }
            Next::At(at) => inner.began + at,
            Next::Nothing => Instant::now() + NEVER,
        };
        tokio::select! {
            () = inner.may_begin.notified() => {}
            () = sleep_until(wake) => {}
        }
    }
}

/// Keeps the bandwidth shared among the migrations that are under way.
pub(super) async fn balance(inner: Arc<Inner>) {
    let mut told: HashMap<String, u64> = HashMap::new();
    loop {
        inner.unbalanced.notified().await;
        let now = inner.share_out();
        told.retain(|id, _| now.contains_key(id));
        for (id, (mbit, client)) in now {
            if told.get(&id) == Some(&mbit) {
                continue;
            }
            // One that answers late is not to hold the others up, and one that is over needs no
            // limit.
            let limit = client.call(Request::Limit { link_mbit: mbit });
            if matches!(timeout(Duration::from_secs(2), limit).await, Ok(Ok(_))) {
                told.insert(id, mbit);
            }
        }
    }
}

/// What came of getting one ready.
enum Unready {
    /// The other host has no room now.
    Later(String),
    /// It cannot be.
    Not(String),
    Cancelled,
}

impl From<ControlError> for Unready {
    fn from(error: ControlError) -> Self {
        Self::Not(error.to_string())
    }
}

/// Carries a migration from its turn until the VM process has begun it.
async fn carry(inner: Arc<Inner>, id: String) {
    let begun = {
        let Some((mut cancelled, kept)) = inner.its_turn(&id) else {
            lock(&inner.migrations).admission.end(&id);
            return;
        };
        let ready = tokio::select! {
            biased;
            _ = cancelled.wait_for(|c| *c) => Err(Unready::Cancelled),
            ready = inner.prepare(&kept) => ready,
        };
        match ready {
            // From here on it is the VM process's to end it.
            Ok(ready) => inner.begin(&kept, ready).await,
            Err(unready) => Err(unready),
        }
    };
    match begun {
        Ok(()) => {}
        Err(Unready::Later(why)) => {
            inner.update(&id, |m| {
                m.state = MigrationState::Queued;
                m.reason = Some(why);
            });
            let now = inner.began.elapsed();
            lock(&inner.migrations).admission.refuse(&id, now);
            inner.may_begin.notify_one();
        }
        Err(Unready::Not(why)) => inner.comes_to_nothing(&id, MigrationState::Failed, why),
        Err(Unready::Cancelled) => {
            let why = "it was cancelled before it had begun".to_owned();
            inner.comes_to_nothing(&id, MigrationState::Cancelled, why);
        }
    }
}

/// All that the VM process has to be told.
struct Ready {
    entry: Arc<Entry>,
    client: Arc<VmmClient>,
    reception: Reception,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Inner {
    /// The URL of a peer that is given by name or URL, and what it is called.
    pub(super) fn url_of(&self, to: &str) -> Result<String> {
        if to == self.config.name {
            return Err(ControlError::Invalid(format!(
                "'{to}' is this host: name another"
            )));
        }
        let peers = lock(&self.peers).clone();
        if let Some(url) = peers.get(to) {
            return Ok(url.clone());
        }
        if to.contains("://") {
            return Ok(to.to_owned());
        }
        let known: Vec<&str> = peers.keys().map(String::as_str).collect();
        Err(ControlError::Invalid(format!(
            "no host called '{to}' is known here (known: {}): name one of them, give the URL of \
             its API, or add it to the configuration",
            match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            }
        )))
    }

    pub(super) fn peer(&self, to: &str) -> Result<Arc<dyn Peer>> {
        self.connector.peer(&self.url_of(to)?)
    }

    /// Notes a migration, which begins when it may.
    pub(super) fn migrate(&self, entry: &Arc<Entry>, request: MigrationRequest) -> Result<String> {
        let options = request.options.clone().or(&self.config.defaults);
        spec::check_options(&options).map_err(ControlError::Invalid)?;
        self.url_of(&request.to)?;
        let id = random_hex()?;
        let mut registry = lock(&self.migrations);
        entry.with(|d| {
            if let Some(other) = &d.migration {
                return Err(ControlError::Conflict(format!(
                    "'{}' is part of migration {other}: wait for its end, or cancel it",
                    entry.name
                )));
            }
            if !matches!(d.state, VmState::Running | VmState::Paused) {
                return Err(ControlError::Conflict(format!(
                    "'{}' cannot be moved: it is {}",
                    entry.name,
                    in_a_word(d.state)
                )));
            }
            d.migration = Some(id.clone());
            Ok(())
        })?;
        let parent = request.traceparent.as_deref().and_then(|p| p.parse().ok());
        let context = id
            .parse()
            .ok()
            .map(|id| migration_context(id, parent.as_ref()));
        let migration = Migration {
            id: id.clone(),
            vm: entry.name.clone(),
            direction: Direction::Outgoing,
            peer: request.to,
            state: MigrationState::Queued,
            reason: None,
            asked_ms: now_ms(),
            ended_ms: None,
            progress: None,
            blackout_ms: None,
            total_ms: None,
            traceparent: context.map(|c| c.to_string()),
        };
        let kept = Kept {
            migration,
            options,
            begun: false,
            parent: request.traceparent,
            preflight: None,
            clock_ahead_ms: None,
        };
        self.remember(&mut registry, Known::new(kept));
        registry.admission.ask(&id);
        drop(registry);
        self.changed(entry);
        self.may_begin.notify_one();
        Ok(id)
    }

    /// A migration's turn has come.
    fn its_turn(&self, id: &str) -> Option<(tokio::sync::watch::Receiver<bool>, Kept)> {
        self.update(id, |m| {
            if !m.state.is_over() {
                m.state = MigrationState::Preflight;
                m.reason = None;
            }
        });
        let registry = lock(&self.migrations);
        let known = registry.known.get(id)?;
        if known.kept.migration.state.is_over() {
            return None;
        }
        Some((known.cancel.subscribe(), known.kept.clone()))
    }

    /// What both hosts say of moving a machine: the peer is asked, nothing changes.
    async fn look(
        &self,
        entry: &Entry,
        peer: &Result<Arc<dyn Peer>>,
    ) -> (Offer, Inspection, Vec<Problem>) {
        let mut there = There {
            certificate: facts::certificate(self.config.tls.as_ref()).await,
            ..There::default()
        };
        let state = entry.state();
        let mut inspection = Inspection::default();
        if !matches!(state, VmState::Running | VmState::Paused) {
            there.state = Some(format!("'{}' is {}", entry.name, in_a_word(state)));
        } else {
            match entry.client() {
                Ok(client) => match client.call(Request::Inspect).await {
                    Ok(Answer::Inspected(found)) => inspection = *found,
                    Ok(_) => there.state = Some("its process answers nonsense".to_owned()),
                    Err(e) => there.state = Some(chain(&e)),
                },
                Err(e) => there.state = Some(e.to_string()),
            }
        }
        there.disks.clone_from(&inspection.disks_stay);
        let record = entry.record();
        let offer = Offer {
            spec: crate::model::VmSpec {
                // What was decided here is not to be decided again.
                machine: record.kind.name().to_owned(),
                ..record.spec
            },
            cpu_features: inspection.cpu_features.clone(),
            software: SOFTWARE.to_owned(),
            protocol: facts::PROTOCOL,
        };
        let answer = match peer {
            Ok(peer) => peer.consider(offer.clone()).await,
            Err(e) => Err(e.clone()),
        };
        let far = match answer {
            Ok(answer) => answer.problems,
            Err(e) => {
                there.peer = Some(e.to_string());
                Vec::new()
            }
        };
        let mut problems = preflight::at_source(&there);
        problems.extend(far);
        (offer, inspection, problems)
    }

    /// Asks for a reception, where nothing stands against it. May be dropped anywhere.
    async fn prepare(&self, kept: &Kept) -> std::result::Result<Ready, Unready> {
        let migration = &kept.migration;
        let entry = self.entry(&migration.vm)?;
        let turn = self.turn_of(&entry).await?;
        let peer = self.peer(&migration.peer);
        let again = lock(&self.migrations)
            .known
            .get(&migration.id)
            .is_some_and(|k| k.again);
        if let (Ok(peer), true) = (&peer, again) {
            // Where that fails, the other host says what is in the way.
            let _ = peer.forget_reception(&migration.id).await;
        }
        let began_unix_us = now_us();
        let (offer, _, problems) = self.look(&entry, &peer).await;
        let clocks = match &peer {
            Ok(peer) => Clocks::compare(&**peer).await,
            Err(_) => None,
        };
        let times = PreflightTimes {
            began_unix_us,
            ended_unix_us: now_us(),
            problems: problems.len() as u64,
        };
        self.update_kept(&migration.id, |kept| {
            kept.preflight = Some(times);
            kept.clock_ahead_ms = clocks.map(|c| c.ahead_ms);
        });
        if !problems.is_empty() {
            return Err(Unready::Not(preflight::in_a_line(&problems)));
        }
        let request = ReceptionRequest {
            offer,
            migration: migration.id.clone(),
            from: self.config.name.clone(),
            transport: kept
                .options
                .clone()
                .or(&built_in())
                .transport
                .unwrap_or_default(),
            link_mbit: self.limit_of(kept),
            traceparent: migration.traceparent.clone(),
        };
        if let Some(known) = lock(&self.migrations).known.get_mut(&migration.id) {
            known.again = true;
        }
        let reception = match peer?.receive(request).await {
            Ok(reception) => reception,
            Err(ControlError::Limit(why)) => return Err(Unready::Later(why)),
            Err(e) => return Err(e.into()),
        };
        let client = entry.client()?;
        Ok(Ready {
            entry,
            client,
            reception,
            _turn: turn,
        })
    }

    /// The limit that a migration begins with, in Mbit/s.
    fn limit_of(&self, kept: &Kept) -> u64 {
        let own = kept.options.link_mbit.unwrap_or(0);
        let mut all: Vec<u64> = self.under_way().iter().map(|k| k.1).collect();
        all.push(own);
        shares(self.limits().link_mbit, &all).pop().unwrap_or(own)
    }

    /// Migrations that send: ids, own limits, VMs.
    fn under_way(&self) -> Vec<(String, u64, String)> {
        let registry = lock(&self.migrations);
        let sends = |k: &&Known| {
            k.kept.migration.direction == Direction::Outgoing
                && k.kept.migration.state == MigrationState::Running
        };
        let found = registry.known.values().filter(sends).map(|k| {
            let (m, own) = (&k.kept.migration, k.kept.options.link_mbit);
            (m.id.clone(), own.unwrap_or(0), m.vm.clone())
        });
        found.collect()
    }

    fn share_out(&self) -> HashMap<String, (u64, Arc<VmmClient>)> {
        let under_way = self.under_way();
        let own: Vec<u64> = under_way.iter().map(|k| k.1).collect();
        let shares = shares(self.limits().link_mbit, &own);
        let told = under_way.into_iter().zip(shares);
        let told = told.filter_map(|((id, _, vm), mbit)| {
            let client = self.entry(&vm).ok()?.client().ok()?;
            Some((id, (mbit, client)))
        });
        told.collect()
    }

    async fn begin(
        self: &Arc<Self>,
        kept: &Kept,
        ready: Ready,
    ) -> std::result::Result<(), Unready> {
        let id = &kept.migration.id;
        let options = self.options(kept, &ready.reception)?;
        self.update_kept(id, |kept| {
            kept.begun = true;
            kept.migration.state = MigrationState::Running;
        });
        // A service that comes after this one has to know of what it finds under way.
        self.store.written().await;
        let asked = ready.client.call(Request::Migrate(options)).await;
        match asked {
            Ok(_) => {}
            // Whoever listens to the process finds out what has become of it.
            Err(ClientError::Gone) => return Ok(()),
            // Nobody is told by it then: it is asked until it says.
            Err(ClientError::Silent(_)) => {
                self.is_silent(&ready.entry, "does not answer");
                return Ok(());
            }
            // Asked by an earlier service, in its last moment.
            Err(ClientError::Refused(_)) if is_under_way(&ready.client, id).await => {}
            Err(e) => {
                self.update_kept(id, |kept| kept.begun = false);
                return Err(Unready::Not(vms::refused(&e).to_string()));
            }
        }
        self.unbalanced.notify_one();
        self.changed(&ready.entry);
        let cancelled = lock(&self.migrations)
            .known
            .get(id)
            .is_some_and(|k| *k.cancel.borrow());
        if cancelled {
            // Too late a cancel is answered by the migration's end.
            let _ = ready.client.call(Request::Cancel).await;
        }
        Ok(())
    }

    fn options(&self, kept: &Kept, reception: &Reception) -> Result<MigrateOptions> {
        // Written by an earlier version, they may lack something.
        let o = kept.options.clone().or(&built_in());
        Ok(MigrateOptions {
            migration: Some(kept.migration.id.clone()),
            traceparent: kept.migration.traceparent.clone(),
            transport: o.transport.unwrap_or_default(),
            to: reception.address.parse().map_err(|_| {
                ControlError::Peer(format!(
                    "'{}', which the other host gave, is no address",
                    reception.address
                ))
            })?,
            server_name: reception.server_name.clone(),
            tls: self.tls()?,
            token: reception.token.clone(),
            streams: o.streams.unwrap_or_default(),
            codec: o.codec.unwrap_or_default(),
            delta_cache_mib: o.delta_cache_mib.unwrap_or_default(),
            compressors: 0,
            budget: Some(self.budget()),
            tracker: o.tracker.unwrap_or_default(),
            group: o.group.unwrap_or_default(),
            throttle_pct: o.throttle_pct.unwrap_or_default(),
            min_passes: o.min_passes.unwrap_or_default(),
            link_mbit: self.limit_of(kept),
            max_blackout_ms: o.max_blackout_ms.unwrap_or_default(),
        })
    }

    /// A migration from here is over, and the guest is as it was.
    pub(super) fn comes_to_nothing(&self, id: &str, state: MigrationState, why: String) {
        let Some(kept) = lock(&self.migrations).known.get(id).map(|k| k.kept.clone()) else {
            return;
        };
        self.let_go(&kept.migration);
        self.over(id, state, Some(why), Account::None);
        if kept.migration.direction == Direction::Outgoing {
            self.forget_reception_there(&kept.migration);
        }
    }

    /// A VM is part of the migration no more.
    pub(super) fn let_go(&self, migration: &Migration) {
        if let Ok(entry) = self.entry(&migration.vm) {
            entry.with(|d| {
                if d.migration.as_ref() == Some(&migration.id) {
                    d.migration = None;
                }
            });
            self.changed(&entry);
        }
    }

    fn forget_reception_there(&self, migration: &Migration) {
        let (peer, id) = (self.peer(&migration.peer), migration.id.clone());
        if let Ok(peer) = peer {
            self.spawn(async move {
                // It ends by itself there, only later.
                let _ = timeout(FORGET_WITHIN, peer.forget_reception(&id)).await;
            });
        }
    }

    /// The VM process tells the end of a migration from here.
    pub(super) async fn left(self: &Arc<Self>, entry: &Arc<Entry>, end: Migrated) {
        let report = &end.report;
        let (id, state) = (&report.migration_id, migrations::state_of(report.outcome));
        let path = self.store.migration(id, migrations::REPORT);
        if let Err(error) = self.store.write(path, report).await {
            // The VM process's own file of it must not go then.
            tracing::error!(id, %error, "the report stays with the VM process");
            return;
        }
        if state == MigrationState::Completed {
            if let Err(error) = self.dismiss(entry).await {
                tracing::error!(vm = entry.name, %error, "the VM is elsewhere, but stays listed");
            }
            self.over(id, state, None, Account::Source(report));
            return;
        }
        if state == MigrationState::Undecided {
            self.is_undecided(entry, id).await;
        }
        if let Ok(migration) = self.migration(id) {
            self.let_go(&migration);
            self.over(id, state, report.reason.clone(), Account::Source(report));
            if state != MigrationState::Undecided {
                self.forget_reception_there(&migration);
            }
        }
        self.forget_end(entry, id).await;
        // Its process may be gone.
        let _ = self.refresh(entry).await;
    }

    /// The VM process's own file of the end of a migration goes, as all of it is known here.
    pub(super) async fn forget_end(&self, entry: &Entry, id: &str) {
        self.store.written().await;
        let path = ends::path(&entry.dir, id);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(id, %error, "a file of its end stays");
        }
    }

    /// Nobody may let the guest run by guess.
    pub(super) async fn is_undecided(&self, entry: &Entry, id: &str) {
        entry.with(|d| {
            d.record.undecided = Some(id.to_owned());
            d.state = VmState::Undecided;
            d.detail = Some(vms::handed_over(id));
        });
        if let Err(error) = self.save(entry).await {
            tracing::error!(vm = entry.name, %error, "that it is undecided is not on disk");
        }
        self.changed(entry);
    }

    /// The guest runs elsewhere: its process ends, and it is forgotten here.
    pub(super) async fn dismiss(&self, entry: &Entry) -> Result<()> {
        if !self.is_known(entry) {
            return Ok(());
        }
        self.end_process(entry).await?;
        self.forget(entry).await
    }

    pub(super) async fn preflight(
        &self,
        entry: &Entry,
        request: &MigrationRequest,
    ) -> Result<Preflight> {
        let options = request.options.clone().or(&self.config.defaults);
        spec::check_options(&options).map_err(ControlError::Invalid)?;
        let peer = self.peer(&request.to)?;
        let (_, inspection, problems) = self.look(entry, &Ok(peer.clone())).await;
        let clocks = Clocks::compare(&*peer).await;
        let measured_mbit = peer.bandwidth().await;
        let own = options.link_mbit.unwrap_or(0);
        let limit = shares(self.limits().link_mbit, &[own]);
        let limit = limit.first().copied().unwrap_or(own);
        let predicted = preflight::predict(
            inspection.populated_bytes,
            measured_mbit,
            limit,
            clocks.map(|c| c.round_trip_ms),
        );
        Ok(Preflight {
            problems,
            measured_mbit,
            predicted_total_ms: predicted.total_ms,
            predicted_blackout_ms: predicted.blackout_ms,
            assumptions: predicted.assumptions,
            clock_ahead_ms: clocks.map(|c| c.ahead_ms),
        })
    }

    pub(super) async fn cancel(&self, id: &str) -> Result<Migration> {
        let migration = self.migration(id)?;
        let too_late = |how: &str| {
            Err(ControlError::Conflict(format!(
                "migration {id} cannot be cancelled: {how}"
            )))
        };
        match migration.state {
            MigrationState::Queued | MigrationState::Preflight => {
                let waited = {
                    let mut registry = lock(&self.migrations);
                    let waited = registry.waits(id);
                    if waited {
                        registry.admission.end(id);
                    }
                    if let Some(known) = registry.known.get(id) {
                        known.cancel.send_replace(true);
                    }
                    waited
                };
                if waited {
                    let why = "it was cancelled before it had begun".to_owned();
                    self.comes_to_nothing(id, MigrationState::Cancelled, why);
                }
            }
            MigrationState::Running => {
                if let Some(known) = lock(&self.migrations).known.get(id) {
                    known.cancel.send_replace(true);
                }
                let client = self.entry(&migration.vm)?.client()?;
                match client.call(Request::Cancel).await {
                    Ok(_) | Err(ClientError::Gone) => {}
                    // Just over, or about to be begun: then it is cancelled after that.
                    Err(ClientError::Refused(_)) => {}
                    Err(e) => return Err(vms::refused(&e)),
                }
            }
            MigrationState::Settling => return too_late("the guest runs on the other host"),
            _ => return too_late("it is over"),
        }
        self.migration(id)
    }
}

/// This host's clock and another's.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    round_trip_ms: f64,
    /// How far the other's is ahead.
    ahead_ms: f64,
}

impl Clocks {
    async fn compare(peer: &dyn Peer) -> Option<Self> {
        let (asked, before) = (Instant::now(), now_us() as f64 / 1e3);
        let there = peer.host().await.ok()?.now_ms;
        let round_trip_ms = asked.elapsed().as_secs_f64() * 1e3;
        // Half a millisecond for what its answer leaves out.
        let ahead_ms = there as f64 + 0.5 - (before + round_trip_ms / 2.0);
        Some(Self {
            round_trip_ms,
            ahead_ms,
        })
    }
}

async fn is_under_way(client: &VmmClient, id: &str) -> bool {
    match client.call(Request::Status).await {
        Ok(Answer::Status(status)) => status
            .migration
            .is_some_and(|m| m.leaving && m.id.as_deref() == Some(id)),
        _ => false,
    }
}
