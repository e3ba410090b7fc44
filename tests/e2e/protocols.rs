use signet_cli::lab::runner::Test;

pub(crate) const TESTS: &[Test] = &[];
