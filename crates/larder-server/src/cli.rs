//! The command line: raw arguments in, a checked [`Command`] out.

use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

use crate::refusal::{Refusal, hint};

/// What `larder --help` prints.
pub(crate) const HELP: &str = "\
larder - a cache with several tiers, and a shop to watch it at work

Usage: larder demo [options]
       larder feed plan|install|uninstall|status [options]

  demo                build a shop of 200,000 products on the first run, serve it through
                      the cache, and tell in a few short acts what the cache does
  feed                what makes changed rows of a PostgreSQL database invalidate: show the
                      SQL, install it, remove it, or say what waits to be applied

Options of demo:
  --tier KIND         memory (the default), disk, redis, or redis=URL; redis alone starts
                      a redis-server found on PATH; with redis three processes share it
  --once              end after the closing table instead of staying up
  --seconds N         length of each measured phase (default 5)
  --port P            port of the shop, on 127.0.0.1; with redis also the two after it
                      (default 8350)
  --data DIR          where the database, the disk tier and the chart are kept
  --products N        size of the shop (default 200000)
  --config FILE       settings in TOML; LARDER_* variables do the same, and flags come last

Options of feed:
  --config FILE       the tables and what their rows invalidate: [feed] in TOML
  --database URL      postgres://USER:PASSWORD@HOST:PORT/DATABASE; without it DATABASE_URL
                      of the environment, where other users do not see the password
  --yes               install or uninstall without asking

  --help, --version";

/// What the program was asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the demo.
    Demo(DemoArgs),
    /// Do something about the change feed of a database.
    Feed(FeedArgs),
    /// Serve the shop as one of several processes: started by the demo itself.
    Worker,
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// The flags of `larder demo`. `None` means: not given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DemoArgs {
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// `--data`.
    pub(crate) data: Option<PathBuf>,
    /// `--once`.
    pub(crate) once: bool,
    /// `--port`.
    pub(crate) port: Option<u16>,
    /// `--products`.
    pub(crate) products: Option<u64>,
    /// `--seconds`.
    pub(crate) seconds: Option<u64>,
    /// `--tier`, as given.
    pub(crate) tier: Option<String>,
}

/// What follows on `larder feed`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FeedArgs {
    /// The word behind `feed`.
    pub(crate) verb: FeedVerb,
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// `--database`.
    pub(crate) database: Option<String>,
    /// `--yes`.
    pub(crate) yes: bool,
}

/// What is done about a change feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FeedVerb {
    /// Show what installing would run.
    Plan,
    /// Show it, ask, and run it.
    Install,
    /// The same for removing.
    Uninstall,
    /// Say what waits, and who follows.
    Status,
}

const COMMANDS: [&str; 3] = ["demo", "feed", "help"];
const VERBS: [(&str, FeedVerb); 4] = [
    ("plan", FeedVerb::Plan),
    ("install", FeedVerb::Install),
    ("uninstall", FeedVerb::Uninstall),
    ("status", FeedVerb::Status),
];
const FEED_FLAGS: [&str; 4] = ["config", "database", "help", "yes"];
const FLAGS: [&str; 8] = [
    "config", "data", "help", "once", "port", "products", "seconds", "tier",
];

/// Reads the arguments.
///
/// # Errors
/// A [`Refusal`] that names what is wrong and the nearest valid name.
pub(crate) fn parse(mut parser: Parser) -> anyhow::Result<Command> {
    match parser.next().map_err(refuse)? {
        None | Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help),
        Some(Arg::Long("version") | Arg::Short('V')) => Ok(Command::Version),
        Some(Arg::Value(command)) => match &*command.to_string_lossy() {
            "demo" => parse_demo(parser),
            "feed" => parse_feed(parser),
            "help" => Ok(Command::Help),
            crate::demo::worker::COMMAND => Ok(Command::Worker),
            other => Err(Refusal::new(format!(
                "unknown command `{other}`{}",
                hint(other, COMMANDS)
            ))
            .into()),
        },
        Some(other) => Err(unknown(&other, &["help", "version"])),
    }
}

fn parse_demo(mut parser: Parser) -> anyhow::Result<Command> {
    let mut args = DemoArgs::default();
    while let Some(arg) = parser.next().map_err(refuse)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("once") => args.once = true,
            Arg::Long("config") => args.config = Some(value(&mut parser, "config")?),
            Arg::Long("data") => args.data = Some(value(&mut parser, "data")?),
            Arg::Long("port") => args.port = Some(value(&mut parser, "port")?),
            Arg::Long("products") => args.products = Some(value(&mut parser, "products")?),
            Arg::Long("seconds") => args.seconds = Some(value(&mut parser, "seconds")?),
            Arg::Long("tier") => args.tier = Some(value(&mut parser, "tier")?),
            other => return Err(unknown(&other, &FLAGS)),
        }
    }
    Ok(Command::Demo(args))
}

fn parse_feed(mut parser: Parser) -> anyhow::Result<Command> {
    let (mut verb, mut config, mut database, mut yes) = (None, None, None, false);
    while let Some(arg) = parser.next().map_err(refuse)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("config") => config = Some(value(&mut parser, "config")?),
            Arg::Long("database") => database = Some(value(&mut parser, "database")?),
            Arg::Long("yes") => yes = true,
            Arg::Value(word) if verb.is_none() => verb = Some(feed_verb(&word.to_string_lossy())?),
            other => return Err(unknown(&other, &FEED_FLAGS)),
        }
    }
    let verb = verb.ok_or_else(|| {
        Refusal::new("feed needs a word behind it: plan, install, uninstall or status")
    })?;
    Ok(Command::Feed(FeedArgs {
        verb,
        config,
        database,
        yes,
    }))
}

fn feed_verb(word: &str) -> anyhow::Result<FeedVerb> {
    let found = VERBS.iter().find(|(known, _)| *known == word);
    found.map(|(_, verb)| *verb).ok_or_else(|| {
        let near = hint(word, VERBS.map(|(known, _)| known));
        Refusal::new(format!("unknown command `feed {word}`{near}")).into()
    })
}

fn value<T>(parser: &mut Parser, flag: &str) -> anyhow::Result<T>
where
    T: std::str::FromStr,
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let raw = parser.value().map_err(refuse)?;
    raw.parse().map_err(|_| {
        let shown = raw.to_string_lossy().into_owned();
        Refusal::new(format!("`{shown}` is not a valid value of --{flag}")).into()
    })
}

fn refuse(error: lexopt::Error) -> anyhow::Error {
    Refusal::new(error.to_string()).into()
}

fn unknown(arg: &Arg<'_>, known: &[&str]) -> anyhow::Error {
    let sentence = match arg {
        Arg::Long(name) => match hint(name, known.iter().copied()) {
            near if near.is_empty() => format!("unknown option `--{name}`"),
            near => format!("unknown option `--{name}`{}", near.replacen('`', "`--", 1)),
        },
        Arg::Short(letter) => format!("unknown option `-{letter}`"),
        Arg::Value(value) => format!("unexpected argument `{}`", value.to_string_lossy()),
    };
    Refusal::new(sentence).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &[&str]) -> String {
        let error = parse(Parser::from_args(args)).expect_err("these arguments are wrong");
        assert!(error.is::<Refusal>());
        error.to_string()
    }

    #[test]
    fn every_flag_is_read() {
        let line = "demo --tier redis=redis://h --once --seconds 2 --port 9 --data d \
                    --products 1000 --config c.toml";
        let command = parse(Parser::from_args(line.split_whitespace())).expect("valid");
        let Command::Demo(args) = command else {
            panic!("not the demo");
        };
        let expected = DemoArgs {
            config: Some("c.toml".into()),
            data: Some("d".into()),
            once: true,
            port: Some(9),
            products: Some(1000),
            seconds: Some(2),
            tier: Some("redis=redis://h".into()),
        };
        assert_eq!(args, expected);
    }

    #[test]
    fn every_flag_of_a_feed_is_read() {
        let line = "feed install --config c.toml --database postgres://h/d --yes";
        let command = parse(Parser::from_args(line.split_whitespace())).expect("valid");
        let Command::Feed(args) = command else {
            panic!("not the feed");
        };
        let expected = FeedArgs {
            verb: FeedVerb::Install,
            config: Some("c.toml".into()),
            database: Some("postgres://h/d".into()),
            yes: true,
        };
        assert_eq!(args, expected);
        assert_eq!(
            refusal(&["feed"]),
            "feed needs a word behind it: plan, install, uninstall or status"
        );
        assert_eq!(
            refusal(&["feed", "instal"]),
            "unknown command `feed instal`; did you mean `install`?"
        );
        assert_eq!(
            refusal(&["feed", "plan", "--databse", "x"]),
            "unknown option `--databse`; did you mean `--database`?"
        );
        assert_eq!(
            refusal(&["feed", "plan", "install"]),
            "unexpected argument `install`"
        );
    }

    #[test]
    fn unknown_words_are_refused_with_the_nearest_valid_one() {
        assert_eq!(
            refusal(&["demmo"]),
            "unknown command `demmo`; did you mean `demo`?"
        );
        assert_eq!(
            refusal(&["demo", "--teir", "redis"]),
            "unknown option `--teir`; did you mean `--tier`?"
        );
        assert_eq!(refusal(&["demo", "--zzz"]), "unknown option `--zzz`");
        assert_eq!(refusal(&["demo", "-x"]), "unknown option `-x`");
        assert_eq!(refusal(&["demo", "extra"]), "unexpected argument `extra`");
    }

    #[test]
    fn values_that_do_not_parse_are_refused() {
        assert_eq!(
            refusal(&["demo", "--port", "70000"]),
            "`70000` is not a valid value of --port"
        );
        assert_eq!(
            refusal(&["demo", "--seconds", "soon"]),
            "`soon` is not a valid value of --seconds"
        );
        assert_eq!(
            refusal(&["demo", "--port"]),
            "missing argument for option '--port'"
        );
    }
}
