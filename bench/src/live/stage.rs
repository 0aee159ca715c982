//! One turn: databases, the contender, the load, the window, the check.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;
use throwaway::Cluster;

use super::check::{self, Copy};
use super::cpu::{Names, Observer};
use super::load::{self, Load, Stream};
use super::{Contender, Cpu, Plan, Rate, Turn};
use crate::contender::{Daemon, NO_BASELINE, Subscription};
use crate::server::{self, APPLICATION, BENCHMARK, PUBLICATION, Transport};
use crate::workload::{Changes, EMPLOYEES, EMPLOYEES_CDC, FILL};

/// The application's database in the source, and the history's or the copy's in the other cluster.
const LIVES: &str = "lives";
const KEPT: &str = "kept";
const SLOT: &str = "waltrail";
/// How long a contender may need for what the application did last.
const ARRIVES_MAX: Duration = Duration::from_secs(120);

/// As audit triggers are written: the application's role cannot write the history by itself, and no `search_path` changes
/// what is called. Rows are those that waltrail writes, also where the key changes.
const TRIGGER: &str = "CREATE FUNCTION keep_history() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
    BEGIN
        IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.id = OLD.id THEN
            INSERT INTO employees_cdc (change_type, id, name, department, salary)
                VALUES (TG_OP, NEW.id, NEW.name, NEW.department, NEW.salary);
            RETURN NULL;
        END IF;
        INSERT INTO employees_cdc (change_type, id) VALUES ('DELETE', OLD.id);
        IF TG_OP = 'UPDATE' THEN
            INSERT INTO employees_cdc (change_type, id, name, department, salary)
                VALUES ('INSERT', NEW.id, NEW.name, NEW.department, NEW.salary);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER keep_history AFTER INSERT OR UPDATE OR DELETE ON employees
        FOR EACH ROW EXECUTE FUNCTION keep_history()";

/// Both servers, which live for all turns.
pub(super) struct Stage<'a> {
    plan: &'a Plan<'a>,
    source: Cluster,
    target: Cluster,
}

/// The sessions of a turn.
struct Sessions {
    /// On the source.
    lives: Client,
    /// On the other cluster.
    kept: Client,
}

/// Who is at work.
enum Follower {
    None,
    Daemon(Daemon),
    Subscription,
}

/// What the window showed.
struct Window {
    seconds: f64,
    transactions: u64,
    cpu: Cpu,
    /// Its ends by the source's clock.
    from: String,
    to: String,
}

impl<'a> Stage<'a> {
    pub fn new(plan: &'a Plan<'a>) -> Result<Self> {
        let on_off = if plan.fsync { "on" } else { "off" };
        let settings = [
            ("track_commit_timestamp", "on"),
            ("fsync", on_off),
            ("full_page_writes", on_off),
        ];
        Ok(Self {
            plan,
            source: server::start_with(false, &settings)?,
            target: server::start_with(true, &settings)?,
        })
    }

    pub fn turn(&self, contender: Contender, rate: Rate, round: u32) -> Result<Turn> {
        let mut sessions = self.set(contender)?;
        let mut follower = self.start(contender, &mut sessions)?;
        let own = self.session(BENCHMARK)?;
        let mut own = Stream::new(own, self.plan.application, load::OWN_STREAM)?;
        let first = own.transact()?;
        arrives(contender, &mut sessions, &mut follower, first).context("the first transaction")?;
        let (window, done) = self.live(&follower, &mut sessions, rate)?;
        let last = own.transact()?;
        arrives(contender, &mut sessions, &mut follower, last).context("the last transaction")?;
        let peak_mb = self.end(follower, &mut sessions)?;
        let copy = Copy {
            contender,
            changes: done + own.changes,
        };
        let Sessions { lives, kept } = &mut sessions;
        let rows = check::rows(&copy, lives, kept)?;
        let latency = check::latency(contender, lives, kept, &window.from, &window.to)?;
        Ok(Turn {
            round,
            rate,
            contender,
            seconds: window.seconds,
            transactions: window.transactions,
            cpu: window.cpu,
            latency,
            peak_mb,
            rows,
        })
    }

    /// A session on the application's database, as the application would have it.
    fn session(&self, name: &str) -> Result<Client> {
        server::connect_as(name, self.plan.transport, &self.source, LIVES)
    }

    /// Makes both databases anew, with what this contender needs and nothing else.
    fn set(&self, contender: Contender) -> Result<Sessions> {
        let anew = |cluster: &Cluster, name: &str| -> Result<Client> {
            let mut admin = server::connect(cluster, "postgres")?;
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))?;
            admin.batch_execute(&format!("CREATE DATABASE {name}"))?;
            server::connect_as(BENCHMARK, Transport::Unix, cluster, name)
        };
        let mut lives = anew(&self.source, LIVES)?;
        let mut kept = anew(&self.target, KEPT)?;
        lives.batch_execute(EMPLOYEES)?;
        lives.batch_execute(FILL)?;
        lives.batch_execute(load::TRANSACTION)?;
        match contender {
            Contender::Nothing => {}
            Contender::Trigger => {
                lives.batch_execute(EMPLOYEES_CDC)?;
                lives.batch_execute(TRIGGER)?;
            }
            Contender::SameDatabase => lives.batch_execute(EMPLOYEES_CDC)?,
            Contender::AnotherCluster => kept.batch_execute(EMPLOYEES_CDC)?,
            Contender::SaysWho => {
                kept.batch_execute(EMPLOYEES_CDC)?;
                kept.batch_execute("ALTER TABLE employees_cdc ADD COLUMN context jsonb")?;
                // Of every session that begins from now on.
                lives
                    .batch_execute(&format!("ALTER DATABASE {LIVES} SET app.\"user\" = '4711'"))?;
            }
            Contender::Subscription => {
                kept.batch_execute(EMPLOYEES)?;
                kept.batch_execute(FILL)?;
                // The worker fills it, when it inserts a row.
                kept.batch_execute(
                    "ALTER TABLE employees ADD COLUMN visible_at timestamptz;
                     ALTER TABLE employees ALTER COLUMN visible_at SET DEFAULT clock_timestamp();
                     ANALYZE employees",
                )?;
            }
        }
        lives.batch_execute("ANALYZE employees")?;
        lives.batch_execute("CHECKPOINT")?;
        kept.batch_execute("CHECKPOINT")?;
        Ok(Sessions { lives, kept })
    }

    fn start(&self, contender: Contender, sessions: &mut Sessions) -> Result<Follower> {
        if !contender.follows() {
            return Ok(Follower::None);
        }
        let Sessions { lives, kept } = sessions;
        lives.batch_execute(&format!(
            "CREATE PUBLICATION {PUBLICATION} FOR TABLE employees WITH (publish_via_partition_root = true)"
        ))?;
        server::create_slot(lives, SLOT)?;
        let source = self.plan.transport.dsn(&self.source, LIVES);
        if contender == Contender::Subscription {
            let mut subscription = Subscription::create(kept, &source, SLOT)?;
            subscription.enable(kept)?;
            return Ok(Follower::Subscription);
        }
        let target = match contender {
            Contender::SameDatabase => source.clone(),
            _ => self.plan.transport.dsn(&self.target, KEPT),
        };
        let mut settings = vec![NO_BASELINE];
        settings.extend(self.plan.settings);
        let tables = ["public.employees"];
        if contender == Contender::SaysWho {
            settings.push(("WALTRAIL_CONTEXT__SETTINGS", "app.user,request.jwt.claims"));
            Daemon::set_up(self.plan.program, &source, &target, tables, &settings)?;
        }
        let daemon = Daemon::start_with(self.plan.program, &source, &target, tables, &settings)?;
        Ok(Follower::Daemon(daemon))
    }

    /// The load, and the window in it.
    fn live(
        &self,
        follower: &Follower,
        sessions: &mut Sessions,
        rate: Rate,
    ) -> Result<(Window, Changes)> {
        let streams = (0..load::clients(rate))
            .map(|number| Stream::new(self.session(APPLICATION)?, self.plan.application, number))
            .collect::<Result<Vec<_>>>()?;
        let load = Load::start(streams, rate);
        sleep(Duration::from_secs(self.plan.warm_up.into()));
        let from = clock(&mut sessions.lives)?;
        let pid = |cluster: &Cluster| cluster.pid().context("a server does not run");
        let mut observer = Observer {
            servers: vec![
                (pid(&self.source)?, &mut sessions.lives),
                (pid(&self.target)?, &mut sessions.kept),
            ],
            daemon: match follower {
                Follower::Daemon(daemon) => Some(daemon.pid()),
                _ => None,
            },
        };
        let mut names = Names::new();
        observer.names(&mut names)?;
        let start = observer.read()?;
        let before = load.committed();
        sleep(Duration::from_secs(self.plan.seconds.into()));
        let end = observer.read()?;
        let transactions = load.committed() - before;
        observer.names(&mut names)?;
        let cpu = observer.between(&start, &end, &names);
        let to = clock(&mut sessions.lives)?;
        let done = load.stop().context("the application")?;
        ensure!(transactions > 0, "the application did nothing");
        let window = Window {
            seconds: (end.at - start.at).as_secs_f64(),
            transactions,
            cpu,
            from,
            to,
        };
        Ok((window, done))
    }

    /// Ends the contender, and removes what it had; the daemon's peak memory.
    fn end(&self, follower: Follower, sessions: &mut Sessions) -> Result<Option<f64>> {
        let mut peak_mb = None;
        match follower {
            Follower::None => return Ok(None),
            Follower::Daemon(mut daemon) => {
                daemon.look()?;
                peak_mb = Some(daemon.usage().peak_mb);
                daemon.stop()?;
            }
            Follower::Subscription => Subscription::remove(&mut sessions.kept)?,
        }
        server::drop_slot(&mut sessions.lives, SLOT)?;
        Ok(peak_mb)
    }
}

fn clock(client: &mut Client) -> Result<String> {
    let row = client.query_one("SELECT clock_timestamp()::text", &[])?;
    Ok(row.get(0))
}

/// Waits until the row of this key has gone all the way.
fn arrives(
    contender: Contender,
    sessions: &mut Sessions,
    follower: &mut Follower,
    key: i32,
) -> Result<()> {
    let (client, ask) = match contender {
        Contender::Nothing => return Ok(()),
        Contender::Subscription => (&mut sessions.kept, "SELECT FROM employees WHERE id = $1"),
        Contender::AnotherCluster | Contender::SaysWho => (&mut sessions.kept, check::INSERTED),
        Contender::Trigger | Contender::SameDatabase => (&mut sessions.lives, check::INSERTED),
    };
    let deadline = Instant::now() + ARRIVES_MAX;
    while client.query_opt(ask, &[&key])?.is_none() {
        if let Follower::Daemon(daemon) = follower {
            daemon.look()?;
        }
        ensure!(Instant::now() < deadline, "the row {key} does not arrive");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
