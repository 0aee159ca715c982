//! Command line in, exit code out.

use std::io::{BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::cli::{Cli, Command, InitArgs, LogArgs, UndoArgs};
use crate::config::{Config, Environment, Flags};
use crate::daemon::Daemon;
use crate::fault::{Exit, Fault, Result};
use crate::lsn::Lsn;
use crate::printable::{TEXT_MAX, printable, printable_json};
use crate::server::{self, Side, answers};
use crate::setup;
use crate::telemetry::ask;
use crate::telemetry::log::{self, Ending, Log};
use crate::{accept_gap, adopt, check, init, life, status, teardown, undo, verify};
use throwaway::Kind;
use tokio::runtime::Runtime;

pub fn main() -> ExitCode {
    let environment = Environment::of_process();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => {
            if usage.was_asked_for() {
                print(usage.text());
            } else {
                let format = Config::log_format(&Flags::default(), &environment);
                let runs = std::env::args_os().any(|argument| argument == "run");
                Ending::of(format, runs).say_usage(usage.text());
            }
            return usage.exit_code();
        }
    };
    let format = Config::log_format(&cli.flags(), &environment);
    let ending = Ending::of(format, cli.command.logs());
    log::hear_panics(ending);
    let ended = catch_unwind(AssertUnwindSafe(|| start(&cli)));
    // The panic itself was said.
    let ended = ended.unwrap_or_else(|_| Err(Fault::bug("waltrail panicked").into()));
    match ended {
        Ok(code) => code,
        Err(Failure { fault, is_logged }) => {
            match is_logged {
                true => ending.say_again(&fault),
                false => ending.say(&fault),
            }
            fault.exit().into()
        }
    }
}

/// Why a command failed.
struct Failure {
    /// Boxed: a result is as large as its error.
    fault: Box<Fault>,
    /// The log has said it.
    is_logged: bool,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self {
            fault: Box::new(fault),
            is_logged: false,
        }
    }
}

/// The exit code of a command that has done its work.
fn start(cli: &Cli) -> Result<ExitCode, Failure> {
    // One thread: the stream's tasks hand batches to each other without waking another core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::bug("the runtime cannot be started").caused_by(error))?;
    let runtime = match without_configuration(cli, runtime) {
        ControlFlow::Continue(runtime) => runtime,
        ControlFlow::Break(ended) => return ended.map_err(Failure::from),
    };
    let mut flags = cli.flags();
    let mut chosen = Vec::new();
    if let Command::AcceptGap { .. } | Command::Log(_) | Command::Undo(_) | Command::Verify { .. } =
        cli.command
    {
        // There it says which of the tables are meant, not what is followed.
        chosen = std::mem::take(&mut flags.tables);
    }
    let load = || Config::load(&flags, &Environment::of_process());
    let config = load()?;
    if cli.command.needs_tables() {
        config.require_tables()?;
    }
    if cli.command.is_done_without_servers() {
        print("the configuration is accepted; no server was asked\n");
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    answers::hush();
    let ended = runtime.block_on(answers::checked(async {
        match cli.command.clone() {
            Command::Run {
                no_retry,
                skip_transaction,
            } => follow(config, &load, no_retry, skip_transaction).await,
            Command::Setup { .. } => set_up(&config, &cli.command).await,
            Command::Check { json, .. } => {
                show_report(&config, json).await.map(|found| code = found)
            }
            Command::Status { json, watch, exact } => {
                let show = status::Show { json, exact, watch };
                let shown = server::limit(status::show(&config, show)).await;
                shown.map(|verdict| code = verdict)
            }
            Command::AcceptGap {
                dry_run,
                source_replaced,
            } => {
                let accepted = accept_gap::run(&config, &chosen, dry_run, source_replaced);
                print(&server::limit(accepted).await?);
                Ok(())
            }
            Command::Adopt { dry_run } => go_on(&config, dry_run).await,
            Command::Log(ask) => show_log(&config, &ask, &chosen).await,
            Command::Undo(ask) => show_undo(&config, &ask, &chosen).await,
            Command::Verify { .. } => {
                let verified = show_verified(&config, chosen, &cli.command);
                verified.await.map(|found| code = found)
            }
            Command::Teardown { yes } => tear_down(&config, yes).await,
            Command::Demo { .. } | Command::Health { .. } | Command::Init(_) => Ok(()),
        }
    }));
    // A name look-up that hangs in the runtime's helper thread must not delay the end.
    runtime.shutdown_background();
    ended.map(|()| code).map_err(|fault| Failure {
        fault: Box::new(fault),
        is_logged: matches!(cli.command, Command::Run { .. }),
    })
}

/// The commands that need no configuration, or read it themselves.
fn without_configuration(cli: &Cli, runtime: Runtime) -> ControlFlow<Result<ExitCode>, Runtime> {
    let ended = match &cli.command {
        Command::Demo { once } => {
            let ended = runtime.block_on(throwaway::demo::run(*once));
            ended.map(|()| ExitCode::SUCCESS).map_err(fault)
        }
        Command::Health { url, live } => runtime.block_on(show_health(cli, url.as_deref(), *live)),
        Command::Init(args) => return ControlFlow::Break(begin(runtime, cli, args)),
        _ => return ControlFlow::Continue(runtime),
    };
    runtime.shutdown_background();
    ControlFlow::Break(ended)
}

/// `waltrail init`.
fn begin(runtime: Runtime, cli: &Cli, args: &InitArgs) -> Result<ExitCode> {
    answers::hush();
    let (flags, environment) = (cli.flags(), Environment::of_process());
    let written = server::limit(init::run(&flags, args, &environment));
    let ended = runtime.block_on(answers::checked(written));
    runtime.shutdown_background();
    print(&ended?);
    Ok(ExitCode::SUCCESS)
}

/// The demonstration's error, with the exit code that belongs to its kind.
fn fault(error: throwaway::Error) -> Fault {
    let message = error.to_string();
    let fault = match error.kind() {
        Kind::Environment => Fault::halt(Exit::Config, message),
        Kind::Defect => Fault::bug(message),
        Kind::HistoryWouldBeWrong => Fault::halt(Exit::HistoryWouldBeWrong, message),
        Kind::Interrupted => Fault::halt(Exit::Unreachable, message),
    };
    let fault = match error.remedy_text() {
        Some(remedy) => fault.remedy(remedy),
        None => fault,
    };
    match error.into_cause() {
        Some(cause) => fault.caused_by(cause),
        None => fault,
    }
}

async fn follow(
    config: Config,
    load: &(dyn Fn() -> Result<Config> + Sync),
    no_retry: bool,
    skip_transaction: Option<Lsn>,
) -> Result<()> {
    let log = Log::init(&config.log)?;
    let reload = || load().and_then(|config| config.require_tables().map(|()| config));
    let daemon = Daemon {
        config,
        reload: &reload,
        log: &log,
        no_retry,
        skip_transaction,
    };
    let ended = daemon.run().await;
    if let Err(fault) = &ended {
        log::log_end(fault);
    }
    ended
}

/// 1 where an error was found.
async fn show_report(config: &Config, json: bool) -> Result<ExitCode> {
    let report = server::limit(async { Ok(check::run(config).await) }).await?;
    print(&match json {
        true => {
            let json = report.json();
            printable_json(&json.map_err(|error| Fault::bug("check").caused_by(error))?)
                .into_owned()
        }
        false => report.text(),
    });
    Ok(match report.has_errors() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// 1 where the daemon is not ready, or there is none. With `url`, no configuration is read.
async fn show_health(cli: &Cli, url: Option<&str>, live: bool) -> Result<ExitCode> {
    let http = match url {
        Some(_) => None,
        None => Config::load(&cli.flags(), &Environment::of_process())?.http,
    };
    let path = if live { "/livez" } else { "/readyz" };
    let answer = ask::ask(url, http, path).await?;
    print(&(answer.text + "\n"));
    Ok(match answer.is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// 1 where a history is not its table.
async fn show_verified(
    config: &Config,
    tables: Vec<String>,
    command: &Command,
) -> Result<ExitCode> {
    let &Command::Verify {
        json,
        show_keys,
        repair,
        yes,
    } = command
    else {
        return Ok(ExitCode::SUCCESS);
    };
    let options = &verify::Options {
        tables,
        show_keys,
        repair,
    };
    let question = "Add REPAIR rows to each history that differs from its table?";
    if options.repair && !yes && !confirmed("verify --repair", question)? {
        return Ok(ExitCode::FAILURE);
    }
    let log = Log::init(&config.log)?;
    let report = server::limit(verify::run(config, options)).await;
    drop(log);
    let report = report?;
    print(&match json {
        true => {
            let json = serde_json::to_string(&report);
            let json = json.map_err(|error| Fault::bug("verify").caused_by(error))?;
            printable_json(&json).into_owned() + "\n"
        }
        false => report.text(),
    });
    Ok(match report.same {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn set_up(config: &Config, command: &Command) -> Result<()> {
    let Command::Setup {
        dry_run,
        context,
        grant_to,
    } = command
    else {
        return Ok(());
    };
    let mut config = config.clone();
    if *context {
        config.context.get_or_insert_default();
    }
    let config = &config;
    let grant_to = grant_to.as_deref();
    if *dry_run {
        let source = server::sql(&config.source.connection, Side::Source).await?;
        let mut target = server::sql(&config.target, Side::Target).await?;
        let statements = setup::dry_run(config, &source, &mut target, *context, grant_to);
        let statements = server::limit(statements).await?;
        print(&match statements.is_empty() {
            true => "-- nothing is missing\n".to_owned(),
            false => statements.join("\n\n") + "\n",
        });
        return Ok(());
    }
    // Looked at first, and without the log: set-up itself says only what it makes.
    let nothing_is_missing = async {
        let source = server::sql(&config.source.connection, Side::Source).await?;
        let mut target = server::sql(&config.target, Side::Target).await?;
        let missing = setup::dry_run(config, &source, &mut target, *context, grant_to).await?;
        Ok::<_, Fault>(missing.is_empty())
    };
    // What fails here fails again below, and is said there.
    let nothing_is_missing = nothing_is_missing.await.unwrap_or_default();
    let _log = Log::init(&config.log)?;
    crate::session::set_up(config).await?;
    if *context {
        setup::context::after_set_up(config).await?;
    }
    if let Some(role) = grant_to {
        setup::grants::after_set_up(config, role).await?;
    }
    if nothing_is_missing {
        print("nothing was missing\n");
    }
    Ok(())
}

async fn go_on(config: &Config, dry_run: bool) -> Result<()> {
    let _log = Log::init(&config.log)?;
    print(&server::limit(adopt::run(config, dry_run)).await?);
    Ok(())
}

/// The time zone of the terminal.
fn zone() -> Option<String> {
    Environment::of_process().var("TZ").map(str::to_owned)
}

async fn show_log(config: &Config, ask: &LogArgs, chosen: &[String]) -> Result<()> {
    let zone = zone();
    // Colours are left out where the output is no terminal, or NO_COLOR is set.
    let mut out = BufWriter::new(anstream::stdout());
    if !life::run(config, ask, (chosen, zone.as_deref()), &mut out).await? && !ask.follow {
        let _ = std::io::stderr().write_all(b"nothing is recorded of this\n");
    }
    Ok(())
}

async fn show_undo(config: &Config, ask: &UndoArgs, chosen: &[String]) -> Result<()> {
    let zone = zone();
    let ask = undo::Ask {
        xid: ask.which.xid,
        since: ask.which.since.as_deref(),
        condition: ask.condition.as_deref(),
        force: ask.force,
        tables: chosen,
        zone: zone.as_deref(),
    };
    let mut out = BufWriter::new(std::io::stdout());
    for line in undo::run(config, &ask, &mut out).await? {
        let line = printable(&line, TEXT_MAX) + "\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    Ok(())
}

async fn tear_down(config: &Config, yes: bool) -> Result<()> {
    let question = format!(
        "Drop replication slot {} and publication {} on {}? Changes from now on will be missing in the history.",
        config.source.slot, config.source.publication, config.source.connection
    );
    if !yes && !confirmed("teardown", &question)? {
        print("nothing was dropped\n");
        return Ok(());
    }
    let dropped = server::limit(teardown::run(config)).await?;
    for dropped in &dropped {
        print(&format!("dropped {}\n", printable(dropped, TEXT_MAX)));
    }
    if dropped.is_empty() {
        let (slot, publication) = (&config.source.slot, &config.source.publication);
        let nothing =
            format!("nothing to drop: slot {slot} and publication {publication} do not exist");
        print(&(printable(&nothing, TEXT_MAX) + "\n"));
    }
    print("history tables and checkpoint are kept\n");
    Ok(())
}

/// Asks on a terminal whether to do it.
fn confirmed(command: &str, question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Fault::halt(
            Exit::Usage,
            format!("{command} asks before it does anything, and there is no terminal to ask on"),
        )
        .remedy("add --yes"));
    }
    print(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(text: &str) {
    let mut out = std::io::stdout();
    // A closed output is no fault.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
