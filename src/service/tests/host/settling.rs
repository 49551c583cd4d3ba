//! Writes that storage has not carried out when the guest leaves, and nobody left to tell of them
//! but the host services.

use std::fs;

use vmferry_service::control::Control;
use vmferry_service::host::Host;
use vmferry_service::model::{DiskSpecification, Limits, Migration, MigrationState, VmSpec};
use vmferry_tests::nbdkit::Nbdkit;

use crate::common::{Lab, end, runs_unharmed, slowly, spec, under_way, until};

/// One whose guest keeps writes in flight.
fn writer(server: &Nbdkit) -> VmSpec {
    let mut vm = spec(
        "web",
        "workload=idle fill-mib=4 disk-mib=4 disk-rate=2000 disk-depth=8",
    );
    vm.disks = vec![DiskSpecification {
        source: server.disk().source.to_string(),
        read_only: false,
        serial: String::new(),
        queues: None,
        delay_ms: 0,
    }];
    vm
}

async fn fences(host: &Host) -> u64 {
    let metrics = host.metrics().await;
    let mut lines = metrics.lines();
    let found = lines.find_map(|l| l.strip_prefix("vmferry_storage_fences_open "));
    found.unwrap().parse().unwrap()
}

/// Moves the guest while its storage hangs, and cuts what is between the VM processes.
async fn left_with_writes(lab: &Lab, server: &Nbdkit, a: &Host, b: &Host) -> Migration {
    lab.put_relays();
    a.create(writer(server)).await.unwrap();
    let mut request = slowly("b");
    request.options.transport = Some("tcp".to_owned());
    let id = a.migrate("web", request).await.unwrap().id;
    under_way(a, &id).await;
    // The storage has the guest's requests, and keeps them.
    server.hang();
    a.set_limits(Limits::default());
    let m = until(a, &id, |m| {
        assert!(!m.state.is_over(), "{m:?}");
        m.state == MigrationState::Settling
    })
    .await;
    lab.cut_relays();
    until(b, &id, |m| m.state == MigrationState::Settling).await;
    assert!(fences(b).await > 0);
    m
}

#[tokio::test(flavor = "multi_thread")]
async fn services_tell_what_vm_processes_cannot() {
    let lab = Lab::new();
    let a = lab.host_with(lab.holding("a")).await;
    let b = lab.host("b").await;
    fs::create_dir(lab.path("disk")).unwrap();
    let server = Nbdkit::start(&lab.path("disk"), 4, &[]);
    let m = left_with_writes(&lab, &server, &a, &b).await;
    server.go_on();
    // The source's VM process is through only when the other side knows.
    let over = end(&a, &m.id).await;
    assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    let report = a.report(&m.id).await.unwrap();
    assert!(report.io.unwrap().unsettled > 0);
    assert_eq!(fences(&b).await, 0);
    runs_unharmed(&b, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_away_meanwhile_tells_it_too() {
    let lab = Lab::new();
    let a = lab.host_with(lab.holding("a")).await;
    let b = lab.host("b").await;
    fs::create_dir(lab.path("disk")).unwrap();
    let server = Nbdkit::start(&lab.path("disk"), 4, &[]);
    let m = left_with_writes(&lab, &server, &a, &b).await;
    lab.kill("a", a).await;
    server.go_on();
    let a = lab.host("a").await;
    let over = end(&a, &m.id).await;
    assert_eq!(over.state, MigrationState::Completed, "{over:?}");
    assert_eq!(fences(&b).await, 0);
    runs_unharmed(&b, "web").await;
}
