//! Virtual machines: KVM, and the process machine for hosts without it.
