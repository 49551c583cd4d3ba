//! Machines.

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use serde::Deserialize;

use super::body::{Body, query};
use super::host::{Host, VmName};
use super::problem::Refusal;
use super::types::{SettleRequest, Settled, Verdict};
use crate::model::{
    ConsoleOutput, Decision, MigrationRequest, MigrationStarted, Preflight, Vm, VmSpec,
};

type Answer = Result<HttpResponse, Refusal>;

/// Most bytes of a console that are answered.
const MAX_CONSOLE: u64 = 1 << 20;
const USUAL_CONSOLE: u64 = 64 << 10;

/// All machines of this host, by name.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses((status = 200, body = Vec<Vm>)))]
pub(super) async fn list_vms(host: Host) -> Answer {
    let vms = host.ask(|c| async move { Ok(c.vms().await) }).await?;
    Ok(HttpResponse::Ok().json(vms))
}

/// Makes a machine and boots it.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmSpec, responses(
    (status = 201, body = Vm, headers(("Location" = String, description = "The machine"))),
))]
pub(super) async fn create_vm(host: Host, spec: Body<VmSpec>) -> Answer {
    let vm = host.ask(|c| async move { c.create(spec.0).await }).await?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, format!("/v1/vms/{}", vm.name)))
        .json(vm))
}

/// One machine.
#[utoipa::path(get, path = "/v1/vms/{name}", tag = "vms", params(NamePart),
    responses((status = 200, body = Vm)))]
pub(super) async fn show_vm(host: Host, name: VmName) -> Answer {
    let vm = host.ask(|c| async move { c.vm(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(vm))
}

/// Forgets a machine that is stopped.
#[utoipa::path(delete, path = "/v1/vms/{name}", tag = "vms", params(NamePart),
    responses((status = 204, description = "It is forgotten")))]
pub(super) async fn delete_vm(host: Host, name: VmName) -> Answer {
    host.ask(|c| async move { c.delete(&name.0).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Stops a machine's vCPUs.
#[utoipa::path(post, path = "/v1/vms/{name}/pause", tag = "vms", params(NamePart),
    responses((status = 200, body = Vm)))]
pub(super) async fn pause_vm(host: Host, name: VmName) -> Answer {
    let vm = host.ask(|c| async move { c.pause(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(vm))
}

/// Lets a paused machine's vCPUs run on.
#[utoipa::path(post, path = "/v1/vms/{name}/resume", tag = "vms", params(NamePart),
    responses((status = 200, body = Vm)))]
pub(super) async fn resume_vm(host: Host, name: VmName) -> Answer {
    let vm = host.ask(|c| async move { c.resume(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(vm))
}

/// Ends a machine; its description stays.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", tag = "vms", params(NamePart),
    responses((status = 200, body = Vm)))]
pub(super) async fn stop_vm(host: Host, name: VmName) -> Answer {
    let vm = host.ask(|c| async move { c.stop(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(vm))
}

/// Boots a machine that was stopped, or that died with its process.
#[utoipa::path(post, path = "/v1/vms/{name}/start", tag = "vms", params(NamePart),
    responses((status = 200, body = Vm)))]
pub(super) async fn start_vm(host: Host, name: VmName) -> Answer {
    let vm = host.ask(|c| async move { c.start(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(vm))
}

/// Has the built-in workload verify its memory and its disk.
#[utoipa::path(post, path = "/v1/vms/{name}/verify", tag = "vms", params(NamePart),
    responses((status = 200, body = Verdict)))]
pub(super) async fn verify_vm(host: Host, name: VmName) -> Answer {
    let verdict = host.ask(|c| async move { c.verify(&name.0).await }).await?;
    Ok(HttpResponse::Ok().json(Verdict { verdict }))
}

/// Vouches for writes of a former host that nothing has been heard of.
#[utoipa::path(post, path = "/v1/vms/{name}/settle-storage", tag = "vms", params(NamePart),
    request_body = SettleRequest, responses((status = 200, body = Settled)))]
pub(super) async fn settle_vm_storage(
    host: Host,
    name: VmName,
    request: Body<SettleRequest>,
) -> Answer {
    let vouched = request.0.nobody_else_writes;
    let writes = host
        .ask(|c| async move { c.settle_storage(&name.0, vouched).await })
        .await?;
    Ok(HttpResponse::Ok().json(Settled { writes }))
}

/// Decides where a guest is of which neither host of its migration can know: here, or elsewhere.
#[utoipa::path(post, path = "/v1/vms/{name}/decide", tag = "vms", params(NamePart),
    request_body = Decision, responses((status = 204, description = "It is as decided")))]
pub(super) async fn decide_vm(host: Host, name: VmName, decision: Body<Decision>) -> Answer {
    host.ask(|c| async move { c.decide(&name.0, decision.0).await })
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// What a machine's consoles have said last.
#[utoipa::path(get, path = "/v1/vms/{name}/console", tag = "vms", params(NamePart, ConsoleQuery),
    responses((status = 200, body = ConsoleOutput)))]
pub(super) async fn show_vm_console(host: Host, name: VmName, request: HttpRequest) -> Answer {
    let asked = query::<ConsoleQuery>(&request)?.most_bytes;
    let most = asked.unwrap_or(USUAL_CONSOLE);
    if !(1..=MAX_CONSOLE).contains(&most) {
        return Err(Refusal::malformed(format!(
            "most_bytes: give 1 to {MAX_CONSOLE}"
        )));
    }
    let console = host
        .ask(|c| async move { c.console(&name.0, most).await })
        .await?;
    Ok(HttpResponse::Ok().json(console))
}

/// Whether a machine could be moved, and what that would take. Changes nothing.
#[utoipa::path(post, path = "/v1/vms/{name}/preflight", tag = "vms", params(NamePart),
    request_body = MigrationRequest, responses((status = 200, body = Preflight)))]
pub(super) async fn preflight_vm(
    host: Host,
    name: VmName,
    request: Body<MigrationRequest>,
) -> Answer {
    let preflight = host
        .ask(|c| async move { c.preflight(&name.0, &request.0).await })
        .await?;
    Ok(HttpResponse::Ok().json(preflight))
}

/// Moves a machine to another host: begun, or in the queue, when this is answered.
#[utoipa::path(post, path = "/v1/vms/{name}/migrate", tag = "vms", params(NamePart),
    request_body = MigrationRequest, responses((status = 202, body = MigrationStarted,
        headers(("Location" = String, description = "The migration")))))]
pub(super) async fn migrate_vm(
    host: Host,
    name: VmName,
    request: Body<MigrationRequest>,
) -> Answer {
    let started = host
        .ask(|c| async move { c.migrate(&name.0, request.0).await })
        .await?;
    Ok(HttpResponse::Accepted()
        .insert_header((LOCATION, format!("/v1/migrations/{}", started.id)))
        .json(started))
}

/// A machine, in a path.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "for the OpenAPI document; read as VmName")]
pub(super) struct NamePart {
    /// The machine's name.
    #[param(pattern = "^[a-z0-9][a-z0-9-]{0,62}$", example = "web-1")]
    name: String,
}

/// How much of a console is wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ConsoleQuery {
    /// Most bytes of each console, from its end; 65536 where nothing is said.
    #[param(minimum = 1, maximum = 1048576)]
    most_bytes: Option<u64>,
}
