//! Which source wins, what is refused, and that the page of the settings is complete.

use super::*;
use figment::Jail;

fn load(flags: &Flags) -> Result<Config, String> {
    Config::load(Some(Path::new("realm.toml")), flags).map_err(|error| error.to_string())
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    Jail::expect_with(|jail| {
        jail.clear_env();
        jail.create_file("realm.toml", "")?;
        assert_eq!(load(&Flags::default()).unwrap(), Config::default());
        jail.create_file(
            "realm.toml",
            "threads = 2\ndrain_ms = 2\n[limits]\ncpu_ms_max = 2\n",
        )?;
        let config = load(&Flags::default()).unwrap();
        assert_eq!(
            (config.threads, config.drain_ms, config.limits.cpu_ms_max),
            (2, 2, 2)
        );
        assert_eq!(
            config.limits.wall_ms_max,
            CallLimits::default().wall_ms_max,
            "others of the table stay"
        );
        jail.set_env("REALM_THREADS", "3");
        jail.set_env("REALM_LIMITS__CPU_MS_MAX", "3");
        let config = load(&Flags::default()).unwrap();
        assert_eq!(
            (config.threads, config.drain_ms, config.limits.cpu_ms_max),
            (3, 2, 3)
        );
        let flags = Flags {
            threads: Some(4),
            ..Flags::default()
        };
        assert_eq!(load(&flags).unwrap().threads, 4);
        Ok(())
    });
}

#[test]
fn what_is_wrong_is_named() {
    Jail::expect_with(|jail| {
        jail.clear_env();
        for (text, key) in [
            (
                "lisen = \"127.0.0.1:0\"",
                "invalid settings: lisen is not a setting",
            ),
            ("listen = \"nowhere\"", "listen"),
            (
                "listen = 5",
                "invalid settings: listen must be an address such as 127.0.0.1:8080, not 5",
            ),
            (
                "threads = \"many\"",
                "invalid settings: threads must be a whole number, 0 or greater, not \"many\"",
            ),
            (
                "queue_max = -3",
                "invalid settings: queue_max must be a whole number, 0 or greater, not -3",
            ),
            (
                "[limits]\ncpu_ms_max = 1.5",
                "invalid settings: limits.cpu_ms_max must be a whole number, 0 or greater, not 1.5",
            ),
            (
                "limits = 3",
                "invalid settings: limits must be a table, not 3",
            ),
            (
                "activations = \"x\"",
                "invalid settings: activations must be one of int8, mixed, int16, not \"x\"",
            ),
            ("threads = ", "invalid settings: the settings file: "),
            (
                "[limits]\nmemory_mib_mx = 4",
                "invalid settings: limits.memory_mib_mx is not a setting",
            ),
            ("[limits]\ncpu_ms_max = 0", "cpu_ms_max"),
            ("admin_token = \"short\"", "admin_token"),
            ("upload_mib_max = 17", "upload_mib_max"),
            ("connections_max = 0", "connections_max"),
            ("cors_origins = [\"app.example.com\"]", "cors_origins"),
            ("cors_origins = [\"https://a/b\"]", "cors_origins"),
            ("context_max = 0", "context_max"),
        ] {
            jail.create_file("realm.toml", text)?;
            let error = load(&Flags::default()).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
        jail.create_file("realm.toml", "")?;
        jail.set_env("REALM_MODELS", "/models");
        assert!(load(&Flags::default()).is_ok(), "not a setting");
        jail.set_env("REALM_THREADS", "many");
        assert_eq!(
            load(&Flags::default()).unwrap_err(),
            "invalid settings: REALM_THREADS must be a whole number, 0 or greater, not \"many\""
        );
        jail.set_env("REALM_THREADS", "2");
        jail.set_env("REALM_LIMITS__CPU_MS_MAX", "soon");
        let error = load(&Flags::default()).unwrap_err();
        assert!(
            error.contains("REALM_LIMITS__CPU_MS_MAX must be"),
            "{error}"
        );
        Ok(())
    });
}

#[test]
fn no_number_is_too_large_for_what_is_made_of_it() {
    let numbers = Config::default().ranges();
    for (key, value) in keys("", &serde_json::to_value(Config::default()).unwrap()) {
        let is_checked = numbers.iter().any(|(name, ..)| *name == key);
        assert_eq!(is_checked, value.is_number(), "{key} has a range");
    }
    Jail::expect_with(|jail| {
        jail.clear_env();
        for (key, _, _, max) in &numbers {
            let toml = |value: u64| match key.split_once('.') {
                Some((table, key)) => format!("[{table}]\n{key} = {value}\n"),
                None => format!("{key} = {value}\n"),
            };
            jail.create_file("realm.toml", &toml(*max))?;
            let config = load(&Flags::default()).unwrap();
            let far = std::time::Instant::now()
                .checked_add(std::time::Duration::from_millis(config.limits.wall_ms_max));
            assert!(far.is_some());
            for over in [*max + 1, i64::MAX.unsigned_abs()] {
                jail.create_file("realm.toml", &toml(over))?;
                let error = load(&Flags::default()).unwrap_err();
                assert!(error.contains(key.rsplit('.').next().unwrap()), "{error}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_variable_that_is_no_setting_is_found_and_does_no_harm() {
    Jail::expect_with(|jail| {
        jail.clear_env();
        jail.create_file("realm.toml", "")?;
        for (name, value) in [
            ("REALM_PORT", "tcp://10.0.0.1:80"),
            ("REALM_SERVICE_HOST", "10.0.0.1"),
            ("REALM_LIMITS__CPU", "1"),
            ("REALM_LIMITS", "1"),
            ("REALM_MODELS", "/models"),
            ("REALM_DRAIN_MS", "5"),
            ("REALM_LIMITS__CPU_MS_MAX", "7"),
            ("OTHER", "x"),
        ] {
            jail.set_env(name, value);
        }
        let config = load(&Flags::default()).unwrap();
        assert_eq!((config.drain_ms, config.limits.cpu_ms_max), (5, 7));
        let unknown = ["LIMITS", "LIMITS__CPU", "PORT", "SERVICE_HOST"];
        let unknown = unknown.map(|name| format!("REALM_{name}"));
        assert_eq!(Config::unknown_variables(), unknown);
        Ok(())
    });
}

/// Every key with its value, those of tables as `table.key`.
fn keys(prefix: &str, value: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
    let Some(table) = value.as_object() else {
        return vec![(prefix.to_owned(), value.clone())];
    };
    let dot = if prefix.is_empty() { "" } else { "." };
    let entries = table.iter();
    let entries = entries.flat_map(|(key, value)| keys(&format!("{prefix}{dot}{key}"), value));
    entries.collect()
}

#[test]
fn the_page_lists_every_key_with_its_default_and_whether_it_has_a_flag() {
    let page = include_str!("../../../../docs/configuration.md");
    let all = keys("", &serde_json::to_value(Config::default()).unwrap());
    let flags = <Flags as clap::Args>::augment_args(clap::Command::new("flags"));
    let has_flag = |key: &str| flags.get_arguments().any(|flag| flag.get_id() == key);
    for (key, value) in &all {
        let default = if value.is_null() {
            "none".to_owned()
        } else {
            format!("`{value}`")
        };
        let flag = if has_flag(key) { " yes" } else { "" };
        let row = format!("\n| `{key}` | {default} |{flag} | ");
        assert!(page.contains(&row), "no row {row:?}");
    }
    assert_eq!(page.matches("\n| `").count(), all.len(), "and no other");
}

#[test]
fn a_model_is_called_by_its_file_without_the_quantisation() {
    for (file, name) in [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m"),
        ("/a/qwen3.gguf", "qwen3"),
        ("model-f16.gguf", "model"),
    ] {
        assert_eq!(model_name_of(Path::new(file)), name);
    }
}
