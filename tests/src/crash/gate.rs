//! A gate at one point: the first thread that comes there stands until it is told to go on.

use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};

use super::Point;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    Standing,
    Open,
}

/// See the module's documentation.
pub(super) struct Gate {
    point: Option<Point>,
    stage: Mutex<Stage>,
    changed: Condvar,
    tell: Box<dyn Fn(Point) + Send + Sync>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({:?})", self.point)
    }
}

impl Gate {
    /// A gate at `point`; `tell` is called when somebody stands there.
    pub(super) fn new(point: Option<Point>, tell: impl Fn(Point) + Send + Sync + 'static) -> Self {
        Self {
            point,
            stage: Mutex::new(Stage::Closed),
            changed: Condvar::new(),
            tell: Box::new(tell),
        }
    }

    /// This thread is at `point`.
    pub(super) fn at(&self, point: Point) {
        if self.point != Some(point) {
            return;
        }
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage != Stage::Closed {
            return;
        }
        *stage = Stage::Standing;
        (self.tell)(point);
        let standing = |stage: &mut Stage| *stage == Stage::Standing;
        drop(self.changed.wait_while(stage, standing));
    }

    /// Whoever stands there goes on, and nobody stands there again.
    pub(super) fn open(&self) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Open;
        self.changed.notify_all();
    }
}
