//! The OpenAPI document, from the types and the handlers.
//!
//! What can go wrong follows from an operation's shape, and is added here to all of them, so that
//! none can forget it.

use std::borrow::Cow;
use std::sync::OnceLock;

use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::schema::{
    AdditionalProperties, KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::problem::PROBLEM_JSON;
use super::types::{ProblemDetails, StreamEvent};
use super::{events, migrations, peer, root, vms};

/// The document, as it is checked in (`docs/openapi.json`) and served.
#[must_use]
pub fn document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let mut text = Api::openapi().to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    })
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmferry",
        version = "1",
        description = "Virtual machines on a host, and their moves to other hosts.\n\nOver the unix \
            socket everything is allowed. Over TLS a client certificate is needed; one with a name \
            that begins with `admin-` may do everything, any other of the authority `/v1/peer/…`, and \
            read `/v1/host`, `/v1/migrations…`, `/healthz` and `/openapi.json`.",
        license(name = "MIT OR Apache-2.0")
    ),
    servers((url = "/")),
    tags(
        (name = "vms", description = "Machines"),
        (name = "migrations", description = "Moves of machines"),
        (name = "host", description = "The host itself"),
        (name = "events", description = "What happens"),
        (name = "peer", description = "What hosts ask of each other"),
        (name = "service", description = "The service itself"),
    ),
    paths(
        root::show_host, root::drain_host, root::show_drain, root::cancel_drain,
        root::show_openapi, root::show_metrics, root::show_page, root::show_health,
        vms::list_vms, vms::create_vm, vms::show_vm, vms::delete_vm, vms::pause_vm,
        vms::resume_vm, vms::stop_vm, vms::start_vm, vms::verify_vm, vms::settle_vm_storage,
        vms::decide_vm,
        vms::show_vm_console, vms::preflight_vm, vms::migrate_vm,
        migrations::list_migrations, migrations::show_migration,
        migrations::show_migration_report, migrations::show_migration_trace,
        migrations::cancel_migration,
        events::stream_events,
        peer::consider_offer, peer::receive_vm, peer::forget_reception, peer::told_settled,
        peer::sink_bytes,
    ),
    components(schemas(ProblemDetails, StreamEvent)),
    modifiers(&Errors)
)]
struct Api;

/// Adds to each operation the problems that it can answer with.
struct Errors;

impl Modify for Errors {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut api.paths.paths {
            for (writes, operation) in operations(item) {
                errors(path, writes, operation);
            }
        }
    }
}

/// The operations of a path, and whether they change something.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (bool, &mut Operation)> {
    [
        (false, item.get.as_mut()),
        (true, item.post.as_mut()),
        (true, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(writes, operation)| Some((writes, operation?)))
}

fn errors(path: &str, writes: bool, operation: &mut Operation) {
    let body = operation.request_body.is_some();
    let queries = operation
        .parameters
        .iter()
        .flatten()
        .any(|p| p.parameter_in == ParameterIn::Query);
    let mut all = vec![
        ("403", "The caller may not do this"),
        ("500", "Something failed on this host"),
    ];
    if path.contains('{') || ["/v1/host/drain", "/v1/peer/settled"].contains(&path) {
        all.push(("404", "There is no such thing"));
    }
    if body || queries {
        all.push(("400", "The request is malformed"));
    }
    if body {
        all.push(("408", "The request came too slowly"));
        all.push(("413", "The body is too large"));
        all.push(("415", "The content type is not the expected one"));
    }
    if writes && path != "/v1/peer/sink" {
        all.push(("409", "It does not fit the state of things"));
        all.push(("422", "What was asked for makes no sense"));
        all.push(("429", "A limit of this host stands against it"));
        all.push(("502", "Another host cannot be reached, or refuses"));
    }
    if path == "/v1/events" {
        all.push(("429", "There are too many event streams"));
    }
    if ["/report", "/trace", "/console"]
        .iter()
        .any(|end| path.ends_with(end))
    {
        all.push(("409", "It is not there yet, or not any more"));
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = match status.as_str() {
                "201" => "It is made",
                "202" => "It has begun",
                _ => "As asked for",
            }
            .to_owned();
        }
    }
    for (status, what) in all {
        let problem = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("ProblemDetails")))
            .build();
        let response = ResponseBuilder::new()
            .description(what)
            .content(PROBLEM_JSON, problem)
            .build();
        operation
            .responses
            .responses
            .insert(status.to_owned(), RefOr::T(response));
    }
}

/// [`vmferry_engine::report::MigrationReport`], whose fields docs/ describes.
pub(super) struct FreeReport;

/// OTLP JSON, or another document of a form of its own.
pub(super) struct FreeTrace;

/// Bytes, as they are.
pub(super) struct RawBytes;

impl utoipa::PartialSchema for RawBytes {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .into()
    }
}

impl utoipa::ToSchema for RawBytes {}

fn free_form(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some(description))
        .into()
}

impl utoipa::PartialSchema for FreeReport {
    fn schema() -> RefOr<Schema> {
        free_form("The report of a migration: sizes in bytes, durations in milliseconds")
    }
}

impl utoipa::ToSchema for FreeReport {
    fn name() -> Cow<'static, str> {
        "MigrationReport".into()
    }
}

impl utoipa::PartialSchema for FreeTrace {
    fn schema() -> RefOr<Schema> {
        free_form("A document with a form of its own")
    }
}

impl utoipa::ToSchema for FreeTrace {
    fn name() -> Cow<'static, str> {
        "Document".into()
    }
}
