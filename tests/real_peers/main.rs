//! Programs that others wrote, unmodified, with Signet between them. Each test builds a lab of its own; a program that
//! is not installed is a failure.

mod compose;
mod databases;
mod intermediary;
mod iptables;
mod kubectl;
mod kubernetes;
mod messages;
mod nginx;
mod openssl;
mod pair;
mod programs;
mod python;
mod signatures;
mod slow_path;
mod spiffe;
mod tpm;
mod tricks;

use std::process::ExitCode;

use signet_cli::lab::runner::{self, Test};

const TESTS: &[Test] = &[
    ("docker_compose_reads_what_is_injected", compose::docker_compose_reads_what_is_injected),
    (
        "docker_compose_lays_injected_files_over_each_other",
        compose::docker_compose_lays_injected_files_over_each_other,
    ),
    ("compose_specification_takes_what_is_injected", compose::compose_specification_takes_what_is_injected),
    ("curl_and_nginx_see_no_difference", nginx::curl_and_nginx_see_no_difference),
    ("curl_is_refused_what_no_rule_allows", nginx::curl_is_refused_what_no_rule_allows),
    (
        "private_message_through_nginx_is_read_by_nobody_and_arrives",
        intermediary::private_message_through_nginx_is_read_by_nobody_and_arrives,
    ),
    (
        "what_nginx_changes_repeats_or_makes_up_reaches_nobody",
        intermediary::what_nginx_changes_repeats_or_makes_up_reaches_nobody,
    ),
    (
        "caller_at_its_limit_is_told_through_nginx_when_to_come_again",
        intermediary::caller_at_its_limit_is_told_through_nginx_when_to_come_again,
    ),
    ("storm_of_variants_reaches_nothing_forbidden", tricks::storm_of_variants_reaches_nothing_forbidden),
    ("requests_sees_no_difference", python::requests_sees_no_difference),
    ("grpc_sees_no_difference", python::grpc_sees_no_difference),
    ("mariadb_greets_without_delay", databases::mariadb_greets_without_delay),
    ("postgresql_answers_queries", databases::postgresql_answers_queries),
    ("redis_keeps_what_it_is_given", databases::redis_keeps_what_it_is_given),
    ("mosquitto_delivers_to_subscribers", databases::mosquitto_delivers_to_subscribers),
    (
        "sealed_message_through_an_unmeshed_broker_is_verified_end_to_end",
        messages::sealed_message_through_an_unmeshed_broker_is_verified_end_to_end,
    ),
    ("spiffe_for_python_gets_and_verifies_its_svids", spiffe::spiffe_for_python_gets_and_verifies_its_svids),
    (
        "sidecar_enrols_by_an_svid_of_another_implementation",
        spiffe::sidecar_enrols_by_an_svid_of_another_implementation,
    ),
    ("device_is_who_it_is_by_its_tpm_alone", tpm::device_is_who_it_is_by_its_tpm_alone),
    ("bad_tls_clients_never_reach_the_application", openssl::bad_tls_clients_never_reach_the_application),
    (
        "iptables_over_nf_tables_captures_for_a_whole_mesh",
        iptables::iptables_over_nf_tables_captures_for_a_whole_mesh,
    ),
    ("legacy_iptables_captures_for_a_whole_mesh", iptables::legacy_iptables_captures_for_a_whole_mesh),
    (
        "late_client_hello_is_waited_for_on_a_slow_path",
        slow_path::late_client_hello_is_waited_for_on_a_slow_path,
    ),
    (
        "http_message_signatures_verifies_what_message_sign_signed",
        signatures::peer_verifies_what_message_sign_signed,
    ),
    (
        "message_verify_accepts_what_http_message_signatures_signed",
        signatures::message_verify_accepts_what_the_peer_signed,
    ),
    ("message_that_was_changed_is_refused_by_both", signatures::changed_message_is_refused_by_both),
    ("manifests_fit_the_schemas_of_kubernetes", kubernetes::manifests_fit_the_schemas_of_kubernetes),
    ("chart_renders_what_kustomize_renders", kubernetes::chart_renders_what_kustomize_renders),
    (
        "kubectl_applies_policies_and_sees_them_accepted_and_programmed",
        kubectl::kubectl_applies_policies_and_sees_them_accepted_and_programmed,
    ),
    ("http_message_signatures_verifies_messages_of_the_mesh", signatures::peer_verifies_messages_of_the_mesh),
];

fn main() -> ExitCode {
    runner::main(TESTS)
}
