//! Machines of one host: made, paused, stopped, started, deleted; and what is refused.

use crate::common::{Lab, light, names, runs_unharmed};
use tokio::sync::broadcast::error::TryRecvError;
use vmferry_service::control::{Control, ControlError};
use vmferry_service::model::{Limits, ServiceEvent, VmState};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_from_creation_to_deletion() {
    let lab = Lab::new();
    let host = lab.host("a").await;
    let mut events = host.events();
    let vm = host.create(light("web-1")).await.unwrap();
    assert_eq!(
        (vm.state, vm.machine.as_str()),
        (VmState::Running, "process")
    );
    assert!(vm.pid.is_some());
    let taken = host.create(light("web-1")).await.unwrap_err();
    assert!(matches!(taken, ControlError::Conflict(_)), "{taken}");
    assert_eq!(host.pause("web-1").await.unwrap().state, VmState::Paused);
    let wrong = host.verify("web-1").await.unwrap_err();
    assert!(wrong.to_string().contains("does not run"), "{wrong}");
    assert_eq!(host.resume("web-1").await.unwrap().state, VmState::Running);
    runs_unharmed(&host, "web-1").await;
    host.console("web-1", 1000).await.unwrap();
    assert!(
        host.delete("web-1")
            .await
            .unwrap_err()
            .to_string()
            .contains("stop it first")
    );
    let vm = host.stop("web-1").await.unwrap();
    assert_eq!((vm.state, vm.pid), (VmState::Stopped, None));
    assert_eq!(host.start("web-1").await.unwrap().state, VmState::Running);
    runs_unharmed(&host, "web-1").await;
    host.stop("web-1").await.unwrap();
    host.delete("web-1").await.unwrap();
    assert!(names(&host).await.is_empty());
    assert!(!lab.path("a/vms/web-1").exists());
    let mut seen = Vec::new();
    loop {
        match events.try_recv() {
            Ok(ServiceEvent::Vm(vm)) => seen.push(vm.state),
            Ok(ServiceEvent::VmGone(name)) => assert_eq!(name, "web-1"),
            Ok(_) => {}
            Err(TryRecvError::Empty) => break,
            Err(e) => panic!("{e}"),
        }
    }
    seen.dedup();
    let expected = [
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Running,
        VmState::Stopped,
        VmState::Starting,
        VmState::Running,
        VmState::Stopped,
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_nonsense_are_refused_in_words() {
    let lab = Lab::new();
    let mut config = lab.config("a");
    config.limits.vms = 1;
    let host = lab.host_with(config).await;
    let mut bad = light("x");
    bad.vcpus = 99;
    let refused = host.create(bad).await.unwrap_err();
    assert!(matches!(refused, ControlError::Invalid(_)), "{refused}");
    let mut bad = light("x");
    bad.disks = serde_json::from_str(r#"[{"source": "file:/no/such.img"}]"#).unwrap();
    let refused = host.create(bad).await.unwrap_err();
    assert!(refused.to_string().contains("/no/such.img"), "{refused}");
    assert!(names(&host).await.is_empty());
    host.create(light("x")).await.unwrap();
    let refused = host.create(light("y")).await.unwrap_err();
    assert!(matches!(refused, ControlError::Limit(_)), "{refused}");
    host.set_limits(Limits {
        vm_ram_mib: 40,
        ..Limits::default()
    });
    let refused = host.create(light("y")).await.unwrap_err();
    assert!(refused.to_string().contains("64 MiB"), "{refused}");
    host.set_limits(Limits::default());
    host.create(light("y")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_is_noticed_and_the_machine_can_be_started_again() {
    let lab = Lab::new();
    let host = lab.host("a").await;
    let pid = host.create(light("web")).await.unwrap().pid.unwrap();
    let mut events = host.events();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let vm = loop {
        if let ServiceEvent::Vm(vm) = events.recv().await.unwrap()
            && vm.state != VmState::Running
        {
            break vm;
        }
    };
    assert_eq!(vm.state, VmState::Crashed);
    assert!(vm.detail.unwrap().contains("signal: 9"));
    assert_eq!(host.start("web").await.unwrap().state, VmState::Running);
    runs_unharmed(&host, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_follows_finds_every_machine_as_it_is() {
    let lab = Lab::new();
    let host = lab.host("a").await;
    for name in ["runs", "paused", "stopped", "dies"] {
        host.create(light(name)).await.unwrap();
    }
    host.pause("paused").await.unwrap();
    host.stop("stopped").await.unwrap();
    let pids = |vms: Vec<vmferry_service::model::Vm>| -> Vec<Option<u32>> {
        vms.into_iter().map(|vm| vm.pid).collect()
    };
    let before = pids(host.vms().await);
    lab.kill("a", host).await;
    let dies = rustix::process::Pid::from_raw(before[0].unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(dies, rustix::process::Signal::KILL).unwrap();
    let host = lab.host("a").await;
    let vms = host.vms().await;
    let states: Vec<(&str, VmState)> = vms.iter().map(|vm| (vm.name.as_str(), vm.state)).collect();
    let expected = [
        ("dies", VmState::Crashed),
        ("paused", VmState::Paused),
        ("runs", VmState::Running),
        ("stopped", VmState::Stopped),
    ];
    assert_eq!(states, expected);
    assert_eq!(pids(vms)[1..], before[1..]);
    runs_unharmed(&host, "runs").await;
    host.resume("paused").await.unwrap();
    runs_unharmed(&host, "paused").await;
    host.start("dies").await.unwrap();
}
