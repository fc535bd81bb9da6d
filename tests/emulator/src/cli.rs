//! Command line: one table from which both the parser and `--help` are made.

/// Everything that can be set at start. Field meanings are the help texts of [`TABLE`].
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) listen: String,
    pub(crate) tls_listen: String,
    pub(crate) pubsub_listen: String,
    pub(crate) pubsub_plain: String,
    pub(crate) seed: u64,
    pub(crate) contacts: u64,
    pub(crate) shared_share: f64,
    pub(crate) admin_token: Option<String>,
    pub(crate) write_ca: Option<String>,
    pub(crate) ready_file: Option<String>,
    pub(crate) rate_limits: bool,
    pub(crate) latency_ms: u64,
    pub(crate) log_requests: bool,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) refresh_token: String,
    pub(crate) search_lag_ms: u64,
    pub(crate) search_short_pages: bool,
    pub(crate) search_id_text: bool,
    pub(crate) webhook_url: Option<String>,
    pub(crate) webhook_secret: Option<String>,
    pub(crate) webhook_public_url: Option<String>,
    pub(crate) webhook_shape: String,
    pub(crate) webhook_retry_ms: u64,
    pub(crate) hubspot_token: String,
    pub(crate) hubspot_burst: u64,
    pub(crate) hubspot_daily: u64,
    pub(crate) hubspot_search_rate: u64,
    pub(crate) hubspot_token_life_s: u64,
    pub(crate) hubspot_sync_properties: bool,
    pub(crate) hubspot_id_base: u64,
    pub(crate) hubspot_app_id: u64,
    pub(crate) hubspot_portal_id: u64,
    pub(crate) jwt_public_key: Option<String>,
    pub(crate) jwt_username: String,
    pub(crate) salesforce_external_id: bool,
    pub(crate) salesforce_settings: serde_json::Map<String, serde_json::Value>,
}

/// What the command line asks for.
pub(crate) enum Command {
    Run(Box<Options>),
    Help,
    Version,
}

struct Spec {
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    /// Stores the text, or says what was expected instead.
    set: fn(&mut Options, &str) -> Result<(), &'static str>,
}

const fn spec(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    set: fn(&mut Options, &str) -> Result<(), &'static str>,
) -> Spec {
    Spec {
        name,
        value,
        default,
        help,
        set,
    }
}

fn put<T: std::str::FromStr>(
    field: &mut T,
    text: &str,
    expected: &'static str,
) -> Result<(), &'static str> {
    *field = text.parse().map_err(|_| expected)?;
    Ok(())
}

fn text(field: &mut String, text: &str) -> Result<(), &'static str> {
    text.clone_into(field);
    Ok(())
}

fn maybe(field: &mut Option<String>, text: &str) -> Result<(), &'static str> {
    *field = Some(text.to_owned()).filter(|t| !t.is_empty());
    Ok(())
}

fn switch(field: &mut bool, text: &str) -> Result<(), &'static str> {
    *field = match text {
        "on" | "true" | "yes" => true,
        "off" | "false" | "no" => false,
        _ => return Err("`on` or `off`"),
    };
    Ok(())
}

const NUMBER: &str = "a whole number of 0 or more";

/// Every option. An empty `value` marks a flag; defaults pass through the same parser.
#[rustfmt::skip]
const TABLE: &[Spec] = &[
    spec("listen", "HOST:PORT", "127.0.0.1:8080", "HTTP for HubSpot, Salesforce and /_admin; port 0 takes any free port",
        |o, v| text(&mut o.listen, v)),
    spec("tls-listen", "HOST:PORT", "127.0.0.1:8443", "the same over TLS, with a certificate of a CA made at start",
        |o, v| text(&mut o.tls_listen, v)),
    spec("pubsub-listen", "HOST:PORT", "127.0.0.1:7443", "Salesforce Pub/Sub API, gRPC over TLS",
        |o, v| text(&mut o.pubsub_listen, v)),
    spec("pubsub-plain", "HOST:PORT", "127.0.0.1:7080", "Salesforce Pub/Sub API, gRPC without TLS",
        |o, v| text(&mut o.pubsub_plain, v)),
    spec("ready-file", "FILE", "", "also write the line of actual addresses here, once everything listens",
        |o, v| maybe(&mut o.ready_file, v)),
    spec("write-ca", "FILE", "", "write the CA certificate (PEM) here",
        |o, v| maybe(&mut o.write_ca, v)),
    spec("seed", "N", "1", "the same seed gives the same data and ids",
        |o, v| put(&mut o.seed, v, NUMBER)),
    spec("contacts", "N", "50", "contacts on each side, up to 1000000; companies N/10, deals N/5, tickets and tasks N/10",
        |o, v| match v.parse() { Ok(n) if n <= 1_000_000 => { o.contacts = n; Ok(()) } _ => Err("a number from 0 to 1000000") }),
    spec("shared-share", "0..1", "0.8", "share of people known to both CRMs by the same e-mail address",
        |o, v| match v.parse() { Ok(s) if (0.0..=1.0).contains(&s) => { o.shared_share = s; Ok(()) } _ => Err("a share from 0 to 1") }),
    spec("admin-token", "TEXT", "", "ask for this bearer token on /_admin (default: none needed)",
        |o, v| maybe(&mut o.admin_token, v)),
    spec("rate-limits", "on|off", "on", "enforce the CRMs' own call limits",
        |o, v| switch(&mut o.rate_limits, v)),
    spec("latency-ms", "MS", "0", "hold every CRM answer back this long",
        |o, v| put(&mut o.latency_ms, v, NUMBER)),
    spec("log-requests", "", "", "print each CRM request on stderr",
        |o, _| { o.log_requests = true; Ok(()) }),
    spec("client-id", "TEXT", "emulator-app", "OAuth client id, both CRMs",
        |o, v| text(&mut o.client_id, v)),
    spec("client-secret", "TEXT", "emulator-secret", "OAuth client secret, both CRMs; also signs webhooks",
        |o, v| text(&mut o.client_secret, v)),
    spec("refresh-token", "TEXT", "emulator-refresh", "OAuth refresh token, both CRMs",
        |o, v| text(&mut o.refresh_token, v)),
    spec("hubspot-token", "TEXT", "pat-na1-emulator", "HubSpot service key",
        |o, v| text(&mut o.hubspot_token, v)),
    spec("hubspot-app-id", "N", "54321", "HubSpot app id: `sourceId` of the app's own writes",
        |o, v| put(&mut o.hubspot_app_id, v, NUMBER)),
    spec("hubspot-portal-id", "N", "62515", "HubSpot account (portal) id",
        |o, v| put(&mut o.hubspot_portal_id, v, NUMBER)),
    spec("hubspot-id-base", "N", "0", "id of base record n is this plus n (real ids exceed 2^31)",
        |o, v| put(&mut o.hubspot_id_base, v, NUMBER)),
    spec("hubspot-burst", "N", "0", "HubSpot calls per rolling 10 s: 100, 110, 190, 250; 0 takes 190 for the service key and 110 for OAuth",
        |o, v| put(&mut o.hubspot_burst, v, NUMBER)),
    spec("hubspot-daily", "N", "625000", "HubSpot calls per day with the service key",
        |o, v| put(&mut o.hubspot_daily, v, NUMBER)),
    spec("hubspot-search-rate", "N", "5", "HubSpot searches per second",
        |o, v| put(&mut o.hubspot_search_rate, v, NUMBER)),
    spec("hubspot-token-life-s", "S", "1800", "life of a HubSpot OAuth access token",
        |o, v| put(&mut o.hubspot_token_life_s, v, NUMBER)),
    spec("hubspot-sync-properties", "on|off", "on", "custom properties pg_crm_sync_id (unique) and sync_source exist",
        |o, v| switch(&mut o.hubspot_sync_properties, v)),
    spec("search-lag-ms", "MS", "0", "a HubSpot write is found by search only after this long",
        |o, v| put(&mut o.search_lag_ms, v, NUMBER)),
    spec("search-short-pages", "on|off", "off", "HubSpot searches answer half a page now and then, with more to come",
        |o, v| switch(&mut o.search_short_pages, v)),
    spec("search-id-order", "numeric|text", "numeric", "how HubSpot searches compare and sort hs_object_id",
        |o, v| match v { "numeric" | "text" => { o.search_id_text = v == "text"; Ok(()) } _ => Err("`numeric` or `text`") }),
    spec("webhook-url", "URL", "", "where HubSpot webhooks go (default: nowhere)",
        |o, v| maybe(&mut o.webhook_url, v)),
    spec("webhook-public-url", "URL", "", "URL to sign instead of --webhook-url, as behind a proxy",
        |o, v| maybe(&mut o.webhook_public_url, v)),
    spec("webhook-secret", "TEXT", "", "signs webhooks (default: the client secret)",
        |o, v| maybe(&mut o.webhook_secret, v)),
    spec("webhook-shape", "legacy|generic|both", "generic", "event types: `contact.creation` or `object.creation`",
        |o, v| match v { "legacy" | "generic" | "both" => text(&mut o.webhook_shape, v), _ => Err("`legacy`, `generic` or `both`") }),
    spec("webhook-retry-ms", "MS", "250", "wait before the first retry of a webhook; grows by half up to 10 retries",
        |o, v| put(&mut o.webhook_retry_ms, v, NUMBER)),
    spec("jwt-public-key", "FILE", "", "PEM public key that Salesforce JWT assertions must verify with (default: shape only)",
        |o, v| maybe(&mut o.jwt_public_key, v)),
    spec("jwt-username", "NAME", "sync@example.com", "Salesforce user the JWT flow accepts",
        |o, v| text(&mut o.jwt_username, v)),
    spec("salesforce-external-id", "on|off", "on", "Salesforce objects have the External ID field pg_crm_sync_id__c",
        |o, v| switch(&mut o.salesforce_external_id, v)),
    spec("salesforce", "JSON", "{}", "Salesforce settings, as POST /_admin/salesforce/settings takes them",
        |o, v| { o.salesforce_settings = serde_json::from_str(v).map_err(|_| "a JSON object")?; Ok(()) }),
];

impl Options {
    /// The defaults of [`TABLE`].
    pub(crate) fn defaults() -> Options {
        let mut options = Options {
            listen: String::new(),
            tls_listen: String::new(),
            pubsub_listen: String::new(),
            pubsub_plain: String::new(),
            seed: 0,
            contacts: 0,
            shared_share: 0.0,
            admin_token: None,
            write_ca: None,
            ready_file: None,
            rate_limits: true,
            latency_ms: 0,
            log_requests: false,
            client_id: String::new(),
            client_secret: String::new(),
            refresh_token: String::new(),
            search_lag_ms: 0,
            search_short_pages: false,
            search_id_text: false,
            webhook_url: None,
            webhook_secret: None,
            webhook_public_url: None,
            webhook_shape: String::new(),
            webhook_retry_ms: 0,
            hubspot_token: String::new(),
            hubspot_burst: 0,
            hubspot_daily: 0,
            hubspot_search_rate: 0,
            hubspot_token_life_s: 0,
            hubspot_sync_properties: true,
            hubspot_id_base: 0,
            hubspot_app_id: 0,
            hubspot_portal_id: 0,
            jwt_public_key: None,
            jwt_username: String::new(),
            salesforce_external_id: true,
            salesforce_settings: serde_json::Map::new(),
        };
        for spec in TABLE.iter().filter(|s| !s.value.is_empty()) {
            let stored = (spec.set)(&mut options, spec.default);
            debug_assert!(stored.is_ok(), "default of --{}", spec.name);
        }
        options
    }

    /// The secret webhooks are signed with.
    pub(crate) fn signing_secret(&self) -> &str {
        self.webhook_secret
            .as_deref()
            .unwrap_or(&self.client_secret)
    }
}

/// Reads the arguments after the program name. The error names the option and what was expected.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options::defaults();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if matches!(argument.as_str(), "--help" | "-h") {
            return Ok(Command::Help);
        }
        if matches!(argument.as_str(), "--version" | "-V") {
            return Ok(Command::Version);
        }
        let Some(rest) = argument.strip_prefix("--") else {
            return Err(format!(
                "unexpected argument `{argument}`: options start with --"
            ));
        };
        let (name, inline) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (rest, None),
        };
        let Some(spec) = TABLE.iter().find(|s| s.name == name) else {
            return Err(format!("unknown option --{name}"));
        };
        let value = if spec.value.is_empty() {
            if inline.is_some() {
                return Err(format!("--{name} takes no value"));
            }
            String::new()
        } else {
            inline
                .or_else(|| arguments.next())
                .ok_or_else(|| format!("--{name} needs a value: {}", spec.value))?
        };
        (spec.set)(&mut options, &value)
            .map_err(|expected| format!("--{name} `{value}`: expected {expected}"))?;
    }
    Ok(Command::Run(Box::new(options)))
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut out = String::from(
        "crm-emulator - HubSpot and Salesforce on loopback, in memory\n\n\
         Usage: crm-emulator [OPTIONS]\n\n\
         Prints one JSON line with the actual addresses, then serves until SIGINT, SIGTERM or\n\
         POST /_admin/stop. All data is invented; nothing leaves this machine.\n\nOptions:\n",
    );
    for spec in TABLE {
        let head = if spec.value.is_empty() {
            format!("--{}", spec.name)
        } else {
            format!("--{} <{}>", spec.name, spec.value)
        };
        out.push_str(&format!("  {head}\n      {}", spec.help));
        if !spec.default.is_empty() {
            out.push_str(&format!(" [default: {}]", spec.default));
        }
        out.push('\n');
    }
    out.push_str("  --help, -h\n      print this\n  --version, -V\n      print the version\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Options, String> {
        match parse(arguments.iter().map(|s| (*s).to_owned()))? {
            Command::Run(options) => Ok(*options),
            Command::Help | Command::Version => Err("not a run".to_owned()),
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let options = run(&[]).unwrap();
        assert_eq!(options.listen, "127.0.0.1:8080");
        assert_eq!(options.hubspot_token, "pat-na1-emulator");
        assert_eq!(options.contacts, 50);
        assert_eq!(options.webhook_url, None);
        assert_eq!(options.signing_secret(), "emulator-secret");
    }

    #[test]
    fn both_spellings_of_a_value_are_read() {
        let options = run(&["--contacts", "7", "--rate-limits=off"]).unwrap();
        assert_eq!((options.contacts, options.rate_limits), (7, false));
    }

    #[test]
    fn a_bad_value_names_the_option_and_what_was_expected() {
        assert_eq!(
            run(&["--contacts", "many"]).unwrap_err(),
            "--contacts `many`: expected a number from 0 to 1000000"
        );
        assert!(
            run(&["--contcats", "1"])
                .unwrap_err()
                .contains("unknown option")
        );
        assert!(run(&["--seed"]).unwrap_err().contains("needs a value"));
    }

    #[test]
    fn help_and_the_page_in_the_docs_name_every_option() {
        let help = help();
        let page = include_str!("../../../docs/emulator.md");
        for spec in TABLE {
            let row = format!("| `--{}", spec.name);
            assert!(
                page.contains(&row),
                "docs/emulator.md lacks --{}",
                spec.name
            );
            assert!(help.contains(&format!("--{}", spec.name)), "{}", spec.name);
        }
    }
}
