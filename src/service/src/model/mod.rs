//! What the API speaks. Field names are a promise: fields are added, never renamed.

mod hosts;
mod jobs;
mod machines;
mod migrations;

pub use hosts::*;
pub use jobs::*;
pub use machines::*;
pub use migrations::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_names_that_the_api_spells() {
        let spelled = |state: serde_json::Value| state.as_str().map(str::to_owned).unwrap();
        for state in VmState::ALL {
            assert_eq!(state.name(), spelled(serde_json::json!(state)));
        }
        for state in MigrationState::ALL {
            assert_eq!(state.name(), spelled(serde_json::json!(state)));
        }
    }
}
