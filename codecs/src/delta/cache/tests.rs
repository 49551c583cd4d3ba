//! Never a version older than the last, whatever the size and the order.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

fn page(version: u32) -> Vec<u8> {
    version.to_le_bytes().repeat(PAGE / 4)
}

fn version(cache: &Cache, gfn: u64) -> Option<u32> {
    let mut out = page(u32::MAX);
    if !cache.get(gfn, &mut out) {
        assert_eq!(out, page(u32::MAX), "what is not kept is not written");
        return None;
    }
    let version = u32::from_le_bytes([out[0], out[1], out[2], out[3]]);
    assert_eq!(out, page(version), "pieces of two versions");
    Some(version)
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64),
    Forget(u64),
    Pass(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gfn = || prop_oneof![0u64..40, (0u64..40).prop_map(|n| (1 << 40) + n * 512)];
    let step = prop_oneof![
        12 => gfn().prop_map(Step::Put),
        3 => gfn().prop_map(Step::Forget),
        1 => (1u32..4).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn what_is_kept_is_what_was_last_sent(slots in 0usize..100, steps in steps()) {
        let cache = Cache::new(slots * SLOT_BYTES);
        let mut sent: HashMap<u64, Option<u32>> = HashMap::new();
        let (mut pass, mut versions) = (2, 0);
        let stale = |sent: &HashMap<u64, Option<u32>>, gfn: u64| {
            let kept = version(&cache, gfn);
            kept.is_some() && sent.get(&gfn) != Some(&kept)
        };
        for step in steps {
            match step {
                Step::Put(gfn) => {
                    prop_assert!(!stale(&sent, gfn));
                    versions += 1;
                    cache.put(pass, gfn, &page(versions));
                    sent.insert(gfn, Some(versions));
                    prop_assert!(!stale(&sent, gfn));
                }
                Step::Forget(gfn) => {
                    cache.forget(gfn);
                    sent.insert(gfn, None);
                    prop_assert_eq!(version(&cache, gfn), None);
                }
                Step::Pass(n) => pass += n,
            }
            prop_assert!(cache.bytes() <= slots * SLOT_BYTES);
        }
        for gfn in sent.keys() {
            prop_assert!(!stale(&sent, *gfn));
        }
    }
}

#[test]
fn of_no_size_it_keeps_nothing() {
    for bytes in [0, 1, SLOT_BYTES - 1] {
        let cache = Cache::new(bytes);
        cache.put(2, 7, &page(1));
        assert_eq!(version(&cache, 7), None);
        assert_eq!(cache.bytes(), 0);
    }
}

#[test]
fn where_there_is_room_every_page_is_kept() {
    let cache = Cache::new(4 << 20);
    for gfn in 0..500 {
        cache.put(2, gfn, &page(gfn as u32));
    }
    assert!((0..500).all(|gfn| version(&cache, gfn) == Some(gfn as u32)));
    assert_eq!(cache.bytes(), 500 * SLOT_BYTES);
    for gfn in 0..500 {
        cache.forget(gfn);
        cache.put(3, gfn + 500, &page(1));
    }
    assert!((0..500).all(|gfn| version(&cache, gfn).is_none()));
    assert!(cache.bytes() <= 4 << 20);
}

fn kept(cache: &Cache, gfns: std::ops::Range<u64>) -> HashSet<u64> {
    gfns.filter(|gfn| version(cache, *gfn).is_some()).collect()
}

#[test]
fn pages_not_put_lately_make_room_and_others_do_not() {
    let full = 10 * SHARDS;
    let cache = Cache::new(full * SLOT_BYTES);
    let all = |pass, gfns: std::ops::Range<u64>| gfns.for_each(|g| cache.put(pass, g, &page(pass)));
    // Many times what there is room for.
    all(2, 0..1000);
    let first = kept(&cache, 0..1000);
    assert_eq!(first.len(), full);
    // Again, and others besides, while the first are recent.
    all(3, 0..1000);
    all(4, 1000..2000);
    assert_eq!(kept(&cache, 0..2000), first);
    assert!(first.iter().all(|gfn| version(&cache, *gfn) == Some(3)));
    // In pass 5 they are not any more, but for one that is put again.
    let again = *first.iter().next().unwrap();
    cache.put(5, again, &page(5));
    all(5, 1000..2000);
    let second = kept(&cache, 0..2000);
    assert_eq!(second.len(), full);
    assert!(second.iter().all(|&gfn| gfn >= 1000 || gfn == again));
    assert_eq!(cache.bytes(), full * SLOT_BYTES);
}

#[test]
fn what_is_no_page_is_not_kept_and_not_copied() {
    let cache = Cache::new(1 << 20);
    cache.put(2, 7, &page(1));
    assert!(!cache.get(7, &mut [0; 100]));
    cache.put(2, 7, &[1; 100]);
    assert_eq!(version(&cache, 7), None);
}

#[test]
fn threads_with_pages_of_their_own_do_not_disturb_one_another() {
    let cache = Cache::new(200 * SLOT_BYTES);
    let hits = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (cache, hits) = (&cache, &hits);
            scope.spawn(move || {
                for pass in 2..12 {
                    for n in 0..100 {
                        let gfn = n * 4 + thread;
                        let was = version(cache, gfn);
                        let last = (pass > 2 && n % 7 != 0).then(|| pass - 1 + gfn as u32 * 100);
                        assert!(was.is_none() || was == last);
                        hits.fetch_add(u32::from(was.is_some()), Ordering::Relaxed);
                        if n % 7 == 0 {
                            cache.forget(gfn);
                        } else {
                            cache.put(pass, gfn, &page(pass + gfn as u32 * 100));
                        }
                    }
                }
            });
        }
    });
    assert!(hits.into_inner() > 0);
    assert!(cache.bytes() <= 200 * SLOT_BYTES);
}
