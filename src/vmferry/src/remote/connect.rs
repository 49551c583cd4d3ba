//! Reaches a host service.

use std::sync::Arc;

use super::api::Remote;
use super::{CommandError, Result};
use crate::cli::{Address, ConnectArgs};

/// The host service that the arguments name. Connects when it is asked something.
pub(super) fn open(connect: &ConnectArgs) -> Result<Arc<dyn Remote>> {
    if let Address::Https(url) = &connect.host {
        let named = [
            ("--cert", &connect.cert),
            ("--key", &connect.key),
            ("--ca", &connect.ca),
        ];
        let missing: Vec<_> = named
            .iter()
            .filter(|(_, f)| f.is_none())
            .map(|(n, _)| *n)
            .collect();
        if !missing.is_empty() {
            return Err(CommandError::Asked(format!(
                "{url} is asked with a certificate only: give {} (or VMFERRY_CERT, VMFERRY_KEY, \
                 VMFERRY_CA)",
                missing.join(", ")
            )));
        }
    }
    todo!()
}
