//! A cluster's API server, the real control plane beside it, and real sidecars in network namespaces like a pod's.

mod attest;
mod controller;
mod stage;
mod store;
mod webhook;

use signet_cli::lab::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "resources_become_the_meshs_policy_and_are_told_where_they_stand",
        controller::resources_become_the_meshs_policy_and_are_told_where_they_stand,
    ),
    (
        "invalid_resource_keeps_its_last_good_form_and_is_told_the_field",
        controller::invalid_resource_keeps_its_last_good_form_and_is_told_the_field,
    ),
    (
        "api_server_that_was_away_and_has_forgotten_loses_nothing",
        controller::api_server_that_was_away_and_has_forgotten_loses_nothing,
    ),
    (
        "control_plane_that_starts_again_writes_no_status_that_says_the_same",
        controller::control_plane_that_starts_again_writes_no_status_that_says_the_same,
    ),
    (
        "conflict_on_a_status_is_met_with_what_is_there_by_then",
        controller::conflict_on_a_status_is_met_with_what_is_there_by_then,
    ),
    (
        "pods_enrol_by_their_tokens_and_call_each_other",
        attest::pods_enrol_by_their_tokens_and_call_each_other,
    ),
    ("token_that_proves_nothing_gets_no_identity", attest::token_that_proves_nothing_gets_no_identity),
    (
        "pod_whose_certificate_was_revoked_does_not_come_back",
        attest::pod_whose_certificate_was_revoked_does_not_come_back,
    ),
    ("webhook_gives_a_pod_what_the_injector_gives", webhook::webhook_gives_a_pod_what_the_injector_gives),
    (
        "webhook_answers_what_is_malformed_with_what_is_wrong",
        webhook::webhook_answers_what_is_malformed_with_what_is_wrong,
    ),
    (
        "roots_are_where_the_cluster_looks_for_them_and_stay_so",
        webhook::roots_are_where_the_cluster_looks_for_them_and_stay_so,
    ),
    (
        "next_root_is_known_to_the_webhooks_caller_and_to_pods",
        webhook::next_root_is_known_to_the_webhooks_caller_and_to_pods,
    ),
    (
        "store_in_secrets_keeps_the_contract_and_everything_over_a_reopening",
        store::store_in_secrets_keeps_the_contract_and_everything_over_a_reopening,
    ),
    ("store_in_secrets_that_are_gone_is_refused", store::store_in_secrets_that_are_gone_is_refused),
    (
        "two_control_planes_that_write_to_secrets_at_once_lose_nothing",
        store::two_control_planes_that_write_to_secrets_at_once_lose_nothing,
    ),
    (
        "control_plane_with_its_state_in_secrets_survives_being_killed_and_the_api_server_being_away",
        store::control_plane_with_its_state_in_secrets_survives_being_killed_and_the_api_server_being_away,
    ),
    ("rules_of_access_are_all_needed_and_enough", webhook::rules_of_access_are_all_needed_and_enough),
];
