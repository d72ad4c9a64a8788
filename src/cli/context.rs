//! From the global options to folders, projects and pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{Global, output};
use crate::compose::{self, LoadRequest, Project};
use crate::network::Cni;
use crate::pod::layout::{Folders, PodDir};
use crate::pod::{adopt, tasks};

impl Global {
    /// The two folders, absolute: the keeper has another working folder.
    pub fn folders(&self) -> anyhow::Result<Folders> {
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("folder {}", path.display()))
        };
        Ok(Folders {
            root: absolute(&self.root)?,
            state: absolute(&self.state)?,
        })
    }

    /// CNI folders.
    pub fn cni(&self) -> anyhow::Result<Cni> {
        Ok(Cni {
            conf_dirs: self.cni_conf.clone(),
            plugin_dirs: self.cni_path.clone(),
            state: self.folders()?.state,
        })
    }

    /// Folder of hooks; the usual one need not be there.
    pub fn hooks_dir(&self) -> Option<PathBuf> {
        let usual = self.hooks_dir == Path::new(crate::pod::hooks::FOLDER);
        (!usual || self.hooks_dir.exists()).then(|| self.hooks_dir.clone())
    }

    fn load_request(&self) -> anyhow::Result<LoadRequest> {
        let working_dir = match &self.project_directory {
            Some(dir) => dir.clone(),
            None => std::env::current_dir().context("current folder")?,
        };
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(LoadRequest {
            files: self.files.clone(),
            working_dir,
            project_name: self.project_name.clone(),
            environment,
            env_files: self.env_files.clone(),
            profiles: self.profiles.clone(),
        })
    }

    /// The project of the compose files; warnings go to the terminal.
    pub fn project(&self) -> anyhow::Result<Project> {
        let loaded = compose::load(&self.load_request()?)?;
        for warning in &loaded.warnings {
            output::warning(warning);
        }
        Ok(loaded.project)
    }

    /// Name of the pod that is meant: `-p`, else the compose file's.
    pub fn pod_name(&self) -> anyhow::Result<String> {
        match &self.project_name {
            Some(name) => Ok(name.clone()),
            None => Ok(compose::load(&self.load_request()?)?.project.name),
        }
    }

    /// The pod that is meant; it must exist.
    pub fn pod(&self) -> anyhow::Result<PodDir> {
        let name = self.pod_name()?;
        check_name(&name)?;
        let dir = self.folders()?.pod(&name);
        if adopt::load(&dir)?.is_none() {
            bail!("no pod {name} here; `sampan up` makes it, `sampan ps -A` lists all");
        }
        Ok(dir)
    }

    /// The pod that is meant, and the services: words are services of the pod of this folder, or tasks of a framework (`TASK`,
    /// `TASK/SERVICE`) where no pod or file was named and the first word is no such service.
    pub fn target(&self, words: Vec<String>) -> anyhow::Result<(PodDir, Vec<String>)> {
        let Some(first) = words.first() else {
            return Ok((self.pod()?, words));
        };
        if self.project_name.is_some() || !self.files.is_empty() {
            return Ok((self.pod()?, words));
        }
        let here = self.pod();
        if let Ok(dir) = &here
            && adopt::load(dir)?.is_some_and(|pod| pod.project.services.contains_key(first))
        {
            return Ok((here?, words));
        }
        if let Some(found) = tasks::find(&self.folders()?, &words)? {
            return Ok(found);
        }
        match here {
            Ok(dir) => Ok((dir, words)),
            Err(error) => Err(error.context(format!("no task {first} here"))),
        }
    }

    /// Name of the pod that a task of a framework is; it must be the pod's only one.
    pub fn pod_of(&self, task: &str) -> anyhow::Result<String> {
        let folders = self.folders()?;
        let Some((dir, _)) = tasks::find(&folders, &[task.to_string()])? else {
            bail!("no task {task} here; `sampan ps -A` lists all");
        };
        let of_pod = tasks::all(&folders)?
            .into_iter()
            .find(|t| t.pod == dir.name);
        let others: Vec<String> = of_pod
            .into_iter()
            .flat_map(|t| t.tasks)
            .map(|(id, _)| id)
            .filter(|id| id != task)
            .collect();
        if !others.is_empty() {
            bail!(
                "pod {} is of task {} too; `sampan -p {} down` removes it with all its tasks",
                dir.name,
                others.join(", "),
                dir.name
            );
        }
        Ok(dir.name)
    }

    /// As [`Global::target`], where one service is needed.
    pub fn target_service(&self, word: String) -> anyhow::Result<(PodDir, String)> {
        let (dir, mut services) = self.target(vec![word.clone()])?;
        match (services.pop(), services.is_empty()) {
            (Some(service), true) => Ok((dir, service)),
            (Some(last), false) => {
                services.push(last);
                let list: Vec<String> = services.iter().map(|s| format!("{word}/{s}")).collect();
                bail!("task {word} has several services: {}", list.join(", "))
            }
            (None, _) => bail!("task {word} has no services"),
        }
    }
}

/// A name must not lead out of the folder of pods.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        bail!("pod name {name:?}: lower case letters, digits, '-' and '_' only");
    }
    Ok(())
}

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("`{text}`: must be KEY=VALUE")),
    }
}
