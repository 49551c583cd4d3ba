//! States in words and tones, and what they make the command answer.

use vmferry_service::model::{MigrationState, VmState};

use super::table::{Cell, Tone};
use crate::Exit;

/// A machine's, with its tone.
pub(super) fn vm(state: VmState) -> Cell {
    let tone = match state {
        VmState::Stopped => return state.name().into(),
        VmState::Running => Tone::Good,
        VmState::Crashed | VmState::Undecided => Tone::Bad,
        _ => Tone::Open,
    };
    Cell::toned(state.name(), tone)
}

/// A migration's, with its tone.
pub(super) fn migration(state: MigrationState) -> Cell {
    let tone = match state {
        MigrationState::Queued => return state.name().into(),
        MigrationState::Completed => Tone::Good,
        MigrationState::Failed | MigrationState::Undecided => Tone::Bad,
        _ => Tone::Open,
    };
    Cell::toned(state.name(), tone)
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
