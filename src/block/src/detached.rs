//! What outlives a backend that is dropped with operations in flight.

/// Has `finish` see to `parts` in a thread of its own: memory and locks must outlive what is in
/// flight. Without a thread they stay for good, which is better than to be given back early.
pub(crate) fn finish_elsewhere<T: Send + 'static>(
    name: &str,
    parts: T,
    finish: impl FnOnce(T) + Send + 'static,
) {
    let parts = std::mem::ManuallyDrop::new(parts);
    let thread = std::thread::Builder::new().name(name.to_owned());
    let spawned = thread.spawn(move || finish(std::mem::ManuallyDrop::into_inner(parts)));
    if let Err(e) = spawned {
        tracing::error!(
            "no thread for {name} ({e}): a disk's memory and its lock stay until this process ends"
        );
    }
}
