//! `signet inject compose`.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;
use signet_control_plane::bootstrap::{self, Wanted};
use signet_identity::{Class, SpiffeId, TrustDomain};
use signet_inject::compose::{self, Enrolment, Injected, Input, Options, Outcome, Severity, Source};

use super::digest;
use crate::output::{Failure, Format, Verdict, print_bytes, print_json, text_or_json};
use crate::{files, unified};

/// How long a join token waits for its sidecar's first start.
const TOKEN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often a sidecar may lose its volume and enrol anew with the token it has.
const TOKEN_USES: u32 = 10;
/// How many of those may have certificates that are still good: one that lost its volume cannot give its back.
const TOKEN_INSTANCES: u32 = 3;

/// Writes a Compose file with a sidecar beside each service, and prepares the mesh it belongs to
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet inject compose --dry-run docker-compose.yml\n  signet inject compose --in-place docker-compose.yml\n  signet inject compose docker-compose.yml --write docker-compose.mesh.yml\n  signet inject compose --in-place -f docker-compose.yml -f docker-compose.override.yml"
)]
pub(crate) struct Compose {
    /// The Compose file, or - for standard input; several are laid over each other, and each is written by itself
    #[arg(required_unless_present = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The same, as Compose takes it
    #[arg(short, long, value_name = "FILE", conflicts_with = "files")]
    file: Vec<PathBuf>,
    /// Put the result in the file's place
    #[arg(long, conflicts_with = "write")]
    in_place: bool,
    /// Write the result there; left out: to standard output
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Show what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Name of the project; left out: as Compose finds it
    #[arg(long, env = "COMPOSE_PROJECT_NAME", value_name = "NAME")]
    project_name: Option<String>,
    /// Trust domain of all identities; left out: PROJECT.signet.internal
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Device in the identities; left out: the project's name
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Class of the identities: platform, agent, app or external
    #[arg(long, default_value = "app", value_parser = class)]
    class: Class,
    /// Where authority, tokens and manifests are put, as seen from the Compose file's folder
    #[arg(long, default_value = "./signet", value_name = "FOLDER")]
    directory: String,
    /// Make join tokens anew, also where there are some
    #[arg(long)]
    new_tokens: bool,
    /// What stands before the images' names, such as registry.example/signet/
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PREFIX")]
    image_prefix: String,
    /// Tag of the images
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_name = "TAG")]
    tag: String,
    /// The Docker engine's socket. `signet-keeper` uses it to bring back what an engine's restart leaves behind
    #[arg(long, default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker_socket: String,
    /// Add no `signet-keeper`: no container gets the engine's socket
    #[arg(long)]
    no_keeper: bool,
    /// Write a file anew although somebody has changed what stands between the marks; the changes are lost
    #[arg(long)]
    force: bool,
    /// Refuse plaintext within the mesh from the start
    #[arg(long)]
    strict: bool,
    /// First of the host's ports that the control plane and the guards of services of the host's network listen at: one,
    /// and three for each guard
    #[arg(long, default_value_t = 15100, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=60000))]
    host_ports: u16,
    /// Address by which others reach this host: published ports are advertised there
    #[arg(long, value_name = "IP")]
    host_address: Option<IpAddr>,
}

impl Compose {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let paths: Vec<&Path> = self.files.iter().chain(&self.file).map(PathBuf::as_path).collect();
        let read: Vec<(String, String)> = paths
            .iter()
            .map(|path| {
                files::refuse_stdin_in_place(path, self.in_place)?;
                let name =
                    if path.as_os_str() == "-" { "<stdin>".to_owned() } else { path.display().to_string() };
                Ok((name, files::read(path)?))
            })
            .collect::<Result<_, Failure>>()?;
        let ([file, ..], [(name, text), more @ ..]) = (paths.as_slice(), read.as_slice()) else {
            return Err(Failure::Usage("no file is given".to_owned()));
        };
        if !more.is_empty() && !self.in_place && !self.dry_run {
            return Err(Failure::Usage(
                "each of several files is written by itself; fix: --in-place, or --dry-run to see what would change"
                    .to_owned(),
            ));
        }
        let folder =
            file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let over: Vec<Source<'_>> = more.iter().map(|(file, text)| Source { file, text }).collect();
        let options = self.options(folder)?;
        let others =
            |path: &str| files::read_regular(&folder.join(path)).map_err(|failure| failure.to_string());
        let input =
            Input { digest: &digest, file: name, options: &options, over: &over, read: &others, text };
        let injected = compose::inject(&input).map_err(|fault| Failure::Usage(fault.to_string()))?;
        check(&injected.manifests)?;
        let mut notes = Vec::new();
        if !self.dry_run {
            // First what the file needs: with it missing, a file that was written would be of no use.
            notes = self.prepare(&folder.join(&self.directory), &options, &injected)?;
            let texts = std::iter::once(&injected.text).chain(&injected.over).map(String::as_bytes);
            if let Some(target) = &self.write {
                files::replace(target, injected.text.as_bytes(), 0o644)?;
            } else if self.in_place {
                files::replace_all(&paths.iter().copied().zip(texts).collect::<Vec<_>>())?;
            }
        }
        self.show(format, &read, &injected, &notes)?;
        Ok(Verdict::Yes)
    }

    fn options(&self, folder: &Path) -> Result<Options, Failure> {
        let project = match &self.project_name {
            Some(name) => name.clone(),
            None => fs::canonicalize(folder)
                .ok()
                .and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_default(),
        };
        // As Compose does, and then as a manifest may be called.
        let lower: String = project.to_lowercase().replace('_', "-");
        let lower: String = lower
            .chars()
            .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-')
            .take(40)
            .collect();
        let trimmed = lower.trim_matches('-');
        let mesh = if trimmed.is_empty() { "project".to_owned() } else { trimmed.to_owned() };
        let device = self.device.clone().unwrap_or_else(|| mesh.clone());
        let trust_domain =
            self.trust_domain.as_ref().map_or_else(|| format!("{mesh}.signet.internal"), ToString::to_string);
        let directory = if self.directory.starts_with(['/', '.']) {
            self.directory.clone()
        } else {
            format!("./{}", self.directory)
        };
        let valid_image =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
        if !valid_image(&self.image_prefix) || !valid_image(&self.tag) || self.tag.is_empty() {
            return Err(Failure::Usage("an image's name has letters, digits and `._-/:@` only".to_owned()));
        }
        Ok(Options {
            class: self.class.to_string(),
            device,
            directory: directory.trim_end_matches('/').to_owned(),
            docker_socket: (!self.no_keeper).then(|| self.docker_socket.clone()),
            force: self.force,
            host_address: self.host_address,
            host_ports: self.host_ports,
            image_prefix: self.image_prefix.clone(),
            mesh,
            strict: self.strict,
            tag: self.tag.clone(),
            trust_domain,
        })
    }

    /// Makes the mesh's directory, with whatever is not there yet.
    fn prepare(
        &self,
        directory: &Path,
        options: &Options,
        injected: &Injected,
    ) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        files::private_directory(directory)?;
        // The directory often lies in a repository, and keys do not belong into one.
        files::replace(&directory.join(".gitignore"), b"*\n", 0o644)?;
        let (bootstrap, tokens) = (directory.join("bootstrap"), directory.join("tokens"));
        for folder in [&bootstrap, &tokens] {
            files::folder(folder)?;
        }
        let missing: Vec<&Enrolment> = injected
            .enrolments
            .iter()
            .filter(|enrolment| self.new_tokens || !directory.join(&enrolment.token_file).exists())
            .collect();
        let trust_domain: TrustDomain = options
            .trust_domain
            .parse()
            .map_err(|error| Failure::Usage(format!("--trust-domain {}: {error}", options.trust_domain)))?;
        let wanted = missing.iter().map(|enrolment| {
            let id = SpiffeId::workload(&trust_domain, self.class, &options.device, &enrolment.service)
                .map_err(|error| {
                    Failure::Usage(format!("the identity of `{}`: {error}", enrolment.service))
                })?;
            Ok(Wanted {
                id,
                network: enrolment.network.clone(),
                uses: TOKEN_USES,
                instances: TOKEN_INSTANCES,
                ttl: TOKEN_TTL,
            })
        });
        let wanted = wanted.collect::<Result<Vec<_>, Failure>>()?;
        let made = bootstrap::prepare(&bootstrap, &trust_domain, &wanted, SystemTime::now())
            .map_err(|error| Failure::Usage(error.to_string()))?;
        for (enrolment, token) in missing.iter().zip(&made) {
            files::replace(&directory.join(&enrolment.token_file), token.as_bytes(), 0o644)?;
        }
        if !made.is_empty() {
            let days = TOKEN_TTL.as_secs() / 86_400;
            notes.push(format!(
                "{} join tokens made, good for {days} days and {TOKEN_USES} enrolments each",
                made.len()
            ));
        }
        let manifests = bootstrap.join("mesh.yaml");
        match fs::read_to_string(&manifests) {
            Ok(found) if found == injected.manifests => {}
            Ok(_) => {
                // An operator may have edited it.
                let beside = manifests.with_extension("yaml.new");
                files::replace(&beside, injected.manifests.as_bytes(), 0o644)?;
                notes.push(format!(
                    "{} is another one and stays; what would be written is in {}",
                    manifests.display(),
                    beside.display()
                ));
            }
            Err(_) => files::replace(&manifests, injected.manifests.as_bytes(), 0o644)?,
        }
        files::open_within(&bootstrap)?;
        files::open_within(&tokens)?;
        Ok(notes)
    }

    fn show(
        &self,
        format: Format,
        before: &[(String, String)],
        injected: &Injected,
        notes: &[String],
    ) -> Result<(), Failure> {
        let name = before.first().map_or("", |(name, _)| name);
        let to_stdout = !self.in_place && self.write.is_none() && !self.dry_run;
        let after = std::iter::once(&injected.text).chain(&injected.over);
        let differences =
            before.iter().zip(after).map(|((name, before), after)| unified::diff(name, before, after));
        let diff: String = if self.dry_run { differences.collect() } else { String::new() };
        if format == Format::Json {
            let services: HashMap<&str, &Outcome> =
                injected.services.iter().map(|(name, outcome)| (name.as_str(), outcome)).collect();
            return print_json(&json!({
                "compose": to_stdout.then_some(&injected.text),
                "diff": self.dry_run.then_some(diff),
                "services": services,
                "findings": injected.findings,
                "notes": notes,
            }));
        }
        if self.dry_run {
            print_bytes(diff.as_bytes())?;
        } else if to_stdout {
            print_bytes(injected.text.as_bytes())?;
        }
        report(name, injected, notes);
        Ok(())
    }
}

/// Tells on standard error what was done, so that standard output holds the file alone.
fn report(name: &str, injected: &Injected, notes: &[String]) {
    let count = |wanted: fn(&Outcome) -> bool| injected.services.iter().filter(|(_, is)| wanted(is)).count();
    for finding in &injected.findings {
        let level = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
        };
        let service =
            if finding.service.is_empty() { String::new() } else { format!("{}: ", finding.service) };
        eprintln!("{}:{}: {level}: {service}{}", finding.file, finding.line, finding.text);
    }
    for note in notes {
        eprintln!("{name}: {note}");
    }
    eprintln!(
        "{name}: {} services meshed, {} guarded in the host's network, {} share a sidecar, {} left as they are",
        count(|is| matches!(is, Outcome::Meshed)),
        count(|is| matches!(is, Outcome::Guarded)),
        count(|is| matches!(is, Outcome::Shares { .. })),
        count(|is| matches!(is, Outcome::Left { .. })),
    );
}

/// What is written must be what the control plane takes.
fn check(manifests: &str) -> Result<(), Failure> {
    let diagnostics = match signet_policy::parse_manifests("mesh.yaml", manifests) {
        Ok(parsed) => signet_policy::compile(&parsed).err().unwrap_or_default(),
        Err(diagnostics) => diagnostics,
    };
    if diagnostics.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    Err(Failure::Usage(format!("the manifests of this project would be refused:\n{}", lines.join("\n"))))
}

fn class(text: &str) -> Result<Class, String> {
    text.parse().map_err(|_| "it is platform, agent, app or external".to_owned())
}
