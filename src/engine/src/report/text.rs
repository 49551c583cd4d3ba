//! The report as text for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use vmferry_protocol::PAGE_SIZE;

use super::{CodecReport, MigrationReport, ReportOutcome};

const MIB: f64 = (1 << 20) as f64;

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB)
}

fn or_dash(value: Option<f64>, unit: &str, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}{unit}"))
}

fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{:.2} M/s", v / 1e6))
}

/// Renders the report in a few lines of text, newline at the end.
#[must_use]
pub fn render(r: &MigrationReport) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_head(&mut out, r);
    let _ = write_blackout(&mut out, r);
    let _ = write_passes(&mut out, r);
    let _ = write_codecs(&mut out, r);
    let _ = write_notifications(&mut out, r);
    let _ = write_io(&mut out, r);
    let _ = write_guest(&mut out, r);
    out
}

fn write_head(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    let outcome = match r.outcome {
        ReportOutcome::Completed => "completed",
        ReportOutcome::Cancelled => "cancelled, the guest goes on at the source",
        ReportOutcome::Failed => "failed, the guest goes on at the source",
        ReportOutcome::Undecided => "undecided: neither side may resume the guest by itself",
    };
    writeln!(out, "migration {}: {outcome}", r.migration_id)?;
    if let Some(reason) = &r.reason {
        writeln!(out, "  because    {reason}")?;
    }
    writeln!(
        out,
        "  machine    {} · {} vCPU · {} RAM · tracker {} · {} × {} · codec {}",
        r.machine,
        r.vcpus,
        mib(r.ram_bytes),
        r.tracker,
        r.transport,
        r.streams,
        r.codec
    )?;
    if let Some(choice) = &r.tracker_choice {
        writeln!(out, "  {} chosen: {}", r.tracker, choice.why)?;
    }
    writeln!(
        out,
        "  total      {:.0} ms · memory {} · wire {} · zero pages {} · unchanged {}",
        r.total_ms,
        mib(r.bytes_memory),
        mib(r.bytes_wire),
        r.pages_zero,
        r.pages_unchanged
    )?;
    let codecs: Vec<_> = r
        .bytes_by_codec
        .iter()
        .map(|(codec, bytes)| format!("{codec} {}", mib(*bytes)))
        .collect();
    writeln!(
        out,
        "  codecs     {} · extra memory {} source, {} destination",
        if codecs.is_empty() {
            "–".to_owned()
        } else {
            codecs.join(", ")
        },
        mib(r.peak_extra_rss_bytes),
        r.peak_extra_rss_destination_bytes
            .map_or_else(|| "–".to_owned(), mib)
    )
}

/// What each codec made of what, over all passes, and why it was chosen.
fn write_codecs(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    let mut used: BTreeMap<&str, CodecReport> = BTreeMap::new();
    let mut choices: BTreeMap<&str, u64> = BTreeMap::new();
    for pass in &r.passes {
        for (codec, more) in &pass.codecs {
            let sum = used.entry(codec).or_default();
            sum.pages += more.pages;
            sum.bytes += more.bytes;
            sum.processor_ms += more.processor_ms;
        }
        for (why, chunks) in &pass.choices {
            *choices.entry(why).or_default() += chunks;
        }
    }
    for (codec, sum) in &used {
        let plain = sum.pages * PAGE_SIZE;
        writeln!(
            out,
            "  {codec:<10} {} to {} ({:.2}) · {:.0} ms of processor time",
            mib(plain),
            mib(sum.bytes),
            sum.bytes as f64 / plain.max(1) as f64,
            sum.processor_ms
        )?;
    }
    let choices: Vec<_> = choices
        .iter()
        .map(|(why, n)| format!("{why} {n}"))
        .collect();
    if !choices.is_empty() {
        writeln!(out, "  chosen     {} (chunks)", choices.join(", "))?;
    }
    Ok(())
}

fn write_blackout(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    writeln!(
        out,
        "  blackout   {} (guest's own heartbeat: {}; predicted: {})",
        or_dash(r.blackout_ms, " ms", 2),
        or_dash(r.blackout_guest_ms, " ms", 2),
        or_dash(r.blackout_predicted_ms, " ms", 1),
    )?;
    if let Some(parts) = &r.blackout_breakdown_ms {
        let parts: Vec<_> = parts
            .parts()
            .iter()
            .map(|(name, ms)| format!("{name} {ms:.2}"))
            .collect();
        writeln!(out, "             {}", parts.join(" + "))?;
    }
    Ok(())
}

fn write_passes(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    if r.passes.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "  pass         ms   considered   unchanged        sent  notifications        wire"
    )?;
    for p in &r.passes {
        writeln!(
            out,
            "  {:>3}{} {:>9.1} {:>12} {:>11} {:>11} {:>14} {:>11}",
            p.pass,
            if p.r#final { "*" } else { " " },
            p.duration_ms,
            p.pages_considered,
            p.pages_unchanged,
            p.pages_sent,
            p.notifications,
            mib(p.bytes_wire)
        )?;
    }
    writeln!(out, "    * guest paused")
}

fn write_notifications(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    let n = &r.notifications;
    writeln!(
        out,
        "  processor  vCPUs waited {:.1} ms for one",
        r.vcpu_run_delay_ms
    )?;
    if n.answered == 0 {
        return Ok(());
    }
    let throttled = if n.throttled_ms > 0.0 {
        format!(" · writers slowed down for {:.0} ms", n.throttled_ms)
    } else {
        String::new()
    };
    writeln!(
        out,
        "  writes     {} notifications for {} pages · {:.2} ms stall, longest {:.2} ms{throttled}",
        n.answered, n.pages_released, n.stall_ms, n.longest_stall_ms
    )
}

fn write_io(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    let Some(io) = &r.io else {
        return Ok(());
    };
    writeln!(
        out,
        "  storage    {} in flight at the pause · {} ended · {} cancelled · {} unsettled · {} \
         reissued",
        io.in_flight_at_pause, io.ended_in_pause, io.cancelled, io.unsettled, io.reissued
    )?;
    let counted = |n: Option<u64>| n.map_or_else(|| "–".to_owned(), |n| n.to_string());
    writeln!(
        out,
        "             first completed {} after resumption · longest fence {:.1} ms · settled after {} \
         · journals {:.2} ms · lost {} · duplicated {}",
        or_dash(io.first_after_resume_ms, " ms", 1),
        io.fence_wait_ms,
        or_dash(io.settled_ms, " ms", 1),
        io.journal_flush_ms,
        counted(io.lost),
        counted(io.duplicated)
    )?;
    match &io.verify_unsettled {
        Some(verdict) => writeln!(
            out,
            "             VERIFY {verdict} while writes were unsettled"
        ),
        None => Ok(()),
    }
}

fn write_guest(out: &mut String, r: &MigrationReport) -> std::fmt::Result {
    let g = &r.guest;
    writeln!(
        out,
        "  guest      before {} · during {} · after {} · brownout {} ({} lost) · lost in all {}",
        rate(g.work_rate_before),
        rate(g.work_rate_during),
        rate(g.work_rate_after),
        or_dash(g.brownout_pct, " %", 1),
        or_dash(g.brownout_lost_ms, " ms", 1),
        or_dash(g.lost_work_ms, " ms", 1),
    )?;
    if let Some(verify) = &g.verify {
        writeln!(out, "  VERIFY {verify}")?;
    }
    Ok(())
}
