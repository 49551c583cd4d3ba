//! Two host services as processes of the binary: machines move between them by the command line,
//! hosts are emptied, services are killed.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use std::process::Command;
use std::time::Duration;

use common::demo::{Ran, ran};
use common::{BIN, kvm_usable, run};
use serde_json::Value;
use vmferry_service::model::{MigrationOptions, MigrationState};
use vmferry_tests::hosts::{HostService, Hosts, ended, fleet};
use vmferry_tests::sim::Rng;

/// The best sort of machine that this host can run.
fn sort() -> &'static str {
    if kvm_usable() { "kvm" } else { "process" }
}

async fn two(more: &str) -> Hosts {
    let mut hosts = Hosts::new(BIN.as_ref(), &["a", "b"], more);
    hosts.host("a").start().await;
    hosts.host("b").start().await;
    hosts
}

/// Asks a host by the command line.
fn ask(host: &HostService, words: &str) -> Ran {
    let mut command = Command::new(BIN);
    command.env("VMFERRY_HOST", host.address());
    ran(command.args(words.split_whitespace()))
}

fn json(host: &HostService, words: &str) -> Value {
    ask(host, &format!("{words} --json")).report()
}

#[test]
fn a_machine_moves_by_the_command_line_and_all_of_it_is_told() {
    run(async {
        let mut hosts = two("").await;
        let file = hosts.dir().join("web-1.toml");
        let spec = format!(
            "name = \"web-1\"\nmachine = \"{}\"\nram_mib = 64\n[boot.workload]\n\
             cmdline = \"workload=dense ws-mib=4 fill-mib=16 rate=500\"\n",
            sort()
        );
        std::fs::write(&file, spec).unwrap();
        let a = &*hosts.host("a");
        ask(a, &format!("vm create -f {}", file.display())).ok();
        assert_eq!(json(a, "vm show web-1")["state"], "running");
        let dry = ask(a, "migrate web-1 --to b --dry-run");
        dry.ok();
        assert!(dry.stdout.contains("web-1 can move to b"), "{dry:?}");
        assert!(dry.stdout.contains("Mbit/s"), "{dry:?}");
        let moved = ask(a, "migrate web-1 --to b --wait");
        moved.ok();
        assert!(moved.stdout.contains("completed"), "{moved:?}");
        assert_eq!(json(a, "vm list"), serde_json::json!([]));
        let migrations = json(a, "migrations list");
        assert_eq!(migrations[0]["state"], "completed");
        let id = migrations[0]["id"].as_str().unwrap();
        // Both hosts' spans are in the trace that the source gives.
        let trace = json(a, &format!("migrations trace {id} --format otlp"));
        let hosts_of = |trace: &Value| {
            let resources = trace["resourceSpans"].as_array().unwrap().iter();
            resources
                .map(|r| r["resource"].to_string())
                .collect::<String>()
        };
        let told = hosts_of(&trace);
        assert!(told.contains("\"a\"") && told.contains("\"b\""), "{told}");
        let text = trace.to_string();
        for span in [
            "preflight",
            "pass 1",
            "blackout",
            "receive",
            "journal owner",
        ] {
            assert!(text.contains(&format!("\"{span}\"")), "{span}: {text}");
        }
        let jaeger = json(a, &format!("migrations trace {id}"));
        assert_eq!(jaeger["data"].as_array().unwrap().len(), 1);
        let metrics = a.client().metrics().await.unwrap();
        let counted = "vmferry_migrations_total{direction=\"outgoing\",outcome=\"completed\"} 1";
        assert!(metrics.contains(counted), "{metrics}");
        let id = id.to_owned();
        let b = &*hosts.host("b");
        ended(&b.client(), &id).await;
        ask(b, "vm verify web-1").ok();
        assert_eq!(json(b, "migrations list")[0]["direction"], "incoming");
        ask(b, "vm stop web-1").ok();
        ask(b, "vm delete web-1").ok();
    });
}

#[test]
fn what_cannot_move_is_told_with_what_to_do_and_runs_on() {
    run(async {
        let mut hosts = two("[limits]\nincoming = 2\nvm_ram_mib = 100\n").await;
        let specs = fleet::specs(1, sort());
        fleet::create(&hosts.host("a").client(), &specs)
            .await
            .unwrap();
        let mut large = fleet::specs(2, "process").remove(1);
        large.ram_mib = 90;
        fleet::create(&hosts.host("b").client(), &[large])
            .await
            .unwrap();
        let a = &*hosts.host("a");
        let dry = ask(a, "migrate vm-0 --to b --dry-run");
        assert_eq!(dry.code, Some(1), "{dry:?}");
        assert!(dry.stdout.contains("may have 100"), "{dry:?}");
        let refused = ask(a, "migrate vm-0 --to b --wait");
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("may have 100"), "{refused:?}");
        ask(a, "migrate vm-0 --to c").failed(&["no host called 'c' is known", "known: b"]);
        ask(a, "migrate vm-7 --to b").failed(&["vm-7"]);
        assert_eq!(fleet::wrong(&a.client()).await, [""; 0]);
    });
}

#[test]
fn a_service_ends_when_told_and_takes_over_limits_and_peers() {
    run(async {
        let mut hosts = two("").await;
        let a = hosts.host("a");
        let config = std::fs::read_to_string(a.config()).unwrap();
        let config = format!(
            "{config}[limits]\noutgoing = 7\n[peers.c]\nurl = \"https://127.0.0.9:7443\"\n"
        );
        std::fs::write(a.config(), config).unwrap();
        let pid = rustix::process::Pid::from_raw(a.pid().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let client = a.client();
        loop {
            let info = client.host().await.unwrap();
            if info.limits.outgoing == 7 && info.peers.contains_key("c") {
                break;
            }
            // Nobody is told when it is taken over.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(a.stop(), "{}", a.log());
        assert!(client.health().await.is_err());
        assert!(!std::path::Path::new(&a.address()["unix:".len()..]).exists());
        a.start().await;
        assert_eq!(client.host().await.unwrap().limits.outgoing, 7);
    });
}

#[test]
fn a_host_is_emptied_and_filled_again() {
    run(async {
        let mut hosts = two("[limits]\noutgoing = 8\nincoming = 8\n").await;
        let specs = fleet::specs(6, sort());
        let (a, b) = (hosts.host("a").client(), hosts.host("b").client());
        fleet::create(&a, &specs).await.unwrap();
        for (from, to) in [("a", "b"), ("b", "a")] {
            let request = fleet::to(to, 4, MigrationOptions::default());
            let (source, destination) = hosts.pair(from, to);
            let drain = fleet::drain(source, destination, &request).await.unwrap();
            assert!(fleet::all_left(&drain), "{drain:?}");
            assert_eq!(drain.items.len(), specs.len());
        }
        assert_eq!(b.vms().await.unwrap(), []);
        fleet::each_on_one(&a, &b, &specs).await.unwrap();
        assert_eq!(fleet::wrong(&a).await, [""; 0]);
    });
}

/// All random moments come from the seed; how far migrations are by then is the machine's.
#[test]
fn services_that_are_killed_lose_no_machine() {
    run(async {
        let mut hosts = two("[limits]\noutgoing = 4\nincoming = 4\n").await;
        let specs = fleet::specs(6, sort());
        fleet::create(&hosts.host("a").client(), &specs)
            .await
            .unwrap();
        let options = MigrationOptions {
            link_mbit: Some(200),
            max_blackout_ms: Some(20_000.0),
            ..MigrationOptions::default()
        };
        let mut rng = Rng::new(7);
        let (mut kills, mut way) = (0, ["a", "b"]);
        while kills < 4 {
            let (from, to) = hosts.pair(way[0], way[1]);
            let request = fleet::to(way[1], 3, options.clone());
            let done = fleet::drain_under_kills(from, to, &request, 4 - kills, &mut rng).await;
            kills += done.unwrap().kills;
            fleet::each_on_one(&from.client(), &to.client(), &specs)
                .await
                .unwrap();
            assert_eq!(fleet::wrong(&to.client()).await, [""; 0]);
            way.reverse();
        }
        let (a, b) = hosts.pair("a", "b");
        // Each migration has an end that both services know.
        for client in [a.client(), b.client()] {
            for m in client.migrations(None, None).await.unwrap() {
                assert!(m.state.is_over(), "{m:?}");
                assert_ne!(m.state, MigrationState::Undecided, "{m:?}");
            }
        }
    });
}
