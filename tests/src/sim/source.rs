//! The source's driver, simulated: carries out what the core says, and takes its time for it.

use vmferry_protocol::pending::Chunk;
use vmferry_protocol::source::{ChunkStats, SourceEvent, SourceOutput};
use vmferry_protocol::wire::ChunkHeader;
use vmferry_protocol::{PageRange, message::RunState};

use super::check::Violation;
use super::link::Direction;
use super::scenario::{PlantedBug, Side};
use super::world::{Next, PageFrame, World};

/// Bytes of a chunk header on the wire, about.
const HEADER_BYTES: u64 = 60;

impl World<'_> {
    pub(super) fn drive_source(&mut self) -> Result<(), Violation> {
        while let Some(output) = self.source.as_mut().and_then(|s| s.poll_output()) {
            self.carry_out_source(output)?;
        }
        Ok(())
    }

    fn carry_out_source(&mut self, output: SourceOutput) -> Result<(), Violation> {
        let costs = self.s.costs;
        match output {
            SourceOutput::Send(message) => return self.send(Direction::ToDestination, &message),
            SourceOutput::SendChunk(chunk) => return self.protect_and_read(chunk),
            // What it may choose by is not simulated.
            SourceOutput::PeerLoad(_) => {}
            SourceOutput::Throttle { pages_per_second } => {
                self.guest.throttle(pages_per_second);
            }
            SourceOutput::Harvest { pass } => self.after(costs.harvest, Next::Harvest { pass }),
            SourceOutput::Pause => {
                self.request_storage()?;
                self.paused_at = Some(self.now);
                self.rights.active[0] = false;
                if !self.bug(PlantedBug::DoesNotPause) {
                    self.runs = false;
                }
                self.machine_step(Side::Source, costs.pause, Next::Source(SourceEvent::Paused));
            }
            SourceOutput::CancelIo => {
                let jobs = self.cancel_storage()?;
                let done = Next::Source(SourceEvent::IoCancelled { jobs });
                self.machine_step(Side::Source, costs.other, done);
            }
            SourceOutput::SaveState => {
                // Devices write their rings into guest memory when they are saved.
                let gfn = self.s.layout.regions()[0].start;
                self.guest.write(gfn);
                let blob = vec![0x5a; self.s.state_bytes];
                let done = Next::Source(SourceEvent::StateSaved { blob });
                self.machine_step(Side::Source, costs.state, done);
            }
            SourceOutput::Persist(persist) => {
                self.persist(Side::Source, persist, std::time::Duration::ZERO);
            }
            SourceOutput::ResumeGuest { run } => {
                self.note(|| format!("resumed at the source, run {run}"));
                self.guest.stop_tracking();
                self.release_storage(Side::Source)?;
                self.runs = run;
                self.rights.active[0] = true;
                if let Some(at) = self.paused_at {
                    self.blackout = Some(self.now - at);
                }
                self.machine_step(
                    Side::Source,
                    costs.other,
                    Next::Source(SourceEvent::Resumed),
                );
            }
            SourceOutput::Reconnect { after } => {
                self.wire.cut();
                self.after(after + self.s.link.latency, Next::Connect);
            }
            SourceOutput::ForgetVm => {
                if self.rights.active[0] {
                    return Err(Violation::Order("a guest in use is forgotten".to_owned()));
                }
            }
            SourceOutput::Finished(outcome) => {
                self.note(|| format!("source: {outcome:?}"));
                if self.outcome.replace(outcome).is_some() {
                    return Err(Violation::Order("the source finished twice".to_owned()));
                }
                self.stats = self.source.as_ref().map(|s| s.stats().clone());
                self.former_owner_may_be_gone()?;
            }
        }
        Ok(())
    }

    pub(super) fn harvest(&mut self, pass: u32) -> Result<(), Violation> {
        let first = self.harvests == 0;
        self.harvests += 1;
        let (dirty, notifications) = self.guest.harvest(first);
        let times = u32::try_from(notifications).unwrap_or(u32::MAX);
        let stall = self.s.notification * times;
        if self.bug(PlantedBug::ForgetsFinalHarvest) {
            let mut ranges = Vec::new();
            dirty.for_each_run(|r| ranges.push(r));
            self.guest.protect(&ranges);
            if self.paused_at.is_some() {
                let dirty = vmferry_protocol::PageSet::new(&self.s.layout);
                return self.tell_source(SourceEvent::Harvested {
                    dirty,
                    notifications,
                    stall,
                    group_pages: self.s.group_pages.max(1),
                });
            }
        }
        self.note(|| format!("pass {pass}: {} pages", dirty.len()));
        self.tell_source(SourceEvent::Harvested {
            dirty,
            notifications,
            stall,
            group_pages: self.s.group_pages.max(1),
        })
    }

    fn protect_and_read(&mut self, chunk: Chunk) -> Result<(), Violation> {
        for range in &chunk.ranges {
            let before = self.on_their_way.len();
            self.on_their_way.insert(*range);
            if self.on_their_way.len() != before + range.count {
                return Err(Violation::TwiceOnItsWay(range.start));
            }
        }
        self.in_flight.insert(chunk.id, chunk.ranges.clone());
        // One chunk may begin just below the limit.
        if self.on_their_way.len() > self.s.window_pages + 64 {
            return Err(Violation::Window(self.on_their_way.len()));
        }
        let early = if self.bug(PlantedBug::ReadsBeforeProtecting) {
            Some(self.guest.read(&chunk.ranges))
        } else {
            self.guest.protect(&chunk.ranges);
            None
        };
        self.after(self.s.costs.read, Next::Read { chunk, early });
        Ok(())
    }

    pub(super) fn read_and_send(
        &mut self,
        chunk: Chunk,
        early: Option<Vec<(u64, u32)>>,
    ) -> Result<(), Violation> {
        let newer = match early {
            Some(newer) => {
                self.guest.protect(&chunk.ranges);
                newer
            }
            None => self.guest.read(&chunk.ranges),
        };
        let ranges = self.changed(&chunk.ranges, &newer);
        let considered: u64 = chunk.ranges.iter().map(|r| r.count).sum();
        let (zero, data) = split(&ranges);
        let pages = |ranges: &[PageRange]| ranges.iter().map(|r| r.count).sum::<u64>();
        let (pages_zero, pages_data) = (pages(&zero), pages(&data));
        self.pages_sent += pages_zero + pages_data;
        let pages_unchanged = considered - pages_zero - pages_data;
        self.pages_unchanged += pages_unchanged;
        let mut stats = ChunkStats {
            chunk: chunk.id,
            bytes_wire: 0,
            bytes_encoded: 0,
            codec: 1,
            pages_data,
            pages_zero,
            pages_unchanged,
            read: self.s.costs.read,
            read_ran: self.s.costs.read,
        };
        if pages_unchanged == considered {
            self.arrived(chunk.id);
            return self.tell_source(SourceEvent::ChunkUnchanged(stats));
        }
        let bytes = if self.s.encode {
            let content = if data.is_empty() {
                Vec::new()
            } else {
                vec![0xc5; 16]
            };
            let header = ChunkHeader {
                chunk: chunk.id,
                pass: chunk.pass,
                codec: 1,
                zero,
                data,
                encoded_len: content.len() as u32,
            };
            let head = header
                .encode(&content)
                .map_err(|e| Violation::Order(e.to_string()))?;
            Some((head, content))
        } else {
            None
        };
        let bytes_encoded = pages_data * self.s.page_bytes;
        let bytes_wire = bytes_encoded + HEADER_BYTES;
        let frame = PageFrame {
            chunk: chunk.id,
            newer: newer_of(newer, &ranges),
            ranges,
            bytes,
        };
        let stream = self.rng.below(u64::from(self.s.streams.max(1))) as usize;
        let jitter = std::time::Duration::from_nanos(self.rng.below(50_000));
        let (left, arrives) = self.wire.page(self.now, stream, bytes_wire, jitter);
        (stats.bytes_wire, stats.bytes_encoded) = (bytes_wire, bytes_encoded);
        self.at(left, Next::Source(SourceEvent::ChunkSent(stats)));
        if self.wire.up {
            let epoch = self.wire.epoch;
            self.at(arrives, Next::Page { epoch, frame });
        }
        Ok(())
    }

    /// The pages that differ from what was sent last, where that is compared; and remembers them.
    fn changed(&mut self, ranges: &[PageRange], newer: &[(u64, u32)]) -> Vec<PageRange> {
        if self.s.group_pages < 2 {
            return ranges.to_vec();
        }
        let newer: std::collections::BTreeMap<u64, u32> = newer.iter().copied().collect();
        let mut changed: Vec<PageRange> = Vec::new();
        for gfn in ranges.iter().flat_map(PageRange::frames) {
            let version = newer.get(&gfn).copied().unwrap_or(1);
            if self.sent.insert(gfn, version) == Some(version) {
                continue;
            }
            match changed.last_mut() {
                Some(last) if last.end() == gfn => last.count += 1,
                _ => changed.push(PageRange::new(gfn, 1)),
            }
        }
        changed
    }

    /// The destination has said so: these pages may travel again.
    pub(super) fn arrived(&mut self, chunk: vmferry_protocol::ids::ChunkId) {
        for range in self.in_flight.remove(&chunk).unwrap_or_default() {
            self.on_their_way.remove(range);
        }
    }

    pub(super) fn ran_before(&self) -> bool {
        self.s.run_state == RunState::Running
    }
}

/// The versions of the pages of `ranges`.
fn newer_of(mut newer: Vec<(u64, u32)>, ranges: &[PageRange]) -> Vec<(u64, u32)> {
    newer.retain(|(gfn, _)| ranges.iter().any(|r| r.contains(*gfn)));
    newer
}

/// Blocks of eight pages of which the last is zero, so that chunks have both kinds.
fn split(ranges: &[PageRange]) -> (Vec<PageRange>, Vec<PageRange>) {
    let (mut zero, mut data) = (Vec::new(), Vec::new());
    for range in ranges {
        let mut at = range.start;
        while at < range.end() {
            let in_block = at % 8;
            let (list, n) = if in_block == 7 {
                (&mut zero, 1)
            } else {
                (&mut data, (7 - in_block).min(range.end() - at))
            };
            list.push(PageRange::new(at, n));
            at += n;
        }
    }
    (zero, data)
}
