//! Many machines, and whole hosts that are emptied.

use std::collections::BTreeMap;

use vmferry_service::client::ApiClient;
use vmferry_service::model::{
    Drain, DrainItem, DrainRequest, MigrationOptions, MigrationState, ServiceEvent, VmSpec, VmState,
};

use super::HostService;
use crate::sim::Rng;

/// What guests do, in turn; none of them keeps a processor busy, and none ticks more often than a
/// guest that does as little has to: exits cost 32 of them all of a small host's processors.
const WORKLOADS: [&str; 5] = [
    "workload=idle fill-mib=16",
    "workload=dense ws-mib=4 fill-mib=8 rate=500",
    "workload=sparse ws-mib=8 fill-mib=8 rate=300",
    "workload=readmostly ws-mib=8 fill-mib=8 rate=1000",
    "workload=rewrite-same ws-mib=4 fill-mib=8 rate=500",
];

/// Machines of 64 MiB with mixed workloads, `vm-0` and so on.
///
/// # Panics
/// Never: the descriptions are right.
#[must_use]
pub fn specs(count: usize, machine: &str) -> Vec<VmSpec> {
    let spec = |n: usize| {
        let workload = WORKLOADS[n % WORKLOADS.len()];
        serde_json::from_value(serde_json::json!({
            "name": format!("vm-{n}"), "machine": machine, "ram_mib": 64,
            "boot": {"workload": {"cmdline": format!("{workload} beat-ms=10 seed={n}")}},
        }))
        .expect("a description")
    };
    (0..count).map(spec).collect()
}

/// Makes them.
///
/// # Errors
/// In words.
pub async fn create(client: &ApiClient, specs: &[VmSpec]) -> Result<(), String> {
    for spec in specs {
        let made = client.create(spec).await.map_err(|e| e.detail())?;
        if made.state != VmState::Running {
            return Err(format!("{} is {:?}", made.name, made.state));
        }
    }
    Ok(())
}

/// A request to empty a host.
#[must_use]
pub fn to(host: &str, parallel: u32, options: MigrationOptions) -> DrainRequest {
    DrainRequest {
        to: vec![host.to_owned()],
        parallel: Some(parallel),
        options,
    }
}

/// Empties a host into another; returns how that went when it is over, and both know.
///
/// # Errors
/// In words.
pub async fn drain(
    from: &HostService,
    to: &HostService,
    request: &DrainRequest,
) -> Result<Drain, String> {
    let begun = from.client().drain(request).await.map_err(|e| e.detail())?;
    let drain = match begun.over {
        true => begun,
        false => from.events().await.drained().await,
    };
    all_ended(&to.client()).await?;
    Ok(drain)
}

/// Waits for the end of all migrations that a host knows.
async fn all_ended(client: &ApiClient) -> Result<(), String> {
    let all = client
        .migrations(None, None)
        .await
        .map_err(|e| e.detail())?;
    for migration in all.iter().filter(|m| !m.state.is_over()) {
        super::ended(client, &migration.id).await;
    }
    Ok(())
}

/// Whether all of a drain's machines have left.
#[must_use]
pub fn all_left(drain: &Drain) -> bool {
    let left = |item: &DrainItem| item.state == MigrationState::Completed;
    drain.items.iter().all(left)
}

/// Has each machine of a host verify its memory; names of those that are wrong or do not run, with
/// what they say.
pub async fn wrong(client: &ApiClient) -> Vec<String> {
    let mut wrong = Vec::new();
    for vm in super::machines(client).await {
        match client.verify(&vm.name).await {
            Ok(verdict) if verdict == "OK" => {}
            Ok(verdict) => wrong.push(format!("{}: {verdict}", vm.name)),
            Err(error) => wrong.push(format!("{}: {}", vm.name, error.detail())),
        }
    }
    wrong
}

/// Every machine of `specs` is on exactly one of two hosts, and runs.
///
/// # Errors
/// In words: which are not.
pub async fn each_on_one(a: &ApiClient, b: &ApiClient, specs: &[VmSpec]) -> Result<(), String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (host, client) in [("here", a), ("there", b)] {
        for vm in super::machines(client).await {
            let place = format!("{host}: {:?}", vm.state);
            places.entry(vm.name).or_default().push(place);
        }
    }
    let astray = |spec: &&VmSpec| match places.get(&spec.name).map(Vec::as_slice) {
        Some([one]) => !one.ends_with("Running"),
        _ => true,
    };
    let wrong: Vec<String> = specs
        .iter()
        .filter(astray)
        .map(|spec| format!("{} {:?}", spec.name, places.get(&spec.name)))
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join(", ")),
    }
}

/// What a drain under services that are killed has come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Killed {
    /// Services that were killed.
    pub kills: usize,
    /// How often the drain was asked for until all had left.
    pub drains: usize,
}

/// Empties `a` into `b` while the service of one or the other is killed, up to `kills` times, each
/// time after a random number of things that have happened, and started again at once. Ends when
/// no machine is left on `a`.
///
/// # Errors
/// In words: the drain cannot be finished.
pub async fn drain_under_kills(
    a: &mut HostService,
    b: &mut HostService,
    request: &DrainRequest,
    kills: usize,
    rng: &mut Rng,
) -> Result<Killed, String> {
    let (mut done, mut last) = (Killed::default(), Vec::new());
    while !super::machines(&a.client()).await.is_empty() {
        let asked = a.client().drain(request).await;
        let asked = asked.map_err(|e| e.detail())?;
        done.drains += 1;
        if done.drains > kills + 10 {
            let vms = super::machines(&a.client()).await;
            return Err(format!("drain after drain leaves {last:?}: {vms:?}"));
        }
        last = asked.items;
        // A service that follows one that was killed takes up its drain.
        while !over_after(a, (done.kills < kills).then(|| 1 + rng.below(40))).await? {
            let victim = if rng.below(2) == 0 { &mut *a } else { &mut *b };
            victim.kill();
            victim.start().await;
            done.kills += 1;
        }
        all_ended(&b.client()).await?;
        if let Ok(drain) = a.client().drain_state().await {
            last = drain.items;
        }
    }
    Ok(done)
}

/// Listens to a host until its drain is over, or so many things have happened; whether it is over.
async fn over_after(host: &HostService, events: Option<u64>) -> Result<bool, String> {
    let mut stream = host.events().await;
    let mut seen = 0;
    loop {
        match stream.next().await {
            Some(ServiceEvent::Drain(drain)) if drain.over => return Ok(true),
            Some(_) => seen += 1,
            None => return Err(format!("{} has gone by itself", host.name)),
        }
        if events.is_some_and(|most| seen >= most) {
            return Ok(false);
        }
    }
}
