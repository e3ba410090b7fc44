//! What passes through two sidecars, and how: every kind of application, and every kind of bad manners.

use signet_cli::lab::runner::Test;

mod bodies;
mod first_words;
pub(crate) mod heads;
pub(crate) mod http;
mod manners;
mod permissive;
pub(crate) mod server;
pub(crate) mod stage;
mod streams;
mod transcripts;
pub(crate) mod websocket;

pub(crate) const TESTS: &[Test] = &[
    (
        "every_app_answers_its_client_as_without_the_mesh",
        transcripts::every_app_answers_its_client_as_without_the_mesh,
    ),
    (
        "every_app_answers_its_client_as_without_the_mesh_in_plain_rfc_9421",
        transcripts::every_app_answers_its_client_as_without_the_mesh_in_plain_rfc_9421,
    ),
    (
        "every_app_answers_its_client_as_without_the_mesh_at_level_public",
        transcripts::every_app_answers_its_client_as_without_the_mesh_at_level_public,
    ),
    (
        "every_app_answers_its_client_as_without_the_mesh_at_level_private",
        transcripts::every_app_answers_its_client_as_without_the_mesh_at_level_private,
    ),
    (
        "twenty_mebibytes_pass_both_ways_and_no_sidecar_holds_them",
        bodies::twenty_mebibytes_pass_both_ways_and_no_sidecar_holds_them,
    ),
    ("each_event_passes_before_the_next_is_made", bodies::each_event_passes_before_the_next_is_made),
    (
        "large_body_each_way_grows_no_sidecar_by_eight_mebibytes",
        bodies::large_body_each_way_grows_no_sidecar_by_eight_mebibytes,
    ),
    (
        "old_and_rare_http_reaches_the_app_as_it_was_sent",
        manners::old_and_rare_http_reaches_the_app_as_it_was_sent,
    ),
    ("oversized_head_is_refused_by_name", heads::oversized_head_is_refused_by_name),
    ("oversized_head_is_refused_by_name_in_http2_too", heads::oversized_head_is_refused_by_name_in_http2_too),
    ("bad_http_is_refused_and_harms_nobody_else", manners::bad_http_is_refused_and_harms_nobody_else),
    (
        "body_that_breaks_off_never_looks_complete_to_the_app",
        manners::body_that_breaks_off_never_looks_complete_to_the_app,
    ),
    ("each_side_of_a_connection_ends_on_its_own", streams::each_side_of_a_connection_ends_on_its_own),
    (
        "each_side_of_an_unsigned_connection_ends_on_its_own",
        streams::each_side_of_an_unsigned_connection_ends_on_its_own,
    ),
    (
        "each_side_of_an_unsigned_connection_to_a_declared_port_ends_on_its_own",
        streams::each_side_of_an_unsigned_connection_to_a_declared_port_ends_on_its_own,
    ),
    (
        "websocket_passes_with_the_first_bytes_of_both_sides",
        websocket::websocket_passes_with_the_first_bytes_of_both_sides,
    ),
    (
        "websocket_passes_at_level_public_and_at_level_private",
        websocket::websocket_passes_at_level_public_and_at_level_private,
    ),
    (
        "websocket_is_refused_where_its_path_is_not_permitted",
        websocket::websocket_is_refused_where_its_path_is_not_permitted,
    ),
    ("tls_of_the_app_itself_passes_untouched", streams::tls_of_the_app_itself_passes_untouched),
    (
        "server_that_speaks_first_is_heard_and_sees_no_phantom_connection",
        first_words::server_that_speaks_first_is_heard_and_sees_no_phantom_connection,
    ),
    (
        "server_that_speaks_first_is_heard_on_unsigned_streams_too",
        first_words::server_that_speaks_first_is_heard_on_unsigned_streams_too,
    ),
    (
        "http_app_is_reached_through_the_release_of_an_unsigned_stream_too",
        first_words::http_app_is_reached_through_the_release_of_an_unsigned_stream_too,
    ),
    (
        "http_app_on_a_port_of_unknown_habit_sees_no_connection_without_a_request",
        first_words::http_app_on_a_port_of_unknown_habit_sees_no_connection_without_a_request,
    ),
    (
        "late_client_hello_reaches_a_server_that_speaks_first_on_a_permissive_port",
        first_words::late_client_hello_reaches_a_server_that_speaks_first_on_a_permissive_port,
    ),
    (
        "late_client_hello_of_a_workload_without_ports_is_waited_for_too",
        first_words::late_client_hello_of_a_workload_without_ports_is_waited_for_too,
    ),
    (
        "plaintext_caller_is_served_exactly_where_anyone_may_call",
        permissive::plaintext_caller_is_served_exactly_where_anyone_may_call,
    ),
];
