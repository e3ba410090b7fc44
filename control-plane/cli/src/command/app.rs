//! `signet app`: the demonstration's plain programs.

use clap::Subcommand;

use crate::demo::{apps, clients};
use crate::output::{Failure, Verdict, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum App {
    #[command(flatten)]
    Serve(apps::App),
    /// Makes a fixed series of calls to an app and prints what came back
    #[command(subcommand)]
    Call(clients::Client),
}

impl App {
    pub(crate) async fn run(self) -> Result<Verdict, Failure> {
        match self {
            Self::Serve(app) => {
                app.run().await.map_err(|error| Failure::Unavailable(error.to_string()))?;
                Ok(Verdict::Yes)
            }
            Self::Call(client) => {
                let shown = client.run().await;
                print_json(&shown)?;
                Ok(Verdict::of(shown.is_complete()))
            }
        }
    }
}
