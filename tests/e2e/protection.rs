//! How messages are protected: batches of signatures, signatures one by one, codes with checkpoints, verification after
//! delivery, and the level that does without.

use signet_cli::lab::runner::Test;

mod batches;
mod forms;
mod later;
mod levels;
mod macs;
mod own;
mod private;
mod public;
mod routes;
mod smuggling;
mod stand;

pub(crate) const TESTS: &[Test] = &[
    (
        "calls_at_the_same_moment_share_signatures_and_each_answer_is_right",
        batches::calls_at_the_same_moment_share_signatures_and_each_answer_is_right,
    ),
    (
        "leaf_of_a_batch_is_good_once_and_on_its_own_connection",
        batches::leaf_of_a_batch_is_good_once_and_on_its_own_connection,
    ),
    ("tampered_proof_of_a_batch_is_refused", batches::tampered_proof_of_a_batch_is_refused),
    (
        "root_that_is_known_for_one_key_is_worthless_under_another",
        batches::root_that_is_known_for_one_key_is_worthless_under_another,
    ),
    ("policy_chooses_the_form_of_requests", forms::policy_chooses_the_form_of_requests),
    ("answer_has_the_form_of_its_request", forms::answer_has_the_form_of_its_request),
    ("form_and_tag_and_algorithm_must_agree", forms::form_and_tag_and_algorithm_must_agree),
    (
        "authenticated_calls_are_all_covered_by_checkpoints_that_fit",
        macs::authenticated_calls_are_all_covered_by_checkpoints_that_fit,
    ),
    (
        "code_that_was_not_agreed_on_or_is_not_of_its_place_is_refused",
        macs::code_that_was_not_agreed_on_or_is_not_of_its_place_is_refused,
    ),
    (
        "checkpoint_is_answered_with_one_and_reaches_no_app",
        macs::checkpoint_is_answered_with_one_and_reaches_no_app,
    ),
    (
        "checkpoint_that_does_not_fit_ends_the_connection_as_an_incident",
        macs::checkpoint_that_does_not_fit_ends_the_connection_as_an_incident,
    ),
    (
        "who_owes_checkpoints_is_not_heard_until_they_come",
        macs::who_owes_checkpoints_is_not_heard_until_they_come,
    ),
    ("calls_verified_later_are_all_verified", later::calls_verified_later_are_all_verified),
    (
        "request_that_turns_out_forged_gets_no_answer_and_ends_its_connection",
        later::request_that_turns_out_forged_gets_no_answer_and_ends_its_connection,
    ),
    (
        "answer_that_turns_out_forged_ends_its_connection_as_an_incident",
        later::answer_that_turns_out_forged_ends_its_connection_as_an_incident,
    ),
    (
        "public_exchange_shows_nothing_of_the_mesh_to_either_end",
        public::public_exchange_shows_nothing_of_the_mesh_to_either_end,
    ),
    ("public_exchange_crosses_the_wire_unsigned", public::public_exchange_crosses_the_wire_unsigned),
    ("protected_workload_takes_no_unsigned_request", public::protected_workload_takes_no_unsigned_request),
    ("signature_to_a_public_workload_is_verified", public::signature_to_a_public_workload_is_verified),
    (
        "unsigned_request_smuggles_nothing_of_the_mesh",
        smuggling::unsigned_request_smuggles_nothing_of_the_mesh,
    ),
    (
        "records_before_an_empty_list_element_are_refused_unsigned",
        smuggling::records_before_an_empty_list_element_are_refused_unsigned,
    ),
    (
        "claim_of_a_signature_in_an_unsigned_answer_does_not_arrive",
        smuggling::claim_of_a_signature_in_an_unsigned_answer_does_not_arrive,
    ),
    ("unsigned_answer_smuggles_nothing_of_the_mesh", smuggling::unsigned_answer_smuggles_nothing_of_the_mesh),
    (
        "raised_level_ends_unsigned_exchanges_and_signs_the_next_call",
        levels::raised_level_ends_unsigned_exchanges_and_signs_the_next_call,
    ),
    (
        "unsigned_call_that_waits_for_its_answer_ends_when_the_level_is_raised",
        levels::unsigned_call_that_waits_for_its_answer_ends_when_the_level_is_raised,
    ),
    (
        "answers_must_be_signed_from_the_moment_the_level_is_raised",
        levels::answers_must_be_signed_from_the_moment_the_level_is_raised,
    ),
    (
        "lowered_level_lets_the_next_call_pass_unsigned",
        levels::lowered_level_lets_the_next_call_pass_unsigned,
    ),
    (
        "private_exchange_reaches_both_ends_as_it_was_sent",
        private::private_exchange_reaches_both_ends_as_it_was_sent,
    ),
    ("what_is_sealed_cannot_be_read_where_tls_ends", private::what_is_sealed_cannot_be_read_where_tls_ends),
    (
        "private_workload_takes_nothing_that_is_not_sealed",
        private::private_workload_takes_nothing_that_is_not_sealed,
    ),
    (
        "what_was_sealed_by_another_or_for_another_request_is_refused",
        private::what_was_sealed_by_another_or_for_another_request_is_refused,
    ),
    (
        "app_may_ask_for_more_protection_never_for_less",
        private::app_may_ask_for_more_protection_never_for_less,
    ),
    (
        "nothing_is_sent_to_a_private_workload_without_a_key",
        private::nothing_is_sent_to_a_private_workload_without_a_key,
    ),
    (
        "routes_of_one_connection_are_protected_each_in_its_way",
        routes::routes_of_one_connection_are_protected_each_in_its_way,
    ),
    ("receiver_enforces_the_floor_of_each_route", routes::receiver_enforces_the_floor_of_each_route),
    ("signatures_of_the_app_itself_pass_byte_for_byte", own::signatures_of_the_app_itself_pass_byte_for_byte),
    (
        "signatures_of_the_app_in_one_line_stay_in_one_line",
        own::signatures_of_the_app_in_one_line_stay_in_one_line,
    ),
    (
        "signature_of_the_app_by_the_draft_before_rfc_9421_passes",
        own::signature_of_the_app_by_the_draft_before_rfc_9421_passes,
    ),
    ("app_cannot_claim_a_signature_of_the_mesh", own::app_cannot_claim_a_signature_of_the_mesh),
    (
        "answer_framed_twice_by_the_app_arrives_whole_and_framed_once",
        own::answer_framed_twice_by_the_app_arrives_whole_and_framed_once,
    ),
    ("answer_framed_twice_by_a_peer_is_not_believed", own::answer_framed_twice_by_a_peer_is_not_believed),
];
