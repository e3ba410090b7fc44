//! What a rule asks for besides: header fields, source addresses, time windows.

use serde_saphyr::Spanned;

use crate::compile::{Scope, value};
use crate::condition::{DAY_MINUTES, HeaderMatch, TimeWindow, ValueMatch};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::header_policy::field_name;
use crate::manifest::{ConditionSpec, HeaderSpec, List, WindowSpec};
use crate::model::Conditions;

/// The days of the week, from the one that bit 0 of a window stands for.
pub(crate) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Longest value of a header field that is asked for.
const MAX_VALUE_BYTES: usize = 1_024;

/// The furthest that clocks are from UTC, in minutes.
const MAX_OFFSET: i16 = 14 * 60;

pub(super) fn header(scope: &mut Scope<'_>, spec: &Spanned<HeaderSpec>) -> Option<HeaderMatch> {
    let HeaderSpec { name, exact, prefix, present, absent } = &spec.value;
    let field = field_name(&name.value);
    if let Err(error) = field {
        let message = format!("{} is no header field to ask for: {error}", quoted(&name.value));
        scope.refuse(Place::of(name), message, "name a field that the application reads, such as `x-tenant`");
    }
    let value = match (exact, prefix, present, absent) {
        (Some(text), None, None, None) => field_value(scope, text).map(ValueMatch::Exact),
        (None, Some(text), None, None) => field_value(scope, text).map(ValueMatch::Prefix),
        (None, None, Some(yes), None) => said(scope, yes, "absent").map(|()| ValueMatch::Present),
        (None, None, None, Some(yes)) => said(scope, yes, "present").map(|()| ValueMatch::Absent),
        _ => {
            let message = "a header has exactly one of `exact`, `prefix`, `present`, `absent`".to_owned();
            scope.refuse(Place::of(spec), message, "write `present: true` if any value will do");
            None
        }
    };
    Some(HeaderMatch { name: field.ok()?, value: value? })
}

/// A value that can stand in a header field and has only one spelling there.
pub(super) fn field_value(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<String> {
    let value = text.value.as_str();
    let is_plain = (1..=MAX_VALUE_BYTES).contains(&value.len())
        && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && value.trim_ascii() == value;
    if is_plain {
        return Some(value.to_owned());
    }
    let message = format!("{} is no value of a header field", quoted(value));
    let fix = "write 1 to 1024 printable ASCII characters without spaces at the ends";
    scope.refuse(Place::of(text), message, fix);
    None
}

pub(super) fn said(scope: &mut Scope<'_>, yes: &Spanned<bool>, opposite: &str) -> Option<()> {
    if !yes.value {
        let message = "`false` says nothing here".to_owned();
        scope.refuse(Place::of(yes), message, format!("write `{opposite}: true` for the opposite"));
    }
    yes.value.then_some(())
}

pub(super) fn conditions(scope: &mut Scope<'_>, spec: Option<&Spanned<ConditionSpec>>) -> Conditions {
    let Some(spec) = spec else { return Conditions::default() };
    let ConditionSpec { source_addresses, time } = &spec.value;
    if source_addresses.is_none() && time.is_none() {
        let message = "`when` without `sourceAddresses` and `time` asks for nothing".to_owned();
        scope.refuse(Place::of(spec), message, "leave it out if that is meant");
    }
    let ranges = value::entries(scope, source_addresses.as_ref(), "sourceAddresses", "for any address");
    let source_addresses = ranges.iter().filter_map(|text| value::cidr(scope, text)).collect();
    let windows = value::entries(scope, time.as_ref(), "time", "for any time");
    Conditions { source_addresses, time: windows.iter().filter_map(|entry| window(scope, entry)).collect() }
}

fn window(scope: &mut Scope<'_>, spec: &Spanned<WindowSpec>) -> Option<TimeWindow> {
    let WindowSpec { days, from, to, utc_offset } = &spec.value;
    if days.is_none() && from.is_none() && to.is_none() {
        let message = "a time window without `days`, `from` and `to` is always open".to_owned();
        scope.refuse(Place::of(spec), message, "say when it opens and closes, or remove it");
        return None;
    }
    let days = match days {
        Some(list) => weekdays(scope, list),
        None => Some(TimeWindow::EVERY_DAY),
    };
    let (from, to) = match (from, to) {
        (Some(from), Some(to)) => (clock(scope, from, DAY_MINUTES - 1), clock(scope, to, DAY_MINUTES)),
        (None, None) => (Some(0), Some(DAY_MINUTES)),
        _ => {
            let message = "a time window has both `from` and `to`, or neither".to_owned();
            scope.refuse(
                Place::of(spec),
                message,
                "add the other; `from: \"00:00\"` and `to: \"24:00\"` are a day",
            );
            (None, None)
        }
    };
    let utc_offset = match utc_offset {
        Some(text) => offset(scope, text),
        None => Some(0),
    };
    if from.is_some() && from == to {
        let message = "the window closes when it opens".to_owned();
        scope.refuse(Place::of(spec), message, "leave out `from` and `to` for the whole day");
    }
    Some(TimeWindow { days: days?, from: from?, to: to?, utc_offset: utc_offset? })
}

/// Single days, and spans of them such as `mon-fri`.
fn weekdays(scope: &mut Scope<'_>, list: &List<String>) -> Option<u8> {
    let mut days = 0;
    for text in value::entries(scope, Some(list), "days", "for every day") {
        let (first, last) = text.value.split_once('-').unwrap_or((&text.value, &text.value));
        let number = |name: &str| DAYS.iter().position(|day| *day == name);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            let message = format!("{} is no day of the week", quoted(&text.value));
            scope.refuse(Place::of(text), message, suggestion(&text.value, DAYS.into_iter()));
            continue;
        };
        let span = (last + DAYS.len() - first) % DAYS.len();
        days |= (0..=span).fold(0, |days, step| days | 1 << ((first + step) % DAYS.len()));
    }
    (days != 0).then_some(days)
}

/// `HH:MM` in minutes of the day.
fn clock(scope: &mut Scope<'_>, text: &Spanned<String>, latest: u16) -> Option<u16> {
    let minutes = hours_and_minutes(&text.value).filter(|minutes| *minutes <= latest);
    if minutes.is_none() {
        let message = format!("{} is no time of the day", quoted(&text.value));
        scope.refuse(
            Place::of(text),
            message,
            "write hours and minutes such as \"08:00\"; only `to` takes \"24:00\"",
        );
    }
    minutes
}

fn offset(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<i16> {
    let read = || {
        let (sign, rest) = match text.value.as_bytes().first()? {
            b'+' => (1, text.value.get(1..)?),
            b'-' => (-1, text.value.get(1..)?),
            _ => return (text.value == "Z").then_some(0),
        };
        let minutes = i16::try_from(hours_and_minutes(rest)?).ok()?;
        (minutes <= MAX_OFFSET).then_some(sign * minutes)
    };
    let minutes = read();
    if minutes.is_none() {
        let message = format!("{} is no distance from UTC", quoted(&text.value));
        scope.refuse(
            Place::of(text),
            message,
            "write `Z`, or hours and minutes such as \"+02:00\"; up to 14 hours",
        );
    }
    minutes
}

/// Two digits, a colon, two digits: up to 24:00.
fn hours_and_minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| {
        let is_plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain { digits.parse::<u16>().ok() } else { None }
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= DAY_MINUTES).then_some(hours * 60 + minutes)
}
