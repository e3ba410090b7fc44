//! What a rule may ask for besides source, method, path and port: header fields, and the time of day.
//!
//! An application may read what it receives more generously than the mesh does. So whatever is asked for is matched
//! narrowly where it allows and broadly where it denies.

use serde::{Deserialize, Serialize};

use crate::model::PolicyAction;

/// Minutes of a day.
pub(crate) const DAY_MINUTES: u16 = 24 * 60;

/// Seconds of a day.
const DAY_S: i64 = 86_400;

/// The header fields of one request, in the order received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeaders {
    fields: Vec<(Box<str>, Box<[u8]>)>,
}

impl RequestHeaders {
    /// From names and values. Whoever reads requests bounds how many there are.
    pub fn new<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let own = |(name, value): (&str, &[u8])| (name.to_ascii_lowercase().into(), value.into());
        Self { fields: fields.into_iter().map(own).collect() }
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| **field == *name).map(|(_, value)| &**value)
    }

    /// The same, of every field that servers in the manner of CGI would take for this one.
    fn look_alikes<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| same_field(field, name)).map(|(_, value)| &**value)
    }
}

/// Whether servers in the manner of CGI see the same field: they know no difference between `_` and `-`.
pub(crate) fn same_field(one: &str, other: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.len() == other.len() && one.bytes().map(plain).eq(other.bytes().map(plain))
}

/// One header field and what it must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// The field's name, in lower case.
    pub name: String,
    /// What its value must be like.
    pub value: ValueMatch,
}

/// What a field's value must be like. Bytes are compared as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueMatch {
    /// The field is not there.
    Absent,
    /// The value is this.
    Exact(String),
    /// The value begins with this.
    Prefix(String),
    /// The field is there, whatever it says.
    Present,
}

impl HeaderMatch {
    /// Whether a request's fields are like that.
    ///
    /// Allowing: of several values all must match, and so must those of fields that differ only in `_` and `-`.
    /// Denying: it is enough that one does, or one entry of a value that is a list.
    pub fn matches(&self, headers: &RequestHeaders, action: PolicyAction) -> bool {
        let is_there = || headers.values(&self.name).next().is_some();
        let may_be_there = || headers.look_alikes(&self.name).next().is_some();
        match (&self.value, action) {
            (ValueMatch::Absent, PolicyAction::Allow) => !may_be_there(),
            (ValueMatch::Absent, PolicyAction::Deny) => !is_there(),
            (ValueMatch::Present, PolicyAction::Allow) => is_there(),
            (ValueMatch::Present, PolicyAction::Deny) => may_be_there(),
            (_, PolicyAction::Allow) => {
                is_there() && headers.look_alikes(&self.name).all(|value| self.value.fits(value))
            }
            (_, PolicyAction::Deny) => headers.look_alikes(&self.name).any(|value| {
                self.value.fits(value)
                    || value.split(|byte| *byte == b',').any(|entry| self.value.fits(entry.trim_ascii()))
            }),
        }
    }
}

impl ValueMatch {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Absent => false,
            Self::Exact(expected) => value == expected.as_bytes(),
            Self::Prefix(expected) => value.starts_with(expected.as_bytes()),
            Self::Present => true,
        }
    }
}

/// A span of the day on some days of the week, at a fixed distance from UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeWindow {
    /// The days on which it opens: bit 0 is Monday.
    pub days: u8,
    /// The minute of the day at which it opens, from 0 on.
    pub from: u16,
    /// The minute at which it closes, up to 1440. Not later than `from` means on the day after.
    pub to: u16,
    /// How far its clock is ahead of UTC, in minutes.
    pub utc_offset: i16,
}

impl TimeWindow {
    /// All seven days.
    pub const EVERY_DAY: u8 = 0b111_1111;

    /// Whether it is open at a moment, in seconds since 1970.
    pub fn is_open(&self, now: u64) -> bool {
        let local = self.local(now);
        let day = local.div_euclid(DAY_S);
        // Yesterday's window may still be open.
        [day, day - 1].into_iter().filter(|day| self.opens_on(*day)).any(|day| {
            let (open, close) = self.span(day);
            (open..close).contains(&local)
        })
    }

    /// The first moment after this one at which it opens or closes.
    pub(crate) fn next_change(&self, after: u64) -> Option<u64> {
        let local = self.local(after);
        let day = local.div_euclid(DAY_S);
        (day - 1..=day + 8)
            .filter(|day| self.opens_on(*day))
            .flat_map(|day| <[i64; 2]>::from(self.span(day)))
            .filter(|moment| *moment > local)
            .min()
            .and_then(|moment| u64::try_from(moment - i64::from(self.utc_offset) * 60).ok())
    }

    fn local(&self, now: u64) -> i64 {
        // Far beyond any clock; sums of it still fit.
        const LATEST: i64 = i64::MAX / 2;
        i64::try_from(now).unwrap_or(LATEST).min(LATEST) + i64::from(self.utc_offset) * 60
    }

    fn opens_on(&self, day: i64) -> bool {
        // The first of January 1970 was a Thursday.
        let weekday = (day + 3).rem_euclid(7);
        self.days & (1 << weekday) != 0
    }

    fn span(&self, day: i64) -> (i64, i64) {
        let start = day * DAY_S;
        let overnight = if self.to <= self.from { DAY_S } else { 0 };
        (start + i64::from(self.from) * 60, start + i64::from(self.to) * 60 + overnight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(value: &ValueMatch, fields: &[(&str, &str)], action: PolicyAction) -> bool {
        let headers = RequestHeaders::new(fields.iter().map(|(name, value)| (*name, value.as_bytes())));
        HeaderMatch { name: "x-tenant".to_owned(), value: value.clone() }.matches(&headers, action)
    }

    /// What is asked for, the fields of a request, and whether it matches where it allows and where it denies.
    type Case<'a> = (&'a ValueMatch, &'a [(&'a str, &'a str)], bool, bool);

    #[test]
    fn allowing_is_narrow_and_denying_is_broad() {
        let exact = ValueMatch::Exact("a".to_owned());
        let prefix = ValueMatch::Prefix("a".to_owned());
        let table: [Case<'_>; 20] = [
            (&exact, &[("x-tenant", "a")], true, true),
            (&exact, &[("X-Tenant", "a")], true, true),
            (&exact, &[("x-tenant", "A")], false, false),
            (&exact, &[("x-tenant", "b")], false, false),
            (&exact, &[], false, false),
            (&exact, &[("x-tenant", "a"), ("x-tenant", "b")], false, true),
            (&exact, &[("x-tenant", "a"), ("x_tenant", "b")], false, true),
            (&exact, &[("x_tenant", "a")], false, true),
            (&exact, &[("x-tenant", "b, a")], false, true),
            (&prefix, &[("x-tenant", "abc")], true, true),
            (&prefix, &[("x-tenant", "bab")], false, false),
            (&prefix, &[("x-tenant", "ab"), ("x-tenant", "b")], false, true),
            (&ValueMatch::Present, &[("x-tenant", "")], true, true),
            (&ValueMatch::Present, &[("x_tenant", "")], false, true),
            (&ValueMatch::Present, &[], false, false),
            (&ValueMatch::Absent, &[], true, true),
            (&ValueMatch::Absent, &[("x-other", "")], true, true),
            (&ValueMatch::Absent, &[("x-tenant", "")], false, false),
            (&ValueMatch::Absent, &[("x_tenant", "")], false, true),
            (&ValueMatch::Absent, &[("x-tenantx", "")], true, true),
        ];
        for (value, fields, allows, denies) in table {
            assert_eq!(matches(value, fields, PolicyAction::Allow), allows, "allow {value:?} {fields:?}");
            assert_eq!(matches(value, fields, PolicyAction::Deny), denies, "deny {value:?} {fields:?}");
        }
    }

    /// Monday, 2 March 2026, 00:00 UTC.
    const MONDAY: u64 = 1_772_409_600;
    const HOUR: u64 = 3_600;

    fn window(days: u8, from: u16, to: u16, utc_offset: i16) -> TimeWindow {
        TimeWindow { days, from: from * 60, to: to * 60, utc_offset }
    }

    #[test]
    fn a_window_opens_and_closes_on_its_days() {
        let monday = window(0b1, 8, 18, 0);
        let open = |hour| monday.is_open(MONDAY + hour * HOUR);
        assert!(!open(7) && open(8) && open(17) && !open(18));
        assert!(!open(24 + 9), "Tuesday");
        assert!(open(7 * 24 + 9), "the Monday after");
        let all_day = window(TimeWindow::EVERY_DAY, 0, 24, 0);
        assert!((0..200).all(|hour| all_day.is_open(MONDAY + hour * HOUR)));
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_opens_on() {
        let monday = window(0b1, 22, 6, 0);
        let open = |hour| monday.is_open(MONDAY + hour * HOUR);
        assert!(!open(5), "that is Sunday's night");
        assert!(open(22) && open(24) && open(29) && !open(30));
        assert!(!open(46), "Tuesday evening");
    }

    #[test]
    fn the_offset_moves_hours_and_days() {
        let ahead = window(0b1, 0, 2, 120);
        assert!(ahead.is_open(MONDAY - 2 * HOUR), "Monday has begun there");
        assert!(!ahead.is_open(MONDAY));
        let behind = window(0b1, 0, 2, -5 * 60);
        assert!(!behind.is_open(MONDAY) && behind.is_open(MONDAY + 5 * HOUR));
    }

    #[test]
    fn the_next_change_is_where_the_answer_changes() {
        for window in [window(0b1, 8, 18, 0), window(0b1_0010, 22, 6, 90), window(0b1, 0, 2, -300)] {
            let mut now = MONDAY - 3 * 24 * HOUR;
            for _ in 0..6 {
                let next = window.next_change(now).unwrap();
                assert!(next > now);
                assert_ne!(window.is_open(next - 1), window.is_open(next), "{window:?} {next}");
                assert!((now..next).step_by(600).all(|at| window.is_open(at) == window.is_open(now)));
                now = next;
            }
        }
        let always = window(TimeWindow::EVERY_DAY, 0, 24, 0);
        assert!(always.next_change(MONDAY).is_some(), "it may be asked again for nothing");
        for now in [0, u64::MAX] {
            let _ = (always.is_open(now), always.next_change(now));
        }
    }
}
