//! Storage jobs of the source that end at awkward moments.

mod common;

use std::time::Duration;

use common::{T, layout, on_disk, source};
use vmferry_protocol::PageSet;
use vmferry_protocol::message::{Message, Prepared, Resumed};
use vmferry_protocol::source::{Source, SourceEvent, SourceOutput};
use vmferry_protocol::storage::{
    Extent, Fate, JobEnd, JobId, JobKey, JobKind, JobRecord, Settlement,
};
use vmferry_protocol::version::{Speaks, negotiate};

const KEY: JobKey = JobKey {
    disk: 0,
    job: JobId(7),
};
const ENDED: Settlement = Settlement {
    key: KEY,
    end: JobEnd::Done,
};

fn handed() -> SourceEvent {
    let job = JobRecord {
        key: KEY,
        kind: JobKind::Write,
        extent: Extent::new(0, 4096),
        fate: Fate::Unsettled,
    };
    SourceEvent::IoCancelled { jobs: vec![job] }
}

fn harvested() -> SourceEvent {
    SourceEvent::Harvested {
        dirty: PageSet::new(&layout()),
        notifications: 0,
        stall: Duration::ZERO,
        group_pages: 1,
    }
}

/// What a peer and a host without any page to send answer; what they leave to the test comes
/// back, as soon as it comes.
fn until(s: &mut Source, wanted: impl Fn(&SourceOutput) -> bool) -> SourceOutput {
    for _ in 0..1000 {
        let output = s.poll_output().expect("the source waits for nothing");
        if wanted(&output) {
            return output;
        }
        match output {
            SourceOutput::Send(Message::Hello(hello)) => {
                let agreed = negotiate(&Speaks::CURRENT, &hello.speaks).expect("one version");
                let software = "test".to_owned();
                s.handle_message(T, Message::Welcome { software, agreed });
            }
            SourceOutput::Send(Message::Ping { nonce }) => {
                s.handle_message(T, Message::Pong { nonce });
            }
            SourceOutput::Send(Message::Offer(_)) => s.handle_message(T, Message::Accept),
            SourceOutput::Send(Message::AllSent { .. }) => {
                s.handle_message(T, Message::Prepared(Prepared::default()));
            }
            SourceOutput::Harvest { .. } => s.handle_event(T, harvested()),
            SourceOutput::Pause => s.handle_event(T, SourceEvent::Paused),
            SourceOutput::SaveState => {
                s.handle_event(T, SourceEvent::StateSaved { blob: vec![1] });
            }
            SourceOutput::Persist(persist) => {
                s.handle_event(T, SourceEvent::Persisted(on_disk(persist)));
            }
            _ => {}
        }
    }
    panic!("it goes round in circles");
}

#[test]
fn a_job_that_ends_before_its_handover_is_heard_of_is_settled() {
    let mut s = source();
    s.handle_event(T, SourceEvent::Connected);
    until(&mut s, |o| *o == SourceOutput::CancelIo);
    // The disk's thread is quicker than the one that has held the disk.
    s.handle_event(T, SourceEvent::IoSettled(vec![ENDED]));
    s.handle_event(T, handed());
    let told = |o: &SourceOutput| matches!(o, SourceOutput::Send(Message::Settled { .. }));
    let settlements = vec![ENDED];
    assert_eq!(
        until(&mut s, told),
        SourceOutput::Send(Message::Settled { settlements })
    );
    until(&mut s, |o| *o == SourceOutput::Send(Message::Commit));
    s.handle_message(T, Message::Resumed(Resumed::default()));
    s.handle_message(T, Message::SettledAck { jobs: vec![KEY] });
    until(&mut s, |o| *o == SourceOutput::ForgetVm);
}
