//! The bookkeeping of groups against a model of a kernel that protects pages.

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const PAGES: u64 = 2048;

/// Pages that the kernel guards, and the memory's and the last reader's versions of each.
struct Model {
    groups: Groups,
    guarded: RefCell<Vec<bool>>,
    memory: Vec<u32>,
    read: Vec<u32>,
    faults: u64,
}

impl Model {
    fn new() -> Self {
        let ram = GuestRam::new(PAGES * PAGE_SIZE).unwrap();
        Self {
            groups: Groups::new(&ram),
            guarded: vec![false; PAGES as usize].into(),
            memory: vec![1; PAGES as usize],
            read: vec![0; PAGES as usize],
            faults: 0,
        }
    }

    fn read(&mut self, range: PageRange, order: Order) {
        let guarded = &self.guarded;
        let protect = |r: PageRange| {
            set(guarded, r, true);
            Ok(())
        };
        self.groups.arm(range, order, protect).unwrap();
        for page in range.frames() {
            self.read[page as usize] = self.memory[page as usize];
        }
    }

    fn write(&mut self, page: u64, grow: bool) {
        if self.guarded.borrow()[page as usize] {
            self.faults += 1;
            let guarded = &self.guarded;
            let lift = |r: PageRange| {
                set(guarded, r, false);
                Ok(())
            };
            let page = PageRange::new(page, 1);
            let group = self.groups.group(page).unwrap();
            self.groups.release(page, group, grow, lift).unwrap();
        }
        assert!(!self.guarded.borrow()[page as usize], "still protected");
        self.memory[page as usize] += 1;
    }

    fn written(&self) -> Vec<PageRange> {
        let mut runs = Vec::new();
        let all = PageRange::new(0, PAGES);
        self.groups.written(all, |r| runs.push(r)).unwrap();
        runs
    }

    fn written_pages(&self) -> u64 {
        self.written().iter().map(|r| r.count).sum()
    }

    fn check(&self, context: &str) {
        let mut written = vec![false; PAGES as usize];
        for run in self.written() {
            written[run.start as usize..run.end() as usize].fill(true);
        }
        for (page, written) in written.into_iter().enumerate() {
            let stale = self.memory[page] != self.read[page];
            assert!(
                !stale || written,
                "{context}: page {page} was written and forgotten"
            );
        }
    }
}

fn set(guarded: &RefCell<Vec<bool>>, range: PageRange, to: bool) {
    guarded.borrow_mut()[range.start as usize..range.end() as usize].fill(to);
}

#[test]
fn no_write_is_forgotten_in_ten_thousand_random_schedules() {
    for seed in 0..10_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        let grow = rng.random();
        for step in 0..30 {
            match rng.random_range(0..8) {
                0..=3 => {
                    let near = rng.random_range(0..PAGES);
                    for page in near..(near + rng.random_range(1..40)).min(PAGES) {
                        model.write(page, grow);
                    }
                }
                4..=6 => {
                    let start = rng.random_range(0..PAGES);
                    let count = rng.random_range(1..=64.min(PAGES - start));
                    let order = Order::from_log2(rng.random_range(0..=MAX_ORDER));
                    model.read(PageRange::new(start, count), order);
                }
                _ => model.groups.begin_pass(),
            }
            if step % 10 == 9 {
                model.check(&format!("seed {seed} step {step}"));
            }
        }
        model.check(&format!("seed {seed}"));
    }
}

#[test]
fn one_write_releases_its_group_and_nothing_else() {
    let mut model = Model::new();
    model.read(PageRange::new(0, PAGES), Order::HUGE);
    assert_eq!(model.written(), []);
    model.write(700, true);
    assert_eq!(model.written(), [PageRange::new(512, 512)]);
    model.write(513, true);
    assert_eq!(model.faults, 1);
}

#[test]
fn a_group_written_in_a_pass_is_not_protected_again_in_it() {
    let mut model = Model::new();
    model.read(PageRange::new(0, 64), Order::HUGE);
    model.write(10, true);
    model.read(PageRange::new(64, 64), Order::HUGE);
    model.write(70, true);
    assert_eq!(model.faults, 1);
    assert_eq!(model.written_pages(), PAGES);
    model.groups.begin_pass();
    model.read(PageRange::new(0, 512), Order::HUGE);
    assert_eq!(model.written_pages(), PAGES - 512);
}

#[test]
fn pages_of_a_group_that_come_later_in_a_pass_are_armed_then() {
    let mut model = Model::new();
    model.read(PageRange::new(0, 64), Order::HUGE);
    assert_eq!(model.written_pages(), PAGES - 64);
    model.read(PageRange::new(64, 448), Order::HUGE);
    assert_eq!(model.written_pages(), PAGES - 512);
}

#[test]
fn a_page_that_came_into_being_is_protected_with_its_group_in_the_next_pass() {
    let mut model = Model::new();
    // Page 5 did not exist: the kernel does not guard it, whatever was asked.
    model.read(PageRange::new(0, 5), Order::HUGE);
    model.guarded.borrow_mut()[5] = false;
    model.groups.begin_pass();
    model.read(PageRange::new(5, 1), Order::HUGE);
    assert!(model.guarded.borrow()[5]);
}

#[test]
fn a_writer_that_goes_through_memory_pays_less_and_less() {
    let mut model = Model::new();
    for start in (0..PAGES).step_by(64) {
        model.read(PageRange::new(start, 64), Order::from_log2(4));
    }
    for page in 0..PAGES {
        model.write(page, true);
    }
    assert!(model.faults < 16, "{} faults for 128 groups", model.faults);
    let mut backward = Model::new();
    backward.read(PageRange::new(0, PAGES), Order::from_log2(4));
    for page in (0..PAGES).rev() {
        backward.write(page, true);
    }
    assert!(backward.faults < 16, "{} backward", backward.faults);
    let mut random = Model::new();
    random.read(PageRange::new(0, PAGES), Order::from_log2(4));
    for page in (0..PAGES).step_by(512) {
        random.write(page, true);
    }
    // Apart from each other, each releases its own group only.
    assert_eq!(random.written_pages(), 4 * 16);
}

#[test]
fn a_write_to_a_page_that_is_writable_releases_nothing_else() {
    let mut model = Model::new();
    model.read(PageRange::new(0, PAGES), Order::from_log2(4));
    model.write(20, false);
    let (page, block) = (PageRange::new(20, 1), PageRange::new(0, 512));
    assert_eq!(model.groups.price(page, block).unwrap(), 0);
    let mut lifted = Vec::new();
    let lift = |r: PageRange| {
        lifted.push(r);
        Ok(())
    };
    let released = model.groups.release(page, block, true, lift).unwrap();
    assert_eq!((released.range, released.pages), (page, 0));
    assert_eq!(lifted, [page]);
    assert_eq!(model.written_pages(), 16);
}

#[test]
fn a_group_that_could_not_be_protected_counts_as_written() {
    let model = Model::new();
    let refuse = |_| Err(io::ErrorKind::PermissionDenied.into());
    let range = PageRange::new(0, 64);
    assert!(model.groups.arm(range, Order::HUGE, refuse).is_err());
    assert_eq!(model.written_pages(), PAGES);
}
