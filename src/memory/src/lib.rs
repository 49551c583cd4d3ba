//! Guest RAM: mapping, checked access, the bitmap of the VMM's own writes, populated ranges.
