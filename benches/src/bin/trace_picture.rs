//! Moves a machine whose storage is slow between two host services of the real binary, and draws
//! the migration's trace: the whole, and the blackout. For docs/operations.md.
//!
//! `cargo build --release && cargo run --release -p vmferry-benches --bin trace_picture -- docs`

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;
use vmferry_benches::bars;
use vmferry_benches::plot::{Stretch, stretches};
use vmferry_service::model::{DiskSpecification, MigrationRequest, MigrationState};
use vmferry_service::telemetry::jaeger::to_jaeger_json;
use vmferry_tests::hosts::{Hosts, ended, fleet};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Spans of a trace as Jaeger has it, each below the one that it belongs to.
fn spans(trace: &Value) -> Vec<Stretch> {
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    let begin = spans.iter().map(|s| number(&s["startTime"]));
    let begin = begin.fold(f64::INFINITY, f64::min);
    let (mut out, mut source) = (Vec::new(), None);
    let mut open: Vec<(Value, usize)> = spans
        .iter()
        .filter(|s| s["references"].as_array().is_none_or(Vec::is_empty))
        .map(|s| (s.clone(), 0))
        .collect();
    while let Some((span, depth)) = open.pop() {
        // The outermost comes first, and is the source's.
        let source = source.get_or_insert_with(|| span["processID"].clone());
        let side = if *source == span["processID"] {
            "source"
        } else {
            "destination"
        };
        out.push(Stretch {
            group: side.to_owned(),
            name: format!(
                "{}{}",
                "  ".repeat(depth),
                span["operationName"].as_str().unwrap_or("?")
            ),
            from_ms: (number(&span["startTime"]) - begin) / 1e3,
            ms: number(&span["duration"]) / 1e3,
        });
        let mut below: Vec<Value> = spans
            .iter()
            .filter(|s| s["references"][0]["spanID"] == span["spanID"])
            .cloned()
            .collect();
        // The first is taken first.
        below.sort_by(|a, b| number(&b["startTime"]).total_cmp(&number(&a["startTime"])));
        open.extend(below.into_iter().map(|s| (s, depth + 1)));
    }
    out
}

async fn draw(dir: PathBuf) -> Result<bool, String> {
    let binary = std::env::current_exe().map_err(|e| e.to_string())?;
    let binary = binary.with_file_name("vmferry");
    let mut hosts = Hosts::new(&binary, &["host-a", "host-b"], "");
    for name in ["host-a", "host-b"] {
        hosts.host(name).start().await;
    }
    let image = hosts.dir().join("disk.img");
    let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
    file.set_len(16 << 20).map_err(|e| e.to_string())?;
    let mut spec = fleet::specs(2, "auto").remove(1);
    spec.boot = vmferry_service::model::BootSpec::Workload {
        cmdline: "workload=dense ws-mib=16 fill-mib=64 rate=2000 disk-mib=16 disk-rate=500 \
                  disk-depth=8"
            .to_owned(),
    };
    spec.ram_mib = 256;
    spec.disks = vec![DiskSpecification {
        source: format!("file:{}", image.display()),
        read_only: false,
        serial: String::new(),
        queues: None,
        delay_ms: 40,
    }];
    let a = &*hosts.host("host-a");
    let client = a.client();
    fleet::create(&client, std::slice::from_ref(&spec)).await?;
    let request = MigrationRequest {
        to: "host-b".to_owned(),
        ..MigrationRequest::default()
    };
    let begun = client.migrate(&spec.name, &request).await;
    let id = begun.map_err(|e| e.detail())?.id;
    let over = ended(&client, &id).await;
    if over.state != MigrationState::Completed {
        return Err(format!("{:?}: {:?}", over.state, over.reason));
    }
    let trace = client.trace(&id).await.map_err(|e| e.detail())?;
    let jaeger = to_jaeger_json(&trace)?;
    let all = spans(&jaeger["data"][0]);
    let named = |name: &str| all.iter().find(|s| s.name.trim() == name);
    let (Some(whole), Some(blackout)) = (named("migration"), named("blackout")) else {
        return Err("the trace has no blackout".to_owned());
    };
    let between = (whole.from_ms, whole.from_ms + whole.ms);
    let title = "A migration: spans of both hosts";
    let write = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"))
    };
    write("trace.svg", stretches(title, &all, between))?;
    let between = (blackout.from_ms - 1.0, blackout.from_ms + blackout.ms + 1.0);
    let title = "The same, 1 ms before the blackout until 1 ms after it";
    write("trace-blackout.svg", stretches(title, &all, between))?;
    Ok(true)
}

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("trace_picture: give the directory to write to");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string());
    let drawn = runtime.and_then(|runtime| runtime.block_on(draw(dir.into())));
    bars::exit("trace_picture", drawn)
}
