//! The API and its client, with a fake host behind it.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

mod errors;
mod events;
mod openapi;
mod routes;
mod tls;
