//! The programs that tests need and Cargo does not bring.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::workspace::{Workspace, read, run};

/// A program that tests start.
struct Program {
    name: &'static str,
    wanted_by: &'static str,
    /// The package of Debian and Ubuntu.
    package: &'static str,
    /// The system service that the package brings, if any, and that nothing here uses.
    service: &'static str,
    elsewhere: &'static str,
    /// Where the package puts it, if that is not on `PATH`: a folder for each version, with the
    /// program in `bin`.
    versions: Option<&'static str>,
}

/// The servers that tests and benchmarks start.
const SERVERS: [Program; 2] = [
    Program {
        name: "redis-server",
        wanted_by: "the tests of the Redis tier",
        package: "redis-server",
        service: "redis-server",
        elsewhere: "Fedora: dnf install redis; Alpine: apk add redis; macOS: brew install redis",
        versions: None,
    },
    Program {
        name: "postgres",
        wanted_by: "the tests of the change feed",
        package: "postgresql",
        service: "postgresql",
        elsewhere: "Fedora: dnf install postgresql-server; Alpine: apk add postgresql; \
                    macOS: brew install postgresql",
        versions: Some("/usr/lib/postgresql"),
    },
];

/// What looks at the tests while they run. It is for Linux.
const CHECKERS: [Program; 1] = [Program {
    name: "valgrind",
    wanted_by: "the tests of memory under memcheck",
    package: "valgrind",
    service: "",
    elsewhere: "Fedora: dnf install valgrind; Alpine: apk add valgrind",
    versions: None,
}];

/// Installs the packages named behind the first argument without starting their services.
///
/// The first argument is the file that packages ask before they start a service (Debian's
/// policy-rc.d). It is made for the time of the installation alone; one that stands there already
/// belongs to the machine and is left as it is. A service is also taken out of the next boot.
const INSTALL: &str = r#"
set -eu
policy=$1
shift
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update || echo 'the package lists are as old as they were' >&2
for pair in "$@"; do
    apt-get install --yes --no-install-recommends "${pair%%=*}"
    service=${pair##*=}
    [ -z "$service" ] || update-rc.d "$service" disable || true
done
"#;
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The release of cargo-deny that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";

/// Installs whatever the tests need and is missing. Returns what is there, or what is missing and
/// how to get it.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<String, String> {
    let servers = servers(workspace)?;
    let checkers = match cfg!(target_os = "linux") {
        true => provide(workspace, &CHECKERS)?,
        false => "no checker".into(),
    };
    cargo_deny(workspace)?;
    Ok(format!("{servers}, {checkers}, cargo-deny {CARGO_DENY}"))
}

/// Installs the servers that tests and benchmarks start.
pub(crate) fn servers(workspace: &Workspace) -> Result<String, String> {
    provide(workspace, &SERVERS)
}

/// Installs what is missing of `programs`, and names them.
fn provide(workspace: &Workspace, programs: &[Program]) -> Result<String, String> {
    let missing: Vec<&Program> = programs.iter().filter(|p| !is_installed(p)).collect();
    if !missing.is_empty() {
        install(workspace, &missing).map_err(|why| explain(&missing, &why))?;
    }
    let still: Vec<&Program> = programs.iter().filter(|p| !is_installed(p)).collect();
    if !still.is_empty() {
        return Err(explain(
            &still,
            "the package was installed, yet the program is not where it should be",
        ));
    }
    let names: Vec<_> = programs.iter().map(|program| program.name).collect();
    Ok(names.join(", "))
}

fn install(workspace: &Workspace, missing: &[&Program]) -> Result<(), String> {
    if !on_path("apt-get") {
        return Err("this system has no apt-get".into());
    }
    let mut command = root_shell(workspace)?;
    command.args(["-c", INSTALL, "provision", POLICY]);
    command.args(
        missing
            .iter()
            .map(|program| format!("{}={}", program.package, program.service)),
    );
    run(&mut command).map_err(|_| "apt-get failed, see above".into())
}

/// A shell of root's: our own, or one that sudo gives without asking for a password.
fn root_shell(workspace: &Workspace) -> Result<Command, String> {
    if read(workspace.program("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        return Ok(workspace.program("sh"));
    }
    let mut allowed = workspace.program("sudo");
    allowed.args(["-n", "true"]).stderr(Stdio::null());
    if !allowed.status().is_ok_and(|status| status.success()) {
        return Err("this user is not root and cannot use sudo without a password".into());
    }
    let mut sudo = workspace.program("sudo");
    sudo.args(["-n", "sh"]);
    Ok(sudo)
}

fn explain(missing: &[&Program], why: &str) -> String {
    let mut text = String::new();
    for program in missing {
        text += &format!(
            "missing: {}, which {} start\n  not installed: {why}\n  Debian, Ubuntu: apt-get install {}; {}\n",
            program.name, program.wanted_by, program.package, program.elsewhere
        );
    }
    text.trim_end().to_string()
}

/// Where cargo-deny is after [`for_tests`].
pub(crate) fn cargo_deny_path(workspace: &Workspace) -> PathBuf {
    workspace.path(&format!(
        "target/tools/cargo-deny-{CARGO_DENY}/bin/cargo-deny"
    ))
}

/// Builds cargo-deny once per release of it. Unoptimised, because it runs for a second and an
/// optimised build of it takes minutes.
fn cargo_deny(workspace: &Workspace) -> Result<(), String> {
    if cargo_deny_path(workspace).exists() {
        return Ok(());
    }
    let build = workspace.path("target/tools/build");
    let root = workspace.path(&format!("target/tools/cargo-deny-{CARGO_DENY}"));
    let mut install = workspace.cargo("install cargo-deny --locked --debug --version");
    install
        .arg(CARGO_DENY)
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(&build);
    run(install.env("CARGO_PROFILE_DEV_DEBUG", "false")).map_err(|error| {
        format!("missing: cargo-deny {CARGO_DENY}, which checks the dependencies\n  not installed: {error}")
    })?;
    // What it was built from is several hundred megabytes that nothing needs again.
    std::fs::remove_dir_all(&build).map_err(|error| format!("{}: {error}", build.display()))
}

/// Whether the test kit will find `program`.
fn is_installed(program: &Program) -> bool {
    let below = |versions| in_a_version(Path::new(versions), program.name);
    on_path(program.name) || program.versions.is_some_and(below)
}

fn in_a_version(versions: &Path, program: &str) -> bool {
    let mut folders = std::fs::read_dir(versions).into_iter().flatten().flatten();
    folders.any(|folder| folder.path().join("bin").join(program).is_file())
}

fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PAIR: &str = "some-server=some-service";

    /// Runs [`INSTALL`] with stand-ins for what it calls, and returns whether it succeeded and
    /// what they saw, one line each.
    fn install_in(folder: &Path, pair: &str, apt_get_install: &str) -> (bool, String) {
        let policy = folder.join("policy-rc.d");
        let log = folder.join("log");
        for program in ["apt-get", "update-rc.d"] {
            let stand_in = folder.join(program);
            let guarded = format!("[ -x '{}' ] && guarded=guarded", policy.display());
            let note = format!("echo {program} \"$@\" $guarded >>'{}'", log.display());
            let last = format!("[ \"$1\" != install ] || {apt_get_install}");
            fs::write(&stand_in, format!("#!/bin/sh\n{guarded}\n{note}\n{last}\n")).unwrap();
            fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/bin:/bin", folder.display());
        let mut shell = Command::new("sh");
        shell
            .args(["-c", INSTALL, "provision"])
            .arg(&policy)
            .arg(pair);
        let succeeded = shell.env("PATH", path).status().unwrap().success();
        (succeeded, fs::read_to_string(log).unwrap())
    }

    /// A folder of one test alone, removed with this guard.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const SEEN: &str = "\
apt-get update guarded
apt-get install --yes --no-install-recommends some-server guarded
";

    #[test]
    fn services_are_held_back_while_packages_are_installed_and_no_longer() {
        let folder = Folder::new("install");
        let (succeeded, seen) = install_in(&folder.0, PAIR, "true");
        assert!(succeeded);
        assert_eq!(
            seen,
            format!("{SEEN}update-rc.d some-service disable guarded\n")
        );
        assert!(!folder.0.join("policy-rc.d").exists());
    }

    #[test]
    fn a_package_without_a_service_has_none_disabled() {
        let folder = Folder::new("no-service");
        let (succeeded, seen) = install_in(&folder.0, "some-server=", "true");
        assert!(succeeded);
        assert_eq!(seen, SEEN);
    }

    #[test]
    fn a_failed_installation_is_an_error_and_releases_the_services() {
        let folder = Folder::new("failed-install");
        assert_eq!(
            install_in(&folder.0, PAIR, "exit 100"),
            (false, SEEN.into())
        );
        assert!(!folder.0.join("policy-rc.d").exists());
    }

    #[test]
    fn a_policy_of_the_machine_itself_is_left_as_it_is() {
        let folder = Folder::new("own-policy");
        let policy = folder.0.join("policy-rc.d");
        fs::write(&policy, "the machine's own").unwrap();
        assert!(install_in(&folder.0, PAIR, "true").0);
        assert_eq!(fs::read_to_string(policy).unwrap(), "the machine's own");
    }

    #[test]
    fn a_program_is_found_in_the_folder_of_any_version() {
        let folder = Folder::new("versions");
        assert!(!in_a_version(&folder.0, "postgres"));
        fs::create_dir_all(folder.0.join("15/bin")).unwrap();
        assert!(!in_a_version(&folder.0, "postgres"));
        fs::write(folder.0.join("15/bin/postgres"), "").unwrap();
        assert!(in_a_version(&folder.0, "postgres"));
        assert!(!in_a_version(&folder.0.join("nowhere"), "postgres"));
    }

    #[test]
    fn what_is_missing_is_said_with_the_reason_and_the_way_to_get_it() {
        let text = explain(&[&SERVERS[0]], "this system has no apt-get");
        let expected = "\
missing: redis-server, which the tests of the Redis tier start
  not installed: this system has no apt-get
  Debian, Ubuntu: apt-get install redis-server; Fedora: dnf install redis; Alpine: apk add redis; \
macOS: brew install redis";
        assert_eq!(text, expected);
    }
}
