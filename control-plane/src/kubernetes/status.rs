//! What is told of a custom resource, in its status: pure.

use serde_json::{Map, Value, json};

/// Longest message of a condition; Kubernetes allows 32,768 bytes, people read less.
const MESSAGE_CHARS: usize = 2_000;
/// Conditions of others that are kept beside ours.
const OTHERS_MAX: usize = 16;

/// Where a resource stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Standing {
    /// Which generation of it this is about.
    pub(crate) generation: i64,
    /// `Ok` when it is as it says; else a stable word and what is wrong.
    pub(crate) accepted: Result<(), (&'static str, String)>,
    /// Proxies that have it in force, of those that are connected. Counts only where it is accepted.
    pub(crate) programmed: usize,
    /// Proxies that are connected.
    pub(crate) proxies: usize,
}

/// How much a new status differs from the one that the resource has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Difference {
    /// In nothing.
    None,
    /// In how many proxies have it in force, while all of them have.
    Count,
    /// In what it says.
    Meaning,
}

/// The status to write, and how much it differs from `current`. `now` is RFC 3339.
pub(crate) fn status(standing: &Standing, current: &Value, now: &str) -> (Value, Difference) {
    let wanted = [accepted(standing), programmed(standing)];
    let old = current["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut difference = Difference::None;
    if current["observedGeneration"] != standing.generation {
        difference = Difference::Meaning;
    }
    let mut conditions = Vec::new();
    for (kind, status, reason, message) in wanted {
        let before = old.iter().find(|condition| condition["type"] == kind);
        let same = |field: &str, value: &str| before.is_some_and(|before| before[field] == value);
        if !same("status", status) || !same("reason", reason) {
            difference = Difference::Meaning;
        } else if !same("message", &message) {
            let only_count = kind == PROGRAMMED && status == "True";
            difference = match difference {
                Difference::None if only_count => Difference::Count,
                Difference::Count if only_count => Difference::Count,
                _ => Difference::Meaning,
            };
        }
        let since = before
            .filter(|_| same("status", status))
            .and_then(|before| before["lastTransitionTime"].as_str());
        conditions.push(json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since.unwrap_or(now),
            "observedGeneration": standing.generation,
        }));
    }
    let others =
        old.iter().filter(|condition| ![ACCEPTED, PROGRAMMED].iter().any(|kind| condition["type"] == *kind));
    conditions.extend(others.take(OTHERS_MAX).cloned());
    let mut status = Map::new();
    status.insert("observedGeneration".to_owned(), standing.generation.into());
    status.insert("conditions".to_owned(), conditions.into());
    (status.into(), difference)
}

/// Seconds since 1970 as Kubernetes writes a time (RFC 3339, UTC).
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the odd day comes last; 400 years have 146,097 days.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

const ACCEPTED: &str = "Accepted";
const PROGRAMMED: &str = "Programmed";

type Condition = (&'static str, &'static str, &'static str, String);

fn accepted(standing: &Standing) -> Condition {
    match &standing.accepted {
        Ok(()) => (ACCEPTED, "True", "Accepted", "it is part of the mesh's policy".to_owned()),
        Err((reason, message)) => (ACCEPTED, "False", reason, message.chars().take(MESSAGE_CHARS).collect()),
    }
}

fn programmed(standing: &Standing) -> Condition {
    let Standing { programmed, proxies, .. } = standing;
    let count = format!("in force at {programmed} of {proxies} connected proxies");
    match &standing.accepted {
        Err(_) => (
            PROGRAMMED,
            "False",
            "NotAccepted",
            "its last accepted form stays in force, if it had one".to_owned(),
        ),
        Ok(()) if programmed >= proxies => (PROGRAMMED, "True", "Programmed", count),
        Ok(()) => (PROGRAMMED, "False", "Pending", count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-01-02T00:00:00Z";

    fn standing(programmed: usize, proxies: usize) -> Standing {
        Standing { generation: 3, accepted: Ok(()), programmed, proxies }
    }

    fn after(standing: &Standing) -> Value {
        status(standing, &Value::Null, THEN).0
    }

    #[test]
    fn a_status_that_says_the_same_is_not_written_again() {
        let current = after(&standing(2, 2));
        assert_eq!(current["conditions"][1]["message"], "in force at 2 of 2 connected proxies");
        assert_eq!(status(&standing(2, 2), &current, NOW), (current, Difference::None));
    }

    #[test]
    fn the_time_of_a_condition_is_when_its_status_changed() {
        let current = after(&standing(1, 2));
        let (new, difference) = status(&standing(2, 2), &current, NOW);
        assert_eq!(difference, Difference::Meaning);
        assert_eq!(new["conditions"][0]["lastTransitionTime"], THEN);
        assert_eq!(new["conditions"][1]["lastTransitionTime"], NOW);
    }

    #[test]
    fn proxies_that_come_and_go_change_a_count_only() {
        assert_eq!(status(&standing(3, 3), &after(&standing(2, 2)), NOW).1, Difference::Count);
        assert_eq!(status(&standing(2, 3), &after(&standing(2, 2)), NOW).1, Difference::Meaning);
    }

    #[test]
    fn a_refusal_says_why_and_is_not_in_force() {
        let refused = Standing { accepted: Err(("Invalid", "spec.x: no".to_owned())), ..standing(2, 2) };
        let (new, difference) = status(&refused, &after(&standing(2, 2)), NOW);
        assert_eq!(difference, Difference::Meaning);
        let condition = |number: usize| {
            (new["conditions"][number]["status"].as_str(), new["conditions"][number]["reason"].as_str())
        };
        assert_eq!(condition(0), (Some("False"), Some("Invalid")));
        assert_eq!(condition(1), (Some("False"), Some("NotAccepted")));
        let other = Standing { accepted: Err(("Invalid", "spec.y: no".to_owned())), ..standing(2, 2) };
        assert_eq!(status(&other, &new, NOW).1, Difference::Meaning);
    }

    #[test]
    fn a_new_generation_is_told_even_if_nothing_else_changed() {
        let newer = Standing { generation: 4, ..standing(2, 2) };
        let (new, difference) = status(&newer, &after(&standing(2, 2)), NOW);
        assert_eq!((difference, &new["observedGeneration"]), (Difference::Meaning, &json!(4)));
    }

    #[test]
    fn times_are_written_as_kubernetes_reads_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
            assert_eq!(signet_policy::unix_seconds(text), Some(seconds));
        }
    }

    #[test]
    fn conditions_of_others_stay() {
        let mut current = after(&standing(2, 2));
        let other = json!({ "type": "Reviewed", "status": "True", "reason": "R", "message": "", "lastTransitionTime": THEN });
        current["conditions"].as_array_mut().unwrap().push(other.clone());
        assert_eq!(status(&standing(2, 2), &current, NOW), (current.clone(), Difference::None));
        assert_eq!(status(&standing(0, 2), &current, NOW).0["conditions"][2], other);
    }
}
