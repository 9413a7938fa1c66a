//! Running Cargo, and what Cargo knows, in this repository.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository this tool was built in.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// The repository and the Cargo that this tool was started by.
    pub(crate) fn here() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            root: manifest.parent().unwrap_or(manifest).to_path_buf(),
            cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        }
    }

    /// A path inside the repository.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Cargo with `arguments`, separated by white space, in the repository's root.
    pub(crate) fn cargo(&self, arguments: &str) -> Command {
        let mut command = self.program(&self.cargo);
        command.args(arguments.split_whitespace());
        // `cargo run` describes this tool in the environment. Build scripts that watch these
        // variables would run again whenever Cargo is called now by hand and now from here.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Any program, in the repository's root and without an input that it could wait for.
    pub(crate) fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// The packages of `package`'s tree on this machine, itself included, as Cargo resolves it
    /// for that package alone: normal and build dependencies, each package once.
    pub(crate) fn tree(&self, package: &str) -> Result<Vec<TreePackage>, String> {
        let text = read(
            self.cargo("tree --edges normal,build --prefix none --no-dedupe --quiet")
                .args(["--package", package, "--format", "{p}|{f}"]),
        )?;
        Ok(parse_tree(&text))
    }
}

/// One package in a dependency tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TreePackage {
    /// Its name on the registry.
    pub(crate) name: String,
    /// Its version; two versions of one name are two packages.
    pub(crate) version: String,
    /// The features it is built with.
    pub(crate) features: Vec<String>,
}

fn parse_tree(text: &str) -> Vec<TreePackage> {
    let mut packages: Vec<TreePackage> = text.lines().filter_map(parse_tree_line).collect();
    packages.sort();
    packages.dedup_by(|a, b| (&a.name, &a.version) == (&b.name, &b.version));
    packages
}

/// Reads `name v1.2.3 (path or note)|feature,feature`.
fn parse_tree_line(line: &str) -> Option<TreePackage> {
    let (package, features) = line.split_once('|')?;
    let mut words = package.split_whitespace();
    Some(TreePackage {
        name: words.next()?.to_string(),
        version: words.next()?.to_string(),
        features: features
            .split(',')
            .filter(|name| !name.is_empty())
            .map(Into::into)
            .collect(),
    })
}

/// Runs `command` to its end with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|error| cannot_start(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`{}`: {status}", line(command)))
}

/// Runs `command` and returns what it printed; its errors stay on the terminal.
pub(crate) fn read(command: &mut Command) -> Result<String, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        return Err(format!("`{}`: {}", line(command), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What to say when `command` did not even start.
pub(crate) fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("`{}` cannot be started: {error}", line(command))
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let mut words = vec![program.to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_lists_each_version_of_a_package_once() {
        let text = "larder v0.1.0 (/src/larder)|default\n\
                    serde v1.0.1|std,derive\n\
                    serde_derive v1.0.1 (proc-macro)|\n\
                    serde v1.0.1|std,derive\n\
                    serde v0.9.0|\n";
        let names: Vec<_> = parse_tree(text)
            .into_iter()
            .map(|p| (p.name, p.version, p.features.len()))
            .collect();
        let expected = [
            ("larder", "v0.1.0", 1),
            ("serde", "v0.9.0", 0),
            ("serde", "v1.0.1", 2),
            ("serde_derive", "v1.0.1", 0),
        ];
        assert_eq!(
            names,
            expected.map(|(n, v, f)| (n.to_string(), v.to_string(), f))
        );
    }

    #[test]
    fn a_failing_command_is_named_with_its_status() {
        let workspace = Workspace::here();
        let error = run(workspace.program("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error, "`sh -c exit 3`: exit status: 3");
        let error = run(&mut workspace.program("no-such-program-anywhere")).unwrap_err();
        assert!(
            error.starts_with("`no-such-program-anywhere` cannot be started"),
            "{error}"
        );
    }
}
