use super::*;

fn at(block: u64) -> Extent {
    Extent::new(block * 4096, 4096)
}

fn actions(table: &mut Table<u32>) -> Vec<Action<u32>> {
    std::iter::from_fn(|| table.poll()).collect()
}

fn completed(id: JobId, tag: u32, adopted: bool) -> Action<u32> {
    let end = JobEnd::Done;
    Action::Complete {
        id,
        tag,
        end,
        adopted,
    }
}

/// A source with a write, a read and a flush in flight, held.
fn held() -> (Table<u32>, [JobId; 3]) {
    let mut table = Table::default();
    let ids = [
        table.request(JobKind::Write, at(1), 10),
        table.request(JobKind::Read, at(2), 11),
        table.request(JobKind::Flush, Extent::default(), 12),
    ];
    assert_eq!(actions(&mut table), ids.map(Action::Submit));
    table.hold();
    assert_eq!(actions(&mut table), ids.map(Action::Cancel));
    (table, ids)
}

#[test]
fn a_job_is_submitted_at_once_and_completed_once() {
    let mut table = Table::default();
    let id = table.request(JobKind::Write, at(1), 7);
    assert_eq!(actions(&mut table), [Action::Submit(id)]);
    table.finished(id, JobEnd::Done);
    table.finished(id, JobEnd::Done);
    assert_eq!(actions(&mut table), [completed(id, 7, false)]);
    assert!(table.is_empty());
}

#[test]
fn what_ends_before_the_handover_is_the_guests_and_the_rest_is_handed_over() {
    let (mut table, [write, read, flush]) = held();
    table.finished(read, JobEnd::Done);
    table.finished(flush, JobEnd::Cancelled);
    assert_eq!(actions(&mut table), [completed(read, 11, false)]);
    let fates: Vec<(JobId, Fate)> = table.hand_over().iter().map(|j| (j.id, j.fate)).collect();
    assert_eq!(fates, [(write, Fate::Unsettled), (flush, Fate::Cancelled)]);
    // A late end is told to the new owner, once, and not to the guest.
    table.finished(write, JobEnd::Done);
    table.finished(write, JobEnd::Done);
    let (id, end) = (write, JobEnd::Done);
    assert_eq!(actions(&mut table), [Action::Settled { id, end }]);
}

#[test]
fn reads_and_flushes_in_flight_are_no_danger_to_the_disk() {
    let (mut table, [_, read, flush]) = held();
    let fates: BTreeMap<JobId, Fate> = table.hand_over().iter().map(|j| (j.id, j.fate)).collect();
    assert_eq!(
        (fates[&read], fates[&flush]),
        (Fate::Cancelled, Fate::Cancelled)
    );
    table.finished(read, JobEnd::Done);
    assert_eq!(actions(&mut table), []);
}

#[test]
fn what_is_taken_back_goes_on_as_if_nothing_had_happened() {
    let (mut table, [write, read, flush]) = held();
    table.finished(flush, JobEnd::Cancelled);
    table.hand_over();
    table.finished(write, JobEnd::Done);
    actions(&mut table);
    table.release();
    // Done meanwhile; still in flight; to be asked for again.
    assert_eq!(
        actions(&mut table),
        [completed(write, 10, false), Action::Submit(flush)]
    );
    table.finished(read, JobEnd::Done);
    table.finished(flush, JobEnd::Done);
    assert_eq!(
        actions(&mut table),
        [completed(read, 11, false), completed(flush, 12, false)]
    );
    assert!(table.is_empty());
}

#[test]
fn an_unsettled_job_keeps_back_itself_and_what_overlaps_and_nothing_else() {
    let (mut source, [write, read, flush]) = held();
    let jobs = source.hand_over();
    let mut table = Table::default();
    table.adopt(source.next_id(), jobs).unwrap();
    assert_eq!(actions(&mut table), []);
    table.release();
    assert_eq!(
        actions(&mut table),
        [Action::Submit(read), Action::Submit(flush)]
    );
    let over = table.request(JobKind::Write, Extent::new(4096, 8192), 20);
    // Overlaps what waits, not the fence itself.
    let after = table.request(JobKind::Read, at(2), 21);
    let other = table.request(JobKind::Write, at(3), 22);
    assert_eq!(actions(&mut table), [Action::Submit(other)]);
    assert_eq!(table.kept_back(), 3);
    assert!(table.settled(write, JobEnd::Done));
    assert!(!table.settled(write, JobEnd::Done));
    let submitted = [Action::Submit(over), Action::Submit(after)];
    let all = actions(&mut table);
    assert_eq!(all[0], completed(write, 10, true));
    assert_eq!(all[1..], submitted);
}

#[test]
fn a_job_whose_fate_stays_unknown_is_issued_again_and_a_failed_one_has_failed() {
    for end in [JobEnd::Unknown, JobEnd::Cancelled, JobEnd::Failed(5)] {
        let (mut source, [write, ..]) = held();
        let jobs = source.hand_over();
        let mut table = Table::default();
        table.adopt(source.next_id(), jobs).unwrap();
        // Before the guest runs, or after, it is the same.
        assert!(table.settled(write, end));
        table.release();
        let all = actions(&mut table);
        let (id, tag, adopted) = (write, 10, true);
        let first = match end {
            JobEnd::Failed(_) => Action::Complete {
                id,
                tag,
                end,
                adopted,
            },
            _ => Action::Submit(write),
        };
        assert_eq!(all[0], first, "{end:?}");
    }
}

#[test]
fn fences_of_the_journal_keep_back_what_overlaps() {
    let mut table: Table<u32> = Table::default();
    table.fence(JobId(41), at(1));
    let waits = table.request(JobKind::Read, at(1), 1);
    assert_eq!((waits, actions(&mut table)), (JobId(42), vec![]));
    table.settled(JobId(41), JobEnd::Done);
    assert_eq!(actions(&mut table), [Action::Submit(waits)]);
}

#[test]
fn jobs_that_cannot_be_are_refused() {
    let job = |id| HandedOver {
        id: JobId(id),
        kind: JobKind::Write,
        extent: at(1),
        fate: Fate::Unsettled,
        tag: 1u32,
    };
    let mut table = Table::default();
    let twice = table.adopt(9, [job(1), job(1)]);
    assert_eq!(twice, Err(AdoptError::Number(JobId(1))));
    assert_eq!(table.adopt(9, [job(9)]), Err(AdoptError::Number(JobId(9))));
    assert!(table.is_empty() && table.fences().is_empty());
    table.request(JobKind::Read, at(1), 1);
    assert_eq!(table.adopt(9, [job(1)]), Err(AdoptError::InUse));
}
