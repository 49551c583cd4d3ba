//! What a second of the link is worth beside one of the compressors: the dual price of the linear
//! program in which both carry a migration together.
//!
//! Reckoned from what is known of codecs, content and link, it is where compressors and link would
//! take equally long. What is known is never quite right, so the queue has as much to say. By
//! itself the queue would say the same in the end, but it runs empty and full again with every
//! moment in which a compressor or the destination gets no processor, and a price that follows it
//! goes to and fro between codecs that are worse in turn than the one in between.

use crate::Content;

/// Content that came before so many bytes counts for 1/e.
const MEMORY: f64 = (4 << 20) as f64;
/// The balance is reckoned anew after so many chunks.
const EVERY: u64 = 8;
/// Steps to find it: to a part in 256.
const STEPS: u32 = 8;
/// Or where the link is so many times as fast or slow as it was reckoned with.
const OTHER_LINK: f64 = 1.25;
/// How much of the price the queue says; the rest is reckoned.
const QUEUE: f64 = 0.5;

/// What compresses more, and by itself takes at most so many times what a mixture with something
/// quicker would, is not mixed: the queue says too little for so fine a mixture, and bytes that are
/// sent in vain are lost.
const WORTH_MIXING: f64 = 1.25;

/// Remembers what was sent of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Price {
    /// Bytes of each kind, of late.
    sent: [f64; Content::ALL.len()],
    chunks: u64,
    reckoned: u64,
    link: f64,
    balance: Balance,
}

/// Where compressors and link would take equally long.
#[derive(Clone, Copy, Debug, Default)]
struct Balance {
    price: f64,
    /// The price is at least this, however empty the queue is.
    least: f64,
}

impl Price {
    /// A chunk of that kind is to be sent.
    pub(super) fn note(&mut self, content: Content, bytes: f64) {
        let fade = (-bytes / MEMORY).exp();
        self.sent.iter_mut().for_each(|sent| *sent *= fade);
        self.sent[content as usize] += bytes;
        self.chunks += 1;
    }

    /// The price, 0 to 1, with a link of so many bytes a second, and by how full the queue is. Where
    /// no processor is `idle` the queue may lower it however far. `loads` says for how long, in
    /// seconds, a byte of that kind would keep the link and the compressors busy at a price.
    pub(super) fn of(
        &mut self,
        (link, fill): (f64, f64),
        idle: bool,
        loads: impl Fn(Content, f64) -> (f64, f64),
    ) -> f64 {
        let same = (self.link / OTHER_LINK..self.link * OTHER_LINK).contains(&link);
        if !same || self.chunks >= self.reckoned + EVERY {
            self.balance = self.balanced(loads);
            (self.reckoned, self.link) = (self.chunks, link);
        }
        let price = QUEUE * fill + (1.0 - QUEUE) * self.balance.price;
        match idle {
            true => price.max(self.balance.least),
            false => price,
        }
    }

    /// Where link and compressors would take equally long for what was sent of late; 1 where the
    /// link would take longer at any price.
    fn balanced(&self, loads: impl Fn(Content, f64) -> (f64, f64)) -> Balance {
        let all: f64 = self.sent.iter().sum();
        let told = || Content::ALL.into_iter().zip(self.sent);
        let loads = |price: f64| {
            let each = told().filter(|(_, sent)| *sent > all * 0.01);
            each.map(|(content, sent)| (sent / all, loads(content, price)))
                .fold((0.0, 0.0), |sum, (part, (link, compressors))| {
                    (sum.0 + part * link, sum.1 + part * compressors)
                })
        };
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..STEPS {
            let between = (low + high) / 2.0;
            let (link, compressors) = loads(between);
            match link > compressors {
                true => low = between,
                false => high = between,
            }
        }
        let (below, above) = (loads(low), loads(high));
        let alone = above.0.max(above.1) <= mixed(below, above) * WORTH_MIXING;
        Balance {
            price: high,
            least: if alone { high } else { 0.0 },
        }
    }
}

/// How long both would take if what takes the link longer and what takes compressors longer were
/// mixed so that both take equally long.
fn mixed(below: (f64, f64), above: (f64, f64)) -> f64 {
    let (spare, lacks) = ((below.0 - below.1).max(0.0), (above.1 - above.0).max(0.0));
    match spare + lacks > 0.0 {
        true => below.0 + (above.0 - below.0) * spare / (spare + lacks),
        false => below.0.max(below.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One codec halves the bytes, for three times what the link saves.
    fn loads(_: Content, price: f64) -> (f64, f64) {
        match price > 0.75 {
            true => (0.5, 1.5),
            false => (1.0, 0.0),
        }
    }

    fn price() -> Price {
        let mut price = Price::default();
        price.note(Content::Text, 1e6);
        price
    }

    #[test]
    fn it_is_where_both_would_take_equally_long() {
        let balanced = price().of((1e9, 0.75), true, loads);
        assert!((balanced - 0.75).abs() < 0.01, "{balanced}");
        let slow = |content, price| (loads(content, price).0 * 10.0, loads(content, price).1);
        assert!(price().of((1e8, 1.0), true, slow) > 0.99);
    }

    #[test]
    fn the_queue_has_as_much_to_say() {
        let mut price = price();
        let empty = price.of((1e9, 0.0), true, loads);
        let full = price.of((1e9, 1.0), true, loads);
        assert!((empty - 0.375).abs() < 0.01 && (full - 0.875).abs() < 0.01);
    }

    #[test]
    fn nothing_is_mixed_that_is_as_good_by_itself() {
        // By itself the codec takes compressors a twentieth longer than the link.
        let nearly = |_: Content, price: f64| match price > 0.75 {
            true => (0.5, 0.525),
            false => (1.0, 0.0),
        };
        let empty = price().of((1e9, 0.0), true, nearly);
        assert!(empty > 0.75, "{empty}");
        let (empty, full) = (
            price().of((1e9, 0.0), true, loads),
            price().of((1e9, 1.0), true, loads),
        );
        assert!(empty < 0.75 && full > 0.75, "{empty} {full}");
    }

    #[test]
    fn a_link_that_changes_much_is_reckoned_with_at_once() {
        let mut price = price();
        price.of((1e9, 1.0), true, loads);
        let slow = |content, price| (loads(content, price).0 * 10.0, loads(content, price).1);
        assert!(price.of((0.9e9, 1.0), true, slow) < 0.9);
        assert!(price.of((1e8, 1.0), true, slow) > 0.99);
    }
}
