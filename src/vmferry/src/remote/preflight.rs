//! What a migration would be like, in words.

use vmferry_service::model::Preflight;

use super::table::pairs;
use super::units::{ms, or_none, plain};
use crate::Exit;

/// What stands against it, each with what to do; what it would be like.
pub(super) fn render(vm: &str, to: &str, p: &Preflight, colour: bool) -> String {
    let to = plain(to);
    let mut out = match p.problems.len() {
        0 => format!("{vm} can move to {to}\n"),
        1 => format!("{vm} cannot move to {to}: one thing stands against it\n"),
        n => format!("{vm} cannot move to {to}: {n} things stand against it\n"),
    };
    for problem in &p.problems {
        out.push_str(&format!(
            "  {}: {}\n    {}\n",
            plain(&problem.area),
            plain(&problem.what),
            plain(&problem.todo)
        ));
    }
    out.push_str(&pairs(
        [
            (
                "  measured",
                or_none(p.measured_mbit, |m| format!("{m:.0} Mbit/s")),
            ),
            ("  total", or_none(p.predicted_total_ms, ms)),
            ("  blackout", or_none(p.predicted_blackout_ms, ms)),
            (
                "  clock there",
                or_none(p.clock_ahead_ms, |ahead| format!("{ahead:+.1} ms")),
            ),
        ],
        colour,
    ));
    for assumption in &p.assumptions {
        out.push_str(&format!("  assumed: {}\n", plain(assumption)));
    }
    out
}

/// What it makes `--dry-run` answer.
pub(super) fn exit(p: &Preflight) -> Exit {
    if p.problems.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_service::model::Problem;

    #[test]
    fn every_problem_is_said_with_what_to_do() {
        let mut preflight = Preflight {
            measured_mbit: Some(941.6),
            predicted_total_ms: Some(4_200.0),
            predicted_blackout_ms: Some(12.0),
            assumptions: vec!["zstd at 3.1".to_owned()],
            clock_ahead_ms: Some(-0.5),
            ..Preflight::default()
        };
        assert_eq!(
            render("web-1", "b", &preflight, false),
            "web-1 can move to b\n\
             \x20 measured     942 Mbit/s\n\
             \x20 total        4.2 s\n\
             \x20 blackout     12.0 ms\n\
             \x20 clock there  -0.5 ms\n\
             \x20 assumed: zstd at 3.1\n"
        );
        assert_eq!(exit(&preflight), Exit::Ok);
        preflight.problems.push(Problem {
            area: "cpu".to_owned(),
            what: "b lacks avx512f".to_owned(),
            todo: "move to a host that has it".to_owned(),
        });
        let text = render("web-1", "b", &preflight, false);
        assert!(
            text.starts_with(
                "web-1 cannot move to b: one thing stands against it\n  cpu: b lacks avx512f\n    \
                 move to a host that has it\n"
            ),
            "{text}"
        );
        assert_eq!(exit(&preflight), Exit::Failed);
    }
}
