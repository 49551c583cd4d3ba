//! Ids of spans, derived from the migration's id and a name: both sides know them without talking.

use twox_hash::XxHash3_64;
use vmferry_protocol::ids::MigrationId;
use vmferry_protocol::trace::TraceParent;

/// The outermost span of a migration.
pub(super) const ROOT: &str = "migration";

/// The id of a span of a migration; `path` is unique within both sides.
pub(super) fn span_id(migration: MigrationId, path: &str) -> [u8; 8] {
    let mut text = migration.0.to_vec();
    text.extend_from_slice(path.as_bytes());
    match XxHash3_64::oneshot(&text) {
        0 => 1_u64,
        hash => hash,
    }
    .to_be_bytes()
}

/// The context of a migration's own span, for the VM process to hand on to the destination:
/// `parent` is the span of whoever asked. Without one, the migration's id is the trace's too.
#[must_use]
pub fn migration_context(migration: MigrationId, parent: Option<&TraceParent>) -> TraceParent {
    let mut trace_id = parent.map_or(migration.0, |p| p.trace_id);
    if trace_id == [0; 16] {
        trace_id[15] = 1;
    }
    TraceParent {
        trace_id,
        span_id: span_id(migration, ROOT),
        flags: parent.map_or(TraceParent::SAMPLED, |p| p.flags),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_follow_the_parent_and_never_are_zero() {
        let id = MigrationId([7; 16]);
        let alone = migration_context(id, None);
        assert_eq!(alone.trace_id, id.0);
        assert!(alone.is_valid() && alone.is_sampled());
        let parent = TraceParent {
            trace_id: [1; 16],
            span_id: [2; 8],
            flags: 0,
        };
        let child = migration_context(id, Some(&parent));
        assert_eq!(child.trace_id, parent.trace_id);
        assert_eq!(child.span_id, alone.span_id);
        assert!(!child.is_sampled());
        assert!(migration_context(MigrationId([0; 16]), None).is_valid());
        assert_ne!(span_id(id, "pass 1"), span_id(id, "pass 2"));
        assert_ne!(span_id(id, ROOT), span_id(MigrationId([8; 16]), ROOT));
    }
}
