//! `sampan image …`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use super::output::{self, Bars, Format};
use super::{Global, Outcome};
use crate::image::{self, Image, PullOptions, Store};

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take an image from an OCI layout (folder or tar), a `docker save` archive or a tar of a root file system
    Import {
        /// Folder or file
        path: PathBuf,
        /// Name to give it, such as `redis:7`; needed when the file has none
        name: Option<String>,
    },
    /// Get an image from a registry
    Pull {
        /// Reference, such as `registry.example:5000/team/app:1.2`
        reference: String,
        /// Platform as `os/architecture[/variant]` instead of this host's
        #[arg(long, value_name = "PLATFORM")]
        platform: Option<String>,
        /// Allow plain http to registries that are not on this machine
        #[arg(long)]
        plain_http: bool,
        /// File of a certificate authority to trust as well; may be given several times
        #[arg(long = "ca-file", value_name = "FILE")]
        ca_files: Vec<PathBuf>,
    },
    /// List the images
    Ls {
        /// How to print: `table` or `json`
        #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
        format: Format,
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show everything about images as JSON
    Inspect {
        /// References or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images
    Rm {
        /// References or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove what no image and no pod needs
    Prune {
        /// Also images that no pod uses
        #[arg(short, long)]
        all: bool,
        /// How to print: `table` or `json`
        #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
        format: Format,
    },
    /// Build an image from Debian packages and files, as its `image.toml` says
    Build {
        /// Folder with `image.toml`
        definition: PathBuf,
        /// Write an OCI layout here instead of putting the image into the store
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}

/// Runs one of them.
pub fn run(global: &Global, command: Command) -> Outcome {
    let store = Store::open(&global.folders()?.root)?;
    match command {
        Command::Import { path, name } => {
            let images = image::import(&store, &path, name.as_deref(), &Bars::new())?;
            tell(&images)
        }
        Command::Pull {
            reference,
            platform,
            plain_http,
            ca_files,
        } => {
            let options = PullOptions {
                plain_http,
                ca_files,
                platform,
            };
            let image = image::pull(&store, &reference, &options, &Bars::new())?;
            tell(&[image])
        }
        Command::Ls { format, quiet } => list(&store, format, quiet),
        Command::Inspect { images } => inspect(&store, &images),
        Command::Rm { images } => {
            for reference in &images {
                store.remove(reference)?;
            }
            Ok(0)
        }
        Command::Prune { all, format } => prune(&store, all, format),
        Command::Build { definition, output } => build(&store, &definition, output),
    }
}

fn tell(images: &[Image]) -> Outcome {
    let lines: Vec<String> = images
        .iter()
        .map(|image| format!("{} {}\n", name(image), image.id))
        .collect();
    output::print(&lines.concat())
}

fn name(image: &Image) -> String {
    image
        .references
        .first()
        .map_or("<none>".to_string(), |r| short(r))
}

/// As people write it: without the registry and folder that are implied.
fn short(reference: &str) -> String {
    let text = reference.strip_prefix("docker.io/").unwrap_or(reference);
    text.strip_prefix("library/").unwrap_or(text).to_string()
}

fn list(store: &Store, format: Format, quiet: bool) -> Outcome {
    let images = store.list()?;
    if quiet {
        let ids: Vec<String> = images.iter().map(|i| format!("{}\n", i.id)).collect();
        return output::print(&ids.concat());
    }
    if format == Format::Json {
        let rows: Vec<_> = images
            .iter()
            .map(|i| {
                json!({
                    "version": 1, "id": i.id, "manifest_digest": i.manifest, "references": i.references,
                    "size": i.size, "created": i.config.created(),
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut rows = Vec::new();
    for image in &images {
        let id = image
            .id
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect::<String>();
        let references = if image.references.is_empty() {
            vec!["<none>".to_string()]
        } else {
            image.references.iter().map(|r| short(r)).collect()
        };
        for reference in references {
            rows.push(vec![reference, id.clone(), output::size(image.size)]);
        }
    }
    output::table(&["IMAGE", "ID", "SIZE"], rows)
}

fn inspect(store: &Store, images: &[String]) -> Outcome {
    let mut all = Vec::new();
    for reference in images {
        match store.inspect(reference)? {
            Some(value) => all.push(value),
            None => {
                bail!("no image {reference} in the store; `sampan image ls` lists what is there")
            }
        }
    }
    output::json(&all)
}

fn prune(store: &Store, all: bool, format: Format) -> Outcome {
    let pruned = store.prune(all)?;
    for failure in &pruned.failures {
        output::error(&failure.to_string());
    }
    match format {
        Format::Json => output::json(&json!({
            "version": 1, "freed": pruned.freed, "images": pruned.images, "blobs": pruned.blobs,
            "layers": pruned.layers, "temporaries": pruned.temporaries,
        }))?,
        Format::Table => output::print(&format!("{} freed\n", output::size(pruned.freed)))?,
    };
    Ok(u8::from(!pruned.failures.is_empty()))
}

fn build(store: &Store, definition: &std::path::Path, output: Option<PathBuf>) -> Outcome {
    let bars = Bars::new();
    if let Some(output) = output {
        let built = image::build::build(definition, &output, &bars)?;
        drop(bars);
        return output::print(&format!("{} {}\n", built.name, built.manifest));
    }
    let parent = store.root.join("tmp");
    std::fs::create_dir_all(&parent).with_context(|| format!("make {}", parent.display()))?;
    let layout = parent.join(format!("build-{}", std::process::id()));
    let built = image::build::build(definition, &layout, &bars)
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(image::import(store, &layout, None, &bars)?));
    drop(bars);
    // the store has its own copy by now, or nothing came of it
    let _ = std::fs::remove_dir_all(&layout);
    tell(&built?)
}
