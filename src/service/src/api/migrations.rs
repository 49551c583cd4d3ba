//! Migrations.

use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use super::body::query;
use super::host::{Host, MigrationRef};
use super::openapi::{FreeReport, FreeTrace};
use super::problem::Refusal;
use crate::model::{Migration, MigrationState};
use crate::rules::is_vm_name;

type Answer = Result<HttpResponse, Refusal>;

/// All migrations that are remembered, newest first.
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations", params(MigrationFilter),
    responses((status = 200, body = Vec<Migration>)))]
pub(super) async fn list_migrations(host: Host, request: HttpRequest) -> Answer {
    let filter = query::<MigrationFilter>(&request)?;
    if let Some(vm) = filter.vm.as_deref().filter(|vm| !is_vm_name(vm)) {
        return Err(Refusal::malformed(format!("vm: {vm:?} names no machine")));
    }
    let mut all = host
        .ask(|c| async move { Ok(c.migrations().await) })
        .await?;
    all.retain(|m| {
        filter.vm.as_ref().is_none_or(|vm| *vm == m.vm)
            && filter.state.is_none_or(|state| state == m.state)
    });
    Ok(HttpResponse::Ok().json(all))
}

/// One migration.
#[utoipa::path(get, path = "/v1/migrations/{id}", tag = "migrations", params(IdPart),
    responses((status = 200, body = Migration)))]
pub(super) async fn show_migration(host: Host, id: MigrationRef) -> Answer {
    let migration = host
        .ask(|c| async move { c.migration(&id.0).await })
        .await?;
    Ok(HttpResponse::Ok().json(migration))
}

/// The report of a migration that has ended.
#[utoipa::path(get, path = "/v1/migrations/{id}/report", tag = "migrations", params(IdPart),
    responses((status = 200, body = FreeReport)))]
pub(super) async fn show_migration_report(host: Host, id: MigrationRef) -> Answer {
    let report = host.ask(|c| async move { c.report(&id.0).await }).await?;
    Ok(HttpResponse::Ok().json(report))
}

/// The trace of a migration, as kept on this host.
#[utoipa::path(get, path = "/v1/migrations/{id}/trace", tag = "migrations", params(IdPart),
    responses((status = 200, body = FreeTrace)))]
pub(super) async fn show_migration_trace(host: Host, id: MigrationRef) -> Answer {
    let trace = host.ask(|c| async move { c.trace(&id.0).await }).await?;
    Ok(HttpResponse::Ok().json(trace))
}

/// Cancels a migration, if that is still possible.
#[utoipa::path(post, path = "/v1/migrations/{id}/cancel", tag = "migrations", params(IdPart),
    responses((status = 200, body = Migration)))]
pub(super) async fn cancel_migration(host: Host, id: MigrationRef) -> Answer {
    let migration = host.ask(|c| async move { c.cancel(&id.0).await }).await?;
    Ok(HttpResponse::Ok().json(migration))
}

/// Which migrations are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MigrationFilter {
    /// Those of this machine.
    #[param(pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    vm: Option<String>,
    /// Those in this state.
    #[param(inline)]
    state: Option<MigrationState>,
}

/// A migration, in a path.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "for the OpenAPI document; read as MigrationRef")]
pub(super) struct IdPart {
    /// The migration's id.
    #[param(
        pattern = "^[0-9a-f]{32}$",
        example = "0af7651916cd43dd8448eb211c80319c"
    )]
    id: String,
}
