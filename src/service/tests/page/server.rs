//! A service as the page sees it, scripted by the test: the page itself, one stream of events for
//! every reader, the host, and reports.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot};
use vmferry_engine::report::MigrationReport;
use vmferry_service::api::types::{Snapshot, StreamEvent, StreamFrame};
use vmferry_service::model::{HostInfo, ServiceEvent};
use vmferry_service::page;

type Line = Result<Bytes, std::convert::Infallible>;

/// What the script has set, and what was asked.
#[derive(Default)]
struct Script {
    /// Told to every new reader.
    snapshot: Vec<String>,
    host: Option<HostInfo>,
    reports: HashMap<String, MigrationReport>,
    readers: Vec<mpsc::UnboundedSender<Line>>,
    /// Streams that were asked for, answered or refused.
    asked: usize,
    refuse: bool,
    /// Ids of reports that were asked for.
    report_asked: Vec<String>,
}

/// A server on a port of localhost; ends when dropped.
pub(crate) struct Service {
    shared: Arc<(Mutex<Script>, Condvar)>,
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Shared = web::Data<Arc<(Mutex<Script>, Condvar)>>;

fn frame(event: &StreamEvent) -> String {
    let json = serde_json::to_value(event).expect("plain data");
    let kind = json["kind"].as_str().expect("all have one");
    format!("event: {kind}\ndata: {json}\n\n")
}

async fn document() -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    for header in page::headers() {
        answer.insert_header(header);
    }
    answer.body(page::HTML)
}

async fn events(shared: Shared) -> HttpResponse {
    let (script, turned) = &***shared;
    let mut script = script.lock().expect("no test thread panics inside");
    script.asked += 1;
    turned.notify_all();
    if script.refuse {
        return HttpResponse::ServiceUnavailable().finish();
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    for line in &script.snapshot {
        // The receiver is here still.
        let _ = sender.send(Ok(Bytes::from(line.clone())));
    }
    script.readers.push(sender);
    let lines = stream::unfold(receiver, |mut r| async { r.recv().await.map(|l| (l, r)) });
    HttpResponse::Ok()
        .insert_header(("content-type", "text/event-stream"))
        .insert_header(("cache-control", "no-store"))
        .streaming(lines)
}

async fn host(shared: Shared) -> HttpResponse {
    let script = shared.0.lock().expect("no test thread panics inside");
    match &script.host {
        Some(host) if !script.refuse => HttpResponse::Ok().json(host),
        _ => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn report(shared: Shared, request: HttpRequest) -> HttpResponse {
    let id = request.match_info().query("id").to_owned();
    let mut script = shared.0.lock().expect("no test thread panics inside");
    let found = script.reports.get(&id).cloned();
    script.report_asked.push(id);
    let detail = "this host has no report of it: ask the source <img src=x onerror=alert(1)>";
    found.map_or_else(
        || {
            HttpResponse::build(StatusCode::NOT_FOUND)
                .insert_header(("content-type", "application/problem+json"))
                .body(format!(
                    "{{\"title\":\"Not found\",\"detail\":\"{detail}\"}}"
                ))
        },
        |report| HttpResponse::Ok().json(report),
    )
}

impl Service {
    pub(crate) fn start(host_info: HostInfo, snapshot: &[ServiceEvent]) -> Self {
        let shared = Arc::new((Mutex::new(Script::default()), Condvar::new()));
        let (told, url) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let data = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(web::Data::new(Arc::clone(&data)))
                        .route("/", web::get().to(document))
                        .route("/v1/events", web::get().to(events))
                        .route("/v1/host", web::get().to(host))
                        .route("/v1/migrations/{id}/report", web::get().to(report))
                })
                .workers(1)
                .disable_signals()
                .bind(("127.0.0.1", 0))
                .expect("a free port");
                let address = server.addrs()[0];
                told.send(format!("http://{address}/")).expect("waited for");
                let server = server.run();
                let handle = server.handle();
                let running = actix_web::rt::spawn(server);
                let _ = stopped.await;
                handle.stop(false).await;
                let _ = running.await;
            });
        });
        let service = Self {
            shared,
            url: url.recv().expect("the server starts"),
            stop: Some(stop),
            thread: Some(thread),
        };
        service.set(|script| script.host = Some(host_info));
        service.snapshot(snapshot);
        service
    }

    fn set<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.shared.0.lock().expect("no thread panics inside"))
    }

    /// What new readers are told first: all that these events tell of.
    pub(crate) fn snapshot(&self, events: &[ServiceEvent]) {
        let mut all = Snapshot::default();
        for event in events.iter().cloned() {
            match event {
                ServiceEvent::Vm(vm) => all.vms.push(vm),
                ServiceEvent::Migration(m) => all.migrations.push(m),
                ServiceEvent::Drain(drain) => all.drain = Some(drain),
                ServiceEvent::VmGone(_) => panic!("nothing is gone from a snapshot"),
            }
        }
        let first = frame(&StreamEvent::Frame(StreamFrame::Snapshot(all)));
        self.set(|script| script.snapshot = vec![first]);
    }

    /// Tells all readers.
    pub(crate) fn tell(&self, event: &ServiceEvent) {
        self.tell_raw(&frame(&StreamEvent::Change(event.clone())));
    }

    /// Sends all readers bytes as they are.
    pub(crate) fn tell_raw(&self, line: &str) {
        self.set(|script| {
            let line = Bytes::from(line.to_owned());
            script.readers.retain(|r| r.send(Ok(line.clone())).is_ok());
            assert!(!script.readers.is_empty(), "nobody reads the events");
        });
    }

    /// Ends all streams; and, while `refuse` holds, answers 503.
    pub(crate) fn cut(&self, refuse: bool) {
        self.set(|script| {
            script.refuse = refuse;
            script.readers.clear();
        });
    }

    /// Answers again.
    pub(crate) fn accept(&self) {
        self.set(|script| script.refuse = false);
    }

    /// Waits until streams were asked for so many times.
    pub(crate) fn wait_asked(&self, times: usize) {
        let (script, turned) = &*self.shared;
        let script = script.lock().expect("no thread panics inside");
        let (script, _) = turned
            .wait_timeout_while(script, Duration::from_secs(60), |s| s.asked < times)
            .expect("no thread panics inside");
        assert!(script.asked >= times, "asked for {} streams", script.asked);
    }

    pub(crate) fn asked(&self) -> usize {
        self.set(|script| script.asked)
    }

    pub(crate) fn report(&self, report: MigrationReport) {
        self.set(|script| script.reports.insert(report.migration_id.clone(), report));
    }

    /// Ids of the reports that were asked for.
    pub(crate) fn report_asked(&self) -> Vec<String> {
        self.set(|script| script.report_asked.clone())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.set(|script| script.readers.clear());
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
