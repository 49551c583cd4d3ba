//! States in words and tones, and what they make the command answer.

use vmferry_service::model::{MigrationState, VmState};

use super::table::{Cell, Tone};
use crate::Exit;

/// A machine's state, as the API spells it.
pub(super) fn vm_name(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Arriving => "arriving",
        VmState::Stopped => "stopped",
        VmState::Crashed => "crashed",
        VmState::Undecided => "undecided",
        VmState::Settling => "settling",
    }
}

/// The same with its tone.
pub(super) fn vm(state: VmState) -> Cell {
    let tone = match state {
        VmState::Stopped => return vm_name(state).into(),
        VmState::Running => Tone::Good,
        VmState::Crashed | VmState::Undecided => Tone::Bad,
        _ => Tone::Open,
    };
    Cell::toned(vm_name(state), tone)
}

/// A migration's state, as the API spells it.
pub(super) fn name(state: MigrationState) -> &'static str {
    match state {
        MigrationState::Queued => "queued",
        MigrationState::Preflight => "preflight",
        MigrationState::Running => "running",
        MigrationState::Settling => "settling",
        MigrationState::Completed => "completed",
        MigrationState::Cancelled => "cancelled",
        MigrationState::Failed => "failed",
        MigrationState::Undecided => "undecided",
    }
}

/// The same with its tone.
pub(super) fn migration(state: MigrationState) -> Cell {
    let tone = match state {
        MigrationState::Queued => return name(state).into(),
        MigrationState::Completed => Tone::Good,
        MigrationState::Failed | MigrationState::Undecided => Tone::Bad,
        _ => Tone::Open,
    };
    Cell::toned(name(state), tone)
}

/// What the end of a migration makes its command answer.
pub(super) fn exit(state: MigrationState) -> Exit {
    match state {
        MigrationState::Cancelled => Exit::Cancelled,
        MigrationState::Failed => Exit::Failed,
        MigrationState::Undecided => Exit::Undecided,
        _ => Exit::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_spelled_as_the_api_does() {
        use MigrationState as M;
        use VmState as V;
        let api = |state: serde_json::Value| state.as_str().map(str::to_owned).unwrap();
        for state in [
            V::Starting,
            V::Running,
            V::Paused,
            V::Arriving,
            V::Stopped,
            V::Crashed,
            V::Undecided,
            V::Settling,
        ] {
            assert_eq!(vm_name(state), api(serde_json::to_value(state).unwrap()));
        }
        for state in [
            M::Queued,
            M::Preflight,
            M::Running,
            M::Settling,
            M::Completed,
            M::Cancelled,
            M::Failed,
            M::Undecided,
        ] {
            assert_eq!(name(state), api(serde_json::to_value(state).unwrap()));
        }
    }
}
