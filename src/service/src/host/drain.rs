//! Which VM of a drain goes where, and when. Pure.

/// How a VM fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fare {
    /// Its turn has not come, or it is to be tried with another host.
    Waits,
    /// It is being moved.
    Moves,
    /// Nothing more is done for it.
    Over,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The VM is there.
    Arrived,
    /// The other host would not have it, or could not be reached: nothing was begun.
    Refused,
    /// It was begun, and went wrong; or somebody cancelled it.
    Stayed,
}

#[derive(Clone, Debug)]
struct Item {
    fare: Fare,
    /// Targets that have refused it.
    refused: Vec<usize>,
    target: Option<usize>,
}

/// A drain.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    targets: usize,
    parallel: usize,
    items: Vec<Item>,
    /// The target that comes next.
    turn: usize,
    cancelled: bool,
}

impl Plan {
    /// Of `vms` VMs to `targets` hosts, `parallel` at once; both are 1 at least.
    pub(super) fn new(vms: usize, targets: usize, parallel: usize) -> Self {
        let item = Item {
            fare: Fare::Waits,
            refused: Vec::new(),
            target: None,
        };
        Self {
            targets: targets.max(1),
            parallel: parallel.max(1),
            items: vec![item; vms],
            turn: 0,
            cancelled: false,
        }
    }

    /// A VM is being moved already, by whomever; to which target, if it is one of these.
    pub(super) fn moves_to(&mut self, item: usize, target: Option<usize>) {
        self.items[item].fare = Fare::Moves;
        self.items[item].target = target;
    }

    /// Nothing more is to be done for a VM.
    pub(super) fn over(&mut self, item: usize) {
        self.items[item].fare = Fare::Over;
    }

    /// The next move: which VM, to which target. It counts as begun.
    pub(super) fn begin(&mut self) -> Option<(usize, usize)> {
        let moving = self.items.iter().filter(|i| i.fare == Fare::Moves).count();
        if self.cancelled || moving >= self.parallel {
            return None;
        }
        let at = self.items.iter().position(|i| i.fare == Fare::Waits)?;
        let item = &mut self.items[at];
        let from = self.turn;
        let in_turn = (0..self.targets).map(|n| (from + n) % self.targets);
        // There is one that has not refused, as it would be over otherwise.
        let target = in_turn.into_iter().find(|t| !item.refused.contains(t))?;
        item.fare = Fare::Moves;
        item.target = Some(target);
        self.turn = (target + 1) % self.targets;
        Some((at, target))
    }

    /// A move has ended.
    pub(super) fn ended(&mut self, item: usize, how: Ended) {
        let targets = self.targets;
        let item = &mut self.items[item];
        if let (Ended::Refused, Some(target)) = (how, item.target.take()) {
            item.refused.push(target);
            if item.refused.len() < targets && !self.cancelled {
                item.fare = Fare::Waits;
                return;
            }
        }
        item.fare = Fare::Over;
    }

    /// Nothing more is begun. Returns what is under way.
    pub(super) fn cancel(&mut self) -> Vec<usize> {
        self.cancelled = true;
        let mut moving = Vec::new();
        for (at, item) in self.items.iter_mut().enumerate() {
            match item.fare {
                Fare::Waits => item.fare = Fare::Over,
                Fare::Moves => moving.push(at),
                Fare::Over => {}
            }
        }
        moving
    }

    /// How an item fares.
    pub(super) fn fare(&self, item: usize) -> Fare {
        self.items[item].fare
    }

    /// Whether nothing more will happen.
    pub(super) fn is_over(&self) -> bool {
        self.items.iter().all(|i| i.fare == Fare::Over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_move_at_once_and_targets_take_turns() {
        let mut plan = Plan::new(4, 2, 3);
        assert_eq!(plan.begin(), Some((0, 0)));
        assert_eq!(plan.begin(), Some((1, 1)));
        assert_eq!(plan.begin(), Some((2, 0)));
        assert_eq!(plan.begin(), None);
        plan.ended(1, Ended::Arrived);
        assert_eq!(plan.begin(), Some((3, 1)));
        for item in [0, 2, 3] {
            assert!(!plan.is_over());
            plan.ended(item, Ended::Arrived);
        }
        assert!(plan.is_over());
        assert!(Plan::new(0, 1, 1).is_over());
    }

    #[test]
    fn one_that_stays_does_not_keep_the_others() {
        let mut plan = Plan::new(2, 2, 1);
        assert_eq!(plan.begin(), Some((0, 0)));
        plan.ended(0, Ended::Stayed);
        assert_eq!(plan.begin(), Some((1, 1)));
        plan.ended(1, Ended::Arrived);
        assert!(plan.is_over());
    }

    #[test]
    fn every_target_is_asked_before_a_vm_is_given_up() {
        let mut plan = Plan::new(1, 3, 1);
        for target in 0..3 {
            assert_eq!(plan.begin(), Some((0, target)));
            plan.ended(0, Ended::Refused);
        }
        assert_eq!(plan.begin(), None);
        assert_eq!(plan.fare(0), Fare::Over);
        assert!(plan.is_over());
    }

    #[test]
    fn a_cancelled_drain_begins_nothing_and_tells_what_moves() {
        let mut plan = Plan::new(3, 2, 1);
        assert_eq!(plan.begin(), Some((0, 0)));
        assert_eq!(plan.cancel(), [0]);
        assert_eq!(plan.begin(), None);
        assert!(!plan.is_over());
        plan.ended(0, Ended::Refused);
        assert!(plan.is_over());
    }

    #[test]
    fn what_is_over_is_not_begun() {
        let mut plan = Plan::new(2, 1, 1);
        plan.over(0);
        assert_eq!(plan.begin(), Some((1, 0)));
        plan.over(1);
        assert!(plan.is_over());
    }

    #[test]
    fn what_moves_already_and_is_refused_is_tried_with_the_next() {
        let mut plan = Plan::new(1, 2, 1);
        plan.moves_to(0, Some(0));
        plan.ended(0, Ended::Refused);
        assert_eq!(plan.begin(), Some((0, 1)));
    }

    #[test]
    fn what_moves_already_counts() {
        let mut plan = Plan::new(2, 1, 1);
        plan.moves_to(1, None);
        assert_eq!(plan.begin(), None);
        plan.ended(1, Ended::Arrived);
        assert_eq!(plan.begin(), Some((0, 0)));
    }
}
