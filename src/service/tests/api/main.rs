//! The API and its client, with a fake host behind it.

mod common;

mod errors;
mod events;
mod openapi;
mod routes;
mod tls;
