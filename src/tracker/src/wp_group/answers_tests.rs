//! Answers in virtual time, by a kernel that notes what it is told to release.

use std::cell::{Cell, RefCell};

use vmferry_memory::GuestRam;
use vmferry_protocol::PAGE_SIZE;

use super::*;
use crate::wp_group::policy::Order;

const MS: Duration = Duration::from_millis(1);
const PAGES: u64 = 2048;

struct Fake {
    now: Cell<Duration>,
    /// How long a release takes.
    takes: Duration,
    released: RefCell<Vec<PageRange>>,
}

impl Fake {
    fn new(takes: Duration) -> Self {
        Self {
            now: Cell::new(Duration::ZERO),
            takes,
            released: RefCell::default(),
        }
    }
}

impl Kernel for Fake {
    fn now(&self) -> Duration {
        self.now.get()
    }

    fn release(&self, pages: PageRange) -> io::Result<()> {
        self.now.set(self.now.get() + self.takes);
        self.released.borrow_mut().push(pages);
        Ok(())
    }
}

/// Group `n` of those that are protected here.
fn group(n: u64) -> PageRange {
    PageRange::new(512 * n, 512)
}

/// Protects what is not, as another pass does.
fn protect(groups: &Groups) {
    groups.begin_pass();
    let all = PageRange::new(0, PAGES);
    groups.arm(all, Order::HUGE, |_| Ok(())).unwrap();
}

fn protected_groups() -> Groups {
    let ram = GuestRam::new(PAGES * PAGE_SIZE).unwrap();
    let groups = Groups::new(&ram);
    protect(&groups);
    groups
}

/// Pages that a write to `gfn` would release.
fn price(groups: &Groups, gfn: u64) -> u64 {
    let page = PageRange::new(gfn, 1);
    let group = groups.group(page).unwrap();
    groups.price(page, group).unwrap()
}

fn throttled<'a>(
    groups: &'a Groups,
    costs: &'a Costs,
    pages_per_second: u64,
    most_pct: u8,
) -> Answers<'a> {
    let mut answers = Answers::new(groups, costs, false);
    let throttle = Throttle {
        pages_per_second,
        most_pct,
    };
    answers.throttle(Some(throttle), Duration::ZERO);
    answers
}

/// Faults, each a page and a writer, that one read has taken at `at`.
fn read(answers: &mut Answers<'_>, kernel: &Fake, at: Duration, faults: &[(u64, u32)]) {
    kernel.now.set(at);
    answers.faults_read(at);
    for &(gfn, writer) in faults {
        let page = PageRange::new(gfn, 1);
        answers.fault(kernel, page, writer).unwrap();
    }
}

fn go_to(answers: &mut Answers<'_>, kernel: &Fake, at: Duration) {
    kernel.now.set(at);
    answers.answer_due(kernel).unwrap();
}

fn time(counter: &AtomicU64) -> Duration {
    Duration::from_nanos(counter.load(Ordering::Relaxed))
}

#[test]
fn writers_that_wait_for_one_group_are_charged_once_and_go_on_together() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    // 10 ms for a group.
    let mut answers = throttled(&groups, &costs, 51_200, 100);
    read(&mut answers, &kernel, Duration::ZERO, &[(0, 1)]);
    assert_eq!(*kernel.released.borrow(), [group(0)]);
    read(&mut answers, &kernel, Duration::ZERO, &[(512, 1), (700, 2)]);
    read(&mut answers, &kernel, 4 * MS, &[(600, 3)]);
    assert_eq!(answers.next_due(), Some(10 * MS));
    assert_eq!(*kernel.released.borrow(), [group(0)]);

    go_to(&mut answers, &kernel, 10 * MS);
    assert_eq!(*kernel.released.borrow(), [group(0), group(1)]);
    assert_eq!(answers.next_due(), None);
    assert_eq!(time(&costs.throttled_ns), 26 * MS);
    assert_eq!(costs.faults.load(Ordering::Relaxed), 2);
    assert_eq!(costs.pages.load(Ordering::Relaxed), 1024);
    // The next group comes after two, not after four.
    read(&mut answers, &kernel, 10 * MS, &[(1024, 2)]);
    assert_eq!(answers.next_due(), Some(20 * MS));
}

#[test]
fn a_writer_that_was_woken_by_another_releases_nothing_later() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    let mut answers = throttled(&groups, &costs, 51_200, 100);
    let faults = [(0, 1), (512, 1), (700, 2)];
    read(&mut answers, &kernel, Duration::ZERO, &faults);
    go_to(&mut answers, &kernel, 10 * MS);
    protect(&groups);
    go_to(&mut answers, &kernel, 60_000 * MS);
    assert_eq!(*kernel.released.borrow(), [group(0), group(1)]);
    assert_eq!(price(&groups, 700), 512);
}

#[test]
fn a_fault_that_was_answered_with_another_of_its_read_is_not_answered_again() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    let mut answers = Answers::new(&groups, &costs, false);
    read(&mut answers, &kernel, Duration::ZERO, &[(0, 1)]);
    // Protected anew between two faults that were read at once.
    protect(&groups);
    answers.fault(&kernel, PageRange::new(5, 1), 2).unwrap();
    assert_eq!(*kernel.released.borrow(), [group(0)]);
    assert_eq!(price(&groups, 5), 512);
    // Its writer comes again.
    read(&mut answers, &kernel, MS, &[(5, 2)]);
    assert_eq!(*kernel.released.borrow(), [group(0), group(0)]);
}

#[test]
fn a_write_to_a_writable_page_neither_waits_nor_costs() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    let mut answers = throttled(&groups, &costs, 51_200, 100);
    read(&mut answers, &kernel, Duration::ZERO, &[(0, 1)]);
    read(&mut answers, &kernel, MS, &[(3, 2)]);
    assert_eq!(answers.next_due(), None);
    assert_eq!(*kernel.released.borrow(), [group(0), PageRange::new(3, 1)]);
    assert_eq!(costs.faults.load(Ordering::Relaxed), 1);
}

#[test]
fn a_writer_that_has_waited_with_another_waits_for_its_own_share_the_next_time() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    // No group is ever free: writers wait for 4 ms for each that they ran.
    let mut answers = throttled(&groups, &costs, 1, 80);
    read(&mut answers, &kernel, 2 * MS, &[(0, 1)]);
    // Writer 1 ran for 2 ms, writer 2 for 4.
    read(&mut answers, &kernel, 4 * MS, &[(512, 1), (513, 2)]);
    assert_eq!(answers.next_due(), Some(12 * MS));
    go_to(&mut answers, &kernel, 12 * MS);
    read(&mut answers, &kernel, 14 * MS, &[(1024, 2)]);
    assert_eq!(answers.next_due(), Some(22 * MS));
    assert_eq!(*kernel.released.borrow(), [group(0), group(1)]);
}

#[test]
fn a_writer_that_joins_others_waits_for_no_more_than_its_share() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    let mut answers = throttled(&groups, &costs, 1, 80);
    read(&mut answers, &kernel, 2 * MS, &[(0, 1)]);
    read(&mut answers, &kernel, 4 * MS, &[(512, 2)]);
    assert_eq!(answers.next_due(), Some(20 * MS));
    read(&mut answers, &kernel, 4 * MS, &[(513, 1)]);
    assert_eq!(answers.next_due(), Some(12 * MS));
    go_to(&mut answers, &kernel, 12 * MS);
    assert_eq!(*kernel.released.borrow(), [group(0), group(1)]);
    assert_eq!(answers.next_due(), None);
    assert_eq!(time(&costs.throttled_ns), 16 * MS);
}

#[test]
fn a_writer_whose_wait_is_interrupted_waits_once() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(Duration::ZERO);
    let mut answers = throttled(&groups, &costs, 51_200, 100);
    read(&mut answers, &kernel, Duration::ZERO, &[(0, 1), (512, 1)]);
    read(&mut answers, &kernel, 5 * MS, &[(513, 1)]);
    go_to(&mut answers, &kernel, 10 * MS);
    assert_eq!(answers.next_due(), None);
    assert_eq!(time(&costs.throttled_ns), 10 * MS);
    read(&mut answers, &kernel, 10 * MS, &[(1024, 1)]);
    assert_eq!(answers.next_due(), Some(20 * MS));
}

#[test]
fn faults_of_one_read_stall_their_writers_from_that_read_on() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(MS);
    let mut answers = Answers::new(&groups, &costs, false);
    let faults = [(0, 1), (512, 2), (1024, 3)];
    read(&mut answers, &kernel, 5 * MS, &faults);
    assert_eq!(costs.faults.load(Ordering::Relaxed), 3);
    // 1 ms, 2 ms and 3 ms.
    assert_eq!(time(&costs.stall_ns), 6 * MS);
    assert_eq!(time(&costs.longest_ns), 3 * MS);
}

#[test]
fn what_a_throttle_has_a_writer_wait_is_not_counted_as_stall() {
    let (groups, costs) = (protected_groups(), Costs::default());
    let kernel = Fake::new(MS);
    let mut answers = throttled(&groups, &costs, 51_200, 100);
    read(&mut answers, &kernel, Duration::ZERO, &[(0, 1)]);
    read(&mut answers, &kernel, MS, &[(512, 1)]);
    go_to(&mut answers, &kernel, 10 * MS);
    assert_eq!(time(&costs.throttled_ns), 9 * MS);
    assert_eq!(time(&costs.stall_ns), 2 * MS);
    assert_eq!(time(&costs.longest_ns), MS);
}
