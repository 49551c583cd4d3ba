//! Cores to talk to, for the suites beside this.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::convert::Infallible;
use std::time::Duration;

use vmferry_protocol::destination::{Destination, DestinationConfig, DestinationEvent};
use vmferry_protocol::ids::{MigrationId, Token};
use vmferry_protocol::message::{Hello, Message, RunState, VmShape};
use vmferry_protocol::ownership::{Persist, Stored};
use vmferry_protocol::policy::Limits;
use vmferry_protocol::source::{Source, SourceConfig};
use vmferry_protocol::version::Speaks;
use vmferry_protocol::{PageRange, RamLayout};

pub const MIGRATION: MigrationId = MigrationId([1; 16]);
pub const TOKEN: Token = Token::new([2; 16]);
pub const T: Duration = Duration::from_secs(1);

pub fn layout() -> RamLayout {
    RamLayout::try_from(vec![PageRange::new(0, 256)]).expect("one region")
}

pub fn shape() -> VmShape {
    VmShape {
        ram: layout(),
        vcpus: 1,
        cpu_features: Vec::new(),
        config: Vec::new(),
        run_state: RunState::Running,
    }
}

pub fn hello(token: Token, speaks: Speaks) -> Message {
    Message::Hello(Hello {
        speaks,
        software: "test".to_owned(),
        migration: MIGRATION,
        token,
        streams: 2,
        trace: None,
    })
}

pub fn destination() -> Destination {
    let config = DestinationConfig {
        token: TOKEN,
        silence: 10 * T,
        linger: 60 * T,
        software: "test".to_owned(),
    };
    let mut destination = Destination::new(config, T);
    destination.handle_event(T, DestinationEvent::Connected);
    destination
}

pub fn source() -> Source {
    let config = SourceConfig {
        migration: MIGRATION,
        token: TOKEN,
        streams: 2,
        shape: shape(),
        can_throttle: true,
        limits: Limits::default(),
        window_pages: 128,
        fixed_cost: Duration::from_millis(1),
        silence: 10 * T,
        pause_deadline: 5 * T,
        reconnect_for: 60 * T,
        software: "test".to_owned(),
        trace: None,
    };
    Source::new(config, T)
}

pub fn on_disk(persist: Persist) -> Stored {
    persist.store(|_| Ok::<(), Infallible>(())).unwrap()
}
