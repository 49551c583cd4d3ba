//! Compression of a migration: what its compressors share.
//!
//! The choice itself is the selector's ([`vmferry_codecs::selector`]); here it gets what it asks
//! for: how the link does ([`Link`]), what processor time compressors get, and what each chunk
//! came to. What was chosen, why, and what it cost is counted for the report ([`tally`]).

mod link;
pub(crate) mod tally;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_codecs::delta::{self, Cache};
use vmferry_codecs::selector::{Choice, Conditions, ReceiverMeter, Selector, Why};
use vmferry_codecs::{CodecChoice, CodecError, CodecId, Content, Encoders, PAGE};

pub use link::Link;
use tally::{Sample, Tally, Turn};

use crate::processors::pool::Gate;
use crate::processors::priority::{WorkTimer, Worked};

/// Weight of the latest chunk in what compressors get of a processor, and take for a chunk.
const LATEST: f64 = 0.1;
/// A chunk is sent as a difference where an earlier version of at least this part of its pages is kept.
const KNOWN_PART: usize = 2;
/// Share of the guest's processors that compressing may take from others while none is idle.
const TAKEN_AT_MOST: f64 = 0.03;

/// What a migration's compressors share.
#[derive(Debug)]
pub struct Compression {
    how: CodecChoice,
    link: Arc<Link>,
    gate: Arc<Gate>,
    sent: Cache,
    /// Processors that may be taken from others.
    may_take: f64,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    selector: Selector,
    tally: Tally,
    receiver: ReceiverMeter,
    share: f64,
    /// Seconds that a chunk takes a compressor, and those of them in which it compresses.
    chunk: f64,
    compressing: f64,
}

/// Working memory of a compressor.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    encoders: Encoders,
    delta: delta::Encoder,
    bases: Vec<u8>,
}

/// A chunk's pages with content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages<'a> {
    pub(crate) pass: u32,
    /// They will not be sent again.
    pub(crate) last: bool,
    pub(crate) gfns: &'a [u64],
    pub(crate) bytes: &'a [u8],
}

impl Compression {
    /// For so many threads, with so many bytes for versions of pages that were sent before, for a
    /// guest of so many vCPUs.
    #[must_use]
    pub fn new(how: CodecChoice, link: Arc<Link>, threads: usize, kept: usize, vcpus: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            how,
            link,
            may_take: TAKEN_AT_MOST * f64::from(vcpus).min(processors as f64),
            gate: Arc::new(Gate::new(threads)),
            sent: Cache::new(kept),
            shared: Mutex::new(Shared {
                selector: Selector::default(),
                tally: Tally::default(),
                receiver: ReceiverMeter::default(),
                share: 1.0,
                chunk: 0.0,
                compressing: 0.0,
            }),
        }
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The destination tells how much of the time its page streams want a processor, 0 to 1.
    pub(crate) fn receiver(&self, wanted: f64) {
        let now = self.link.now();
        self.lock().receiver.told(now, wanted);
    }

    /// What was counted, so far.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// A compressor has done a chunk of a pass, of which something is sent or not.
    pub(crate) fn turn(&self, pass: u32, turn: Turn, sent: bool) {
        let mut shared = self.lock();
        if sent {
            shared.chunk += LATEST * (turn.worked.as_secs_f64() - shared.chunk);
        }
        shared.tally.turn(pass, turn);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that are zero now: no difference to an earlier version of them is sent any more.
    pub(crate) fn zero(&self, pass: u32, gfns: impl Iterator<Item = u64>) {
        if pass > 1 {
            gfns.for_each(|gfn| self.sent.forget(gfn));
        }
    }

    /// Appends `pages`, encoded, to `out`, if that is shorter; [`CodecId::Raw`] where it is not.
    pub(crate) fn encode(
        &self,
        pages: Pages<'_>,
        space: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<CodecId, CodecError> {
        let content = Content::of(pages.bytes);
        let (mut choice, at) = self.choose(content, pages.bytes.len());
        let start = out.len();
        // Making one is not what using it takes.
        space.encoders.of(choice.codec)?;
        let mut timer = WorkTimer::start();
        let codec = if self.difference(pages, (content, choice), space, out)? {
            choice.why = Why::Difference;
            CodecId::Delta
        } else {
            // What was tried before is not this codec's cost.
            let tried = std::mem::replace(&mut timer, WorkTimer::start()).worked();
            self.lock().selector.charge(tried.ran);
            let encoder = space.encoders.of(choice.codec)?;
            match encoder.encode(pages.bytes, out)? {
                true => encoder.id(),
                false => CodecId::Raw,
            }
        };
        let worked = timer.worked();
        let again = pages.pass > 1 && !pages.last;
        if again && self.how == CodecChoice::Auto {
            for (&gfn, page) in pages.gfns.iter().zip(pages.bytes.chunks_exact(PAGE)) {
                self.sent.put(pages.pass, gfn, page);
            }
        }
        let encoded = match codec {
            CodecId::Raw => pages.bytes.len(),
            _ => out.len() - start,
        };
        let chunk = Sample {
            content,
            choice,
            at,
            codec,
            plain: pages.bytes.len(),
            encoded,
            processor: worked.ran,
        };
        self.learn(pages.pass, chunk, worked);
        Ok(codec)
    }

    /// The choice, and what it rests on where there was one.
    fn choose(&self, content: Content, bytes: usize) -> (Choice, Option<Conditions>) {
        if let CodecChoice::Fixed(codec) = self.how {
            let choice = Choice {
                codec,
                why: Why::Fixed,
                cost: 0.0,
                cost_raw: 0.0,
                link_price: 0.0,
            };
            return (choice, None);
        }
        let (now, bytes_per_second, fill) = self.link.state();
        let room = self.gate.room();
        let mut shared = self.lock();
        let conditions = Conditions {
            now,
            bytes_per_second,
            fill,
            compressors: room.compressors,
            beside: Duration::from_secs_f64((shared.chunk - shared.compressing).max(0.0)),
            share: shared.share,
            spare: room.spare,
            may_take: self.may_take,
            receiver: shared.receiver.behind(),
        };
        let choice = shared.selector.choose(content, bytes, &conditions);
        (choice, Some(conditions))
    }

    /// Appends the difference to what the destination has, where that is known of enough pages,
    /// and shorter than what the chosen codec is expected to make.
    fn difference(
        &self,
        pages: Pages<'_>,
        (content, choice): (Content, Choice),
        space: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<bool, CodecError> {
        if pages.pass == 1 || self.how != CodecChoice::Auto {
            return Ok(false);
        }
        space.bases.resize(pages.bytes.len(), 0);
        let places = space.bases.chunks_exact_mut(PAGE);
        let known: Vec<bool> = (pages.gfns.iter().zip(places))
            .map(|(&gfn, place)| self.sent.get(gfn, place))
            .collect();
        let count = known.iter().filter(|known| **known).count();
        if count == 0 || count * KNOWN_PART < known.len() {
            return Ok(false);
        }
        let bases: Vec<Option<&[u8]>> = (known.iter())
            .zip(space.bases.chunks_exact(PAGE))
            .map(|(known, base)| known.then_some(base))
            .collect();
        let start = out.len();
        let rest = space.encoders.of(choice.codec)?;
        if !space.delta.encode(pages.bytes, &bases, rest, out)? {
            return Ok(false);
        }
        let known = self.lock().selector.known(content, choice.codec);
        let expected = known.map_or(1.0, |(_, ratio)| ratio) * pages.bytes.len() as f64;
        let shorter = ((out.len() - start) as f64) < expected;
        if !shorter {
            out.truncate(start);
        }
        Ok(shorter)
    }

    fn learn(&self, pass: u32, chunk: Sample, worked: Worked) {
        let now = self.link.now();
        let mut shared = self.lock();
        if chunk.choice.why == Why::Difference {
            shared.selector.charge(worked.ran);
        } else {
            let shrunk = (chunk.plain, chunk.encoded);
            let (content, codec) = (chunk.content, chunk.choice.codec);
            shared
                .selector
                .learn(content, codec, now, shrunk, worked.ran);
        }
        let took = worked.took.as_secs_f64();
        shared.compressing += LATEST * (took - shared.compressing);
        if worked.took > Duration::ZERO {
            let share = worked.ran.as_secs_f64() / took;
            // What it got while it did next to nothing says little.
            let weight = LATEST * (worked.ran.as_secs_f64() / 100e-6).min(1.0);
            shared.share += weight * (share.min(1.0) - shared.share);
        }
        shared.tally.count(pass, chunk);
    }
}
