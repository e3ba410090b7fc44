use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// Some moment in 2026.
const T0: u64 = 1_790_000_000_000;
/// 1 January 2040.
const Y2040: u64 = 2_208_988_800_000;

fn at(wall: u64, boot: u64) -> Reading {
    Reading { wall, boot }
}

fn anchored() -> Keeper {
    let mut keeper = Keeper::default();
    assert_eq!(keeper.hear(T0, at(T0, 0)), Heard::Believed);
    keeper
}

#[test]
fn a_wall_clock_alone_is_believed() {
    let told = Keeper::default().tell(at(T0, 5));
    assert_eq!((told.ms, told.source, told.wall_ahead_ms), (T0, Source::Wall, 0));
}

#[test]
fn a_wall_clock_before_the_floor_is_not_believed_and_its_distance_is_told() {
    let mut keeper = Keeper::default();
    keeper.passed(T0, at(1_000, 1_000));
    let told = keeper.tell(at(61_000, 61_000));
    assert_eq!((told.ms, told.source), (T0 + 60_000 - 60, Source::Floor));
    assert_eq!(told.wall_ahead_ms, 61_000 - (T0 + 59_940) as i64);
}

#[test]
fn a_wall_clock_that_jumps_after_the_control_planes_word_moves_nothing() {
    let keeper = anchored();
    for wall in [0, T0 - DAY, T0 + DAY, Y2040] {
        let told = keeper.tell(at(wall, HOUR));
        assert_eq!((told.ms, told.source), (T0 + HOUR, Source::Anchor), "{wall}");
    }
}

#[test]
fn a_wall_clock_that_steps_back_to_the_truth_is_believed_again() {
    let keeper = anchored();
    assert_eq!(keeper.tell(at(Y2040, HOUR)).source, Source::Anchor);
    let told = keeper.tell(at(T0 + HOUR + 800, HOUR));
    assert_eq!((told.ms, told.source), (T0 + HOUR + 800, Source::Wall));
}

#[test]
fn a_control_plane_that_jumps_is_doubted_unless_the_wall_clock_says_the_same() {
    let mut keeper = anchored();
    let day = i64::try_from(DAY).unwrap();
    assert_eq!(keeper.hear(T0 + HOUR + DAY, at(T0 + HOUR, HOUR)), Heard::Doubted(day));
    assert_eq!(keeper.tell(at(T0 + HOUR, HOUR)).ms, T0 + HOUR);
    // Anchored at a time that was wrong: both others know better.
    assert_eq!(keeper.hear(T0 + HOUR + DAY, at(T0 + HOUR + DAY, HOUR)), Heard::Believed);
    assert_eq!(keeper.tell(at(T0 + HOUR + DAY, HOUR)).ms, T0 + HOUR + DAY);
}

#[test]
fn a_control_plane_behind_what_certainly_passed_is_not_believed() {
    let mut keeper = Keeper::default();
    keeper.passed(T0, at(T0, 0));
    assert_eq!(keeper.hear(T0 - DAY, at(T0 - DAY, 0)), Heard::Behind(DAY));
    assert_eq!(keeper.tell(at(T0 - DAY, 0)).ms, T0);
}

#[test]
fn a_process_that_starts_again_goes_on_where_the_last_one_was() {
    let saved = anchored().save("start-1".to_owned(), at(T0 + HOUR, HOUR));
    let mut keeper = Keeper::default();
    keeper.restore(&saved, Some("start-1"), at(Y2040, 2 * HOUR));
    let told = keeper.tell(at(Y2040, 2 * HOUR));
    assert_eq!((told.ms, told.source), (T0 + 2 * HOUR, Source::Anchor));
}

#[test]
fn a_machine_that_boots_in_1970_goes_on_from_the_floor() {
    let saved = anchored().save("start-1".to_owned(), at(T0 + HOUR, HOUR));
    let mut keeper = Keeper::default();
    keeper.restore(&saved, Some("start-2"), at(20_000, 20_000));
    let told = keeper.tell(at(20_000, 20_000));
    assert_eq!((told.ms, told.source), (T0 + HOUR - HOUR / DRIFT, Source::Floor));
    assert!(!keeper.is_anchored());
    // The first word of the control plane in this start counts, however far ahead.
    assert_eq!(keeper.hear(T0 + 9 * DAY, at(30_000, 30_000)), Heard::Believed);
    assert_eq!(keeper.tell(at(30_000, 30_000)).ms, T0 + 9 * DAY);
}

#[test]
fn a_clock_saved_by_a_start_that_is_unknown_anchors_nothing() {
    let saved = anchored().save(String::new(), at(T0, HOUR));
    let mut keeper = Keeper::default();
    keeper.restore(&saved, Some(""), at(T0, HOUR));
    keeper.restore(&saved, None, at(T0, HOUR));
    assert!(!keeper.is_anchored());
}

/// What may happen to a machine.
#[derive(Clone, Debug)]
enum Event {
    Hear(u64),
    Passed(u64),
    Restart { boots: bool },
    Step(u64),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let any_time = prop_oneof![0..Y2040, (T0 - 2 * DAY)..(T0 + 2 * DAY)];
    prop_oneof![
        any_time.clone().prop_map(Event::Hear),
        any_time.clone().prop_map(Event::Passed),
        any::<bool>().prop_map(|boots| Event::Restart { boots }),
        any_time.prop_map(Event::Step),
        (0..DAY).prop_map(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn the_floor_never_goes_back_and_no_time_is_told_before_it(
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let (mut keeper, mut now, mut start) = (Keeper::default(), at(T0, 0), 0);
        let mut floor = 0;
        for event in events {
            match event {
                Event::Hear(ms) => { keeper.hear(ms, now); }
                Event::Passed(ms) => keeper.passed(ms, now),
                Event::Restart { boots } => {
                    let saved = keeper.save(format!("start-{start}"), now);
                    if boots {
                        start += 1;
                        now.boot = 0;
                    }
                    keeper = Keeper::default();
                    keeper.restore(&saved, Some(&format!("start-{start}")), now);
                }
                Event::Step(wall) => now.wall = wall,
                Event::Wait(ms) => {
                    now.wall += ms;
                    now.boot += ms;
                }
            }
            let next = keeper.floor.at_least(now);
            // A saved floor is carried on from where it was saved: its thousandth is counted anew.
            prop_assert!(next >= floor, "{next} < {floor}");
            floor = next;
            prop_assert!(keeper.tell(now).ms >= floor);
        }
    }

    /// However the wall clock is set meanwhile: once heard, the time is right to what a quartz drifts. So a renewal that is
    /// due at half a life is neither early nor late by more, and comes once.
    #[test]
    fn the_time_stays_true_whatever_the_wall_clock_does(
        steps in proptest::collection::vec((0..Y2040, 0..DAY), 1..40),
        drift in -50_i64..=50,
    ) {
        let mut keeper = anchored();
        let (mut truth, mut boot_us) = (T0, 0_i64);
        for (wall, waited) in steps {
            truth += waited;
            // Parts per million that the counting clock is wrong by.
            boot_us += waited as i64 * (1_000_000 + drift) / 1_000;
            let boot = (boot_us / 1_000) as u64;
            let told = keeper.tell(at(wall, boot));
            let bound = TOLERANCE_MS + 2 * boot / DRIFT + 1;
            prop_assert!(told.ms.abs_diff(truth) <= bound, "{} is off by more than {bound}", told.ms.abs_diff(truth));
            // It saves itself now and then.
            let saved = keeper.save("start-1".to_owned(), at(wall, boot));
            keeper = Keeper::default();
            keeper.restore(&saved, Some("start-1"), at(wall, boot));
        }
    }

    #[test]
    fn no_reading_and_no_word_overflows(ms in any::<u64>(), wall in any::<u64>(), boot in any::<u64>()) {
        let mut keeper = Keeper::default();
        keeper.passed(ms, at(wall, boot));
        keeper.hear(ms, at(wall, boot));
        keeper.tell(at(wall, u64::MAX));
        keeper.tell(at(u64::MAX, 0));
        keeper.hear(wall, at(ms, u64::MAX));
        keeper.restore(&keeper.save("b".to_owned(), at(ms, boot)).clone(), Some("b"), at(wall, 0));
    }
}
