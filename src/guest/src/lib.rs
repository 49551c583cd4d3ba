//! Guest workloads: the code a test guest runs, and the payload built from it.
