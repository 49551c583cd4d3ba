//! From what the core counted to the report.

use std::time::Duration;

use vmferry_codecs::CodecId;
use vmferry_machine::{HeldIo, Machine};
use vmferry_protocol::PAGE_SIZE;
use vmferry_protocol::message::AbortCode;
use vmferry_protocol::policy::Weighed;
use vmferry_protocol::source::{Outcome, PassStats, SourceStats};
use vmferry_tracker::NotificationCosts;

use super::SourceOptions;
use crate::clock::Clock;
use crate::compression::tally::{Sample, Tally, Turn, Used};
use crate::report::{
    BlackoutBreakdown, ChoiceReport, CodecReport, CompressorTimes, DecisionReport, GuestReport,
    IoReport, MigrationReport, NotificationReport, PassReport, ReportOutcome, timeline,
};

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn codec(used: Used) -> CodecReport {
    CodecReport {
        chunks: used.chunks,
        pages: used.plain / PAGE_SIZE,
        bytes: used.encoded,
        ratio: used.encoded as f64 / used.plain.max(1) as f64,
        processor_ms: ms(used.processor),
    }
}

fn choice(sample: &Sample) -> Option<ChoiceReport> {
    let at = sample.at?;
    let us = |seconds: f64| seconds * 1e6;
    Some(ChoiceReport {
        at_ms: ms(at.now),
        codec: sample.codec_name(),
        why: sample.choice.why.name().to_owned(),
        content: sample.content.name().to_owned(),
        pages: sample.plain as u64 / PAGE_SIZE,
        bytes: sample.encoded as u64,
        processor_us: us(sample.processor.as_secs_f64()),
        cost_us: us(sample.choice.cost),
        cost_raw_us: us(sample.choice.cost_raw),
        link_mbit: at.bytes_per_second.map(|rate| rate * 8e-6),
        queue: at.fill,
        link_price: sample.choice.link_price,
        beside_us: us(at.beside.as_secs_f64()),
        compressors: at.compressors as u64,
        share: at.share,
        spare: at.spare,
        receiver: at.receiver,
    })
}

fn pass(p: &PassStats, tally: &Tally) -> PassReport {
    let codecs = tally.codecs(p.pass);
    let mut sampled: Vec<_> = tally.choices(p.pass).iter().filter_map(choice).collect();
    // Compressors tell when they have done what they chose to do.
    sampled.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    PassReport {
        pass: p.pass,
        began_ms: ms(p.began),
        duration_ms: ms(p.duration),
        pages_considered: p.pages_considered,
        pages_sent: p.pages_data,
        pages_unchanged: p.pages_unchanged,
        pages_deferred: p.pages_deferred,
        pages_hot: p.pages_hot,
        notifications: p.notifications,
        read_ms: ms(p.read_ran),
        compressors: compressors(tally.turns(p.pass)),
        codecs: codecs
            .map(|(c, used)| (c.to_owned(), codec(used)))
            .collect(),
        choices: tally
            .reasons(p.pass)
            .map(|(why, n)| (why.to_owned(), n))
            .collect(),
        sampled,
        bytes_wire: p.bytes_wire,
        r#final: p.paused,
    }
}

fn compressors(turn: Turn) -> CompressorTimes {
    CompressorTimes {
        worked_ms: ms(turn.worked),
        for_link_ms: ms(turn.for_link),
        for_processors_ms: ms(turn.for_processors),
        for_pages_ms: ms(turn.for_pages),
    }
}

/// The pass under way when it was given up.
fn cut(stats: &SourceStats, tally: &Tally) -> Option<PassReport> {
    let (current, gave_up) = (&stats.current, stats.timeline.gave_up);
    let was_cut = current.pass > 0 && !gave_up.is_zero();
    was_cut.then(|| PassReport {
        duration_ms: ms(gave_up.saturating_sub(current.began)),
        r#final: !stats.timeline.pause.is_zero(),
        ..pass(current, tally)
    })
}

fn decision((pass, weighed): &(u32, Weighed)) -> DecisionReport {
    DecisionReport {
        after_pass: *pass,
        decision: weighed.decision.name().to_owned(),
        blackout_ms: ms(weighed.blackout),
        saved_ms: ms(weighed.saved),
        cost_ms: ms(weighed.cost),
    }
}

fn notifications(costs: NotificationCosts) -> NotificationReport {
    NotificationReport {
        answered: costs.notifications,
        pages_released: costs.pages,
        stall_ms: ms(costs.stall),
        longest_stall_ms: ms(costs.longest),
        throttled_ms: ms(costs.throttled),
    }
}

fn breakdown(parts: [Duration; 8]) -> BlackoutBreakdown {
    let [
        pause,
        io_cancel,
        save_state,
        final_pages,
        send_state,
        restore,
        handover,
        resume,
    ] = parts.map(ms);
    BlackoutBreakdown {
        pause,
        io_cancel,
        final_pages,
        save_state,
        send_state,
        restore,
        handover,
        resume,
    }
}

/// What became of storage IO, as far as the source knows.
pub(super) fn io_report(held: &HeldIo, stats: &SourceStats) -> IoReport {
    let t = &stats.timeline;
    let there = stats
        .prepared
        .flush_us
        .saturating_add(stats.resumed.flush_us);
    let here = t.relinquished.saturating_sub(t.prepared);
    IoReport {
        in_flight_at_pause: u64::from(held.in_flight),
        ended_in_pause: u64::from(held.completed),
        cancelled: u64::from(held.cancelled),
        unsettled: u64::from(held.unsettled),
        journal_flush_ms: ms(here + Duration::from_micros(there)),
        settled_ms: (held.unsettled > 0 && !t.settled.is_zero())
            .then(|| ms(t.settled.saturating_sub(t.resumed))),
        ..IoReport::default()
    }
}

/// The report of a migration that has ended; the guest's and the memory's parts are empty.
pub(super) fn summarise(
    machine: &dyn Machine,
    options: &SourceOptions,
    transport: &'static str,
    outcome: &Outcome,
    stats: &SourceStats,
    (costs, tally): (NotificationCosts, &Tally),
    clock: &Clock,
) -> MigrationReport {
    let (outcome, reason) = match outcome {
        Outcome::Completed => (ReportOutcome::Completed, None),
        Outcome::Aborted { code, detail } => {
            let how = match code {
                AbortCode::Cancelled => ReportOutcome::Cancelled,
                _ => ReportOutcome::Failed,
            };
            (how, Some(detail.clone()))
        }
        Outcome::Undecided { detail } => (ReportOutcome::Undecided, Some(detail.clone())),
    };
    let parts = stats.blackout().map(breakdown);
    let named = |(&id, &bytes): (&u8, &u64)| {
        let name = CodecId::try_from(id).map_or("unknown", CodecId::name);
        (name.to_owned(), bytes)
    };
    MigrationReport {
        migration_id: options.migration.to_string(),
        outcome,
        reason,
        machine: machine.config().kind.name().to_owned(),
        transport: transport.to_owned(),
        streams: options.streams,
        tracker: options.tracker.name().to_owned(),
        tracker_choice: options.tracker_choice.clone(),
        codec: options.codec.to_string(),
        vcpus: machine.config().vcpus,
        ram_bytes: machine.ram().bytes(),
        total_ms: ms(clock.now().saturating_sub(stats.timeline.start)),
        blackout_ms: parts.as_ref().map(BlackoutBreakdown::total),
        blackout_breakdown_ms: parts,
        blackout_guest_ms: None,
        blackout_predicted_ms: stats.predicted_blackout.map(ms),
        passes: stats.passes.iter().map(|p| pass(p, tally)).collect(),
        pass_cut: cut(stats, tally),
        timeline: timeline::source(&stats.timeline, options.trace, clock.began_unix_us()),
        bytes_memory: (stats.pages_data + stats.pages_zero) * PAGE_SIZE,
        bytes_wire: stats.bytes_wire,
        bytes_by_codec: stats.bytes_by_codec.iter().map(named).collect(),
        pages_zero: stats.pages_zero,
        pages_unchanged: stats.pages_unchanged,
        decisions: stats.decisions.iter().map(decision).collect(),
        fingerprint_bytes: 0,
        notifications: notifications(costs),
        vcpu_run_delay_ms: 0.0,
        guest: GuestReport::default(),
        io: None,
        peak_extra_rss_bytes: 0,
        peak_extra_rss_destination_bytes: None,
    }
}
