//! `vm` and `host show`.

use serde_json::Value;
use vmferry_service::model::{ConsoleOutput, DiskSpecification, Vm, VmState};

use super::*;
use crate::remote::fake::{host, problem, vm};

#[tokio::test(start_paused = true)]
async fn machines_are_listed_in_a_table_or_as_a_document() {
    let fake = fake();
    let odd = Vm {
        detail: Some("its guest\x1b[2J cannot go on".to_owned()),
        pid: None,
        ..vm("a-longer-name", VmState::Crashed)
    };
    fake.vms.then(Ok(vec![vm("web-1", VmState::Running), odd]));
    let text = ran(&fake, "vm list").await;
    assert_eq!(
        text.out,
        "NAME           STATE    MACHINE  VCPUS      RAM  DISKS  PID  DETAIL\n\
         web-1          running  kvm          2  512 MiB      0   42\n\
         a-longer-name  crashed  kvm          2  512 MiB      0    –  its guest [2J cannot go on\n"
    );
    let json = ran(&fake, "vm list --json").await;
    let vms: Vec<Vm> = serde_json::from_str(&json.out).unwrap();
    assert_eq!(vms[1].name, "a-longer-name");
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_shown_with_its_description() {
    let fake = fake();
    let mut shown = vm("web-1", VmState::Running);
    shown.migration = Some("0123".to_owned());
    shown.spec.disks.push(DiskSpecification {
        source: "nbd://s/x".to_owned(),
        read_only: true,
        serial: "root".to_owned(),
        queues: None,
        delay_ms: 5,
    });
    fake.vm.then(Ok(shown));
    let text = ran(&fake, "vm show web-1").await;
    assert_eq!(
        text.out,
        "name      web-1\nstate     running\ndetail    migration 0123\nmachine   kvm\nprocess   42\n\
         vcpus     2\nram       512 MiB\nworkload  \ndisk      nbd://s/x, read only, serial root, 5 \
         ms slower\n"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_done_to_a_machine_says_how_it_is_then() {
    let fake = fake();
    fake.vm.then(Ok(vm("web-1", VmState::Paused)));
    for action in ["pause", "resume", "stop", "start"] {
        let ran = ran(&fake, &format!("vm {action} web-1")).await;
        assert_eq!(
            (ran.exit, ran.out.as_str()),
            (Ok(Exit::Ok), "web-1: paused\n")
        );
    }
    assert_eq!(ran(&fake, "vm delete web-1").await.out, "web-1: deleted\n");
    assert_eq!(ran(&fake, "vm delete web-1 --json").await.out, "");
    let settled = ran(&fake, "vm settle-storage web-1 --nobody-else-writes").await;
    assert_eq!(settled.out, "web-1: 3 writes vouched for\n");
    let decided = ran(&fake, "vm decide web-1 --here --certain").await;
    assert_eq!(decided.out, "web-1: it is here\n");
    let expected = ["pause", "resume", "stop", "start", "delete", "delete"];
    let expected = expected.map(|call| format!("{call} web-1"));
    assert_eq!(fake.calls()[..6], expected);
    assert_eq!(fake.calls()[6], "settle web-1 true");
    let decision = "decide web-1 Decision { guest: Here, certain: true }";
    assert_eq!(fake.calls()[7], decision);
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_made_as_described() {
    let fake = fake();
    fake.vm.then(Ok(vm("web-1", VmState::Running)));
    let quiet = ran(
        &fake,
        "vm create web-1 --ram 512M --workload workload=dense -q",
    )
    .await;
    assert_eq!(quiet.out, "web-1\n");
    let call = fake.calls().remove(0);
    let spec: Value = serde_json::from_str(call.strip_prefix("create ").unwrap()).unwrap();
    assert_eq!(spec["ram_mib"], 512);
    assert_eq!(spec["boot"]["workload"]["cmdline"], "workload=dense");
    assert_eq!(
        ran(&fake, "vm create web-1 --ram 512M").await.out,
        "web-1: running\n"
    );
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_an_exit_code_and_a_problem_its_own_words() {
    let fake = fake();
    fake.verdicts
        .then(Ok("OK".to_owned()))
        .then(Ok("FAIL page 7".to_owned()));
    assert_eq!(ran(&fake, "vm verify web-1").await.exit, Ok(Exit::Ok));
    let failed = ran(&fake, "vm verify web-1").await;
    assert_eq!(failed.exit, Ok(Exit::VerifyFailed));
    assert_eq!(failed.out, "web-1: FAIL page 7\n");
    let refused = fake
        .vm
        .then(Err(problem(409, "web-1 moves: wait, or cancel that")));
    let _ = refused;
    assert_eq!(
        ran(&fake, "vm stop web-1").await.exit,
        Err("web-1 moves: wait, or cancel that".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_console_is_followed_until_the_machine_is_gone() {
    let said = |text: &str, bytes| {
        Ok(ConsoleOutput {
            serial: text.to_owned(),
            debug: "d".to_owned(),
            serial_bytes: bytes,
            debug_bytes: 1,
        })
    };
    let fake = fake();
    fake.consoles
        .then(said("..", 2))
        .then(said("..", 2))
        .then(said("....", 4))
        // More than what is kept.
        .then(said("abcd", 104))
        // The machine was booted anew.
        .then(said("new", 3))
        .then(Err(problem(404, "there is no machine web-1")));
    let ran = ran(&fake, "vm console web-1 --follow").await;
    assert_eq!(ran.exit, Err("there is no machine web-1".to_owned()));
    assert_eq!(ran.out, "....abcdnew");
    assert_eq!(ran.err, "[96 bytes were said too fast to be shown]\n");

    let fake = self::fake();
    fake.consoles.then(said("..", 2));
    assert_eq!(super::ran(&fake, "vm console web-1 --debug").await.out, "d");
}

#[tokio::test(start_paused = true)]
async fn a_host_is_shown_with_units() {
    let fake = fake();
    fake.hosts.then(Ok(host()));
    let text = ran(&fake, "host show").await;
    assert_eq!(
        text.out,
        "name           host-a\n\
         software       vmferry 0.1.0, protocol 1 to 3\n\
         kvm            usable\n\
         processors     2\n\
         memory         24 GiB, 1.5 GiB of it available\n\
         machines       3 of at most 256\n\
         machines' RAM  no limit\n\
         migrations     1 under way, 0 wait\n\
         at once        4 away, 4 to here\n\
         bandwidth      no limit\n\
         compressors    as many as processors\n\
         peer           host-b  https://host-b:7070\n\
         clock          2023-11-14 22:13:20Z\n\
         cpu features   avx2 sse4_2\n"
    );
    let json = ran(&fake, "host show --json").await;
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["limits"]["outgoing"], 4);
}
