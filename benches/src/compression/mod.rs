//! Whole moves with compression: the cells of the matrix, and what is measured in them.

mod cells;
mod figures;

pub use cells::{CONTENTS, Cell, Content, DROP, LINKS, LOADS, Link, Load};
pub use figures::{Figures, Medians};
