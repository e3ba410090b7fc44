//! What goes on when parts of the mesh start, stop, fail, and when certificates end.

use signet_cli::lab::runner::Test;

mod authority;
mod check;
mod clocks;
mod drill;
mod island;
mod memory;
mod outage;
mod pressure;
mod revoked;
mod rotation;
mod shutdown;
mod state;
mod tampered;
mod year;

pub(crate) const TESTS: &[Test] = &[
    (
        "certificates_rotate_under_load_and_no_call_or_stream_breaks",
        rotation::certificates_rotate_under_load_and_no_call_or_stream_breaks,
    ),
    (
        "issuer_and_root_rotate_twice_under_load_and_kills_and_no_call_or_stream_breaks",
        authority::issuer_and_root_rotate_twice_under_load_and_kills_and_no_call_or_stream_breaks,
    ),
    (
        "rotations_of_a_year_under_load_and_kills_at_random_moments_fail_no_call",
        year::rotations_of_a_year_under_load_and_kills_at_random_moments_fail_no_call,
    ),
    (
        "emergency_cuts_what_is_open_under_the_old_root_and_what_was_stolen_is_worth_nothing",
        authority::emergency_cuts_what_is_open_under_the_old_root_and_what_was_stolen_is_worth_nothing,
    ),
    (
        "revoked_instance_loses_what_is_open_and_neither_calls_nor_renews_nor_enrols",
        revoked::revoked_instance_loses_what_is_open_and_neither_calls_nor_renews_nor_enrols,
    ),
    (
        "revoked_sidecars_websocket_and_stream_over_http2_end",
        revoked::revoked_sidecars_websocket_and_stream_over_http2_end,
    ),
    (
        "revoked_sidecars_streams_and_tunnels_end_and_its_calls_are_refused",
        revoked::revoked_sidecars_streams_and_tunnels_end_and_its_calls_are_refused,
    ),
    (
        "traffic_and_restarts_go_on_without_a_control_plane",
        outage::traffic_and_restarts_go_on_without_a_control_plane,
    ),
    (
        "sidecar_with_neither_state_nor_control_plane_lets_nothing_through",
        outage::sidecar_with_neither_state_nor_control_plane_lets_nothing_through,
    ),
    (
        "control_plane_killed_after_each_acknowledgement_loses_nothing",
        outage::control_plane_killed_after_each_acknowledgement_loses_nothing,
    ),
    (
        "policy_applied_behind_a_cut_link_arrives_when_it_heals",
        outage::policy_applied_behind_a_cut_link_arrives_when_it_heals,
    ),
    (
        "terminated_sidecar_finishes_what_is_in_flight_and_takes_nothing_new",
        shutdown::terminated_sidecar_finishes_what_is_in_flight_and_takes_nothing_new,
    ),
    (
        "killed_sidecar_leaks_nothing_and_serves_again_when_restarted",
        shutdown::killed_sidecar_leaks_nothing_and_serves_again_when_restarted,
    ),
    (
        "sidecar_killed_as_soon_as_it_is_ready_starts_again_on_its_own",
        state::sidecar_killed_as_soon_as_it_is_ready_starts_again_on_its_own,
    ),
    (
        "saved_policy_that_was_tampered_with_is_not_used",
        state::saved_policy_that_was_tampered_with_is_not_used,
    ),
    (
        "revoked_certificate_stays_refused_on_tampered_state",
        state::revoked_certificate_stays_refused_on_tampered_state,
    ),
    (
        "policy_rolled_back_with_the_control_plane_is_refused",
        state::policy_rolled_back_with_the_control_plane_is_refused,
    ),
    (
        "sidecar_out_of_file_descriptors_survives_and_recovers",
        pressure::sidecar_out_of_file_descriptors_survives_and_recovers,
    ),
    (
        "check_names_the_proxy_whose_rules_were_removed_until_they_are_repaired",
        check::check_names_the_proxy_whose_rules_were_removed_until_they_are_repaired,
    ),
    (
        "check_warns_of_a_sidecar_that_is_missing_and_of_one_that_enrolled_anew",
        check::check_warns_of_a_sidecar_that_is_missing_and_of_one_that_enrolled_anew,
    ),
    (
        "cold_start_alone_serves_within_the_budget_and_then_what_is_marked_for_life_safety",
        island::cold_start_alone_serves_within_the_budget_and_then_what_is_marked_for_life_safety,
    ),
    (
        "stale_policy_that_refuses_lets_nothing_pass_and_is_not_ready_until_confirmed",
        island::stale_policy_that_refuses_lets_nothing_pass_and_is_not_ready_until_confirmed,
    ),
    (
        "certificates_that_ended_offline_fail_closed_and_come_back_without_anybody",
        island::certificates_that_ended_offline_fail_closed_and_come_back_without_anybody,
    ),
    (
        "certificates_that_ended_are_worth_nothing_where_policy_lets_nobody_back",
        island::certificates_that_ended_are_worth_nothing_where_policy_lets_nobody_back,
    ),
    (
        "machine_that_boots_in_1970_serves_from_its_state_and_takes_the_control_planes_time",
        clocks::machine_that_boots_in_1970_serves_from_its_state_and_takes_the_control_planes_time,
    ),
    ("machine_without_a_clock_enrols_and_serves", clocks::machine_without_a_clock_enrols_and_serves),
    (
        "wall_clock_that_jumps_during_traffic_changes_nothing_and_is_told",
        clocks::wall_clock_that_jumps_during_traffic_changes_nothing_and_is_told,
    ),
    (
        "control_plane_whose_clock_jumps_issues_nothing_and_nobody_loses_what_holds",
        clocks::control_plane_whose_clock_jumps_issues_nothing_and_nobody_loses_what_holds,
    ),
    (
        "message_refused_for_its_time_says_how_far_the_clocks_are_apart",
        clocks::message_refused_for_its_time_says_how_far_the_clocks_are_apart,
    ),
    (
        "tampering_under_load_cuts_everything_destroys_the_keys_and_needs_a_person",
        tampered::tampering_under_load_cuts_everything_destroys_the_keys_and_needs_a_person,
    ),
    (
        "tampering_destroys_the_keys_though_nobody_can_be_told",
        tampered::tampering_destroys_the_keys_though_nobody_can_be_told,
    ),
    (
        "end_of_a_tamper_command_is_tampering_unless_the_sidecar_is_stopped_too",
        tampered::end_of_a_tamper_command_is_tampering_unless_the_sidecar_is_stopped_too,
    ),
];
