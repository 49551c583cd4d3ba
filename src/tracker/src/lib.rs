//! Dirty trackers: which pages did anybody write since they were last read.
